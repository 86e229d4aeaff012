// SPDX-License-Identifier: Apache-2.0

#include "vmm/vm_change.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "vmspace/base/try.hpp"

#include "memory/alike_regions.hpp"

namespace vmspace::detail {

namespace {

bool has(std::span<const AddressSpaceRegionPtr> regions, const AddressSpaceRegionPtr& region) {
  return std::ranges::find(regions, region) != regions.end();
}

/// The memory that a region which is added had before; null when it had none.
Result<MemoryRegionPtr> find_source(const AddressSpaceRegionPtr& added,
                                    std::span<const MemoryRegionPtr> sources) {
  const auto exact = std::ranges::find(sources, added, &MemoryRegion::shared_description);
  if (exact != sources.end()) return *exact;
  const auto alike = [&](const MemoryRegionPtr& source) {
    return are_alike_but_for_base(*added, source->description());
  };
  const auto source = std::ranges::find_if(sources, alike);
  if (source == sources.end()) return nullptr;
  if (std::find_if(std::next(source), sources.end(), alike) != sources.end()) {
    return fail({.code = Errc::bad_state,
                 .operation = "VmMemory::transact",
                 .first = operand(added->guest_range()),
                 .second = operand((*source)->guest_range()),
                 .reason = "which region moved is ambiguous, as several differ only in their base: "
                           "move them one at a time",
                 .text = added->name()});
  }
  return *source;
}

}  // namespace

Result<VmChange> VmChange::make(RegionChange regions, const GuestMemory& memory,
                                std::span<const MemoryRegionPtr> parked,
                                const MoveOptions& options) {
  VmChange change{.regions = std::move(regions), .sources = {}, .to_map = {}, .mapped = {}};
  for (const AddressSpaceRegionPtr& region : change.regions.removed) {
    if (region->is_mapped()) change.sources.push_back(memory.find_region(region->base()));
  }
  std::ranges::copy_if(parked, std::back_inserter(change.sources),
                       [&](const MemoryRegionPtr& region) {
                         return has(change.regions.unparked, region->shared_description());
                       });
  std::vector<const MemoryRegion*> used;
  for (const AddressSpaceRegionPtr& region : change.regions.added) {
    if (!region->is_mapped()) continue;
    const MemoryRegionPtr source = VMSPACE_TRY(find_source(region, change.sources));
    if (source == nullptr || std::ranges::find(used, source.get()) != used.end()) {
      change.to_map.push_back(region);
      continue;
    }
    used.push_back(source.get());
    if (source->shared_description() == region) {
      change.mapped.push_back(source);
    } else {
      auto moved = VMSPACE_TRY(source->at(region, options));
      change.mapped.push_back(std::move(moved));
    }
  }
  return change;
}

Result<GuestMemory> VmChange::apply_to(const GuestMemory& memory) const {
  std::vector<MemoryRegionPtr> removed;
  std::ranges::copy_if(sources, std::back_inserter(removed), [&](const MemoryRegionPtr& region) {
    return has(regions.removed, region->shared_description());
  });
  return memory.with_changes(removed, mapped);
}

std::vector<MemoryRegionPtr> VmChange::parked_after(std::span<const MemoryRegionPtr> parked) const {
  std::vector<MemoryRegionPtr> after;
  for (const MemoryRegionPtr& region : parked) {
    if (!has(regions.unparked, region->shared_description())) after.push_back(region);
  }
  for (const MemoryRegionPtr& region : sources) {
    if (has(regions.parked, region->shared_description())) after.push_back(region);
  }
  return after;
}

TableChange VmChange::table_change() const {
  TableChange change{.removed_first = {}, .added = {}, .removed_last = {}};
  for (const MemoryRegionPtr& region : mapped)
    change.added.emplace_back(region);
  std::ranges::sort(change.added, {}, &MemorySection::base);
  for (const MemoryRegionPtr& region : sources) {
    if (!has(regions.removed, region->shared_description())) continue;  // it was parked
    // A region whose description was replaced by an equal one is where it was.
    const auto same = std::ranges::find_if(change.added, [&](const MemorySection& added) {
      return added.base() == region->base() && added.region()->shares_memory_with(*region);
    });
    if (same != change.added.end()) {
      change.added.erase(same);
      continue;
    }
    const bool is_in_the_way =
        std::ranges::any_of(regions.added, [&](const AddressSpaceRegionPtr& added) {
          return added->guest_range().overlaps(region->guest_range());
        });
    (is_in_the_way ? change.removed_first : change.removed_last).emplace_back(region);
  }
  return change;
}

}  // namespace vmspace::detail
