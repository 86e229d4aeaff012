// SPDX-License-Identifier: Apache-2.0
//
// What else one could use to give out ranges, behind the calls that the workloads of allocator_bench
// make: allocate, free and, where ranges are kept in address order, find. Those of Abseil and LLVM are
// there where CMake has found these libraries (Debian's libabsl-dev and llvm-dev).
//
// The namespace is unnamed although this is a header: GCC inlines less of what has external linkage,
// and the baselines must not differ in that from the rest of the program.

#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <optional>
#include <vector>

#include <boost/icl/interval_map.hpp>
#include <boost/icl/interval_set.hpp>

#if VMSPACE_BENCH_ABSL
#include <absl/container/btree_map.h>
#endif
#if VMSPACE_BENCH_LLVM
#include <llvm/ADT/IntervalMap.h>
#endif

namespace {

struct Want {
  std::uint64_t size;
  std::uint64_t align;
  std::uint64_t min = 0;
  std::uint64_t max = ~std::uint64_t{0};
  bool best = false;  ///< from the smallest free range that fits, not the lowest
};

/// A range that was given out; `ticket` is whatever the implementation wants back.
struct Live {
  std::uint64_t base;
  std::uint64_t size;
  std::uint32_t ticket = 0;
};

/// The lowest place in the free range [lo, hi], for those that walk.
std::optional<std::uint64_t> place_in(std::uint64_t lo, std::uint64_t hi, const Want& want) {
  lo = std::max(lo, want.min);
  hi = std::min(hi, want.max);
  const std::uint64_t place = (lo + want.align - 1) & ~(want.align - 1);
  if (place < lo || place > hi || hi - place < want.size - 1) return std::nullopt;
  return place;
}

/// Two ordered maps, walked from the lowest free range.
template <template <typename, typename> typename Map>
class TwoMaps {
 public:
  static constexpr bool ordered = true;

  TwoMaps(std::uint64_t min, std::uint64_t max) { free_.emplace(min, max); }

  std::optional<Live> allocate(const Want& want) {
    auto it = free_.upper_bound(want.min);
    if (it != free_.begin()) --it;
    auto found = free_.end();
    std::uint64_t place = 0;
    for (; it != free_.end() && it->first <= want.max; ++it) {
      const auto here = place_in(it->first, it->second, want);
      if (!here) continue;
      if (found != free_.end() && it->second - it->first >= found->second - found->first) continue;
      found = it;
      place = *here;
      if (!want.best) break;
    }
    if (found == free_.end()) return std::nullopt;
    const auto [lo, hi] = *found;
    const std::uint64_t last = place + (want.size - 1);
    if (place != lo) {
      found->second = place - 1;
    } else {
      found = free_.erase(found);
    }
    if (last != hi) free_.emplace_hint(found, last + 1, hi);
    live_.emplace(place, Taken{last, want.size});
    return Live{place, want.size};
  }

  /// Adds a live range outside of what is free, above all others.
  bool append(const Live& live) {
    live_.emplace_hint(live_.end(), live.base, Taken{live.base + (live.size - 1), live.size});
    return true;
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
  Map<std::uint64_t, Taken> live_;
  Map<std::uint64_t, std::uint64_t> free_;
};

template <typename K, typename V>
using PlainMap = std::map<K, V>;

/// What most VMMs have.
class StdMap : public TwoMaps<PlainMap> {
 public:
  static constexpr const char* name = "std_map";
  static constexpr bool complete = true;

  using TwoMaps::TwoMaps;
};

#if VMSPACE_BENCH_ABSL
template <typename K, typename V>
using BTreeMap = absl::btree_map<K, V>;

class AbslBTree : public TwoMaps<BTreeMap> {
 public:
  static constexpr const char* name = "absl_btree";

  using TwoMaps::TwoMaps;
};
#endif

#if VMSPACE_BENCH_LLVM
/// LLVM's IntervalMap, which joins free ranges by itself; finding a place is a walk too.
class LlvmIntervalMap {
 public:
  static constexpr const char* name = "llvm_interval_map";
  static constexpr bool ordered = true;

  LlvmIntervalMap(std::uint64_t min, std::uint64_t max) { free_.insert(min, max, 0); }

  std::optional<Live> allocate(const Want& want) {
    for (auto it = free_.find(want.min); it.valid() && it.start() <= want.max; ++it) {
      const std::uint64_t lo = it.start();
      const std::uint64_t hi = it.stop();
      const auto place = place_in(lo, hi, want);
      if (!place) continue;
      const std::uint64_t last = *place + (want.size - 1);
      if (*place == lo && last == hi) {
        it.erase();
      } else if (*place == lo) {
        it.setStart(last + 1);
      } else {
        it.setStop(*place - 1);
        if (last != hi) {
          ++it;
          it.insert(last + 1, hi, 0);
        }
      }
      // Values tell neighbours apart, or the map would join them.
      live_.insert(*place, last, *place);
      return Live{*place, want.size};
    }
    return std::nullopt;
  }

  bool free(const Live& live) {
    auto it = live_.find(live.base);
    if (!it.valid() || it.start() != live.base || it.stop() != live.base + (live.size - 1)) {
      return false;
    }
    it.erase();
    free_.insert(live.base, live.base + (live.size - 1), 0);
    return true;
  }

 private:
  using Free = llvm::IntervalMap<std::uint64_t, char>;
  using Taken = llvm::IntervalMap<std::uint64_t, std::uint64_t>;
  Free::Allocator free_nodes_;
  Taken::Allocator taken_nodes_;
  Free free_{free_nodes_};
  Taken live_{taken_nodes_};
};
#endif

/// Boost.ICL, which joins and splits by itself; finding a place is a walk too.
class Icl {
 public:
  static constexpr const char* name = "icl";
  static constexpr bool ordered = true;
  static constexpr bool complete = false;  // no best fit, and no way to add live ranges

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

}  // namespace
