// SPDX-License-Identifier: Apache-2.0
//
// How a LazyRestore ends, and waiting for it.

#include <algorithm>
#include <chrono>
#include <utility>

#include "os/page_size.hpp"
#include "snapshot/lazy_restore_state.hpp"
#include "snapshot/snapshot_format.hpp"

namespace vmspace {

using detail::PageRun;
using detail::RestoredRegion;
using detail::snapshot_page;

LazyRestore::State::~State() {
  const auto has_started = [&] {
    const std::lock_guard lock(mutex_);
    return may_work_;
  };
  if (has_started()) {
    cancel({.code = Errc::bad_state,
            .operation = "LazyRestore",
            .reason = "the restore was destroyed before all pages had come"});
  } else {
    // Before the workers go, which a discard of a region that has not ended wakes.
    for (RestoredRegion& region : regions_)
      region.end();
    const std::lock_guard lock(mutex_);
    has_ended_ = true;
  }
  changed_.notify_all();
  for (std::size_t i = 0; i < running_; ++i)
    pthread_join(workers_[i].thread, nullptr);
}

void LazyRestore::State::note(const Error& error) noexcept {
  const std::lock_guard lock(mutex_);
  if (!first_error_) first_error_ = error;
}

void LazyRestore::State::cancel(const Error& cause) noexcept {
  lose_all(cause);
  // Called from on_error, in the middle of that.
  if (loser_.load() == std::this_thread::get_id()) return;
  std::unique_lock lock(mutex_);
  static_cast<void>(await_end(lock, detail::Deadline::max()));
}

bool LazyRestore::State::await_end(std::unique_lock<std::mutex>& lock, detail::Deadline deadline) {
  if (!changed_.wait_until(lock, deadline, [&] { return has_ended_ || is_complete_; }))
    return false;
  if (!has_ended_) {
    lock.unlock();
    finish();
    lock.lock();
  }
  return changed_.wait_until(lock, deadline, [&] { return has_ended_.load(); });
}

void LazyRestore::State::lose_all(const Error& cause) noexcept {
  if (loser_.load() == std::this_thread::get_id() || !ledger_.begin_loss()) return;
  loser_ = std::this_thread::get_id();
  for (PageRun run = ledger_.next_open(0); !run.empty(); run = ledger_.next_open(run.end)) {
    note(cause);
    const RestoredRegion& region = region_of(run.first);
    if (options_.on_error) options_.on_error(region.guest_range(run), cause);
    region.poison(region.offset_of(run.first), run.size() * snapshot_page);
    ledger_.settle_lost(run);
  }
  ledger_.end_loss();
  loser_ = std::thread::id();
  finish();
}

void LazyRestore::State::finish() noexcept {
  if (is_finishing_.exchange(true)) return;
  {
    const std::unique_lock lock(resolving_);
    for (RestoredRegion& region : regions_)
      region.end();
  }
  if (options_.collapse) collapse();
  {
    const std::lock_guard lock(mutex_);
    has_ended_ = true;
  }
  changed_.notify_all();
  wake_threads();
  leave();
}

void LazyRestore::State::leave() noexcept {
  if (--staying_ != 0) return;
  for (RestoredRegion& region : regions_)
    region.let_go();
  faults_.reset();
}

/// Where anything was brought: huge pages there cost no more than they would have from the start.
void LazyRestore::State::collapse() const noexcept {
  for (PageRun run = ledger_.next_filled(0); !run.empty(); run = ledger_.next_filled(run.end)) {
    for (const RestoredRegion& region : regions_) {
      const PageRun part{std::max(run.first, region.pages().first),
                         std::min(run.end, region.pages().end)};
      if (part.first >= part.end) continue;
      // What fails stays as it is: small pages hold the same.
      static_cast<void>(region.region().mapping().collapse(region.offset_of(part.first),
                                                           part.size() * snapshot_page));
    }
  }
}

Result<void> LazyRestore::State::wait(std::chrono::nanoseconds timeout) {
  const auto deadline = detail::deadline_after(timeout);
  std::unique_lock lock(mutex_);
  if (!await_end(lock, deadline)) {
    return fail({.code = Errc::timed_out,
                 .operation = "LazyRestore::wait",
                 .first = Operand::size(ledger_.statistics().remaining),
                 .reason = "so many bytes have not come yet"});
  }
  if (first_error_) return fail(*first_error_);
  return {};
}

void LazyRestore::State::pause(bool paused) noexcept {
  is_paused_ = paused;
  if (!paused) wake_threads();
}

const RestoredRegion& LazyRestore::State::region_of(std::uint64_t page) const noexcept {
  const auto after = std::ranges::upper_bound(
      regions_, page, {}, [](const RestoredRegion& region) { return region.pages().first; });
  return *std::prev(after);
}

RestoredRegion* LazyRestore::State::region_at(std::uint64_t host_address) const noexcept {
  const auto begin_of = [](const RestoredRegion* region) {
    return reinterpret_cast<std::uintptr_t>(region->region().host_base());
  };
  const auto after = std::ranges::upper_bound(by_host_address_, host_address, {}, begin_of);
  if (after == by_host_address_.begin()) return nullptr;
  RestoredRegion* const region = *std::prev(after);
  return host_address - begin_of(region) < region->region().size() ? region : nullptr;
}

}  // namespace vmspace
