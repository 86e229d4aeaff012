// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/region.hpp"

namespace vmspace {

Result<std::shared_ptr<const MemoryRegion>> MemoryRegion::map(const AddressSpaceRegion& description,
                                                              const MapOptions& options) {
  Result<Backing> opened =
      options.backing
          ? Result<Backing>(*options.backing)
          : Backing::open(description.backing(), description.size(), description.protection());
  if (!opened) return fail(opened.error());
  auto mapping = MemoryMapping::map(*opened, {.size = description.size(),
                                              .offset = options.backing_offset,
                                              .protection = description.protection(),
                                              .guard_pages = options.guard_pages});
  if (!mapping) return fail(mapping.error());
  return std::shared_ptr<const MemoryRegion>(new MemoryRegion(description, std::move(*mapping)));
}

}  // namespace vmspace
