// SPDX-License-Identifier: Apache-2.0

#include "snapshot/content_checksum.hpp"

// All of it in this file: nothing to link.
#define XXH_INLINE_ALL  // NOLINT(readability-identifier-naming): the name is xxHash's
#include <xxhash.h>

namespace vmspace::detail {

std::uint64_t checksum(std::span<const std::byte> bytes, std::uint64_t seed) noexcept {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

}  // namespace vmspace::detail
