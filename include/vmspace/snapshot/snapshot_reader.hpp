// SPDX-License-Identifier: Apache-2.0
//
// A snapshot read page by page: a single one, or a chain of differential ones down to a full one.
//
//   auto reader = VMSPACE_TRY(SnapshotReader::open(changes, {{base}}));
//   VMSPACE_TRY(reader.read(address, pages));

#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/snapshot/page_source.hpp"
#include "vmspace/snapshot/snapshot_id.hpp"
#include "vmspace/snapshot/snapshot_region.hpp"

namespace vmspace {

struct SaveOptions;
struct SavedSnapshot;

/// The guest memory that a snapshot holds.
///
/// A copy shares the open files. Any thread may call anything at any time. The files must not change
/// as long as it is used: what is read then is an error or arbitrary, never out of bounds.
class VMSPACE_EXPORT SnapshotReader : public PageSource {
 public:
  /// Opens a snapshot in a regular file, of any version. A differential one needs those that it is
  /// based on: they are found among `parents` by their ids, in any order; other snapshots are not
  /// used. The descriptors are duplicated, and their positions neither used nor changed.
  ///
  /// A parent may have other regions, where memory came, went or changed its size in between. What is
  /// not among the changes is as in the parent at the same address; zeros where that has no memory.
  ///
  /// Errors: `invalid_argument` for a file that is not a regular one; `not_found` naming the id of a
  /// parent that is not among `parents`; `corrupt` for a file that is not a snapshot, is truncated,
  /// fails its checksum, or contradicts itself, and for a chain that leads back to itself;
  /// `unsupported` for a newer version; `os`.
  ///
  /// O(regions + extents of the differential snapshots) memory, however large the guest, and that time
  /// once for each snapshot of the chain.
  [[nodiscard]] static Result<SnapshotReader> open(int fd, std::span<const int> parents = {});

  SnapshotReader(const SnapshotReader&) = default;
  SnapshotReader& operator=(const SnapshotReader&) = default;
  ~SnapshotReader() override = default;

  /// What the snapshot is called; no id for one of version 1.
  [[nodiscard]] const SnapshotId& id() const noexcept;
  /// The snapshot whose changes it holds; no id for a full one.
  [[nodiscard]] const SnapshotId& parent() const noexcept;
  /// The regions in address order, as the snapshot itself describes them. Valid as long as a copy of
  /// the reader is.
  [[nodiscard]] std::span<const SnapshotRegion> regions() const noexcept;
  /// Whether every page is checked against a checksum when it is read.
  [[nodiscard]] bool has_checksums() const noexcept;

  /// Fills `to` with the guest's memory from `at` on. Errors: `misaligned` for what is not pages of
  /// 4096 bytes; `out_of_bounds` for what is not within one region; `corrupt` for a file that was
  /// truncated or does not match its checksums, and then `to` may have been written; `os`. O(bytes +
  /// log(extents)).
  [[nodiscard]] Result<void> read(GuestAddress at, std::span<std::byte> to) override;

  /// The first part of `range`, within one region, that may hold anything but zeros, or the
  /// beginning of that part where it is large; empty, at its end, when there is none. Of an image
  /// without checksums it is what the file system knows (SEEK_DATA). Errors: those of read(). A few
  /// system calls for each extent that is passed.
  [[nodiscard]] Result<GuestRange> next_data(GuestRange range) override;

 private:
  friend Result<SavedSnapshot> merge_snapshots(SnapshotReader snapshot, int fd,
                                               const SaveOptions& options);
  struct State;
  explicit SnapshotReader(std::shared_ptr<const State> state) noexcept;

  std::shared_ptr<const State> state_;
};

}  // namespace vmspace
