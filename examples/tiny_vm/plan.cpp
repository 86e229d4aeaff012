// SPDX-License-Identifier: Apache-2.0

#include "plan.hpp"

#include "vmspace/base/literals.hpp"
#include "vmspace/fmt.hpp"

#include "steps.hpp"

namespace tiny_vm {

using namespace vmspace::literals;
using vmspace::Result;

Result<vmspace::AddressSpace> plan_ram(const vmspace::AddressSpaceLayout& layout,
                                       std::uint64_t ram_size) {
  const auto space = VMSPACE_TRY(vmspace::AddressSpace::create(layout));
  for (const vmspace::RamPiece& piece : VMSPACE_TRY(layout.plan_ram({ram_size}))) {
    VMSPACE_TRY(space.insert_region({.name = "ram",
                                     .base = piece.base,
                                     .size = piece.size,
                                     .backing = {.source = vmspace::MemorySource::shmem}}));
    say("plan", "{} MiB of RAM from {:#x}", piece.size / 1_MiB, piece.base.value());
  }
  return space;
}

Result<void> plan_device(const vmspace::AddressSpace& space, const Device& device) {
  VMSPACE_TRY(space.insert_region({.name = device.name + " BAR",
                                   .type = vmspace::RegionType::device_memory,
                                   .base = vmspace::GuestAddress{device.bar.min()},
                                   .size = device.bar.size()}));
  say("device", "{}: PCI id {}, MSI vector {:#x}, I/O ports {}, BAR {}", device.name, device.pci_id,
      device.msi_vector, device.ports, device.bar);
  return {};
}

}  // namespace tiny_vm
