// SPDX-License-Identifier: Apache-2.0
//
// Guest memory to a file, a pipe or a socket, and back.
//
//   const SavedSnapshot base = VMSPACE_TRY(save_snapshot(memory, full));
//   ...                                     // the guest runs
//   const std::vector<GuestRange> written = VMSPACE_TRY(harvest_dirty(memory));
//   VMSPACE_TRY(save_snapshot(memory, changes, {.changes = SnapshotChanges{base.id, written}}));
//
//   VMSPACE_TRY(restore_snapshot(memory, VMSPACE_TRY(SnapshotReader::open(changes, {{full}}))));

#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/snapshot_id.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/snapshot/snapshot_region.hpp"

namespace vmspace {

/// Called on the thread that saves or restores, every few MiB and at the end, with the bytes of
/// guest memory done so far and in total, absent blocks included. Not at all where there is nothing to do.
using SnapshotProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

/// What a differential snapshot is made of: pages that were written since another snapshot.
struct SnapshotChanges {
  /// The snapshot that the memory was saved to, or restored from, when tracking began.
  SnapshotId parent;
  /// In any order, as harvest_dirty() gives them; each counts as whole pages of 4096 bytes. Memory that
  /// has come to its place since, plugged or moved, counts as changed where it holds anything, or lies
  /// where other memory was in the parent. A VmDirtyLog reports all of it. A DirtyScan knows only the
  /// regions that there were at its start: add the rest to what it reports.
  std::span<const GuestRange> ranges;
};

/// How to save; an aggregate for designated initialisers.
struct SaveOptions {
  /// Leaves out pages of zeros; a differential snapshot notes that they are zeros. Otherwise they
  /// are written, and the file has all its blocks.
  bool sparse = true;
  /// Called with the progress; may be empty.
  SnapshotProgress progress = {};
  /// Saves only these pages, as a differential snapshot.
  std::optional<SnapshotChanges> changes = {};
  /// Stores a checksum of each page, which every read of the page checks.
  bool checksums = false;
};

/// What was saved.
struct SavedSnapshot {
  SnapshotId id;         ///< what the changes after it name as their parent
  std::uint64_t stored;  ///< bytes of guest memory that were written

  friend bool operator==(const SavedSnapshot&, const SavedSnapshot&) = default;
};

// Saving and restoring: vCPUs and devices are stopped by the caller, since what changes meanwhile
// may or may not be in the file. Regular files (a memfd is one) are used from their beginning; the
// descriptor's position is neither used nor changed. A pipe or a stream socket takes and gives one
// snapshot after what was written to it before, no byte more or less, and is waited for, whether or
// not it blocks. May be called from any thread; calls on one file must not overlap.
//
// Of a region that is present in parts (MemoryRegion::blocks), what is not present is saved as zeros; in
// a differential snapshot, too, whether or not the changes name it.
//
// Absent memory is not touched: neither saving nor restoring allocates a guest page only to find
// zeros in it, or needs a free page of a hugetlb pool. The kernel is asked what is present, through
// SEEK_DATA, /proc/self/pagemap and mincore(2). Where it can't tell, memory is read: private memory
// without /proc and shared anonymous memory while the machine has swap, and shared hugetlb memory
// without a descriptor always, where a pool without a free page is an `os` error.

/// Writes a snapshot over the whole file, or to a pipe or a stream socket.
///
/// Errors: `invalid_argument` for another kind of file, one that is open with O_APPEND, or is memory
/// of this guest or another one of this process, such as what map_snapshot() made of the file; for
/// changes since a snapshot without an id, and for the file of that snapshot; `out_of_bounds` for changes outside of the memory;
/// `access_denied` for a region that may not be read; `unsupported` for memory of a device
/// (MemorySource::device), which is the device's to save; `bad_state` for memory that is restored
/// lazily, or saved while it runs; `limit_exceeded` where the snapshot would
/// be larger than the largest file: after these the file is as it was. `out_of_bounds` for memory
/// whose own file was truncated, `fault` for a page of it that is gone; `os` (ENOSPC, EIO, EPIPE for
/// a peer that is gone, ...): after these the file is not a snapshot, and a reader at the other end
/// gets `corrupt` when the descriptor is closed. A pipe without a reader raises SIGPIPE, which the
/// process should ignore; a socket doesn't.
///
/// Does not flush to the disk: call fsync(2) where that matters. O(bytes that may not be 0), of the
/// changes alone where those are given.
[[nodiscard]] VMSPACE_EXPORT Result<SavedSnapshot> save_snapshot(const GuestMemory& memory, int fd,
                                                                 const SaveOptions& options = {});

/// Reads and checks header and table, as every restore does first. Errors: `invalid_argument` for a
/// file that is not a regular one; `corrupt` for one that is not a snapshot, is truncated, fails
/// its checksum or contradicts itself; `unsupported` for a newer version; `os`. A few system calls.
[[nodiscard]] VMSPACE_EXPORT Result<std::vector<SnapshotRegion>> inspect_snapshot(int fd);

/// Copies a snapshot, the changes of a whole chain included, into memory whose regions have equal
/// places and sizes, whatever backing it was saved from. Everything that is not stored becomes 0;
/// what is written is marked dirty. Of a region with blocks (MemoryRegion::blocks) only those that
/// are present are written.
///
/// Errors: `invalid_argument` for another layout; `bad_state` when the snapshot has anything but
/// zeros for a block that is not present; `access_denied` for a region that may not be read, or that
/// may not be written and differs from the snapshot: after these nothing has changed. `corrupt` for
/// contents that do not match their checksums, or a file that was truncated meanwhile; `os` for a
/// file that can't be read, with EFAULT where no page could be allocated; `out_of_bounds` for memory
/// whose own file was truncated, `fault` for a page of it that is gone: after these part of the
/// memory has changed.
///
/// O(bytes stored, and bytes of the guest that may not be 0).
[[nodiscard]] VMSPACE_EXPORT Result<void> restore_snapshot(const GuestMemory& memory,
                                                           SnapshotReader snapshot,
                                                           const SnapshotProgress& progress = {});

/// Restores a full snapshot from a regular file, or from a pipe or a stream socket, where it must
/// have been saved to one: an image has no order in which it could be read.
///
/// Errors: those of SnapshotReader::open() and restore_snapshot(). From a pipe or a socket also
/// `unsupported` for an image, `invalid_argument` for a differential snapshot, and `corrupt` when
/// the other end closes it early; each error but those for its head and another layout then leaves
/// part of the memory changed, and the descriptor somewhere within the snapshot.
[[nodiscard]] VMSPACE_EXPORT Result<void> restore_snapshot(const GuestMemory& memory, int fd,
                                                           const SnapshotProgress& progress = {});

/// Writes what a chain of snapshots amounts to as one full snapshot with an id of its own. The
/// options' `changes` must be empty. Errors: `invalid_argument` for a file that is one of the
/// chain's; those of SnapshotReader::read() and save_snapshot(). O(bytes stored).
[[nodiscard]] VMSPACE_EXPORT Result<SavedSnapshot> merge_snapshots(SnapshotReader snapshot, int fd,
                                                                   const SaveOptions& options = {});

/// Guest memory that is the file itself, mapped privately: ready at once, read in page by page as
/// it is used, and never written back. Contents are not checked against checksums. The file must not
/// change as long as the memory lives. The descriptor is duplicated. Errors: those of
/// inspect_snapshot(), Backing::open and MemoryRegion::map; `invalid_argument` for a file with
/// records, such as a differential snapshot: merge_snapshots() makes an image of it. A few system
/// calls a region.
[[nodiscard]] VMSPACE_EXPORT Result<GuestMemory> map_snapshot(int fd);

}  // namespace vmspace
