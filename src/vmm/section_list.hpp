// SPDX-License-Identifier: Apache-2.0
//
// Regions cut into the sections that listeners are given.

#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/vmm/memory_listener.hpp"

namespace vmspace::detail {

/// Calls `use(MemorySection)` for what is present of a region: all of it, or its slots in which any
/// block is present, or these blocks. Sections keep the memory, and not which blocks were present: who
/// waits until nobody uses a set of blocks need not wait for tables. Never allocates.
template <typename Use>
void for_each_section(const MemoryRegionPtr& region, SectionUnit unit, Use use) {
  if (region->blocks() == nullptr) return use(MemorySection(region));
  const PresentBlocks& blocks = *region->blocks();
  const std::uint64_t size = blocks.region_size();
  for (std::uint64_t at = 0; at < size;) {
    at += blocks.absent_after(at, size - at);
    if (at >= size) return;
    const std::uint64_t piece =
        unit == SectionUnit::block ? blocks.block_size() : blocks.slot_size();
    const std::uint64_t offset = at - at % piece;
    at = std::min(size, offset + piece);
    use(MemorySection(region->without_blocks(), offset, at - offset));
  }
}

template <typename Use>
void for_each_section(const GuestMemory& memory, SectionUnit unit, Use use) {
  for (const MemoryRegionPtr& region : memory.regions())
    for_each_section(region, unit, use);
}

/// Whether one of these sections, which are apart and in address order, has a part of the range. O(log n).
[[nodiscard]] inline bool has_part_of(std::span<const MemorySection> sections,
                                      const GuestRange& range) noexcept {
  const auto at = std::ranges::partition_point(sections, [&](const MemorySection& section) {
    return section.base().value() + (section.size() - 1) < range.base.value();
  });
  return at != sections.end() && at->guest_range().overlaps(range);
}

/// Sections in either unit, in the order in which they are added.
class SectionList {
 public:
  void add(const MemoryRegionPtr& region) {
    for (const SectionUnit unit : {SectionUnit::slot, SectionUnit::block})
      for_each_section(region, unit, [&](MemorySection section) { add(std::move(section), unit); });
  }
  void add(MemorySection section, SectionUnit unit) {
    (unit == SectionUnit::slot ? by_slot_ : by_block_).push_back(std::move(section));
  }
  void add(const SectionList& others) {
    by_slot_.insert(by_slot_.end(), others.by_slot_.begin(), others.by_slot_.end());
    by_block_.insert(by_block_.end(), others.by_block_.begin(), others.by_block_.end());
  }
  void sort() {
    std::ranges::sort(by_slot_, {}, &MemorySection::base);
    std::ranges::sort(by_block_, {}, &MemorySection::base);
  }

  [[nodiscard]] std::span<const MemorySection> in(SectionUnit unit) const noexcept {
    return unit == SectionUnit::slot ? by_slot_ : by_block_;
  }
  /// Whether there is nothing of either.
  [[nodiscard]] bool empty() const noexcept { return by_slot_.empty() && by_block_.empty(); }

 private:
  std::vector<MemorySection> by_slot_;
  std::vector<MemorySection> by_block_;
};

}  // namespace vmspace::detail
