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
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>
#include <boost/icl/interval_map.hpp>
#include <boost/icl/interval_set.hpp>
#include <malloc.h>

#include "vmspace/allocator.hpp"

namespace {

using namespace vmspace::literals;

constexpr std::uint64_t page = 4_KiB;
constexpr std::uint64_t space_min = 0x1000;
constexpr std::uint64_t space_max = (std::uint64_t{1} << 46) - 1;

struct Want {
  std::uint64_t size;
  std::uint64_t align;
  std::uint64_t min = 0;
  std::uint64_t max = ~std::uint64_t{0};
};

/// A range that was given out; `ticket` is whatever the implementation wants back.
struct Live {
  std::uint64_t base;
  std::uint64_t size;
  std::uint32_t ticket = 0;
};

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

// -- implementations ---------------------------------------------------------------------------

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

/// The lowest place in the free range [lo, hi], for those that walk.
std::optional<std::uint64_t> place_in(std::uint64_t lo, std::uint64_t hi, const Want& want) {
  lo = std::max(lo, want.min);
  hi = std::min(hi, want.max);
  const std::uint64_t place = (lo + want.align - 1) & ~(want.align - 1);
  if (place < lo || place > hi || hi - place < want.size - 1) return std::nullopt;
  return place;
}

/// What most VMMs have: two std::map, walked from the lowest free range.
class StdMap {
 public:
  static constexpr const char* name = "std_map";
  static constexpr bool ordered = true;

  StdMap(std::uint64_t min, std::uint64_t max) { free_.emplace(min, max); }

  std::optional<Live> allocate(const Want& want) {
    auto it = free_.upper_bound(want.min);
    if (it != free_.begin()) --it;
    for (; it != free_.end() && it->first <= want.max; ++it) {
      const auto place = place_in(it->first, it->second, want);
      if (!place) continue;
      const auto [lo, hi] = *it;
      const std::uint64_t last = *place + (want.size - 1);
      if (*place != lo) {
        it->second = *place - 1;
      } else {
        it = free_.erase(it);
      }
      if (last != hi) free_.emplace_hint(it, last + 1, hi);
      live_.emplace(*place, Taken{last, want.size});
      return Live{*place, want.size};
    }
    return std::nullopt;
  }

  bool free(const Live& live) {
    const auto it = live_.find(live.base);
    if (it == live_.end() || it->second.max != live.base + (live.size - 1)) return false;
    std::uint64_t hi = it->second.max;
    live_.erase(it);
    auto after = free_.upper_bound(live.base);
    if (after != free_.end() && after->first == hi + 1) {
      hi = after->second;
      after = free_.erase(after);
    }
    if (after != free_.begin()) {
      const auto before = std::prev(after);
      if (before->second + 1 == live.base) {
        before->second = hi;
        return true;
      }
    }
    free_.emplace_hint(after, live.base, hi);
    return true;
  }

  [[nodiscard]] bool find(std::uint64_t address) const {
    auto it = live_.upper_bound(address);
    if (it == live_.begin()) return false;
    return address <= (--it)->second.max;
  }

 private:
  struct Taken {
    std::uint64_t max;
    std::uint64_t value;
  };
  std::map<std::uint64_t, Taken> live_;
  std::map<std::uint64_t, std::uint64_t> free_;
};

/// Boost.ICL, which joins and splits by itself; finding a place is a walk too.
class Icl {
 public:
  static constexpr const char* name = "icl";
  static constexpr bool ordered = true;

  Icl(std::uint64_t min, std::uint64_t max) { free_.add(Interval(min, max + 1)); }

  std::optional<Live> allocate(const Want& want) {
    auto it = want.min == 0 ? free_.begin() : free_.lower_bound(Interval(want.min, want.min + 1));
    for (; it != free_.end() && it->lower() <= want.max; ++it) {
      const auto place = place_in(it->lower(), it->upper() - 1, want);
      if (!place) continue;
      const Interval taken(*place, *place + want.size);
      free_.subtract(taken);
      // Values tell neighbours apart, or the map would join them.
      live_.insert({taken, *place});
      return Live{*place, want.size};
    }
    return std::nullopt;
  }

  bool free(const Live& live) {
    const Interval interval(live.base, live.base + live.size);
    const auto it = live_.find(interval);
    if (it == live_.end() || it->first != interval) return false;
    live_.erase(interval);
    free_.add(interval);
    return true;
  }

  [[nodiscard]] bool find(std::uint64_t address) const {
    return live_.find(address) != live_.end();
  }

 private:
  using Interval = boost::icl::right_open_interval<std::uint64_t>;
  boost::icl::interval_set<std::uint64_t, std::less, Interval> free_;
  boost::icl::interval_map<std::uint64_t, std::uint64_t, boost::icl::partial_enricher, std::less,
                           boost::icl::inplace_plus, boost::icl::inter_section, Interval>
      live_;
};

/// The limit: free blocks in lists by size class (four to a power of two), neighbours linked, every
/// step constant. It takes from any block that surely has an aligned place, so it knows nothing of
/// address order or windows, needs more space, and can't look an address up.
class Unordered {
 public:
  static constexpr const char* name = "unordered";
  static constexpr bool ordered = false;

  Unordered(std::uint64_t min, std::uint64_t max) {
    heads_.fill(none);
    push(make({.base = min, .size = max - min + 1}));
  }

  std::optional<Live> allocate(const Want& want) {
    // Whatever is in a class above that of size + align - 1 is long enough.
    const unsigned least = class_of(want.size + want.align - 1) + 1;
    std::uint32_t at = none;
    for (unsigned word = least / 64; word < bits_.size() && at == none; ++word) {
      std::uint64_t left = bits_[word];
      if (word == least / 64) left = left >> (least % 64) << (least % 64);
      if (left != 0) at = heads_[word * 64 + static_cast<unsigned>(std::countr_zero(left))];
    }
    if (at == none) return std::nullopt;
    pop(at);
    const std::uint64_t place = (blocks_[at].base + want.align - 1) & ~(want.align - 1);
    if (place != blocks_[at].base) {
      const std::uint32_t rest = split(at, place - blocks_[at].base);
      push(at);
      at = rest;
    }
    if (want.size != blocks_[at].size) push(split(at, want.size));
    blocks_[at].value = want.size;
    return Live{place, want.size, at};
  }

  bool free(const Live& live) {
    std::uint32_t at = live.ticket;
    if (blocks_[at].free || blocks_[at].base != live.base) return false;
    if (const std::uint32_t after = blocks_[at].after; after != none && blocks_[after].free) {
      pop(after);
      absorb(at, after);
    }
    if (const std::uint32_t before = blocks_[at].before; before != none && blocks_[before].free) {
      pop(before);
      absorb(before, at);
      at = before;
    }
    push(at);
    return true;
  }

 private:
  static constexpr std::uint32_t none = ~std::uint32_t{0};
  struct Block {
    std::uint64_t base = 0;
    std::uint64_t size = 0;
    std::uint64_t value = 0;
    std::uint32_t before = none, after = none;  // by address
    std::uint32_t prev = none, next = none;     // in the list
    bool free = false;
  };

  static unsigned class_of(std::uint64_t size) {
    const unsigned log = static_cast<unsigned>(std::bit_width(size)) - 1;
    return log < 2 ? log : log * 4 + static_cast<unsigned>((size >> (log - 2)) & 3);
  }
  std::uint32_t make(const Block& block) {
    if (unused_.empty()) {
      blocks_.push_back(block);
      return static_cast<std::uint32_t>(blocks_.size() - 1);
    }
    const std::uint32_t at = unused_.back();
    unused_.pop_back();
    blocks_[at] = block;
    return at;
  }
  void push(std::uint32_t at) {
    const unsigned c = class_of(blocks_[at].size);
    blocks_[at].free = true;
    blocks_[at].prev = none;
    blocks_[at].next = heads_[c];
    if (heads_[c] != none) blocks_[heads_[c]].prev = at;
    heads_[c] = at;
    bits_[c / 64] |= std::uint64_t{1} << (c % 64);
  }
  void pop(std::uint32_t at) {
    Block& block = blocks_[at];
    const unsigned c = class_of(block.size);
    block.free = false;
    (block.prev != none ? blocks_[block.prev].next : heads_[c]) = block.next;
    if (block.next != none) blocks_[block.next].prev = block.prev;
    if (heads_[c] == none) bits_[c / 64] &= ~(std::uint64_t{1} << (c % 64));
  }
  std::uint32_t split(std::uint32_t at, std::uint64_t size) {
    const Block& block = blocks_[at];
    const std::uint32_t rest = make(
        {.base = block.base + size, .size = block.size - size, .before = at, .after = block.after});
    if (blocks_[at].after != none) blocks_[blocks_[at].after].before = rest;
    blocks_[at].after = rest;
    blocks_[at].size = size;
    return rest;
  }
  void absorb(std::uint32_t at, std::uint32_t next) {
    blocks_[at].size += blocks_[next].size;
    blocks_[at].after = blocks_[next].after;
    if (blocks_[at].after != none) blocks_[blocks_[at].after].before = at;
    unused_.push_back(next);
  }

  std::vector<Block> blocks_;
  std::vector<std::uint32_t> unused_;
  std::array<std::uint32_t, 256> heads_;
  std::array<std::uint64_t, 4> bits_{};
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
