// SPDX-License-Identifier: Apache-2.0

#include "vmm/listener_table.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace::detail {

namespace {

constexpr TableTask opposite(TableTask task) noexcept {
  return task == TableTask::remove ? TableTask::add : TableTask::remove;
}

/// After an undo in which this failed.
const char* what_is_left(TableTask failed) noexcept {
  switch (failed) {
    case TableTask::add:
      return "the change was refused, and this listener did not take the region back: it stays "
             "published, and the listener lacks it until collect() succeeds";
    case TableTask::remove:
      return "the change was refused, and this listener did not let go of the region: it stays "
             "mapped and its addresses stay taken until collect() succeeds";
    case TableTask::log: break;
  }
  return "the change was refused, and this listener does not log writes to the region any more: no "
         "dirty log can be harvested until it does";
}

}  // namespace

Result<void> ListenerTable::apply(TableChange& change, VmGate* gate, const char* operation) {
  operation_ = operation;
  SectionList removed = change.removed_first;
  removed.add(change.removed_last);
  if (removed.empty() && change.added.empty()) return {};
  removed.sort();
  const auto description = [&](SectionUnit unit) {
    return MemoryChange{.removed = removed.in(unit),
                        .added = change.added.in(unit),
                        .disruptive = change.disruptive};
  };
  if (change.disruptive && gate == nullptr) {
    const MemorySection& section = change.removed_first.in(SectionUnit::slot).front();
    return fail({.code = Errc::bad_state,
                 .operation = operation_,
                 .first = operand(section.guest_range()),
                 .reason = "the range would change what it is in one step, and there is no gate to "
                           "pause the vCPUs meanwhile: set_gate(), or remove it first",
                 .text = section.name()});
  }
  change.spare = spare_for(entries_, change);
  thrown_ = nullptr;

  for (Entry& entry : entries_) {
    const MemoryChange its_own = description(entry.listener->unit());
    if (its_own.removed.empty() && its_own.added.empty()) continue;
    VMSPACE_TRY(prepare(entry, its_own));
  }
  if (change.disruptive) {
    VMSPACE_TRY(gate->pause(description(SectionUnit::slot)));
    change.paused.reset(gate);
  }

  // From here on, all that was done is undone in reverse order.
  const std::size_t unsettled_before = unsettled_.size();
  std::size_t removed_from = 0;  // so many entries, from the last
  std::size_t added_to = 0;      // so many entries, from the first
  Result<void> done;
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
    done = attempt(*entry, TableTask::remove, entry->of(change.removed_first), change.spare);
    if (!done) break;
    ++removed_from;
  }
  if (done) {
    for (Entry& entry : entries_) {
      done = attempt(entry, TableTask::add, entry.of(change.added), change.spare);
      if (!done) break;
      ++added_to;
    }
  }
  if (!done) {
    while (added_to > 0) {
      Entry& entry = entries_[--added_to];
      undo(entry, TableTask::remove, entry.of(change.added), change.spare);
    }
    while (removed_from > 0) {
      Entry& entry = entries_[entries_.size() - removed_from--];
      undo(entry, TableTask::add, entry.of(change.removed_first), change.spare);
    }
    change.paused.reset();
    forget_gone();
    return refused(done.error(), unsettled_before);
  }
  return {};
}

void ListenerTable::finish(TableChange& change) noexcept {
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry)
    undo(*entry, TableTask::remove, entry->of(change.removed_last), change.spare);
  change.paused.reset();
  forget_gone();
  thrown_ = nullptr;
}

Result<void> ListenerTable::settle(const char* operation) noexcept {
  operation_ = operation;
  return settle_those([](const UnsettledTask&) { return true; });
}

/// Of one listener, what it has not let go of. Nothing, where it has gone.
Result<void> ListenerTable::settle_removals(const MemoryListener& listener) noexcept {
  return settle_those([&](const UnsettledTask& task) {
    return task.listener.get() == &listener && task.task == TableTask::remove;
  });
}

template <typename Which>
Result<void> ListenerTable::settle_those(Which which) noexcept {
  Result<void> first;
  for (auto next = unsettled_.begin(); next != unsettled_.end();) {
    const auto task = next++;
    if (!which(*task)) continue;
    auto done = tell(*task->listener, task->task, task->section);
    if (done && task->task != TableTask::log) done = commit(*task->listener);
    // A commit that failed meanwhile may have taken back the addition that was to be undone.
    if (!done && task->task == TableTask::remove && done.error().code == Errc::not_found) done = {};
    if (done && task->task == TableTask::add && is_logging_) {
      task->task = TableTask::log;
      done = tell(*task->listener, task->task, task->section);
    }
    if (done || task->listener->is_gone()) {
      unsettled_.erase(task);
    } else if (first) {
      first = done;
    }
  }
  thrown_ = nullptr;
  return first;
}

bool ListenerTable::has_retired(GuestRange range) const noexcept {
  return std::ranges::any_of(unsettled_, [&](const UnsettledTask& task) {
    return task.task == TableTask::remove && task.section.guest_range().overlaps(range);
  });
}

Result<void> ListenerTable::add(std::shared_ptr<MemoryListener> listener, bool required,
                                const GuestMemory& memory) {
  operation_ = "VmMemory::add_listener";
  const auto same = [&](const Entry& entry) { return entry.listener == listener; };
  if (std::ranges::any_of(entries_, same)) {
    return fail({.code = Errc::bad_state,
                 .operation = operation_,
                 .reason = "the listener was added before",
                 .text = listener->name()});
  }
  entries_.reserve(entries_.size() + 1);
  VMSPACE_TRY(settle_removals(*listener));  // of an attempt to add it that could not be undone
  const TableChange change{.added = kept_.sections_of(memory)};
  // A listener that goes while it is being added is not added.
  Entry entry{.listener = std::move(listener), .required = true};
  UnsettledTasks spare = spare_for({&entry, 1}, change);
  thrown_ = nullptr;
  const std::size_t unsettled_before = unsettled_.size();
  const Sections added = entry.of(change.added);
  VMSPACE_TRY(prepare(entry, {.removed = {}, .added = added}));
  if (const auto done = attempt(entry, TableTask::add, added, spare); !done)
    return refused(done.error(), unsettled_before);
  entry.required = required;
  entries_.push_back(std::move(entry));
  return {};
}

Result<void> ListenerTable::remove(const MemoryListener& listener, const GuestMemory& memory) {
  operation_ = "VmMemory::remove_listener";
  const auto entry = std::ranges::find_if(
      entries_, [&](const Entry& each) { return each.listener.get() == &listener; });
  if (entry == entries_.end()) {
    return fail({.code = Errc::not_found,
                 .operation = operation_,
                 .reason = "the listener was not added, or has gone",
                 .text = listener.name()});
  }
  VMSPACE_TRY(settle_removals(listener));
  const TableChange change{.removed_first = kept_.sections_of(memory)};
  UnsettledTasks spare = spare_for({&*entry, 1}, change);
  thrown_ = nullptr;
  const std::size_t unsettled_before = unsettled_.size();
  const auto done = attempt(*entry, TableTask::remove, entry->of(change.removed_first), spare);
  if (!done && !entry->is_gone) return refused(done.error(), unsettled_before);
  std::erase_if(unsettled_, [&](const auto& task) { return task.listener == entry->listener; });
  entries_.erase(entry);
  return {};
}

std::vector<std::shared_ptr<MemoryListener>> ListenerTable::list() const {
  std::vector<std::shared_ptr<MemoryListener>> all;
  all.reserve(entries_.size());
  for (const Entry& entry : entries_)
    all.push_back(entry.listener);
  return all;
}

bool ListenerTable::remove_all(const GuestMemory& memory) noexcept {
  bool all = settle("VmMemory::~VmMemory").has_value();  // nobody is told of errors
  const auto regions = memory.regions();
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
    MemoryListener& listener = *entry->listener;
    bool let_go = true;
    for (auto region = regions.rbegin(); region != regions.rend(); ++region) {
      for_each_section(kept_.in_tables(*region), listener.unit(),
                       [&](const MemorySection& section) {
                         let_go &= tell(listener, TableTask::remove, section).has_value();
                       });
    }
    let_go &= commit(listener).has_value();
    all &= let_go || listener.is_gone();
  }
  return all;
}

/// Whether the listener could; one that has gone could do anything, unless it is required.
Result<void> ListenerTable::prepare(Entry& entry, const MemoryChange& change) {
  if (entry.is_gone) {
    return fail(
        {.code = Errc::bad_state,
         .operation = operation_,
         .reason = "a listener that is required has gone: remove_listener(), and add it anew",
         .text = entry.listener->name()});
  }
  auto done = entry.listener->prepare(change);
  if (!done && is_lost(entry) && !entry.required) return {};
  return done;
}

/// Tells a listener all, or after an error nothing.
Result<void> ListenerTable::attempt(Entry& entry, TableTask task, Sections sections,
                                    UnsettledTasks& spare) {
  if (entry.is_gone || sections.empty()) return {};
  Result<void> done;
  std::size_t count = 0;
  while (count < sections.size()) {
    // What it lacks, because to add it has failed before, it need not remove.
    if (task == TableTask::remove && forget(*entry.listener, TableTask::add, sections[count])) {
      ++count;
      continue;
    }
    done = tell(*entry.listener, task, sections[count]);
    if (!done) break;
    if (task == TableTask::remove)
      static_cast<void>(forget(*entry.listener, TableTask::log, sections[count]));
    ++count;
    if (task == TableTask::add && is_logging_) {
      done = tell(*entry.listener, TableTask::log, sections[count - 1]);
      if (!done) break;
    }
  }
  if (done) {
    done = commit(*entry.listener);  // on an error, nothing counts as done
    if (done) return {};
  } else if (!is_lost(entry)) {
    // Nothing was committed yet, so nothing of it need be.
    take_back(entry, opposite(task), sections.first(count), spare);
  }
  if (is_lost(entry) && !entry.required) return {};
  return done;
}

/// Tells a listener as much as it takes, and notes the rest as unsettled; gives how many it noted, at
/// the end of the list.
std::ptrdiff_t ListenerTable::take_back(Entry& entry, TableTask task, Sections sections,
                                        UnsettledTasks& spare) noexcept {
  std::ptrdiff_t noted = 0;
  for (const MemorySection& section : sections) {
    if (forget(*entry.listener, opposite(task), section)) continue;
    if (task == TableTask::remove)
      static_cast<void>(forget(*entry.listener, TableTask::log, section));
    TableTask failed = task;
    auto done = tell(*entry.listener, task, section);
    if (done && task == TableTask::add && is_logging_) {
      failed = TableTask::log;
      done = tell(*entry.listener, failed, section);
    }
    if (done) continue;
    if (is_lost(entry)) return 0;
    note(entry, failed, section, spare);
    ++noted;
  }
  return noted;
}

/// take_back(), and has it committed.
void ListenerTable::undo(Entry& entry, TableTask task, Sections sections,
                         UnsettledTasks& spare) noexcept {
  if (entry.is_gone || sections.empty()) return;
  const std::ptrdiff_t noted = take_back(entry, task, sections, spare);
  if (entry.is_gone) return;
  if (commit(*entry.listener) || is_lost(entry)) return;
  // None of it counts as done.
  const auto first_noted = std::prev(unsettled_.end(), noted);
  for (const MemorySection& section : sections) {
    const auto same = [&](const UnsettledTask& each) { return each.section == section; };
    const auto there = std::find_if(first_noted, unsettled_.end(), same);
    if (there == unsettled_.end()) {
      note(entry, task, section, spare);
    } else {
      there->task = task;
    }
  }
}

void ListenerTable::note(const Entry& entry, TableTask task, const MemorySection& section,
                         UnsettledTasks& spare) noexcept {
  spare.front() = {.listener = entry.listener, .section = section, .task = task};
  unsettled_.splice(unsettled_.end(), spare, spare.begin());
}

Result<void> ListenerTable::tell(MemoryListener& listener, TableTask task,
                                 const MemorySection& section) noexcept {
  return guarded([&] {
    switch (task) {
      case TableTask::add: return listener.add(section);
      case TableTask::remove: return listener.remove(section);
      case TableTask::log: break;
    }
    auto done = listener.log_start(section);
    // Whatever was written before is in no log.
    if (done) section.region()->dirty().mark(section.region_offset(), section.size());
    return done;
  });
}

Result<void> ListenerTable::commit(MemoryListener& listener) noexcept {
  return guarded([&] { return listener.commit(); });
}

/// After an error of a listener: whether it has gone. Nothing is left for it to do then.
bool ListenerTable::is_lost(Entry& entry) noexcept {
  if (!entry.is_gone && entry.listener->is_gone()) {
    entry.is_gone = true;
    std::erase_if(unsettled_,
                  [&](const UnsettledTask& task) { return task.listener == entry.listener; });
  }
  return entry.is_gone;
}

/// Whether it was unsettled, and is not any more.
bool ListenerTable::forget(const MemoryListener& listener, TableTask task,
                           const MemorySection& section) noexcept {
  return std::erase_if(unsettled_, [&](const UnsettledTask& each) {
           return each.listener.get() == &listener && each.task == task && each.section == section;
         }) != 0;
}

/// Lets go of listeners that have gone; of a required one only when it is removed.
void ListenerTable::forget_gone() noexcept {
  std::erase_if(entries_, [](const Entry& entry) { return entry.is_gone && !entry.required; });
}

/// As many notes as all calls of a change can need if each fails.
UnsettledTasks ListenerTable::spare_for(std::span<const Entry> entries, const TableChange& change) {
  UnsettledTasks spare;
  for (const auto* list : {&change.removed_first, &change.added, &change.removed_last}) {
    for (const Entry& entry : entries) {
      for (const MemorySection& section : entry.of(*list))
        spare.push_back({nullptr, section, TableTask::remove});
    }
  }
  return spare;
}

/// The outcome of a change that was refused with `error`, and undone.
Result<void> ListenerTable::refused(Error error, std::size_t unsettled_before) {
  if (unsettled_.size() > unsettled_before) {
    const UnsettledTask& left = unsettled_.back();
    thrown_ = nullptr;
    return fail({.code = Errc::inconsistent,
                 .operation = operation_,
                 .first = operand(left.section.guest_range()),
                 .reason = what_is_left(left.task),
                 .text = {left.section.name(), left.listener->name()}});
  }
  if (thrown_ != nullptr) std::rethrow_exception(std::exchange(thrown_, nullptr));
  return fail(error);
}

}  // namespace vmspace::detail
