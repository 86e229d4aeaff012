// SPDX-License-Identifier: Apache-2.0
//
// The machine on paper: what lies where in its guest physical space, before any of it exists.

#pragma once

#include <cstdint>

#include "vmspace/address_space.hpp"

#include "devices.hpp"

namespace tiny_vm {

/// An address space with `ram_size` bytes of RAM, each piece on a memfd, around the MMIO hole.
vmspace::Result<vmspace::AddressSpace> plan_ram(const vmspace::AddressSpaceLayout& layout,
                                                std::uint64_t ram_size);

/// Enters a device's registers. Nothing backs them: a device model would answer there.
vmspace::Result<void> plan_device(const vmspace::AddressSpace& space, const Device& device);

}  // namespace tiny_vm
