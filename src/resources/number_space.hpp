// SPDX-License-Identifier: Apache-2.0
//
// The numbers of one kind. Only the free ones are stored here; the owners' records list the rest.

#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
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
  NumberSpace(NumberSpace&&) noexcept = default;
  NumberSpace& operator=(NumberSpace&&) noexcept = default;
  /// A copy would lack the memory that give_back() needs.
  NumberSpace(const NumberSpace&) = delete;
  NumberSpace& operator=(const NumberSpace&) = delete;
  ~NumberSpace() = default;

  /// All of these free. Ranges that touch become one. `overlap` when two of them overlap.
  [[nodiscard]] static Result<NumberSpace> create(std::vector<Range> ranges,
                                                  std::optional<Range> any);

  /// Takes the lowest `size` numbers in the window, or by default in the range for unpinned
  /// requests. The errors of IntervalTree::allocate. O(log n).
  [[nodiscard]] Result<Range> take(std::uint64_t size, std::uint64_t align = 1,
                                   std::optional<Range> window = {}) {
    const Range bounds = window.value_or(any_);
    reserve_one_more();
    const Result<Range> taken =
        free_.extract({.size = size, .min = bounds.min(), .max = bounds.max(), .align = align});
    held_ += taken.has_value();
    return taken;
  }

  /// Takes exactly these numbers. `out_of_bounds` when some of them do not exist, `overlap` when some
  /// are taken. O(log n).
  [[nodiscard]] Result<void> take_at(Range range);

  /// Frees what was taken. O(log n); never allocates.
  void give_back(Range range) noexcept {
    const auto freed = free_.restore(range);
    assert(freed && "what is held is not free");
    if (freed) --held_;
  }

  /// Numbers that change places. Until it ends, old and new places are taken.
  struct Move {
    std::vector<Range> taken = {};  ///< what only the new places have
    std::vector<Range> left = {};   ///< what only the old ones had
    std::size_t from = 0;           ///< how many old places there are
    std::size_t to = 0;             ///< and new ones
  };
  /// Takes what the new places have and the old ones, which are taken, do not; the ranges of a list are
  /// apart. Errors: those of take_at(), for a part of a new place. O(m log n); allocates.
  [[nodiscard]] Result<Move> begin_move(std::span<const Range> from, std::span<const Range> to);
  /// Frees what the move has left or, to undo it, what it took. Never allocates.
  void end_move(const Move& move, bool is_undone) noexcept;

  /// The numbers that exist, in ascending order and apart.
  [[nodiscard]] std::span<const Range> windows() const noexcept { return windows_; }
  /// Whether any number in the range exists. O(windows).
  [[nodiscard]] bool has_any_of(Range range) const noexcept;
  /// Whether any number in the range exists and is taken. O(windows).
  [[nodiscard]] bool is_any_held(Range range) const noexcept;
  /// How many numbers exist.
  [[nodiscard]] std::uint64_t total() const noexcept;
  /// Whether take() without a window finds a number. O(log n).
  [[nodiscard]] bool has_free() const noexcept { return !free_.overlapping(any_).empty(); }
  /// The numbers that are free.
  [[nodiscard]] const IntervalTree<>& free() const noexcept { return free_; }
  /// Where numbers that are not fixed come from.
  [[nodiscard]] Range any() const noexcept { return any_; }

 private:
  /// There are at most as many free ranges as windows and held ranges together. Reserving memory
  /// for that many when numbers are taken means that returning them never allocates.
  void reserve_one_more() { free_.reserve(windows_.size() + held_ + 1); }

  std::vector<Range> windows_;
  IntervalTree<> free_;
  std::size_t held_ = 0;  ///< ranges that are taken
  Range any_ = Range::whole_domain();
};

}  // namespace vmspace::detail
