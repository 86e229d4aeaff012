// SPDX-License-Identifier: Apache-2.0
//
// Drives an IntervalTree and its oracle side by side and compares them after every call. A call is
// a few numbers, so that RapidCheck and libFuzzer share this.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <type_traits>
#include <utility>

#include "vmspace/allocator.hpp"

#include "model/interval_tree_oracle.hpp"

namespace vmspace::test {

/// One call, as numbers whose meaning depends on the kind.
struct Step {
  std::uint8_t kind = 0;
  std::uint8_t shape = 0;
  std::uint16_t a = 0;
  std::uint16_t b = 0;

  friend std::ostream& operator<<(std::ostream& out, const Step& s) {
    return out << "{" << +s.kind << ", " << +s.shape << ", " << s.a << ", " << s.b << "}";
  }
};

/// The tree and the oracle, side by side.
class SideBySide {
 public:
  /// Addresses are `origin` and the 65,535 after it, and now and then the ends of the domain.
  explicit SideBySide(std::uint64_t origin) : origin_(origin) {}

  const IntervalTree<int>& tree() const { return tree_; }
  const Oracle& oracle() const { return oracle_; }

  /// Makes one call on both; a text when they differ in outcome or in what they hold.
  std::optional<std::string> apply(const Step& step) {
    std::string difference = call(step);
    if (difference.empty()) difference = compare();
    if (difference.empty()) return std::nullopt;
    return difference;
  }

 private:
  std::uint64_t address(std::uint16_t n) const { return origin_ + n; }

  /// A range between two addresses, or one of those at the ends of the domain.
  Range some_range(const Step& step) const {
    static constexpr std::array special = {Range::whole_domain(), Range::point(0),
                                           Range::point(UINT64_MAX), Range::of(0, UINT64_MAX - 1),
                                           Range::of(1, UINT64_MAX)};
    if (step.shape % 32 == 31) return special[step.a % special.size()];
    const std::uint64_t lo = address(step.a);
    const std::uint64_t most = address(UINT16_MAX) - lo;
    return *Range::make(lo, lo + std::min<std::uint64_t>(step.b % 64, most));
  }

  /// Mostly one that is there; sometimes a part of one, or any.
  Range known_range(const Step& step) const {
    const auto& items = oracle_.items();
    if (items.empty() || step.shape % 16 == 15) return some_range(step);
    const Range range = items[step.a % items.size()].range;
    switch (step.shape % 16) {
      case 14: return Range::point(range.min() + (range.max() - range.min()) / 2);
      case 13: return Range::point(range.max());
      default: return range;
    }
  }

  /// A range inside a free one, a whole free one, or any.
  Range free_part(const Step& step) const {
    const auto& items = oracle_.items();
    const std::size_t first = items.empty() ? 0 : step.a % items.size();
    for (std::size_t i = first; i < items.size() && step.shape % 4 != 3; ++i) {
      if (items[i].state != NodeState::free) continue;
      const Range range = items[i].range;
      const std::uint64_t extent = range.max() - range.min();
      const std::uint64_t skip = extent == 0 ? 0 : step.b % (std::min<std::uint64_t>(extent, 100));
      if (step.shape % 4 == 0) return range;
      return *Range::make(range.min() + skip,
                          range.min() + skip + std::min<std::uint64_t>(extent - skip, step.b % 5));
    }
    return some_range(step);
  }

  /// What is between two ranges of the tree, or the first or last part of that, or any range.
  Range gap(const Step& step) const {
    const auto& items = oracle_.items();
    if (items.size() < 2 || step.shape % 8 == 7) return some_range(step);
    const std::size_t i = step.a % (items.size() - 1);
    const std::uint64_t lo = items[i].range.max() + 1;
    const std::uint64_t end = items[i + 1].range.min();
    if (lo == end) return some_range(step);
    const std::uint64_t part = step.b % std::min<std::uint64_t>(end - lo, 64);
    switch (step.shape % 8) {
      case 6: return *Range::make(lo, lo + part);
      case 5: return *Range::make(end - 1 - part, end - 1);
      default: return *Range::make(lo, end - 1);
    }
  }

  Constraint some_constraint(const Step& step) const {
    Constraint constraint{.size = 1 + step.b % 16u};
    if (step.b % 64 == 63) constraint.size = std::array{0UL, UINT64_MAX, 1UL << 63}[step.a % 3];
    switch (step.shape / 4 % 8) {
      case 0:
      case 1: break;
      case 2: constraint.align = 0; break;
      case 3: constraint.align = constraint.size; break;  // sometimes no power of two
      case 4:
        constraint.size = std::uint64_t{1} << step.b % 8;
        constraint.align = constraint.size;
        break;
      case 5: constraint.align = std::uint64_t{1} << step.b / 16 % 64; break;
      default: constraint.align = std::uint64_t{1} << step.b / 16 % 8; break;
    }
    constraint.policy = static_cast<AllocPolicy>(step.shape % 4 % 3);
    switch (step.shape / 32) {
      case 0:
        constraint.min = address(step.a);
        constraint.max = constraint.min + step.b;  // inverted where it wraps
        break;
      case 1: constraint.min = address(step.a); break;
      case 2: constraint.max = address(step.a); break;
      case 3: set_window_by_a_neighbour(constraint, step.a); break;
      default: break;
    }
    return constraint;
  }

  /// A window that begins or ends, or both, where a range of the tree does.
  void set_window_by_a_neighbour(Constraint& constraint, std::uint16_t choice) const {
    const auto& items = oracle_.items();
    if (items.empty()) return;
    const Range range = items[choice / 8 % items.size()].range;
    switch (choice % 8) {
      case 0:
      case 1: constraint.max = range.min(); break;
      case 2: constraint.max = range.max(); break;
      case 3: constraint.min = range.min(); break;
      case 4: constraint.min = range.max(); break;
      case 5: constraint.min = constraint.max = range.min(); break;
      case 6: constraint.min = constraint.max = range.max(); break;
      default: constraint.min = range.min(); constraint.max = range.max();
    }
  }

  std::string call(const Step& step) {
    // Kinds are repeated so that trees grow, shrink, and grow again.
    const int value = step.a + 1;
    switch (step.kind % 20) {
      case 0: return same(tree_.insert(some_range(step)), oracle_.insert(some_range(step), {}));
      case 1: {
        const Range range = some_range(step);
        const Result<int*> stored = tree_.insert(range, value);
        if (stored && !is_stored(*stored, range, value)) return "insert gives another value";
        return same(stored, oracle_.insert(range, value));
      }
      case 2:
      case 3: {
        const Constraint constraint = some_constraint(step);
        const Result<Range> place = std::as_const(tree_).find_place(constraint);
        const Result<Range> expected = oracle_.allocate(constraint, {});
        if (!same(place, expected).empty()) return "find_place: " + same(place, expected);
        const Result<Range> chosen = tree_.choose_place(constraint);
        if (!same(chosen, expected).empty()) return "choose_place: " + same(chosen, expected);
        return same(tree_.allocate(constraint), expected);
      }
      case 4:
      case 5:
      case 6: {
        const Constraint constraint = some_constraint(step);
        const auto got = tree_.allocate(constraint, value);
        if (got && !is_stored(&got->value(), *got, value)) return "allocate gives another value";
        return same(got, oracle_.allocate(constraint, value));
      }
      case 7: {
        const Range range = free_part(step);
        return same(tree_.allocate_at(range), oracle_.allocate_at(range, {}));
      }
      case 8: {
        const Range range = free_part(step);
        const auto got = tree_.allocate_at(range, value);
        if (got && !is_stored(&got->value(), range, value))
          return "allocate_at gives another value";
        return same(got, oracle_.allocate_at(range, value));
      }
      case 9: {
        const Range range = known_range(step);
        return same(tree_.update(range, value), oracle_.update(range, value));
      }
      case 10:
      case 11:
      case 12: {
        const Range range = known_range(step);
        return same(tree_.free(range), oracle_.free(range));
      }
      case 13: {
        const Range range = known_range(step);
        return same(tree_.erase(range), oracle_.erase(range));
      }
      case 14: return look(step);
      case 15: return copy_and_move();
      case 16: {
        const Constraint constraint = some_constraint(step);
        return same(tree_.extract(constraint), oracle_.extract(constraint));
      }
      case 17: {
        const Range range = free_part(step);
        return same(tree_.extract_at(range), oracle_.extract_at(range));
      }
      case 18: {
        const Range range = gap(step);
        return same(tree_.restore(range), oracle_.restore(range));
      }
      default: {
        if (step.shape % 2 == 0) {
          tree_.reserve(step.a % 256U);
          return {};
        }
        const Range range = some_range(step);
        tree_.subtract(range);
        oracle_.subtract(range);
        return {};
      }
    }
  }

  /// Whether a call that stored this value gave access to it, where a look-up finds it.
  bool is_stored(const int* stored, const Range& range, int value) const {
    return stored == tree_.find_value(range.min()) && *stored == value;
  }

  template <typename R, typename Expected>
  static std::string same(const R& tree, const Expected& oracle) {
    if (tree.has_value() != oracle.has_value()) return "one failed, the other did not";
    if (!tree) {
      // The oracle does not care for names and reasons.
      const Error& a = tree.error();
      const Error& b = oracle.error();
      return a.code == b.code && a.first == b.first && a.second == b.second &&
                     a.available == b.available
                 ? ""
                 : "other error";
    }
    if constexpr (!std::is_same_v<Expected, Result<void>>) {
      if (*tree != *oracle) return "other result";
    }
    return {};
  }

  std::string look(const Step& step) const {
    const Range range = step.shape % 2 == 0 ? known_range(step) : some_range(step);
    const Oracle::Item* const item = oracle_.find(range.min());
    const auto is = [&](const std::optional<IntervalTree<int>::Entry>& entry, bool expected) {
      if (!entry || !expected) return entry.has_value() == expected;
      return entry->range == item->range && entry->state == item->state &&
             (entry->value == nullptr ? 0 : *entry->value) == item->value;
    };
    if (!is(tree_.find(range.min()), item != nullptr)) return "find differs";
    if (!is(tree_.get(range), item != nullptr && item->range == range)) return "get differs";
    if (!is(tree_.get_superset(range), item != nullptr && item->range.contains(range))) {
      return "get_superset differs";
    }
    const int* const value = tree_.find_value(range.min());
    if ((value == nullptr ? 0 : *value) != (item == nullptr ? 0 : item->value)) {
      return "find_value differs";
    }
    auto met = tree_.overlapping(range).begin();
    for (const Oracle::Item& other : oracle_.items()) {
      if (!other.range.overlaps(range)) continue;
      if (met == tree_.overlapping(range).end() || (*met).range != other.range) {
        return "overlapping differs";
      }
      ++met;
    }
    return met == tree_.overlapping(range).end() ? "" : "overlapping gives too much";
  }

  std::string copy_and_move() {
    const IntervalTree<int> copy(tree_);
    if (!copy.check_invariants() || !(copy == tree_)) return "a copy differs";
    IntervalTree<int> moved(std::move(tree_));
    if (!tree_.empty() || !tree_.check_invariants()) return "a moved-from tree is not empty";
    swap(moved, tree_);
    return tree_ == copy ? "" : "move or swap lost something";
  }

  std::string compare() const {
    if (const auto sound = tree_.check_invariants(); !sound) return sound.error().message();
    if (tree_.size() != oracle_.items().size()) return "other number of ranges";
    auto entry = tree_.begin();
    auto gap = tree_.free_ranges().begin();
    const IntervalTreeStats stats = tree_.stats();
    std::size_t counts[3] = {};
    u128 amounts[2] = {};
    u128 largest = 0;
    for (const Oracle::Item& item : oracle_.items()) {
      if ((*entry).range != item.range || (*entry).state != item.state) return "other ranges";
      if (((*entry).value == nullptr ? 0 : *(*entry).value) != item.value) return "other values";
      if (item.state == NodeState::free && *gap++ != item.range) return "other free ranges";
      ++entry;

      const u128 amount = u128{item.range.max() - item.range.min()} + 1;
      ++counts[static_cast<int>(item.state)];
      amounts[item.state == NodeState::free ? 0 : 1] += amount;
      if (item.state == NodeState::free) largest = std::max(largest, amount);
    }
    const auto saturated = [](u128 n) {
      return static_cast<std::uint64_t>(std::min<u128>(n, UINT64_MAX));
    };
    if (stats != IntervalTreeStats{.free_ranges = counts[0],
                                   .allocated_ranges = counts[1],
                                   .valued_ranges = counts[2],
                                   .free_amount = saturated(amounts[0]),
                                   .taken_amount = saturated(amounts[1]),
                                   .largest_free = saturated(largest)}) {
      return "other stats";
    }
    if (entry != tree_.end()) return "iteration goes too far";
    if (gap != tree_.free_ranges().end()) return "free_ranges goes too far";
    for (auto item = oracle_.items().rbegin(); item != oracle_.items().rend(); ++item) {
      if ((*--entry).range != item->range) return "iteration backwards differs";
      if (item->state == NodeState::free && *--gap != item->range) {
        return "free_ranges backwards differs";
      }
    }
    return {};
  }

  std::uint64_t origin_;
  IntervalTree<int> tree_;
  Oracle oracle_;
};

}  // namespace vmspace::test
