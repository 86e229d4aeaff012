// SPDX-License-Identifier: Apache-2.0
//
// Which range holds a number, in a set that does not change: how an address is decoded to the device
// that answers at it, an MSI vector to its handler, a port to its register block.
//
//   const auto bus = VMSPACE_TRY(DecodeMap<Device*>::create({{uart_ports, uart}, {bar0, nic}}));
//   if (const auto* hit = bus.find(address)) hit->value->read(address - hit->range.min());
//
// An IntervalTree answers the same question while ranges come and go; a DecodeMap answers it a few
// times faster, and without any number of comparisons that grows with the ranges of common layouts.
// Who changes the set makes a new map, and publishes it as everything that is read without a lock.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "vmspace/allocator/detail/decode_table.hpp"
#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// An immutable set of ranges that do not overlap, each with a value. Takes 16 KiB, and 40 bytes and a
/// value a range.
///
/// Moves; one that was moved from is empty. Threads: const calls may run at the same time; any other
/// call excludes all others.
template <typename T>
class DecodeMap {
 public:
  /// A range and what it stands for.
  struct Entry {
    Range range;  ///< does not overlap that of another entry
    T value;      ///< what find() gives for every number in the range
  };

 private:
  /// What a search looks at.
  struct Place {
    std::uint64_t first;   ///< from `origin_`
    std::uint64_t extent;  ///< the last member less the first, so that the whole domain has one too
    const Entry* entry;

    [[nodiscard]] static constexpr Place smallest(std::uint64_t first) noexcept {
      return {.first = first, .extent = 0, .entry = nullptr};
    }
  };
  using Table = detail::DecodeTable<Place>;

 public:
  /// The most ranges that one map can hold; 21,162.
  static constexpr std::size_t max_ranges = Table::max_entries;

  /// No ranges: nothing is found. Allocates nothing.
  DecodeMap() = default;
  /// `other` is empty afterwards.
  DecodeMap(DecodeMap&& other) noexcept = default;
  /// As moving; assigning a map to itself changes nothing.
  DecodeMap& operator=(DecodeMap&& other) noexcept {
    DecodeMap moved(std::move(other));
    std::swap(entries_, moved.entries_);
    std::swap(origin_, moved.origin_);
    std::swap(table_, moved.table_);
    return *this;
  }
  ~DecodeMap() = default;

  /// Makes a map of these ranges, given in any order. Errors: `overlap`, naming two that do;
  /// `limit_exceeded` above max_ranges. O(n log n).
  [[nodiscard]] static Result<DecodeMap> create(std::vector<Entry> entries) {
    constexpr const char* operation = "DecodeMap::create";
    if (entries.size() > max_ranges) {
      return fail({.code = Errc::limit_exceeded,
                   .operation = operation,
                   .first = Operand::number(entries.size()),
                   .second = Operand::number(max_ranges)});
    }
    IntervalTree<std::size_t> order;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (const auto placed = order.insert(entries[i].range, i); !placed) {
        return fail(placed.error().in(operation));
      }
    }
    std::vector<Entry> sorted;
    sorted.reserve(entries.size());
    for (const IntervalEntry<std::size_t>& entry : order)
      sorted.push_back(std::move(entries[*entry.value]));
    return DecodeMap(std::move(sorted));
  }

  /// Makes a map of the ranges of a tree that hold a value, with copies of the values. Errors:
  /// `limit_exceeded` above max_ranges. O(n) in all ranges of the tree.
  [[nodiscard]] static Result<DecodeMap> create(const IntervalTree<T>& tree) {
    std::vector<Entry> entries;
    for (const IntervalEntry<T>& entry : tree) {
      if (entry.value != nullptr) entries.push_back({.range = entry.range, .value = *entry.value});
    }
    return create(std::move(entries));
  }

  /// The range that holds `number`, and its value; null when none does. Valid while the map lives, and
  /// wherever it is moved to. A nanosecond or two for the ranges of usual layouts, O(log n) for any.
  [[nodiscard]] const Entry* find(std::uint64_t number) const noexcept {
    // Below the lowest range, and below the place, the difference wraps to a number above every extent.
    const std::uint64_t at = number - origin_;
    const Place* const place = table_.decoder().nearest(at);
    if (at - place->first > place->extent) return nullptr;
    return place->entry;
  }

  /// All ranges, in ascending order; valid while the map lives, and wherever it is moved to. O(1).
  [[nodiscard]] std::span<const Entry> entries() const noexcept { return entries_; }

 private:
  explicit DecodeMap(std::vector<Entry> entries) : entries_(std::move(entries)) {
    if (entries_.empty()) return;
    origin_ = entries_.front().range.min();
    std::vector<Place> places;
    places.reserve(entries_.size());
    for (const Entry& entry : entries_) {
      places.push_back({.first = entry.range.min() - origin_,
                        .extent = entry.range.max() - entry.range.min(),
                        .entry = &entry});
    }
    table_ = Table(places, entries_.back().range.max() - origin_);
  }

  std::vector<Entry> entries_;
  /// The lowest number: far from 0, the slots of a decoder would be too coarse to tell ranges apart.
  std::uint64_t origin_ = 0;
  Table table_;
};

}  // namespace vmspace
