// SPDX-License-Identifier: Apache-2.0
//
// The machine on paper: what lies where in its guest physical space, and which device has what,
// before any of it exists.

#pragma once

#include <cstdint>
#include <string_view>

#include "vmspace/address_space.hpp"
#include "vmspace/resources.hpp"

namespace tiny_vm {

/// An address space with `ram_size` bytes of RAM, each piece on a memfd, around the MMIO hole.
vmspace::Result<vmspace::AddressSpaceBase> plan_ram(const vmspace::AddressSpaceLayout& layout,
                                                    std::uint64_t ram_size);

/// Gets a device its place on PCI, ports, registers, a line that it shares, and an MSI-X vector.
/// Nothing backs the registers: a device model would answer there.
vmspace::Result<vmspace::DeviceResources> attach(const vmspace::ResourceManager& manager,
                                                 std::string_view name, std::uint64_t ports,
                                                 std::uint64_t registers);

}  // namespace tiny_vm
