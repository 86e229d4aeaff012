// SPDX-License-Identifier: Apache-2.0
//
// Memory for regions that are described: what GuestMemory::map and VmMemory make of new ones.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/memory_region.hpp"

namespace vmspace::detail {

/// Maps the described regions, then populates those that want it; appends them to `regions`, with
/// which they share no part of a backing. `options` are taken as GuestMemory::map takes them. Errors:
/// those of GuestMemory::remap for new regions; what was mapped is for the caller to let go.
[[nodiscard]] Result<void> map_descriptions(std::span<const AddressSpaceRegionPtr> descriptions,
                                            const MapOptions& options,
                                            std::vector<MemoryRegionPtr>& regions);

/// Whether `options.backing`, if given, has a part for each region that takes one, which no region in
/// `others` has. Errors: `out_of_bounds`; `overlap`.
[[nodiscard]] Result<void> check_parts(std::span<const AddressSpaceRegionPtr> descriptions,
                                       std::span<const MemoryRegionPtr> others,
                                       const MapOptions& options);

/// A region among `regions` that shares memory with these bytes of the backing, counted from its
/// offset(); null when none does.
[[nodiscard]] const MemoryRegion* find_alias(const Backing& backing, std::uint64_t offset,
                                             std::uint64_t size,
                                             std::span<const MemoryRegionPtr> regions);

}  // namespace vmspace::detail
