// SPDX-License-Identifier: Apache-2.0
//
// Blocks that tables of listeners still have, though they are published no more: those that are being
// unplugged, while whoever reads them is waited for. Who comes to the tables or goes meanwhile, and a
// log that starts, has to do with these as well.

#pragma once

#include <utility>
#include <vector>

#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/memory/memory_region.hpp"

#include "vmm/section_list.hpp"

namespace vmspace::detail {

class KeptBlocks {
 public:
  /// From now on tables have what this region has, however much of it is published.
  void add(MemoryRegionPtr region) { regions_.push_back(std::move(region)); }
  /// They have what is published of it again.
  void remove(const MemoryRegion& region) noexcept {
    std::erase_if(regions_, [&](const auto& kept) { return kept->shares_memory_with(region); });
  }

  /// What tables have of a region that is published.
  [[nodiscard]] const MemoryRegionPtr& in_tables(const MemoryRegionPtr& published) const noexcept {
    for (const MemoryRegionPtr& kept : regions_) {
      if (kept->shares_memory_with(*published)) return kept;
    }
    return published;
  }
  [[nodiscard]] SectionList sections_of(const GuestMemory& published) const {
    SectionList sections;
    for (const MemoryRegionPtr& region : published.regions())
      sections.add(in_tables(region));
    return sections;
  }
  /// Never allocates.
  template <typename Use>
  void for_each_section(const GuestMemory& published, SectionUnit unit, Use use) const {
    for (const MemoryRegionPtr& region : published.regions())
      detail::for_each_section(in_tables(region), unit, use);
  }

 private:
  std::vector<MemoryRegionPtr> regions_;
};

}  // namespace vmspace::detail
