// SPDX-License-Identifier: Apache-2.0
//
// Which guest memory was written since the last look, for each of those who ask: a migration, a
// display, a peer.
//
//   auto log = VMSPACE_TRY(memory.start_dirty_log());  // then send all of the memory, and after that:
//   for (const GuestRange& range : VMSPACE_TRY(log.harvest())) ...  // send again
//
// Whoever writes marks one bitmap, however many logs there are. A harvest collects what everybody has
// written (this process, the guest through KVM, a peer) and hands it to all logs, so that no log
// takes from another.
//
// What devices write by DMA is in no log. Quiesce them, or count what they may write as written.

#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/vmm/vm_memory.hpp"

namespace vmspace {

/// One log of the written memory of a VmMemory, from start_dirty_log() until it is destroyed.
///
/// What is plugged while it runs counts as written, wholly, and so do a region that was moved, at
/// its new address, and blocks that could not be unplugged. What is unplugged is in it no more.
/// Ranges are whole pages, but for the ends of a range that was asked for; they may be too much,
/// never too little. While any log lives, tracking of the memory is its business: nobody else
/// disables it or harvests it.
///
/// A moved-from log may only be assigned to or destroyed.
///
/// Threads: one log is used by one thread at a time; different logs at any time. Each call waits for a
/// change of the memory that runs, and is `would_deadlock` from inside of one.
class VMSPACE_EXPORT VmDirtyLog {
 public:
  /// Moves leave a log that may only be assigned to or destroyed.
  VmDirtyLog(VmDirtyLog&&) noexcept;
  /// As moving; the log held before is stopped, as on destruction.
  VmDirtyLog& operator=(VmDirtyLog&&) noexcept;
  /// Stops it. From inside a change it can't; then the next harvest of another log, or the next
  /// change, does.
  ~VmDirtyLog();

  /// What was written since the last harvest of this log, in address order and coalesced. Read the
  /// data after it returns. Errors: `bad_state` after stop(); those of the listeners' log_sync() and
  /// log_start(); `os`. Nothing is lost then. O(pages / 64 + ranges), and what the listeners' logs cost.
  [[nodiscard]] Result<std::vector<GuestRange>> harvest();
  /// What was written of one range, such as a display's; the rest is for a later harvest, and costs this
  /// one nothing. A page that the range has in part is reported again by the next harvest. An empty range
  /// gives nothing; `overflow` for one that passes 2^64.
  [[nodiscard]] Result<std::vector<GuestRange>> harvest(GuestRange within);

  /// Stops the log. With the last one, listeners stop to log. Errors: the first of their log_stop(),
  /// after which it is stopped all the same.
  [[nodiscard]] Result<void> stop();

 private:
  friend VmMemory;
  struct Pending;
  VmDirtyLog(const VmMemory& memory, std::shared_ptr<Pending> pending) noexcept;
  [[nodiscard]] Result<std::vector<GuestRange>> harvest(std::optional<GuestRange> within);

  std::optional<VmMemory> memory_;    ///< none once stopped
  std::shared_ptr<Pending> pending_;  ///< null once stopped
};

}  // namespace vmspace
