// SPDX-License-Identifier: Apache-2.0
//
// One range of an IntervalTree, as a look-up or an iterator gives it.

#pragma once

#include <concepts>
#include <cstdint>

#include "vmspace/allocator/range.hpp"

namespace vmspace {

/// The state of a range in a tree.
enum class NodeState : std::uint8_t {
  free,       ///< may be allocated
  allocated,  ///< taken, without a value
  valued,     ///< taken, and holds a value
};

/// A range of a tree, its state and its value.
template <typename T>
struct IntervalEntry {
  Range range;
  NodeState state;
  const T* value;  ///< null unless valued; good until the next call that changes the tree

  /// Entries are equal when range, state and value are; values are compared, not their addresses.
  friend bool operator==(const IntervalEntry& a,
                         const IntervalEntry& b) requires std::equality_comparable<T> {
    return a.range == b.range && a.state == b.state &&
           (a.value == nullptr || b.value == nullptr ? a.value == b.value : *a.value == *b.value);
  }
};

}  // namespace vmspace
