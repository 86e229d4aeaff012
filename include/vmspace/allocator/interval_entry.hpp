// SPDX-License-Identifier: Apache-2.0
//
// A range of an IntervalTree as calls return it: with its state from a look-up or an iterator, with
// its value from an allocation.

#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <tuple>

#include "vmspace/allocator/range.hpp"
#include "vmspace/base/detail/address_of.hpp"

namespace vmspace {

/// The state of a range in a tree.
enum class NodeState : std::uint8_t {
  free,       ///< may be allocated
  allocated,  ///< taken, without a value
  valued,     ///< taken, and holds a value
};

/// The value of a tree that is to hold none: IntervalTree<>.
struct NoValue {
  friend constexpr bool operator==(NoValue, NoValue) = default;
};

/// A range of a tree, its state and its value.
template <typename T>
struct IntervalEntry {
  Range range;      ///< its bounds
  NodeState state;  ///< free, allocated or valued
  const T* value;   ///< null unless valued; good until the next call that changes the tree

  /// Entries are equal when range, state and value are; values are compared, not their addresses.
  friend bool operator==(const IntervalEntry& a,
                         const IntervalEntry& b) requires std::equality_comparable<T> {
    return a.range == b.range && a.state == b.state &&
           (a.value == nullptr || b.value == nullptr ? a.value == b.value : *a.value == *b.value);
  }
};

/// A range that has just been allocated, and its value: a Range in every respect, and one access to
/// what the tree now holds, without another look-up.
///
///   const auto bar = VMSPACE_TRY(mmio.allocate({.size = 16_KiB}, Bar{}));
///   bar.value().base = bar.min();
///
/// The value is good until the next call that changes the tree. A copy as a Range has no value. To
/// return one as a Result<Range>, write `return VMSPACE_TRY(mmio.allocate(...));`: tl::expected does
/// not convert to a Result of a type without a default constructor.
template <typename T>
class ValuedRange : public Range {
 public:
  /// A range of a tree and the value that the tree holds for it, which has to stay there.
  ValuedRange(const Range& range, T& value) noexcept
      : Range(range), value_(detail::address_of(value)) {}

  /// The value inside the tree. O(1).
  [[nodiscard]] T& value() const noexcept { return *value_; }

 private:
  T* value_;
};

}  // namespace vmspace

// Comes apart into min and max, as every Range.
template <typename T>
struct std::tuple_size<vmspace::ValuedRange<T>> : std::tuple_size<vmspace::Range> {};

template <std::size_t index, typename T>
struct std::tuple_element<index, vmspace::ValuedRange<T>>
    : std::tuple_element<index, vmspace::Range> {};
