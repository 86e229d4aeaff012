// SPDX-License-Identifier: Apache-2.0
//
// The table that tells a PC's guest, at boot, which addresses are RAM and which it must not touch.
//
// Linux and firmware read it as `struct boot_e820_entry` (Linux boot protocol, "zero page") or get
// it from INT 15h, AX = E820h (ACPI specification, "System Address Map Interfaces"). What is in no
// entry is where a guest may put devices, so windows for MMIO and unused holes are left out, and
// what the machine itself uses is listed as reserved.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/layout.hpp"
#include "vmspace/base/export.hpp"

namespace vmspace {

/// The kinds of entry that vmspace makes; the values are those of the table.
enum class E820Type : std::uint32_t { ram = 1, reserved = 2 };

/// One entry of the table.
struct E820Entry {
  GuestAddress base;   ///< the first address
  std::uint64_t size;  ///< bytes
  E820Type type;       ///< what the guest may do with it

  friend bool operator==(const E820Entry&, const E820Entry&) = default;
};

/// The table of a space, sorted, without overlaps, neighbours of one type merged. RAM regions are
/// `ram`, but for those marked hotplug: a guest assumes that what is listed here stays, and learns
/// of the others from ACPI. `reserved` are: firmware regions, platform apertures, holes of the kind
/// reserved, and from 0x9'FC00 to 1 MiB what a PC keeps below it (the extended BIOS data area,
/// video memory, ROMs). Where both meet, it is reserved. Nothing is listed above the layout's
/// phys_max(), or above 2^52-1, the last address of any PC. O(n log n). Threads: any, while `space`
/// does not change.
[[nodiscard]] VMSPACE_EXPORT std::vector<E820Entry> e820(const AddressSpaceBase& space);

/// The table of a plan, before there are regions. The pieces lie in the layout, as plan_ram() of it
/// gives them: sizes and ends are not checked again.
[[nodiscard]] VMSPACE_EXPORT std::vector<E820Entry> e820(const AddressSpaceLayout& layout,
                                                         std::span<const RamPiece> plan);

}  // namespace vmspace
