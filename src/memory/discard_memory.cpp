// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/discard_memory.hpp"

#include <algorithm>
#include <cstdint>

#include "vmspace/base/try.hpp"

#include "memory/region_error.hpp"

namespace vmspace {

namespace {

constexpr const char* discard_operation = "discard_memory";

/// Calls `use(region, offset, size)` for the part of a checked range in each region. Errors name that.
template <typename Use>
Result<void> for_each_region(const GuestMemory& memory, GuestRange range, Use use) {
  for (std::uint64_t done = 0; done < range.size;) {
    const GuestAddress at(range.base.value() + done);
    const MemoryRegion& region = *memory.region_at(at);
    const std::uint64_t offset = at.value() - region.base().value();
    const std::uint64_t size = std::min(range.size - done, region.size() - offset);
    if (const Result<void> used = use(region, offset, size); !used) {
      return fail(detail::name_region(used.error().in(discard_operation), region.description()));
    }
    done += size;
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
