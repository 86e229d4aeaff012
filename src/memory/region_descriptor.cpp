// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/region_descriptor.hpp"

#include <utility>

#include "memory/region_error.hpp"
#include "spec/known_values.hpp"

namespace vmspace {

namespace {

constexpr const char* mapping = "map_regions";

Result<MemoryRegionPtr> map_region(const RegionDescriptor& region, Unsealed unsealed) {
  const Operand range = Operand::span(region.base.value(), region.size);
  const auto refuse = [&](Errc code, const char* reason) {
    return fail({.code = code, .operation = mapping, .first = range, .reason = reason});
  };
  if (!is_known(region.protection)) {
    return refuse(Errc::invalid_argument, "unknown protection bits");
  }
  BackingSpec spec{.source = MemorySource::file,
                   .descriptor = region.descriptor,
                   .offset = region.offset,
                   .sharing = Sharing::map_shared};
  const auto backing = Backing::open(spec, region.size, region.protection);
  if (!backing) return fail(detail::name_region(backing.error(), {}, range, {}));
  if (unsealed == Unsealed::refuse && backing->can_lose_pages()) {
    return refuse(Errc::access_denied,
                  backing->is_hugetlb()
                      ? "its owner could punch these huge pages out, and to access them would be "
                        "SIGBUS; Unsealed::accept takes that risk"
                      : "its owner could truncate the file, and to access it would be SIGBUS; it "
                        "must seal it with F_SEAL_SHRINK, or Unsealed::accept takes that risk");
  }
  spec.page_size = backing->page_size();
  const auto description = AddressSpaceRegion::make({.name = "shared",
                                                     .base = region.base,
                                                     .size = region.size,
                                                     .backing = std::move(spec),
                                                     .protection = region.protection});
  if (!description) return fail(detail::name_region(description.error(), {}, range, {}));
  return MemoryRegion::map(*description, {.backing = *backing});
}

}  // namespace

Result<std::vector<RegionDescriptor>> describe_regions(const GuestMemory& memory) {
  std::vector<RegionDescriptor> described;
  described.reserve(memory.regions().size());
  for (const auto& region : memory.regions()) {
    const Backing& backing = region->backing();
    if (backing.is_anonymous() || !backing.is_shared()) {
      return fail({.code = Errc::unsupported,
                   .operation = "describe_regions",
                   .first = detail::operand(region->guest_range()),
                   .reason = "the region is anonymous or private: no other process can map it",
                   .text = region->description().name()});
    }
    described.push_back({.base = region->base(),
                         .size = region->size(),
                         .descriptor = backing.descriptor(),
                         .offset = region->mapping().file_offset(),
                         .protection = region->protection()});
  }
  return described;
}

Result<GuestMemory> map_regions(std::span<const RegionDescriptor> regions, Unsealed unsealed) {
  if (regions.size() > GuestMemory::max_regions) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = mapping,
                 .first = Operand::number(regions.size()),
                 .second = Operand::number(GuestMemory::max_regions)});
  }
  std::vector<MemoryRegionPtr> mapped;
  mapped.reserve(regions.size());
  for (const RegionDescriptor& region : regions) {
    auto one = map_region(region, unsealed);
    if (!one) return fail(one.error());
    mapped.push_back(std::move(*one));
  }
  return GuestMemory::from_regions(std::move(mapped));
}

}  // namespace vmspace
