// SPDX-License-Identifier: Apache-2.0
//
// A snapshot written page by page, in any order: by whoever knows better than save_snapshot() when
// which page is to be read.
//
//   auto writer = VMSPACE_TRY(SnapshotWriter::create(fd, memory));
//   VMSPACE_TRY(writer.write(address, pages));  // what is not written reads as zeros
//   const SnapshotId id = VMSPACE_TRY(writer.finish());
//
// A full snapshot in a regular file is an image, which map_snapshot() can map. Changes since another
// snapshot, and whatever goes to a pipe or a socket, are records. FORMAT.md describes both.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/snapshot_id.hpp"
#include "vmspace/snapshot/snapshot_region.hpp"

namespace vmspace {

/// How a snapshot is written; an aggregate for designated initialisers.
struct SnapshotWriterOptions {
  /// Makes a differential snapshot: what is not written is as it was in the snapshot of this id, at
  /// the same address.
  std::optional<SnapshotId> parent = {};
  /// Stores a checksum of each page written, which is checked when the page is read: 8 bytes a page.
  bool checksums = false;
};

/// Writes one snapshot. Until finish() has returned, the file is not a snapshot.
///
/// After an error of the file (`os`), or of finish(), every call is `bad_state`; other errors change
/// nothing. One thread at a time. Moved from, it can only be assigned to or destroyed.
class VMSPACE_EXPORT SnapshotWriter {
 public:
  /// Begins a snapshot of memory of this layout in a regular file, whose contents are lost with the first
  /// write, or behind what was written to a pipe or a stream socket. The descriptor is duplicated until
  /// the writer is destroyed; the position of a regular file is neither used nor changed.
  ///
  /// Errors: `invalid_argument` for another kind of file, one that is open with O_APPEND or is
  /// memory of this process, for a parent without an id (version 1), and for a file that holds the
  /// parent, if it can be read; `access_denied` for a
  /// region that may not be read; `unsupported` for memory of a device; `limit_exceeded` where an
  /// image would be larger than the largest file: after these a file is as it was. `os`. A few
  /// system calls.
  [[nodiscard]] static Result<SnapshotWriter> create(int fd, const GuestMemory& memory,
                                                     const SnapshotWriterOptions& options = {});
  /// Begins a snapshot of these regions, which are sorted and do not overlap, as SnapshotReader's
  /// are; their offsets are not used. Errors: `invalid_argument` for other regions; those above.
  [[nodiscard]] static Result<SnapshotWriter> create(int fd,
                                                     std::span<const SnapshotRegion> regions,
                                                     const SnapshotWriterOptions& options = {});

  /// Moves leave a writer that may only be assigned to or destroyed.
  SnapshotWriter(SnapshotWriter&&) noexcept;
  /// As moving; what this writer had not finished is given up, as on destruction.
  SnapshotWriter& operator=(SnapshotWriter&&) noexcept;
  ~SnapshotWriter();

  /// Writes whole pages of 4096 bytes within one region, each at most once, in any order.
  ///
  /// Errors: `misaligned`; `out_of_bounds` for pages that are not all in one region; `overlap` where one
  /// was written before, which a file that can be mapped tells at once, and finish() tells of records;
  /// `bad_state`;
  /// `os`: also EPIPE, for which a pipe raises SIGPIPE first unless the process ignores it, and a
  /// socket doesn't. O(bytes); an image costs one system call, or more for checksums and above 2 GiB;
  /// records of less than 64 KiB are gathered.
  [[nodiscard]] Result<void> write(GuestAddress at, std::span<const std::byte> pages);

  /// Writes pages of zeros. A full snapshot need not be told of them, and takes no note: in an image it is
  /// `overlap` where one was written before, in a stream such a page stays as it was written. Errors: those
  /// of write(). O(1); in an image O(pages / 64).
  [[nodiscard]] Result<void> write_zeros(GuestRange range);

  /// Completes the snapshot and gives its id. The head of a file is written last. Does not flush to
  /// the disk: call fsync(2) where that matters. Errors: `overlap` for a page of records that was
  /// written twice; `bad_state`; `os`. O(records).
  [[nodiscard]] Result<SnapshotId> finish();

  /// The bytes of guest memory written so far; zeros that take no space do not count.
  [[nodiscard]] std::uint64_t stored() const noexcept;

 private:
  friend class LiveSnapshot;
  struct State;
  explicit SnapshotWriter(std::unique_ptr<State> state) noexcept;
  [[nodiscard]] bool has_parent() const noexcept;

  std::unique_ptr<State> state_;
};

}  // namespace vmspace
