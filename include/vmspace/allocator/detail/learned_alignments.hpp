// SPDX-License-Identifier: Apache-2.0
//
// Alignments for which a tree knows how long an allocation can be in each subtree.
//
// The three maxima of a FreeSummary do not decide every request: in a subtree, one free range may be
// long enough and another aligned well enough, and every leaf that is entered for such a request may
// be entered in vain. What does decide is the longest *aligned length*, the length of a free range
// from its first multiple of the alignment on. It can't be kept for all 64 alignments, and need not
// be: few programs use more than two or three alignments that are not the size as well.
//
// So a tree learns. Inner nodes have a few rows of lengths, one number a child: row 0 is for no
// alignment (FreeSummary::longest), and each of the others for one alignment, once searches for it
// have tried so many leaves in vain that a walk over all leaves, which fills the row in, costs no
// more. From then on the row is exact, as every other summary, and a search for this alignment enters
// no child in vain but those that straddle an end of its window.
//
// What is not learned costs nothing: nodes have no space for these rows until the first is learned,
// and where there is no memory for that, nothing is learned. When all rows are in use, the next
// alignment takes one over, after eight times as much waste, so that more alignments than rows cost
// little more than no rows.

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "vmspace/base/detail/min_max.hpp"

namespace vmspace::detail {

/// Rows of lengths in an inner node: one for no alignment, and those to be learned.
inline constexpr unsigned length_rows = 5;

/// How many members of the free range [lo, hi] there are from its first multiple of low_bits + 1, a
/// power of two, on; 2^64 is kept as 2^64-1, the most that can be asked for.
constexpr std::uint64_t aligned_length(std::uint64_t lo, std::uint64_t hi,
                                       std::uint64_t low_bits) noexcept {
  const std::uint64_t first = (lo + low_bits) & ~low_bits;
  if (first < lo || first > hi) return 0;
  const std::uint64_t extent = hi - first;
  return extent + (extent != std::numeric_limits<std::uint64_t>::max());
}

/// Which alignment each row of lengths is for. An alignment is written as the bits below it.
class LearnedAlignments {
 public:
  /// Whether any alignment has been learned.
  [[nodiscard]] bool any() const noexcept { return rows_ > 1; }

  /// How many rows are in use, with row 0.
  [[nodiscard]] unsigned rows() const noexcept { return rows_; }

  /// The alignment that a row in use is for.
  [[nodiscard]] std::uint64_t low_bits(unsigned row) const noexcept { return low_bits_[row]; }

  /// The row that decides most about a request: that for its alignment, or else for the largest
  /// below, whose lengths are upper bounds.
  [[nodiscard]] unsigned row_for(std::uint64_t low_bits) const noexcept {
    unsigned best = 0;
    for (unsigned row = 1; row < rows_; ++row) {
      if (low_bits_[row] <= low_bits && low_bits_[row] > low_bits_[best]) best = row;
    }
    return best;
  }

  /// Whether learn() is to be told of a search that has tried `wasted` leaves in vain. No search that
  /// knows its way, and no search in a tree where all do.
  [[nodiscard]] bool is_of_interest(std::size_t wasted) const noexcept {
    return (wasted | wasted_) != 0;
  }

  /// Notes a search for this alignment that has tried `wasted` leaves in vain, in a tree with so many
  /// entries. Returns the row that is now for this alignment, and is to be filled in; 0 when that is
  /// not worth it.
  [[nodiscard]] unsigned learn(std::uint64_t low_bits, std::size_t wasted,
                               std::size_t entries) noexcept {
    constexpr std::size_t entries_of_a_leaf = 16;  // or more
    // A few are tried in vain by chance, and at the ends of a window; to know better would not be
    // cheaper. So what counts is the waste beyond that, on average over all searches.
    const std::size_t usual = min_of<std::size_t>(8, 1 + entries / 64);
    wasted_ += wasted;
    wasted_ -= min_of(wasted_, usual);
    const bool is_full = rows_ == length_rows;
    if (wasted_ == 0 || wasted_ < entries / entries_of_a_leaf * (is_full ? 8 : 1)) return 0;
    wasted_ = 0;
    const unsigned row = is_full ? next_ : rows_++;
    next_ = row % (length_rows - 1) + 1;
    low_bits_[row] = low_bits;
    return row;
  }

 private:
  std::uint64_t low_bits_[length_rows] = {};
  unsigned rows_ = 1;
  unsigned next_ = 1;       ///< the row to take over when all are in use
  std::size_t wasted_ = 0;  ///< leaves tried in vain of late, beyond what is usual
};

}  // namespace vmspace::detail
