// SPDX-License-Identifier: Apache-2.0

#include "resources/number_space.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>

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
    VMSPACE_TRY(space.free_.insert(joined));
    space.windows_.push_back(joined);
  }
  return space;
}

Result<void> NumberSpace::take_at(Range range) {
  reserve_one_more();
  const Result<Range> taken = free_.extract_at(range);
  held_ += taken.has_value();
  if (taken) return {};
  Error error = taken.error();
  const bool is_held = is_any_held(range);
  error.code = is_held ? Errc::overlap : Errc::out_of_bounds;
  error.reason = is_held ? "held by" : "not within any configured range";
  return fail(error);
}

bool NumberSpace::is_any_held(Range range) const noexcept {
  // Free ranges that touch are always one.
  return std::any_of(windows_.begin(), windows_.end(), [&](const Range& window) {
    const std::optional<Range> part = window.intersection(range);
    return part && !free_.get_superset(*part);
  });
}

bool NumberSpace::has_any_of(Range range) const noexcept {
  const auto first = std::lower_bound(
      windows_.begin(), windows_.end(), range.min(),
      [](const Range& window, std::uint64_t number) { return window.max() < number; });
  return first != windows_.end() && first->overlaps(range);
}

std::uint64_t NumberSpace::total() const noexcept {
  std::uint64_t total = 0;
  for (const Range& window : windows_)
    total += window.size();
  return total;
}

}  // namespace vmspace::detail
