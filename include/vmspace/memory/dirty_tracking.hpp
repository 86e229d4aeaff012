// SPDX-License-Identifier: Apache-2.0
//
// Which guest memory was written since the last look, over all the regions of a GuestMemory: for
// live migration and incremental snapshots. What this process writes is tracked here, region by
// region, in a DirtyBitmap; logs of others (KVM, vhost) are merged into it.
//
//   VMSPACE_TRY(enable_dirty_tracking(memory));  // then send all of the memory, and after that:
//   for (const KvmDirtyLog& log : logs)
//     VMSPACE_TRY(merge_dirty_log(memory, log.base, log.bits, log.unit));
//   for (const GuestRange& range : VMSPACE_TRY(harvest_dirty(memory))) ...  // send again
//
// Tracking belongs to the regions, which several maps may share, and either all of a map's regions
// track or none do: a region that is put together with one that tracks begins to track as well, and
// all that it holds counts as written then. DirtyBitmap says what is promised. Any thread may call
// any of these at any time.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace {

/// Starts tracking in every region, or in none and returns an error. Copy all memory after it
/// returns. Errors: those of DirtyBitmap::enable. Allocates one bit a page the first time; one
/// system call a region.
[[nodiscard]] VMSPACE_EXPORT Result<void> enable_dirty_tracking(const GuestMemory& memory);

/// Stops tracking in every region, also for other maps that hold the regions; what was marked is
/// forgotten. O(regions).
VMSPACE_EXPORT void disable_dirty_tracking(const GuestMemory& memory) noexcept;

/// The ranges written since the last harvest, in address order and coalesced across adjacent
/// regions; clears them. Read the data after this returns. Errors: `bad_state` for a region that is
/// not tracked, because its ranges would be missing; `os`. Nothing is lost then. O(pages / 64 +
/// ranges); one system call, or none when nothing was written. Scattered single pages cost most: about
/// 14 ns for each 64 pages with any of them, of which 6 are the atomic exchange, since writers may run,
/// and 7 its ranges; a run of 16 costs no more than a single page.
[[nodiscard]] VMSPACE_EXPORT Result<std::vector<GuestRange>> harvest_dirty(
    const GuestMemory& memory);

/// Marks what a foreign bitmap says of the memory from `base` on, all of it in one region; each bit
/// stands for `unit` bytes (for KVM the host's page size, for vhost 4096). For KVM, pass on what
/// KvmMemslots::fetch_dirty_log() gives. Errors: `not_found` unless `base` is in a region, whose
/// block there may be absent; `access_denied` unless the guest may write that; those of
/// DirtyBitmap::merge. Nothing is marked then.
[[nodiscard]] VMSPACE_EXPORT Result<void> merge_dirty_log(const GuestMemory& memory,
                                                          GuestAddress base,
                                                          std::span<const std::uint64_t> bits,
                                                          std::uint64_t unit);

}  // namespace vmspace
