// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space.hpp"

#include <cstdio>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example() {
  // README begin
  const auto layout = vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46});
  if (!layout) return vmspace::fail(layout.error());
  auto space = vmspace::AddressSpace::create(*layout);
  if (!space) return vmspace::fail(space.error());

  const auto plan = layout->plan_ram({6_GiB});  // around the MMIO hole: 3 GiB below, 3 GiB above
  if (!plan) return vmspace::fail(plan.error());
  for (const auto& piece : *plan) {
    const auto ok = space->insert_region({.name = "ram",
                                          .base = piece.base,
                                          .size = piece.size,
                                          .backing = {.source = vmspace::MemorySource::shmem}});
    if (!ok) return vmspace::fail(ok.error());
  }
  const auto region = space->find_region(vmspace::GuestAddress{5_GiB});  // stays, if unplugged too
  if (region != nullptr) std::printf("%s\n", region->name().c_str());    // ram
  // README end
  return {};
}

}  // namespace

int main() {
  const auto ok = example();
  if (!ok) std::fprintf(stderr, "%s\n", ok.error().message().c_str());
  return ok ? 0 : 1;
}
