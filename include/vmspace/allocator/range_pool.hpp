// SPDX-License-Identifier: Apache-2.0
//
// A named pool of ranges that several parts of a VMM take from, each range held by a lease that
// returns it: interrupt numbers, I/O ports, memory slots, offsets in a reserved area.
//
//   const RangePool gsis = VMSPACE_TRY(RangePool::create("GSI", {Range::of(5, 23)}));
//   const Lease irq = VMSPACE_TRY(gsis.acquire({.size = 1}, "nic0"));
//   program(irq.range().min());        // irq returns the number when it is destroyed
//
// Copies of a pool are handles of one pool. A lease keeps what it needs of the pool alive, so pools
// and leases may be destroyed in any order, on any thread.

#pragma once

#include <string>
#include <utility>
#include <vector>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/detail/range_pool_state.hpp"
#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace {

class RangePool;

namespace detail {

/// The pool of a handle, for holders that keep the handle for as long as they have ranges of it, and
/// have a place of their own for what they hold. They need no lease, with a reference to the pool.
[[nodiscard]] RangePoolState& state_of(const RangePool& pool) noexcept;

}  // namespace detail

/// Holds a range of a RangePool, and returns it when it is destroyed.
///
/// Returning a range waits at most for a running call on the pool; it never allocates and never
/// fails. A lease may be moved to, and destroyed on, any thread, also when all handles of its pool
/// are gone. One that was released or moved from holds nothing; it may be assigned to.
///
/// Threads: const calls may run at the same time; any other call excludes all others on this lease.
class [[nodiscard]] Lease {
 public:
  /// `other` holds nothing afterwards.
  Lease(Lease&& other) noexcept
      : pool_(std::move(other.pool_)),
        holding_(std::exchange(other.holding_, nullptr)),
        range_(other.range_) {}
  /// Returns the range that this lease holds, if any, and takes over that of `other`, which holds
  /// nothing afterwards. Assigning a lease to itself changes nothing.
  Lease& operator=(Lease&& other) noexcept {
    Lease moved(std::move(other));
    std::swap(pool_, moved.pool_);
    std::swap(holding_, moved.holding_);
    std::swap(range_, moved.range_);
    return *this;
  }
  ~Lease() {
    if (is_held()) give_back();
  }

  /// Whether it holds a range.
  [[nodiscard]] bool is_held() const noexcept { return holding_ != nullptr; }

  /// The range that it holds; when it holds nothing, the one that it held last. O(1).
  [[nodiscard]] Range range() const noexcept { return range_; }

  /// The tag that the range was acquired with, copied; empty when it holds nothing.
  [[nodiscard]] std::string tag() const { return is_held() ? holding_->text : std::string(); }

  /// Returns the range now instead of on destruction. `bad_state`, without the
  /// pool's name, when it holds nothing. O(log n); never allocates.
  [[nodiscard]] Result<void> release() noexcept {
    if (!is_held()) {
      return fail({.code = Errc::bad_state,
                   .operation = "Lease::release",
                   .first = detail::operand(range_),
                   .reason = "the lease was already released or moved from"});
    }
    give_back();
    return {};
  }

  /// Gives up the lease and leaves its range taken, under its tag, for as long as the pool lives: for
  /// a range that nobody may get again, because what it numbers could not be taken down. Does
  /// nothing when it holds nothing. O(1).
  void abandon() noexcept {
    holding_ = nullptr;  // the pool's
    pool_ = {};
  }

 private:
  friend class RangePool;

  Lease(const detail::PoolOwner& pool, detail::LeaseHolding* holding) noexcept
      : pool_(pool), holding_(holding), range_(holding->range) {}

  void give_back() noexcept {
    pool_->give_back(*holding_);
    delete std::exchange(holding_, nullptr);
    pool_ = {};
  }

  detail::PoolOwner pool_;                   ///< of nothing when it holds nothing
  detail::LeaseHolding* holding_ = nullptr;  ///< null when it holds nothing
  Range range_;
};

/// A range of a pool that is held, and the tag that says by whom.
struct RangeHolder {
  Range range;      ///< what is held
  std::string tag;  ///< as it was given when the range was acquired

  friend bool operator==(const RangeHolder&, const RangeHolder&) = default;
};

/// A named set of ranges, from which leases are acquired.
///
/// Invariant: each range is free, or held under a tag by exactly one lease, which may be abandoned.
///
/// A handle: copies are the same pool, and moving copies, so every handle can be used at any time.
/// Errors carry the pool's name. A call that returns an error, or throws std::bad_alloc, changes
/// nothing.
///
/// Threads: all calls, on any handles, may run at the same time, but for assigning to a handle that
/// another thread uses.
class RangePool {
 public:
  /// Creates a pool whose free ranges are `ranges`. `overlap` when two of them overlap. Ranges that
  /// touch are separate, as no lease spans them, until a range at their border is returned: then
  /// they merge. The name appears in errors.
  [[nodiscard]] static Result<RangePool> create(std::string name,
                                                const std::vector<Range>& ranges) {
    const RangePool pool(new detail::RangePoolState(std::move(name)));
    for (const Range& range : ranges) {
      VMSPACE_TRY(pool.state_->insert(range, "RangePool::create"));
    }
    return pool;
  }

  RangePool(const RangePool&) noexcept = default;
  RangePool& operator=(const RangePool&) noexcept = default;
  ~RangePool() = default;

  /// The name that the pool was created with; valid as long as any handle or lease. O(1).
  [[nodiscard]] const std::string& name() const noexcept { return state_->name(); }

  /// Adds a free range. `overlap`, naming the lowest range in the way, when any part of it is in the
  /// pool. O(n) in what is held.
  [[nodiscard]] Result<void> insert(Range range) const {
    return state_->insert(range, "RangePool::insert");
  }

  /// Acquires a range that satisfies the constraint. The tag says who holds it, and appears in
  /// holders() and in errors. Errors and cost are those of IntervalTree::allocate.
  [[nodiscard]] Result<Lease> acquire(const Constraint& constraint, std::string tag) const {
    detail::LeaseHolding* holding = nullptr;
    VMSPACE_TRY(state_->acquire(constraint, detail::MakeLeaseHolding{holding, tag}));
    return Lease(state_, holding);
  }

  /// Acquires exactly this range. Errors and cost are those of IntervalTree::allocate_at; where a
  /// part of it is held, the error has the tag of the lowest holder as the detail of its text, and
  /// costs O(n) in what is held.
  [[nodiscard]] Result<Lease> acquire_at(Range range, std::string tag) const {
    detail::LeaseHolding* holding = nullptr;
    VMSPACE_TRY(state_->acquire_at(range, detail::MakeLeaseHolding{holding, tag}));
    return Lease(state_, holding);
  }

  /// Lists the ranges that are held, with their tags, in address order. O(n log n); allocates.
  [[nodiscard]] std::vector<RangeHolder> holders() const {
    std::vector<RangeHolder> holders;
    for (const IntervalEntry<std::string>& entry : snapshot()) {
      if (entry.value != nullptr) holders.push_back({entry.range, *entry.value});
    }
    return holders;
  }

  /// Lists the ranges that are free, in address order. O(n) in them; allocates.
  [[nodiscard]] std::vector<Range> free_ranges() const { return state_->free_ranges(); }

  /// The pool's ranges as they are now, free and held, for inspection: stats(), free_ranges(), who
  /// holds an address. O(n log n); allocates.
  [[nodiscard]] IntervalTree<std::string> snapshot() const { return *state_->snapshot(); }

  /// Checks the invariants of the pool, in release builds too: `corrupt`, with the first rule that is
  /// broken as the reason, which means a defect of this library or a stray write. O(n log n);
  /// allocates.
  [[nodiscard]] Result<void> check_invariants() const {
    const char* const broken = state_->check();
    if (broken == nullptr) return {};
    return fail(
        state_->named({.code = Errc::corrupt, .reason = broken}, "RangePool::check_invariants"));
  }

  /// Whether two handles are of one pool.
  [[nodiscard]] bool same_as(const RangePool& other) const noexcept {
    return state_.get() == other.state_.get();
  }

 private:
  friend detail::RangePoolState& detail::state_of(const RangePool& pool) noexcept;

  explicit RangePool(detail::RangePoolState* state) noexcept : state_(state) {}

  detail::PoolOwner state_;  ///< never of nothing
};

inline detail::RangePoolState& detail::state_of(const RangePool& pool) noexcept {
  return *pool.state_;
}

}  // namespace vmspace
