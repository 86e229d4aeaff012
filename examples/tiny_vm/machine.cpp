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

namespace {

// Guests add and remove RAM in blocks of this size.
constexpr std::uint64_t plug_alignment = 128_MiB;

}  // namespace

Machine::Machine(vmspace::AddressSpace space)
    : space_(std::move(space)), memory_(need(GuestMemory::map(*space_.snapshot()))) {}

void Machine::show_to(int vm_descriptor) {
  slots_ = need(vmspace::KvmMemslots::create(vm_descriptor));
  for (const auto& region : memory_.regions())
    need(slots_->set(*region));
}

GuestAddress Machine::plug(const vmspace::RegionOptions& options) {
  const auto placed = need(
      space_.place_region(options, {.size = options.size, .align = plug_alignment}, "ram_high"));
  const auto region = need(MemoryRegion::map(placed));
  memory_ = need(memory_.with_region(region));
  if (slots_) need(slots_->set(*region));
  return region->base();
}

void Machine::unplug(GuestAddress base) {
  const auto region = memory_.find_region(base);
  check(region != nullptr && region->base() == base, "a region begins at this address");
  if (slots_) need(slots_->clear(region->guest_range()));
  memory_ = need(memory_.without_region(base));
  need(space_.remove_region(base));
}  // here `region`, the last holder, unmaps it

}  // namespace tiny_vm
