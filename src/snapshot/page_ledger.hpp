// SPDX-License-Identifier: Apache-2.0
//
// Which pages of a restore have come, and who is at work on which of the others.
//
// All regions share one numbering of pages, in which each begins where its host address agrees with
// the number modulo 512: an extent of the numbering is a huge page of the host. A page is open until
// it is settled (it has come, is lost, or needs nothing). Each thread works on one run of open pages
// at a time, its job, in two stages: what it reads for the job may take for ever, and can be
// revoked; what it puts into memory afterwards is short, and is waited for.
//
//            take              begin_filling            settle
//    open  -------->  reading  ------------->  filling  ------->  settled
//      ^                 |
//      '--- revoked -----'   by a discard, or the end of the restore
//
// Memory: 2 bits a page and a byte an extent, of which only what is needed is ever touched. A hole of
// 64 TiB takes 32 MiB.

#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "vmspace/base/result.hpp"
#include "vmspace/snapshot/lazy_restore.hpp"

#include "snapshot/lazy_table.hpp"

namespace vmspace::detail {

/// Pages [first, end) of the numbering.
struct PageRun {
  std::uint64_t first = 0;
  std::uint64_t end = 0;

  [[nodiscard]] std::uint64_t size() const noexcept { return end - first; }
  [[nodiscard]] bool empty() const noexcept { return first == end; }
  [[nodiscard]] bool contains(std::uint64_t page) const noexcept {
    return first <= page && page < end;
  }
  [[nodiscard]] bool overlaps(const PageRun& other) const noexcept {
    return first < other.end && other.first < end;
  }
};

inline constexpr std::uint64_t pages_per_extent = 512;

/// Why pages come, or what else has become of them.
enum class PageFate : std::uint8_t { demand, working_set, background, zero, discarded, lost };
inline constexpr std::size_t page_fates = 6;

/// Threads: every call from any thread, each slot from one at a time.
class PageLedger {
 public:
  static constexpr unsigned max_slots = 64;

  /// Before anything else: the areas of the regions, ascending. Errors: `os`.
  [[nodiscard]] Result<void> open(const char* operation, std::vector<PageRun> areas);

  // Jobs. A slot has one at most.

  enum class Found : std::uint8_t {
    taken,    ///< the job is the open run in `around` that holds the page
    busy,     ///< somebody is at work there, and wakes who waits
    settled,  ///< it has come already
  };
  /// Somebody waits for `unit`, which lies in `around`.
  [[nodiscard]] Found take_fault(unsigned slot, PageRun unit, PageRun around, PageRun& job);
  /// Takes the first open run in `within`, of `most` pages at most; an empty one when there is none.
  [[nodiscard]] PageRun take_next(unsigned slot, PageRun within, std::uint64_t most);
  /// Whether the job has not been revoked. If it was, the slot is free, and all who wait for the
  /// job's pages have to be woken.
  [[nodiscard]] bool begin_filling(unsigned slot);

  struct Outcome {
    bool was_waited_for = false;  ///< who waits for the job's pages has to be woken
    bool is_complete = false;     ///< it was the last open page: for one caller, once
  };
  /// The job is done: `zeros` of its pages are zeros, the others have come by `fate`.
  Outcome settle(unsigned slot, PageFate fate, std::uint64_t zeros = 0);
  /// The first pages of the job are done, fewer than it has. The rest of it is reading again.
  void settle_first(unsigned slot, std::uint64_t pages, PageFate fate, std::uint64_t zeros);
  /// Gives the job's pages back; they have to be woken if it says so.
  [[nodiscard]] bool drop(unsigned slot);

  // The background, in the order of the numbering.

  /// The next part that nobody has looked at, within one area; empty when there is none.
  [[nodiscard]] PageRun next_stripe();
  /// These pages are zeros, as far as nobody is at work on them. True if that has completed it.
  [[nodiscard]] bool settle_hole(PageRun hole);

  // Discards. Each area has one at a time, of whole pages.

  /// Leaves the pages to the discard, once nobody fills any of them.
  void begin_discard(PageRun pages);
  /// Ends that; true if the restore is complete now. Who waits for the pages has to be woken.
  [[nodiscard]] bool end_discard(PageRun pages, bool discarded) noexcept;

  // The end.

  /// Revokes all jobs, and gives no more; waits until nobody fills or discards pages. Discards wait
  /// until end_loss(). False, and nothing is changed, if it is over already.
  [[nodiscard]] bool begin_loss() noexcept;
  /// The first open run from `from` on; empty when there is none. Between begin_loss() and end_loss().
  [[nodiscard]] PageRun next_open(std::uint64_t from) noexcept;
  void settle_lost(PageRun pages) noexcept;
  void end_loss() noexcept;

  void count_fault() noexcept;
  /// Gives how many errors there have been.
  std::uint64_t count_error() noexcept;
  [[nodiscard]] LazyRestoreStatistics statistics() const noexcept;
  /// The pages of calls of take_fault(), ascending; empty from `from` on when there are none.
  [[nodiscard]] PageRun next_demanded(std::uint64_t from) const noexcept;
  /// The extents that hold anything that has come, as runs of whole extents.
  [[nodiscard]] PageRun next_filled(std::uint64_t from) const noexcept;

 private:
  enum class Stage : std::uint8_t { none, reading, filling, revoked };
  struct Job {
    PageRun run = {};
    Stage stage = Stage::none;
    bool was_waited_for = false;
  };
  // Of an extent.
  static constexpr std::uint8_t all_settled = 1, some_settled = 2, has_contents = 4,
                                has_demanded = 8;

  [[nodiscard]] bool is_settled(std::uint64_t page) const noexcept;
  /// The first page in [from, end) that is open, or that is settled.
  [[nodiscard]] std::uint64_t skip(std::uint64_t from, std::uint64_t end,
                                   bool settled) const noexcept;
  /// What covers the page: a job, or a discard. Null without any.
  [[nodiscard]] const PageRun* cover_of(std::uint64_t page) const noexcept;
  [[nodiscard]] std::uint64_t next_cover(std::uint64_t from, std::uint64_t end) const noexcept;
  [[nodiscard]] PageRun find_open(PageRun within) const noexcept;
  void mark_settled(PageRun run, PageFate fate) noexcept;
  void mark_brought(PageRun run, PageFate fate, std::uint64_t zeros) noexcept;
  void give_back(PageRun run) noexcept;
  void revoke(Job& job) noexcept;
  [[nodiscard]] bool is_filled(PageRun run) const noexcept;

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // a job or a discard has ended
  std::vector<PageRun> areas_;
  LazyTable settled_, demanded_, extents_;
  std::array<Job, max_slots> jobs_{};
  std::vector<PageRun> discards_;  // never more than areas
  std::uint64_t cursor_ = 0;       // of next_stripe()
  PageRun returned_ = {};          // what holds all that was given back behind it
  std::uint64_t remaining_ = 0;
  std::array<std::uint64_t, page_fates> pages_{};
  std::uint64_t faults_ = 0;
  std::uint64_t errors_ = 0;
  bool is_open_ = true;     // gives jobs
  bool is_losing_ = false;  // between begin_loss() and end_loss()
};

}  // namespace vmspace::detail
