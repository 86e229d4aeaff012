// SPDX-License-Identifier: Apache-2.0
//
// A listener that only writes down what it is told: for tests of whoever makes changes, and for
// people who want to see them.
//
//   add ram0 [0x0-0x7fffffff]
//   add dimm1+0x8000000 [0x108000000-0x10fffffff]: failed
//   remove ram0 [0x0-0x7fffffff]
//   commit
//
// It keeps the table that results, and refuses what no correct caller does: a section that overlaps
// the table, and a removal of what is not in it.

#pragma once

#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/vmm/memory_listener.hpp"

namespace vmspace {

/// Records the calls to a listener and the table that they make; fails on demand.
///
/// Invariant: the sections of the table are in address order and do not overlap. The table keeps
/// its regions mapped.
///
/// Threads: one at a time; VmMemory makes one call at a time as well.
class VMSPACE_EXPORT MemoryRecorder final : public MemoryListener {
 public:
  /// For refuse(): every call from the n-th on.
  static constexpr std::size_t all = std::numeric_limits<std::size_t>::max();

  /// A recorder with an empty table; both are what the accessors of these names give.
  explicit MemoryRecorder(std::string name = "recorder",
                          SectionUnit unit = SectionUnit::slot) noexcept;
  ~MemoryRecorder() override;

  [[nodiscard]] std::string_view name() const noexcept override;
  [[nodiscard]] SectionUnit unit() const noexcept override { return unit_; }

  /// Errors: what a hook returns; `bad_state` for a call that is to be refused.
  [[nodiscard]] Result<void> prepare(const MemoryChange& change) override;
  /// Errors also: `overlap` with a section of the table. O(sections).
  [[nodiscard]] Result<void> add(const MemorySection& section) override;
  /// Errors also: `not_found` for a section that is not in the table; `os` with ENOMEM when memory
  /// runs out. O(sections).
  [[nodiscard]] Result<void> remove(const MemorySection& section) override;
  /// After an error the table is what it was after the last successful commit(). O(sections).
  [[nodiscard]] Result<void> commit() override;

  /// Errors of these three also: `not_found` for a section that is not in the table, and `bad_state`
  /// for log_sync() of one that is not logged. It marks what wrote() has said since, and so do
  /// log_stop() and remove() at the end of a log. O(sections).
  [[nodiscard]] Result<void> log_start(const MemorySection& section) override;
  [[nodiscard]] Result<void> log_sync(const MemorySection& section) override;
  [[nodiscard]] Result<void> log_stop(const MemorySection& section) override;
  /// Plays a guest that has written to every page of the range, which ends at 2^64 where it passes
  /// that: what is in a section that is logged will be marked. O(sections).
  void wrote(const GuestRange& range);

  /// Refuses the n-th call from now (0 is the next one) and those after it, `count` in all. Replaces
  /// what refuse() and run_out_of_memory() said before.
  void refuse(std::size_t n, std::size_t count = 1) noexcept;
  /// Fails the n-th call from now as if memory had run out: with std::bad_alloc, or with an error
  /// when it is a remove(), which may not throw. Replaces what refuse() and this said before.
  void run_out_of_memory(std::size_t n) noexcept;
  /// Calls `hook` with the line of each call before anything is done. An error that it returns, or
  /// an exception that it throws, is the outcome of the call. An empty one takes the hook away. A hook
  /// must not be replaced while it runs.
  void on_call(std::function<Result<void>(std::string_view line)> hook) noexcept;

  /// The calls so far, a line each: `prepare -rom [0xf0000-0xfffff] +ram0 [0x0-0x9ffff]`, with
  /// ` disruptive` at its end where the change is; `add ram0 [0x0-0x9ffff]`; `remove rom [...]`;
  /// `commit`; `log_start rom [...]`, `log_sync` and `log_stop`. `ram0+0x1000 [0x1000-0x1fff]` is the part of ram0 from its byte 0x1000. A call that
  /// returned an error or threw ends with `: failed`.
  [[nodiscard]] const std::vector<std::string>& calls() const noexcept { return calls_; }
  /// Those lines, each ended by a newline.
  [[nodiscard]] std::string text() const;
  /// Forgets the calls so far; the table stays.
  void forget_calls() noexcept { calls_.clear(); }

  /// What add() and remove() have made, in address order. O(sections).
  [[nodiscard]] std::vector<MemorySection> table() const;
  /// Checks that the table has all of the memory's regions and nothing else; a region may be there
  /// in parts. Of a region with blocks it has the sections of unit(). Errors: `corrupt`, naming the lowest section or piece in which they differ.
  /// O(sections + regions).
  [[nodiscard]] Result<void> check_equals(const GuestMemory& memory) const;

 private:
  /// A section whose addition or removal may still be refused as a whole.
  struct Entry {
    MemorySection section;
    bool is_there = true;        ///< in the table
    bool was_committed = false;  ///< in the table of the last commit()
    bool is_logged = false;
    std::vector<DirtyRange> written = {};  ///< of the section, since it was logged anew
  };

  [[nodiscard]] Result<void> answer(std::string_view line);
  template <typename Body>
  [[nodiscard]] Result<void> log(const char* operation, const MemorySection& section, Body body);
  template <typename Body>
  [[nodiscard]] Result<void> record(std::string line, Body body);
  [[nodiscard]] Entry* find(const MemorySection& section) noexcept;
  static void mark_written(Entry& entry) noexcept;
  void settle(bool Entry::*into, bool Entry::*from) noexcept;

  std::string name_;
  SectionUnit unit_;
  std::function<Result<void>(std::string_view)> hook_;
  std::size_t fail_in_ = 0;     // calls until the first that fails
  std::size_t fail_count_ = 0;  // how many fail from there
  bool fail_throws_ = false;
  std::vector<std::string> calls_;
  std::vector<Entry> entries_;  // in address order
};

}  // namespace vmspace
