// SPDX-License-Identifier: Apache-2.0

#include "vmm/vhost_sections.hpp"

#include <algorithm>

#include "vmm/section_list.hpp"

namespace vmspace::detail {

namespace {

using Entry = VhostSections::Entry;
using State = VhostSections::State;

bool is_leaving(const Entry& entry) noexcept {
  return entry.state == State::leaving;
}

}  // namespace

bool VhostSections::interest(const MemorySection& section) noexcept {
  const bool memory =
      section.type() == RegionType::default_memory || section.type() == RegionType::dax_memory;
  return memory && allows(section.protection(), Protection::write);
}

Result<void> VhostSections::check_count(const MemoryChange& change, std::uint64_t limit,
                                        const char* operation) const {
  const auto goes_first = [&](const MemorySection& section) {
    return interest(section) && has_part_of(change.added, section.guest_range());
  };
  const auto most = static_cast<std::uint64_t>(static_cast<std::ptrdiff_t>(count()) +
                                               std::ranges::count_if(change.added, interest) -
                                               std::ranges::count_if(change.removed, goes_first));
  // What only takes away is never refused, even should the device have lowered its limit.
  if (most <= limit || std::ranges::none_of(change.added, interest)) return {};
  return fail({.code = Errc::limit_exceeded,
               .operation = operation,
               .first = Operand::number(most),
               .second = Operand::number(limit),
               .reason = "the device can't have that many regions of memory"});
}

Result<void> VhostSections::add(const MemorySection& section, State state, std::uint64_t limit,
                                const char* operation) {
  for (const Entry& entry : entries_) {
    if (is_leaving(entry) || !entry.section.guest_range().overlaps(section.guest_range())) continue;
    return fail({.code = Errc::overlap,
                 .operation = operation,
                 .first = operand(section.guest_range()),
                 .second = operand(entry.section.guest_range())});
  }
  // A removal that is undone before the device has heard of it.
  const auto same = [&](const Entry& entry) { return entry.section == section; };
  if (const auto entry = std::ranges::find_if(entries_, same); entry != entries_.end()) {
    entry->state = State::here;
    return {};
  }
  if (count() >= limit) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = operation,
                 .first = Operand::number(count() + 1),
                 .second = Operand::number(limit),
                 .reason = "the device can't have that many regions of memory"});
  }
  entries_.push_back({.section = section, .state = state});
  return {};
}

Result<Entry*> VhostSections::find(const MemorySection& section, const char* operation) noexcept {
  for (Entry& entry : entries_) {
    if (!is_leaving(entry) && entry.section == section) return &entry;
  }
  return fail({.code = Errc::not_found,
               .operation = operation,
               .first = operand(section.guest_range()),
               .reason = "add() was not given this section"});
}

void VhostSections::erase(Entry* entry) noexcept {
  entries_.erase(entries_.begin() + (entry - entries_.data()));
}

Result<void> VhostSections::leave(const MemorySection& section, const char* operation) noexcept {
  const auto entry = find(section, operation);
  if (!entry) return fail(entry.error());
  if ((*entry)->state == State::arriving) {
    erase(*entry);
  } else {
    (*entry)->state = State::leaving;
  }
  return {};
}

bool VhostSections::has_changes() const noexcept {
  return std::ranges::any_of(
      entries_, [](State state) { return state != State::here; }, &Entry::state);
}

void VhostSections::settle() noexcept {
  std::erase_if(entries_, is_leaving);
  for (Entry& entry : entries_)
    entry.state = State::here;
}

void VhostSections::revert() noexcept {
  std::erase_if(entries_, [](const Entry& entry) { return entry.state == State::arriving; });
  for (Entry& entry : entries_)
    entry.state = State::here;
}

std::size_t VhostSections::count() const noexcept {
  return entries_.size() - static_cast<std::size_t>(std::ranges::count_if(entries_, is_leaving));
}

}  // namespace vmspace::detail
