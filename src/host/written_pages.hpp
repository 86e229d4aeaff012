// SPDX-License-Identifier: Apache-2.0
//
// Pages that were written, as page tables know it: a page that userfaultfd has write-protected with
// UFFD_FEATURE_WP_ASYNC loses the protection when it is written, without a signal or a message.
//
// Two kinds of memory differ in what an absent page means:
//   private, and hugetlb: what was written stays in the page tables, if only as a page that was swapped
//     out; it leaves them when it is discarded. So absent is not written. Pages of zeros that were only
//     read, and pages of the file beneath a private mapping, don't count either.
//   other shared memory: the kernel may take a page out of the page tables at any time, since it is
//     still in the file (to swap it out, or to write it back), and where it was protected leaves a mark.
//     So absent without a mark may have been written. The first round protects all of it, which gives
//     absent pages that mark, and needs page tables for them. Pages that are absent together with
//     their page table need a query of their own.
// Source: fs/proc/task_mmu.c (do_pagemap_scan) and mm/userfaultfd.c of Linux 6.7.

#pragma once

#include <cstdint>
#include <vector>

#include "vmspace/base/result.hpp"
#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/host/page_scan.hpp"

#include "os/descriptor.hpp"

namespace vmspace::detail {

/// Looks for written pages of a mapping, which must outlive it.
class WrittenPages {
 public:
  /// Opens /proc/self/pagemap. Errors: `unsupported` without it; `os`.
  [[nodiscard]] static Result<WrittenPages> open(const char* operation,
                                                 const MemoryMapping& mapping);

  /// What a look does with what it finds.
  enum class Mode : std::uint8_t {
    look,     ///< nothing
    protect,  ///< write-protects it in the same step: the next look finds what was written since
  };

  /// Appends the pages of a part that were written, ascending, coalesced among themselves. Errors:
  /// `unsupported` before Linux 6.7; `bad_state` for memory that is not registered with WP_ASYNC, if it
  /// must be; `os`. What was found until then is appended then, and bad_alloc loses nothing either.
  [[nodiscard]] Result<void> find(const char* operation, Extent part, Mode mode,
                                  std::vector<Extent>& found) const;

 private:
  WrittenPages(const MemoryMapping& mapping, Descriptor pagemap) noexcept
      : mapping_(&mapping), pagemap_(std::move(pagemap)) {}

  const MemoryMapping* mapping_;
  Descriptor pagemap_;
};

/// Sorts extents and joins those that touch, from the `first` one on.
void join_extents(std::vector<Extent>& extents, std::size_t first = 0);

}  // namespace vmspace::detail
