// SPDX-License-Identifier: Apache-2.0
//
// A manager as text for a person.

#pragma once

#include <string>

#include "vmspace/base/export.hpp"

namespace vmspace {

class ResourceManager;

/// Who holds what, by kind, and how much is left, in four tables with headings: numbers that are held,
/// and guest physical addresses; numbers that there are and that are free, and addresses, by aperture.
///
///   kind        range        count  owner  remarks
///   pio         0x1000-101f     32  nic0
///   legacy_irq  5                1  nic0   shared
///
/// Ranges have inclusive ends, as their kind is written; counts and sizes are decimal, sizes of a
/// table in one unit, the largest of which each is a whole number. Names are escaped as in error
/// messages: a row stays on its line. A table without rows is left out.
///
/// O(n log n). Ends with a newline. Threads: any.
[[nodiscard]] VMSPACE_EXPORT std::string resource_table(const ResourceManager& manager);

/// memory_map() of the ledger's space, with the windows of bridges around what lies in them; parked
/// windows are not shown. O(n log n). Threads: any.
[[nodiscard]] VMSPACE_EXPORT std::string memory_map(const ResourceManager& manager);

}  // namespace vmspace
