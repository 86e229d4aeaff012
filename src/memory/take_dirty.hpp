// SPDX-License-Identifier: Apache-2.0
//
// The first half of a harvest: what was written, to be given back unless the harvest is finished.

#pragma once

#include <vector>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace::detail {

/// Takes the dirty ranges of all regions, in address order and coalesced across adjacent regions.
/// They are marked again unless `harvest` is finished. `bad_state` for a region that is not tracked,
/// because its ranges would be missing.
[[nodiscard]] Result<std::vector<GuestRange>> take_dirty(const GuestMemory& memory,
                                                         DirtyHarvest& harvest);

}  // namespace vmspace::detail
