// SPDX-License-Identifier: Apache-2.0

#include "resources/number_space.hpp"

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

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

namespace {

/// What the first ranges have and the others do not. The first ones are apart.
std::vector<Range> without(std::span<const Range> ranges, std::span<const Range> others) {
  IntervalTree<> rest;
  for (const Range& range : ranges)
    static_cast<void>(rest.insert(range));
  for (const Range& other : others)
    rest.subtract(other);
  std::vector<Range> parts;
  for (const auto& entry : rest)
    parts.push_back(entry.range);
  return parts;
}

}  // namespace

Result<NumberSpace::Move> NumberSpace::begin_move(std::span<const Range> from,
                                                  std::span<const Range> to) {
  Move move{.left = without(from, to), .from = from.size(), .to = to.size()};
  const std::vector<Range> needed = without(to, from);
  move.taken.reserve(needed.size());
  free_.reserve(windows_.size() + held_ + needed.size() + to.size());
  for (const Range& part : needed) {
    if (const auto taken = take_at(part); !taken) {
      for (const Range& each : move.taken)
        give_back(each);
      return fail(taken.error());
    }
    move.taken.push_back(part);
  }
  return move;
}

void NumberSpace::end_move(const Move& move, bool is_undone) noexcept {
  // Parts are not what is counted: places are, of which a move that is undone changes none.
  held_ -= move.taken.size();
  if (!is_undone) held_ = held_ + move.to - move.from;
  for (const Range& part : is_undone ? move.taken : move.left) {
    const auto freed = free_.restore(part);
    assert(freed && "what was held is not free");
    static_cast<void>(freed);
  }
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
