// SPDX-License-Identifier: Apache-2.0
//
// What a snapshot is called by those that refer to it: the differential snapshot made after it, and
// the working set recorded from it.

#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace vmspace {

/// 128 random bits; all of them 0 for a snapshot that has none (version 1).
struct SnapshotId {
  std::array<std::uint8_t, 16> bytes{};  ///< in the order in which a file has them

  /// Whether there is one.
  [[nodiscard]] constexpr explicit operator bool() const noexcept { return *this != SnapshotId{}; }
  friend constexpr bool operator==(const SnapshotId&, const SnapshotId&) = default;
};

namespace detail {

/// 32 hexadecimal digits.
[[nodiscard]] inline std::string hex(const SnapshotId& id) {
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : id.bytes) {
    text += digits[byte / 16];
    text += digits[byte % 16];
  }
  return text;
}

}  // namespace detail

}  // namespace vmspace
