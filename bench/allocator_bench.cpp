// SPDX-License-Identifier: Apache-2.0
//
// What giving out and taking back ranges costs, beside what else one could use for it.
//
// Names are workload/implementation/n. Each implementation does the same work through its public
// calls: it knows the live ranges with a 64-bit value each, refuses to free what it does not know,
// and gives out the lowest place that fits; but for `unordered`, which gives any place in constant
// time and shows what address order costs. `absl_btree` and `llvm_interval_map` are there where CMake finds
// Abseil and LLVM (Debian: libabsl-dev, llvm-dev). Seeds are fixed. Unless told otherwise, every case runs
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
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>
#include <malloc.h>

#include "vmspace/allocator.hpp"

#include "allocator_baselines.hpp"
#include "split_mix64.hpp"

namespace {

using namespace vmspace::literals;

constexpr std::uint64_t page = 4_KiB;
constexpr std::uint64_t space_min = 0x1000;
constexpr std::uint64_t space_max = (std::uint64_t{1} << 46) - 1;

/// What is measured, behind the calls that the baselines have.
class Vmspace {
 public:
  static constexpr const char* name = "vmspace";
  static constexpr bool ordered = true;
  static constexpr bool complete = true;

  Vmspace(std::uint64_t min, std::uint64_t max) {
    if (!tree_.insert(*vmspace::Range::make(min, max))) std::abort();
  }
  std::optional<Live> allocate(const Want& want) {
    const auto range = tree_.allocate({.size = want.size,
                                       .min = want.min,
                                       .max = want.max,
                                       .align = want.align,
                                       .policy = want.best ? vmspace::AllocPolicy::best_match
                                                           : vmspace::AllocPolicy::first_match},
                                      want.size);
    if (!range) return std::nullopt;
    return Live{range->min(), range->size()};
  }
  bool append(const Live& live) {
    return tree_.insert(*vmspace::Range::from_base_size(live.base, live.size), live.size)
        .has_value();
  }
  bool free(const Live& live) {
    return tree_.free(*vmspace::Range::from_base_size(live.base, live.size)).has_value();
  }
  [[nodiscard]] bool find(std::uint64_t address) const { return tree_.find(address).has_value(); }

 private:
  vmspace::IntervalTree<std::uint64_t> tree_;
};

/// The same by a pool of leases, which tells them apart by a map here.
class VmspacePool {
 public:
  static constexpr const char* name = "vmspace_pool";

  VmspacePool(std::uint64_t min, std::uint64_t max)
      : pool_(*vmspace::RangePool::create("bench", {*vmspace::Range::make(min, max)})) {}

  std::optional<Live> allocate(const Want& want) {
    auto lease = pool_.acquire(
        {.size = want.size, .min = want.min, .max = want.max, .align = want.align}, "lease");
    if (!lease) return std::nullopt;
    const Live live{lease->range().min(), lease->range().size()};
    leases_.insert_or_assign(live.base, std::move(*lease));
    return live;
  }
  bool free(const Live& live) { return leases_.erase(live.base) != 0; }

 private:
  vmspace::RangePool pool_;
  std::unordered_map<std::uint64_t, vmspace::Lease> leases_;
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

/// Sizes and alignments that have nothing to do with each other.
Want mixed_want(SplitMix64& random) {
  return {.size = (1 + random.below(600)) * page, .align = page << random.below(10)};
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

/// A space that was taken in pieces up to some address, but for gaps that were given back.
template <typename A>
class Gaps {
 public:
  /// Leaves a gap at `base`, and everything up to it taken in one piece. Call it in ascending order.
  void add(std::uint64_t base, std::uint64_t size) {
    if (end_ < base) take(base);
    gaps_.push_back(take(base + size));
  }

  /// Takes everything up to `end` in one piece.
  Live take(std::uint64_t end) {
    const auto got =
        allocator_.allocate({.size = end - end_, .align = 1, .min = end_, .max = end - 1});
    if (!got) std::abort();
    end_ = end;
    return *got;
  }

  /// Takes everything up to `end`, and gives the gaps back.
  A& finish(std::uint64_t end) {
    take(end);
    for (const Live& live : gaps_) {
      if (!allocator_.free(live)) std::abort();
    }
    return allocator_;
  }

  [[nodiscard]] std::uint64_t end() const { return end_; }

 private:
  A allocator_{space_min, space_max};
  std::vector<Live> gaps_;
  std::uint64_t end_ = space_min;
};

/// One iteration allocates, which must give an address in [least, most], and frees again.
template <typename A>
void allocate_and_free(benchmark::State& state, A& allocator, const Want& want, std::uint64_t least,
                       std::uint64_t most) {
  for (auto _ : state) {
    const std::optional<Live> got = allocator.allocate(want);
    if (!got || got->base < least || got->base > most || !allocator.free(*got)) std::abort();
  }
}

/// `n` gaps that are long enough and do not fit, and all space above them.
template <typename A>
void misfit(benchmark::State& state, std::size_t n, std::uint64_t first, std::uint64_t stride,
            std::uint64_t gap, const Want& want) {
  Gaps<A> gaps;
  for (std::size_t i = 0; i < n; ++i)
    gaps.add(first + i * stride, gap);
  A& allocator = gaps.finish(gaps.end() + page);
  allocate_and_free(state, allocator, want, gaps.end(), space_max);
}

/// `n` gaps of which each other one is long enough, and those between them aligned well enough.
template <typename A>
void long_short(benchmark::State& state, std::size_t n) {
  Gaps<A> gaps;
  for (std::size_t i = 1; i <= n / 2; ++i) {
    gaps.add(i * 2_MiB, page);
    gaps.add(i * 2_MiB + 2 * page, 1_MiB);
  }
  A& allocator = gaps.finish(gaps.end() + page);
  allocate_and_free(state, allocator, {.size = 64_KiB, .align = 2_MiB}, gaps.end(), space_max);
}

/// A device that reaches 4 GiB, of which `n` pieces are taken and one page is not; above are `n` huge
/// gaps.
template <typename A>
void dma32(benchmark::State& state, std::size_t n) {
  Gaps<A> gaps;
  const std::uint64_t piece = 4_GiB / n / page * page;
  for (std::uint64_t base = piece; base < 4_GiB - piece; base += piece)
    gaps.take(base);
  gaps.add(4_GiB - page, page);
  for (std::size_t i = 0; i < n; ++i)
    gaps.add(4_GiB + page + i * 64_MiB, 32_MiB);
  A& allocator = gaps.finish(gaps.end() + page);
  allocate_and_free(state, allocator, {.size = page, .align = page, .max = 4_GiB - 1}, 4_GiB - page,
                    4_GiB - page);
}

/// `n` gaps of up to 256 pages, none of them as long as what is asked for.
template <typename A>
void best_fit(benchmark::State& state, std::size_t n) {
  Gaps<A> gaps;
  SplitMix64 random{11};
  std::uint64_t base = 2 * page;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t gap = (2 + random.below(255)) * page;
    gaps.add(base, gap);
    base += gap + page;
  }
  A& allocator = gaps.finish(gaps.end() + page);
  allocate_and_free(state, allocator, {.size = page + page / 2, .align = 1, .best = true}, 0,
                    gaps.end());
}

/// One iteration builds an allocator of `n` live ranges, in ascending order, and destroys it.
template <typename A>
void sequential(benchmark::State& state, std::size_t n) {
  for (auto _ : state) {
    A allocator(0, page - 1);
    for (std::size_t i = 1; i <= n; ++i) {
      if (!allocator.append({.base = i * 2 * page, .size = page})) std::abort();
    }
  }
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(n));
}

constexpr std::array<std::size_t, 4> sizes = {100, 1'000, 10'000, 100'000};

template <typename A>
void add(const std::string& workload, std::size_t n, void (*run)(benchmark::State&, std::size_t)) {
  benchmark::RegisterBenchmark((workload + "/" + A::name + "/" + std::to_string(n)).c_str(),
                               [=](benchmark::State& state) { run(state, n); });
}

/// What every implementation is measured by.
template <typename A>
void add_common() {
  for (const std::size_t n : sizes) {
    add<A>("fill", n, fill<A>);
    add<A>("churn", n, churn<A, churn_want>);
    if constexpr (A::ordered) add<A>("window", n, churn<A, window_want>);
  }
}

/// Gaps of three pages at odd ones: long enough, and aligned to no more than a page.
template <typename A>
void add_odd3(std::size_t n) {
  add<A>("odd3", n, [](benchmark::State& state, std::size_t count) {
    misfit<A>(state, count, 5 * page, 4 * page, 3 * page, {.size = 3 * page, .align = 2 * page});
  });
}

template <typename A>
void add_all() {
  add_common<A>();
  if constexpr (A::ordered) {
    for (const std::size_t n : sizes) {
      // To warm up what walks, at the largest size, takes ten minutes.
      if (n < sizes.back() || std::is_same_v<A, Vmspace>) add<A>("mixed", n, churn<A, mixed_want>);
      add<A>("lookup", n, lookup<A>);
    }
    add<A>("ids", 1024, ids<A>);
    for (const std::size_t n : sizes) {
      add<A>("misfit_a", n, [](benchmark::State& state, std::size_t count) {
        misfit<A>(state, count, 5 * page, 4 * page, 2 * page,
                  {.size = 2 * page, .align = 2 * page});
      });
      add<A>("misfit_b", n, [](benchmark::State& state, std::size_t count) {
        misfit<A>(state, count, 5 * page, 4 * page, 2 * page, {.size = page, .align = 2_MiB});
      });
      add<A>("misfit_c", n, [](benchmark::State& state, std::size_t count) {
        misfit<A>(state, count, 2_MiB - 2 * page, 2_MiB, 3 * page,
                  {.size = 2 * page, .align = 2_MiB});
      });
      add_odd3<A>(n);
      add<A>("long_short", n, long_short<A>);
      add<A>("dma32", n, dma32<A>);
      if constexpr (A::complete) {
        add<A>("best_fit", n, best_fit<A>);
        add<A>("sequential", n, sequential<A>);
      }
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
  for (const std::size_t n : sizes)
    add_odd3<VmspacePool>(n);
  add_all<StdMap>();
  add_all<Icl>();
  add_common<Unordered>();
#if VMSPACE_BENCH_ABSL
  add_common<AbslBTree>();
#endif
#if VMSPACE_BENCH_LLVM
  add_common<LlvmIntervalMap>();
#endif
  benchmark::Initialize(&count, args.data());
  if (benchmark::ReportUnrecognizedArguments(count, args.data())) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
