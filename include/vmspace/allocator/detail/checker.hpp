// SPDX-License-Identifier: Apache-2.0
//
// The rules of the interval tree's structure, one text each, and the walk that finds the first one
// that is broken.

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/detail/free_summary.hpp"
#include "vmspace/allocator/detail/learned_alignments.hpp"
#include "vmspace/allocator/detail/node.hpp"
#include "vmspace/base/detail/address_of.hpp"

namespace vmspace::detail {

/// Checks one B+-tree, once, given its members.
template <typename T>
class Checker {
 public:
  Checker(const Node* root, const Leaf<T>* first, const Leaf<T>* last, const Leaf<T>* behind,
          const Constraint* repeated, std::size_t size, unsigned height,
          const LearnedAlignments& learned) noexcept
      : root_(root),
        first_(first),
        last_(last),
        behind_(behind),
        repeated_(repeated),
        size_(size),
        height_(height),
        learned_(learned) {}

  /// The text of the rule; null when all hold.
  [[nodiscard]] const char* first_broken_rule() noexcept {
    if (root_ == nullptr) {
      const bool nothing =
          size_ == 0 && height_ == 0 && first_ == nullptr && last_ == nullptr && behind_ == nullptr;
      return nothing ? nullptr : "an empty tree must have no size, height or leaves";
    }
    check(*root_, height_);
    if (broken_ != nullptr) return broken_;
    if (leaf_ != last_ || last_->next != nullptr) return "the last leaf must end the chain";
    if (behind_ != nullptr && !has_seen_behind_) return "a leaf that is behind must be in the tree";
    if (entries_ != size_) return "size() must be the number of entries";
    return nullptr;
  }

 private:
  FreeSummary broken(const char* rule) noexcept {
    if (broken_ == nullptr) broken_ = rule;
    return {};
  }

  /// Checks a subtree; returns its summary.
  FreeSummary check(const Node& node, unsigned level) noexcept {
    const unsigned least = &node != root_ ? node_minimum : level == 0 ? 1 : 2;
    if (node.count < least) return broken("a node must be at least three eighths full");
    if (node.count > node_capacity) return broken("a node must have at most 32 entries");
    if (level == 0) return check_leaf(static_cast<const Leaf<T>&>(node));

    const Inner& inner = static_cast<const Inner&>(node);
    if (learned_.any() && inner.learned == nullptr) {
      return broken("a node must have space for the lengths that the tree has learned");
    }
    for (unsigned i = inner.count; i < node_capacity; ++i) {
      if (inner.key[i] != std::numeric_limits<std::uint64_t>::max()) {
        return broken("an unused key must be 2^64-1");
      }
      if (inner.summary_of(i) != FreeSummary{}) {
        return broken("the summary of an unused child must be empty");
      }
      for (unsigned row = 1; row < length_rows && inner.learned != nullptr; ++row) {
        if (inner.lengths(row)[i] != 0) return broken("the lengths of an unused child must be 0");
      }
    }
    for (unsigned i = 0; i < inner.count; ++i) {
      const Node* leftmost = inner.child[i];
      for (unsigned below = level - 1; below > 0; --below) {
        leftmost = static_cast<const Inner*>(leftmost)->child[0];
      }
      if (inner.key[i] != static_cast<const Leaf<T>*>(leftmost)->min[0]) {
        return broken("a key must be the lowest address below its child");
      }
      FreeSummary free = check(*inner.child[i], level - 1);
      const bool is_behind = inner.child[i] == behind_;
      if (is_behind) free.merge(inner.summary_of(i));  // the bound may be above, not below
      if (free != inner.summary_of(i)) return broken("a summary must be exact for its subtree");
      for (unsigned row = 1; row < learned_.rows(); ++row) {
        // What is below has been checked: its own row is exact.
        const std::uint64_t longest =
            level == 1 ? static_cast<const Leaf<T>*>(inner.child[i])->longest_of(row, learned_)
                       : static_cast<const Inner*>(inner.child[i])->longest_of(row, learned_);
        const std::uint64_t known = inner.lengths(row)[i];
        if (is_behind ? known < longest : known != longest) {
          return broken("an aligned length must be exact for its subtree");
        }
      }
    }
    return inner.summary();
  }

  FreeSummary check_leaf(const Leaf<T>& leaf) noexcept {
    if (leaf.prev != leaf_ || (leaf_ == nullptr ? first_ : leaf_->next) != address_of(leaf)) {
      return broken("leaves must be linked in order");
    }
    leaf_ = address_of(leaf);
    if (leaf_ == behind_) has_seen_behind_ = true;
    if (behind_ != nullptr && !has_seen_behind_ && repeated_ && has_place(leaf, *repeated_)) {
      return broken("what is found again must have no place before the leaf that is behind");
    }
    if (leaf.free.from(leaf.count).any() || leaf.valued.from(leaf.count).any()) {
      return broken("an unused entry must have no state");
    }
    for (unsigned i = 0; i < leaf.count; ++i) {
      if (leaf.min[i] > leaf.max[i]) return broken("min must not exceed max");
      if (end_ && leaf.min[i] <= *end_) return broken("ranges must ascend and not overlap");
      if (leaf.free.test(i) && leaf.valued.test(i))
        return broken("a free range must have no value");
      end_ = leaf.max[i];
    }
    for (unsigned i = leaf.count; i < node_capacity; ++i) {
      if (leaf.min[i] != std::numeric_limits<std::uint64_t>::max()) {
        return broken("an unused key must be 2^64-1");
      }
    }
    entries_ += leaf.count;
    return leaf.summary();
  }

  static bool has_place(const Leaf<T>& leaf, const Constraint& constraint) noexcept {
    const Request request(constraint);
    for (Bits left = leaf.free; left.any(); left.reset_lowest()) {
      const unsigned pos = left.lowest();
      if (request.lowest_in(leaf.min[pos], leaf.max[pos])) return true;
    }
    return false;
  }

  const Node* root_;
  const Leaf<T>* first_;
  const Leaf<T>* last_;
  const Leaf<T>* behind_;
  const Constraint* repeated_;  ///< null when nothing is noted
  std::size_t size_;
  unsigned height_;
  const LearnedAlignments& learned_;

  const Leaf<T>* leaf_ = nullptr;  ///< the last one seen
  bool has_seen_behind_ = false;
  std::size_t entries_ = 0;           ///< seen so far
  std::optional<std::uint64_t> end_;  ///< of the last entry seen
  const char* broken_ = nullptr;
};

}  // namespace vmspace::detail
