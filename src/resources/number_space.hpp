// SPDX-License-Identifier: Apache-2.0
//
// The numbers of one kind, free or taken. By whom is in the owners' records.

#pragma once

#include <cassert>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace::detail {

/// Threads: const calls may run at the same time; any other call excludes all others.
class NumberSpace {
 public:
  /// No numbers.
  NumberSpace() = default;

  /// All of these free. Ranges that touch become one. `overlap` when two of them overlap.
  [[nodiscard]] static Result<NumberSpace> create(std::vector<Range> ranges,
                                                  std::optional<Range> any);

  /// Takes the lowest place for `size` numbers in the window; without one, where numbers that are not
  /// fixed come from. The errors of IntervalTree::allocate. O(log n).
  [[nodiscard]] Result<Range> take(std::uint64_t size, std::uint64_t align = 1,
                                   std::optional<Range> window = {}) {
    const Range bounds = window.value_or(any_);
    return numbers_.allocate(
        {.size = size, .min = bounds.min(), .max = bounds.max(), .align = align});
  }

  /// Takes exactly these numbers. `out_of_bounds` when some of them do not exist, `overlap` when some
  /// are taken. O(log n).
  [[nodiscard]] Result<void> take_at(Range range);

  /// Frees what was taken. O(log n); never allocates.
  void give_back(Range range) noexcept {
    const auto freed = numbers_.free(range);
    assert(freed && "what is held is taken");
    static_cast<void>(freed);
  }

  /// Free and taken numbers, for inspection.
  [[nodiscard]] const IntervalTree<>& numbers() const noexcept { return numbers_; }
  /// Where numbers that are not fixed come from.
  [[nodiscard]] Range any() const noexcept { return any_; }

 private:
  IntervalTree<> numbers_;
  Range any_ = Range::whole_domain();
};

}  // namespace vmspace::detail
