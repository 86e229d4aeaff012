// SPDX-License-Identifier: Apache-2.0

#include "resources/number_space.hpp"

#include <algorithm>
#include <utility>

#include "vmspace/base/try.hpp"

namespace vmspace::detail {

Result<NumberSpace> NumberSpace::create(std::vector<Range> ranges, std::optional<Range> any) {
  NumberSpace space;
  space.any_ = any.value_or(Range::whole_domain());
  std::sort(ranges.begin(), ranges.end());
  for (auto range = ranges.begin(); range != ranges.end();) {
    Range joined = *range;
    while (++range != ranges.end() && joined.adjacent(*range))
      joined = unchecked_range(joined.min(), range->max());
    VMSPACE_TRY(space.numbers_.insert(joined));
  }
  return space;
}

Result<void> NumberSpace::take_at(Range range) {
  const Result<Range> taken = numbers_.allocate_at(range);
  if (taken) return {};
  Error error = taken.error();
  // Free ranges that touch are always one, so what is in the way is held.
  error.code = error.code == Errc::not_found ? Errc::out_of_bounds : Errc::overlap;
  error.reason = error.code == Errc::overlap ? "held by" : "outside of the numbers that exist";
  return fail(error);
}

}  // namespace vmspace::detail
