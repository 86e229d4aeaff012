// SPDX-License-Identifier: Apache-2.0
//
// The sizes of the machine's pages, in bytes.

#pragma once

#include <cstdint>

namespace vmspace::detail {

/// The unit of mmap(2) (sysconf(3): _SC_PAGESIZE); a power of two.
std::uint64_t base_page_size() noexcept;

/// The size of a transparent huge page: what one entry of the page middle directory maps. On x86-64
/// and aarch64 alike that is one page full of 8-byte entries: 2 MiB with pages of 4 KiB, 32 MiB
/// with 16 KiB, 512 MiB with 64 KiB.
inline std::uint64_t huge_page_size() noexcept {
  return base_page_size() * (base_page_size() / 8);
}

}  // namespace vmspace::detail
