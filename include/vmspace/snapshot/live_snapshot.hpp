// SPDX-License-Identifier: Apache-2.0
//
// A snapshot of guest memory that is written while the guest runs on.
//
//   auto writer = VMSPACE_TRY(SnapshotWriter::create(fd, memory));
//   auto snapshot = VMSPACE_TRY(LiveSnapshot::prepare(memory, std::move(writer)));
//   {
//     const auto paused = VMSPACE_TRY(gate.pause_vcpus());  // and the devices
//     VMSPACE_TRY(snapshot.take());                         // the instant
//     VMSPACE_TRY(save_vcpus_and_devices());
//   }
//   // The guest runs. What it writes to first is saved first:
//   //
//   //   guest ---- write fault ----> page copied ----> buffer ----.
//   //                                then unprotected             +---> SnapshotWriter
//   //   the rest, in order --------> page copied -----------------'
//   //                                then unprotected
//   const SnapshotId id = VMSPACE_TRY(snapshot.wait());
//
// The pages that are there are write-protected at the instant (userfaultfd(2)), and each is copied
// before it may be written again. Pages that are absent were zeros, whatever is written to them later:
// they need no protection, and take no time.
//
// Whose writes are caught: those of all threads of this process and of the kernel on their behalf, the
// guest's under KVM among them. Writes that do not go through the page tables of this process are
// not: devices that use DMA, other processes that have the memory too, other mappings of it. They have
// to be stopped until wait() has returned, and are refused where this library can tell: see prepare().

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/snapshot_id.hpp"
#include "vmspace/snapshot/snapshot_writer.hpp"

namespace vmspace {

/// How a live snapshot is taken; an aggregate for designated initialisers.
struct LiveSnapshotOptions {
  /// Bytes for pages that the guest wrote to and that the disk has not taken yet; no more are taken
  /// than the memory has, and at least one page of each size is made to fit. When they are full,
  /// writers wait for the disk.
  std::uint64_t buffer = std::uint64_t{16} << 20;
  /// Says that no other process (vhost-user back-ends, children) writes to shared memory of this guest
  /// until wait() has returned. Only the VMM can know that.
  bool peers_stopped = false;
};

/// What a live snapshot has done so far.
struct LiveSnapshotStatistics {
  std::chrono::nanoseconds stopped{};     ///< how long take() took
  std::uint64_t protected_bytes = 0;      ///< that had to be saved at the instant
  std::uint64_t faults = 0;               ///< writes that had to wait
  std::uint64_t saved_by_fault = 0;       ///< bytes, because somebody wrote to them
  std::uint64_t saved_by_discard = 0;     ///< bytes, because they were about to be discarded
  std::uint64_t saved_in_background = 0;  ///< bytes, in their turn
  std::chrono::nanoseconds
      longest_wait{};  ///< of a fault, from when it was read until it was resolved

  friend bool operator==(const LiveSnapshotStatistics&, const LiveSnapshotStatistics&) = default;
};

/// A snapshot in the making: prepare(), take() while everything is stopped, wait().
///
/// It holds the guest memory, and the page faults of all of its regions: LazyRestore, DirtyScan and
/// another LiveSnapshot are `bad_state` meanwhile, as is pinning the memory for DMA. Discarding
/// (MemoryMapping::discard, unplugged blocks) works: pages that are not saved yet are saved first, so
/// that it waits for the disk where the buffer is full. Pages must not be discarded, remapped or
/// truncated in other ways, and regions not be resized, which maps them a second time. Blocks that are
/// plugged after prepare() are not in the snapshot. Transparent huge pages that are written to before
/// they are saved are split.
///
/// Two threads of its own resolve the faults and write; all signals but SIGBUS are blocked on both.
/// Neither takes locks that callers of this library hold while they touch guest memory, so that any
/// thread may write to it at any time, also between take() and wait(). What takes the file's bytes must
/// not need the guest to make progress, as a network disk does that the guest itself serves.
///
/// Threads: one at a time, but for statistics() and is_done(), which are safe from any thread. Moved
/// from, it can only be assigned to or destroyed.
class VMSPACE_EXPORT LiveSnapshot {
 public:
  /// Makes ready whatever can be before the guest is stopped; nothing is protected yet. `writer` is of
  /// the layout of `memory`.
  ///
  /// Errors: `bad_state` for memory whose page faults another handles, whom the error names, for
  /// memory that is pinned for DMA, and for shared memory unless `peers_stopped`; `unsupported` for
  /// private regular files and other memory that userfaultfd can't write-protect, and on kernels that
  /// lack what is needed, which the error names: write-protection (Linux 5.7), of shared and hugetlb
  /// memory 5.19; `access_denied` where this process may not use userfaultfd; `overlap`, naming both,
  /// for regions that are the same part of a file, since writes by one address are not seen by the
  /// other; `os`. Allocates the buffer, and two bits a page. Two threads, a few system calls a region.
  [[nodiscard]] static Result<LiveSnapshot> prepare(const GuestMemory& memory,
                                                    SnapshotWriter writer,
                                                    const LiveSnapshotOptions& options = {});

  /// The instant: what the memory holds now is what the snapshot will have. The caller has stopped all
  /// who write to it (vCPUs, devices, its own threads; I/O that the kernel has not finished), and may
  /// let them go on as soon as this has returned.
  ///
  /// Errors: `bad_state` if it was called before; those of the scan for present pages, as for
  /// save_snapshot(); `os`. After an error nothing is protected, and the snapshot has failed. Linear in
  /// the memory that is present, about 15 ms a GiB of small pages and less than 1 of huge ones;
  /// independent of the target.
  [[nodiscard]] Result<void> take();
  /// Takes a differential snapshot, for a writer with a parent: only these ranges, all pages that
  /// were written since the parent, are protected and saved. The ranges are whole pages of 4096
  /// bytes, in ascending order, within the memory; of hugetlb memory whole huge pages are saved.
  /// Blocks that are not present are saved as zeros, whether or not a range names them. Errors
  /// also: `invalid_argument` for other ranges, and for a writer without a parent; the snapshot can
  /// still be taken then.
  [[nodiscard]] Result<void> take(std::span<const GuestRange> changed);

  /// Waits until all is written, completes the snapshot and gives its id. Afterwards the memory is as
  /// it was before prepare(), and may be claimed by others.
  ///
  /// Errors: `bad_state` before take(), and when it was called before; what ended the snapshot, if
  /// take() did not succeed; what the writer has reported, such as `os` with ENOSPC; `fault` for
  /// memory whose file was truncated; `os`. As soon as an error occurs no page is protected any
  /// more and the guest runs on as if nothing had happened; the file is not a snapshot.
  [[nodiscard]] Result<SnapshotId> wait();
  /// Whether wait() would return at once.
  [[nodiscard]] bool is_done() const noexcept;

  /// What it has done so far.
  [[nodiscard]] LiveSnapshotStatistics statistics() const noexcept;

  /// Moves leave a snapshot that may only be assigned to or destroyed; what is running runs on.
  LiveSnapshot(LiveSnapshot&&) noexcept;
  /// Gives up the one it was.
  LiveSnapshot& operator=(LiveSnapshot&&) noexcept;
  /// Gives up a snapshot whose pages are not all saved: nothing is protected any more, the guest runs on,
  /// and the file is not a snapshot. Then waits until the writer has written what it has begun: 2 MiB,
  /// or one page where that is larger; or, once all pages are saved, the rest of the snapshot. A pipe or
  /// socket that nobody reads holds it up for as long as its other end is open: close that first, or
  /// call shutdown(2) for a socket.
  ~LiveSnapshot();

 private:
  struct State;
  explicit LiveSnapshot(std::unique_ptr<State> state) noexcept;

  std::unique_ptr<State> state_;
};

}  // namespace vmspace
