// SPDX-License-Identifier: Apache-2.0
//
// The checksums of snapshots of version 2.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace vmspace::detail {

/// XXH3, 64 bits.
[[nodiscard]] std::uint64_t checksum(std::span<const std::byte> bytes,
                                     std::uint64_t seed = 0) noexcept;

/// The checksum of a page of contents, which is never 0: 0 says that no page is stored.
[[nodiscard]] inline std::uint64_t page_checksum(std::span<const std::byte> page) noexcept {
  const std::uint64_t sum = checksum(page);
  return sum == 0 ? 1 : sum;
}

}  // namespace vmspace::detail
