// SPDX-License-Identifier: Apache-2.0
//
// Restoring guest memory while the guest runs already: a page comes when it is touched first, by the
// guest as by this process, and the others follow in the background (userfaultfd(2)).
//
//   auto memory = VMSPACE_TRY(GuestMemory::map(space));          // that nobody has touched
//   auto restore = VMSPACE_TRY(LazyRestore::start(memory, source, {.working_set = last_run}));
//   ...                                                          // the guest runs from here on
//   VMSPACE_TRY(restore.wait(std::chrono::minutes(1)));          // all of it is there
//
// What is brought, in order of urgency: pages that somebody waits for, those of the working set, and
// the rest in address order, in extents of up to 2 MiB. A page of zeros takes no memory.
//
// By kind of memory. Private anonymous memory, hugetlb too, gets copies (UFFDIO_COPY). Shared memory
// (memfd, tmpfs, hugetlbfs, anonymous) is filled through a second mapping of its own, and then mapped
// (UFFDIO_CONTINUE, Linux 5.14; hugetlb 5.13); a hugetlb page comes as a whole. Regular files, private
// mappings of files and memory of devices are `unsupported`. A region that the guest may not write is
// left alone, but compared with the source when the restore starts.
//
// While it runs, the memory belongs to this process alone:
// - Children that fork do not get it (MADV_DONTFORK). One that destroys its copy of the LazyRestore, as
//   std::exit() does when that is static, leaves the restore alone.
// - Sharing it (describe_regions(), a vhost-user table), saving it (save_snapshot()), and a second
//   restore are `bad_state`. Other processes that have its file already must leave it alone: they
//   would see absent pages as zeros, and a hole punched by one of them is not noticed.
// - Discarding works: what is discarded is zeros, whether or not it had come. So does unplugging
//   blocks of a region; and a whole region that is unplugged stays mapped until the restore ends.
// - Pinning pages by a device (VFIO) brings them all, and waits for them.
//
// A page that can't be brought (the source fails, or no memory is free) is reported to `on_error`
// first. Then who accesses it gets SIGBUS (UFFDIO_POISON; before Linux 6.6 SIGSEGV, since the page is
// made inaccessible then); a system call gets EFAULT, a vCPU what the kernel makes of it: KVM_RUN
// raises SIGBUS in its thread, or gives EFAULT. For memory that was mapped with Unsealed::guard an
// access by GuestMemory is Errc::fault instead of SIGBUS. Discarding a lost page makes it zeros,
// which heals it; in shared memory only as long as the restore runs, and not before Linux 6.6.
//
// A DirtyScan may be started while it runs, and sees what is written from then on (Linux 6.7).
//
// Dirty tracking: where it is on, all that is restored counts as written when the restore starts, as
// with restore_snapshot(). Pages that come later are not marked again.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/error.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/page_source.hpp"
#include "vmspace/snapshot/snapshot_id.hpp"
#include "vmspace/snapshot/working_set.hpp"

namespace vmspace {

/// How to restore; an aggregate for designated initialisers.
struct LazyRestoreOptions {
  /// The threads that bring pages, 1 to 64. With two or more the first one only answers faults, so
  /// that nobody waits for an extent of the background that has other pages; with one, a fault may.
  unsigned threads = 2;
  /// How much one fault brings, in bytes: a power of two from 4096 to 2 MiB, at a multiple of itself.
  /// One page is right for most sources; more pays where each read has a price of its own.
  std::uint64_t fault_size = 4096;
  /// Whether the rest comes by itself at once, or only after resume_background().
  bool background = true;
  /// What a run before this one has touched first. It comes also while the background is paused.
  WorkingSet working_set = {};
  /// The snapshot behind the source: what `working_set` must belong to, and what working_set() says.
  SnapshotId snapshot = {};
  /// Puts what was restored into transparent huge pages at the end, where the kernel can.
  bool collapse = false;
  /// After so many pages that could not be brought the source counts as dead, and the restore as
  /// cancelled. At least 1.
  std::uint64_t error_limit = 1024;
  /// Told of lost pages before anybody gets a signal for them: by threads of the restore, several at a
  /// time, and by one that cancels or destroys it. It may cancel() the restore, but not destroy it or
  /// wait() for it, throw, or touch, discard, pin or watch the memory.
  std::function<void(GuestRange, const Error&)> on_error = {};
};

/// How far a restore is, in bytes by what became of them: all but `faults` and `errors` sum to the
/// size of the memory that is restored.
struct LazyRestoreStatistics {
  std::uint64_t demand = 0;       ///< came because somebody touched them
  std::uint64_t working_set = 0;  ///< came as a part of the working set
  std::uint64_t background = 0;   ///< came by themselves
  std::uint64_t zero = 0;         ///< zeros, whatever has asked for them
  std::uint64_t discarded = 0;    ///< discarded before they came
  std::uint64_t lost = 0;         ///< could not be brought, or were not there when it was cancelled
  std::uint64_t remaining = 0;    ///< yet to come
  std::uint64_t faults = 0;       ///< page faults that the kernel has reported
  std::uint64_t errors = 0;       ///< times that the source or the kernel has failed

  friend bool operator==(const LazyRestoreStatistics&, const LazyRestoreStatistics&) = default;
};

/// A restore that runs, on threads of its own, until every page has come or cancel() ends it.
///
/// It holds the regions, and the source. What ends it also gives the memory back as it was before:
/// unregistered, inherited by children again, and free to be shared; but where a DirtyScan watches it,
/// that has its page faults from then on.
///
/// Threads: every call but moving and destroying may be made from any thread.
class VMSPACE_EXPORT LazyRestore {
 public:
  /// Makes the memory usable at once, with the contents that the source has for it.
  ///
  /// Nothing may have touched the memory yet, or touches it before this returns. What was touched is
  /// found as cheaply as the kernel tells, and refused.
  ///
  /// Errors: `invalid_argument` for a null source, a number of threads or an error_limit out of
  /// bounds, a `fault_size` below 4096, or a working set of another snapshot; `bad_alignment` and
  /// `limit_exceeded` for other sizes; `out_of_bounds` for a working set with pages outside of the
  /// memory; `overlap`, naming both, for regions that are the same part of a file; `bad_state`,
  /// with the region's range, for memory that was touched, or whose faults somebody handles already
  /// (the error names whom), and for a source with contents in absent blocks; `access_denied` for a
  /// region that may not be written and holds something else, or may not be read, and `fault` for a
  /// page of it that is gone; `unsupported` for memory of a kind that can't be restored like this,
  /// or a kernel that can't; `access_denied` where this process may not handle faults of the
  /// kernel, with what would allow it; those of the source; `os`. The memory is as it was then. A
  /// few system calls a region and thread, whatever the size.
  [[nodiscard]] static Result<LazyRestore> start(const GuestMemory& memory,
                                                 std::shared_ptr<PageSource> source,
                                                 const LazyRestoreOptions& options = {});

  /// Moves leave a restore that may only be assigned to or destroyed; what is running runs on.
  LazyRestore(LazyRestore&& other) noexcept;
  /// What was running is destroyed first.
  LazyRestore& operator=(LazyRestore&& other) noexcept;
  /// Cancels what is not complete, and waits for its threads, so for calls of the source that run: a
  /// source that may wait for ever has to be told before. Allocates nothing.
  ~LazyRestore();

  /// Waits until every page has come. Errors: `timed_out`; `bad_state` after cancel(); the first
  /// error of pages that were lost.
  [[nodiscard]] Result<void> wait(std::chrono::nanoseconds timeout) const;
  /// Whether it has ended, one way or another.
  [[nodiscard]] bool is_done() const noexcept;

  /// Lets the background rest; an extent that is being read still comes. Faults and the working set
  /// go on.
  void pause_background() noexcept;
  /// Lets it go on.
  void resume_background() noexcept;

  /// Ends it: whatever has not come is lost, and reported. Returns when all who waited for a page are
  /// awake, and the memory is given back; does not wait for the source. Does nothing after the end.
  /// O(bytes that are lost).
  void cancel() noexcept;

  /// How far it is; also after the end.
  [[nodiscard]] LazyRestoreStatistics statistics() const noexcept;
  /// The pages that somebody has waited for so far, with those of the working set that it was started
  /// with. Pages that the background brings first are not in it, so a set is best recorded while the
  /// background is paused. Where there would be more than WorkingSet::max_ranges ranges, the smallest
  /// gaps are filled. Allocates. O(bytes / 2 MiB, and pages touched).
  [[nodiscard]] Result<WorkingSet> working_set() const;

 private:
  class State;

  explicit LazyRestore(std::unique_ptr<State> state) noexcept;

  std::unique_ptr<State> state_;
};

}  // namespace vmspace
