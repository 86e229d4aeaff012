// SPDX-License-Identifier: Apache-2.0
//
// Guest memory in another process: what a vhost-user back-end, a migration helper or a debugger must
// be told to map the same memory. The caller passes the descriptors over a Unix socket of its own
// (SCM_RIGHTS); here is what to send, and how to make a GuestMemory of what was received.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace {

/// One region as another process maps it: MAP_SHARED, as many bytes of `fd` as `range` has, from
/// `offset`.
struct RegionDescriptor {
  GuestRange range = {};     ///< where the guest has it
  int fd = -1;               ///< borrowed: stays the region's, or the receiver's
  std::uint64_t offset = 0;  ///< in the file, in bytes
  Protection protection = Protection::read_write;  ///< what the guest may do

  friend bool operator==(const RegionDescriptor&, const RegionDescriptor&) = default;
};

/// The regions of `memory`, sorted by address. The descriptors are valid for as long as it is.
/// Threads: any. The other process can do what they are open for: a memfd can be written, whatever
/// `protection` says of the guest.
///
/// Errors: `unsupported` for a region that can't be shared: anonymous memory, a private mapping, or
/// memory of a device; `bad_state` while the memory is restored lazily, or saved while it runs. O(n).
[[nodiscard]] VMSPACE_EXPORT Result<std::vector<RegionDescriptor>> describe_regions(
    const GuestMemory& memory);

/// Maps what another process described, trusting none of it. The descriptors are duplicated; the
/// caller closes its own. Errors, each naming the region: `access_denied` for memory that can lose
/// pages, unless that is accepted or guarded (see Unsealed); `invalid_argument` for unknown protection bits, and for an
/// `unsealed` that is not a named value; `limit_exceeded` above GuestMemory::max_regions; those of
/// Backing::open (a file shorter than described is `out_of_bounds`), AddressSpaceRegion::make,
/// MemoryRegion::map and GuestMemory::from_regions; nothing stays mapped then. A few system calls a
/// region.
[[nodiscard]] VMSPACE_EXPORT Result<GuestMemory> map_regions(
    std::span<const RegionDescriptor> regions, Unsealed unsealed = Unsealed::guard);

}  // namespace vmspace
