// SPDX-License-Identifier: Apache-2.0
//
// Page faults of memory that was restored, after its LazyRestore has ended.
//
// A DirtyScan that came while the memory was restored goes on when that ends. To unregister the memory
// would lose what is written until it is registered again, and the kernel can't end some of the modes
// of a registration. So all of them stay, and somebody has to answer: every page has come, and what is
// absent is zeros, or in the file.

#pragma once

#include <poll.h>
#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "vmspace/base/result.hpp"
#include "vmspace/host/memory_mapping.hpp"

#include "host/userfault.hpp"
#include "os/wake_event.hpp"
#include "snapshot/lazy_table.hpp"

namespace vmspace::detail {

/// Lets go on who waits for a page that has come: maps what the file has, else zeros. Where neither
/// works now, it is tried again when the fault is raised again. `zeros` are of the size of a page, and
/// used for hugetlb memory only. Where the memory `is_watched`, private pages don't count as written.
void resolve_settled(const Userfault& faults, const MemoryMapping& mapping, std::uint64_t offset,
                     const std::byte* zeros, bool is_watched) noexcept;

/// Answers on a thread of its own, which runs only where there is something to inherit.
class InheritedFaults {
 public:
  /// Memory whose faults may be inherited; stays where it is until stop().
  struct Part {
    const MemoryMapping* mapping = nullptr;
    std::shared_ptr<const Userfault> faults;
    std::atomic<bool> is_inherited{false};
  };

  InheritedFaults() noexcept = default;
  InheritedFaults(const InheritedFaults&) = delete;
  InheritedFaults& operator=(const InheritedFaults&) = delete;
  ~InheritedFaults() { stop(); }

  /// Before anything else. Errors: `os`.
  [[nodiscard]] Result<void> open(const char* caller);
  /// Before start(). Allocates, strongly exception-safe.
  void add(Part& part) { parts_.push_back(&part); }
  /// Begins to answer for parts that are inherited, if any were added. Errors: `os`.
  [[nodiscard]] Result<void> start(const char* caller);
  /// From now on the faults of the part are answered here. From any thread, at any time after open().
  void answer(Part& part) noexcept;
  /// Answers no more. Waits for the thread.
  void stop() noexcept;

 private:
  void work() noexcept;
  void answer_next(const Userfault& faults) const noexcept;

  std::vector<Part*> parts_;
  std::vector<pollfd> polled_;  // the thread's
  WakeEvent wake_;
  LazyTable zeros_;  // of the largest page of hugetlb memory
  std::atomic<bool> is_stopping_{false};
  bool has_thread_ = false;
  pthread_t thread_ = {};
};

}  // namespace vmspace::detail
