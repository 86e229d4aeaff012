// SPDX-License-Identifier: Apache-2.0
//
// The machine on paper: its address map and the resources of its devices, before any of them exist.

#pragma once

#include <cstdint>
#include <string_view>

#include "vmspace/address_space.hpp"
#include "vmspace/resources.hpp"

namespace tiny_vm {

/// An address space with `ram_size` bytes of RAM, each piece on a memfd, around the MMIO hole.
vmspace::Result<vmspace::AddressSpaceBase> plan_ram(const vmspace::AddressSpaceLayout& layout,
                                                    std::uint64_t ram_size);

/// Acquires a PCI device number, ports, registers, a shared interrupt line and an MSI-X vector for
/// a device. No memory backs the registers; a device model would handle accesses to them.
vmspace::Result<vmspace::DeviceResources> attach(const vmspace::ResourceManager& manager,
                                                 std::string_view name, std::uint64_t ports,
                                                 std::uint64_t registers);

}  // namespace tiny_vm
