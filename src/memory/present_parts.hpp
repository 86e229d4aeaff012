// SPDX-License-Identifier: Apache-2.0
//
// What is present of a region, whether or not it has blocks.

#pragma once

#include <cstdint>
#include <memory>

#include "vmspace/memory/memory_region.hpp"

namespace vmspace::detail {

/// The region for who keeps it for long and is told of what is discarded (host/fault_owner.hpp): with a
/// set of blocks of its own, since MemoryBlocks waits for all who have one that was published.
[[nodiscard]] inline MemoryRegionPtr kept_apart(const MemoryRegionPtr& region) {
  if (region->blocks() == nullptr) return region;
  // Of the right size, so that it can't fail.
  return *region->with_blocks(std::make_shared<const PresentBlocks>(*region->blocks()));
}

/// How many of the `size` bytes from `offset`, which lie within the region, are present, up to the
/// first that is not.
[[nodiscard]] inline std::uint64_t present_after(const MemoryRegion& region, std::uint64_t offset,
                                                 std::uint64_t size) noexcept {
  return region.blocks() == nullptr ? size : region.blocks()->present_after(offset, size);
}

/// How many are absent, up to the first that is not.
[[nodiscard]] inline std::uint64_t absent_after(const MemoryRegion& region, std::uint64_t offset,
                                                std::uint64_t size) noexcept {
  return region.blocks() == nullptr ? 0 : region.blocks()->absent_after(offset, size);
}

/// Calls `use(offset, size)` for the parts of [offset, offset + size), which lies within the region,
/// that are present.
template <typename Use>
void for_each_present_part(const MemoryRegion& region, std::uint64_t offset, std::uint64_t size,
                           Use use) {
  for (std::uint64_t done = 0; done < size;) {
    done += absent_after(region, offset + done, size - done);
    const std::uint64_t present = present_after(region, offset + done, size - done);
    if (present != 0) use(offset + done, present);
    done += present;
  }
}

/// Calls `use(offset, size)` for the parts of the region that are absent.
template <typename Use>
void for_each_absent_part(const MemoryRegion& region, Use use) {
  for (std::uint64_t done = 0; done < region.size();) {
    done += present_after(region, done, region.size() - done);
    const std::uint64_t absent = absent_after(region, done, region.size() - done);
    if (absent != 0) use(done, absent);
    done += absent;
  }
}

}  // namespace vmspace::detail
