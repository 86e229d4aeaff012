// SPDX-License-Identifier: Apache-2.0
//
// PAGEMAP_SCAN: which pages of this process the kernel's page tables hold, as ranges.
//
// Source: admin-guide/mm/pagemap in the kernel's documentation, and linux/fs.h of Linux 6.7, which
// C libraries do not have yet.

#pragma once

#include <linux/ioctl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "os/descriptor.hpp"
#include "os/system_calls.hpp"

namespace vmspace::detail {

/// PAGE_IS_*: what a page may be.
/// Not write-protected by userfaultfd: written since it was, or never protected.
inline constexpr std::uint64_t page_is_written = 1 << 1;
inline constexpr std::uint64_t page_is_file = 1 << 2;  ///< not a private copy
inline constexpr std::uint64_t page_is_present = 1 << 3;
inline constexpr std::uint64_t page_is_swapped = 1 << 4;
inline constexpr std::uint64_t page_is_zero_page = 1 << 5;  ///< the kernel's shared page of zeros
inline constexpr std::uint64_t page_is_huge = 1 << 6;

/// PM_SCAN_*.
/// Write-protects what it reports, in one step; of memory registered with UFFD_FEATURE_WP_ASYNC.
inline constexpr std::uint64_t scan_protects = 1 << 0;
/// Fails with EPERM for memory that is not so registered.
inline constexpr std::uint64_t scan_requires_async = 1 << 1;

/// Neighbouring pages, [start, end), of the same reported categories (struct page_region). With values,
/// since valgrind does not know that the kernel writes them.
struct PageRegion {
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  std::uint64_t categories = 0;
};

/// Which pages are wanted, and which of their categories are reported; see struct pm_scan_arg.
struct TableQuery {
  std::uint64_t inverted = 0;  ///< categories that count as their opposite
  std::uint64_t all_of = 0;    ///< a page has all of these, after the inversion
  std::uint64_t any_of = 0;    ///< and one of these, unless there are none
  std::uint64_t reported = 0;
  std::uint64_t flags = 0;  ///< scan_*
};

/// What one call found.
struct ScannedPages {
  std::size_t count;  ///< how many regions were filled in
  std::uint64_t end;  ///< where the kernel stopped: above where it began
};

/// /proc/self/pagemap, or a negative descriptor where it can't be opened.
inline Descriptor open_pagemap() {
  return Descriptor(
      retry([] { return kernel().open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC, 0); }));
}

/// Looks at the beginning of [start, end), which is not empty, until `regions` is full. Nothing, and
/// errno, where the kernel can't: before Linux 6.7, or where this process may not.
inline std::optional<ScannedPages> scan_pages(const Descriptor& pagemap, std::uint64_t start,
                                              std::uint64_t end, const TableQuery& query,
                                              std::span<PageRegion> regions) {
  // struct pm_scan_arg.
  struct Argument {
    std::uint64_t size;
    std::uint64_t flags;
    std::uint64_t start;
    std::uint64_t end;
    std::uint64_t walk_end;
    std::uint64_t vec;
    std::uint64_t vec_len;
    std::uint64_t max_pages;
    std::uint64_t category_inverted;
    std::uint64_t category_mask;
    std::uint64_t category_anyof_mask;
    std::uint64_t return_mask;
  };
  Argument scan{
      .size = sizeof scan,
      .flags = query.flags,
      .start = start,
      .end = end,
      .walk_end = 0,
      .vec = reinterpret_cast<std::uintptr_t>(regions.data()),
      .vec_len = regions.size(),
      .max_pages = 0,
      .category_inverted = query.inverted,
      .category_mask = query.all_of,
      .category_anyof_mask = query.any_of,
      .return_mask = query.reported,
  };
  const int count =
      retry([&] { return kernel().ioctl(pagemap.value(), _IOWR('f', 16, Argument), &scan); });
  if (count < 0 || scan.walk_end <= start) return std::nullopt;
  return ScannedPages{.count = static_cast<std::size_t>(count), .end = scan.walk_end};
}

}  // namespace vmspace::detail
