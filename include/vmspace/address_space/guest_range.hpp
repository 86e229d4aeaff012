// SPDX-License-Identifier: Apache-2.0
//
// A range of guest physical memory: where it begins, and how many bytes it has.
//
// Accesses, regions and devices speak of memory in this form, and a guest may choose both numbers.
// So a GuestRange promises nothing: it may be empty, and it may run past 2^64. What is asked of it
// is answered without arithmetic that wraps. An allocator's Range has inclusive bounds instead and
// is always valid: range() and from_range() convert.

#pragma once

#include <cstdint>
#include <limits>
#include <optional>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/detail/min_max.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// `size` bytes of guest memory from `base`; an aggregate. A value; every call is constexpr and
/// O(1).
struct GuestRange {
  GuestAddress base = {};  ///< the first byte
  std::uint64_t size = 0;  ///< bytes

  /// The bytes from range.min() to range.max(). `overflow` for all of [0, 2^64-1], whose size does
  /// not fit in 64 bits.
  [[nodiscard]] static constexpr Result<GuestRange> from_range(const Range& range) {
    if (range == Range::whole_domain()) {
      return fail({.code = Errc::overflow,
                   .operation = "GuestRange::from_range",
                   .first = detail::operand(range),
                   .reason = "the size of the whole 64-bit space does not fit in 64 bits"});
    }
    return GuestRange{.base = GuestAddress(range.min()), .size = range.size()};
  }

  /// The first and the last byte as inclusive bounds. `zero_size` for an empty range; `overflow` for
  /// one that runs past 2^64.
  [[nodiscard]] constexpr Result<Range> range() const {
    const auto made = Range::from_base_size(base.value(), size);
    if (!made) return fail(made.error().in("GuestRange::range"));
    return made;
  }

  /// Whether it has no byte.
  [[nodiscard]] constexpr bool empty() const noexcept { return size == 0; }

  /// The last address, inclusive; nothing when the range is empty or runs past 2^64.
  [[nodiscard]] constexpr std::optional<GuestAddress> last() const noexcept {
    if (empty()) return std::nullopt;
    return base.checked_add(size - 1);
  }

  /// The address after the last; nothing when that is 2^64 or above, as it is for a range that ends
  /// with the last byte of the address space.
  [[nodiscard]] constexpr std::optional<GuestAddress> end() const noexcept {
    return base.checked_add(size);
  }

  /// Whether the address is one of the range's.
  [[nodiscard]] constexpr bool contains(GuestAddress address) const noexcept {
    return address >= base && address.value() - base.value() < size;
  }

  /// Whether every byte of `other` is one of this range's. An empty range is contained in any.
  [[nodiscard]] constexpr bool contains(const GuestRange& other) const noexcept {
    if (other.empty()) return true;
    if (!contains(other.base)) return false;
    return other.size <= size - (other.base.value() - base.value());
  }

  /// Whether the two have a byte in common.
  [[nodiscard]] constexpr bool overlaps(const GuestRange& other) const noexcept {
    if (empty() || other.empty()) return false;
    return contains(other.base) || other.contains(base);
  }

  /// The bytes that both have; nothing when they have none in common.
  [[nodiscard]] constexpr std::optional<GuestRange> intersection(
      const GuestRange& other) const noexcept {
    if (!overlaps(other)) return std::nullopt;
    const GuestAddress first = detail::max_of(base, other.base);
    const auto left = [first](const GuestRange& range) {
      return range.size - (first.value() - range.base.value());
    };
    return GuestRange{first, detail::min_of(left(*this), left(other))};
  }

  friend constexpr bool operator==(const GuestRange&, const GuestRange&) = default;
};

namespace detail {

constexpr Operand operand(const GuestRange& range) noexcept {
  return Operand::span(range.base.value(), range.size);
}

/// The last address of a range that is not empty, at most 2^64-1: for calls that refuse nothing.
constexpr std::uint64_t last_within(const GuestRange& range) noexcept {
  const std::uint64_t last = range.base.value() + (range.size - 1);
  return last < range.base.value() ? ~std::uint64_t{0} : last;
}

}  // namespace detail

}  // namespace vmspace
