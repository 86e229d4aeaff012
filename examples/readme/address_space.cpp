// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space.hpp"

#include <cstdio>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example() {
  // README begin
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46}));
  const auto space = VMSPACE_TRY(vmspace::AddressSpace::create(layout));

  // Around the MMIO hole: 3 GiB below, 3 GiB above.
  for (const auto& piece : VMSPACE_TRY(layout.plan_ram({6_GiB}))) {
    VMSPACE_TRY(space.insert_region({.name = "ram",
                                     .base = piece.base,
                                     .size = piece.size,
                                     .backing = {.source = vmspace::MemorySource::shmem}}));
  }
  // Where a device's registers fit; the region knows its address.
  const auto bar = VMSPACE_TRY(
      space.place_region({.name = "nic0 BAR0", .type = vmspace::RegionType::device_memory},
                         {.size = 16_KiB, .align = 16_KiB}, "mmio_low"));

  const auto region = space.find_region(bar->base());  // shared: stays, even if unplugged
  if (region != nullptr) std::printf("%s\n", region->name().c_str());  // nic0 BAR0
  // README end
  return {};
}

}  // namespace

int main() {
  const auto ok = example();
  if (!ok) std::fprintf(stderr, "%s\n", ok.error().message().c_str());
  return ok ? 0 : 1;
}
