// SPDX-License-Identifier: Apache-2.0
//
// Filling memory with pages before anybody needs them.
//
// A guest that touches a page for the first time waits while the host finds and clears one. Doing
// that beforehand takes as long as the host can clear memory, so it is done by several threads,
// over all regions at once: a thread that is done with one region helps with the next.

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
  by_mapping,  ///< write where writing gives the memory its final page, else read
  read,        ///< maps what is there: the contents of a file, or zeros
  write,       ///< makes every page writable: of a private file that is a copy of each
};

/// How to populate; an aggregate for designated initialisers.
struct PopulateOptions {
  /// How many threads work, the caller's among them; 0: by size and cores.
  unsigned threads = 0;
  PopulateAccess access = PopulateAccess::by_mapping;
};

/// A part of a mapping, in bytes.
struct PopulateRange {
  const MemoryMapping* mapping;
  std::uint64_t offset;
  std::uint64_t size;
  /// What is done to these pages, if not what the options say of all.
  std::optional<PopulateAccess> access = {};
};

/// Fills all of `ranges` with pages (MADV_POPULATE_WRITE or _READ, madvise(2)); contents stay.
///
/// By default pages are written, except that memory which may only be read, and private mappings of
/// files (a restored snapshot), are read. For a shared regular file space is allocated first, so
/// that a full disk is an error here and no SIGBUS later. Where the kernel has no MADV_POPULATE
/// (before Linux 5.14) space is allocated and each page touched: what can't be allocated beforehand
/// is then as dangerous as any first touch.
///
/// Errors, of which the first that any thread meets is returned: `invalid_argument` for a null
/// mapping; those of a wrong (offset, size); `access_denied` for what may not be read or written;
/// `unsupported` where an old kernel can't do it safely; `os`: ENOMEM, EFAULT when pool, file
/// system or memory cgroup have no page left, EHWPOISON. Pages that have come stay. Nobody may
/// unmap the ranges meanwhile. New threads have all signals blocked; when none can be started, the
/// caller's does all the work. O(bytes).
[[nodiscard]] VMSPACE_EXPORT Result<void> populate(std::span<const PopulateRange> ranges,
                                                   PopulateOptions options = {});

/// All of one mapping.
[[nodiscard]] VMSPACE_EXPORT Result<void> populate(const MemoryMapping& mapping,
                                                   PopulateOptions options = {});

}  // namespace vmspace
