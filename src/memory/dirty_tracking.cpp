// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/dirty_tracking.hpp"

#include <utility>

#include "vmspace/base/try.hpp"

#include "memory/present_parts.hpp"
#include "memory/start_tracking.hpp"
#include "memory/take_dirty.hpp"

namespace vmspace {

Result<std::vector<DirtyBitmap*>> detail::start_tracking(std::span<const MemoryRegionPtr> regions) {
  // Also when memory for a bitmap runs out: nothing that was off before stays on.
  struct Started {
    std::vector<DirtyBitmap*> bitmaps;
    ~Started() {
      for (DirtyBitmap* bitmap : bitmaps)
        bitmap->disable();
    }
  } started;
  started.bitmaps.reserve(regions.size());
  for (const MemoryRegionPtr& region : regions) {
    DirtyBitmap& bitmap = region->dirty();
    const bool was_on = bitmap.is_enabled();
    // Also where it is on: another thread may have just switched it on, and has yet to fence.
    VMSPACE_TRY(bitmap.enable());
    if (!was_on) started.bitmaps.push_back(&bitmap);
  }
  return std::exchange(started.bitmaps, {});
}

Result<void> enable_dirty_tracking(const GuestMemory& memory) {
  VMSPACE_TRY_IN("enable_dirty_tracking", detail::start_tracking(memory.regions()));
  return {};
}

void disable_dirty_tracking(const GuestMemory& memory) noexcept {
  for (const MemoryRegionPtr& region : memory.regions())
    region->dirty().disable();
}

Result<std::vector<GuestRange>> detail::take_dirty(const GuestMemory& memory,
                                                   DirtyHarvest& harvest) {
  std::vector<GuestRange> ranges;
  for (const MemoryRegionPtr& region : memory.regions()) {
    const auto taken = harvest.take(region->dirty());
    // Asked afterwards: one that is switched off meanwhile may have forgotten what was not taken.
    if (!region->dirty().is_enabled()) {
      return fail(
          {.code = Errc::bad_state,
           .operation = "harvest_dirty",
           .first = detail::operand(region->guest_range()),
           .reason = "tracking is off for this region: call enable_dirty_tracking() first"});
    }
    const auto add = [&](std::uint64_t offset, std::uint64_t size) {
      const GuestAddress base(region->base().value() + offset);
      if (!ranges.empty() && ranges.back().end() == base) {
        ranges.back().size += size;
      } else {
        ranges.push_back({.base = base, .size = size});
      }
    };
    // A guest can write to a block that it was not given, but nobody can read it.
    for (const DirtyRange& dirty : taken)
      for_each_present_part(*region, dirty.offset, dirty.size, add);
  }
  return ranges;
}

Result<std::vector<GuestRange>> harvest_dirty(const GuestMemory& memory) {
  DirtyHarvest harvest;
  auto ranges = VMSPACE_TRY(detail::take_dirty(memory, harvest));
  VMSPACE_TRY_IN("harvest_dirty", harvest.finish());
  return ranges;
}

Result<void> merge_dirty_log(const GuestMemory& memory, GuestAddress base,
                             std::span<const std::uint64_t> bits, std::uint64_t unit) {
  constexpr const char* operation = "merge_dirty_log";
  const MemoryRegionPtr region = memory.find_region(base);
  // Not as an access: a log begins where its slot does, also where that block is absent.
  if (region == nullptr || !allows(region->protection(), Protection::read_write)) {
    return fail({.code = region == nullptr ? Errc::not_found : Errc::access_denied,
                 .operation = operation,
                 .first = Operand::address(base.value())});
  }
  const std::uint64_t offset = base.value() - region->base().value();
  VMSPACE_TRY_IN(operation, region->dirty().merge(offset, bits, unit));
  return {};
}

}  // namespace vmspace
