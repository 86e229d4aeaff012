// SPDX-License-Identifier: Apache-2.0
//
// A change of a VmMemory: which regions come and go, and with which memory.

#pragma once

#include <span>
#include <vector>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"

#include "vmm/listener_table.hpp"
#include "vmm/region_change.hpp"

namespace vmspace::detail {

struct VmChange {
  RegionChange regions;
  std::vector<MemoryRegionPtr> sources;       ///< memory of what is removed or unparked
  std::vector<AddressSpaceRegionPtr> to_map;  ///< what is added and has no memory yet
  std::vector<MemoryRegionPtr> mapped;        ///< memory of what is added, once all is mapped
  MemoryRegionPtr resized_from = {};          ///< to be mapped again, as `resized_to`
  AddressSpaceRegionPtr resized_to = {};

  /// Finds the memory of the regions that change: in `memory`, or in `parked`, that of parked
  /// regions. That of `resized`, if any, is what the removed region with its base has. Errors:
  /// `bad_state` where it is ambiguous which of several regions has moved; those of MemoryRegion::at.
  [[nodiscard]] static Result<VmChange> make(RegionChange regions, const GuestMemory& memory,
                                             std::span<const MemoryRegionPtr> parked,
                                             const MoveOptions& options,
                                             const AddressSpaceRegionPtr& resized = nullptr);

  /// Whether any memory comes, goes or moves.
  [[nodiscard]] bool has_memory() const noexcept {
    return !sources.empty() || !to_map.empty() || !mapped.empty();
  }

  /// Whether memory has still to be mapped.
  [[nodiscard]] bool has_to_map() const noexcept {
    return !to_map.empty() || resized_from != nullptr;
  }

  /// Whether what has to be mapped is no memory that other regions have. Errors: those of
  /// detail::check_parts; `overlap` when what a region grows by is another's.
  [[nodiscard]] Result<void> check_parts(const MapOptions& options, const GuestMemory& memory,
                                         std::span<const MemoryRegionPtr> parked) const;

  /// Maps it, and appends it to `all`, which are the regions of the present memory.
  [[nodiscard]] Result<void> map(const MapOptions& options,
                                 std::vector<MemoryRegionPtr>& all) const;

  /// The regions of `memory` after the change.
  [[nodiscard]] Result<GuestMemory> apply_to(const GuestMemory& memory) const;
  /// The memory of parked regions after the change.
  [[nodiscard]] std::vector<MemoryRegionPtr> parked_after(
      std::span<const MemoryRegionPtr> parked) const;
  /// What listeners have to be told.
  [[nodiscard]] TableChange table_change() const;
};

}  // namespace vmspace::detail
