// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/region_descriptor.hpp"

#include <fcntl.h>
#include <linux/magic.h>

#include <cerrno>
#include <utility>

#include "memory/host.hpp"
#include "memory/system_calls.hpp"

namespace vmspace {

namespace {

/// The page size of a descriptor's filesystem: that of the pool for hugetlb, else 0, the default.
Result<std::uint64_t> page_size_of(int descriptor) {
  struct statfs info {};
  if (detail::retry([&] { return detail::kernel().fstatfs(descriptor, &info); }) != 0) {
    return detail::fail_os("map_regions", Operand::number(static_cast<unsigned>(descriptor)),
                           "fstatfs");
  }
  return info.f_type == HUGETLBFS_MAGIC ? static_cast<std::uint64_t>(info.f_bsize) : 0;
}

/// Whether the file keeps its size; false also for one that can't be sealed, and for no file at all,
/// which is an error of its own.
bool is_sealed(int descriptor) {
  const int seals =
      detail::retry([&] { return detail::kernel().fcntl(descriptor, F_GET_SEALS, 0); });
  return seals >= 0 && (seals & F_SEAL_SHRINK) != 0;
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
                   .first = Operand::range(region->base().value(), region->last_addr().value()),
                   .reason = "the region is anonymous or private: no other process can map it"});
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
                 .operation = "map_regions",
                 .first = Operand::number(regions.size()),
                 .second = Operand::number(GuestMemory::max_regions)});
  }
  std::vector<GuestMemory::RegionPtr> mapped;
  mapped.reserve(regions.size());
  for (const RegionDescriptor& region : regions) {
    if (!detail::is_known(region.protection)) {
      return fail({.code = Errc::invalid_argument,
                   .operation = "map_regions",
                   .first = Operand::span(region.base.value(), region.size),
                   .reason = "unknown protection bits"});
    }
    const auto page = page_size_of(region.descriptor);
    if (!page) return fail(page.error());
    if (unsealed == Unsealed::refuse && !is_sealed(region.descriptor)) {
      return fail({.code = Errc::access_denied,
                   .operation = "map_regions",
                   .first = Operand::span(region.base.value(), region.size),
                   .reason = "the file is not sealed: its owner could shrink it"});
    }
    auto description = AddressSpaceRegion::make({.name = "shared",
                                                 .base = region.base,
                                                 .size = region.size,
                                                 .backing = {.source = MemorySource::file,
                                                             .descriptor = region.descriptor,
                                                             .offset = region.offset,
                                                             .page_size = *page,
                                                             .sharing = Sharing::map_shared},
                                                 .protection = region.protection});
    if (!description) return fail(description.error());
    auto one = MemoryRegion::map(*description);
    if (!one) return fail(one.error());
    mapped.push_back(std::move(*one));
  }
  return GuestMemory::from_regions(std::move(mapped));
}

}  // namespace vmspace
