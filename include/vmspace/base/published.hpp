// SPDX-License-Identifier: Apache-2.0
//
// A value that many threads read while it changes now and then, without ever waiting for a writer.
//
// A vCPU thread that handles an exit must know the memory layout now, and cannot afford a lock. So
// a value is never changed in place: a writer edits a copy and publishes it, and a generation
// counter goes up. Each reading thread has a Reader, which holds on to one value and before each
// use asks whether that is still current: while nothing changes, one load and one compare.
//
//   Published<Map> map{Map{...}};
//   auto reader = map.reader();  // once a thread
//   use(reader.current());       // as often as wanted
//   reader.park();               // before KVM_RUN, before sleeping
//
//   VMSPACE_TRY(map.update([&](Map& draft) { return draft.remove(region); }));  // a writer
//   VMSPACE_TRY(map.wait_released(1s));                                         // the old map is gone
//
// Old values are destroyed by writers. A value may be large, and what it holds may be slow to give
// up (mappings), so a reader that lets go last only hands it back; update(), wait_released() and
// collect() destroy what was handed back, outside of all locks.
//
// Two locks, always taken in this order: `writing`, held by a writer for the whole of its update;
// `guard`, held for a few instructions around the list of values and who holds them. No code of T
// runs under `guard`, so a reader that takes it never waits for the building of a value.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>

#include "vmspace/base/result.hpp"

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
      const auto old = std::find_if(handed_back.begin(), handed_back.end(),
                                    [end](const Value& value) { return value.generation < end; });
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

  /// Collects when it goes out of scope.
  struct Collector {
    PublishedState& state;
    ~Collector() { state.collect(); }
  };

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

/// A value that any thread may read while others replace it.
///
/// A handle: copies of it are the same value, which lives as long as a handle, Reader or snapshot.
/// T is copyable; it is copied once an update.
///
/// Threads: every call is safe from any thread, on one handle or on several. Updates happen one
/// after the other, none is lost. A value is destroyed by a writer's call, never by a reader; only
/// once no handle is left does the last Reader or snapshot destroy what there is. An update holds a
/// lock for as long as it runs: code that edits one published value inside an edit of another must
/// take them in one order everywhere, as with mutexes, since two threads that take them in opposite
/// orders wait for each other, undetected.
template <typename T>
class Published {
  using State = detail::PublishedState<T>;
  using Holder = typename State::Holder;

 public:
  class Reader;

  /// Publishes `first` as generation 1.
  explicit Published(T first) : state_(std::make_shared<State>(std::move(first))) {}
  // Without moves of its own, which would leave a handle of nothing: moving copies the handle.
  Published(const Published&) noexcept = default;
  Published& operator=(const Published&) noexcept = default;
  ~Published() = default;

  /// How often a value was published; 1 in the beginning, and only ever growing. A thread that
  /// sees a generation here, and then asks a Reader or takes a snapshot, gets a value of that
  /// generation or a later one. One load.
  [[nodiscard]] std::uint64_t generation() const noexcept {
    return state_->generation.load(std::memory_order_acquire);
  }

  /// A reader for one thread; it holds nothing until first asked. Allocates, takes a lock briefly.
  [[nodiscard]] Reader reader() const { return Reader(state_); }

  /// The current value, which stays as it is as long as the pointer or a copy of it lives. For cold
  /// paths: allocates, takes a lock briefly. What is borrowed from it lives as long as it, so name
  /// the pointer before you use it.
  [[nodiscard]] std::shared_ptr<const T> snapshot() const;

  /// Edits a copy of the current value and publishes it: `edit(T&)` gives a Result, and when that
  /// is an error (or edit throws), nothing is published and the error comes back. The call that
  /// follows sees the edits of this one, whichever threads they are on. `would_deadlock` from
  /// inside an edit of the same value. Cost: the copy, the edit, and the destruction of values that
  /// nobody uses any more. Waits for other writers, never for readers.
  /// `operation` is what its own error names.
  template <typename Edit>
  [[nodiscard]] std::invoke_result_t<Edit, T&> update(
      Edit&& edit, const char* operation = "Published::update") const;

  /// Waits until every value older than the current one is let go of by all who held it, and
  /// destroyed, by this call or by another writer. What becomes old while it waits is not waited
  /// for. Errors: `timed_out` naming the generation of a value that is still held, or none when the
  /// last of them is just being destroyed; `would_deadlock` when called from inside an edit.
  ///
  /// A thread that waits for its own Reader, or for its own snapshot, times out: park the Reader
  /// and reset the snapshot first. The same goes for a destructor of T that waits. References kept
  /// beyond the life of the Reader or snapshot that gave them are a bug that this call can't
  /// detect.
  [[nodiscard]] Result<void> wait_released(std::chrono::nanoseconds timeout) const;

  /// Destroys the old values that were handed back since the last call of a writer, and says how
  /// many: for a thread on the writer's side that has time. Never waits for readers.
  std::size_t collect() const { return state_->collect(); }  // NOLINT(modernize-use-nodiscard)

  /// Whether both are handles of one value.
  [[nodiscard]] bool same_as(const Published& other) const noexcept {
    return state_ == other.state_;
  }

 private:
  std::shared_ptr<State> state_;
};

/// One thread's view of a published value.
///
/// Threads: used by one thread at a time; parked before it is handed to another. Readers of one
/// value don't disturb each other. It may outlive the handles.
template <typename T>
class Published<T>::Reader {
 public:
  /// Moves leave a Reader that may only be assigned to or destroyed.
  Reader(Reader&& other) noexcept
      : state_(std::exchange(other.state_, nullptr)),
        holder_(other.holder_),
        seen_(std::exchange(other.seen_, nullptr)) {}
  Reader& operator=(Reader&& other) noexcept {
    Reader taken(std::move(other));
    std::swap(state_, taken.state_);
    std::swap(holder_, taken.holder_);
    std::swap(seen_, taken.seen_);
    return *this;
  }
  ~Reader() {
    if (state_ != nullptr) State::remove_holder(holder_);
  }

  /// The current value; it stays until the next call of this Reader. One load and one compare while
  /// nothing changed; a lock held for a few instructions after a change.
  [[nodiscard]] const T& current() {
    const auto* value = state_->current.load(std::memory_order_acquire);
    if (value != seen_) [[unlikely]]
      value = seen_ = state_->refresh(*holder_);
    return value->value;
  }
  [[nodiscard]] const T* operator->() { return std::addressof(current()); }

  /// The generation of what current() gave last; 0 when there is none, or it was parked.
  [[nodiscard]] std::uint64_t generation() const noexcept {
    return seen_ == nullptr ? 0 : seen_->generation;
  }

  /// Lets go of the value, so that a thread which sleeps, or runs its guest, keeps no old value
  /// alive. current() comes back. Costs an exchange on a cache line of this Reader's own, and so
  /// does coming back when nothing changed meanwhile.
  void park() noexcept {
    if (seen_ != nullptr) state_->park(*holder_, seen_);
    seen_ = nullptr;
  }

 private:
  friend Published;

  explicit Reader(const std::shared_ptr<State>& state)
      : state_(state.get()), holder_(State::add_holder(state)) {}

  // Plain pointers, and no call takes `this` away: where a Reader is a local variable, a compiler
  // keeps it in registers, and current() is two loads.
  State* state_;
  typename State::HolderRef holder_;
  const typename State::Value* seen_ = nullptr;  ///< what holder_ holds; null while parked
};

template <typename T>
std::shared_ptr<const T> Published<T>::snapshot() const {
  const auto holder = State::add_holder(state_);
  const T* value = nullptr;
  {
    const std::lock_guard lock(state_->guard);
    state_->hold_current(*holder);
    value = std::addressof(holder->value->value);
  }
  // Should the shared_ptr find no memory, it calls the deleter.
  return std::shared_ptr<const T>(value, [holder](const T*) { State::remove_holder(holder); });
}

template <typename T>
template <typename Edit>
std::invoke_result_t<Edit, T&> Published<T>::update(Edit&& edit, const char* operation) const {
  State& state = *state_;
  if (state.is_writer()) {
    return fail({.code = Errc::would_deadlock,
                 .operation = operation,
                 .reason = "must not be called from inside an edit of the same value"});
  }
  const typename State::Collector collector{state};  // runs after the locks are gone
  std::list<typename State::Value> draft;
  typename State::Generations entry(1);
  const std::lock_guard lock(state.writing);
  struct Mark {
    std::atomic<std::thread::id>& writer;
    ~Mark() { writer.store({}, std::memory_order_relaxed); }
  } mark{state.writer};
  state.writer.store(std::this_thread::get_id(), std::memory_order_relaxed);

  // Only a writer replaces the current value, and this is the one.
  const auto* current = state.current.load(std::memory_order_relaxed);
  entry.front() = current->generation + 1;
  draft.push_back({current->value, entry.front(), entry.begin()});
  auto result = std::forward<Edit>(edit)(draft.back().value);
  if (result) state.publish(draft, entry);
  return result;
}

template <typename T>
Result<void> Published<T>::wait_released(std::chrono::nanoseconds timeout) const {
  constexpr const char* operation = "Published::wait_released";
  using Clock = std::chrono::steady_clock;
  State& state = *state_;
  if (state.is_writer()) {
    return fail({.code = Errc::would_deadlock,
                 .operation = operation,
                 .first = Operand::number(generation()),
                 .reason = "must not be called from inside an edit of the same value"});
  }
  const auto now = Clock::now();
  const auto deadline =
      timeout < Clock::time_point::max() - now ? now + timeout : Clock::time_point::max();
  std::unique_lock lock(state.guard);
  const std::uint64_t newest = state.values.back().generation;
  for (bool in_time = true;;) {
    state.collect(lock, newest);
    if (state.existing.front() >= newest) return {};
    if (!in_time) break;
    in_time = state.released.wait_until(lock, deadline) == std::cv_status::no_timeout;
  }
  const std::uint64_t oldest = state.values.front().generation;
  if (oldest < newest) {
    return fail({.code = Errc::timed_out,
                 .operation = operation,
                 .first = Operand::number(oldest),
                 .reason = "a Reader or a snapshot still holds this generation"});
  }
  return fail({.code = Errc::timed_out,
               .operation = operation,
               .reason = "another thread is still destroying an old value"});
}

}  // namespace vmspace
