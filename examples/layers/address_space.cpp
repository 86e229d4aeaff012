// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space.hpp"

#include <cstdio>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example() {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46}));
  const auto space = VMSPACE_TRY(vmspace::AddressSpace::create(layout));
  // README begin
  const auto bar = VMSPACE_TRY(
      space.place_region({.name = "nic0 BAR0", .type = vmspace::RegionType::device_memory},
                         {.size = 64_KiB, .align = 64_KiB}, "mmio_low"));
  const auto before = space.snapshot();

  // Several changes, published at once or not at all.
  VMSPACE_TRY(space.transact([&](vmspace::AddressSpaceBase& draft) -> vmspace::Result<void> {
    VMSPACE_TRY(draft.move_region(bar->base(), vmspace::GuestAddress{0xd000'0000}));
    VMSPACE_TRY(draft.insert_region({.name = "ram", .size = 1_GiB}));
    return {};
  }));

  for (const auto& region : diff(*before, *space.snapshot()).added) {
    std::printf("%s\n", region->name().c_str());  // ram, nic0 BAR0
  }
  std::printf("%s", memory_map(*space.snapshot()).c_str());
  // README end
  return {};
}

}  // namespace

int main() {
  const auto done = example();
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
