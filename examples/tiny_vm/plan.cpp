// SPDX-License-Identifier: Apache-2.0

#include "plan.hpp"

#include "vmspace/base/literals.hpp"
#include "vmspace/fmt.hpp"

#include "steps.hpp"

namespace tiny_vm {

using namespace vmspace::literals;

vmspace::AddressSpace plan_ram(const vmspace::AddressSpaceLayout& layout, std::uint64_t ram_size) {
  auto space = need(vmspace::AddressSpace::create(layout));
  const auto plan = need(layout.plan_ram({ram_size}));
  for (const vmspace::RamPiece& piece : plan) {
    need(space.insert_region({.name = "ram",
                              .base = piece.base,
                              .size = piece.size,
                              .backing = {.source = vmspace::MemorySource::shmem}}));
    say("plan", "{} MiB of RAM from {:#x}", piece.size / 1_MiB, piece.base.value());
  }
  return space;
}

void plan_device(vmspace::AddressSpace& space, const Device& device) {
  need(space.insert_region({.name = device.name + " BAR",
                            .type = vmspace::RegionType::device_memory,
                            .base = vmspace::GuestAddress{device.bar.min()},
                            .size = device.bar.size()}));
  say("device", "{}: PCI id {}, MSI vector {:#x}, I/O ports {}, BAR {}", device.name, device.pci_id,
      device.msi_vector, device.ports, device.bar);
}

}  // namespace tiny_vm
