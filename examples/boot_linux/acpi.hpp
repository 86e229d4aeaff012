// SPDX-License-Identifier: Apache-2.0
//
// The ACPI tables of a small machine, around an SRAT: RSDP and XSDT lead to them, the FADT says that
// the machine has no hardware of ACPI's own but a port that ends it, the MADT which interrupt controllers
// there are, and the DSDT where its serial port and its virtio-mmio device are (ACPI specification 6.5,
// chapter 5.2).

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace boot_linux {

inline constexpr vmspace::GuestAddress rsdp_at{0xe'0000};

/// A port of the machine; the guest that writes to it wants to be reset or switched off.
inline constexpr std::uint16_t power_port = 0x600;

/// A device that Linux finds by the DSDT, below 4 GiB.
struct MmioDevice {
  vmspace::GuestAddress base;
  std::uint32_t size;  ///< bytes
  std::uint32_t interrupt;
};

/// Writes the tables; `device` may be null. Errors: `no_space` for an SRAT above 64 KiB.
vmspace::Result<void> load_acpi(const vmspace::GuestMemory& memory, std::span<const std::byte> srat,
                                const MmioDevice* device);

}  // namespace boot_linux
