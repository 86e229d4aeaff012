// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/dma_mappings.hpp"

#include <algorithm>
#include <cassert>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/host/memory_pin.hpp"

#include "os/argument_checks.hpp"
#include "os/forked_child.hpp"
#include "vmm/keep_for_ever.hpp"
#include "vmm/section_list.hpp"

namespace vmspace {

using detail::require_multiple;

struct VMSPACE_HIDDEN DmaMappings::State {
  /// A section that add() was given.
  struct Entry {
    MemorySection section;
    std::optional<Error> refused = {};  // of a window: why it is not mapped
    MemoryPin pin = {};                 // unless it was refused
  };

  /// Where memory is in this process, all that some targets know it by.
  struct HostRange {
    std::uintptr_t base;
    std::uint64_t size;

    friend auto operator<=>(const HostRange&, const HostRange&) = default;
  };
  static HostRange host_range(const MemorySection& section) noexcept {
    return {reinterpret_cast<std::uintptr_t>(section.host_base()), section.size()};
  }

  std::unique_ptr<DmaTarget> target;
  IntervalTree<Entry> entries = {};  ///< by guest physical addresses
  mutable std::mutex mutex = {};     ///< guards the entries, not the target

  /// How many mapped sections share one mapping, where the target goes by host addresses.
  std::map<HostRange, std::size_t> sharing = {};
  State* before = nullptr;  ///< for keep_for_ever()
  detail::Maker maker = {};

  /// How many sections use the mapping of this memory that a target by host addresses has; memory
  /// that moves is there at two guest addresses for a while.
  [[nodiscard]] std::size_t users(const MemorySection& section) const noexcept {
    const auto found = sharing.find(host_range(section));
    return found == sharing.end() ? 0 : found->second;
  }
  [[nodiscard]] Entry* find(const MemorySection& section) noexcept {
    Entry* const entry = entries.find_value(section.base().value());
    return entry != nullptr && entry->section == section ? entry : nullptr;
  }
  Result<Entry*> remember(const MemorySection& section) {
    const Range range = VMSPACE_TRY(section.guest_range().range());
    const std::lock_guard lock(mutex);
    return VMSPACE_TRY(entries.insert(range, Entry{section}));
  }
  void forget(const MemorySection& section) noexcept {
    // The entry goes after the lock, because with it the region may go.
    const auto erased = [&] {
      const std::lock_guard lock(mutex);
      return entries.erase(*section.guest_range().range());
    }();
    assert(erased && *erased);
    static_cast<void>(erased);
  }
  Result<void> map(Entry& entry, const char* operation);
  /// Ends the mapping of an entry that is not refused, unless others need it.
  Result<void> unmap(const Entry& entry) noexcept;
};

namespace {

/// Whether it is another device's memory rather than what a guest uses for DMA.
bool is_window(const MemorySection& section) noexcept {
  return section.type() == RegionType::device_memory || section.type() == RegionType::dax_memory;
}

DmaMapping mapping_of(const MemorySection& section) noexcept {
  return {.iova = section.base().value(),
          .size = section.size(),
          .host_address = section.host_base(),
          .fd = section.fd(),
          .file_offset = section.fd() < 0 ? 0 : section.file_offset(),
          .read_only = !allows(section.protection(), Protection::write)};
}

/// The error as one of this operation about this section.
Error named(const Error& error, const MemorySection& section, const char* operation) noexcept {
  Error known = error.in(operation);
  known.text = error.text.with_subject(section.name());
  return known;
}

Result<void> check(const MemorySection& section, const DmaLimits& limits, const char* operation) {
  const GuestRange range = section.guest_range();
  if (!allows(section.protection(), Protection::read)) {
    return fail({.code = Errc::access_denied,
                 .operation = operation,
                 .first = detail::operand(range),
                 .reason = "a device can read all that is mapped, so the region must be readable"});
  }
  VMSPACE_TRY(detail::require_power_of_two(operation, limits.page_size));
  VMSPACE_TRY(require_multiple(operation, Operand::address(range.base.value()), limits.page_size,
                               "the guest address must be a multiple of the page size for DMA"));
  VMSPACE_TRY(require_multiple(operation, Operand::size(range.size), limits.page_size,
                               "the size must be a multiple of the page size for DMA"));
  VMSPACE_TRY(require_multiple(
      operation, Operand::address(reinterpret_cast<std::uintptr_t>(section.host_base())),
      limits.page_size, "the host address must be a multiple of the page size for DMA"));
  const Range bounds = VMSPACE_TRY_IN(operation, range.range());
  const Range* around_base = nullptr;
  for (const Range& iova : limits.iova_ranges) {
    if (iova.contains(bounds)) return {};
    if (iova.contains(bounds.min())) around_base = &iova;
  }
  return fail({.code = Errc::out_of_bounds,
               .operation = operation,
               .first = detail::operand(range),
               .second = around_base == nullptr ? Operand{} : detail::operand(*around_base),
               .reason = "the section must lie within one of the IOVA ranges for DMA"});
}

}  // namespace

DmaMappings::DmaMappings(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
DmaMappings::DmaMappings(DmaMappings&&) noexcept = default;

DmaMappings& DmaMappings::operator=(DmaMappings&& other) noexcept {
  if (this == &other) return *this;
  unmap_all();
  state_ = std::move(other.state_);
  return *this;
}

DmaMappings::~DmaMappings() {
  unmap_all();
}

Result<DmaMappings> DmaMappings::create(std::unique_ptr<DmaTarget> target) {
  constexpr const char* operation = "DmaMappings::create";
  if (target == nullptr) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "the target is a null pointer"});
  }
  VMSPACE_TRY_IN(operation, target->limits());
  return DmaMappings(std::unique_ptr<State>(new State{.target = std::move(target)}));
}

std::string_view DmaMappings::name() const noexcept {
  return state_ ? state_->target->name() : "dma";
}

Result<void> DmaMappings::check_not_moved_from(const char* operation) const {
  if (state_) return {};
  return fail({.code = Errc::bad_state,
               .operation = operation,
               .reason = "the object has been moved from"});
}

Result<void> DmaMappings::prepare(const MemoryChange& change) {
  constexpr const char* operation = "DmaMappings::prepare";
  VMSPACE_TRY(check_not_moved_from(operation));
  if (change.added.empty()) return {};
  const DmaLimits limits = VMSPACE_TRY_IN(operation, state_->target->limits());
  std::uint64_t needed = 0;
  const MemorySection* last = nullptr;
  for (const MemorySection& section : change.added) {
    // Windows take what is left, if anything.
    if (is_window(section)) continue;
    const auto checked = check(section, limits, operation);
    if (!checked) return fail(named(checked.error(), section, operation));
    if (state_->users(section) != 0) continue;
    ++needed;
    last = &section;
  }
  std::uint64_t freed = 0;
  for (const MemorySection& removed : change.removed) {
    if (!detail::has_part_of(change.added, removed.guest_range())) continue;
    const State::Entry* const entry = state_->find(removed);
    if (entry != nullptr && !entry->refused) ++freed;
  }
  if (needed <= freed || needed - freed <= limits.available) return {};
  return fail({.code = Errc::limit_exceeded,
               .operation = operation,
               .first = Operand::number(needed),
               .second = Operand::number(limits.available + freed),
               .reason = "the added memory needs more mappings for DMA than are left",
               .text = last->name()});
}

Result<void> DmaMappings::State::map(Entry& entry, const char* operation) {
  const MemorySection& section = entry.section;
  const DmaLimits limits = VMSPACE_TRY(target->limits());
  VMSPACE_TRY(check(section, limits, operation));
  // Pinned first: once a device has the pages, they stay.
  MemoryPin pin = VMSPACE_TRY(
      section.region()->mapping().pin(section.region_offset(), section.size(), section.name()));
  if (target->is_by_host_address()) {
    const auto shared = sharing.try_emplace(host_range(section), 0).first;
    if (shared->second == 0) {
      Result<void> mapped;
      try {
        mapped = target->map(mapping_of(section));
      } catch (...) {
        sharing.erase(shared);
        throw;
      }
      if (!mapped) {
        sharing.erase(shared);
        return mapped;
      }
    }
    ++shared->second;
  } else {
    VMSPACE_TRY(target->map(mapping_of(section)));
  }
  entry.pin = std::move(pin);
  return {};
}

Result<void> DmaMappings::State::unmap(const Entry& entry) noexcept {
  if (!target->is_by_host_address()) return target->unmap(mapping_of(entry.section));
  const auto shared = sharing.find(host_range(entry.section));
  assert(shared != sharing.end());
  if (shared->second == 1) {
    VMSPACE_TRY(target->unmap(mapping_of(entry.section)));
    sharing.erase(shared);
  } else {
    --shared->second;
  }
  return {};
}

Result<void> DmaMappings::add(const MemorySection& section) {
  constexpr const char* operation = "DmaMappings::add";
  VMSPACE_TRY(check_not_moved_from(operation));
  // Known before it is mapped, and until after it is unmapped: is_mapped() says yes rather too
  // long.
  const auto entry = state_->remember(section);
  if (!entry) return fail(named(entry.error(), section, operation));
  Result<void> mapped;
  try {
    mapped = state_->map(**entry, operation);
  } catch (...) {
    state_->forget(section);
    throw;
  }
  if (mapped) return {};
  const Error error = named(mapped.error(), section, operation);
  if (!is_window(section)) {
    state_->forget(section);
    return fail(error);
  }
  const std::lock_guard lock(state_->mutex);
  (*entry)->refused = error;
  return {};
}

Result<void> DmaMappings::remove(const MemorySection& section) {
  constexpr const char* operation = "DmaMappings::remove";
  VMSPACE_TRY(check_not_moved_from(operation));
  const State::Entry* const entry = state_->find(section);
  if (entry == nullptr) {
    return fail({.code = Errc::not_found,
                 .operation = operation,
                 .first = detail::operand(section.guest_range()),
                 .reason = "add() was not given this section",
                 .text = section.name()});
  }
  if (!entry->refused) {
    const auto unmapped = state_->unmap(*entry);
    if (!unmapped) return fail(named(unmapped.error(), section, operation));
  }
  state_->forget(section);
  return {};
}

void DmaMappings::unmap_all() noexcept {
  detail::leave_to_maker(state_);
  if (!state_) return;
  const auto first_from = [&](std::uint64_t address) -> const MemorySection* {
    const auto rest = state_->entries.overlapping(
        detail::unchecked_range(address, std::numeric_limits<std::uint64_t>::max()));
    return rest.empty() ? nullptr : &rest.front().value->section;
  };
  for (const MemorySection* next = first_from(0); next != nullptr;) {
    const MemorySection section = *next;
    const State::Entry& entry = *state_->find(section);
    if (entry.refused || state_->unmap(entry)) state_->forget(section);
    const auto end = section.guest_range().end();
    next = end ? first_from(end->value()) : nullptr;
  }
  if (state_->entries.empty()) return state_.reset();
  // A failure can no longer be reported. Nobody else may get what devices still access.
  state_->target.reset();
  detail::keep_for_ever(std::move(state_));
}

bool DmaMappings::is_mapped(const GuestRange& range) const noexcept {
  if (!state_ || range.empty()) return false;
  const Range bounds = detail::unchecked_range(range.base.value(), detail::last_within(range));
  const std::lock_guard lock(state_->mutex);
  return std::ranges::any_of(state_->entries.overlapping(bounds),
                             [](const auto& entry) { return !entry.value->refused; });
}

std::vector<UnmappedWindow> DmaMappings::unmapped_windows() const {
  std::vector<UnmappedWindow> windows;
  if (!state_) return windows;
  const std::lock_guard lock(state_->mutex);
  for (const auto& entry : state_->entries) {
    if (entry.value->refused) windows.push_back({entry.value->section, *entry.value->refused});
  }
  return windows;
}

Result<void> DmaMappings::check_invariants() const {
  if (!state_) return {};
  const auto broken = [](const char* rule) {
    return fail(
        {.code = Errc::corrupt, .operation = "DmaMappings::check_invariants", .reason = rule});
  };
  const std::lock_guard lock(state_->mutex);
  for (const auto& entry : state_->entries) {
    if (entry.value == nullptr) return broken("a range must have its section");
    const auto range = entry.value->section.guest_range().range();
    if (!range || *range != entry.range) return broken("a section must be known by its range");
    if (entry.value->refused && !is_window(entry.value->section))
      return broken("only a window may be unmapped");
  }
  return {};
}

}  // namespace vmspace
