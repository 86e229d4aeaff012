// SPDX-License-Identifier: Apache-2.0
//
// What one set of a region's blocks has and another has not.

#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "vmspace/memory/present_blocks.hpp"

#include "vmm/section_list.hpp"

namespace vmspace::detail {

/// The blocks that come or go in a change. Found once, from what was asked for, so that a change of a few
/// blocks costs no look at all the others.
class BlockDifference {
 public:
  using Run = PresentBlocks::Run;

  /// Of `runs`, which are in order, `less` has no block.
  BlockDifference(std::vector<Run> runs, const PresentBlocks& less) : runs_(std::move(runs)) {
    std::uint64_t done = 0;
    for (const Run& run : runs_) {
      for (std::uint64_t at = std::max(done, run.offset); at < run.offset + run.size; at = done) {
        const std::uint64_t offset = at - at % less.slot_size();
        const std::uint64_t size = std::min(less.slot_size(), less.region_size() - offset);
        done = offset + size;
        if (less.absent_after(offset, size) == size) slots_.push_back({offset, size});
      }
    }
  }

  [[nodiscard]] const std::vector<Run>& runs() const noexcept { return runs_; }
  /// The slots in which `less` has no block at all.
  [[nodiscard]] const std::vector<Run>& slots() const noexcept { return slots_; }

  /// Whether a set has any of these blocks.
  [[nodiscard]] bool is_in(const PresentBlocks& blocks) const noexcept {
    return std::ranges::any_of(runs_, [&](const Run& run) {
      return blocks.absent_after(run.offset, run.size) != run.size;
    });
  }

  /// What tables have that have these blocks, and the others have not.
  [[nodiscard]] SectionList sections_of(const MemoryRegion& region) const {
    SectionList sections;
    const MemoryRegionPtr& whole = region.without_blocks();
    const std::uint64_t block = region.blocks()->block_size();
    for (const Run& slot : slots_)
      sections.add(MemorySection(whole, slot.offset, slot.size), SectionUnit::slot);
    for (const Run& run : runs_) {
      for (std::uint64_t done = 0; done < run.size; done += block)
        sections.add(MemorySection(whole, run.offset + done, block), SectionUnit::block);
    }
    return sections;
  }

 private:
  std::vector<Run> runs_;
  std::vector<Run> slots_;
};

}  // namespace vmspace::detail
