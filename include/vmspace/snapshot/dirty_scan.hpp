// SPDX-License-Identifier: Apache-2.0
//
// Which guest memory was written since the last look, by anybody in this process: the guest, devices
// that run here, and the kernel on their behalf. The host's page tables tell (userfaultfd's
// write-protection, which the kernel resolves by itself, and PAGEMAP_SCAN; Linux 6.7), so neither KVM's
// dirty log nor a DirtyBitmap is needed, and nobody has to mark anything.
//
//   auto scan = VMSPACE_TRY(vmspace::DirtyScan::start(memory));  // then send all of the memory
//   for (const GuestRange& range : VMSPACE_TRY(harvest_dirty(scan))) ...  // then what changed
//
// What is found, and what it costs, depends on the kind of page:
//
//   kind                     unit                 first write after a look
//   anonymous                4 KiB                a fault that the kernel resolves
//   anonymous, huge (THP)    4 KiB                the huge page is split, and stays split
//   memfd, shared            4 KiB                a fault
//   memfd, huge (THP)        2 MiB                a fault; the page stays huge
//   hugetlb                  its page size        a fault
//   file                     4 KiB                a fault
//
// Memory that a LazyRestore is bringing may be watched as well. What the restore puts there does not
// count as written, and when it ends the scan goes on. Until the scan ends, too, pages that are zeros
// and were never touched come by a page fault that this process answers, on a thread of the scan: about
// 5 us for the first access to each.
//
// What is not found: writes through other mappings of the memory, by other processes that share it
// (vhost-user devices), and DMA. Their own logs tell (VhostUserLog), or nobody does.
//
// Source: admin-guide/mm/userfaultfd and admin-guide/mm/pagemap in the kernel's documentation.

#pragma once

#include <memory>
#include <vector>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace {

/// Watches who writes to the regions of a GuestMemory, from start() until it is destroyed.
///
/// Invariant: a page that was written in this process since it was last reported (or since start())
/// is reported by the next harvest() that begins after the write. A page may be reported although it
/// has not changed: shared pages that were only read for the first time, what was discarded, what a
/// restore was bringing just when start() ran, and what it has lost. Blocks that were unplugged count as
/// discarded, though they are memory no more. What a harvest that fails has found already, the next one
/// reports.
///
/// It owns the memory's page faults: a LiveSnapshot of the same memory is `bad_state` meanwhile, and the
/// other way round; so is a LazyRestore that starts later, while one that runs already shares them. The
/// regions are kept mapped. Forked children are not watched. Regions that are plugged later are not
/// either: start another one. One that is moved in the guest (VmMemory::relocate) is still watched, and
/// reported at the addresses that it had at start(). Resizing one (MemoryRegion::with_size) is
/// `bad_state` meanwhile.
///
/// Threads: harvest() may be called from any thread, one after the other; moving and destroying
/// exclude it. Everybody may use the memory, and discard it, at any time.
class VMSPACE_EXPORT DirtyScan {
 public:
  /// Begins to watch all regions that this process may write. Copy all of the memory after it returns.
  ///
  /// Errors: `unsupported` before Linux 6.7 and without /proc, naming what is missing, and for memory
  /// that something else has mapped, such as a device's; `access_denied` where this process may not use
  /// userfaultfd; `bad_state` while another owns the page faults of a region, whom the error names: a
  /// LazyRestore only where it restores another mapping of the same memory, or a part of it; `overlap`,
  /// naming both, for regions that are the same part of a file, since writes by one address are not
  /// seen by the other; `os`. Nothing is watched then. Linear in what is present: about 15 to 20 ms a GiB of small pages, 1 of
  /// huge ones. For shared memory that is not hugetlb the kernel makes page tables for all of a
  /// region, which take 1/512 of its size.
  [[nodiscard]] static Result<DirtyScan> start(const GuestMemory& memory);

  /// Moves leave a scan that may only be assigned to or destroyed.
  DirtyScan(DirtyScan&& other) noexcept;
  /// As moving; what this scan was watching is let go first.
  DirtyScan& operator=(DirtyScan&& other) noexcept;
  /// Stops watching. A restore of the memory that still runs goes on. Linear in what is present.
  ~DirtyScan();

  /// The ranges written since the last harvest (or start), in address order and coalesced across
  /// adjacent regions. Read the data after this returns: what is written from then on is reported by
  /// the next one. Errors: `bad_state` for one that was moved from, and where part of the memory was
  /// mapped anew by others; `os`. Nothing is lost then. Up to 1 ms a GiB of small pages that were
  /// not written (8 for private mappings of files), and 20 more where all were; a few system calls for
  /// every 256 ranges.
  [[nodiscard]] Result<std::vector<GuestRange>> harvest();

 private:
  class State;
  explicit DirtyScan(std::unique_ptr<State> state) noexcept;

  std::unique_ptr<State> state_;
};

/// DirtyScan::harvest(), by the name that dirty bitmaps are harvested by: for code that takes either.
[[nodiscard]] inline Result<std::vector<GuestRange>> harvest_dirty(DirtyScan& scan) {
  return scan.harvest();
}

}  // namespace vmspace
