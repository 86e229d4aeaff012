// SPDX-License-Identifier: Apache-2.0
//
// What the ancestors of a leaf are told when what is free in it changes: as far up as it makes a
// difference, which nearly always ends at the first or the second.

#pragma once

#include <cstdint>

#include "vmspace/allocator/detail/free_summary.hpp"
#include "vmspace/allocator/detail/learned_alignments.hpp"
#include "vmspace/allocator/detail/node.hpp"
#include "vmspace/allocator/detail/tree_path.hpp"
#include "vmspace/allocator/range.hpp"

namespace vmspace::detail {

/// The summaries of the leaf of a path, in its ancestors. One of the calls follows each change.
template <typename T>
class AncestorSummaries {
 public:
  AncestorSummaries(const TreePath<T>& path, unsigned height,
                    const LearnedAlignments& learned) noexcept
      : path_(path), height_(height), learned_(learned) {}

  /// Free entries of the leaf have shrunk or gone.
  void shrink() const noexcept {
    if (height_ == 0) return;
    if (learned_.any()) [[unlikely]]
      shrink_lengths();
    lower_summaries();
  }

  /// The free entry [lo, hi] of the leaf has shrunk to what is left of it around `piece`.
  void cut(std::uint64_t lo, std::uint64_t hi, const Range& piece) const noexcept {
    if (height_ == 0) return;
    if (learned_.any()) [[unlikely]]
      cut_lengths(lo, hi);
    if (may_lower(lo, hi, piece)) lower_summaries();
  }

  /// Whether cut() may have anything to tell.
  [[nodiscard]] bool is_affected_by_cut(std::uint64_t lo, std::uint64_t hi,
                                        const Range& piece) const noexcept {
    return learned_.any() || may_lower(lo, hi, piece);
  }

  /// The leaf has gained the free entry [lo, hi].
  [[gnu::always_inline]] void grow(std::uint64_t lo, std::uint64_t hi) const noexcept {
    if (height_ == 0) return;
    if (learned_.any()) [[unlikely]]
      grow_lengths(lo, hi);
    const FreeSummary added = FreeSummary::of(lo, hi);
    for (unsigned level = 0; level < height_; ++level) {
      Inner& node = *path_.ancestors[level].node;
      const unsigned slot = path_.ancestors[level].slot;
      FreeSummary summary = node.summary_of(slot);
      // Whether it makes a difference to the leaf's parent can't be predicted, so that to ask would cost more
      // than to write.
      if (level != 0 && summary.covers(added)) return;
      summary.merge(added);
      node.set_summary(slot, summary);
    }
  }

 private:
  [[nodiscard]] std::uint64_t& length_at(unsigned level, unsigned row) const noexcept {
    const PathStep& step = path_.ancestors[level];
    return step.node->lengths(row)[step.slot];
  }

  /// Whether the cut may have lowered one of the leaf's maxima.
  [[nodiscard, gnu::always_inline]] bool may_lower(std::uint64_t lo, std::uint64_t hi,
                                                   const Range& piece) const noexcept {
    if (hi - lo + 1 == length_at(0, 0))
      return true;  // it was the longest, and is no longer as long
    const PathStep& above = path_.ancestors[0];
    const FreeSummary known = above.node->summary_of(above.slot);
    const FreeSummary before = FreeSummary::of(lo, hi);
    // As most are: neither the largest nor the best aligned. One branch, since which is can't be predicted.
    if ((before.order < known.order) & (before.zeros < known.zeros)) return false;
    FreeSummary rest;
    if (piece.min() != lo) rest.merge(FreeSummary::of(lo, piece.min() - 1));
    if (piece.max() != hi) rest.merge(FreeSummary::of(piece.max() + 1, hi));
    return (before.order == known.order && rest.order < known.order) ||
           (before.zeros == known.zeros && rest.zeros < known.zeros);
  }

  void lower_summaries() const noexcept {
    FreeSummary summary = path_.leaf->summary();
    for (unsigned level = 0; level < height_; ++level) {
      Inner& node = *path_.ancestors[level].node;
      const unsigned slot = path_.ancestors[level].slot;
      const FreeSummary before = node.summary_of(slot);
      node.set_summary(slot, summary);
      if (level + 1 == height_) return;
      const PathStep& above = path_.ancestors[level + 1];
      if (above.node->summary_of(above.slot).is_unchanged_by(before, summary)) return;
      summary = node.summary();
    }
  }

  // What follows is out of line: most trees have learned nothing.

  [[gnu::noinline]] void shrink_lengths() const noexcept {
    for (unsigned row = 1; row < learned_.rows(); ++row)
      lower_lengths(row);
  }

  [[gnu::noinline]] void cut_lengths(std::uint64_t lo, std::uint64_t hi) const noexcept {
    for (unsigned row = 1; row < learned_.rows(); ++row) {
      // Where it was not the longest, that stays.
      if (aligned_length(lo, hi, learned_.low_bits(row)) == length_at(0, row)) lower_lengths(row);
    }
  }

  [[gnu::noinline]] void grow_lengths(std::uint64_t lo, std::uint64_t hi) const noexcept {
    for (unsigned row = 1; row < learned_.rows(); ++row) {
      const std::uint64_t length = aligned_length(lo, hi, learned_.low_bits(row));
      for (unsigned level = 0; level < height_ && length_at(level, row) < length; ++level)
        length_at(level, row) = length;
    }
  }

  void lower_lengths(unsigned row) const noexcept {
    std::uint64_t longest = path_.leaf->longest_of(row, learned_);
    for (unsigned level = 0; level < height_; ++level) {
      std::uint64_t& known = length_at(level, row);
      if (known == longest) return;
      const std::uint64_t before = known;
      known = longest;
      if (level + 1 == height_ || length_at(level + 1, row) != before) return;
      longest = path_.ancestors[level].node->longest_of(row, learned_);
    }
  }

  const TreePath<T>& path_;
  unsigned height_;
  const LearnedAlignments& learned_;
};

}  // namespace vmspace::detail
