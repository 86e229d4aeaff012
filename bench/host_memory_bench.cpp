// SPDX-License-Identifier: Apache-2.0
//
// Random reads from a memfd: random_read/<pages>, each read at an address that the one before gave, so
// that a read costs its misses of caches and TLB; small pages, and the same pages collapsed.
//
// Populating host memory: populate/<who>/<what>. The time is that from asking for addresses to
// having every page; `s_per_GiB` is the figure to compare, inside one run.
//
// who: vmspace on one and on two threads; mmap(MAP_POPULATE); the loop of other VMMs, which reads a
// word of each page and writes it back with a compare-exchange.
// what: small anonymous pages; anonymous memory advised to use huge pages (MAP_POPULATE brings its
// pages before any advice can be given); a shared memfd.
//
// As much memory of the same kind is touched and freed right before each measurement: where this
// machine is itself a guest, its host may back memory only when it is touched, and take it back
// soon after it is freed (free page reporting), and that is not what is measured.

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include <benchmark/benchmark.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/host/populate.hpp"
#include "vmspace/memory/memory_region.hpp"

namespace {

using namespace vmspace;
using namespace vmspace::literals;

constexpr std::uint64_t size = 1_GiB;

enum class What { anon, anon_thp, memfd };

void die(const char* what) {
  std::perror(what);
  std::abort();
}

/// Plain system calls, for the baselines; unmapped by the destructor.
class RawMemory {
 public:
  RawMemory(What what, int flags, bool touch = false) {
    if (what == What::memfd) {
      fd_ = ::memfd_create("bench", MFD_CLOEXEC);
      if (fd_ < 0 || ::ftruncate(fd_, static_cast<off_t>(size)) != 0) die("memfd");
    }
    flags |= fd_ < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    data_ = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd_, 0);
    if (data_ == MAP_FAILED) die("mmap");
    if (what == What::anon_thp && ::madvise(data_, size, MADV_HUGEPAGE) != 0) die("madvise");
    if (touch) touch_pages();
  }
  RawMemory(const RawMemory&) = delete;
  RawMemory& operator=(const RawMemory&) = delete;
  ~RawMemory() {
    ::munmap(data_, size);
    if (fd_ >= 0) ::close(fd_);
  }

 private:
  void touch_pages() const {
    const auto step = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    for (std::uint64_t at = 0; at < size; at += step) {
      auto& word = *reinterpret_cast<std::uint64_t*>(static_cast<char*>(data_) + at);
      std::atomic_ref<std::uint64_t> atomic(word);
      std::uint64_t value = atomic.load(std::memory_order_relaxed);
      atomic.compare_exchange_strong(value, value);
    }
  }
  int fd_ = -1;
  void* data_ = nullptr;
};

/// Times `make`, and drops what it makes outside of the time.
template <typename Make>
void measure(benchmark::State& state, What what, Make make) {
  std::chrono::duration<double> total{};
  for (auto _ : state) {
    state.PauseTiming();
    { const RawMemory backed_by_the_host(what, 0, true); }
    state.ResumeTiming();
    const auto begin = std::chrono::steady_clock::now();
    auto memory = make();
    total += std::chrono::steady_clock::now() - begin;
    state.PauseTiming();
    memory.reset();
    state.ResumeTiming();
  }
  const double gib = static_cast<double>(size) / static_cast<double>(1_GiB);
  state.counters["s_per_GiB"] = total.count() / static_cast<double>(state.iterations()) / gib;
}

void vmspace_threads(benchmark::State& state, What what, unsigned threads) {
  const auto region = AddressSpaceRegion::make(
      {.size = size,
       .backing = {.source = what == What::memfd ? MemorySource::shmem : MemorySource::anon},
       .huge_pages = what == What::anon_thp,
       .populate = true});
  measure(state, what, [&] {
    auto mapped = MemoryRegion::map(*region, {.populate = {.threads = threads}});
    if (!mapped) {
      std::fprintf(stderr, "%s\n", mapped.error().message().c_str());
      std::abort();
    }
    return *mapped;
  });
}

void map_populate(benchmark::State& state, What what) {
  measure(state, what, [&] { return std::make_unique<RawMemory>(what, MAP_POPULATE); });
}

void page_touch(benchmark::State& state, What what) {
  measure(state, what, [&] { return std::make_unique<RawMemory>(what, 0, true); });
}

/// Follows a chain of addresses through 1 GiB.
void random_read(benchmark::State& state, bool collapsed) {
  const auto backing = Backing::open({.source = MemorySource::shmem}, size);
  if (!backing) die("memfd");
  const auto mapping = MemoryMapping::map(*backing, {.size = size, .align = 2_MiB});
  if (!mapping || !populate(*mapping)) die("populate");
  if (collapsed) {
    const auto begin = std::chrono::steady_clock::now();
    const auto done = mapping->collapse(0, size);
    if (!done) {
      state.SkipWithError(done.error().message().c_str());
      return;
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    state.counters["collapse_s"] = took.count();
  }
  std::uint64_t at = 1;
  const auto* const words = reinterpret_cast<const volatile std::uint64_t*>(mapping->data());
  for (auto _ : state) {
    // A linear congruential generator whose step waits for the word read, which is 0.
    at = at * 6364136223846793005U + 1442695040888963407U + words[(at >> 33) % (size / 8)];
  }
  benchmark::DoNotOptimize(at);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  for (const auto& [name, what] :
       {std::pair{"anon", What::anon}, {"anon_thp", What::anon_thp}, {"memfd", What::memfd}}) {
    const auto add = [&, label = std::string(name)](const std::string& who, auto body) {
      benchmark::RegisterBenchmark(("populate/" + who + "/" + label).c_str(), body)
          ->Unit(benchmark::kMillisecond);
    };
    add("map_populate", [what](benchmark::State& s) { map_populate(s, what); });
    add("page_touch", [what](benchmark::State& s) { page_touch(s, what); });
    add("vmspace_1t", [what](benchmark::State& s) { vmspace_threads(s, what, 1); });
    add("vmspace_2t", [what](benchmark::State& s) { vmspace_threads(s, what, 2); });
  }
  for (const auto& [name, collapsed] : {std::pair{"small", false}, {"collapsed", true}}) {
    const bool huge = collapsed;
    benchmark::RegisterBenchmark((std::string("random_read/") + name).c_str(),
                                 [huge](benchmark::State& s) { random_read(s, huge); })
        ->Iterations(2'000'000);  // once: preparing the memory takes seconds
  }
  benchmark::RunSpecifiedBenchmarks();
}
