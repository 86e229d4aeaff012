// SPDX-License-Identifier: Apache-2.0
//
// The guest physical space as a table for people.

#pragma once

#include <span>
#include <string>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/export.hpp"

namespace vmspace {

/// A device range that is not a region of the space: registers, a BAR, a bridge window.
struct DeviceRange {
  std::string name;        ///< as the map shows it
  Range range;             ///< its addresses, both ends inclusive
  std::string owner = {};  ///< see RegionOptions::owner
  /// A bridge window. It is drawn around a region with the same range; other device ranges are
  /// drawn inside one.
  bool is_window = false;
};

/// Options of memory_map().
struct MemoryMapOptions {
  std::span<const DeviceRange> devices = {};  ///< in any order
  bool empty_apertures = true;                ///< also show empty apertures
};

/// A row for each aperture, hole, region and device range, in address order, below the headings:
///
///   range              name      kind         size (MiB)  owner  backing  host node  remarks
///   00000000-bfffffff  ram_low   ram window        3,072
///   00000000-3fffffff    ram     ram               1,024         shmem    0
///   40000000-7fffffff    dimm    ram               1,024         shmem    1          hotplug
///   c0000000-fbffffff  mmio_low  mmio window         960
///   c0000000-c0ffffff    BAR0    device               16  gpu
///   parked             BAR0      device                1  nic
///
/// Ranges are hexadecimal with inclusive ends. Nested entries are indented: a region in its
/// aperture or bridge window, registers in their region. Sizes are exact and share the largest unit
/// that keeps every one of them whole, so that they can be compared at a glance. Parked regions
/// come last. Owner, backing, host node and remarks are columns only where a row has something in
/// them. Names are escaped as in error messages, so every row is one line.
///
/// O(n log n). Ends with a newline. Threads: any, while `space` does not change.
[[nodiscard]] VMSPACE_EXPORT std::string memory_map(const AddressSpaceBase& space,
                                                    const MemoryMapOptions& options = {});

}  // namespace vmspace
