// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/discard_memory.hpp"

#include <cstdint>

#include "vmspace/base/try.hpp"

#include "memory/region_error.hpp"

namespace vmspace {

namespace {

constexpr const char* discard_operation = "discard_memory";

/// Calls `use(region, offset, size)` for the part of a checked range in each region. Errors name that.
template <typename Use>
Result<void> for_each_region(const GuestMemory& memory, GuestRange range, Use use) {
  for (const MemoryRegionPtr& region : memory.overlapping(range)) {
    const GuestRange part = *region->guest_range().intersection(range);
    const std::uint64_t offset = *part.base.offset_from(region->base());
    if (const Result<void> used = use(*region, offset, part.size); !used) {
      return fail(detail::name_region(used.error().in(discard_operation), region->description()));
    }
  }
  return {};
}

}  // namespace

Result<void> discard_memory(const GuestMemory& memory, GuestRange range) {
  VMSPACE_TRY_IN(discard_operation, memory.check(range, Access::write));
  VMSPACE_TRY(for_each_region(
      memory, range, [](const MemoryRegion& region, std::uint64_t offset, std::uint64_t size) {
        return region.mapping().check_part(offset, size);
      }));
  return for_each_region(
      memory, range,
      [](const MemoryRegion& region, std::uint64_t offset, std::uint64_t size) -> Result<void> {
        VMSPACE_TRY(region.mapping().discard(offset, size));
        region.dirty().mark(offset, size);
        return {};
      });
}

}  // namespace vmspace
