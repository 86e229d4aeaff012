// SPDX-License-Identifier: Apache-2.0

#include <iostream>

#include "vmspace/boot.hpp"
#include "vmspace/exit_on_error.hpp"
#include "vmspace/memory.hpp"
#include "vmspace/ostream.hpp"

using namespace vmspace::literals;

namespace {

// README begin
vmspace::Result<vmspace::AddressSpace> lay_out_ram(std::uint64_t size) {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46}));
  const auto space = VMSPACE_TRY(vmspace::AddressSpace::create(layout));
  for (const vmspace::RamPiece& piece : VMSPACE_TRY(layout.plan_ram({size}))) {
    VMSPACE_TRY(space.insert_region({.name = "ram",
                                     .base = piece.base,
                                     .size = piece.size,
                                     .backing = {.source = vmspace::MemorySource::shmem}}));
  }
  return space;
}

vmspace::Result<void> example() {
  const auto space = VMSPACE_TRY(lay_out_ram(6_GiB));
  const auto memory = VMSPACE_TRY(vmspace::GuestMemory::map(*space.snapshot()));

  // What the guest is told, from the same record: by firmware, or in the zero page of Linux.
  for (const vmspace::E820Entry& entry : e820(*space.snapshot()))
    std::cout << entry << '\n';

  // Nothing is at 3 GiB: no access runs into the hole, not by a byte.
  const auto across = memory.write(vmspace::GuestAddress{3_GiB - 4}, std::uint64_t{1});
  if (!across) std::cout << across.error().message() << '\n';
  return {};
}
// README end

}  // namespace

int main() {
  vmspace::value_or_exit(example());
}
