// SPDX-License-Identifier: Apache-2.0
//
// What one set of a region's blocks has and another has not.

#pragma once

#include <algorithm>
#include <cstdint>

#include "vmspace/memory/present_blocks.hpp"

#include "vmm/section_list.hpp"

namespace vmspace::detail {

/// Calls `use(run)` for what is present in `more` and absent in `less`.
template <typename Use>
void for_each_difference(const PresentBlocks& more, const PresentBlocks& less, Use use) {
  const std::uint64_t size = more.region_size();
  for (std::uint64_t at = 0; at < size;) {
    at += more.absent_after(at, size - at);
    const std::uint64_t present = more.present_after(at, size - at);
    const std::uint64_t same = less.present_after(at, present);
    const std::uint64_t missing = less.absent_after(at + same, present - same);
    if (missing != 0) use(PresentBlocks::Run{.offset = at + same, .size = missing});
    at += same + missing;
  }
}

/// Calls `use(run)` for the slots in which any block is present in `more`, and none in `less`.
template <typename Use>
void for_each_slot_of_difference(const PresentBlocks& more, const PresentBlocks& less, Use use) {
  std::uint64_t done = 0;
  for_each_difference(more, less, [&](const PresentBlocks::Run& run) {
    for (std::uint64_t at = std::max(done, run.offset); at < run.offset + run.size; at = done) {
      const std::uint64_t offset = at - at % more.slot_size();
      const std::uint64_t size = std::min(more.slot_size(), more.region_size() - offset);
      done = offset + size;
      if (less.absent_after(offset, size) == size)
        use(PresentBlocks::Run{.offset = offset, .size = size});
    }
  });
}

/// What the tables that have `more` have, and those with `less` have not.
inline SectionList sections_between(const MemoryRegion& region, const PresentBlocks& more,
                                    const PresentBlocks& less) {
  SectionList sections;
  const MemoryRegionPtr& whole = region.without_blocks();
  for_each_slot_of_difference(more, less, [&](const PresentBlocks::Run& slot) {
    sections.add(MemorySection(whole, slot.offset, slot.size), SectionUnit::slot);
  });
  for_each_difference(more, less, [&](const PresentBlocks::Run& run) {
    for (std::uint64_t done = 0; done < run.size; done += more.block_size()) {
      sections.add(MemorySection(whole, run.offset + done, more.block_size()), SectionUnit::block);
    }
  });
  return sections;
}

}  // namespace vmspace::detail
