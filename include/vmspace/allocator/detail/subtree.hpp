// SPDX-License-Identifier: Apache-2.0
//
// Copying and destroying the nodes of a B+-tree.

#pragma once

#include <algorithm>

#include "vmspace/allocator/detail/node.hpp"

namespace vmspace::detail {

/// Destroys a subtree whose root is at this level; leaves are at level 0. Null is an empty one.
template <typename T>
void destroy_subtree(Node* node, unsigned level) noexcept {
  if (node == nullptr) return;
  if (level == 0) {
    delete static_cast<Leaf<T>*>(node);
    return;
  }
  Inner* const inner = static_cast<Inner*>(node);
  for (unsigned i = 0; i < inner->count; ++i)
    destroy_subtree<T>(inner->child[i], level - 1);
  delete inner;
}

/// Copies the subtree `from` to `place`, and appends its leaves to the list from `first` to `last`.
/// Each node is linked in as soon as it is made, with children that are not made yet null: when
/// copying a value throws, destroying what is at `place` frees all of it.
template <typename T>
void clone_subtree(Node*& place, const Node& from, unsigned level, Leaf<T>*& first,
                   Leaf<T>*& last) {
  if (level == 0) {
    const Leaf<T>& source = static_cast<const Leaf<T>&>(from);
    Leaf<T>* const leaf = new Leaf<T>;
    place = leaf;
    leaf->prev = last;
    (last != nullptr ? last->next : first) = leaf;
    last = leaf;
    leaf->min = source.min;
    std::copy_n(source.max, source.count, leaf->max);
    leaf->free = source.free;
    leaf->count = source.count;
    for (Bits left = source.valued; left.any(); left.reset_lowest()) {
      leaf->values.construct(left.lowest(), *source.values.at(left.lowest()));
      leaf->valued.set(left.lowest());
    }
    return;
  }
  const Inner& source = static_cast<const Inner&>(from);
  Inner* const inner = new Inner;
  source.copy_entries(*inner, 0, 0, source.count);
  std::fill_n(inner->child, source.count, nullptr);
  inner->count = source.count;
  place = inner;
  for (unsigned i = 0; i < source.count; ++i)
    clone_subtree(inner->child[i], *source.child[i], level - 1, first, last);
}

}  // namespace vmspace::detail
