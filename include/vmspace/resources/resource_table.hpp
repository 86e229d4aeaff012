// SPDX-License-Identifier: Apache-2.0
//
// Human-readable tables of a manager's state.

#pragma once

#include <string>

#include "vmspace/address_space/memory_map_svg.hpp"
#include "vmspace/base/export.hpp"

namespace vmspace {

class ResourceManager;

/// Four tables: the numbers that are held, the address ranges that are held, and the total and used
/// amounts of each kind of number and of each aperture. What is parked has no range, and is not used.
///
///   kind        range          count  owner  remarks
///   pio         0x1000-0x101f     32  nic0
///   legacy_irq  5                  1  nic0   shared
///
/// Ranges are inclusive and written as usual for their kind. Counts and sizes are decimal. The
/// sizes of address ranges are exact and share the largest unit that keeps every one of them whole;
/// those of apertures have a unit each and are rounded down to two decimals. A region's name is
/// shown where it is not its owner's. Names are escaped as in error messages, so every row is one
/// line. Empty tables are omitted.
///
/// Each table is consistent in itself, but not with the others while other threads change the
/// manager. O(n log n). Ends with a newline. Threads: any.
[[nodiscard]] VMSPACE_EXPORT std::string resource_table(const ResourceManager& manager);

/// The memory_map() of the ledger's address space, with bridge windows drawn around their contents.
/// Parked windows are not shown. O(n log n). Threads: any.
[[nodiscard]] VMSPACE_EXPORT std::string memory_map(const ResourceManager& manager);

/// The memory_map_svg() of the ledger's address space, with bridge windows drawn around their contents
/// beside the device ranges of the options. Parked windows are not shown. Costs what that does.
/// Threads: any.
[[nodiscard]] VMSPACE_EXPORT std::string memory_map_svg(const ResourceManager& manager,
                                                        const MemoryMapSvgOptions& options = {});

}  // namespace vmspace
