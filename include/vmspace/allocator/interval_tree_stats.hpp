// SPDX-License-Identifier: Apache-2.0
//
// Counts and amounts of what an IntervalTree holds.

#pragma once

#include <cstddef>
#include <cstdint>

#include "vmspace/base/cxx20.hpp"

namespace vmspace {

/// How many ranges a tree has in each state, and how large they are. Amounts are in members (bytes,
/// for addresses) and saturate at 2^64-1.
struct IntervalTreeStats {
  std::size_t free_ranges = 0;       ///< ranges that can be allocated from
  std::size_t allocated_ranges = 0;  ///< ranges that are taken and have no value
  std::size_t valued_ranges = 0;     ///< ranges that are taken and have a value
  std::uint64_t free_amount = 0;     ///< of all free ranges together
  std::uint64_t taken_amount = 0;    ///< allocated and valued
  std::uint64_t largest_free = 0;    ///< the longest free range; 0 without any

  /// The share of the free amount that lies outside the largest free range: 0 when it is one piece or
  /// nothing is free, near 1 when it is in many small pieces.
  [[nodiscard]] double fragmentation() const noexcept {
    if (free_amount == 0) return 0;
    return 1 - static_cast<double>(largest_free) / static_cast<double>(free_amount);
  }

  friend bool operator==(const IntervalTreeStats&, const IntervalTreeStats&) = default;
};

}  // namespace vmspace
