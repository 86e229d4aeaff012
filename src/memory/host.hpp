// SPDX-License-Identifier: Apache-2.0
//
// Facts about the host that the sources of the memory layer share.

#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "vmspace/address_space/backing_spec.hpp"

namespace vmspace::detail {

inline std::uint64_t base_page_size() {
  return BackingSpec{}.effective_page_size();
}

/// The size of a transparent huge page: what one entry of the page middle directory maps. On x86-64
/// and aarch64 alike that is one page full of 8-byte entries: 2 MiB with pages of 4 KiB, 32 MiB
/// with 16 KiB, 512 MiB with 64 KiB.
inline std::uint64_t huge_page_size() {
  return base_page_size() * (base_page_size() / 8);
}

/// Below it no sum of a size, an alignment and guard pages passes 64 bits. The kernel's limit is
/// lower.
inline constexpr std::uint64_t size_limit = std::uint64_t{1} << 62;

/// Takes addresses that nobody may access and that cost no memory: mmap(2) with these flags added.
void* reserve_addresses(void* address, std::uint64_t size, int flags);

/// The beginning of a file in /proc or /sys, up to `size` bytes; empty when it can't be read.
std::string_view read_start(const char* path, char* buffer, std::size_t size);

}  // namespace vmspace::detail
