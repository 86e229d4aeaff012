// SPDX-License-Identifier: Apache-2.0
//
// Many runs of blocks at once.

#pragma once

#include <span>

#include "vmspace/base/result.hpp"
#include "vmspace/memory/present_blocks.hpp"

namespace vmspace::detail {

struct BlockRuns {
  /// These blocks and those of all runs, for the price of one copy. Errors: those of
  /// PresentBlocks::with(), one run after the other. O(blocks of the region / 64 + runs).
  [[nodiscard]] static Result<PresentBlocksPtr> add(const PresentBlocks& blocks,
                                                    std::span<const PresentBlocks::Run> runs);
};

}  // namespace vmspace::detail
