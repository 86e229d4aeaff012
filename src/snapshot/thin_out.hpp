// SPDX-License-Identifier: Apache-2.0
//
// Fewer, larger runs of pages, where there are more than can be kept.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "snapshot/page_ledger.hpp"

namespace vmspace::detail {

/// Joins runs, ascending by their first pages, which may overlap: those that overlap or touch, and then
/// across larger and larger gaps, until there are at most `limit`, or none are left that `may_join` lets be
/// one. `gap` is how far it went, for the next call of the same runs and more.
template <typename MayJoin>
void thin_out(std::vector<PageRun>& runs, std::size_t limit, std::uint64_t& gap, MayJoin may_join) {
  constexpr std::uint64_t largest = std::uint64_t{1} << 63;
  while (runs.size() > limit) {
    std::size_t kept = 0;
    for (const PageRun& run : runs) {
      PageRun* const last = kept != 0 ? &runs[kept - 1] : nullptr;
      if (last != nullptr && (run.first <= last->end || run.first - last->end <= gap) &&
          may_join(*last, run)) {
        last->end = std::max(last->end, run.end);
      } else {
        runs[kept++] = run;
      }
    }
    runs.resize(kept);
    if (gap == largest) return;
    gap = std::max<std::uint64_t>(1, gap * 2);
  }
}

}  // namespace vmspace::detail
