// SPDX-License-Identifier: Apache-2.0
//
// Allocating the pages of memory before they are needed.
//
// A guest that touches a page for the first time waits while the host finds and clears one. Doing
// that beforehand is limited by how fast the host clears memory, so several threads do it, for all
// regions at once: a thread that is done with one region helps with the next. Clearing memory of a
// distant NUMA node is slower, so threads run where the memory is that they fill.

#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/host/memory_mapping.hpp"

namespace vmspace {

/// What populating does to the pages.
enum class PopulateAccess : std::uint8_t {
  by_mapping,  ///< write where that gives the memory its final pages, else read
  read,        ///< map what is there: the contents of a file, or zeros
  write,       ///< make every page writable; in a private file that copies each
};

/// How to populate; an aggregate for designated initialisers.
struct PopulateOptions {
  /// How many threads work; 0 chooses by size and number of cores. The caller's is one of them,
  /// unless memory is bound to NUMA nodes away from some of the CPUs: that is filled by new threads,
  /// which run on the CPUs of its nodes, and the caller's waits.
  unsigned threads = 0;
  /// Whether pages are populated for reading or for writing.
  PopulateAccess access = PopulateAccess::by_mapping;
};

/// A part of a mapping, in bytes.
struct PopulateRange {
  const MemoryMapping* mapping;  ///< borrowed for the call
  std::uint64_t offset;          ///< where the part begins; a multiple of the page size
  std::uint64_t size;            ///< how long it is; a multiple of the page size
  /// What is done to these pages, if it differs from the options.
  std::optional<PopulateAccess> access = {};
  /// The Error::text of errors about this range, such as the name of the memory.
  ErrorText about = {};
};

/// Gives all of `ranges` their pages (MADV_POPULATE_WRITE or _READ, madvise(2)); the contents stay.
///
/// By default pages are written, except in memory that may only be read and in private mappings of
/// files (a restored snapshot), which are read. For a shared regular file, space is allocated
/// first, so that a full disk is an error here and not SIGBUS later. Where the kernel has no
/// MADV_POPULATE (before Linux 5.14), space is allocated and each page touched: memory whose space
/// can't be allocated is then as likely to raise SIGBUS as on any first touch.
///
/// Errors: `invalid_argument` for a null mapping or an unknown access; those of
/// MemoryMapping::check_part(); `unsupported` for external memory (Backing::is_external());
/// `access_denied` for what may not be read or written; these are found before any page is
/// allocated. `out_of_bounds` for memory that has been cut off its file; `unsupported` where an old
/// kernel can't do it safely; `os`: ENOMEM, EFAULT when pool, file system or memory cgroup have no
/// page left, EHWPOISON: the first that any thread meets is returned, and pages allocated so far
/// stay. The error's text is that of its range.
///
/// Threads: any; the ranges must stay mapped, and must not be discarded, meanwhile. New threads
/// have all signals but SIGBUS blocked; when none can be started, the calling thread does all the work.
/// O(bytes).
[[nodiscard]] VMSPACE_EXPORT Result<void> populate(std::span<const PopulateRange> ranges,
                                                   PopulateOptions options = {});

/// Populates all of one mapping.
[[nodiscard]] VMSPACE_EXPORT Result<void> populate(const MemoryMapping& mapping,
                                                   PopulateOptions options = {});

}  // namespace vmspace
