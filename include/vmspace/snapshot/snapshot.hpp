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
//   16      8     size of the file: less means that it was cut off
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
// SEEK_HOLE), which read as zeros also after a tool that knows nothing of them has copied the file.
// The checksum covers what decides where bytes go, not the bytes themselves: to sum up those would
// cost the mapped restore its point. The header is written last: a file whose save was interrupted
// is no snapshot.

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

/// Called now and then, not more often than every few MiB and at the end, on the thread that saves
/// or restores: bytes of guest memory done, of all.
using SnapshotProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

/// How to save; an aggregate for designated initialisers.
struct SaveOptions {
  /// Leave out pages of zeros. Off, they are written as zeros, and the file has all its blocks.
  bool sparse = true;
  SnapshotProgress progress = {};
};

/// A region as the file describes it.
struct SnapshotRegion {
  GuestAddress base;
  std::uint64_t size;    ///< bytes
  std::uint64_t offset;  ///< of its bytes in the file
  Protection protection;

  friend bool operator==(const SnapshotRegion&, const SnapshotRegion&) = default;
};

/// Saving and restoring. The caller has stopped vCPUs and devices: what changes meanwhile may be in
/// the file or not. Files are regular files (a memfd is one), used from their beginning; the
/// descriptor's position does not matter and is not kept.
///
/// Memory that is not there is not touched: neither saving nor restoring makes a page of the guest
/// to find zeros in it, or needs a free one of a hugetlb pool. The kernel is asked what is there,
/// by SEEK_DATA, /proc/self/pagemap and mincore(2). Where it can't tell, memory is read: while the
/// machine has swap, private memory without /proc and shared anonymous memory; and always shared
/// hugetlb memory without a descriptor, where a pool without a free page is an `os` error.
class VMSPACE_EXPORT Snapshot {
 public:
  /// Writes a snapshot over the whole file; gives the number of bytes of guest memory that were
  /// stored. Errors: `invalid_argument` for what is not a regular file, is open with O_APPEND, or
  /// is memory of this guest or another one of this process, such as what map() made of the file;
  /// `access_denied` for a region that can't be read; `limit_exceeded` where the file would be
  /// larger than one can be: the file is as it was then. `out_of_bounds` for memory whose own file
  /// was cut off; `os` (ENOSPC, EIO, ...): the file may hold no snapshot any more, and never half
  /// of one. Not flushed to the disk: fsync(2) is the caller's. O(bytes that may not be 0).
  [[nodiscard]] static Result<std::uint64_t> save(const GuestMemory& memory, int fd,
                                                  const SaveOptions& options = {});

  /// Reads and checks header and table. Errors: `corrupt` for what is no snapshot, is cut off,
  /// fails its checksum or contradicts itself; `unsupported` for a newer version; `os`. A few
  /// system calls; what every restore does first.
  [[nodiscard]] static Result<std::vector<SnapshotRegion>> inspect(int fd);

  /// Copies the snapshot into memory whose regions have the same places and sizes, from whichever
  /// backing it was saved. Everything that is not stored becomes 0; what is written is marked
  /// dirty. Errors: those of inspect(); `invalid_argument` for another layout; `access_denied` when
  /// a region that may not be written differs from the snapshot: nothing was changed then. `os` or
  /// `corrupt` for a file that can't be read, or is cut off meanwhile, `out_of_bounds` for memory
  /// whose own file was cut off, `os` with EFAULT where there is no page to be had: part of the
  /// memory was changed. O(bytes stored, and bytes of the guest that may not be 0).
  [[nodiscard]] static Result<void> restore(const GuestMemory& memory, int fd,
                                            const SnapshotProgress& progress = {});

  /// Guest memory that is the file, mapped privately: ready at once, read in page by page when it
  /// is used, and never written back. The file has to stay as it is. The descriptor is duplicated.
  /// Errors: those of inspect(); those of mapping.
  [[nodiscard]] static Result<GuestMemory> map(int fd);
};

}  // namespace vmspace
