// SPDX-License-Identifier: Apache-2.0
//
// Why a call on an interval tree failed: looked for when it has, so that the paths which succeed
// carry none of it.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/detail/bplus_tree.hpp"
#include "vmspace/allocator/detail/free_summary.hpp"
#include "vmspace/allocator/detail/iterator.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/result.hpp"

namespace vmspace::detail {

/// The entries that have a member in common with the range, in address order.
template <typename T>
[[nodiscard]] Walk<EntryIterator<T>> overlapping(const Store<T>& store, Range range) noexcept {
  typename Store<T>::Place from = store.upper_bound(range.min());
  const typename Store<T>::Place to = store.upper_bound(range.max());
  if (from.pos > 0 && from.leaf->max[from.pos - 1] >= range.min()) --from.pos;
  return {EntryIterator<T>(from.leaf, from.pos), EntryIterator<T>(to.leaf, to.pos)};
}

/// Looks at a tree in which a call could not be done. A step for each range that the range or the
/// window meets, at most.
template <typename T>
class TreeFailure {
 public:
  using Failed = tl::unexpected<Error>;

  explicit TreeFailure(const Store<T>& store) noexcept : store_(store) {}

  /// Something meets the range that was to be inserted.
  [[nodiscard, gnu::cold, gnu::noinline]] Failed in_the_way(Range range) const {
    return error(Errc::overlap, "insert", range, nullptr,
                 detail::overlapping(store_, range).front().range);
  }

  /// No free range has a place for the constraint: what would have been free in the window.
  [[nodiscard, gnu::cold, gnu::noinline]] Failed no_space(const Constraint& constraint) const {
    std::optional<Range> largest;
    // Each piece found raises what is asked for, so that the search goes on to longer ones only.
    Request longer({.size = 1, .min = constraint.min, .max = constraint.max});
    typename Store<T>::Path at;
    store_.template for_each_fit<true>(
        longer, at, [&](const typename Store<T>::Path& here, std::uint64_t min) {
          const std::uint64_t max = std::min(here.leaf->max[here.pos], constraint.max);
          largest = unchecked_range(min, max);
          if (max - min >= std::numeric_limits<std::uint64_t>::max() - 1) return true;
          longer = Request({.size = max - min + 2, .min = constraint.min, .max = constraint.max});
          return false;
        });
    Error full{.code = Errc::no_space,
               .operation = "allocate",
               .first = Operand::size(constraint.size),
               .second = Operand::range(constraint.min, constraint.max)};
    if (!largest) {
      full.reason = "nothing is free there";
    } else {
      full.available = operand(*largest);
      if (largest->max() - largest->min() >= constraint.size - 1) {
        full.reason = "long enough, but nowhere aligned as asked";
      }
    }
    return fail(full);
  }

  /// The range does not lie inside one free range.
  [[nodiscard, gnu::cold, gnu::noinline]] Failed not_at(Range range) const {
    constexpr const char* operation = "allocate_at";
    const std::optional<Cover> cover = cover_of(range);
    if (cover && cover->lowest_taken) {
      return error(Errc::bad_state, operation, range, "taken", cover->lowest_taken);
    }
    if (!cover || !cover->all_free) {
      return error(Errc::not_found, operation, range, "not all of it is in the tree");
    }
    return error(Errc::bad_state, operation, range, "it spans several free ranges");
  }

  /// The range is not exactly a taken one.
  [[nodiscard, gnu::cold, gnu::noinline]] Failed not_taken(const char* operation,
                                                           Range range) const {
    const std::optional<Cover> cover = cover_of(range);
    if (!cover) return error(Errc::not_found, operation, range);
    if (cover->all_free) return error(Errc::bad_state, operation, range, "it is free already");
    return error(Errc::overlap, operation, range, "it must be exactly a range that is taken",
                 cover->lowest_taken.value_or(cover->lowest));
  }

  /// The range is not exactly one of the tree's.
  [[nodiscard, gnu::cold, gnu::noinline]] Failed not_there(const char* operation,
                                                           Range range) const {
    const std::optional<Cover> cover = cover_of(range);
    if (!cover) return error(Errc::not_found, operation, range);
    return error(Errc::overlap, operation, range, "it must be exactly a range of the tree",
                 cover->lowest);
  }

 private:
  /// What the tree has of a range that meets it.
  struct Cover {
    Range lowest;                       ///< of the entries that it meets
    std::optional<Range> lowest_taken;  ///< of those that are taken
    bool all_free;                      ///< every member is in the tree, and free
  };

  /// Nothing when no part of the range is in the tree.
  [[nodiscard]] std::optional<Cover> cover_of(Range range) const noexcept {
    const auto there = detail::overlapping(store_, range);
    if (there.empty()) return std::nullopt;
    Cover cover{.lowest = there.front().range, .lowest_taken = std::nullopt, .all_free = true};
    std::uint64_t next = range.min();  // all below is in the tree, and free
    for (const auto& entry : there) {
      if (entry.state != NodeState::free) {
        cover.lowest_taken = entry.range;
        cover.all_free = false;
        return cover;
      }
      cover.all_free = cover.all_free && entry.range.min() <= next;
      next = entry.range.max() + 1;  // 0 after the last of all, where the loop ends
    }
    cover.all_free = cover.all_free && (next == 0 || next > range.max());
    return cover;
  }

  static Failed error(Errc code, const char* operation, Range range, const char* reason = nullptr,
                      const std::optional<Range>& obstacle = std::nullopt) {
    return fail({.code = code,
                 .operation = operation,
                 .first = operand(range),
                 .second = obstacle ? operand(*obstacle) : Operand{},
                 .reason = reason});
  }

  const Store<T>& store_;
};

}  // namespace vmspace::detail
