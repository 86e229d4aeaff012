// SPDX-License-Identifier: Apache-2.0
//
// The way from the root of a B+-tree to an entry, which changes follow back up.

#pragma once

#include "vmspace/allocator/detail/node.hpp"

namespace vmspace::detail {

/// Nodes are at least three eighths full, so 16 levels are more than a 64-bit address space can hold.
inline constexpr unsigned max_height = 16;

/// Whether a tree of this height has so many leaves, from some ten thousand entries on, that the leaf at
/// the end of a path is probably not in a near cache.
constexpr bool leaves_are_far(unsigned height) noexcept {
  return height > 2;
}

/// An inner node, and the child taken there.
struct PathStep {
  Inner* node;
  unsigned slot;
};

/// An entry, and for each inner level the node and the child taken there: ancestors[0] is the parent
/// of the leaf, ancestors[height - 1] the root.
template <typename T>
struct TreePath {
  Leaf<T>* leaf = nullptr;
  unsigned pos = 0;
  PathStep ancestors[max_height];

  // A descent writes the steps; clearing all 16 would cost more than using the one or two that most
  // trees have. Not copyable, since a copy would read steps that were never written.
  TreePath() noexcept {}
  TreePath(const TreePath&) = delete;
  TreePath& operator=(const TreePath&) = delete;
};

}  // namespace vmspace::detail
