// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/region_descriptor.hpp"

#include <utility>

#include "vmspace/base/try.hpp"

#include "host/fault_owner.hpp"
#include "memory/known_values.hpp"
#include "memory/region_error.hpp"
#include "os/argument_checks.hpp"
#include "spec/known_values.hpp"

namespace vmspace {

namespace {

constexpr const char* map_regions_operation = "map_regions";

Result<MemoryRegionPtr> map_region(const RegionDescriptor& region, Unsealed unsealed) {
  const Operand range = detail::operand(region.range);
  const auto refuse = [&](Errc code, const char* reason) {
    return fail(
        {.code = code, .operation = map_regions_operation, .first = range, .reason = reason});
  };
  const auto fail_region = [&](const Error& error) {
    return fail(detail::name_region(error.in(map_regions_operation), {}, range, {}));
  };
  if (!is_known(region.protection)) {
    return refuse(Errc::invalid_argument, "unknown protection bits");
  }
  BackingSpec spec{.source = MemorySource::file,
                   .fd = region.fd,
                   .offset = region.offset,
                   .sharing = Sharing::map_shared};
  const auto backing = Backing::open(spec, region.range.size, region.protection);
  if (!backing) return fail_region(backing.error());
  spec.page_size = backing->page_size();
  const auto description = AddressSpaceRegion::make({.base = region.range.base,
                                                     .size = region.range.size,
                                                     .backing = std::move(spec),
                                                     .protection = region.protection});
  if (!description) return fail_region(description.error());
  return VMSPACE_TRY_IN(
      map_regions_operation,
      MemoryRegion::map(*description, {.backing = *backing, .unsealed = unsealed}));
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
                   .reason = "another process can map only shared memory with an fd, and the "
                             "region is anonymous or private",
                   .text = region->description().name()});
    }
    if (backing.is_external()) {
      return fail({.code = Errc::unsupported,
                   .operation = "describe_regions",
                   .first = detail::operand(region->guest_range()),
                   .reason = "the fd of a device is not for other processes to map",
                   .text = region->description().name()});
    }
    VMSPACE_TRY(detail::require_unclaimed(
        "describe_regions", region->mapping(), detail::operand(region->guest_range()),
        "other processes would find pages missing that this one brings or keeps"));
    described.push_back({.range = region->guest_range(),
                         .fd = backing.fd(),
                         .offset = region->mapping().file_offset(),
                         .protection = region->protection()});
  }
  return described;
}

Result<GuestMemory> map_regions(std::span<const RegionDescriptor> regions, Unsealed unsealed) {
  VMSPACE_TRY(detail::require_known(map_regions_operation, unsealed, "not a value of Unsealed"));
  if (regions.size() > GuestMemory::max_regions) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = map_regions_operation,
                 .first = Operand::number(regions.size()),
                 .second = Operand::number(GuestMemory::max_regions)});
  }
  std::vector<MemoryRegionPtr> mapped;
  mapped.reserve(regions.size());
  for (const RegionDescriptor& region : regions) {
    auto one = VMSPACE_TRY(map_region(region, unsealed));
    mapped.push_back(std::move(one));
  }
  return VMSPACE_TRY_IN(map_regions_operation, GuestMemory::from_regions(std::move(mapped)));
}

}  // namespace vmspace
