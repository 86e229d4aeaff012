// SPDX-License-Identifier: Apache-2.0
//
// What an allocation must satisfy.

#pragma once

#include <cstdint>
#include <limits>

#include "vmspace/base/result.hpp"

namespace vmspace {

/// Which of the places that fit an allocation takes.
enum class AllocPolicy : std::uint8_t {
  first_match,  ///< the lowest address
  last_match,   ///< the highest address
  /// The lowest address in the smallest free range that fits, the lowest such range among equals.
  /// Only the part of a free range inside the window counts.
  best_match,
};

/// What an allocation must satisfy; an aggregate for designated initialisers:
/// `tree.allocate({.size = 4_KiB, .max = 0xffff'ffff, .align = 4_KiB})`.
/// For an exact address, see IntervalTree::allocate_at.
struct Constraint {
  std::uint64_t size;     ///< how many members (bytes, for addresses); at least 1
  std::uint64_t min = 0;  ///< the lowest address that the allocation may cover
  std::uint64_t max = std::numeric_limits<std::uint64_t>::max();  ///< the highest, inclusive
  std::uint64_t align = 1;  ///< of the first address; a power of two; 0 means 1
  AllocPolicy policy = AllocPolicy::first_match;  ///< which of the places that would do

  /// Whether the constraint makes sense, as validate() has it. O(1).
  [[nodiscard]] constexpr bool is_valid() const noexcept {
    // Not std::has_single_bit: without a popcount instruction that is a call, on every allocation.
    return size != 0 && min <= max && (align & (align - 1)) == 0;
  }

  /// Checks that the constraint makes sense: `zero_size` when size is 0, `invalid_range` when
  /// min > max, `bad_alignment` when align is neither 0 nor a power of two. Every allocation calls
  /// it. O(1).
  [[nodiscard]] constexpr Result<void> validate() const {
    constexpr const char* operation = "Constraint::validate";
    if (is_valid()) return {};
    if (size == 0) return fail({.code = Errc::zero_size, .operation = operation});
    if (min > max) {
      return fail(
          {.code = Errc::invalid_range, .operation = operation, .first = Operand::range(min, max)});
    }
    return fail(
        {.code = Errc::bad_alignment, .operation = operation, .first = Operand::size(align)});
  }

  friend constexpr bool operator==(const Constraint&, const Constraint&) = default;
};

}  // namespace vmspace
