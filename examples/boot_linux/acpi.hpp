// SPDX-License-Identifier: Apache-2.0
//
// The two tables that lead a guest to an SRAT: RSDP and XSDT (ACPI specification 6.4, sections 5.2.5
// and 5.2.8).

#pragma once

#include <cstddef>
#include <span>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace boot_linux {

inline constexpr vmspace::GuestAddress rsdp_at{0xe'0000};

/// Writes the tables, and the SRAT behind them. Errors: `no_space` for an SRAT above 64 KiB.
vmspace::Result<void> load_acpi(const vmspace::GuestMemory& memory,
                                std::span<const std::byte> srat);

}  // namespace boot_linux
