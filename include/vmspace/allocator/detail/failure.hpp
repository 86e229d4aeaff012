// SPDX-License-Identifier: Apache-2.0
//
// Why a call on an interval tree failed: worked out after the failure, out of line, so that calls
// that succeed pay nothing for it.

#pragma once

#include <cstdint>
#include <optional>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/detail/bplus_tree.hpp"
#include "vmspace/allocator/detail/free_search.hpp"
#include "vmspace/allocator/detail/free_summary.hpp"
#include "vmspace/allocator/detail/learned_alignments.hpp"
#include "vmspace/allocator/detail/node.hpp"
#include "vmspace/allocator/detail/tree_path.hpp"
#include "vmspace/allocator/interval_entry.hpp"
#include "vmspace/allocator/interval_iterator.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/detail/min_max.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace::detail {

/// The entries that overlap the range, in address order.
template <typename T>
[[nodiscard]] IntervalView<IntervalIterator<T>> overlapping(const BPlusTree<T>& tree,
                                                            Range range) noexcept {
  typename BPlusTree<T>::Position from = tree.upper_bound(range.min());
  const typename BPlusTree<T>::Position to = tree.upper_bound(range.max());
  if (from.pos > 0 && from.leaf->max[from.pos - 1] >= range.min()) --from.pos;
  return {IntervalIterator<T>(from.leaf, from.pos), IntervalIterator<T>(to.leaf, to.pos)};
}

/// Examines the tree after a call has failed and gives the error. O(log n), and for a call with a range
/// O(m) in the tree's ranges that overlap it.
template <typename T>
class TreeFailure {
 public:
  using Failed = tl::unexpected<Error>;

  /// `operation` is the call that failed, a string literal.
  TreeFailure(const BPlusTree<T>& tree, const char* operation) noexcept
      : tree_(tree), operation_(operation) {}

  /// The range to be inserted overlaps an entry.
  [[nodiscard, gnu::cold, gnu::noinline]] Failed overlap(Range range) const {
    return error(Errc::overlap, range, nullptr, detail::overlapping(tree_, range).front().range);
  }

  /// No free range has a place for the constraint. Reports the largest free piece of the window, the
  /// lowest of several.
  [[nodiscard, gnu::cold, gnu::noinline]] Failed no_space(const Constraint& constraint) const {
    std::optional<Range> largest;
    // Its size is found by halving what it may be: to go from each piece to the next that is longer
    // would be O(n) where they ascend. A leaf that is behind makes the bound too high.
    std::uint64_t found = 0;
    std::uint64_t most = min_of(longest(), aligned_length(constraint.min, constraint.max, 0));
    for (std::uint64_t size = most; found < most; size = found + (most - found + 1) / 2) {
      const Request request({.size = size, .min = constraint.min, .max = constraint.max});
      TreePath<T> at;
      FreeSearch<true, T> search(tree_, request, at);
      if (!search.next()) {
        most = size - 1;
        continue;
      }
      const std::uint64_t max = min_of(at.leaf->max[at.pos], constraint.max);
      largest = unchecked_range(search.place(), max);
      found = aligned_length(search.place(), max, 0);
    }
    Error full{.code = Errc::no_space,
               .operation = operation_,
               .first = Operand::size(constraint.size),
               .second = Operand::range(constraint.min, constraint.max)};
    if (!largest) {
      full.reason = "no free range lies in this window";
    } else {
      full.available = operand(*largest);
      if (largest->max() - largest->min() >= constraint.size - 1) {
        full.reason = "no free range is long enough at this alignment";
      }
    }
    return fail(full);
  }

  /// The range does not lie within one free range.
  [[nodiscard, gnu::cold, gnu::noinline]] Failed not_free(Range range) const {
    const std::optional<Coverage> coverage = coverage_of(range);
    if (coverage && coverage->lowest_taken) {
      return error(Errc::bad_state, range, "part of the range is already taken",
                   coverage->lowest_taken);
    }
    if (!coverage || !coverage->all_free) {
      return error(Errc::not_found, range, "part of the range is not in the tree");
    }
    return error(Errc::bad_state, range, "the range must lie within one free range");
  }

  /// The range is not exactly one that is taken.
  [[nodiscard, gnu::cold, gnu::noinline]] Failed not_taken(Range range) const {
    const std::optional<Coverage> coverage = coverage_of(range);
    if (!coverage) return error(Errc::not_found, range, "no part of the range is in the tree");
    if (coverage->all_free) return error(Errc::bad_state, range, "the range is already free");
    return error(Errc::overlap, range, "the range must be exactly one taken range",
                 coverage->lowest_taken.value_or(coverage->lowest));
  }

  /// The range is not exactly one of the tree's.
  [[nodiscard, gnu::cold, gnu::noinline]] Failed not_found(Range range) const {
    const std::optional<Coverage> coverage = coverage_of(range);
    if (!coverage) return error(Errc::not_found, range, "no part of the range is in the tree");
    return error(Errc::overlap, range, "the range must be exactly one of the tree's",
                 coverage->lowest);
  }

 private:
  /// What the tree has of a range that overlaps some of its entries.
  struct Coverage {
    Range lowest;                       ///< of the entries that it overlaps
    std::optional<Range> lowest_taken;  ///< of those that are taken
    bool all_free;                      ///< every member is in the tree, and free
  };

  /// Empty when no part of the range is in the tree.
  [[nodiscard]] std::optional<Coverage> coverage_of(Range range) const noexcept {
    const auto there = detail::overlapping(tree_, range);
    if (there.empty()) return std::nullopt;
    Coverage coverage{
        .lowest = there.front().range, .lowest_taken = std::nullopt, .all_free = true};
    std::uint64_t next = range.min();  // all members below it are in the tree, and free
    for (const auto& entry : there) {
      if (entry.state != NodeState::free) {
        coverage.lowest_taken = entry.range;
        coverage.all_free = false;
        return coverage;
      }
      coverage.all_free = coverage.all_free && entry.range.min() <= next;
      next = entry.range.max() + 1;  // 0 after 2^64-1, where the loop ends
    }
    coverage.all_free = coverage.all_free && (next == 0 || next > range.max());
    return coverage;
  }

  /// No free range is longer.
  [[nodiscard]] std::uint64_t longest() const noexcept {
    if (tree_.root() == nullptr) return 0;
    return tree_.height() == 0 ? static_cast<const Leaf<T>*>(tree_.root())->summary().longest
                               : static_cast<const Inner*>(tree_.root())->summary().longest;
  }

  Failed error(Errc code, Range range, const char* reason,
               const std::optional<Range>& obstacle = std::nullopt) const {
    return fail({.code = code,
                 .operation = operation_,
                 .first = operand(range),
                 .second = obstacle ? operand(*obstacle) : Operand{},
                 .reason = reason});
  }

  const BPlusTree<T>& tree_;
  const char* operation_;
};

}  // namespace vmspace::detail
