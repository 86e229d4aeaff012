// SPDX-License-Identifier: Apache-2.0
//
// Integers with a byte order of their own, for use as members of structures that are read from and
// written to guest memory: little-endian ones, as virtio and most devices lay them out, and
// big-endian ones, as network headers and fw_cfg do. In the host's own order they cost nothing; what
// they add is that a structure says which order its bytes have.

#pragma once

#include <bit>
#include <compare>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "vmspace/memory/guest_object.hpp"

namespace vmspace {

/// An unsigned integer stored in a given byte order. Has the size and the alignment of T, and converts
/// from and to it; arithmetic is done on T. A value; every call is constexpr. GuestMemory loads and
/// stores it in one access, as it does T.
template <std::unsigned_integral T, std::endian order>
requires(!std::same_as<T, bool>) class EndianInteger {
 public:
  using value_type = T;

  /// Uninitialised, as an integer is, so that structures of these stay trivial.
  EndianInteger() = default;
  /// The integer, with its bytes in this order.
  // NOLINTNEXTLINE(google-explicit-constructor): it stands in for the integer.
  constexpr EndianInteger(T value) noexcept : stored_(swapped(value)) {}
  /// The integer, in the host's order.
  // NOLINTNEXTLINE(google-explicit-constructor)
  constexpr operator T() const noexcept { return swapped(stored_); }

  /// The integer, in the host's order, where a conversion would not be found.
  [[nodiscard]] constexpr T value() const noexcept { return swapped(stored_); }

 private:
  static constexpr T swapped(T value) noexcept {
    if constexpr (std::endian::native == order) return value;
    T result = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      result = static_cast<T>((result << 8) | (value & 0xff));
      value = static_cast<T>(value >> 8);
    }
    return result;
  }

  T stored_;
};

/// Its bytes are those of an integer, each pattern of which is a value.
template <typename T, std::endian order>
inline constexpr bool every_pattern_is_valid<EndianInteger<T, order>> = true;

/// Stored with the lowest byte first.
template <typename T>
using LittleEndian = EndianInteger<T, std::endian::little>;
/// Stored with the highest byte first.
template <typename T>
using BigEndian = EndianInteger<T, std::endian::big>;

/// Little-endian integers of 16, 32 and 64 bits.
using Le16 = LittleEndian<std::uint16_t>;
using Le32 = LittleEndian<std::uint32_t>;  ///< four bytes, little-endian
using Le64 = LittleEndian<std::uint64_t>;  ///< eight bytes, little-endian

/// Big-endian integers of 16, 32 and 64 bits.
using Be16 = BigEndian<std::uint16_t>;
using Be32 = BigEndian<std::uint32_t>;  ///< four bytes, big-endian
using Be64 = BigEndian<std::uint64_t>;  ///< eight bytes, big-endian

static_assert(std::is_trivially_copyable_v<Le64> && std::is_standard_layout_v<Le64> &&
              sizeof(Le64) == 8 && alignof(Le16) == 2);

}  // namespace vmspace
