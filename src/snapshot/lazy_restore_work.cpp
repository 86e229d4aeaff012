// SPDX-License-Identifier: Apache-2.0
//
// LazyRestore's threads: what they do next, and how they bring the pages of a job.

#include <poll.h>

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/host/zero_test.hpp"

#include "os/thread.hpp"
#include "snapshot/lazy_restore_state.hpp"
#include "snapshot/snapshot_format.hpp"

namespace vmspace {

using detail::PageFate;
using detail::PageLedger;
using detail::PageRun;
using detail::pages_per_extent;
using detail::RestoredRegion;
using detail::snapshot_page;

namespace {

constexpr const char* restore_operation = "LazyRestore";

/// After so many errors in a row the descriptor of the faults counts as dead.
constexpr unsigned most_failed_reads = 100;

}  // namespace

void* LazyRestore::State::thread_body(void* worker) {
  Worker& self = *static_cast<Worker*>(worker);
  detail::name_this_thread("vmspace-restore");
  self.state->work(self);
  self.state->leave();
  return nullptr;
}

void LazyRestore::State::work(Worker& worker) {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return may_work_ || has_ended_; });
  }
  unsigned failed = 0;
  while (!has_ended_) {
    if (is_complete_) {
      finish();
      return;
    }
    const auto answered = answer_fault(worker);
    if (!answered) {
      if (++failed == most_failed_reads) {
        lose_all(answered.error());
        failed = 0;  // where there was nothing to lose, the end is near, and may need this thread
      }
      detail::WakeEvent::pause();
      continue;
    }
    failed = 0;
    if (*answered || step(worker)) continue;
    std::array<pollfd, 2> events{worker.wake.polled(),
                                 pollfd{.fd = faults_->fd(), .events = POLLIN, .revents = 0}};
    worker.wake.wait(events);
  }
}

void LazyRestore::State::wake_threads() noexcept {
  for (const Worker& worker : workers_)
    worker.wake.wake();
}

Result<bool> LazyRestore::State::answer_fault(Worker& worker) {
  uffd_msg message;
  const bool is_there = VMSPACE_TRY(faults_->next(restore_operation, message));
  if (is_there && message.event == UFFD_EVENT_PAGEFAULT) handle(worker, message);
  return is_there;
}

void LazyRestore::State::handle(Worker& worker, const uffd_msg& message) {
  const std::uint64_t address = message.arg.pagefault.address;
  const RestoredRegion* const region = region_at(address);
  if (region == nullptr) return;
  const std::uint64_t offset =
      address - reinterpret_cast<std::uintptr_t>(region->region().host_base());
  const std::uint64_t page = region->pages().first + offset / snapshot_page;
  const PageRun unit = region->whole_units({page, page + 1});
  const std::uint64_t block = options_.fault_size / snapshot_page;
  const std::uint64_t first = page / block * block;
  const PageRun around = region->whole_units(
      {std::max(first, region->pages().first), std::min(first + block, region->pages().end)});
  PageRun job;
  switch (ledger_.take_fault(worker.slot, unit, around, job)) {
    case PageLedger::Found::busy: return;
    case PageLedger::Found::taken: {
      const Wanted wanted{unit.first,
                          (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0};
      return bring(worker, *region, job, PageFate::demand, &wanted);
    }
    case PageLedger::Found::settled: break;
  }
  // Not a job, which the end would wait for. Faults that come during the end are raised again, and
  // must not keep it from the lock.
  const std::uint64_t at = region->offset_of(unit.first);
  std::shared_lock lock(resolving_, std::defer_lock);
  if (!is_finishing_) lock.lock();
  if (is_finishing_) return region->wake(at, unit.size() * snapshot_page);
  region->resolve(at, worker.buffer.as<std::byte>());
}

bool LazyRestore::State::step(Worker& worker) {
  if (!takes_background(worker)) return false;
  return step_working_set(worker) || step_background(worker);
}

bool LazyRestore::State::step_working_set(Worker& worker) {
  if (worker.piece.empty()) {
    const std::size_t next = next_planned_.fetch_add(1);
    if (next >= planned_.size()) {
      next_planned_ = planned_.size();  // so that it never wraps
      return false;
    }
    worker.piece = planned_[next];
  }
  const RestoredRegion& region = region_of(worker.piece.first);
  const PageRun job =
      ledger_.take_next(worker.slot, worker.piece, std::max(pages_per_extent, region.unit_pages()));
  worker.piece.first = job.end;
  if (!job.empty()) bring(worker, region, job, PageFate::working_set);
  return true;
}

bool LazyRestore::State::step_background(Worker& worker) {
  if (is_paused_) return false;
  if (worker.stripe.empty()) {
    worker.stripe = ledger_.next_stripe();
    if (worker.stripe.empty()) return false;
    worker.stripe = region_of(worker.stripe.first).whole_units(worker.stripe);
    worker.data_end = worker.stripe.first;
  }
  const std::uint64_t at = worker.stripe.first;
  if (at >= worker.data_end) {
    look_for_data(worker);
    return true;
  }
  const RestoredRegion& region = region_of(at);
  const std::uint64_t extent_end = (at / pages_per_extent + 1) * pages_per_extent;
  const PageRun within{at, std::min({worker.stripe.end, worker.data_end,
                                     std::max(extent_end, region.whole_units({at, at + 1}).end)})};
  const PageRun job = ledger_.take_next(worker.slot, within, within.size());
  worker.stripe.first = job.end;
  if (!job.empty()) bring(worker, region, job, PageFate::background);
  return true;
}

/// Asks the source where in the stripe it has anything but zeros, and settles what lies before that.
void LazyRestore::State::look_for_data(Worker& worker) {
  PageRun& stripe = worker.stripe;
  const RestoredRegion& region = region_of(stripe.first);
  const PageRun rest{stripe.first, region.pages().end};
  const GuestRange asked = region.guest_range(rest);
  const auto data = source_.next_data(asked);
  const bool is_valid = data && data->base >= asked.base &&
                        data->base.value() - asked.base.value() <= asked.size &&
                        data->size <= asked.size - (data->base.value() - asked.base.value()) &&
                        data->base.is_aligned(snapshot_page) && data->size % snapshot_page == 0;
  if (!is_valid) {
    // Reading tells more: each page that can't be had is reported by itself.
    worker.data_end = stripe.end;
    return;
  }
  const std::uint64_t first =
      rest.first + (data->base.value() - asked.base.value()) / snapshot_page;
  const PageRun found = data->empty()
                            ? PageRun{rest.end, rest.end}
                            : region.whole_units({first, first + data->size / snapshot_page});
  if (ledger_.settle_hole({stripe.first, std::max(stripe.first, found.first)})) {
    is_complete_ = true;
    wake_threads();
  }
  stripe.first = std::min(std::max(stripe.first, found.first), stripe.end);
  worker.data_end = found.end;
}

void LazyRestore::State::bring(Worker& worker, const RestoredRegion& region, PageRun job,
                               PageFate fate, const Wanted* wanted) {
  const std::uint64_t size = job.size() * snapshot_page;
  const std::uint64_t offset = region.offset_of(job.first);
  auto* const buffer = worker.buffer.as<std::byte>();
  const auto read = source_.read(region.guest_range(job).base, {buffer, size});
  if (!read) return bring_apart(worker, region, job, fate, read.error());
  if (!ledger_.begin_filling(worker.slot)) return region.wake(offset, size);
  // Pages of zeros stay absent, which reads as zeros once the memory is unregistered; but for one
  // that somebody waits for.
  const std::uint64_t unit = region.unit_pages() * snapshot_page;
  std::uint64_t zeros = 0;
  for (std::uint64_t at = 0; at < size;) {
    const std::uint64_t begin = at;
    const bool are_zeros = is_zero({buffer + at, unit});
    while (at += unit, at < size && is_zero({buffer + at, unit}) == are_zeros) {
    }
    RestoredRegion::Filled filled{at - begin, 0};
    if (!are_zeros) {
      filled = region.fill(offset + begin, buffer + begin, at - begin);
    } else if (wanted != nullptr &&
               PageRun{job.first + begin / snapshot_page, job.first + at / snapshot_page}.contains(
                   wanted->page)) {
      const std::uint64_t place = region.offset_of(wanted->page);
      // Who writes would fault again on the kernel's one page of zeros.
      const auto* const page = buffer + (place - offset);
      const auto done = wanted->is_write ? region.fill(place, page, unit)
                                         : region.fill_zeros(place, buffer + (place - offset));
      if (done.error != 0) filled = {place - offset - begin, done.error};
    }
    if (are_zeros) zeros += filled.bytes / snapshot_page;
    if (filled.error != 0) {
      const std::uint64_t done = (begin + filled.bytes) / unit * unit / snapshot_page;
      ledger_.settle_first(worker.slot, done, fate, std::min(zeros, done));
      const Error error =
          detail::fail_os(restore_operation, detail::operand(region.guest_range(job)),
                          "no memory for a page of the guest", filled.error)
              .value();
      return lose(worker, region, {job.first + done, job.end}, error);
    }
  }
  finish_job(worker, region, job, fate, zeros);
}

/// Where a job can't be read as a whole, some of its pages may be.
void LazyRestore::State::bring_apart(Worker& worker, const RestoredRegion& region, PageRun job,
                                     PageFate fate, const Error& error) {
  const std::uint64_t unit = region.unit_pages();
  if (job.size() <= unit) return lose(worker, region, job, error);
  const bool is_waited_for = ledger_.drop(worker.slot) || fate == PageFate::demand;
  for (std::uint64_t at = job.first; at < job.end; at += unit) {
    const PageRun one = ledger_.take_next(worker.slot, {at, at + unit}, unit);
    if (!one.empty()) bring(worker, region, one, fate);
  }
  if (is_waited_for) region.wake(region.offset_of(job.first), job.size() * snapshot_page);
}

void LazyRestore::State::lose(Worker& worker, const RestoredRegion& region, PageRun job,
                              const Error& error) {
  const std::uint64_t offset = region.offset_of(job.first);
  const std::uint64_t size = job.size() * snapshot_page;
  note(error);
  const bool is_too_much = ledger_.count_error() >= options_.error_limit;
  if (options_.on_error) options_.on_error(region.guest_range(job), error);
  if (!ledger_.begin_filling(worker.slot)) return region.wake(offset, size);
  region.poison(offset, size);
  finish_job(worker, region, job, PageFate::lost);
  if (is_too_much) lose_all(error);
}

void LazyRestore::State::finish_job(Worker& worker, const RestoredRegion& region, PageRun job,
                                    PageFate fate, std::uint64_t zeros) {
  const auto outcome = ledger_.settle(worker.slot, fate, zeros);
  // Somebody may wait for a page of zeros that stays absent; the fault comes again.
  if (outcome.was_waited_for) region.wake(region.offset_of(job.first), job.size() * snapshot_page);
  if (outcome.is_complete) {
    is_complete_ = true;
    wake_threads();
  }
}

}  // namespace vmspace
