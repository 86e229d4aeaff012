// SPDX-License-Identifier: Apache-2.0
//
// A live snapshot while it is made: what its two threads, its caller, and those who discard memory
// share.
//
//   faults thread   takes the page that somebody writes to, copies it to the buffer, unprotects it
//   writer thread   writes the pages of the buffer first; when there are none, takes the next pages
//                   that wait, copies them, unprotects them, and writes them
//
// Who has taken a page copies it, calls finish() and only then unprotects it. So a fault that finds the
// page being copied need not be answered: whoever copies it has not woken its writers yet. One that
// finds it done with may have come too late for that, and is answered again.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "vmspace/snapshot/live_snapshot.hpp"

#include "host/userfault.hpp"
#include "os/forked_child.hpp"
#include "os/wake_event.hpp"
#include "snapshot/live_region.hpp"
#include "snapshot/page_buffer.hpp"

namespace vmspace {

struct LiveSnapshot::State final : detail::DiscardListener {
  using Userfault = detail::Userfault;
  using LiveRegion = detail::LiveRegion;
  using RegionPages = detail::RegionPages;
  using Clock = std::chrono::steady_clock;

  static constexpr const char* wait_operation = "LiveSnapshot::wait";

  enum class Phase : std::uint8_t {
    ready,    ///< take() has not been called, or is running
    taken,    ///< pages are being saved
    saved,    ///< all are, and the file is being completed: no other thread's error matters now
    written,  ///< complete, or has failed
    over,     ///< wait() has returned
  };

  State(const GuestMemory& memory, SnapshotWriter writer, const LiveSnapshotOptions& options);
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  const detail::Maker maker;

  /// The parts of prepare().
  [[nodiscard]] Result<void> open(const LiveSnapshotOptions& options);
  [[nodiscard]] Result<void> start_threads();
  /// take(), of these ranges or of all.
  [[nodiscard]] Result<void> take(std::span<const GuestRange> ranges, bool all);
  [[nodiscard]] Result<std::vector<GuestRange>> split(std::span<const GuestRange> ranges) const;
  /// Nothing runs and nothing is claimed any more; gives up what is not complete.
  void close() noexcept;

  /// Ends the snapshot by an error while pages are left to be saved: nothing is protected any more.
  void give_up(const Error& error) noexcept;
  void save_before_discard(LiveRegion& region, std::uint64_t first,
                           std::uint64_t end) noexcept override;

  // live_snapshot_threads.cpp
  void handle_faults() noexcept;
  void write_pages() noexcept;

  SnapshotWriter writer;
  const bool is_differential;      ///< the writer has a parent
  std::deque<LiveRegion> regions;  ///< in order of guest addresses
  std::vector<LiveRegion*> by_host;
  detail::PageBuffer buffer;            ///< for pages that were written to or are discarded
  std::vector<std::byte> chunk;         ///< for pages that come in their turn
  bool populate = false;                ///< absent pages can't be protected
  std::vector<GuestRange> zeros;        ///< of a differential snapshot
  detail::WakeEvent wake;               ///< there are no more faults to handle
  std::atomic<std::uint64_t> left = 0;  ///< bytes that wait or are being copied

  mutable std::mutex mutex;
  std::condition_variable changed;
  Phase phase = Phase::ready;
  std::optional<Error> error;
  SnapshotId id;
  /// Each thread that uses it holds it; the last one closes it. Null once there is nothing to protect.
  std::shared_ptr<const Userfault> faults;

  std::vector<pthread_t> threads;

  struct Counters {
    std::atomic<std::int64_t> stopped = 0;  ///< nanoseconds
    std::atomic<std::uint64_t> protected_bytes = 0;
    std::atomic<std::uint64_t> faults = 0;
    std::atomic<std::uint64_t> by_fault = 0;
    std::atomic<std::uint64_t> by_discard = 0;
    std::atomic<std::uint64_t> in_background = 0;
    std::atomic<std::int64_t> longest_wait = 0;  ///< nanoseconds; written by one thread
  } counters;

 private:
  /// What handles the faults now; null when that has ended.
  [[nodiscard]] std::shared_ptr<const Userfault> current_faults() const;
  [[nodiscard]] LiveRegion* find_region(std::uint64_t host_address) const;
  /// The region that has this guest address, or null.
  [[nodiscard]] const MemoryRegion* region_at(GuestAddress address) const;
  /// Makes the memory stand still.
  [[nodiscard]] Result<void> protect(std::span<const GuestRange> ranges, bool all);
  /// Nothing is protected any more, and nobody waits.
  void end_faults() noexcept;
  /// That, and no page is saved any more.
  void stop_saving() noexcept;
  /// Less is left to be copied.
  void drop(std::uint64_t bytes) noexcept;
  /// A page into the buffer, which was taken; false when the snapshot has failed.
  bool save_to_buffer(const Userfault& userfault, LiveRegion& region, RegionPages run) noexcept;
  /// Pages that were taken have been copied: lets their writers go on.
  void finish(const Userfault& userfault, LiveRegion& region, RegionPages run) noexcept;
  bool resolve(const Userfault& userfault, std::uint64_t address) noexcept;
  bool read_faults(const Userfault& userfault) noexcept;
  [[nodiscard]] Result<void> write_all_pages();
  [[nodiscard]] Result<void> write_zeros();
  /// The last page is saved; false when the snapshot has failed.
  [[nodiscard]] bool begin_completing();
  [[nodiscard]] Result<void> write_in_background(LiveRegion& region, RegionPages run);
  [[nodiscard]] Result<void> write_run(const LiveRegion& region, RegionPages run,
                                       const std::byte* bytes);
};

}  // namespace vmspace
