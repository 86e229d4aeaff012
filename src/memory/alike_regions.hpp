// SPDX-License-Identifier: Apache-2.0
//
// Which region has moved, when descriptions are all there is to tell by.

#pragma once

#include <algorithm>
#include <iterator>
#include <span>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/memory_region.hpp"

namespace vmspace::detail {

/// Whether the two differ in their base at most.
inline bool are_alike_but_for_base(const AddressSpaceRegion& a, const AddressSpaceRegion& b) {
  if (a.size() != b.size() || a.name() != b.name()) return false;  // before anything is copied
  RegionOptions moved = a.options();
  moved.base = b.base();
  return moved == b.options();
}

/// The region among those that leave which `coming` describes after a move; null when none does.
/// `bad_state` when there is more than one way to pair them: several are alike, or the one that is has
/// been found for another description already and is in `found`.
[[nodiscard]] inline Result<MemoryRegionPtr> find_moved(const AddressSpaceRegion& coming,
                                                        std::span<const MemoryRegionPtr> leaving,
                                                        std::span<const MemoryRegionPtr> found,
                                                        const char* operation) {
  const auto alike = [&](const MemoryRegionPtr& region) {
    return are_alike_but_for_base(coming, region->description());
  };
  const auto source = std::ranges::find_if(leaving, alike);
  if (source == leaving.end()) return nullptr;
  if (std::ranges::find(found, *source) != found.end() ||
      std::find_if(std::next(source), leaving.end(), alike) != leaving.end()) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = operand(coming.guest_range()),
                 .second = operand((*source)->guest_range()),
                 .reason = "which region moved is ambiguous, as several differ only in their base: "
                           "move them one at a time",
                 .text = coming.name()});
  }
  return *source;
}

}  // namespace vmspace::detail
