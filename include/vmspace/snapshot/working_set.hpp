// SPDX-License-Identifier: Apache-2.0
//
// The pages that a guest touches first after it was restored. Between two runs from one snapshot they
// hardly differ, so that a LazyRestore which brings the pages of the last run before it is asked for
// them saves nearly all faults of the next one.
//
//   const WorkingSet set = VMSPACE_TRY(restore.working_set());  // once the guest has warmed up
//   VMSPACE_TRY(set.save(fd));
//
// A file of version 1, all integers little-endian:
//
//    0  "vmspWSET"
//    8  u32 version, u32 number of ranges
//   16  the id of the snapshot
//   32  u64 FNV-1a of the whole, this field taken as 0
//   40  the ranges: u64 base, u64 size, multiples of 4096, ascending, with gaps between them

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/snapshot/snapshot_id.hpp"

namespace vmspace {

/// A set of guest pages of 4096 bytes, and the snapshot that they belong to.
///
/// Invariant: the ranges consist of whole pages, ascend, and have gaps between them; there are at most
/// max_ranges of them.
///
/// Threads: const calls may run at the same time.
class VMSPACE_EXPORT WorkingSet {
 public:
  /// The most ranges that a set has, which bounds what a file can make of it: 16 MiB.
  static constexpr std::size_t max_ranges = std::size_t{1} << 20;

  /// No pages.
  WorkingSet() noexcept = default;

  /// These pages, given in any order; ranges that overlap or touch become one. Errors: `misaligned`
  /// unless bases and sizes are multiples of 4096; `zero_size`; `overflow` for a range that passes
  /// 2^64, and for all 2^64 bytes; `limit_exceeded` above max_ranges. O(n log n).
  [[nodiscard]] static Result<WorkingSet> make(SnapshotId snapshot, std::vector<GuestRange> ranges);

  /// Reads what save() has written, from where the descriptor stands: a file, a pipe or a stream socket,
  /// which is waited for, whether or not it blocks. No byte behind it is read. Errors: `corrupt` for
  /// anything that save() does not write, also when it ends too early; `unsupported` for a version that
  /// is not known; `os`. Memory grows with what was read, not with what the first bytes promise.
  [[nodiscard]] static Result<WorkingSet> load(int fd);
  /// Writes it to where the descriptor stands, waiting as load() does. Errors: `os`, after a part may have
  /// been written; EPIPE for a peer that is gone, for which a pipe raises SIGPIPE first unless the process
  /// ignores it, and a socket doesn't.
  [[nodiscard]] Result<void> save(int fd) const;

  /// The snapshot whose pages these are; without one when it has no id.
  [[nodiscard]] const SnapshotId& snapshot() const noexcept { return snapshot_; }
  /// The pages, as ranges: sorted, with gaps between them.
  [[nodiscard]] std::span<const GuestRange> ranges() const noexcept { return ranges_; }
  /// The bytes of all ranges together. O(n).
  [[nodiscard]] std::uint64_t total_size() const noexcept;
  /// The pages of both. Errors: `invalid_argument` for sets of different snapshots; `overflow` and
  /// `limit_exceeded` as of make(). O(n log n).
  [[nodiscard]] Result<WorkingSet> merged_with(const WorkingSet& other) const;

  friend bool operator==(const WorkingSet&, const WorkingSet&) = default;

 private:
  SnapshotId snapshot_;
  std::vector<GuestRange> ranges_;
};

}  // namespace vmspace
