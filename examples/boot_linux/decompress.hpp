// SPDX-License-Identifier: Apache-2.0
//
// What distributions compress their kernels with, unpacked by the system's libraries.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/base/result.hpp"

namespace boot_linux {

struct Decompressed {
  const char* format;  ///< "gzip", "xz", "lz4", "zstd"
  std::vector<std::byte> bytes;
};

/// The payload of a bzImage, recognised by how it begins. Its last four bytes are the size of the
/// result, which may be at most `limit`. Errors: `corrupt`; `unsupported` for another format;
/// `limit_exceeded`.
vmspace::Result<Decompressed> decompress(std::span<const std::byte> payload, std::uint64_t limit);

}  // namespace boot_linux
