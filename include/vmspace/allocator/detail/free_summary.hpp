// SPDX-License-Identifier: Apache-2.0
//
// What is free in a subtree, summarised in three numbers that prune a search, and the request that
// they are compared with.
//
// Each number is a maximum over the free ranges of the subtree, so the summary of two subtrees is
// the larger of each pair. A subtree is skipped when any of the three is too small for the request:
//
//   longest  the size of the longest free range. Sufficient by itself when there is no alignment.
//   order    the largest k such that some free range holds a block of 2^k at a multiple of 2^k.
//            Sufficient by itself when the size equals the alignment, as it does for PCI BARs.
//   zeros    the most trailing zero bits of any free address. Helps when the size is small beside
//            the alignment: a free page is common, one that starts at a multiple of 2 MiB is not.
//
// For other combinations of size and alignment the three are necessary but not sufficient: the range
// that is long enough need not be the one that is aligned well enough. A search therefore tests each
// free range of a leaf exactly, with Request::lowest_in or highest_in; and where it tests many in
// vain, the tree learns to do better (learned_alignments.hpp).

#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/base/detail/min_max.hpp"

namespace vmspace::detail {

/// The three maxima. All zero where nothing is free.
struct FreeSummary {
  /// In members; 2^64 is kept as 2^64-1, the most that can be asked for.
  std::uint64_t longest = 0;
  std::uint8_t order = 0;  ///< 0 to 64
  std::uint8_t zeros = 0;  ///< 0 to 64

  /// The summary of the one free range [lo, hi].
  [[gnu::always_inline]] static constexpr FreeSummary of(std::uint64_t lo,
                                                         std::uint64_t hi) noexcept {
    FreeSummary summary;
    const std::uint64_t extent = hi - lo;
    if (lo == 0) {
      summary.zeros = 64;
      summary.order = static_cast<std::uint8_t>(hi + 1 == 0 ? 64 : std::bit_width(hi + 1) - 1);
    } else {
      summary.zeros = static_cast<std::uint8_t>(zeros_in(lo, hi));
      summary.order = static_cast<std::uint8_t>(std::bit_width(sides(lo, hi)) - 1);
    }
    summary.longest = extent + (extent != std::numeric_limits<std::uint64_t>::max());
    return summary;
  }

  /// The most trailing zero bits of any address in [lo, hi], which must not contain 0.
  static constexpr unsigned zeros_in(std::uint64_t lo, std::uint64_t hi) noexcept {
    // The address with the most is unique: between two multiples of 2^k lies a multiple of 2^(k+1). It
    // is where lo-1 and hi part, read from the top bit down.
    return static_cast<unsigned>(std::bit_width((lo - 1) ^ hi)) - 1;
  }

  /// A number whose highest bit is the largest aligned block in [lo, hi], which must not contain 0.
  static constexpr std::uint64_t sides(std::uint64_t lo, std::uint64_t hi) noexcept {
    // A block of 2^k begins or ends at the address with the most trailing zeros, so the longer of its
    // two sides has the largest. Of two numbers, OR-ed together, the highest bit is that of the larger.
    const std::uint64_t middle = hi & (~std::uint64_t{0} << zeros_in(lo, hi));
    return (middle - lo) | (hi - middle + 1);
  }

  /// Adds what is free in another subtree.
  constexpr void merge(const FreeSummary& other) noexcept {
    longest = max_of(longest, other.longest);
    order = max_of(order, other.order);
    zeros = max_of(zeros, other.zeros);
  }

  /// Whether merging the other makes no difference.
  [[nodiscard]] constexpr bool covers(const FreeSummary& other) const noexcept {
    return other.longest <= longest && other.order <= order && other.zeros <= zeros;
  }

  /// Whether this summary is certain to stay as it is when that of one of its parts goes from
  /// `before` to `after`: in each of the three, the part was not the maximum, or still reaches it.
  [[nodiscard]] constexpr bool is_unchanged_by(const FreeSummary& before,
                                               const FreeSummary& after) const noexcept {
    // Not && and ||: the answer can't be predicted, so it is to be one branch, not six.
    return ((before.longest < longest) | (after.longest == longest)) &
           ((before.order < order) | (after.order == order)) &
           ((before.zeros < zeros) | (after.zeros == zeros));
  }

  friend constexpr bool operator==(const FreeSummary&, const FreeSummary&) = default;
};

/// The summary of many free ranges, for less than merging those of each: the largest of several
/// logarithms is that of all numbers OR-ed together. And no branch depends on how long a range is, which
/// could not be predicted.
class FreeSummaryBuilder {
 public:
  /// Adds the free range [lo, hi].
  constexpr void add(std::uint64_t lo, std::uint64_t hi) noexcept {
    if (lo == 0) {
      from_zero_ = FreeSummary::of(lo, hi);
      return;
    }
    extent_ = max_of(extent_, hi - lo);
    sides_ |= FreeSummary::sides(lo, hi);
    partings_ |= (lo - 1) ^ hi;  // see FreeSummary::zeros_in(); never 0, as lo - 1 is below hi
  }

  [[nodiscard]] constexpr FreeSummary summary() const noexcept {
    FreeSummary summary = from_zero_;
    if (partings_ != 0) {
      summary.merge({.longest = extent_ + 1,  // without 0, never 2^64
                     .order = static_cast<std::uint8_t>(std::bit_width(sides_) - 1),
                     .zeros = static_cast<std::uint8_t>(std::bit_width(partings_) - 1)});
    }
    return summary;
  }

 private:
  FreeSummary from_zero_;
  std::uint64_t extent_ = 0;
  std::uint64_t sides_ = 0;
  std::uint64_t partings_ = 0;
};

/// A valid Constraint, made ready for comparing.
class Request {
 public:
  [[gnu::always_inline]] constexpr explicit Request(const Constraint& constraint) noexcept
      : size_(constraint.size),
        min_(constraint.min),
        max_(constraint.max),
        low_bits_(constraint.align == 0 ? 0 : constraint.align - 1),
        // Whatever starts at a multiple of `align` begins with an aligned block of 2^order.
        // The casts are for std::bit_width(), which is an int in newer libraries (LWG 3656).
        order_(static_cast<std::uint8_t>(min_of(static_cast<unsigned>(std::bit_width(low_bits_)),
                                                static_cast<unsigned>(std::bit_width(size_)) - 1))),
        zeros_(static_cast<std::uint8_t>(std::bit_width(low_bits_))),
        add_to_orders_(to_reach_high_bits(order_)),
        add_to_zeros_(to_reach_high_bits(zeros_)) {}

  [[nodiscard]] constexpr std::uint64_t min() const noexcept { return min_; }
  [[nodiscard]] constexpr std::uint64_t max() const noexcept { return max_; }
  [[nodiscard]] constexpr std::uint64_t size() const noexcept { return size_; }
  [[nodiscard]] constexpr std::uint64_t extent() const noexcept { return size_ - 1; }
  /// The bits below the alignment.
  [[nodiscard]] constexpr std::uint64_t low_bits() const noexcept { return low_bits_; }

  /// False only if no free range of a subtree with this summary satisfies the request.
  [[nodiscard]] constexpr bool may_fit(const FreeSummary& summary) const noexcept {
    return summary.order >= order_ && summary.longest >= size_ && summary.zeros >= zeros_;
  }

  /// may_fit() by order and zeros alone, for eight consecutive subtrees at once: the high bit of
  /// byte i of the result is set when subtree i may fit.
  [[nodiscard]] std::uint64_t may_fit(const std::uint8_t* orders,
                                      const std::uint8_t* zeros) const noexcept {
    return (eight_of(orders) + add_to_orders_) & (eight_of(zeros) + add_to_zeros_) &
           each_byte * 128;
  }

  /// The lowest place in the free range [lo, hi] that satisfies the request.
  [[nodiscard, gnu::always_inline]] constexpr std::optional<std::uint64_t> lowest_in(
      std::uint64_t lo, std::uint64_t hi) const noexcept {
    if (hi - lo < extent()) return std::nullopt;  // most of those in a leaf that are no place
    lo = max_of(lo, min_);
    hi = min_of(hi, max_);
    const std::uint64_t place = (lo + low_bits_) & ~low_bits_;
    if (place < lo || place > hi || hi - place < extent()) return std::nullopt;
    return place;
  }

  /// The highest place in the free range [lo, hi] that satisfies the request.
  [[nodiscard]] constexpr std::optional<std::uint64_t> highest_in(std::uint64_t lo,
                                                                  std::uint64_t hi) const noexcept {
    lo = max_of(lo, min_);
    hi = min_of(hi, max_);
    if (hi < lo || hi - lo < extent()) return std::nullopt;
    const std::uint64_t place = (hi - extent()) & ~low_bits_;
    if (place < lo) return std::nullopt;
    return place;
  }

 private:
  static constexpr std::uint64_t each_byte = 0x0101'0101'0101'0101;

  /// What to add to eight numbers at once, none above 64, to have the high bit of the byte of each that
  /// is at least `least` set: the sum carries no further.
  static constexpr std::uint64_t to_reach_high_bits(std::uint8_t least) noexcept {
    return each_byte * (128U - least);
  }
  /// Eight consecutive numbers as one, the first of them in the lowest byte.
  static std::uint64_t eight_of(const std::uint8_t* numbers) noexcept {
    std::uint64_t eight;
    std::memcpy(&eight, numbers, sizeof eight);
    if constexpr (std::endian::native == std::endian::big) eight = __builtin_bswap64(eight);
    return eight;
  }

  std::uint64_t size_;
  std::uint64_t min_;
  std::uint64_t max_;
  std::uint64_t low_bits_;
  std::uint8_t order_;
  std::uint8_t zeros_;
  // For many nodes in a search the same.
  std::uint64_t add_to_orders_;
  std::uint64_t add_to_zeros_;
};

}  // namespace vmspace::detail
