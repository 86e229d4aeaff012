// SPDX-License-Identifier: Apache-2.0
//
// Sets of guest addresses as lists of ranges, in address order, without overlaps or empty ranges. A
// list in one piece of memory, since dirty pages come in great numbers and are walked in order.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/address_space/guest_range.hpp"

namespace vmspace::detail {

using RangeList = std::vector<GuestRange>;

// The bounds of a range that is not empty: inclusive, so that it may end with the last address.
[[nodiscard]] inline std::uint64_t first_of(const GuestRange& range) noexcept {
  return range.base.value();
}
[[nodiscard]] inline std::uint64_t last_of(const GuestRange& range) noexcept {
  return range.base.value() + (range.size - 1);
}

/// What is in either; adjacent ranges are joined. O(n).
[[nodiscard]] RangeList union_of(std::span<const GuestRange> a, std::span<const GuestRange> b);
/// What is in both. O(n).
[[nodiscard]] RangeList intersection_of(std::span<const GuestRange> a,
                                        std::span<const GuestRange> b);

}  // namespace vmspace::detail
