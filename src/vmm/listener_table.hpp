// SPDX-License-Identifier: Apache-2.0
//
// The listeners of a VmMemory: telling all of them of a change, or none.

#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <list>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "vmspace/base/result.hpp"
#include "vmspace/vmm/memory_listener.hpp"
#include "vmspace/vmm/vm_gate.hpp"
#include "vmspace/vmm/vm_memory.hpp"

#include "vmm/kept_blocks.hpp"
#include "vmm/section_list.hpp"

namespace vmspace::detail {

/// What a listener is to do with a section. `log` is to log an added one.
enum class TableTask : std::uint8_t { add, remove, log };

/// What a listener could not be told.
struct UnsettledTask {
  std::shared_ptr<MemoryListener> listener;
  MemorySection section;  ///< so that it stays mapped
  TableTask task;
};
using UnsettledTasks = std::list<UnsettledTask>;

/// What a change does to the tables of the listeners, and what it needs to be undone.
struct TableChange {
  SectionList removed_first =
      {};  ///< in the way of additions, or what a listener may refuse to remove
  SectionList added = {};
  SectionList removed_last = {};
  /// There is a moment when a range is neither what it was nor what it will be.
  bool disruptive = false;

  /// Made before the first call, so that to note a failure takes no memory.
  UnsettledTasks spare = {};
  /// While the vCPUs are paused.
  std::unique_ptr<VmGate, void (*)(VmGate*)> paused{nullptr, [](VmGate* gate) { gate->resume(); }};
};

/// Errors are those of the listeners, or the table's own for the public call `operation`.
///
/// Threads: one at a time.
class ListenerTable {
 public:
  /// Steps 3 to 5 of a change: all of it in all tables but for `removed_last`, or an error (or what a
  /// listener has thrown) and nothing, but for what is unsettled then.
  [[nodiscard]] Result<void> apply(TableChange& change, VmGate* gate, const char* operation);
  /// Step 7. What a listener refuses is unsettled.
  void finish(TableChange& change) noexcept;

  /// Tries all that is unsettled again; gives the first error.
  [[nodiscard]] Result<void> settle(const char* operation) noexcept;
  [[nodiscard]] const UnsettledTasks& unsettled() const noexcept { return unsettled_; }
  /// Whether a listener may still have memory of this range that it should have let go.
  [[nodiscard]] bool has_retired(GuestRange range) const noexcept;

  [[nodiscard]] Result<void> add(std::shared_ptr<MemoryListener> listener, bool required,
                                 const GuestMemory& memory);
  [[nodiscard]] Result<void> remove(const MemoryListener& listener, const GuestMemory& memory);
  [[nodiscard]] std::vector<std::shared_ptr<MemoryListener>> list() const;

  // See KeptBlocks. `memory` of all calls here is what is published.
  void keep(MemoryRegionPtr region) { kept_.add(std::move(region)); }
  void forget_kept(const MemoryRegion& region) noexcept { kept_.remove(region); }

  // The log of what is written through the tables; see MemoryListener::log_start(). While it is on,
  // what is added is logged as well.

  /// All tables log, or none and the first error.
  [[nodiscard]] Result<void> start_log(const GuestMemory& memory, const char* operation);
  /// Has everybody mark what was written; the first error of a listener that does not, or does not
  /// log at all.
  [[nodiscard]] Result<void> sync_log(const GuestMemory& memory, const char* operation) noexcept;
  /// Ends the log in all tables; the first error.
  [[nodiscard]] Result<void> stop_log(const GuestMemory& memory, const char* operation) noexcept;

  /// Takes all memory out of all tables, for good; whether every listener has let go of everything.
  [[nodiscard]] bool remove_all(const GuestMemory& memory) noexcept;
  [[nodiscard]] UnsettledTasks take_unsettled() noexcept { return std::move(unsettled_); }

 private:
  using Sections = std::span<const MemorySection>;
  struct Entry {
    std::shared_ptr<MemoryListener> listener;
    bool required;
    bool is_gone = false;

    /// The sections of a list that this listener is told of.
    [[nodiscard]] Sections of(const SectionList& list) const noexcept {
      return list.in(listener->unit());
    }
  };

  template <typename Which>
  [[nodiscard]] Result<void> settle_those(Which which) noexcept;
  [[nodiscard]] Result<void> settle_removals(const MemoryListener& listener) noexcept;
  [[nodiscard]] Result<void> prepare(Entry& entry, const MemoryChange& change);
  [[nodiscard]] Result<void> attempt(Entry& entry, TableTask task, Sections sections,
                                     UnsettledTasks& spare);
  std::ptrdiff_t take_back(Entry& entry, TableTask task, Sections sections,
                           UnsettledTasks& spare) noexcept;
  void note(const Entry& entry, TableTask task, const MemorySection& section,
            UnsettledTasks& spare) noexcept;
  void undo(Entry& entry, TableTask task, Sections sections, UnsettledTasks& spare) noexcept;
  [[nodiscard]] Result<void> tell(MemoryListener& listener, TableTask task,
                                  const MemorySection& section) noexcept;
  [[nodiscard]] Result<void> commit(MemoryListener& listener) noexcept;
  /// A call of a listener; what it throws is kept for the end of the change.
  template <typename Call>
  [[nodiscard]] Result<void> guarded(Call call) noexcept {
    try {
      return call();
    } catch (...) {
      if (thrown_ == nullptr) thrown_ = std::current_exception();
      return fail({.code = Errc::bad_state,
                   .operation = operation_,
                   .reason = "the listener threw an exception"});
    }
  }
  [[nodiscard]] bool is_lost(Entry& entry) noexcept;
  [[nodiscard]] bool forget(const MemoryListener& listener, TableTask task,
                            const MemorySection& section) noexcept;
  void forget_gone() noexcept;
  [[nodiscard]] static UnsettledTasks spare_for(std::span<const Entry> entries,
                                                const TableChange& change);
  [[nodiscard]] Result<void> refused(Error error, std::size_t unsettled_before);

  std::vector<Entry> entries_;
  UnsettledTasks unsettled_;
  KeptBlocks kept_;
  const char* operation_ = nullptr;  ///< the public call that is running
  bool is_logging_ = false;
  std::exception_ptr thrown_;  ///< what a listener has thrown during the change
};

}  // namespace vmspace::detail
