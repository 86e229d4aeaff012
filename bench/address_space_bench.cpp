// SPDX-License-Identifier: Apache-2.0
//
// What reading, searching and changing an address space costs, beside what it could be built on
// instead. Names are workload/implementation/size.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>

#include "vmspace/address_space.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace {
namespace {

using namespace literals;
using namespace std::chrono_literals;

// -- readers -----------------------------------------------------------------------------------
//
// Each thread revalidates its view and reads one field of it. Each implementation has the published
// value, publish(), and a Reader with field().

struct Snapshot {
  std::uint64_t field = 1;
};

class Vmspace {
 public:
  class Reader {
   public:
    explicit Reader(Vmspace& from) : reader_(from.value_.reader()) {}
    std::uint64_t field() { return reader_.current().field; }

   private:
    Published<Snapshot>::Reader reader_;
  };

  void publish() {
    const auto ok = value_.update([](Snapshot& draft) -> Result<void> {
      ++draft.field;
      return {};
    });
    benchmark::DoNotOptimize(ok);
  }

 private:
  Published<Snapshot> value_{Snapshot{}};
};

/// No synchronisation that protects anything: what a reader must pay at least. Old values are never
/// freed before the end.
class Plain {
 public:
  class Reader {
   public:
    explicit Reader(Plain& from) : from_(from) {}
    std::uint64_t field() { return from_.current_.load(std::memory_order_relaxed)->field; }

   private:
    Plain& from_;
  };

  void publish() {
    all_.push_back(std::make_unique<Snapshot>(*all_.back()));
    ++all_.back()->field;
    current_.store(all_.back().get(), std::memory_order_release);
  }

 private:
  std::vector<std::unique_ptr<Snapshot>> all_ = [] {
    std::vector<std::unique_ptr<Snapshot>> first;
    first.push_back(std::make_unique<Snapshot>());
    return first;
  }();
  std::atomic<const Snapshot*> current_{all_.back().get()};
};

class AtomicSharedPtr {
 public:
  class Reader {
   public:
    explicit Reader(AtomicSharedPtr& from) : from_(from) {}
    std::uint64_t field() { return from_.current_.load(std::memory_order_acquire)->field; }

   private:
    AtomicSharedPtr& from_;
  };

  void publish() {
    auto next = std::make_shared<Snapshot>(*current_.load(std::memory_order_acquire));
    ++next->field;
    current_.store(std::move(next), std::memory_order_release);
  }

 private:
  std::atomic<std::shared_ptr<const Snapshot>> current_{std::make_shared<const Snapshot>()};
};

class SharedMutex {
 public:
  class Reader {
   public:
    explicit Reader(SharedMutex& from) : from_(from) {}
    std::uint64_t field() {
      const std::shared_lock lock(from_.mutex_);
      return from_.value_.field;
    }

   private:
    SharedMutex& from_;
  };

  void publish() {
    const std::unique_lock lock(mutex_);
    ++value_.field;
  }

 private:
  std::shared_mutex mutex_;
  Snapshot value_;
};

/// Publishes every millisecond as long as it lives.
template <typename Implementation>
class Writer {
 public:
  explicit Writer(Implementation& implementation)
      : thread_([this, &implementation] {
          while (!done_.load(std::memory_order_relaxed)) {
            implementation.publish();
            std::this_thread::sleep_for(1ms);
          }
        }) {}
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  ~Writer() {
    done_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

/// One value for all threads of a benchmark, whose first thread makes and destroys it; the others
/// wait at the gate that the state's loop is.
template <typename Implementation, bool busy>
void read(benchmark::State& state) {
  static std::optional<Implementation> shared;
  static std::optional<Writer<Implementation>> writer;
  static std::atomic<bool> ready{false};
  if (state.thread_index() == 0) {
    shared.emplace();
    if (busy) writer.emplace(*shared);
    ready = true;
  }
  while (!ready)
    std::this_thread::yield();
  {
    typename Implementation::Reader reader(*shared);
    std::uint64_t sum = 0;  // DoNotOptimize of a field does not make the compiler load it
    for (auto _ : state)
      sum += reader.field();
    benchmark::DoNotOptimize(sum);
  }
  if (state.thread_index() == 0) {
    ready = false;
    writer.reset();
    // Readers of the other threads may still be there for a moment; the next run replaces the
    // value.
  }
}

template <typename Implementation>
void register_readers(const std::string& who) {
  for (const int threads : {1, 2}) {
    benchmark::RegisterBenchmark(("reader_idle/" + who).c_str(), read<Implementation, false>)
        ->Threads(threads);
    benchmark::RegisterBenchmark(("reader_busy/" + who).c_str(), read<Implementation, true>)
        ->Threads(threads);
  }
}

/// A vCPU's exit: come back, look, and let go before the guest runs again.
void park(benchmark::State& state) {
  Published<Snapshot> value{Snapshot{}};
  auto reader = value.reader();
  std::uint64_t sum = 0;
  for (auto _ : state) {
    sum += reader.current().field;
    reader.park();
  }
  benchmark::DoNotOptimize(sum);
}

// -- spaces ------------------------------------------------------------------------------------

std::uint64_t splitmix64(std::uint64_t& state) {
  state += 0x9e37'79b9'7f4a'7c15;
  std::uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
  z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
  return z ^ (z >> 31);
}

RegionOptions region(std::uint64_t index) {
  return {.name = "dimm", .base = GuestAddress{4_GiB + index * 4_MiB}, .size = 2_MiB};
}

/// Regions of 2 MiB with gaps of 2 MiB.
AddressSpace space_of(std::uint64_t regions) {
  auto space =
      AddressSpace::create(*AddressSpaceLayout::x86_64({.phys_bits = 46, .amd_hole = false}));
  const auto filled = space->transact([&](AddressSpaceBase& draft) -> Result<void> {
    for (std::uint64_t i = 0; i < regions; ++i) {
      VMSPACE_TRY(draft.insert_region(region(i)));
    }
    return {};
  });
  if (!filled) std::abort();
  return *std::move(space);
}

/// A random address inside a random region.
void find(benchmark::State& state) {
  const auto regions = static_cast<std::uint64_t>(state.range(0));
  const auto space = space_of(regions).snapshot();
  std::uint64_t random = 42;
  std::vector<GuestAddress> addresses(4096);
  for (GuestAddress& address : addresses) {
    const std::uint64_t base = region(splitmix64(random) % regions).base.value();
    address = GuestAddress(base + splitmix64(random) % 2_MiB);
  }
  std::size_t next = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(space->find_region(addresses[next++ % addresses.size()]));
  }
}

/// One region more, in a random gap; and the publication, and the destruction of the space before.
/// What was inserted is removed again outside of the time.
void insert(benchmark::State& state) {
  const auto regions = static_cast<std::uint64_t>(state.range(0));
  const AddressSpace space = space_of(regions);
  std::uint64_t random = 42;
  for (auto _ : state) {
    RegionOptions options = region(splitmix64(random) % regions);
    options.base = *options.base.checked_add(2_MiB);
    const GuestAddress base = options.base;
    const auto inserted = space.insert_region(std::move(options));
    state.PauseTiming();
    if (!inserted || !space.remove_region(base)) {
      state.SkipWithError("the space refuses a region");
      break;
    }
    state.ResumeTiming();
  }
}

/// Two regions move into the gaps behind them, and back, as one set each time.
void move_two(benchmark::State& state) {
  const auto regions = static_cast<std::uint64_t>(state.range(0));
  AddressSpaceBase space = *space_of(regions).snapshot();
  const std::uint64_t middle = regions / 2;
  std::vector<RegionMove> moves;
  for (const std::uint64_t index : {middle, middle + 1}) {
    const GuestAddress base = region(index).base;
    moves.push_back({.region = *std::find_if(space.begin(), space.end(), [&](const auto& region) {
                       return region->base() == base;
                     })});
  }
  for (auto _ : state) {
    for (RegionMove& move : moves)
      move.to = GuestAddress(move.region->base().value() ^ 2_MiB);
    const auto after = space.move_regions(moves);
    if (!after) {
      state.SkipWithError("the space refuses a move");
      break;
    }
    for (std::size_t i = 0; i < moves.size(); ++i)
      moves[i].region = (*after)[i];
  }
}

/// One region moves into the gap behind it, and back.
void move_one(benchmark::State& state) {
  const auto regions = static_cast<std::uint64_t>(state.range(0));
  AddressSpaceBase space = *space_of(regions).snapshot();
  GuestAddress base = region(regions / 2).base;
  for (auto _ : state) {
    const GuestAddress to(base.value() ^ 2_MiB);
    if (!space.move_region(base, to)) {
      state.SkipWithError("the space refuses a move");
      break;
    }
    base = to;
  }
}

}  // namespace
}  // namespace vmspace

int main(int argc, char** argv) {
  using namespace vmspace;
  register_readers<Vmspace>("vmspace");
  register_readers<Plain>("plain");
  register_readers<AtomicSharedPtr>("atomic_shared_ptr");
  register_readers<SharedMutex>("shared_mutex");
  benchmark::RegisterBenchmark("park/vmspace", park);
  for (const int regions : {4, 64, 512, 4096}) {
    benchmark::RegisterBenchmark("find/vmspace", find)->Arg(regions);
  }
  for (const int regions : {16, 1024}) {
    benchmark::RegisterBenchmark("insert/vmspace", insert)->Arg(regions);
    benchmark::RegisterBenchmark("move_region/vmspace", move_one)->Arg(regions);
    benchmark::RegisterBenchmark("move_regions_2/vmspace", move_two)->Arg(regions);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
