// SPDX-License-Identifier: Apache-2.0

#include "machine.hpp"

#include <cstdint>
#include <utility>

#include "vmspace/base/literals.hpp"

#include "steps.hpp"

namespace tiny_vm {

using namespace vmspace::literals;
using vmspace::GuestAddress;
using vmspace::GuestMemory;
using vmspace::MemoryRegion;
using vmspace::Result;

namespace {

// Guests add and remove RAM in blocks of this size.
constexpr std::uint64_t plug_alignment = 128_MiB;

}  // namespace

Machine::Machine(vmspace::AddressSpace space, GuestMemory memory)
    : space_(std::move(space)), memory_(std::move(memory)) {}

Result<Machine> Machine::create(vmspace::AddressSpace space) {
  auto memory = VMSPACE_TRY(GuestMemory::map(*space.snapshot()));
  return Machine(std::move(space), std::move(memory));
}

Result<void> Machine::show_to(int vm_fd) {
  auto slots = VMSPACE_TRY(vmspace::KvmMemslots::create(vm_fd));
  for (const auto& region : memory_.regions())
    VMSPACE_TRY(slots.set(*region));
  slots_ = std::move(slots);
  return {};
}

Result<void> Machine::map_and_show(const vmspace::AddressSpaceRegionPtr& description) {
  const auto region = VMSPACE_TRY(MemoryRegion::map(description));
  const auto with_region = VMSPACE_TRY(memory_.with_region(region));
  if (slots_) VMSPACE_TRY(slots_->set(*region));
  memory_ = with_region;
  return {};
}

Result<GuestAddress> Machine::plug(const vmspace::RegionOptions& options) {
  const auto placed = VMSPACE_TRY(
      space_.place_region(options, {.size = options.size, .align = plug_alignment}, "ram_high"));
  if (const auto ok = map_and_show(placed); !ok) {
    VMSPACE_TRY(space_.remove_region(placed->base()));
    return vmspace::fail(ok.error());
  }
  return placed->base();
}

Result<void> Machine::unplug(GuestAddress base) {
  const auto region = memory_.find_region(base);
  VMSPACE_TRY(
      expect(region != nullptr && region->base() == base, "a region begins at this address"));
  if (slots_) VMSPACE_TRY(slots_->clear(region->guest_range()));
  memory_ = VMSPACE_TRY(memory_.without_region(base));
  VMSPACE_TRY(space_.remove_region(base));
  return {};
}  // here `region`, the last holder, unmaps it

}  // namespace tiny_vm
