// SPDX-License-Identifier: Apache-2.0
//
// Sizes in bytes as a person writes them: `using namespace vmspace::literals; auto size = 6_GiB;`
//
// Anything but a whole number below 2^64 fails to compile. The operators are templates over the
// digits rather than consteval functions, because clang 14 rejects calls of those in default
// arguments and in generic lambdas, where sizes are wanted.

#pragma once

#include <cstdint>
#include <limits>

#include "vmspace/base/cxx20.hpp"

namespace vmspace {

namespace detail {

/// What a literal says, in units of 2^shift.
struct ScaledLiteral {
  std::uint64_t value = 0;
  bool valid = true;
};

/// Reads an integer literal as C++ spells it: decimal, 0x, 0b or octal, with separators.
constexpr ScaledLiteral scale_literal(const char* digit, const char* end, unsigned shift) {
  unsigned base = 10;
  if (end - digit > 1 && *digit == '0') {
    const char prefix = digit[1];
    base = prefix == 'x' || prefix == 'X' ? 16 : prefix == 'b' || prefix == 'B' ? 2 : 8;
    digit += base == 8 ? 1 : 2;
  }
  ScaledLiteral size;
  const std::uint64_t most = std::numeric_limits<std::uint64_t>::max() >> shift;
  for (; digit != end; ++digit) {
    if (*digit == '\'') continue;
    const char zero = *digit <= '9' ? '0' : static_cast<char>((*digit <= 'F' ? 'A' : 'a') - 10);
    const auto figure = static_cast<std::uint64_t>(*digit - zero);
    // Not a figure of this base: the point or the exponent of a number with a fraction.
    if (figure >= base || size.value > (most - figure) / base) {
      size.valid = false;
      break;
    }
    size.value = size.value * base + figure;
  }
  size.value <<= shift;
  return size;
}

template <unsigned shift, char... digits>
inline constexpr std::uint64_t literal_size = [] {
  constexpr char text[] = {digits...};
  constexpr ScaledLiteral size = scale_literal(text, text + sizeof text, shift);
  static_assert(size.valid, "a size is a whole number of bytes below 2^64");
  return size.value;
}();

}  // namespace detail

namespace literals {

/// In units of 1024 bytes.
template <char... digits>
[[nodiscard]] constexpr std::uint64_t operator""_KiB() {
  return detail::literal_size<10, digits...>;
}
/// In units of 1024 KiB.
template <char... digits>
[[nodiscard]] constexpr std::uint64_t operator""_MiB() {
  return detail::literal_size<20, digits...>;
}
/// In units of 1024 MiB.
template <char... digits>
[[nodiscard]] constexpr std::uint64_t operator""_GiB() {
  return detail::literal_size<30, digits...>;
}
/// In units of 1024 GiB.
template <char... digits>
[[nodiscard]] constexpr std::uint64_t operator""_TiB() {
  return detail::literal_size<40, digits...>;
}

}  // namespace literals

}  // namespace vmspace
