// SPDX-License-Identifier: Apache-2.0
#include <iostream>

#include "vmspace/exit_on_error.hpp"
#include "vmspace/vmspace.hpp"

using namespace vmspace::literals;
using vmspace::GuestAddress, vmspace::MemorySource, vmspace::RegionType;

static vmspace::Result<void> set_up(const char* firmware, const char* kernel) {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46}));
  const auto space = VMSPACE_TRY(vmspace::AddressSpace::create(layout));
  for (const auto& piece : VMSPACE_TRY(layout.plan_ram({4_GiB}))) {
    VMSPACE_TRY(space.insert_region({.name = "ram",
                                     .base = piece.base,
                                     .size = piece.size,
                                     .backing = {.source = MemorySource::shmem}}));
  }
  const auto rom = VMSPACE_TRY(space.insert_region({.name = "firmware",
                                                    .type = RegionType::firmware_memory,
                                                    .base = GuestAddress{4_GiB - 1_MiB},
                                                    .size = 1_MiB,
                                                    .backing = {.source = MemorySource::anon},
                                                    .protection = vmspace::Protection::read}));
  VMSPACE_TRY(
      space.place_region({.name = "BAR0", .type = RegionType::device_memory, .owner = "nic0"},
                         {.size = 16_KiB, .align = 16_KiB}, "mmio_low"));

  const auto memory = VMSPACE_TRY(vmspace::GuestMemory::map(*space.snapshot()));
  VMSPACE_TRY(load_file(firmware, memory, rom->base()));
  VMSPACE_TRY(load_file(kernel, memory, GuestAddress{1_MiB}));
  std::cout << memory_map(*space.snapshot());
  return {};
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  vmspace::value_or_exit(set_up(argv[1], argv[2]));
}
