// SPDX-License-Identifier: Apache-2.0
//
// Searching a B+-tree for free space: where a request fits, by each policy.
//
// A descent enters only children whose summaries allow the request and that the window touches; in
// a leaf it tests each free entry exactly.

#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/detail/bplus_tree.hpp"
#include "vmspace/allocator/detail/free_summary.hpp"
#include "vmspace/allocator/detail/node.hpp"
#include "vmspace/allocator/detail/tree_path.hpp"

namespace vmspace::detail {

/// The free entries of a leaf, ascending or descending; see for_each_fit().
template <bool ascending, typename T, typename Visit>
bool search_leaf(const Request& request, Leaf<T>* leaf, TreePath<T>& path, Visit& visit) {
  path.leaf = leaf;
  for (Bits left = leaf->free; left.any();) {
    const unsigned pos = ascending ? left.lowest() : left.highest();
    if constexpr (ascending) {
      left.reset_lowest();
    } else {
      left.reset(pos);
    }
    const std::uint64_t lo = leaf->min[pos];
    const std::uint64_t hi = leaf->max[pos];
    const std::optional<std::uint64_t> place =
        ascending ? request.lowest_in(lo, hi) : request.highest_in(lo, hi);
    if (!place) continue;
    path.pos = pos;
    if (visit(path, *place)) return true;
  }
  return false;
}

template <bool ascending, typename T, typename Visit>
bool search_children(const Request& request, Inner& inner, unsigned level, TreePath<T>& path,
                     Visit& visit);

/// A node and what is below it; see for_each_fit(). The root of a small tree is a leaf, and searched
/// without a call.
template <bool ascending, typename T, typename Visit>
bool search_node(const Request& request, Node* node, unsigned level, TreePath<T>& path,
                 Visit& visit) {
  if (level == 0) {
    return search_leaf<ascending>(request, static_cast<Leaf<T>*>(node), path, visit);
  }
  return search_children<ascending>(request, *static_cast<Inner*>(node), level, path, visit);
}

/// The children of an inner node; see for_each_fit().
template <bool ascending, typename T, typename Visit>
bool search_children(const Request& request, Inner& inner, unsigned level, TreePath<T>& path,
                     Visit& visit) {
  const auto enter = [&](unsigned slot) {
    path.ancestors[level - 1] = {&inner, slot};
    return search_node<ascending>(request, inner.child[slot], level - 1, path, visit);
  };
  if constexpr (ascending) {
    const unsigned start = request.min() == 0 ? 0 : inner.child_for(request.min());
    for (unsigned slot = start; (slot = inner.next_candidate(request, slot)) < inner.count;
         ++slot) {
      if (slot != start && inner.key[slot] > request.max()) return false;
      if (enter(slot)) return true;
    }
  } else {
    for (unsigned slot = inner.child_for(request.max());; --slot) {
      if (request.may_fit(inner.summary_of(slot)) && enter(slot)) return true;
      if (slot == 0 || inner.key[slot] <= request.min()) return false;
    }
  }
  return false;
}

/// Calls `visit(path, place)` for each free entry that satisfies the request, in ascending order
/// with its lowest place or in descending order with its highest, until a call returns true.
template <bool ascending, typename T, typename Visit>
bool for_each_fit(const BPlusTree<T>& tree, const Request& request, TreePath<T>& path,
                  Visit&& visit) {
  return tree.root() != nullptr &&
         search_node<ascending>(request, tree.root(), tree.height(), path, visit);
}

/// Finds the place for the request: the free entry at the path, and the first address in it. False
/// when there is none.
template <typename T>
bool find_fit(const BPlusTree<T>& tree, const Request& request, AllocPolicy policy,
              TreePath<T>& path, std::uint64_t& base) {
  const auto accept = [&base](const TreePath<T>&, std::uint64_t place) {
    base = place;
    return true;
  };
  switch (policy) {
    case AllocPolicy::first_match: return for_each_fit<true>(tree, request, path, accept);
    case AllocPolicy::last_match: return for_each_fit<false>(tree, request, path, accept);
    case AllocPolicy::best_match: break;
  }
  // Of a free range, the part inside the window counts. A part of exactly the size can't be beaten.
  const Leaf<T>* best = nullptr;
  unsigned best_pos = 0;
  std::uint64_t least = 0;
  for_each_fit<true>(tree, request, path, [&](const TreePath<T>& candidate, std::uint64_t place) {
    const Leaf<T>& leaf = *candidate.leaf;
    const std::uint64_t extent = std::min(leaf.max[candidate.pos], request.max()) -
                                 std::max(leaf.min[candidate.pos], request.min());
    if (best == nullptr || extent < least) {
      best = candidate.leaf;
      best_pos = candidate.pos;
      least = extent;
      base = place;
    }
    return least == request.extent();
  });
  if (best == nullptr) return false;
  tree.upper_bound(best->min[best_pos], path);
  --path.pos;
  return true;
}

}  // namespace vmspace::detail
