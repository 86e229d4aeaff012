// SPDX-License-Identifier: Apache-2.0
//
// FNV-1a of 64 bits: the checksum of what is small, and of the head of version 1 of snapshots.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace vmspace::detail {

inline constexpr std::uint64_t fnv1a_basis = 0xcbf2'9ce4'8422'2325;

/// Continued from `sum`.
constexpr std::uint64_t fnv1a(std::span<const std::byte> bytes, std::uint64_t sum = fnv1a_basis) {
  for (const std::byte byte : bytes)
    sum = (sum ^ std::to_integer<std::uint64_t>(byte)) * 0x0000'0100'0000'01b3;
  return sum;
}

}  // namespace vmspace::detail
