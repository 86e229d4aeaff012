// SPDX-License-Identifier: Apache-2.0
//
// A guest physical address (GPA), as a type of its own.
//
// A GPA, a host pointer and a size are all 64-bit numbers, and mixing them up is how a VMM reads
// the wrong memory. A GuestAddress is made explicitly, and its arithmetic is either checked or says
// in its name what it does: there is no operator+ that wraps silently.

#pragma once

#include <bit>
#include <cassert>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>

namespace vmspace {

/// A guest physical address, in bytes from 0. A value; every call is constexpr and O(1).
class GuestAddress {
 public:
  constexpr GuestAddress() noexcept = default;
  constexpr explicit GuestAddress(std::uint64_t value) noexcept : value_(value) {}

  [[nodiscard]] constexpr std::uint64_t value() const noexcept { return value_; }

  /// The address `bytes` above; nothing when that would pass 2^64-1.
  [[nodiscard]] constexpr std::optional<GuestAddress> checked_add(
      std::uint64_t bytes) const noexcept {
    if (bytes > std::numeric_limits<std::uint64_t>::max() - value_) return std::nullopt;
    return GuestAddress(value_ + bytes);
  }

  /// The address `bytes` below; nothing when that would pass 0.
  [[nodiscard]] constexpr std::optional<GuestAddress> checked_sub(
      std::uint64_t bytes) const noexcept {
    if (bytes > value_) return std::nullopt;
    return GuestAddress(value_ - bytes);
  }

  /// How many bytes this address lies above `base`; nothing when it lies below.
  [[nodiscard]] constexpr std::optional<std::uint64_t> offset_from(
      GuestAddress base) const noexcept {
    if (value_ < base.value_) return std::nullopt;
    return value_ - base.value_;
  }

  /// The next multiple of `align`, a power of two, at or above; nothing when that would be 2^64.
  [[nodiscard]] constexpr std::optional<GuestAddress> align_up(std::uint64_t align) const noexcept {
    assert(std::has_single_bit(align));
    return checked_add((std::uint64_t{0} - value_) & (align - 1));
  }

  /// The multiple of `align`, a power of two, at or below.
  [[nodiscard]] constexpr GuestAddress align_down(std::uint64_t align) const noexcept {
    assert(std::has_single_bit(align));
    return GuestAddress(value_ & ~(align - 1));
  }

  /// Whether the address is a multiple of `align`, a power of two.
  [[nodiscard]] constexpr bool is_aligned(std::uint64_t align) const noexcept {
    assert(std::has_single_bit(align));
    return (value_ & (align - 1)) == 0;
  }

  friend constexpr auto operator<=>(GuestAddress, GuestAddress) = default;

 private:
  std::uint64_t value_ = 0;
};

}  // namespace vmspace

template <>
struct std::hash<vmspace::GuestAddress> {
  std::size_t operator()(vmspace::GuestAddress address) const noexcept {
    return std::hash<std::uint64_t>{}(address.value());
  }
};
