// SPDX-License-Identifier: Apache-2.0
//
// An ordered set of ranges that do not overlap, each free or taken, from which ranges are allocated
// by size, alignment, window and policy.
//
//   IntervalTree<std::string> mmio;
//   VMSPACE_TRY(mmio.insert(Range::of(0xc000'0000, 0xfbff'ffff)));       // free, to allocate from
//   const auto bar = VMSPACE_TRY(mmio.allocate({.size = 16_KiB, .align = 16_KiB}, "nic0"));
//   bar.value() += " BAR0";                                              // a Range, and its value
//   VMSPACE_TRY(mmio.free(bar));                                         // merged back
//
// How it works. The ranges are the entries of a B+-tree (detail/bplus_tree.hpp):
//
//                     +--------- inner node ----------+    for each child: its lowest address, and
//                     | key    summary   child        |    three maxima over the free ranges below
//                     +---|--------|-----------|------+    it (detail/free_summary.hpp)
//                         v        v           v
//             +-- leaf --+  +-- leaf --+  +-- leaf --+     up to 32 ranges, ascending, arrays of
//             | min max  |<>| min max  |<>| min max  |     their own for bounds, states and values
//             | state T  |  | state T  |  | state T  |     (detail/node.hpp)
//             +----------+  +----------+  +----------+
//
// A tree of up to 32 ranges, which most VMMs never exceed, is one leaf: a sorted array. A look-up
// descends by key. An allocation descends by summary: a child is entered only if its maxima allow
// the request. Where the maxima are sufficient (no alignment; size equal to alignment) every child
// entered has a fit, except for the two that straddle the window's ends, so a search is O(log n).
//
// For other combinations the maxima may come from different ranges, one long enough and one aligned
// well enough, and a leaf may be entered in vain. The tree counts that, and where it is much it learns
// the alignment: it walks over all leaves once, and from then on inner nodes also keep, for each
// child, the longest range that is left from its first multiple of that alignment on. That number
// decides alone, so what has been learned is O(log n) again (detail/learned_alignments.hpp).
//
// Splitting a free range and merging one back change entries in place: a neighbour grows or shrinks,
// and at most two entries are added or removed beside it. Then summaries are made exact again, from
// the leaf upwards, until one stays as it was. There is one exception: after a piece has been cut from a
// range that is long enough for another, that leaf's summary stays as it was, too high, because the
// next piece usually comes from there again. At most one leaf is left behind like that, so a search
// enters at most one leaf in vain for it; const calls need not correct anything. And while the same is
// asked for again and nothing is freed, that next piece is taken there without a search.
//
// A leaf that is full gives entries to a sibling that has space, and is split only where there is none.
// Where entries come in ascending or descending order, the sibling is filled up, so that a tree built
// that way has full leaves.
//
// Longer than 450 lines: it is one class, whose calls are short, and most of it says what they do.

#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/detail/bplus_tree.hpp"
#include "vmspace/allocator/detail/failure.hpp"
#include "vmspace/allocator/detail/free_search.hpp"
#include "vmspace/allocator/detail/free_summary.hpp"
#include "vmspace/allocator/interval_entry.hpp"
#include "vmspace/allocator/interval_iterator.hpp"
#include "vmspace/allocator/interval_tree_stats.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/detail/address_of.hpp"
#include "vmspace/base/detail/min_max.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace {

/// Ranges in address order that do not overlap, each free, allocated, or valued (holding a T).
///
/// Invariant: no two ranges overlap, and a range has a T exactly when it is valued. Ranges may touch;
/// only free() merges them.
///
/// T may be move-only or over-aligned and needs no default constructor; its move constructor and
/// destructor must not throw. A T without members takes no memory.
///
/// A call that returns an error, or throws std::bad_alloc, leaves the tree and the value argument
/// as they were. free(), erase(), update() and the destructor never allocate.
///
/// Arguments may lie inside the tree: a range or a constraint that is part of a value, or a value to
/// be copied or moved to another range.
///
/// Pointers to values and iterators are good until the next call that changes the tree, whichever
/// range that concerns: values move inside the tree. For values with stable addresses, store
/// std::unique_ptr. Moving and swapping trees keeps them good, for the tree that now holds the
/// ranges; except the end iterator of an empty tree.
///
/// Threads: const calls may run at the same time; any other call excludes all others.
template <typename T = NoValue>
class IntervalTree {
  static_assert(std::is_object_v<T> && !std::is_array_v<T> && !std::is_const_v<T>);
  static_assert(std::is_nothrow_move_constructible_v<T> && std::is_nothrow_destructible_v<T>,
                "values move inside the tree, which must not fail halfway");

 public:
  using Entry = IntervalEntry<T>;        ///< a range, its state and its value
  using Iterator = IntervalIterator<T>;  ///< over all entries, in address order
  using value_type = Entry;
  using iterator = Iterator;
  using const_iterator = Iterator;

  /// An empty tree. Allocates nothing.
  IntervalTree() noexcept = default;
  /// Takes over the ranges of `other`, which is then empty and usable. O(1).
  IntervalTree(IntervalTree&& other) noexcept = default;
  /// Destroys the ranges of this tree and takes over those of `other`, which is then empty and
  /// usable. O(n) in this tree's ranges.
  IntervalTree& operator=(IntervalTree&& other) noexcept {
    IntervalTree moved(std::move(other));
    swap(moved);
    return *this;
  }
  /// Copies all ranges and values. Throws what copying a T throws, or std::bad_alloc. O(n).
  IntervalTree(const IntervalTree& other) requires std::copy_constructible<T>
  = default;
  /// Replaces this tree by a copy; when that throws, this tree is as it was. O(n).
  IntervalTree& operator=(const IntervalTree& other) requires std::copy_constructible<T> {
    if (this != detail::address_of(other)) {
      IntervalTree copy(other);
      swap(copy);
    }
    return *this;
  }
  ~IntervalTree() = default;

  /// Exchanges all ranges. O(1).
  void swap(IntervalTree& other) noexcept { tree_.swap(other.tree_); }
  /// As the member.
  friend void swap(IntervalTree& a, IntervalTree& b) noexcept { a.swap(b); }

  /// Removes all ranges and destroys their values. O(n).
  void clear() noexcept { tree_.clear(); }

  /// How many ranges there are, in any state. O(1).
  [[nodiscard]] std::size_t size() const noexcept { return tree_.size(); }
  /// Whether there are none. O(1).
  [[nodiscard]] bool empty() const noexcept { return size() == 0; }

  /// Two trees are equal when they have the same ranges with the same states and values. O(n).
  friend bool operator==(const IntervalTree& a,
                         const IntervalTree& b) requires std::equality_comparable<T> {
    if (a.size() != b.size()) return false;
    auto other = b.begin();
    for (const IntervalEntry<T>& entry : a) {
      if (!(entry == *other++)) return false;
    }
    return true;
  }

  // -- what may be allocated -----------------------------------------------------------------

  /// Adds a free range; it is not merged with a free range that touches it. `overlap`, naming the
  /// lowest range in the way, when any part of it is in the tree. O(log n).
  [[nodiscard]] Result<void> insert(Range range) {
    VMSPACE_TRY(insert_entry(range, nullptr));
    return {};
  }

  /// Adds a range that holds a value. `overlap`, naming the lowest range in the way, when any part
  /// of it is in the tree. Returns a pointer to the stored value, never null. O(log n), amortised
  /// O(1) above all other ranges: building in ascending order needs no hint.
  [[nodiscard]] Result<T*> insert(Range range, T&& value) {
    return insert_entry(range, detail::address_of(value));
  }
  /// As above, with a copy of the value.
  [[nodiscard]] Result<T*> insert(Range range, const T& value) requires std::copy_constructible<T> {
    return insert(range, T(value));
  }

  // -- allocating ----------------------------------------------------------------------------

  /// The range that allocate() would take for the constraint. Changes nothing, so no alignment is
  /// learned from it: its cost is that of allocate() for what allocate() and extract() have taught the
  /// tree, and else up to O(n). Errors: as allocate().
  [[nodiscard]] Result<Range> find_place(const Constraint& constraint) const {
    typename Tree::Path at;
    std::size_t wasted = 0;
    return find_place(constraint, "IntervalTree::find_place", at, wasted);
  }

  /// As find_place(), for who is about to take the place, by allocate_at() or extract_at(), and has
  /// something to do before that may fail. Learns from the search, so that its cost is that of
  /// allocate(). Errors: as allocate().
  [[nodiscard]] Result<Range> choose_place(const Constraint& constraint) {
    typename Tree::Path at;
    return choose_place(constraint, "IntervalTree::choose_place", at);
  }

  /// Takes a range that satisfies the constraint out of a free one, of which the rest stays free;
  /// it is allocated, without a value. The errors of Constraint::validate, or `no_space` when no
  /// free range has a place for it inside the window (two free ranges that touch are not one), with
  /// the largest free piece of the window as what is available, which is O(log n) to find.
  ///
  /// first_match and last_match: O(log n) when align is 1 and when size equals align. For other sizes,
  /// amortised O(log n) for up to four alignments: a call may be O(n) while the tree has not learned
  /// its alignment, which it does before such calls have cost O(n) together. One more alignment takes
  /// the place of another, which pays less often; then a call may be O(n) again.
  ///
  /// best_match: O(n). It tests each free range of the window that may fit, at three to four nanoseconds
  /// (0.35 ms for 100,000), and stops at one that is just as long as asked for. An index by size would
  /// more than double the cost of every other allocation and free.
  [[nodiscard]] Result<Range> allocate(const Constraint& constraint) {
    typename Tree::Path at;
    if (const auto again = tree_.find_again(constraint, at)) {
      take_again(at, *again, nullptr);
      return *again;
    }
    const Result<Range> place = choose_place(constraint, "IntervalTree::allocate", at);
    if (place) take_for(constraint, at, *place, nullptr);
    return place;
  }

  /// Allocates a range that holds `value`, in one step, and gives access to the stored value.
  /// Errors and cost: as allocate() without a value.
  [[nodiscard]] Result<ValuedRange<T>> allocate(const Constraint& constraint, T&& value) {
    typename Tree::Path at;
    if (const auto again = tree_.find_again(constraint, at)) {
      return ValuedRange<T>(*again, *take_again(at, *again, detail::address_of(value)));
    }
    const Range place = VMSPACE_TRY(choose_place(constraint, "IntervalTree::allocate", at));
    return ValuedRange<T>(place, *take_for(constraint, at, place, detail::address_of(value)));
  }
  /// As above, with a copy of the value.
  [[nodiscard]] Result<ValuedRange<T>> allocate(
      const Constraint& constraint, const T& value) requires std::copy_constructible<T> {
    return allocate(constraint, T(value));
  }

  /// Takes exactly this range out of the free one around it. `bad_state`, naming the lowest range
  /// in the way, when any part of it is taken; else `not_found` when any part is not in the tree;
  /// else `bad_state` when it spans several free ranges. O(log n); an error also looks at each range
  /// that it overlaps.
  [[nodiscard]] Result<Range> allocate_at(Range range) {
    typename Tree::Path at;
    if (!locate_free(range, at)) return failure("IntervalTree::allocate_at").not_free(range);
    take(at, range, nullptr);
    return range;
  }

  /// Allocates exactly this range, which holds `value`, in one step, and gives access to the stored
  /// value. Errors and cost: as allocate_at() without a value.
  [[nodiscard]] Result<ValuedRange<T>> allocate_at(Range range, T&& value) {
    typename Tree::Path at;
    if (!locate_free(range, at)) return failure("IntervalTree::allocate_at").not_free(range);
    return ValuedRange<T>(range, *take(at, range, detail::address_of(value)));
  }
  /// As above, with a copy of the value.
  [[nodiscard]] Result<ValuedRange<T>> allocate_at(
      Range range, const T& value) requires std::copy_constructible<T> {
    return allocate_at(range, T(value));
  }

  // -- changing what is there ----------------------------------------------------------------

  /// Gives a taken range a value, and returns the one that it had. The errors of free(). O(log n);
  /// never allocates.
  [[nodiscard]] Result<std::optional<T>> update(Range range, T&& value) {
    typename Tree::Path at;
    if (!locate_taken(range, at)) return failure("IntervalTree::update").not_taken(range);
    std::optional<T> held = hold(detail::address_of(value));  // it may be the one that comes out
    std::optional<T> before = take_value(at);
    put_value(at, held);
    return before;
  }
  /// As above, with a copy of the value.
  [[nodiscard]] Result<std::optional<T>> update(
      Range range, const T& value) requires std::copy_constructible<T> {
    return update(range, T(value));
  }

  /// Frees a taken range and merges it with the free ranges that end right before it and begin
  /// right after it. Returns the value that it had. O(log n); never allocates.
  ///
  /// The range must be exactly one that is taken. Otherwise: `bad_state` when all of it is free
  /// already, however that has merged since; `not_found` when no part of it is in the tree;
  /// `overlap` for anything else (a part of a taken range, more than one, or one and something
  /// beside it), naming the lowest taken range that it overlaps, or the lowest free one when none
  /// is taken. An error also looks at each range that it overlaps.
  [[nodiscard]] Result<std::optional<T>> free(Range range) {
    typename Tree::Path at;
    if (!locate_taken(range, at)) return failure("IntervalTree::free").not_taken(range);
    Result<std::optional<T>> before = take_value(at);
    tree_.free_and_coalesce(at);
    return before;
  }

  /// Removes a range in any state from the tree, and returns the value that it had. The range must
  /// be exactly one of the tree's: `not_found` when no part of it is there; else `overlap`, naming
  /// the lowest range that it overlaps. O(log n); never allocates.
  [[nodiscard]] Result<std::optional<T>> erase(Range range) {
    typename Tree::Path at;
    if (!tree_.locate(range, at)) return failure("IntervalTree::erase").not_found(range);
    Result<std::optional<T>> before = take_value(at);
    tree_.remove(at, 1);
    return before;
  }

  // -- free ranges alone ---------------------------------------------------------------------
  //
  // For who knows elsewhere what is taken: a tree that holds what is free, and nothing else, stays
  // small.

  /// Takes a range that satisfies the constraint out of a free one and out of the tree; the rest of
  /// the free one stays. Errors and cost: as allocate().
  [[nodiscard]] Result<Range> extract(const Constraint& constraint) {
    typename Tree::Path at;
    const Result<Range> place = choose_place(constraint, "IntervalTree::extract", at);
    if (place) take_out(at, *place);
    return place;
  }

  /// Takes exactly this range out of the free one around it, and out of the tree. Errors and cost:
  /// as allocate_at().
  [[nodiscard]] Result<Range> extract_at(Range range) {
    typename Tree::Path at;
    if (!locate_free(range, at)) return failure("IntervalTree::extract_at").not_free(range);
    take_out(at, range);
    return range;
  }

  /// Takes all that is free of a range out of the tree, in however many pieces that is: what an IOMMU
  /// or a boot table reserves, for example. What is taken of the range stays, and what is not in the
  /// tree is no error. O(log n) for each entry that it overlaps; allocates only where it cuts one free
  /// range in two.
  void subtract(Range range) {
    typename Tree::Path at;
    if (locate_free(range, at)) return take_out(at, range);
    // Of every free range that it meets now it has an end or all: that one shrinks or goes, and
    // nothing can fail halfway.
    while (const std::optional<Range> part = first_free_part(range)) {
      static_cast<void>(locate_free(*part, at));
      take_out(at, *part);
      if (part->max() == range.max()) return;
      range = detail::unchecked_range(part->max() + 1, range.max());
    }
  }

  /// Adds a free range and merges it with the free ranges that end right before it and begin right
  /// after it. `overlap`, naming the lowest range in the way, when any part of it is in the tree.
  /// O(log n); allocates nothing while there are fewer ranges than reserve() was given.
  [[nodiscard]] Result<void> restore(Range range) {
    typename Tree::Path at;
    if (empty()) {
      tree_.insert_first(range, NodeState::free, at);
      return {};
    }
    tree_.upper_bound(range.min(), at);
    if (overlaps_at(at, range)) return failure("IntervalTree::restore").overlap(range);
    const typename Tree::FreeNeighbours touching = tree_.free_neighbours(at, range);
    if (touching.left || touching.right) {
      tree_.join(at, range, touching);
    } else {
      tree_.split_if(tree_.prepare_split(at, 1), at);
      tree_.insert(at, range, NodeState::free);
    }
    return {};
  }

  /// Keeps as much memory as `n` ranges may need, so that until the tree has more no call fails for want
  /// of memory; nor does one allocate, but for an allocate(), extract() or choose_place() that learns its
  /// first alignment, and does without where it can't. It keeps never less than it was told before. clear(),
  /// moving and assigning give it up. O(n) in what there is not yet.
  void reserve(std::size_t n) { tree_.reserve(n); }

  // -- looking up ----------------------------------------------------------------------------

  /// The entry that is exactly this range; empty when there is none. O(log n).
  [[nodiscard]] std::optional<Entry> get(Range range) const noexcept {
    std::optional<Entry> found = find(range.min());
    if (found && found->range != range) found.reset();
    return found;
  }

  /// The entry that contains this member; empty when there is none. O(log n).
  [[nodiscard]] std::optional<Entry> find(std::uint64_t point) const noexcept {
    const typename Tree::Position at = position_of(point);
    if (at.leaf == nullptr) return std::nullopt;
    return *Iterator(at.leaf, at.pos);
  }

  /// The entry that contains all of this range; empty when there is none. O(log n).
  [[nodiscard]] std::optional<Entry> get_superset(Range range) const noexcept {
    std::optional<Entry> found = find(range.min());
    if (found && !found->range.contains(range)) found.reset();
    return found;
  }

  /// The value of the range that contains this member; null when there is none. O(log n).
  [[nodiscard]] T* find_value(std::uint64_t point) noexcept {
    const typename Tree::Position at = position_of(point);
    if (at.leaf == nullptr || !at.leaf->valued.test(at.pos)) return nullptr;
    return at.leaf->values.at(at.pos);
  }
  /// As above, for reading.
  [[nodiscard]] const T* find_value(std::uint64_t point) const noexcept {
    return const_cast<IntervalTree*>(this)->find_value(point);
  }

  // -- iterating -----------------------------------------------------------------------------

  /// All entries in address order. O(1); so is each step.
  [[nodiscard]] Iterator begin() const noexcept { return {tree_.first(), 0}; }
  /// Behind the last entry. O(1).
  [[nodiscard]] Iterator end() const noexcept { return {tree_.last(), end_pos()}; }

  /// The entries that overlap `range`, in address order. O(log n).
  [[nodiscard]] IntervalView<Iterator> overlapping(Range range) const noexcept {
    return detail::overlapping(tree_, range);
  }

  /// The free ranges in address order, as a view of Range. Costs one step of FreeRangeIterator: what is
  /// taken before the first is passed.
  [[nodiscard]] IntervalView<FreeRangeIterator<T>> free_ranges() const noexcept {
    return {{tree_.first(), 0}, {tree_.last(), end_pos()}};
  }

  // -- the whole tree ------------------------------------------------------------------------

  /// How many ranges there are in each state, and how large they are. O(n).
  [[nodiscard]] IntervalTreeStats stats() const noexcept {
    constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
    const auto saturated = [](std::uint64_t a, std::uint64_t b) {
      return a > most - b ? most : a + b;
    };
    IntervalTreeStats stats;
    for (const Entry& entry : *this) {
      const std::uint64_t amount = saturated(entry.range.max() - entry.range.min(), 1);
      switch (entry.state) {
        case NodeState::free: ++stats.free_ranges; break;
        case NodeState::allocated: ++stats.allocated_ranges; break;
        case NodeState::valued: ++stats.valued_ranges; break;
      }
      if (entry.state == NodeState::free) {
        stats.free_amount = saturated(stats.free_amount, amount);
        stats.largest_free = detail::max_of(stats.largest_free, amount);
      } else {
        stats.taken_amount = saturated(stats.taken_amount, amount);
      }
    }
    return stats;
  }

  /// Checks every rule of the structure, in release builds too: `corrupt`, with the first rule that
  /// is broken as the reason, which means a defect of this library or a stray write. O(n).
  [[nodiscard]] Result<void> check_invariants() const noexcept {
    if (const char* rule = tree_.check()) {
      return fail(
          {.code = Errc::corrupt, .operation = "IntervalTree::check_invariants", .reason = rule});
    }
    return {};
  }

 private:
  using Tree = detail::BPlusTree<T>;

  [[nodiscard]] unsigned end_pos() const noexcept {
    return tree_.last() == nullptr ? 0 : tree_.last()->count;
  }

  /// Explains why a call of this name failed.
  [[nodiscard]] detail::TreeFailure<T> failure(const char* operation) const noexcept {
    return {tree_, operation};
  }

  /// The path to the taken entry that is exactly this range; false when there is none.
  [[nodiscard]] bool locate_taken(Range range, typename Tree::Path& at) const noexcept {
    return tree_.locate(range, at) && !at.leaf->free.test(at.pos);
  }

  /// The path to the free entry that contains all of this range; false when there is none.
  [[nodiscard]] bool locate_free(Range range, typename Tree::Path& at) const noexcept {
    if (empty()) return false;
    tree_.upper_bound(range.min(), at);
    if (at.pos == 0) return false;
    --at.pos;
    return at.leaf->free.test(at.pos) && at.leaf->max[at.pos] >= range.max();
  }

  /// The lowest part of the range that lies in one free entry; nothing when none is free.
  [[nodiscard]] std::optional<Range> first_free_part(Range range) const noexcept {
    for (const Entry& entry : overlapping(range)) {
      if (entry.state == NodeState::free) return entry.range.intersection(range);
    }
    return std::nullopt;
  }

  /// Whether an entry overlaps the range, given the path that upper_bound() finds for its first member.
  [[nodiscard]] bool overlaps_at(const typename Tree::Path& at, Range range) const noexcept {
    const typename Tree::Position after = tree_.entry_after(at);
    return (at.pos > 0 && at.leaf->max[at.pos - 1] >= range.min()) ||
           (after.leaf != nullptr && after.leaf->min[after.pos] <= range.max());
  }

  /// What satisfies the constraint, with the path to the free entry that contains it, and how many
  /// leaves were searched in vain.
  [[nodiscard]] Result<Range> find_place(const Constraint& constraint, const char* operation,
                                         typename Tree::Path& at, std::size_t& wasted) const {
    if (!constraint.is_valid()) [[unlikely]]
      return fail(constraint.validate().error().in(operation));
    const detail::Request request(constraint);
    const detail::SearchOutcome search = detail::find_fit(tree_, request, constraint.policy, at);
    wasted = search.wasted;
    if (!search.found) return failure(operation).no_space(constraint);
    return detail::unchecked_range(search.base, search.base + request.extent());
  }

  /// Finds a place, and learns from a search that was long in vain.
  [[nodiscard]] Result<Range> choose_place(const Constraint& constraint, const char* operation,
                                           typename Tree::Path& at) {
    std::size_t wasted = 0;
    Result<Range> place = find_place(constraint, operation, at, wasted);
    if (wasted != 0) tree_.settle();
    tree_.learn(constraint, wasted);
    return place;
  }

  /// The entry that contains `point`, or no leaf.
  [[nodiscard]] typename Tree::Position position_of(std::uint64_t point) const noexcept {
    typename Tree::Position at = tree_.upper_bound(point);
    if (at.pos == 0 || at.leaf->max[at.pos - 1] < point) return {};
    --at.pos;
    return at;
  }

  /// Moves the value, if it has one, out of an entry, which is no longer valued.
  static std::optional<T> take_value(const typename Tree::Path& at) noexcept {
    auto& leaf = *at.leaf;
    if (!leaf.valued.test(at.pos)) return std::nullopt;
    std::optional<T> value(std::move(*leaf.values.at(at.pos)));
    leaf.values.destroy(at.pos);
    leaf.valued.reset(at.pos);
    return value;
  }

  /// Moves a value argument, if there is one, to where no change of the tree reaches it: it may be
  /// in the tree, where entries are about to move. To be called once nothing can fail any more.
  static std::optional<T> hold(T* value) noexcept {
    std::optional<T> held;
    if (value != nullptr) held.emplace(std::move(*value));
    return held;
  }

  /// Moves a value, if there is one, into an entry without; returns where it is, or null.
  static T* put_value(const typename Tree::Path& at, std::optional<T>& value) noexcept {
    if (!value) return nullptr;
    at.leaf->values.construct(at.pos, *std::move(value));
    at.leaf->valued.set(at.pos);
    return at.leaf->values.at(at.pos);
  }

  Result<T*> insert_entry(Range range, T* value) {
    const NodeState state = value == nullptr ? NodeState::free : NodeState::allocated;
    typename Tree::Path at;
    if (empty()) {
      tree_.insert_first(range, state, at);
      std::optional<T> held = hold(value);
      return put_value(at, held);
    }
    if (value != nullptr && tree_.is_appendable(range)) {
      std::optional<T> held = hold(value);
      tree_.append(range, at);
      return put_value(at, held);
    }
    tree_.upper_bound(range.min(), at);
    if (overlaps_at(at, range)) return failure("IntervalTree::insert").overlap(range);
    const bool must_split = tree_.prepare_split(at, 1);
    std::optional<T> held = hold(value);
    tree_.split_if(must_split, at);
    tree_.insert(at, range, state);
    return put_value(at, held);
  }

  /// Turns `piece` of the free entry at the path into a taken one, and returns where its value is.
  T* take(typename Tree::Path& at, Range piece, T* value) {
    const bool must_split = tree_.prepare_split(at, Tree::sides_left(at, piece));
    std::optional<T> held = hold(value);
    tree_.split_if(must_split, at);
    tree_.split_entry(at, piece);
    return put_value(at, held);
  }

  /// As take(), for a place that was found for the constraint: of which there is a copy, as it may be in
  /// the tree.
  T* take_for(Constraint constraint, typename Tree::Path& at, Range piece, T* value) {
    T* const stored = take(at, piece, value);
    if (constraint.policy == AllocPolicy::first_match) tree_.note_first_match(constraint, at);
    return stored;
  }

  /// As take(), for a place that was found again.
  T* take_again(typename Tree::Path& at, Range piece, T* value) noexcept {
    std::optional<T> held = hold(value);
    tree_.split_entry_in_leaf(at, piece);
    return put_value(at, held);
  }

  /// Takes `piece` of the free entry at the path out of the tree.
  void take_out(typename Tree::Path& at, Range piece) {
    tree_.split_if(tree_.prepare_split(at, Tree::sides_left(at, piece) == 2), at);
    tree_.extract(at, piece);
  }

  Tree tree_;
};

}  // namespace vmspace
