// SPDX-License-Identifier: Apache-2.0
//
// An IntervalTree that is obviously right: a sorted vector, walked from end to end, with sums in
// 128 bits.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "vmspace/allocator.hpp"

namespace vmspace::test {

__extension__ using u128 = unsigned __int128;

class Oracle {
 public:
  struct Item {
    Range range;
    NodeState state;
    int value;  // 0 unless valued
  };
  using Taken = std::optional<int>;  // none: the item becomes allocated (or, inserted, free)

  const std::vector<Item>& items() const { return items_; }

  Result<void> insert(const Range& range, Taken value) {
    for (const Item& item : items_) {
      if (item.range.overlaps(range)) return error(Errc::overlap, range, item.range);
    }
    add({range, value ? NodeState::valued : NodeState::free, value.value_or(0)});
    return {};
  }

  Result<Range> allocate(const Constraint& constraint, Taken value) {
    if (auto valid = constraint.validate(); !valid) return tl::unexpected(valid.error());
    std::optional<std::size_t> best;
    std::optional<Range> place;
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const Item& item = items_[i];
      const auto here = place_in(item, constraint);
      if (!here) continue;
      const bool better =
          !best || constraint.policy == AllocPolicy::last_match ||
          (constraint.policy == AllocPolicy::best_match &&
           extent(clip(item, constraint)) < extent(clip(items_[*best], constraint)));
      if (!better) continue;
      best = i;
      place = here;
    }
    if (!best) {
      return fail({.code = Errc::no_space,
                   .first = Operand::size(constraint.size),
                   .second = Operand::range(constraint.min, constraint.max),
                   .available = largest_free(constraint)});
    }
    take(*best, *place, value);
    return *place;
  }

  Result<Range> extract(const Constraint& constraint) { return without(allocate(constraint, {})); }
  Result<Range> extract_at(const Range& range) { return without(allocate_at(range, {})); }

  void subtract(const Range& range) {
    std::vector<Item> rest;
    for (const Item& item : items_) {
      if (item.state != NodeState::free || !item.range.overlaps(range)) {
        rest.push_back(item);
        continue;
      }
      if (item.range.min() < range.min())
        rest.push_back({*Range::make(item.range.min(), range.min() - 1), NodeState::free, 0});
      if (item.range.max() > range.max())
        rest.push_back({*Range::make(range.max() + 1, item.range.max()), NodeState::free, 0});
    }
    items_ = rest;
  }

  Result<void> restore(const Range& range) {
    if (auto added = insert(range, 0); !added) return added;
    return free(range).map([](const Taken&) {});
  }

  Result<Range> allocate_at(const Range& range, Taken value) {
    u128 managed = 0;
    std::optional<std::size_t> around;
    for (std::size_t i = 0; i < items_.size(); ++i) {
      const auto common = items_[i].range.intersection(range);
      if (!common) continue;
      if (items_[i].state != NodeState::free) {
        return error(Errc::bad_state, range, items_[i].range);
      }
      managed += u128{extent(*common)} + 1;
      if (items_[i].range.contains(range)) around = i;
    }
    if (managed != u128{extent(range)} + 1) return error(Errc::not_found, range);
    if (!around) return error(Errc::bad_state, range);
    take(*around, range, value);
    return range;
  }

  Result<Taken> update(const Range& range, int value) {
    const auto i = index_of(range);
    if (!i || items_[*i].state == NodeState::free) return not_taken(range);
    Item& item = items_[*i];
    const Taken before = value_of(item);
    item = {range, NodeState::valued, value};
    return before;
  }

  Result<Taken> free(const Range& range) {
    const auto i = index_of(range);
    if (!i || items_[*i].state == NodeState::free) return not_taken(range);
    const Taken before = value_of(items_[*i]);
    Item merged{range, NodeState::free, 0};
    // The one after first: to erase it leaves the indices before as they are.
    if (*i + 1 < items_.size() && joins(items_[*i + 1], range)) {
      merged.range = *Range::make(range.min(), items_[*i + 1].range.max());
      items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(*i) + 1);
    }
    items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(*i));
    if (*i > 0 && joins(items_[*i - 1], range)) {
      merged.range = *Range::make(items_[*i - 1].range.min(), merged.range.max());
      items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(*i) - 1);
    }
    add(merged);
    return before;
  }

  Result<Taken> erase(const Range& range) {
    const auto i = index_of(range);
    if (!i) {
      const Item* const there = lowest(range, [](const Item&) { return true; });
      return there == nullptr ? error(Errc::not_found, range)
                              : error(Errc::overlap, range, there->range);
    }
    const Taken before = value_of(items_[*i]);
    items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(*i));
    return before;
  }

  const Item* find(std::uint64_t point) const {
    for (const Item& item : items_) {
      if (item.range.contains(point)) return &item;
    }
    return nullptr;
  }

 private:
  /// What was taken is in no state any more.
  Result<Range> without(Result<Range> taken) {
    if (taken) static_cast<void>(erase(*taken));
    return taken;
  }
  static std::uint64_t extent(const Range& range) { return range.max() - range.min(); }
  /// The part of a range that the window leaves; they must meet.
  static Range clip(const Item& item, const Constraint& constraint) {
    return *item.range.intersection(*Range::make(constraint.min, constraint.max));
  }
  static Taken value_of(const Item& item) {
    return item.state == NodeState::valued ? Taken(item.value) : std::nullopt;
  }
  static bool joins(const Item& item, const Range& range) {
    return item.state == NodeState::free && item.range.adjacent(range);
  }
  static tl::unexpected<Error> error(Errc code, const Range& range) {
    return fail({.code = code, .first = detail::operand(range)});
  }
  static tl::unexpected<Error> error(Errc code, const Range& range, const Range& obstacle) {
    return fail(
        {.code = code, .first = detail::operand(range), .second = detail::operand(obstacle)});
  }

  /// The lowest item that meets the range and is as asked, or null.
  template <typename Is>
  const Item* lowest(const Range& range, Is is) const {
    for (const Item& item : items_) {
      if (item.range.overlaps(range) && is(item)) return &item;
    }
    return nullptr;
  }
  tl::unexpected<Error> not_taken(const Range& range) const {
    const Item* const any = lowest(range, [](const Item&) { return true; });
    if (any == nullptr) return error(Errc::not_found, range);
    const Item* const taken =
        lowest(range, [](const Item& item) { return item.state != NodeState::free; });
    if (taken != nullptr) return error(Errc::overlap, range, taken->range);
    u128 free = 0;
    for (const Item& item : items_) {
      if (const auto common = item.range.intersection(range)) free += u128{extent(*common)} + 1;
    }
    return free == u128{extent(range)} + 1 ? error(Errc::bad_state, range)
                                           : error(Errc::overlap, range, any->range);
  }

  Operand largest_free(const Constraint& constraint) const {
    std::optional<Range> largest;
    for (const Item& item : items_) {
      if (item.state != NodeState::free) continue;
      if (item.range.max() < constraint.min || item.range.min() > constraint.max) continue;
      const Range piece = clip(item, constraint);
      if (!largest || extent(piece) > extent(*largest)) largest = piece;
    }
    return largest ? detail::operand(*largest) : Operand{};
  }

  static std::optional<Range> place_in(const Item& item, const Constraint& constraint) {
    if (item.state != NodeState::free) return std::nullopt;
    const u128 lo = std::max(item.range.min(), constraint.min);
    const u128 hi = std::min(item.range.max(), constraint.max);
    const u128 align = std::max<std::uint64_t>(constraint.align, 1);
    u128 base = (lo + align - 1) / align * align;
    if (base + constraint.size - 1 > hi) return std::nullopt;
    if (constraint.policy == AllocPolicy::last_match)
      base = (hi + 1 - constraint.size) / align * align;
    return *Range::from_base_size(static_cast<std::uint64_t>(base), constraint.size);
  }

  std::optional<std::size_t> index_of(const Range& range) const {
    for (std::size_t i = 0; i < items_.size(); ++i) {
      if (items_[i].range == range) return i;
    }
    return std::nullopt;
  }
  void add(const Item& item) {
    const auto by_min = [](const Item& a, const Item& b) { return a.range.min() < b.range.min(); };
    items_.insert(std::upper_bound(items_.begin(), items_.end(), item, by_min), item);
  }
  void take(std::size_t i, const Range& piece, Taken value) {
    const Range from = items_[i].range;
    items_.erase(items_.begin() + static_cast<std::ptrdiff_t>(i));
    if (from.min() < piece.min()) {
      add({*Range::make(from.min(), piece.min() - 1), NodeState::free, 0});
    }
    if (piece.max() < from.max()) {
      add({*Range::make(piece.max() + 1, from.max()), NodeState::free, 0});
    }
    add({piece, value ? NodeState::valued : NodeState::allocated, value.value_or(0)});
  }

  std::vector<Item> items_;
};

}  // namespace vmspace::test
