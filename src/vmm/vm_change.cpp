// SPDX-License-Identifier: Apache-2.0

#include "vmm/vm_change.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "vmspace/base/try.hpp"

#include "memory/alike_regions.hpp"
#include "memory/map_descriptions.hpp"

namespace vmspace::detail {

namespace {

/// Whether the region would grow into memory of the same backing that others have.
Result<void> check_growth(const MemoryRegion& region, const AddressSpaceRegion& resized,
                          std::span<const MemoryRegionPtr> others) {
  if (resized.size() <= region.size()) return {};
  const std::uint64_t end =
      region.mapping().file_offset() - region.backing().offset() + region.size();
  const MemoryRegion* const alias =
      find_alias(region.backing(), end, resized.size() - region.size(), others);
  if (alias == nullptr) return {};
  return fail({.code = Errc::overlap,
               .operation = "VmMemory::resize",
               .first = operand(resized.guest_range()),
               .second = operand(alias->guest_range()),
               .reason =
                   "the region would grow into the part of the backing that another has: give "
                   "it a backing of its own, of its largest size",
               .text = resized.name()});
}

bool has(std::span<const AddressSpaceRegionPtr> regions, const AddressSpaceRegionPtr& region) {
  return std::ranges::find(regions, region) != regions.end();
}

}  // namespace

Result<VmChange> VmChange::make(RegionChange regions, const GuestMemory& memory,
                                std::span<const MemoryRegionPtr> parked, const MoveOptions& options,
                                const AddressSpaceRegionPtr& resized) {
  VmChange change{.regions = std::move(regions), .sources = {}, .to_map = {}, .mapped = {}};
  for (const AddressSpaceRegionPtr& region : change.regions.removed) {
    if (region->is_mapped()) change.sources.push_back(memory.find_region(region->base()));
  }
  std::ranges::copy_if(parked, std::back_inserter(change.sources),
                       [&](const MemoryRegionPtr& region) {
                         return has(change.regions.unparked, region->shared_description());
                       });
  std::vector<MemoryRegionPtr> found;  // so far
  std::vector<AddressSpaceRegionPtr> others;
  for (const AddressSpaceRegionPtr& region : change.regions.added) {
    if (!region->is_mapped()) continue;
    const auto same = std::ranges::find(change.sources, region, &MemoryRegion::shared_description);
    if (same == change.sources.end()) {
      others.push_back(region);
    } else {  // it returns from parking to where it was
      found.push_back(*same);
      change.mapped.push_back(*same);
    }
  }
  for (const AddressSpaceRegionPtr& region : others) {
    if (region == resized) {
      const auto from = std::ranges::find(change.sources, region->base(), &MemoryRegion::base);
      change.resized_from = *from;
      change.resized_to = resized;
      continue;
    }
    const MemoryRegionPtr source =
        VMSPACE_TRY(find_moved(*region, change.sources, found, "VmMemory::transact"));
    if (source == nullptr) {
      change.to_map.push_back(region);
      continue;
    }
    auto moved = VMSPACE_TRY(source->at(region, options));
    found.push_back(source);
    change.mapped.push_back(std::move(moved));
  }
  return change;
}

Result<void> VmChange::check_parts(const MapOptions& options, const GuestMemory& memory,
                                   std::span<const MemoryRegionPtr> parked) const {
  for (const std::span<const MemoryRegionPtr> others : {memory.regions(), parked}) {
    VMSPACE_TRY(detail::check_parts(to_map, others, options));
    if (resized_from != nullptr) VMSPACE_TRY(check_growth(*resized_from, *resized_to, others));
  }
  return {};
}

Result<void> VmChange::map(const MapOptions& options, std::vector<MemoryRegionPtr>& all) const {
  VMSPACE_TRY(map_descriptions(to_map, options, all));
  if (resized_from == nullptr) return {};
  auto resized = VMSPACE_TRY(resized_from->with_size(resized_to, options));
  all.push_back(std::move(resized));
  return {};
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
  TableChange change;
  std::vector<MemoryRegionPtr> coming = mapped;
  for (const MemoryRegionPtr& region : sources) {
    if (!has(regions.removed, region->shared_description())) continue;  // it was parked
    // A region whose description was replaced by an equal one is where it was.
    const auto same = std::ranges::find_if(coming, [&](const MemoryRegionPtr& added) {
      return added->base() == region->base() && added->shares_memory_with(*region);
    });
    if (same != coming.end()) {
      coming.erase(same);
      continue;
    }
    const bool is_in_the_way =
        std::ranges::any_of(regions.added, [&](const AddressSpaceRegionPtr& added) {
          return added->guest_range().overlaps(region->guest_range());
        });
    (is_in_the_way ? change.removed_first : change.removed_last).add(region);
  }
  for (const MemoryRegionPtr& region : coming)
    change.added.add(region);
  change.added.sort();
  change.disruptive = !change.removed_first.empty();
  return change;
}

}  // namespace vmspace::detail
