// SPDX-License-Identifier: Apache-2.0

#include "machine.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "activity.hpp"

namespace vmspace::soak {

Machine::Machine()
    : memory(must(VmMemory::create(must(AddressSpaceLayout::x86_64({.phys_bits = 40}))))),
      // The least that any KVM offers.
      slot_numbers(must(RangePool::create("memory slots", {Range::of(0, 508)}))),
      manager(must(ResourceManager::create(
          std::make_shared<VmMemory>(memory),
          {.kvm_slots = slot_numbers, .mac_addresses = Range::of(1, 255)}))),
      gate(std::make_shared<VcpuGate>(std::chrono::minutes(1))),
      recorder(std::make_shared<MemoryRecorder>()),
      vm(tiny_vm::Vm::create()) {
  if (vm) {
    must(memory.add_listener(
        std::make_shared<KvmMemslots>(must(KvmMemslots::create(vm->fd(), slot_numbers)))));
  }
  must(memory.add_listener(recorder));
  must(memory.set_gate(gate));
  for (const auto& [name, base] :
       {std::pair{"ram", ram}, std::pair{"queues", queues}, std::pair{"patches", patches},
        std::pair{"shared", shared}, std::pair{"handed", handed}}) {
    must(memory.plug({.name = name,
                      .base = base,
                      .size = region_size,
                      .backing = {.source = MemorySource::shmem}}));
  }
  still = only({ram, queues, patches});
}

GuestMemory Machine::only(std::initializer_list<GuestAddress> bases) const {
  std::vector<MemoryRegionPtr> regions;
  for (const GuestAddress base : bases)
    regions.push_back(memory.map()->memory.find_region(base));
  return must(GuestMemory::from_regions(std::move(regions)));
}

void Machine::check() const {
  must(manager.collect());
  must(manager.check_invariants());
  must(memory.collect());
  must(memory.check_invariants());
  must(slot_numbers.check_invariants());
  const auto map = memory.map();
  must(map->space.check_invariants());
  must(map->memory.check_invariants());
  must(recorder->check_equals(map->memory));
  recorder->forget_calls();
  require(must(memory.unsettled()).empty(), "listeners know of all changes");
  require(memory.retired().empty(), "no region is retired at rest");
}

Contents contents_of(const GuestMemory& memory) {
  Contents contents;
  for (const MemoryRegionPtr& region : memory.regions())
    contents.insert(contents.end(), region->host_base(), region->host_base() + region->size());
  return contents;
}

void require_contents(const GuestMemory& memory, const Contents& expected, const char* what) {
  const std::byte* at = expected.data();
  for (const MemoryRegionPtr& region : memory.regions()) {
    for (std::uint64_t offset = 0; offset < region->size(); offset += Machine::page) {
      require(std::memcmp(region->host_base() + offset, at, Machine::page) == 0,
              fmt::format("{}: the page at {:#x} holds what it should", what,
                          region->base().value() + offset));
      at += Machine::page;
    }
  }
}

GuestMemory fresh_copy(const GuestMemory& memory, MemorySource source) {
  std::vector<MemoryRegionPtr> regions;
  for (const MemoryRegionPtr& region : memory.regions()) {
    regions.push_back(must(MemoryRegion::map({.name = "copy",
                                              .base = region->base(),
                                              .size = region->size(),
                                              .backing = {.source = source}})));
  }
  return must(GuestMemory::from_regions(std::move(regions)));
}

std::vector<GuestRange> parts_of(const GuestMemory& memory, const std::vector<GuestRange>& ranges) {
  std::vector<GuestRange> parts;
  for (const MemoryRegionPtr& region : memory.regions()) {
    for (const GuestRange& range : ranges) {
      const std::uint64_t from = std::max(region->base().value(), range.base.value());
      const std::uint64_t to =
          std::min(region->base().value() + region->size(), range.base.value() + range.size);
      if (from < to) parts.push_back({GuestAddress(from), to - from});
    }
  }
  return parts;
}

void update(Contents& contents, const GuestMemory& memory, const std::vector<GuestRange>& written) {
  const auto parts = parts_of(memory, written);
  std::byte* at = contents.data();
  for (const MemoryRegionPtr& region : memory.regions()) {
    for (const GuestRange& part : parts) {
      if (!region->description().contains(part.base)) continue;
      const std::uint64_t offset = part.base.value() - region->base().value();
      // As a VMM reads memory that devices write to meanwhile: a plain copy would be a data race.
      must(memory.read_slice(part.base, {at + offset, static_cast<std::size_t>(part.size)}));
    }
    at += region->size();
  }
}

}  // namespace vmspace::soak
