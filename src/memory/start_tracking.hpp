// SPDX-License-Identifier: Apache-2.0
//
// How regions begin to track dirty pages together.

#pragma once

#include <span>
#include <vector>

#include "vmspace/base/result.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"
#include "vmspace/memory/memory_region.hpp"

namespace vmspace::detail {

/// Starts dirty tracking in the regions that do not track yet, in all or none of them; gives their
/// bitmaps. Errors: those of DirtyBitmap::enable.
[[nodiscard]] Result<std::vector<DirtyBitmap*>> start_tracking(
    std::span<const MemoryRegionPtr> regions);

}  // namespace vmspace::detail
