// SPDX-License-Identifier: Apache-2.0

#include "plan.hpp"

#include "vmspace/base/literals.hpp"
#include "vmspace/fmt.hpp"

#include "steps.hpp"

namespace tiny_vm {

using namespace vmspace::literals;
using vmspace::Result;

Result<vmspace::AddressSpaceBase> plan_ram(const vmspace::AddressSpaceLayout& layout,
                                           std::uint64_t ram_size) {
  vmspace::AddressSpaceBase space(layout);
  for (const vmspace::RamPiece& piece : VMSPACE_TRY(layout.plan_ram({ram_size}))) {
    VMSPACE_TRY(space.insert_region({.name = "ram",
                                     .base = piece.base,
                                     .size = piece.size,
                                     .backing = {.source = vmspace::MemorySource::shmem}}));
    say("plan", "{} MiB of RAM from {:#x}", piece.size / 1_MiB, piece.base.value());
  }
  return space;
}

Result<vmspace::DeviceResources> attach(const vmspace::ResourceManager& manager,
                                        std::string_view name, std::uint64_t ports,
                                        std::uint64_t registers) {
  auto device = VMSPACE_TRY(
      manager.acquire({vmspace::PciDevice{}, vmspace::PioRange{.size = ports},
                       vmspace::MmioRange{.size = registers}, vmspace::LegacyIrq{.shared = true},
                       vmspace::MsixVectors{.count = 1}},
                      name));
  say("device", "{}", device);
  return device;
}

}  // namespace tiny_vm
