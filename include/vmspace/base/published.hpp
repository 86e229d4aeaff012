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
// A change that takes time, or that others take part in, goes in steps: a Writer keeps other writers
// out while it reserves what the change will need; it is given up while the change is made ready;
// another one publishes the draft, or rolls back what was reserved.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>

#include "vmspace/base/detail/deadline.hpp"
#include "vmspace/base/detail/published_state.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// A value that any thread may read while others replace it.
///
/// A handle: copies of it are the same value, which lives as long as a handle, Reader or snapshot.
/// T is copyable; it is copied once an update.
///
/// Threads: every call is safe from any thread, on one handle or on several, but for assigning to a
/// handle that another thread uses. Updates happen one after the other, none is lost. A value is
/// destroyed by a writer's call, never by a reader; only once no handle is left does the last Reader or
/// snapshot destroy what there is. An update holds a lock for as long as it runs: code that edits one
/// published value inside an edit of another must take them in one order everywhere, as with mutexes,
/// since two threads that take them in opposite orders wait for each other, undetected.
template <typename T>
class Published {
  using State = detail::PublishedState<T>;
  using Holder = typename State::Holder;

 public:
  class Reader;
  class Writer;

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

  /// The turn to change the value, for changes in steps; update() is one that edits and publishes at
  /// once. Waits for other writers. `would_deadlock` when the calling thread has a Writer of this
  /// value, or is inside an edit. `operation` is what that error names.
  [[nodiscard]] Result<Writer> writer(const char* operation = "Published::writer") const {
    if (state_->is_writer()) {
      return fail({.code = Errc::would_deadlock,
                   .operation = operation,
                   .reason = "must not be called from inside an edit of the same value"});
    }
    return Writer(state_);
  }

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
  /// As moving; what this Reader held is let go.
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
  /// A member of current().
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

/// The turn to change a published value: while it lives, nobody else publishes.
///
/// What a change needs beside the value (places reserved for it, tables of others that follow the
/// value) can be kept under the same turn, rather than under a lock of its own.
///
/// Threads: made, used and destroyed by one thread. Readers go on meanwhile.
template <typename T>
class Published<T>::Writer {
 public:
  /// Moves leave a Writer that may only be assigned to or destroyed.
  Writer(Writer&&) noexcept = default;
  /// As moving; this Writer's turn ends first, as in its destructor.
  Writer& operator=(Writer&& other) noexcept {
    if (this != &other) {
      end();
      state_ = std::move(other.state_);
      draft_ = std::move(other.draft_);
      entry_ = std::move(other.entry_);
    }
    return *this;
  }
  /// Drops a draft that was not published, lets the next writer in, and then destroys old values
  /// that nobody uses any more.
  ~Writer() { end(); }

  /// The current value, which stays until this Writer publishes another.
  [[nodiscard]] const T& current() const noexcept {
    // Only a writer replaces it, and this is the one.
    return state_->current.load(std::memory_order_relaxed)->value;
  }

  /// What publish() makes current: a copy of the current value, made when first asked for, and
  /// again after each publication.
  [[nodiscard]] T& draft() {
    if (draft_.empty()) {
      const auto* before = state_->current.load(std::memory_order_relaxed);
      if (entry_.empty()) entry_.push_back(0);
      entry_.front() = before->generation + 1;
      draft_.push_back({before->value, entry_.front(), entry_.begin()});
    }
    return draft_.back().value;
  }

  /// Makes the draft current: one store, which readers see wholly or not at all. Does nothing
  /// without a draft. Never allocates.
  void publish() noexcept {
    if (!draft_.empty()) state_->publish(draft_, entry_);
  }

  /// Drops the draft.
  void roll_back() noexcept { draft_.clear(); }

 private:
  friend Published;

  explicit Writer(std::shared_ptr<State> state) : state_(std::move(state)) {
    state_->writing.lock();
    state_->writer.store(std::this_thread::get_id(), std::memory_order_relaxed);
  }

  void end() noexcept {
    if (state_ == nullptr) return;
    state_->writer.store({}, std::memory_order_relaxed);
    state_->writing.unlock();
    draft_.clear();
    state_->collect();
    state_.reset();
  }

  std::shared_ptr<State> state_;  ///< null after a move
  std::list<typename State::Value> draft_;
  typename State::Generations entry_;  ///< the draft's
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
  auto turn = writer(operation);
  if (!turn) return fail(turn.error());
  auto result = std::forward<Edit>(edit)(turn->draft());
  if (result) turn->publish();
  return result;
}

template <typename T>
Result<void> Published<T>::wait_released(std::chrono::nanoseconds timeout) const {
  constexpr const char* operation = "Published::wait_released";
  State& state = *state_;
  if (state.is_writer()) {
    return fail({.code = Errc::would_deadlock,
                 .operation = operation,
                 .first = Operand::number(generation()),
                 .reason = "must not be called from inside an edit of the same value"});
  }
  const auto deadline = detail::deadline_after(timeout);
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
