// SPDX-License-Identifier: Apache-2.0
//
// What giving out and taking back ranges costs, beside what else one could use for it.
//
// Names are workload/implementation/n. Each implementation does the same work through its public
// calls: it knows the live ranges with a 64-bit value each, refuses to free what it does not know,
// and gives out the lowest place that fits; but for `unordered`, which gives any place in constant
// time and shows what address order costs. Seeds are fixed. Unless told otherwise, every case runs
// five times, in random order, so that a busy moment of the machine does not fall on one of them
// alone:
//
//   allocator_bench --benchmark_filter='churn/.*/10000' --benchmark_format=json

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>
#include <malloc.h>

#include "vmspace/allocator.hpp"

#include "allocator_baselines.hpp"

namespace {

using namespace vmspace::literals;

constexpr std::uint64_t page = 4_KiB;
constexpr std::uint64_t space_min = 0x1000;
constexpr std::uint64_t space_max = (std::uint64_t{1} << 46) - 1;

class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t seed) : state_(seed) {}
  std::uint64_t operator()() {
    std::uint64_t z = (state_ += 0x9e37'79b9'7f4a'7c15);
    z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
    z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
    return z ^ (z >> 31);
  }
  /// A number below `bound`, which is below 2^32.
  std::uint64_t below(std::uint64_t bound) { return ((*this)() >> 32) * bound >> 32; }

 private:
  std::uint64_t state_;
};

/// What is measured, behind the calls that the baselines have.
class Vmspace {
 public:
  static constexpr const char* name = "vmspace";
  static constexpr bool ordered = true;

  Vmspace(std::uint64_t min, std::uint64_t max) {
    if (!tree_.insert(*vmspace::Range::make(min, max))) std::abort();
  }
  std::optional<Live> allocate(const Want& want) {
    const auto range = tree_.allocate(
        {.size = want.size, .min = want.min, .max = want.max, .align = want.align}, want.size);
    if (!range) return std::nullopt;
    return Live{range->min(), range->size()};
  }
  bool free(const Live& live) {
    return tree_.free(*vmspace::Range::from_base_size(live.base, live.size)).has_value();
  }
  [[nodiscard]] bool find(std::uint64_t address) const { return tree_.find(address).has_value(); }

 private:
  vmspace::IntervalTree<std::uint64_t> tree_;
};

// -- workloads ---------------------------------------------------------------------------------

Want churn_want(SplitMix64& random) {
  static constexpr std::array<std::uint64_t, 6> pages = {1, 2, 4, 16, 64, 512};
  const std::uint64_t size = pages[random.below(pages.size())] * page;
  return {.size = size, .align = size};
}

Want window_want(SplitMix64& random) {
  Want want{.size = page, .align = page};
  switch (random.below(4)) {
    case 0: want.max = 4_GiB - 1; break;
    case 1:
      want.min = random() % (space_max - 16_GiB);
      want.max = want.min + 16_GiB - 1;
      break;
    default: break;
  }
  return want;
}

std::size_t heap_in_use() {
  const auto info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

/// `n` live ranges, after 2n pairs. Made when first used, and kept: to warm up the slow ones takes
/// seconds.
template <typename A, Want (*next)(SplitMix64&)>
struct Churn {
  explicit Churn(std::size_t n) {
    live.reserve(n);
    const std::size_t before = heap_in_use();
    allocator = std::make_unique<A>(space_min, space_max);
    while (live.size() < n)
      live.push_back(allocate());
    for (std::size_t i = 0; i < 2 * n; ++i)
      pair();
    heap = heap_in_use() - before;
  }

  static Churn& of(std::size_t n) {
    static std::map<std::size_t, std::unique_ptr<Churn>> made;
    std::unique_ptr<Churn>& churn = made[n];
    if (churn == nullptr) churn = std::make_unique<Churn>(n);
    return *churn;
  }

  Live allocate() {
    const std::optional<Live> got = allocator->allocate(next(random));
    if (!got) std::abort();
    return *got;
  }
  void pair() {
    Live& one = live[random.below(live.size())];
    if (!allocator->free(one)) std::abort();
    one = allocate();
  }

  SplitMix64 random{20'231'101};
  std::unique_ptr<A> allocator;
  std::vector<Live> live;
  std::size_t heap = 0;
};

/// One iteration is a pair: a random live range is freed, and a new one allocated.
template <typename A, Want (*next)(SplitMix64&)>
void churn(benchmark::State& state, std::size_t n) {
  auto& churn = Churn<A, next>::of(n);
  for (auto _ : state)
    churn.pair();
  state.counters["heap_bytes_per_live"] =
      static_cast<double>(churn.heap) / static_cast<double>(churn.live.size());
}

/// One iteration is n allocations of a page from an empty space, and its destruction.
template <typename A>
void fill(benchmark::State& state, std::size_t n) {
  for (auto _ : state) {
    A allocator(space_min, space_max);
    for (std::size_t i = 0; i < n; ++i) {
      if (!allocator.allocate({.size = page, .align = page})) std::abort();
    }
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(n));
}

/// One iteration is the look-up of an address inside a live range.
template <typename A>
void lookup(benchmark::State& state, std::size_t n) {
  auto& churn = Churn<A, churn_want>::of(n);
  SplitMix64 random{7};
  std::vector<std::uint64_t> addresses(std::size_t{1} << 16);
  for (std::uint64_t& address : addresses) {
    const Live& live = churn.live[random.below(n)];
    address = live.base + random() % live.size;
  }
  std::size_t i = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(churn.allocator->find(addresses[i++ % addresses.size()]));
  }
}

/// A pool of small numbers, all taken: one iteration frees one and allocates one.
template <typename A>
void ids(benchmark::State& state, std::size_t n) {
  A allocator(0, n - 1);
  const Want one{.size = 1, .align = 1};
  std::vector<Live> live;
  while (live.size() < n)
    live.push_back(*allocator.allocate(one));
  SplitMix64 random{3};
  for (auto _ : state) {
    Live& id = live[random.below(n)];
    if (!allocator.free(id)) std::abort();
    id = *allocator.allocate(one);
  }
}

/// `n` gaps that are long enough and do not fit, and all space above them: one iteration allocates
/// and frees again.
template <typename A>
void misfit(benchmark::State& state, std::size_t n, std::uint64_t first, std::uint64_t stride,
            std::uint64_t gap, const Want& want) {
  A allocator(space_min, space_max);
  // Everything up to the end of the last gap is taken in pieces, and the gaps given back.
  const auto take = [&](std::uint64_t base, std::uint64_t end) {
    const auto got =
        allocator.allocate({.size = end - base, .align = 1, .min = base, .max = end - 1});
    if (!got) std::abort();
    return *got;
  };
  std::vector<Live> gaps;
  std::uint64_t done = space_min;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t base = first + i * stride;
    if (done < base) take(done, base);
    gaps.push_back(take(base, base + gap));
    done = base + gap;
  }
  take(done, done + page);
  for (const Live& live : gaps) {
    if (!allocator.free(live)) std::abort();
  }
  for (auto _ : state) {
    const std::optional<Live> got = allocator.allocate(want);
    if (!got || got->base < done || !allocator.free(*got)) std::abort();
  }
}

template <typename A>
void add_all() {
  const auto add = [](std::string workload, std::size_t n, auto run) {
    benchmark::RegisterBenchmark((workload + "/" + A::name + "/" + std::to_string(n)).c_str(),
                                 [=](benchmark::State& state) { run(state, n); });
  };
  for (const std::size_t n : {100, 1'000, 10'000, 100'000}) {
    add("fill", n, fill<A>);
    add("churn", n, churn<A, churn_want>);
    if constexpr (A::ordered) {
      add("window", n, churn<A, window_want>);
      add("lookup", n, lookup<A>);
    }
  }
  if constexpr (A::ordered) {
    add("ids", 1024, ids<A>);
    for (const std::size_t n : {100, 1'000, 10'000}) {
      add("misfit_a", n, [](benchmark::State& state, std::size_t count) {
        misfit<A>(state, count, 5 * page, 4 * page, 2 * page,
                  {.size = 2 * page, .align = 2 * page});
      });
      add("misfit_b", n, [](benchmark::State& state, std::size_t count) {
        misfit<A>(state, count, 5 * page, 4 * page, 2 * page, {.size = page, .align = 2_MiB});
      });
      add("misfit_c", n, [](benchmark::State& state, std::size_t count) {
        misfit<A>(state, count, 2_MiB - 2 * page, 2_MiB, 3 * page,
                  {.size = 2 * page, .align = 2_MiB});
      });
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  // Before the caller's own, which so win.
  std::string repetitions = "--benchmark_repetitions=5";
  std::string interleaving = "--benchmark_enable_random_interleaving=true";
  std::string time = "--benchmark_min_time=0.05";
  std::string aggregates = "--benchmark_report_aggregates_only=true";
  std::vector<char*> args = {argv[0], repetitions.data(), interleaving.data(), time.data(),
                             aggregates.data()};
  args.insert(args.end(), argv + 1, argv + argc);
  int count = static_cast<int>(args.size());
  args.push_back(nullptr);

  add_all<Vmspace>();
  add_all<StdMap>();
  add_all<Icl>();
  add_all<Unordered>();
  benchmark::Initialize(&count, args.data());
  if (benchmark::ReportUnrecognizedArguments(count, args.data())) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
