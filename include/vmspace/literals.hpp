// SPDX-License-Identifier: Apache-2.0
//
// Sizes in bytes as a person writes them: `using namespace vmspace::literals; auto size = 6_GiB;`

#pragma once

#include <cstdint>

namespace vmspace::detail {

/// Declared and never defined: a literal above 2^64-1 calls it, and so does not compile.
void size_literal_exceeds_64_bits();

consteval std::uint64_t scaled(unsigned long long count, unsigned shift) {
  if (count > (UINT64_MAX >> shift)) size_literal_exceeds_64_bits();
  return static_cast<std::uint64_t>(count) << shift;
}

}  // namespace vmspace::detail

namespace vmspace::literals {

consteval std::uint64_t operator""_KiB(unsigned long long count) {
  return detail::scaled(count, 10);
}
consteval std::uint64_t operator""_MiB(unsigned long long count) {
  return detail::scaled(count, 20);
}
consteval std::uint64_t operator""_GiB(unsigned long long count) {
  return detail::scaled(count, 30);
}
consteval std::uint64_t operator""_TiB(unsigned long long count) {
  return detail::scaled(count, 40);
}

}  // namespace vmspace::literals
