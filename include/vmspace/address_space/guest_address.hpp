// SPDX-License-Identifier: Apache-2.0
//
// A guest physical address (GPA), as a type of its own.
//
// A GPA, a host pointer and a size are all 64-bit numbers, and mixing them up is how a VMM reads
// the wrong memory. A GuestAddress is made explicitly, and its arithmetic is either checked or says
// in its name what it does: there is no operator+ that wraps silently.

#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>

#include "vmspace/base/cxx20.hpp"

namespace vmspace {

/// A guest physical address, in bytes from 0. A value; every call is constexpr and O(1).
class GuestAddress {
 public:
  constexpr GuestAddress() noexcept = default;
  /// The address `value` bytes from 0.
  constexpr explicit GuestAddress(std::uint64_t value) noexcept : value_(value) {}

  /// The number of bytes from 0.
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

  /// The next multiple of `align` at or above; nothing when that would pass 2^64-1. `align` may be
  /// any number; 0 means 1.
  [[nodiscard]] constexpr std::optional<GuestAddress> align_up(std::uint64_t align) const noexcept {
    const std::uint64_t above = past_multiple(align);
    return above == 0 ? *this : checked_add(align - above);
  }

  /// The multiple of `align` at or below; 0 means 1.
  [[nodiscard]] constexpr GuestAddress align_down(std::uint64_t align) const noexcept {
    return GuestAddress(value_ - past_multiple(align));
  }

  /// Whether the address is a multiple of `align`; 0 means 1.
  [[nodiscard]] constexpr bool is_aligned(std::uint64_t align) const noexcept {
    return past_multiple(align) == 0;
  }

  friend constexpr auto operator<=>(GuestAddress, GuestAddress) = default;

 private:
  /// How far the address lies above a multiple of `align`; 0 means 1. With a remainder instead of a
  /// mask no argument gives a wrong answer, and for a constant power of two it is a mask all the
  /// same.
  [[nodiscard]] constexpr std::uint64_t past_multiple(std::uint64_t align) const noexcept {
    return align == 0 ? 0 : value_ % align;
  }

  std::uint64_t value_ = 0;
};

}  // namespace vmspace

template <>
struct std::hash<vmspace::GuestAddress> {
  std::size_t operator()(vmspace::GuestAddress address) const noexcept {
    return std::hash<std::uint64_t>{}(address.value());
  }
};
