// SPDX-License-Identifier: Apache-2.0
//
// What is done to all nodes of a B+-tree: copying, destroying, and learning an alignment.

#pragma once

#include <cstring>
#include <new>

#include "vmspace/allocator/detail/learned_alignments.hpp"
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

/// Gives the inner nodes of a subtree whose root is at this level space for learned lengths. False
/// when there is no memory, and some of them may have none.
inline bool add_lengths(Inner& node, unsigned level) noexcept {
  if (node.learned == nullptr) node.learned = new (std::nothrow) LearnedLengths;
  if (node.learned == nullptr) return false;
  if (level == 1) return true;
  for (unsigned i = 0; i < node.count; ++i) {
    if (!add_lengths(*static_cast<Inner*>(node.child[i]), level - 1)) return false;
  }
  return true;
}

/// Fills in a row of lengths in the inner nodes of a subtree whose root is at this level.
template <typename T>
void fill_lengths(Inner& node, unsigned level, unsigned row,
                  const LearnedAlignments& learned) noexcept {
  for (unsigned i = 0; i < node.count; ++i) {
    if (level == 1) {
      node.lengths(row)[i] = static_cast<Leaf<T>*>(node.child[i])->longest_of(row, learned);
    } else {
      Inner& below = *static_cast<Inner*>(node.child[i]);
      fill_lengths<T>(below, level - 1, row, learned);
      node.lengths(row)[i] = below.longest_of(row, learned);
    }
  }
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
    std::memcpy(leaf->max, source.max, source.count * sizeof source.max[0]);
    leaf->free = source.free;
    leaf->count = source.count;
    for (Bits left = source.valued; left.any(); left.reset_lowest()) {
      leaf->values.construct(left.lowest(), *source.values.at(left.lowest()));
      leaf->valued.set(left.lowest());
    }
    return;
  }
  const Inner& source = static_cast<const Inner&>(from);
  Inner* const inner = new Inner(source.learned != nullptr);
  place = inner;
  source.copy_entries(*inner, 0, 0, source.count);
  for (unsigned i = 0; i < source.count; ++i)
    inner->child[i] = nullptr;
  inner->count = source.count;
  for (unsigned i = 0; i < source.count; ++i)
    clone_subtree(inner->child[i], *source.child[i], level - 1, first, last);
}

}  // namespace vmspace::detail
