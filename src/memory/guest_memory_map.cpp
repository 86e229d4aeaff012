// SPDX-License-Identifier: Apache-2.0
//
// GuestMemory of what an address space describes: map, remap and create.

#include <algorithm>
#include <iterator>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace {

namespace {

/// Whether the region's memory is a part of `options.backing`. A region that names a file is what
/// is in that file.
bool takes_part(const AddressSpaceRegion& description, const MapOptions& options) {
  return options.backing && description.is_mapped() &&
         description.backing().source != MemorySource::file;
}

using Descriptions = std::vector<AddressSpaceRegionPtr>;

/// A region among `regions` that shares memory with these bytes of the backing; null when none does.
const MemoryRegion* find_alias(const Backing& backing, std::uint64_t offset, std::uint64_t size,
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

/// Whether the backing has a part for each region that takes one, which no region in `kept` has
/// already; asked before anything is mapped.
Result<void> check_parts(const Descriptions& descriptions, std::span<const MemoryRegionPtr> kept,
                         const MapOptions& options) {
  if (!options.backing) return {};
  const std::uint64_t size = options.backing->size();
  std::uint64_t left = size - std::min(options.backing_offset, size);
  for (const AddressSpaceRegionPtr& region : descriptions) {
    const AddressSpaceRegion& description = *region;
    if (!takes_part(description, options)) continue;
    if (description.size() > left) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = "GuestMemory::map",
                   .first = detail::operand(description.guest_range()),
                   .second = Operand::size(size),
                   .reason = "the backing is too short for all the regions together",
                   .text = description.name()});
    }
    if (const MemoryRegion* alias =
            find_alias(*options.backing, size - left, description.size(), kept)) {
      return fail({.code = Errc::overlap,
                   .operation = "GuestMemory::remap",
                   .first = detail::operand(description.guest_range()),
                   .second = detail::operand(alias->guest_range()),
                   .reason = "in the backing: set backing_offset behind the parts in use",
                   .text = description.name()});
    }
    left -= description.size();
  }
  return {};
}

/// Maps the described regions, then populates those that want it; appends them to `regions`, with
/// which they share no part of a backing.
Result<void> map_descriptions(const Descriptions& descriptions, const MapOptions& options,
                              std::vector<MemoryRegionPtr>& regions) {
  if (auto ok = check_parts(descriptions, regions, options); !ok) return ok;
  std::uint64_t next_part = options.backing_offset;
  MapOptions mapping = options;
  mapping.defer_populate = true;
  std::vector<MemoryRegionPtr> to_populate;
  for (const AddressSpaceRegionPtr& region : descriptions) {
    const AddressSpaceRegion& description = *region;
    const bool part = takes_part(description, options);
    mapping.backing = part ? options.backing : std::nullopt;
    mapping.backing_offset = part ? std::exchange(next_part, next_part + description.size()) : 0;
    auto mapped = MemoryRegion::map(region, mapping);
    if (!mapped) return fail(mapped.error());
    if (description.wants_populate() && !options.defer_populate) to_populate.push_back(*mapped);
    regions.push_back(std::move(*mapped));
  }
  if (to_populate.empty()) return {};
  return populate(to_populate, options.populate);
}

bool differ_in_base_only(const AddressSpaceRegion& a, const AddressSpaceRegion& b) {
  RegionOptions moved = a.options();
  moved.base = b.base();
  return moved == b.options();
}

/// An error if `description`, which is to be mapped anew, looks like a region that is mapped and
/// would be let go: what that holds would be lost.
Result<void> check_new(const AddressSpaceRegion& description,
                       std::span<const MemoryRegionPtr> leaving) {
  for (const MemoryRegionPtr& region : leaving) {
    const bool in_place = description.range().overlaps(region->description().range());
    if (!in_place && !differ_in_base_only(description, region->description())) continue;
    return fail({.code = Errc::bad_state,
                 .operation = "GuestMemory::remap",
                 .first = detail::operand(description.guest_range()),
                 .second = detail::operand(region->guest_range()),
                 .reason = in_place ? "another region is mapped here: let it go first"
                                    : "a region like this would be let go: let it go first"});
  }
  return {};
}

}  // namespace

Result<GuestMemory> GuestMemory::map(const AddressSpaceBase& space, const MapOptions& options) {
  return GuestMemory().remap(space, options);
}

Result<GuestMemory> GuestMemory::remap(const AddressSpaceBase& after,
                                       const MapOptions& options) const {
  std::vector<MemoryRegionPtr> kept;
  Descriptions added;
  for (const AddressSpaceRegionPtr& description : after) {
    if (!description->is_mapped()) continue;
    MemoryRegionPtr region = find_region(description->base());
    if (region != nullptr && region->description() == *description) {
      kept.push_back(std::move(region));
    } else {
      added.push_back(description);
    }
  }
  std::vector<MemoryRegionPtr> leaving;  // both are sorted by address
  std::ranges::set_difference(regions(), kept, std::back_inserter(leaving), {}, &MemoryRegion::base,
                              &MemoryRegion::base);
  for (const AddressSpaceRegionPtr& description : added) {
    if (auto ok = check_new(*description, leaving); !ok) return fail(ok.error());
  }
  if (auto ok = map_descriptions(added, options, kept); !ok) return fail(ok.error());
  return from_regions(std::move(kept));
}

Result<GuestMemory> GuestMemory::create(std::span<const GuestRange> ram) {
  std::vector<MemoryRegionPtr> regions;
  regions.reserve(ram.size());
  for (const GuestRange& range : ram) {
    auto description = AddressSpaceRegion::make({.name = "ram",
                                                 .base = range.base,
                                                 .size = range.size,
                                                 .backing = {.source = MemorySource::shmem}});
    if (!description) return fail(description.error());
    auto region = MemoryRegion::map(*std::move(description));
    if (!region) return fail(region.error());
    regions.push_back(std::move(*region));
  }
  return from_regions(std::move(regions));
}

}  // namespace vmspace
