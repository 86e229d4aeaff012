// SPDX-License-Identifier: Apache-2.0
//
// GuestMemory of what an address space describes: map, remap and create.

#include <algorithm>
#include <iterator>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/guest_memory.hpp"

#include "memory/alike_regions.hpp"
#include "memory/map_descriptions.hpp"

namespace vmspace {

namespace {

/// Whether the region's memory is a part of `options.backing`. A region that names a file is what
/// is in that file.
bool takes_part(const AddressSpaceRegion& description, const MapOptions& options) {
  return options.backing && description.is_mapped() &&
         description.backing().source != MemorySource::file &&
         description.backing().source != MemorySource::device &&
         description.backing().source != MemorySource::external;
}

using Descriptions = std::vector<AddressSpaceRegionPtr>;

/// There is one piece of external memory to give.
Result<void> check_external(std::span<const AddressSpaceRegionPtr> descriptions) {
  const auto is_external = [](const AddressSpaceRegionPtr& region) {
    return region->backing().source == MemorySource::external;
  };
  const auto first = std::ranges::find_if(descriptions, is_external);
  if (first == descriptions.end()) return {};
  const auto second = std::find_if(std::next(first), descriptions.end(), is_external);
  if (second == descriptions.end()) return {};
  return fail({.code = Errc::invalid_argument,
               .operation = "GuestMemory::remap",
               .first = detail::operand((*first)->guest_range()),
               .second = detail::operand((*second)->guest_range()),
               .reason = "both would be the one MapOptions::external: add one at a time",
               .text = (*second)->name()});
}

/// What a change of the address space means for mapped regions.
struct Change {
  std::vector<MemoryRegionPtr> kept;     ///< as they are
  std::vector<MemoryRegionPtr> leaving;  ///< in the space no more, or not at their address
  Descriptions coming;  ///< in the space now, at addresses where they are not mapped
};

Change change_to(const AddressSpaceBase& after, const GuestMemory& before) {
  Change change;
  for (const AddressSpaceRegionPtr& description : after) {
    if (!description->is_mapped()) continue;
    MemoryRegionPtr region = before.find_region(description->base());
    if (region != nullptr && region->description() == *description) {
      change.kept.push_back(std::move(region));
    } else {
      change.coming.push_back(description);
    }
  }
  std::ranges::set_difference(before.regions(), change.kept, std::back_inserter(change.leaving), {},
                              &MemoryRegion::base, &MemoryRegion::base);
  return change;
}

tl::unexpected<Error> refuse(const AddressSpaceRegion& description, const MemoryRegion& mapped,
                             const char* reason) {
  return fail({.code = Errc::bad_state,
               .operation = "GuestMemory::remap",
               .first = detail::operand(description.guest_range()),
               .second = detail::operand(mapped.guest_range()),
               .reason = reason,
               .text = description.name()});
}

/// Turns each pair of a region that leaves and one that comes, alike but for the base, into a region
/// that is kept: it has moved. Errors: `bad_state` where there is more than one way to pair them;
/// those of MemoryRegion::at.
Result<void> keep_moved(Change& change, const MoveOptions& options) {
  std::vector<MemoryRegionPtr> moved;
  std::vector<MemoryRegionPtr> sources;
  Descriptions coming;
  for (const AddressSpaceRegionPtr& description : change.coming) {
    const MemoryRegionPtr source = VMSPACE_TRY(
        detail::find_moved(*description, change.leaving, sources, "GuestMemory::remap"));
    if (source == nullptr) {
      coming.push_back(description);
      continue;
    }
    auto region = VMSPACE_TRY(source->at(description, options));
    moved.push_back(std::move(region));
    sources.push_back(source);
  }
  std::erase_if(change.leaving, [&](const MemoryRegionPtr& region) {
    return std::ranges::find(sources, region) != sources.end();
  });
  change.coming = std::move(coming);
  change.kept.insert(change.kept.end(), moved.begin(), moved.end());
  return {};
}

/// Refuses to map anew what is described anew in the place of a region that leaves: what that one
/// holds would be lost.
Result<void> check_places(const Change& change) {
  for (const AddressSpaceRegionPtr& description : change.coming) {
    for (const MemoryRegionPtr& region : change.leaving) {
      if (!description->guest_range().overlaps(region->guest_range())) continue;
      return refuse(*description, *region,
                    "a region with another description is mapped here, and its contents would be "
                    "lost: remove it in a separate step first");
    }
  }
  return {};
}

}  // namespace

const MemoryRegion* detail::find_alias(const Backing& backing, std::uint64_t offset,
                                       std::uint64_t size,
                                       std::span<const MemoryRegionPtr> regions) {
  if (backing.is_anonymous() || !backing.is_shared()) return nullptr;  // each mapping is its own
  const auto begin = backing.offset() + offset;
  for (const MemoryRegionPtr& region : regions) {
    const MemoryMapping& mapping = region->mapping();
    if (mapping.backing() == backing && mapping.file_offset() < begin + size &&
        begin < mapping.file_offset() + mapping.size()) {
      return region.get();
    }
  }
  return nullptr;
}

Result<void> detail::check_parts(std::span<const AddressSpaceRegionPtr> descriptions,
                                 std::span<const MemoryRegionPtr> others,
                                 const MapOptions& options) {
  if (!options.backing) return {};
  const std::uint64_t size = options.backing->size();
  std::uint64_t left = size - std::min(options.backing_offset, size);
  for (const AddressSpaceRegionPtr& region : descriptions) {
    const AddressSpaceRegion& description = *region;
    if (!takes_part(description, options)) continue;
    if (description.size() > left) {
      return fail(
          {.code = Errc::out_of_bounds,
           .operation = "GuestMemory::remap",
           .first = operand(description.guest_range()),
           .second = Operand::size(size),
           .reason =
               "the backing must hold all new regions, one after another, from backing_offset",
           .text = description.name()});
    }
    if (const MemoryRegion* alias =
            find_alias(*options.backing, size - left, description.size(), others)) {
      return fail({.code = Errc::overlap,
                   .operation = "GuestMemory::remap",
                   .first = operand(description.guest_range()),
                   .second = operand(alias->guest_range()),
                   .reason = "both would be the same part of the backing: set backing_offset past "
                             "the parts in use",
                   .text = description.name()});
    }
    left -= description.size();
  }
  return {};
}

Result<void> detail::map_descriptions(std::span<const AddressSpaceRegionPtr> descriptions,
                                      const MapOptions& options,
                                      std::vector<MemoryRegionPtr>& regions) {
  VMSPACE_TRY(check_parts(descriptions, regions, options));
  VMSPACE_TRY(check_external(descriptions));
  std::uint64_t next_part = options.backing_offset;
  MapOptions mapping = options;
  mapping.defer_populate = true;
  std::vector<MemoryRegionPtr> to_populate;
  for (const AddressSpaceRegionPtr& region : descriptions) {
    const AddressSpaceRegion& description = *region;
    const bool part = takes_part(description, options);
    mapping.backing = part ? options.backing : std::nullopt;
    mapping.backing_offset = part ? std::exchange(next_part, next_part + description.size()) : 0;
    auto mapped = VMSPACE_TRY(MemoryRegion::map(region, mapping));
    if (description.wants_populate() && !options.defer_populate) to_populate.push_back(mapped);
    regions.push_back(std::move(mapped));
  }
  if (to_populate.empty()) return {};
  return populate(to_populate, options.populate);
}

Result<GuestMemory> GuestMemory::map(const AddressSpaceBase& space, const MapOptions& options) {
  return VMSPACE_TRY_IN("GuestMemory::map", GuestMemory().remap(space, options));
}

Result<GuestMemory> GuestMemory::remap(const AddressSpaceBase& after,
                                       const MapOptions& options) const {
  constexpr const char* operation = "GuestMemory::remap";
  Change change = change_to(after, *this);
  VMSPACE_TRY_IN(operation, keep_moved(change, options.move));
  VMSPACE_TRY(check_places(change));
  VMSPACE_TRY_IN(operation, detail::map_descriptions(change.coming, options, change.kept));
  return VMSPACE_TRY_IN(operation, from_regions(std::move(change.kept)));
}

Result<GuestMemory> GuestMemory::create(std::span<const GuestRange> ram) {
  constexpr const char* operation = "GuestMemory::create";
  std::vector<MemoryRegionPtr> regions;
  regions.reserve(ram.size());
  for (const GuestRange& range : ram) {
    const RegionOptions description{.name = "ram",
                                    .base = range.base,
                                    .size = range.size,
                                    .backing = {.source = MemorySource::shmem}};
    auto region = VMSPACE_TRY_IN(operation, MemoryRegion::map(description));
    regions.push_back(std::move(region));
  }
  return VMSPACE_TRY_IN(operation, from_regions(std::move(regions)));
}

}  // namespace vmspace
