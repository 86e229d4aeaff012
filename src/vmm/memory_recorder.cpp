// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/memory_recorder.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <new>
#include <utility>

#include "vmspace/base/try.hpp"

#include "base/text_table.hpp"
#include "vmm/section_list.hpp"

namespace vmspace {

namespace {

std::string text_of(const MemorySection& section) {
  std::string text = detail::printable(section.name());
  if (section.region_offset() != 0) text.append("+").append(detail::hex(section.region_offset()));
  const std::uint64_t base = section.base().value();
  return text.append(text.empty() ? "[" : " [")
      .append(detail::hex(base))
      .append("-")
      .append(detail::hex(base + (section.size() - 1)))
      .append("]");
}

Error unknown(const char* operation, const MemorySection& section) {
  return {.code = Errc::not_found,
          .operation = operation,
          .first = detail::operand(section.guest_range()),
          .reason = "the table does not have exactly this section",
          .text = section.name()};
}

tl::unexpected<Error> differs(const MemorySection& section, const char* how) {
  return fail({.code = Errc::corrupt,
               .operation = "MemoryRecorder::check_equals",
               .first = detail::operand(section.guest_range()),
               .reason = how,
               .text = section.name()});
}

}  // namespace

MemoryRecorder::MemoryRecorder(std::string name, SectionUnit unit) noexcept
    : name_(std::move(name)), unit_(unit) {}
MemoryRecorder::~MemoryRecorder() = default;

std::string_view MemoryRecorder::name() const noexcept {
  return name_;
}

/// What the call is to return before it does anything: the hook's word, and the failures asked for.
Result<void> MemoryRecorder::answer(std::string_view line) {
  if (hook_) VMSPACE_TRY(hook_(line));
  if (fail_in_ != 0) {
    --fail_in_;
    return {};
  }
  if (fail_count_ == 0) return {};
  if (fail_count_ != all) --fail_count_;
  if (fail_throws_) throw std::bad_alloc();
  return fail({.code = Errc::bad_state,
               .operation = "MemoryRecorder",
               .reason = "the recorder was told to refuse this call",
               .text = line});
}

/// Records a call with its outcome: that of answer(), or else of `body`, which does the work.
template <typename Body>
Result<void> MemoryRecorder::record(std::string line, Body body) {
  // Room for the record first: once the call has been made, nothing may run out of memory.
  constexpr std::string_view failed = ": failed";
  line.reserve(line.size() + failed.size());
  if (calls_.size() == calls_.capacity()) calls_.reserve(2 * calls_.size() + 8);
  try {
    Result<void> done = answer(line);
    if (done) done = body();
    if (!done) line.append(failed);
    calls_.push_back(std::move(line));
    return done;
  } catch (...) {
    calls_.push_back(std::move(line.append(failed)));
    throw;
  }
}

Result<void> MemoryRecorder::prepare(const MemoryChange& change) {
  std::string line = "prepare";
  for (const MemorySection& section : change.removed)
    line.append(" -").append(text_of(section));
  for (const MemorySection& section : change.added)
    line.append(" +").append(text_of(section));
  if (change.disruptive) line.append(" disruptive");
  return record(std::move(line), [] { return Result<void>(); });
}

Result<void> MemoryRecorder::add(const MemorySection& section) {
  return record("add " + text_of(section), [&]() -> Result<void> {
    const GuestRange range = section.guest_range();
    for (const Entry& entry : entries_) {
      if (!entry.is_there || !range.overlaps(entry.section.guest_range())) continue;
      return fail({.code = Errc::overlap,
                   .operation = "MemoryRecorder::add",
                   .first = detail::operand(range),
                   .second = detail::operand(entry.section.guest_range()),
                   .text = section.name()});
    }
    const auto base = [](const Entry& entry) { return entry.section.base(); };
    entries_.insert(std::ranges::upper_bound(entries_, section.base(), {}, base), Entry{section});
    return {};
  });
}

Result<void> MemoryRecorder::remove(const MemorySection& section) {
  try {
    return record("remove " + text_of(section), [&]() -> Result<void> {
      Entry* const entry = find(section);
      if (entry == nullptr) return fail(unknown("MemoryRecorder::remove", section));
      mark_written(*entry);
      entry->is_there = false;  // with its log, unless commit() fails
      return {};
    });
  } catch (const std::bad_alloc&) {
    return fail({.code = Errc::os,
                 .operation = "MemoryRecorder::remove",
                 .first = detail::operand(section.guest_range()),
                 .os_errno = ENOMEM,
                 .text = section.name()});
  }
}

Result<void> MemoryRecorder::log_start(const MemorySection& section) {
  return log("MemoryRecorder::log_start", section, [](Entry& entry) -> Result<void> {
    entry.is_logged = true;
    return {};
  });
}

Result<void> MemoryRecorder::log_sync(const MemorySection& section) {
  return log("MemoryRecorder::log_sync", section, [&](Entry& entry) -> Result<void> {
    if (!entry.is_logged) {
      return fail({.code = Errc::bad_state,
                   .operation = "MemoryRecorder::log_sync",
                   .first = detail::operand(section.guest_range()),
                   .reason = "the section is not logged",
                   .text = section.name()});
    }
    mark_written(entry);
    return {};
  });
}

Result<void> MemoryRecorder::log_stop(const MemorySection& section) {
  return log("MemoryRecorder::log_stop", section, [](Entry& entry) -> Result<void> {
    mark_written(entry);
    entry.is_logged = false;
    return {};
  });
}

template <typename Body>
Result<void> MemoryRecorder::log(const char* operation, const MemorySection& section, Body body) {
  std::string line = operation + std::string_view("MemoryRecorder::").size();  // the call alone
  return record(line.append(" ").append(text_of(section)), [&]() -> Result<void> {
    Entry* const entry = find(section);
    if (entry == nullptr) return fail(unknown(operation, section));
    return body(*entry);
  });
}

void MemoryRecorder::wrote(const GuestRange& range) {
  for (Entry& entry : entries_) {
    const GuestRange has = entry.section.guest_range();
    const auto part = has.intersection(range);
    if (!entry.is_there || !entry.is_logged || !part) continue;
    entry.written.push_back(
        {.offset = entry.section.region_offset() + *part->base.offset_from(has.base),
         .size = part->size});
  }
}

/// The entry of exactly this section; null when the table does not have it.
MemoryRecorder::Entry* MemoryRecorder::find(const MemorySection& section) noexcept {
  const auto found = std::ranges::find_if(
      entries_, [&](const Entry& entry) { return entry.is_there && entry.section == section; });
  return found == entries_.end() ? nullptr : &*found;
}

void MemoryRecorder::mark_written(Entry& entry) noexcept {
  for (const DirtyRange& written : entry.written)
    entry.section.region()->dirty().mark(written.offset, written.size);
  entry.written.clear();
}

Result<void> MemoryRecorder::commit() {
  // The line is short enough for std::string to hold it without allocating, so that nothing but the
  // record itself can run out of memory; whatever fails, the table goes back.
  Result<void> done;
  try {
    done = record("commit", [] { return Result<void>(); });
  } catch (...) {
    settle(&Entry::is_there, &Entry::was_committed);
    throw;
  }
  if (done) {
    settle(&Entry::was_committed, &Entry::is_there);
  } else {
    settle(&Entry::is_there, &Entry::was_committed);
  }
  return done;
}

/// Makes one of the two tables equal to the other.
void MemoryRecorder::settle(bool Entry::*into, bool Entry::*from) noexcept {
  std::erase_if(entries_, [&](const Entry& entry) { return !(entry.*from); });
  for (Entry& entry : entries_)
    entry.*into = true;
}

void MemoryRecorder::refuse(std::size_t n, std::size_t count) noexcept {
  fail_in_ = n;
  fail_count_ = count;
  fail_throws_ = false;
}

void MemoryRecorder::run_out_of_memory(std::size_t n) noexcept {
  refuse(n);
  fail_throws_ = true;
}

void MemoryRecorder::on_call(std::function<Result<void>(std::string_view line)> hook) noexcept {
  hook_ = std::move(hook);
}

std::string MemoryRecorder::text() const {
  std::string all_lines;
  for (const std::string& line : calls_)
    all_lines.append(line).append("\n");
  return all_lines;
}

std::vector<MemorySection> MemoryRecorder::table() const {
  std::vector<MemorySection> sections;
  for (const Entry& entry : entries_) {
    if (entry.is_there) sections.push_back(entry.section);
  }
  return sections;
}

Result<void> MemoryRecorder::check_equals(const GuestMemory& memory) const {
  const std::vector<MemorySection> sections = table();
  auto next = sections.begin();
  Result<void> same;
  const auto compare = [&](const MemorySection& expected) -> Result<void> {
    // The part of it that the table has so far, section by section.
    std::uint64_t covered = 0;
    while (covered < expected.size()) {
      const MemorySection missing(expected.region(), expected.region_offset() + covered,
                                  expected.size() - covered);
      if (next == sections.end() || next->base() > missing.base()) {
        return differs(missing, "the table lacks this memory of the guest");
      }
      if (next->base() != missing.base() || next->region_offset() != missing.region_offset() ||
          !next->region()->shares_memory_with(*missing.region())) {
        return differs(*next, "the guest does not have this section");
      }
      covered += next->size();
      ++next;
    }
    return {};
  };
  detail::for_each_section(memory, unit_, [&](const MemorySection& expected) {
    if (same) same = compare(expected);
  });
  VMSPACE_TRY(same);
  if (next != sections.end()) return differs(*next, "the guest does not have this section");
  return {};
}

}  // namespace vmspace
