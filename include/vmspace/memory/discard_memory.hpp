// SPDX-License-Identifier: Apache-2.0
//
// Memory that a guest gives back: by a balloon, or by reporting free pages (virtio 1.2, section 5.5).
//
//   for (const GuestRange& range : reported) {
//     if (const auto done = discard_memory(memory, range); !done) refuse(done.error());
//   }

#pragma once

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace {

/// Gives the memory of a range back to the host. Where the guest touches it again, it is zeros; these count
/// as written, so that a copy of the memory loses the old contents as well. The range may cross from one
/// region into the next.
///
/// Pages are those of each region (MemoryMapping::page_size). A balloon's pages have 4096 bytes, so
/// that in memory of larger ones only neighbours that make up a whole page can be given back: collect
/// them first.
///
/// Errors, naming the region: `misaligned` unless the range is whole pages of each region; those of
/// every write access; those of MemoryMapping::discard, such as `bad_state` where a device has the
/// memory pinned for DMA. Nothing is given back when the range is not as it must be; after an error
/// in a later region, what lies below that is. An empty range gives back nothing. Any thread may
/// call it. O(pages given back).
[[nodiscard]] VMSPACE_EXPORT Result<void> discard_memory(const GuestMemory& memory,
                                                         GuestRange range);

}  // namespace vmspace
