// SPDX-License-Identifier: Apache-2.0
//
// Guest memory to a file and back.
//
// The file, version 1. Numbers are little-endian; offsets and sizes are in bytes.
//
//   at      size  header
//   0       8     magic: "vmspSNAP"
//   8       4     version: 1
//   12      4     number of regions, at most 512
//   16      8     size of the file: less means that it was truncated
//   24      8     checksum: FNV-1a, 64 bits, over the header with this field as 0, and the table
//   32      32    reserved, 0
//
//   64 + 32 i     entry of the table, sorted by guest address
//   0       8     guest address; a multiple of 4096
//   8       8     size; a multiple of 4096, not 0
//   16      8     where in the file its bytes are; a multiple of 4096, here of 2 MiB; ascending
//   24      4     protection: 1 read, 2 write, 4 execute
//   28      4     reserved, 0
//
// The bytes of a region lie in the file as they lie in the guest, so that the file can be mapped in
// place of memory. Pages of zeros need not be stored: a sparse snapshot leaves holes (lseek(2),
// SEEK_HOLE), which still read as zeros after a tool that does not know of them has copied the
// file. The checksum covers what decides where bytes go, not the bytes themselves: reading all of
// those would defeat the purpose of a mapped restore. The header is written last: a file whose save
// was interrupted is not a snapshot.

#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace {

/// Called on the thread that saves or restores, every few MiB and at the end, with the bytes of
/// guest memory done so far and in total.
using SnapshotProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

/// How to save; an aggregate for designated initialisers.
struct SaveOptions {
  /// Leaves out pages of zeros. Otherwise they are written, and the file has all its blocks.
  bool sparse = true;
  /// Called with the progress; may be empty.
  SnapshotProgress progress = {};
};

/// A region as a snapshot describes it.
struct SnapshotRegion {
  GuestAddress base;
  std::uint64_t size;    ///< bytes
  std::uint64_t offset;  ///< of its bytes in the file
  Protection protection;

  friend bool operator==(const SnapshotRegion&, const SnapshotRegion&) = default;
};

// Saving and restoring: vCPUs and devices are stopped by the caller, since what changes meanwhile
// may or may not be in the file. Files are regular files (a memfd is one) and are used from their
// beginning; the descriptor's position is neither used nor changed. May be called from any thread;
// calls on one file must not overlap.
//
// Of a region that is present in parts (MemoryRegion::blocks), what is not present is saved as zeros.
//
// Absent memory is not touched: neither saving nor restoring allocates a guest page only to find
// zeros in it, or needs a free page of a hugetlb pool. The kernel is asked what is present, through
// SEEK_DATA, /proc/self/pagemap and mincore(2). Where it can't tell, memory is read: private memory
// without /proc and shared anonymous memory while the machine has swap, and shared hugetlb memory
// without a descriptor always, where a pool without a free page is an `os` error.

/// Writes a snapshot over the whole file, and returns how many bytes of guest memory were stored.
///
/// Errors: `invalid_argument` for a file that is not a regular one, is open with O_APPEND, or is
/// memory of this guest or another one of this process, such as what map_snapshot() made of the
/// file; `access_denied` for a region that may not be read; `unsupported` for memory of a device
/// (MemorySource::device), which is the device's to save; `limit_exceeded` where the snapshot
/// would be larger than the largest file: after these the file is as it was. `out_of_bounds` for
/// memory whose own file was truncated; `os` (ENOSPC, EIO, ...): after these the file is not a
/// snapshot.
///
/// Does not flush to the disk: call fsync(2) where that matters. O(bytes that may not be 0).
[[nodiscard]] VMSPACE_EXPORT Result<std::uint64_t> save_snapshot(const GuestMemory& memory, int fd,
                                                                 const SaveOptions& options = {});

/// Reads and checks header and table, as every restore does first. Errors: `invalid_argument` for a
/// file that is not a regular one; `corrupt` for one that is not a snapshot, is truncated, fails
/// its checksum or contradicts itself; `unsupported` for a newer version; `os`. A few system calls.
[[nodiscard]] VMSPACE_EXPORT Result<std::vector<SnapshotRegion>> inspect_snapshot(int fd);

/// Copies the snapshot into memory whose regions have equal places and sizes, whatever backing it
/// was saved from. Everything that is not stored becomes 0; what is written is marked dirty. Of a
/// region with blocks (MemoryRegion::blocks) only those that are present are written.
///
/// Errors: those of inspect_snapshot(); `invalid_argument` for another layout; `bad_state` when the
/// snapshot has anything but zeros for a block that is not present; `access_denied` for a region that may not be read, or that may not be written and differs from the snapshot: after
/// these nothing has changed. `os` or `corrupt` for a file that can't be read or is truncated
/// meanwhile, `out_of_bounds` for memory whose own file was truncated, `os` with EFAULT where no
/// page could be allocated: after these part of the memory has changed.
///
/// O(bytes stored, and bytes of the guest that may not be 0).
[[nodiscard]] VMSPACE_EXPORT Result<void> restore_snapshot(const GuestMemory& memory, int fd,
                                                           const SnapshotProgress& progress = {});

/// Guest memory that is the file itself, mapped privately: ready at once, read in page by page as
/// it is used, and never written back. The file must not change as long as the memory lives. The
/// descriptor is duplicated. Errors: those of inspect_snapshot(), Backing::open and
/// MemoryRegion::map. A few system calls a region.
[[nodiscard]] VMSPACE_EXPORT Result<GuestMemory> map_snapshot(int fd);

}  // namespace vmspace
