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

#include <cassert>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/interval_entry.hpp"
#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace {

class RangePool;

namespace detail {

/// What the handles and the leases of one pool share.
struct RangePoolState {
  explicit RangePoolState(std::string pool_name) noexcept : name(std::move(pool_name)) {}

  const std::string name;
  std::mutex mutex;
  IntervalTree<std::string> tree;  ///< guarded by the mutex; a taken range holds its tag
};

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
  Lease(Lease&& other) noexcept : pool_(std::move(other.pool_)), range_(other.range_) {}
  /// Returns the range that this lease holds, if any, and takes over that of `other`, which holds
  /// nothing afterwards. Assigning a lease to itself changes nothing.
  Lease& operator=(Lease&& other) noexcept {
    Lease moved(std::move(other));
    std::swap(pool_, moved.pool_);
    std::swap(range_, moved.range_);
    return *this;
  }
  ~Lease() {
    if (is_held()) give_back();
  }

  /// Whether it holds a range.
  [[nodiscard]] bool is_held() const noexcept { return pool_ != nullptr; }

  /// The range that it holds; when it holds nothing, the one that it held last. O(1).
  [[nodiscard]] Range range() const noexcept { return range_; }

  /// The tag that the range was acquired with, copied; empty when it holds nothing. Takes the pool's
  /// lock; O(log n).
  [[nodiscard]] std::string tag() const {
    if (!is_held()) return {};
    const std::lock_guard lock(pool_->mutex);
    return *pool_->tree.find_value(range_.min());
  }

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
  void abandon() noexcept { pool_.reset(); }

 private:
  friend class RangePool;

  Lease(std::shared_ptr<detail::RangePoolState> pool, Range range) noexcept
      : pool_(std::move(pool)), range_(range) {}

  void give_back() noexcept {
    // The tag comes out of the tree, and is destroyed after the lock is released.
    const Result<std::optional<std::string>> freed = [this] {
      const std::lock_guard lock(pool_->mutex);
      return pool_->tree.free(range_);
    }();
    assert(freed.has_value() && "a leased range is taken in its pool");
    static_cast<void>(freed);
    pool_.reset();
  }

  std::shared_ptr<detail::RangePoolState> pool_;  ///< null when it holds nothing
  Range range_;
};

/// A range of a pool that is held, and the tag that says by whom.
struct RangeHolder {
  Range range;
  std::string tag;

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
    RangePool pool(std::make_shared<detail::RangePoolState>(std::move(name)));
    for (const Range& range : ranges) {
      if (const Result<void> added = pool.state_->tree.insert(range); !added) {
        return fail(pool.named(added.error(), "RangePool::create"));
      }
    }
    return pool;
  }

  RangePool(const RangePool&) noexcept = default;
  RangePool& operator=(const RangePool&) noexcept = default;
  ~RangePool() = default;

  /// The name that the pool was created with; valid as long as any handle or lease. O(1).
  [[nodiscard]] const std::string& name() const noexcept { return state_->name; }

  /// Adds a free range. `overlap`, naming the lowest range in the way, when any part of it is in the
  /// pool. O(log n).
  [[nodiscard]] Result<void> insert(Range range) const {
    const std::lock_guard lock(state_->mutex);
    const Result<void> added = state_->tree.insert(range);
    if (!added) return fail(named(added.error(), "RangePool::insert"));
    return {};
  }

  /// Acquires a range that satisfies the constraint. The tag says who holds it, and appears in
  /// holders() and in errors. Errors and cost are those of IntervalTree::allocate.
  [[nodiscard]] Result<Lease> acquire(const Constraint& constraint, std::string tag) const {
    const std::lock_guard lock(state_->mutex);
    const auto range = state_->tree.allocate(constraint, std::move(tag));
    if (!range) return fail(named(range.error(), "RangePool::acquire"));
    return Lease(state_, *range);
  }

  /// Acquires exactly this range. Errors and cost are those of IntervalTree::allocate_at; where a
  /// part of it is held, the error has the tag of the lowest holder as the detail of its text.
  [[nodiscard]] Result<Lease> acquire_at(Range range, std::string tag) const {
    const std::lock_guard lock(state_->mutex);
    const auto taken = state_->tree.allocate_at(range, std::move(tag));
    if (!taken) return fail(named(taken.error(), "RangePool::acquire_at"));
    return Lease(state_, range);
  }

  /// Lists the ranges that are held, with their tags, in address order. O(n); allocates.
  [[nodiscard]] std::vector<RangeHolder> holders() const {
    std::vector<RangeHolder> holders;
    const std::lock_guard lock(state_->mutex);
    for (const auto& entry : state_->tree) {
      if (entry.value != nullptr) holders.push_back({entry.range, *entry.value});
    }
    return holders;
  }

  /// A copy of the pool's ranges as they are now, free and held, for inspection: stats(),
  /// free_ranges(), who holds an address. O(n).
  [[nodiscard]] IntervalTree<std::string> snapshot() const {
    const std::lock_guard lock(state_->mutex);
    return state_->tree;
  }

  /// Checks the invariants of the pool, in release builds too: `corrupt`, with the first rule that is
  /// broken as the reason, which means a defect of this library or a stray write. O(n).
  [[nodiscard]] Result<void> check_invariants() const noexcept {
    constexpr const char* operation = "RangePool::check_invariants";
    const std::lock_guard lock(state_->mutex);
    if (const auto sound = state_->tree.check_invariants(); !sound) {
      return fail(named(sound.error(), operation));
    }
    for (const auto& entry : state_->tree) {
      if (entry.state == NodeState::allocated) {
        return fail(
            named({.code = Errc::corrupt, .reason = "a held range must have a tag"}, operation));
      }
    }
    return {};
  }

  /// Whether two handles are of one pool.
  [[nodiscard]] bool same_as(const RangePool& other) const noexcept {
    return state_ == other.state_;
  }

 private:
  explicit RangePool(std::shared_ptr<detail::RangePoolState> state) noexcept
      : state_(std::move(state)) {}

  /// This error as one of an operation of the pool, with its name and the tag of the holder that is
  /// in the way, if there is one. The lock is held.
  [[nodiscard]] Error named(const Error& error, const char* operation) const noexcept {
    Error named = error.in(operation);
    const std::string* holder = nullptr;
    if (error.second.kind == Operand::Kind::range && error.code != Errc::no_space) {
      holder = state_->tree.find_value(error.second.first);
    }
    named.text = {name(), holder == nullptr ? std::string_view() : std::string_view(*holder)};
    return named;
  }

  std::shared_ptr<detail::RangePoolState> state_;  ///< never null
};

}  // namespace vmspace
