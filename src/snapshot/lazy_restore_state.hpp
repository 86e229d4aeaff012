// SPDX-License-Identifier: Apache-2.0
//
// A LazyRestore behind its handle: regions, threads, and the order in which they bring pages.

#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <thread>
#include <vector>

#include "vmspace/base/detail/deadline.hpp"
#include "vmspace/snapshot/lazy_restore.hpp"

#include "host/userfault.hpp"
#include "os/forked_child.hpp"
#include "os/wake_event.hpp"
#include "snapshot/careful_source.hpp"
#include "snapshot/page_ledger.hpp"
#include "snapshot/restored_region.hpp"

namespace vmspace {

class VMSPACE_HIDDEN LazyRestore::State {
 public:
  State(std::shared_ptr<PageSource> source, const LazyRestoreOptions& options);
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  /// Cancels, and joins the threads.
  ~State();

  const detail::Maker maker;

  /// All of LazyRestore::start() but the checks of its options. After an error the destructor leaves
  /// the memory as it was.
  [[nodiscard]] Result<void> start(const GuestMemory& memory);

  [[nodiscard]] Result<void> wait(std::chrono::nanoseconds timeout);
  [[nodiscard]] bool is_done() const noexcept { return has_ended_.load(); }
  void pause(bool paused) noexcept;
  /// `cause` is what wait() says from then on.
  void cancel(const Error& cause) noexcept;
  [[nodiscard]] LazyRestoreStatistics statistics() const noexcept { return ledger_.statistics(); }
  [[nodiscard]] Result<WorkingSet> working_set() const;

 private:
  /// A thread, and what it has taken of the work.
  struct Worker {
    State* state = nullptr;
    unsigned slot = 0;
    pthread_t thread = {};
    detail::WakeEvent wake = {};    // there is something to do, or nothing any more
    detail::LazyTable buffer = {};  // of buffer_size_
    detail::PageRun piece = {};     // of the working set
    detail::PageRun stripe = {};    // of the background
    std::uint64_t data_end = 0;     // up to here the source has data in it, from its beginning on
  };
  /// What somebody waits for in a job.
  struct Wanted {
    std::uint64_t page;
    bool is_write;
  };

  // Starting.
  [[nodiscard]] Result<void> add_regions(const GuestMemory& memory);
  [[nodiscard]] Result<void> compare(const MemoryRegion& region);
  [[nodiscard]] Result<void> settle_absent_blocks(const detail::RestoredRegion& region);
  [[nodiscard]] Result<void> plan_working_set();
  [[nodiscard]] Result<void> add_workers();
  [[nodiscard]] Result<void> start_threads();

  // The threads.
  static void* thread_body(void* worker);
  void work(Worker& worker);
  /// Answers one fault if there is one; false if not. Errors: `os`.
  [[nodiscard]] Result<bool> answer_fault(Worker& worker);
  void handle(Worker& worker, const uffd_msg& message);
  /// One piece of what nobody waits for; false when there is none for this thread.
  [[nodiscard]] bool step(Worker& worker);
  [[nodiscard]] bool step_working_set(Worker& worker);
  [[nodiscard]] bool step_background(Worker& worker);
  void look_for_data(Worker& worker);
  [[nodiscard]] bool takes_background(const Worker& worker) const noexcept {
    return worker.slot != 0 || workers_.size() == 1;
  }
  void wake_threads() noexcept;

  // Bringing the pages of a job, which the worker's slot has.
  void bring(Worker& worker, const detail::RestoredRegion& region, detail::PageRun job,
             detail::PageFate fate, const Wanted* wanted = nullptr);
  void bring_apart(Worker& worker, const detail::RestoredRegion& region, detail::PageRun job,
                   detail::PageFate fate, const Error& error);
  void lose(Worker& worker, const detail::RestoredRegion& region, detail::PageRun job,
            const Error& error);
  void finish_job(Worker& worker, const detail::RestoredRegion& region, detail::PageRun job,
                  detail::PageFate fate, std::uint64_t zeros = 0);

  // The end.
  void note(const Error& error) noexcept;
  void lose_all(const Error& cause) noexcept;
  void finish() noexcept;
  /// Waits for the end, with the lock; false when it has not come in time. What is complete is finished
  /// here, since all threads may be in calls of the source.
  [[nodiscard]] bool await_end(std::unique_lock<std::mutex>& lock, detail::Deadline deadline);
  /// Called by each thread and by finish(): the last one closes the userfaultfd, which unregisters what
  /// the regions could not.
  void leave() noexcept;

  void collapse() const noexcept;

  [[nodiscard]] const detail::RestoredRegion& region_of(std::uint64_t page) const noexcept;
  /// Null where there is none.
  [[nodiscard]] detail::RestoredRegion* region_at(std::uint64_t host_address) const noexcept;

  detail::CarefulSource source_;  // asked by any thread at any time
  const LazyRestoreOptions options_;
  std::shared_ptr<const detail::Userfault> faults_;
  detail::PageLedger ledger_;
  detail::RestoredRegion::Events events_;
  std::deque<detail::RestoredRegion> regions_;            // in the order of the numbering
  std::vector<detail::RestoredRegion*> by_host_address_;  // each of them
  std::vector<detail::PageRun> planned_;                  // the working set
  std::atomic<std::size_t> next_planned_{0};
  std::uint64_t buffer_size_ = 0;

  std::deque<Worker> workers_;
  std::size_t running_ = 0;              // how many of them have a thread
  std::atomic<std::size_t> staying_{1};  // who has still to leave()
  std::atomic<bool> is_paused_;
  std::atomic<bool> is_complete_{false};   // nothing is left, and someone has to finish
  std::atomic<bool> is_finishing_{false};  // someone does
  std::atomic<bool> has_ended_{false};     // written with the lock held
  std::atomic<std::thread::id> loser_{};   // who is in lose_all()

  std::shared_mutex resolving_;  // shared by who resolves what is settled; regions end without them
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool may_work_ = false;
  std::optional<Error> first_error_;
};

}  // namespace vmspace
