// SPDX-License-Identifier: Apache-2.0
//
// Guest memory for another process: what a vhost-user backend, a migration helper or a debugger is
// told so that it can map the same memory. The descriptors travel over a Unix socket (SCM_RIGHTS),
// which is the caller's; here is what to send, and how to make a GuestMemory of what was received.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace {

/// One region as another process maps it: MAP_SHARED, `size` bytes of `descriptor` from `offset`.
struct RegionDescriptor {
  GuestAddress base = {};
  std::uint64_t size = 0;    ///< bytes
  int descriptor = -1;       ///< borrowed: stays the region's, or the receiver's
  std::uint64_t offset = 0;  ///< in the file, in bytes
  Protection protection = Protection::read_write;  ///< what the guest may do

  friend bool operator==(const RegionDescriptor&, const RegionDescriptor&) = default;
};

/// The regions of `memory`, sorted by address. The descriptors are valid for as long as it is. What
/// they are open for is what the other process can do: who has a memfd can write it, whatever
/// `protection` says of the guest.
///
/// Errors: `unsupported` for a region that no other process can share: anonymous, or mapped
/// privately.
[[nodiscard]] VMSPACE_EXPORT Result<std::vector<RegionDescriptor>> describe_regions(
    const GuestMemory& memory);

/// What to do with memory whose owner can still take pages out of it (Backing::can_lose_pages):
/// truncate a file that is not sealed against that, or punch huge pages out of any hugetlb file.
/// Whoever then touches what is gone gets SIGBUS, this process and not the owner.
///
/// Sealed are the memfds of small pages that this library makes and those of QEMU's
/// memory-backend-memfd. Unsealed are QEMU's memory-backend-file, in /dev/shm as in hugetlbfs, and
/// DPDK's files and memfds: who serves their guests needs `accept`, and trusts them not to do it.
enum class Unsealed : std::uint8_t {
  accept,  ///< map it, and take the risk
  refuse,  ///< an error
};

/// Maps what another process described. The descriptors are duplicated; the caller closes its own.
/// Everything is checked as if an enemy had sent it. Errors: `access_denied` for memory that can
/// lose pages, unless that is accepted; `invalid_argument` for unknown protection bits; those of
/// Backing::open (a file shorter than described is `out_of_bounds`), AddressSpaceRegion::make,
/// MemoryRegion::map and GuestMemory::from_regions; nothing stays mapped then. A few system calls a
/// region.
[[nodiscard]] VMSPACE_EXPORT Result<GuestMemory> map_regions(
    std::span<const RegionDescriptor> regions, Unsealed unsealed = Unsealed::refuse);

}  // namespace vmspace
