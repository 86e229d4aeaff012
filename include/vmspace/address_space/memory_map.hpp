// SPDX-License-Identifier: Apache-2.0
//
// The guest physical space as text for a person, in the manner of /proc/iomem.

#pragma once

#include <span>
#include <string>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/export.hpp"

namespace vmspace {

/// A range of a device that is not a region of the space: registers, a BAR.
struct DeviceRange {
  std::string name;
  Range range;
};

/// What a memory map shows besides the space itself.
struct MemoryMapOptions {
  std::span<const DeviceRange> devices = {};  ///< in any order
  bool empty_apertures = true;                ///< also apertures in which nothing lies
};

/// One line for each aperture, hole, region and device range, in address order: the range in
/// hexadecimal with both ends inclusive, and the name; the kind; the size; of a region, what it is
/// backed by, its host node and what is special about it. What lies inside something else is
/// indented below it:
///
///   0000000000-00bfffffff : ram_low  ram window    3 GiB
///     0000000000-003fffffff : ram    ram           1 GiB  shmem  node 0
///
/// Parked regions follow, with `parked` in place of the range.
///
/// O(n log n). Ends with a newline. Threads: any, while `space` does not change.
[[nodiscard]] VMSPACE_EXPORT std::string memory_map(const AddressSpaceBase& space,
                                                    const MemoryMapOptions& options = {});

}  // namespace vmspace
