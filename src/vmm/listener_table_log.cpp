// SPDX-License-Identifier: Apache-2.0
//
// The log of what is written through the tables of listeners.

#include <algorithm>

#include "vmspace/base/try.hpp"

#include "vmm/listener_table.hpp"

namespace vmspace::detail {

Result<void> ListenerTable::start_log(const GuestMemory& memory, const char* operation) {
  operation_ = operation;
  thrown_ = nullptr;
  Result<void> done;
  for (Entry& entry : entries_) {
    if (entry.is_gone) continue;
    kept_.for_each_section(memory, entry.listener->unit(), [&](const MemorySection& section) {
      if (done) done = guarded([&] { return entry.listener->log_start(section); });
    });
    if (!done && is_lost(entry) && !entry.required) done = {};
    if (!done) break;
  }
  if (!done) {
    static_cast<void>(stop_log(memory, operation));
    return refused(done.error(), unsettled_.size());
  }
  is_logging_ = true;
  return {};
}

Result<void> ListenerTable::sync_log(const GuestMemory& memory, const char* operation) noexcept {
  operation_ = operation;
  Result<void> first;
  for (auto next = unsettled_.begin(); next != unsettled_.end();) {
    const auto task = next++;
    if (task->task != TableTask::log) continue;
    const auto done = tell(*task->listener, TableTask::log, task->section);
    if (done) {
      unsettled_.erase(task);
    } else if (first) {
      first = done;
    }
  }
  for (Entry& entry : entries_) {
    kept_.for_each_section(memory, entry.listener->unit(), [&](const MemorySection& section) {
      if (entry.is_gone) return;
      const auto is_unsettled = [&](const UnsettledTask& task) {
        return task.listener == entry.listener && task.section == section;
      };
      if (std::ranges::any_of(unsettled_, is_unsettled)) return;
      const auto done = guarded([&] { return entry.listener->log_sync(section); });
      if (!done && !is_lost(entry) && first) first = done;
    });
  }
  thrown_ = nullptr;
  return first;
}

Result<void> ListenerTable::stop_log(const GuestMemory& memory, const char* operation) noexcept {
  operation_ = operation;
  is_logging_ = false;
  Result<void> first;
  for (Entry& entry : entries_) {
    kept_.for_each_section(memory, entry.listener->unit(), [&](const MemorySection& section) {
      if (entry.is_gone) return;
      const auto done = guarded([&] { return entry.listener->log_stop(section); });
      if (!done && !is_lost(entry) && first) first = done;
    });
  }
  std::erase_if(unsettled_, [](const UnsettledTask& task) { return task.task == TableTask::log; });
  return first;
}

}  // namespace vmspace::detail
