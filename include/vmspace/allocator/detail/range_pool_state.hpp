// SPDX-License-Identifier: Apache-2.0
//
// What the handles and the leases of a RangePool share: what is free, and who holds the rest.
//
// These are two structures, not one tree of both: acquiring searches only what is free, which is
// mostly a few ranges however many are held, and a holder gives back through its own entry in the
// list of those that hold something. The list is in no order; a snapshot is.

#pragma once

#include <cassert>
#include <cstddef>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace::detail {

/// A range of a pool that is held. The pool links to it, so it stays where it is until it is given
/// back.
struct PoolHolding {
  Range range = Range::point(0);
  std::string_view tag = {};  ///< good for as long as the range is held
  PoolHolding* before = nullptr;
  PoolHolding* after = nullptr;
};

/// What a lease holds.
struct LeaseHolding : PoolHolding {
  explicit LeaseHolding(std::string its_tag) noexcept : text(std::move(its_tag)) { tag = text; }

  const std::string text;
};

/// Makes what a lease holds, which a call that fails has no use for.
struct MakeLeaseHolding {
  LeaseHolding*& holding;
  std::string& tag;

  PoolHolding& operator()() const {
    holding = new LeaseHolding(std::move(tag));
    return *holding;
  }
};

/// A pool itself. All calls may run at the same time.
class RangePoolState {
 public:
  /// Without an owner: its first PoolOwner destroys it.
  explicit RangePoolState(std::string name) noexcept : name_(std::move(name)) {}
  RangePoolState(const RangePoolState&) = delete;
  RangePoolState& operator=(const RangePoolState&) = delete;
  /// Whoever holds a range keeps the pool alive, so what is still held are leases that were
  /// abandoned.
  ~RangePoolState() {
    while (first_ != nullptr)
      delete static_cast<LeaseHolding*>(std::exchange(first_, first_->after));
  }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }

  /// Adds a free range; see RangePool::insert.
  [[nodiscard]] Result<void> insert(Range range, const char* operation) {
    const std::lock_guard lock(mutex_);
    const PoolHolding* const held = lowest_held(range);
    const auto free = free_.overlapping(range);
    if (held != nullptr && (free.empty() || held->range < free.front().range)) {
      return fail(
          named({.code = Errc::overlap, .first = operand(range), .second = operand(held->range)},
                operation, held->tag));
    }
    if (free.empty()) reserve_one_more();
    const Result<void> added = free_.insert(range);
    if (!added) return fail(named(added.error(), operation));
    ++inserted_;
    return {};
  }

  /// Takes a range that satisfies the constraint; see RangePool::acquire. `make` gives the
  /// PoolHolding that is to hold it, and is only called once there is such a range.
  template <typename Make>
  [[nodiscard]] Result<Range> acquire(const Constraint& constraint, const Make& make) {
    const std::lock_guard lock(mutex_);
    const Result<Range> place = free_.choose_place(constraint);
    if (!place) return fail(named(place.error(), "RangePool::acquire"));
    reserve_one_more();
    hold(*place, make());
    return *place;
  }

  /// Takes exactly this range; see RangePool::acquire_at and acquire().
  template <typename Make>
  [[nodiscard]] Result<Range> acquire_at(Range range, const Make& make) {
    const std::lock_guard lock(mutex_);
    if (!free_.get_superset(range)) return not_free(range, "RangePool::acquire_at");
    reserve_one_more();
    hold(range, make());
    return range;
  }

  /// Frees what is held. O(log n); never allocates.
  void give_back(PoolHolding& holding) noexcept {
    const std::lock_guard lock(mutex_);
    (holding.before != nullptr ? holding.before->after : first_) = holding.after;
    if (holding.after != nullptr) holding.after->before = holding.before;
    --held_;
    const auto freed = free_.restore(holding.range);
    assert(freed && "what is held is not free");
    static_cast<void>(freed);
  }

  /// What is free, in address order. Allocates.
  [[nodiscard]] std::vector<Range> free_ranges() {
    const std::lock_guard lock(mutex_);
    const auto free = free_.free_ranges();
    return {free.begin(), free.end()};
  }

  /// Everything, free and held, as one tree. `overlap` when something is in the pool twice, which is
  /// a defect. Allocates.
  [[nodiscard]] Result<IntervalTree<std::string>> snapshot() {
    IntervalTree<std::string> all;
    const std::lock_guard lock(mutex_);
    for (const Range& range : free_.free_ranges())
      VMSPACE_TRY(all.insert(range));
    for (const PoolHolding* held = first_; held != nullptr; held = held->after)
      VMSPACE_TRY(all.insert(held->range, std::string(held->tag)));
    return all;
  }

  /// The rule that is broken, as text; null when none is. Allocates.
  [[nodiscard]] const char* check() {
    {
      const std::lock_guard lock(mutex_);
      if (const auto sound = free_.check_invariants(); !sound) return sound.error().reason;
      std::size_t linked = 0;
      for (const PoolHolding* held = first_; held != nullptr; held = held->after)
        ++linked;
      if (linked != held_) return "the holders must be as many as are counted";
    }
    return snapshot() ? nullptr : "a range must be free or held once";
  }

  /// An error as one of an operation of the pool, with its name and the tag of who is in the way.
  [[nodiscard]] Error named(const Error& error, const char* operation,
                            std::string_view holder = {}) const noexcept {
    Error named = error.in(operation);
    named.text = {name_, holder};
    return named;
  }

 private:
  /// Free ranges are kept apart by ends of inserted ones and by what is held: as much memory as they
  /// may come to need is reserved when there is one more of those, so that giving back needs none.
  void reserve_one_more() { free_.reserve(inserted_ + held_ + 1); }

  /// Takes a free range, after reserve_one_more().
  void hold(Range range, PoolHolding& holding) noexcept {
    const auto taken = free_.extract_at(range);
    assert(taken && "the place is free");
    static_cast<void>(taken);
    ++held_;
    holding.range = range;
    holding.before = nullptr;
    holding.after = first_;
    if (first_ != nullptr) first_->before = &holding;
    first_ = &holding;
  }

  /// Why a range can't be taken. O(n).
  [[nodiscard, gnu::cold, gnu::noinline]] tl::unexpected<Error> not_free(Range range,
                                                                         const char* operation) {
    if (const PoolHolding* const held = lowest_held(range)) {
      return fail(named({.code = Errc::bad_state,
                         .first = operand(range),
                         .second = operand(held->range),
                         .reason = "part of the range is already taken"},
                        operation, held->tag));
    }
    return fail(named(free_.extract_at(range).error(), operation));
  }

  /// The holding with the lowest part of the range; null when all of it is free. O(n).
  [[nodiscard]] const PoolHolding* lowest_held(Range range) const noexcept {
    const PoolHolding* lowest = nullptr;
    for (const PoolHolding* held = first_; held != nullptr; held = held->after) {
      if (!held->range.overlaps(range)) continue;
      if (lowest == nullptr || held->range < lowest->range) lowest = held;
    }
    return lowest;
  }

  friend class PoolOwner;

  const std::string name_;
  std::size_t owners_ = 0;  ///< changed by PoolOwner alone
  std::mutex mutex_;        ///< guards all that follows, and what is linked
  IntervalTree<> free_;
  PoolHolding* first_ = nullptr;  ///< of those that hold something
  std::size_t held_ = 0;          ///< how many those are
  std::size_t inserted_ = 0;      ///< ranges
};

/// Destroys a pool. clang's analyzer does not see it: it can't count owners, and would warn of every
/// second one.
inline void destroy_pool([[maybe_unused]] RangePoolState* pool) noexcept {
#ifndef __clang_analyzer__
  delete pool;
#endif
}

/// Shares a pool: the last owner destroys it.
//
// What std::shared_ptr does, without <memory> and <atomic>, 16,000 lines for everybody who includes the
// allocator. Their orders are those of every reference count: one more owner needs none, since this
// one keeps the pool alive; the last one has to see what all others did before it destroys.
class PoolOwner {
 public:
  PoolOwner() noexcept = default;
  explicit PoolOwner(RangePoolState* pool) noexcept : pool_(pool) {
    if (pool_ != nullptr) __atomic_add_fetch(&pool_->owners_, 1, __ATOMIC_RELAXED);
  }
  PoolOwner(const PoolOwner& other) noexcept : PoolOwner(other.pool_) {}
  PoolOwner(PoolOwner&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)) {}
  PoolOwner& operator=(PoolOwner other) noexcept {
    std::swap(pool_, other.pool_);
    return *this;
  }
  ~PoolOwner() {
    if (pool_ != nullptr && __atomic_sub_fetch(&pool_->owners_, 1, __ATOMIC_ACQ_REL) == 0)
      destroy_pool(pool_);
  }

  [[nodiscard]] RangePoolState* get() const noexcept { return pool_; }
  [[nodiscard]] RangePoolState& operator*() const noexcept { return *pool_; }
  [[nodiscard]] RangePoolState* operator->() const noexcept { return pool_; }

 private:
  RangePoolState* pool_ = nullptr;
};

}  // namespace vmspace::detail
