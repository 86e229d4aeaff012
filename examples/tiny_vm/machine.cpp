// SPDX-License-Identifier: Apache-2.0

#include "machine.hpp"

#include <cstdint>
#include <utility>

#include "vmspace/base/literals.hpp"

namespace tiny_vm {

using namespace vmspace::literals;
using vmspace::DeviceResources;
using vmspace::GuestMemory;
using vmspace::MemoryRegion;
using vmspace::Result;

namespace {

// Guests add and remove RAM in blocks of this size.
constexpr std::uint64_t plug_alignment = 128_MiB;

}  // namespace

Machine::Machine(const vmspace::ResourceManager& manager, GuestMemory memory)
    : manager_(manager), memory_(std::move(memory)) {}

Result<Machine> Machine::create(const vmspace::ResourceManager& manager) {
  auto memory = VMSPACE_TRY(GuestMemory::map(*manager.ledger().snapshot()));
  return Machine(manager, std::move(memory));
}

Result<void> Machine::show_to(int vm_fd, const vmspace::RangePool& slot_numbers) {
  auto slots = VMSPACE_TRY(vmspace::KvmMemslots::create(vm_fd, slot_numbers));
  for (const auto& region : memory_.regions())
    VMSPACE_TRY(slots.set(*region));
  slots_ = std::move(slots);
  return {};
}

Result<DeviceResources> Machine::plug(const vmspace::RegionOptions& options) {
  const vmspace::MemoryRange ram{
      .region = options, .align = plug_alignment, .aperture = "ram_high"};
  auto dimm = VMSPACE_TRY(manager_.acquire({ram}, options.name));
  const auto region = VMSPACE_TRY(MemoryRegion::map(dimm.memory()));
  const auto with_region = VMSPACE_TRY(memory_.with_region(region));
  if (slots_) VMSPACE_TRY(slots_->set(*region));
  memory_ = with_region;
  return dimm;
}

Result<void> Machine::unplug(DeviceResources& dimm) {
  const auto& region = dimm.memory();
  if (slots_) VMSPACE_TRY(slots_->clear(region->guest_range()));
  memory_ = VMSPACE_TRY(memory_.without_region(region->base()));  // this unmaps it
  return dimm.release();
}

}  // namespace tiny_vm
