// SPDX-License-Identifier: Apache-2.0
//
// The values of one Published<T>: which is current, which are old, and who holds them.
//
// Two locks, always taken in this order: `writing`, held by a Writer for as long as it lives;
// `guard`, held for a few instructions around the list of values and who holds them. No code of T
// runs under `guard`, so a reader that takes it never waits for the building of a value.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

namespace vmspace {

namespace detail {

/// Two of these never share a cache line, so that a thread that writes one does not slow down those
/// that read another. 64 bytes on x86-64 and on most of aarch64.
inline constexpr std::size_t cache_line = 64;

/// The values of one Published<T>, and who holds which.
///
/// Invariant: `values` is in order of generations and never empty; its last is the current one, and
/// each other has a holder. `handed_back` has no holders. A value's `holders` is the number of
/// Holder entries that name it. `existing` has the generation of every value that is not yet
/// destroyed, in order: those of both lists, and those whose destructors run.
template <typename T>
struct PublishedState {
  using Generations = std::list<std::uint64_t>;
  struct Value {
    T value;
    std::uint64_t generation;
    Generations::iterator entry;  ///< in `existing`
    std::size_t holders = 0;
  };
  using ValueRef = typename std::list<Value>::iterator;

  /// A Reader or a snapshot. A Reader that is parked goes on holding its value, so that to park and
  /// to come back touches nothing but this cache line; whoever publishes takes it away.
  struct alignas(cache_line) Holder {
    enum State : unsigned char {
      empty,   ///< holds nothing
      parked,  ///< holds `value`, and does not use it
      in_use,  ///< holds `value`, for as long as it likes
    };

    std::atomic<State> state{empty};
    ValueRef value{};                       ///< under `guard`; means something unless empty
    std::shared_ptr<PublishedState> owner;  ///< so that what is held outlives the handles
  };
  using HolderRef = typename std::list<Holder>::iterator;

  explicit PublishedState(T first) {
    existing.push_back(1);
    values.push_back({std::move(first), 1, existing.begin()});
    current.store(&values.back(), std::memory_order_relaxed);
  }
  PublishedState(const PublishedState&) = delete;
  PublishedState& operator=(const PublishedState&) = delete;

  // On a line of its own: all that a reader touches while nothing changes. Its address identifies
  // the generation, as that of a held value is not reused; only holders use it.
  alignas(cache_line) std::atomic<const Value*> current;
  std::atomic<std::uint64_t> generation{1};

  alignas(cache_line) std::mutex writing;
  /// The thread that holds `writing`, or none: only that thread ever sees its own identity here, so
  /// a reused id does no harm. std::thread::id rather than the address of a thread_local, because
  /// each shared object with hidden symbols has its own copy of one.
  std::atomic<std::thread::id> writer{};

  std::mutex guard;
  std::condition_variable released;  ///< a value was handed back, or is destroyed
  std::list<Value> values;           ///< under `guard`
  std::list<Value> handed_back;      ///< under `guard`
  Generations existing;              ///< under `guard`
  std::list<Holder> holders;         ///< under `guard`

  /// Whether the calling thread is inside an edit. Only it stores its own identity, so that a stale
  /// read of another's does no harm.
  [[nodiscard]] bool is_writer() const noexcept {
    return writer.load(std::memory_order_relaxed) == std::this_thread::get_id();
  }

  /// With `guard` held: `holder` begins to hold the current value.
  void hold_current(Holder& holder) noexcept {
    holder.value = std::prev(values.end());
    ++holder.value->holders;
    holder.state.store(Holder::in_use, std::memory_order_relaxed);
  }

  /// With `guard` held: `holder` lets go of what it holds, if anything.
  void let_go(Holder& holder) noexcept {
    if (holder.state.exchange(Holder::empty, std::memory_order_relaxed) == Holder::empty) return;
    release(holder.value);
  }

  /// With `guard` held: one holder less.
  void release(ValueRef value) noexcept {
    if (--value->holders == 0 && std::next(value) != values.end()) hand_back(value);
  }

  /// With `guard` held; an old value without holders.
  void hand_back(ValueRef value) noexcept {
    handed_back.splice(handed_back.end(), values, value);
    released.notify_all();
  }

  /// Makes `holder`, a Reader's, hold the current value, and returns that.
  [[gnu::noinline]] const Value* refresh(Holder& holder) noexcept {
    auto expected = Holder::parked;
    // Where nobody took the value while it was parked, it likely is still the current one.
    if (!holder.state.compare_exchange_strong(expected, Holder::in_use) ||
        &*holder.value != current.load(std::memory_order_acquire)) {
      const std::lock_guard lock(guard);
      let_go(holder);
      hold_current(holder);
    }
    return &*holder.value;
  }

  /// Makes `holder`, a Reader's which uses the value `seen`, let others take it.
  void park(Holder& holder, const Value* seen) noexcept {
    // The value is left in place for the next refresh(). Either the publisher, who stores what is
    // current and then looks at this state, sees it parked and takes it; or this thread, which
    // stores the state and then looks at what is current, sees the change and gives it up. Both
    // pairs are sequentially consistent, so that not both can miss the other.
    holder.state.store(Holder::parked, std::memory_order_seq_cst);
    if (current.load(std::memory_order_seq_cst) == seen) return;
    const std::lock_guard lock(guard);
    let_go(holder);
  }

  /// A holder that holds nothing yet. Allocates.
  [[nodiscard]] static HolderRef add_holder(std::shared_ptr<PublishedState> state) {
    std::list<Holder> fresh(1);
    const HolderRef holder = fresh.begin();
    PublishedState& self = *state;
    holder->owner = std::move(state);
    const std::lock_guard lock(self.guard);
    self.holders.splice(self.holders.end(), fresh);
    return holder;
  }

  /// Releases what `holder` holds and removes it. May destroy all of this, if there is no other.
  [[gnu::noinline]] static void remove_holder(HolderRef holder) noexcept {
    const std::shared_ptr<PublishedState> self = std::move(holder->owner);
    std::list<Holder> gone;  // freed after the lock
    const std::lock_guard lock(self->guard);
    self->let_go(*holder);
    gone.splice(gone.end(), self->holders, holder);
  }

  /// With `guard` held by `lock`, which is given up while destructors run: destroys what was handed
  /// back of generations below `end`. A thread that collects only what was old when it began
  /// therefore finishes, however many values others publish meanwhile. Returns how many.
  std::size_t collect(std::unique_lock<std::mutex>& lock, std::uint64_t end) {
    std::size_t count = 0;
    Generations gone;  // freed while the lock is given up, but for the last
    for (;;) {
      auto old = handed_back.begin();
      while (old != handed_back.end() && old->generation >= end)
        ++old;
      if (old == handed_back.end()) return count;
      std::list<Value> rubbish;
      rubbish.splice(rubbish.end(), handed_back, old);
      const auto entry = old->entry;
      lock.unlock();
      rubbish.clear();
      gone.clear();
      ++count;
      lock.lock();
      gone.splice(gone.end(), existing, entry);
      released.notify_all();
    }
  }

  /// Destroys what was handed back; with no lock held.
  std::size_t collect() {
    std::unique_lock lock(guard);
    return collect(lock, values.back().generation);
  }

  /// Makes the one value of `draft` current, whose generation is in `entry`. With `writing` held.
  void publish(std::list<Value>& draft, Generations& entry) noexcept {
    const std::lock_guard lock(guard);
    const ValueRef before = std::prev(values.end());
    values.splice(values.end(), draft);
    existing.splice(existing.end(), entry);
    // Sequentially consistent, as the store and the load of park(): see there.
    current.store(&values.back(), std::memory_order_seq_cst);
    // After what it counts: a thread that sees the generation also sees the value.
    generation.store(values.back().generation, std::memory_order_release);
    if (before->holders == 0) hand_back(before);
    for (Holder& holder : holders) {
      auto expected = Holder::parked;
      // Acquires what the reader did before it parked, so that it comes before the destruction.
      if (holder.state.compare_exchange_strong(expected, Holder::empty)) release(holder.value);
    }
  }
};

}  // namespace detail

}  // namespace vmspace
