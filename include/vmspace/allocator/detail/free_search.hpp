// SPDX-License-Identifier: Apache-2.0
//
// Searching a B+-tree for free space: where a request fits, by each policy.
//
// A descent enters only children whose summaries allow the request and that the window touches; in
// a leaf it tests each free entry exactly. It counts the leaves in which none passes, from which the
// tree may learn (learned_alignments.hpp); the search itself changes nothing.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/detail/bplus_tree.hpp"
#include "vmspace/allocator/detail/free_summary.hpp"
#include "vmspace/allocator/detail/node.hpp"
#include "vmspace/allocator/detail/tree_path.hpp"
#include "vmspace/base/detail/min_max.hpp"

namespace vmspace::detail {

/// Goes through the free entries that satisfy a request, ascending with the lowest place in each or
/// descending with the highest. The request may become stricter between two of them.
///
/// Inlined whatever it costs, so that the state of a search stays in registers.
template <bool ascending, typename T>
class FreeSearch {
 public:
  FreeSearch(const BPlusTree<T>& tree, const Request& request, TreePath<T>& path) noexcept
      : request_(request), path_(path), height_(tree.height()), level_(height_) {
    if (tree.root() == nullptr) return;
    if (height_ == 0) {
      enter(tree.root());
    } else {
      row_ = tree.row_for(request.low_bits());
      inner_ = static_cast<Inner*>(tree.root());
      slot_ = start_of(*inner_);
    }
  }

  /// Goes to the next, at the beginning the first; false when there is none. Else the path is at the
  /// entry.
  [[gnu::always_inline]] bool next() noexcept {
    do {
      while (left_.any()) {
        const unsigned pos = ascending ? left_.lowest() : left_.highest();
        if constexpr (ascending) {
          left_.reset_lowest();
        } else {
          left_.reset(pos);
        }
        const std::uint64_t lo = path_.leaf->min[pos];
        const std::uint64_t hi = path_.leaf->max[pos];
        const std::optional<std::uint64_t> place =
            ascending ? request_.lowest_in(lo, hi) : request_.highest_in(lo, hi);
        if (!place) continue;
        path_.pos = pos;
        place_ = *place;
        fits_ = true;
        return true;
      }
      wasted_ += !fits_;
    } while (height_ != 0 && find_leaf());
    return false;
  }

  /// The place in the entry at the path.
  [[nodiscard]] std::uint64_t place() const noexcept { return place_; }

  /// How many leaves were entered in vain.
  [[nodiscard]] std::size_t wasted() const noexcept { return wasted_; }

 private:
  void enter(Node* leaf) noexcept {
    path_.leaf = static_cast<Leaf<T>*>(leaf);
    left_ = path_.leaf->free;
    fits_ = false;
  }

  /// Enters the next leaf that may have a fit.
  [[gnu::always_inline]] bool find_leaf() noexcept {
    for (;;) {
      slot_ = candidate_from(*inner_, slot_);
      if (slot_ == node_capacity) {
        if (level_ == height_) return false;
        const PathStep& above = path_.ancestors[level_++];
        inner_ = above.node;
        slot_ = slot_after(*inner_, above.slot);
        continue;
      }
      path_.ancestors[level_ - 1] = {inner_, slot_};
      Node* const child = inner_->child[slot_];
      if (level_ == 1) {
        enter(child);
        if (leaves_are_far(height_)) path_.leaf->prefetch();
        slot_ = slot_after(*inner_, slot_);
        return true;
      }
      --level_;
      inner_ = static_cast<Inner*>(child);
      slot_ = start_of(*inner_);
    }
  }

  /// The child where the window begins.
  [[nodiscard]] unsigned start_of(const Inner& inner) const noexcept {
    if constexpr (ascending) return request_.min() == 0 ? 0 : inner.child_for(request_.min());
    return inner.child_for(request_.max());
  }

  /// The child to look at after this one; 32 when there is none in the window.
  [[nodiscard]] unsigned slot_after(const Inner& inner, unsigned slot) const noexcept {
    if constexpr (ascending) return slot + 1;
    return slot == 0 || inner.key[slot] <= request_.min() ? node_capacity : slot - 1;
  }

  /// The first child that may have a fit, this one included; 32 when there is none in the window.
  [[nodiscard]] unsigned candidate_from(const Inner& inner, unsigned slot) const noexcept {
    if constexpr (ascending) {
      slot = inner.next_candidate(request_, row_, slot);
      if (slot == node_capacity || inner.key[slot] > request_.max()) return node_capacity;
      return slot;
    }
    while (slot != node_capacity && !inner.may_fit(request_, row_, slot))
      slot = slot_after(inner, slot);
    return slot;
  }

  const Request& request_;
  TreePath<T>& path_;
  const unsigned height_;
  unsigned row_ = 0;

  // Where it goes on when nothing is left in the leaf: from this child of a node at this level.
  Inner* inner_ = nullptr;
  unsigned level_;
  unsigned slot_ = 0;

  Bits left_;         ///< free entries of the leaf that have not been looked at
  bool fits_ = true;  ///< one of the leaf's entries does, or there is no leaf yet
  std::uint64_t place_ = 0;
  std::size_t wasted_ = 0;
};

/// What came of a search.
struct SearchOutcome {
  bool found;
  std::uint64_t base;  ///< the place, in the free entry at the path
  std::size_t wasted;  ///< how many leaves were entered in vain
};

/// Finds the first place that satisfies the request, or the last.
template <bool ascending, typename T>
SearchOutcome find_end(const BPlusTree<T>& tree, const Request& request,
                       TreePath<T>& path) noexcept {
  FreeSearch<ascending, T> search(tree, request, path);
  const bool found = search.next();
  return {found, search.place(), search.wasted()};
}

/// Finds the place in the smallest free entry that satisfies the request. Of an entry, the part inside
/// the window counts. A part of exactly the size can't be beaten.
template <typename T>
SearchOutcome find_best(const BPlusTree<T>& tree, const Request& request,
                        TreePath<T>& path) noexcept {
  FreeSearch<true, T> search(tree, request, path);
  std::uint64_t best_min = 0;
  std::uint64_t least = 0;
  SearchOutcome best{false, 0, 0};
  while (search.next()) {
    const std::uint64_t min = path.leaf->min[path.pos];
    const std::uint64_t extent =
        min_of(path.leaf->max[path.pos], request.max()) - max_of(min, request.min());
    if (best.found && extent >= least) continue;
    best = {true, search.place(), 0};
    best_min = min;
    least = extent;
    if (least == request.extent()) break;
  }
  best.wasted = search.wasted();
  if (!best.found) return best;
  tree.upper_bound(best_min, path);
  --path.pos;
  return best;
}

/// Finds the place for the request by this policy.
template <typename T>
SearchOutcome find_fit(const BPlusTree<T>& tree, const Request& request, AllocPolicy policy,
                       TreePath<T>& path) noexcept {
  switch (policy) {
    case AllocPolicy::first_match: return find_end<true>(tree, request, path);
    case AllocPolicy::last_match: return find_end<false>(tree, request, path);
    case AllocPolicy::best_match: break;
  }
  return find_best(tree, request, path);
}

}  // namespace vmspace::detail
