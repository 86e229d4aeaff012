// SPDX-License-Identifier: Apache-2.0
//
// KvmMemslots as a MemoryListener.

#include <algorithm>
#include <cstdint>
#include <new>
#include <optional>
#include <string_view>

#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"

#include "vmm/kvm_mapping.hpp"
#include "vmm/kvm_memslots_state.hpp"
#include "vmm/kvm_pieces.hpp"
#include "vmm/section_list.hpp"

namespace vmspace {

using Mapping = detail::KvmMapping;
using Shown = Mapping::Shown;

namespace {

KvmMemory memory_of(const MemorySection& section) noexcept {
  return {.base = section.base(),
          .size = section.size(),
          .host_address = section.host_base(),
          .read_only = !allows(section.protection(), Protection::write)};
}

/// The result with the section's name; what was named before, a slot, becomes the detail.
Result<void> named(Result<void> result, const MemorySection& section) noexcept {
  if (!result) {
    const ErrorText before = result.error().text;
    result.error().text = {section.name(), before.subject()};
  }
  return result;
}

/// How many numbers are free that KVM has.
std::uint64_t count_free(const detail::KvmSlotNumbers& numbers) {
  std::uint64_t count = 0;
  for (const Range& free : numbers.pool.free_ranges()) {
    if (free.min() < numbers.limit)
      count += std::min<std::uint64_t>(free.max(), numbers.limit - 1) - free.min() + 1;
  }
  return count;
}

/// Brings what KVM has logged of a section to the region's bitmap: all of it where the log can't be
/// had, since a page may be called dirty that is not, but never the other way round.
void keep_log(Mapping& mapping, int vm_fd, bool manual, const MemorySection& section,
              const char* operation) noexcept {
  DirtyBitmap& dirty = section.region()->dirty();
  if (!mapping.is_logged() || !dirty.is_enabled()) return;
  try {
    if (mapping.shown() == Shown::logged) {
      const auto log = mapping.read_log(vm_fd, manual, operation);
      if (log && dirty.merge(section.region_offset(), log->bits, log->unit)) return;
    }
  } catch (const std::bad_alloc&) {  // as for any other failure
  }
  dirty.mark(section.region_offset(), section.size());
}

}  // namespace

std::string_view KvmMemslots::name() const noexcept {
  return state_ && state_->numbers.address_space == KvmAddressSpace::smm ? "kvm smm" : "kvm";
}

Result<void> KvmMemslots::prepare(const MemoryChange& change) {
  constexpr const char* operation = "KvmMemslots::prepare";
  VMSPACE_TRY(check_not_moved_from(operation));
  std::uint64_t needed = 0;
  for (const MemorySection& section : change.added) {
    VMSPACE_TRY(named(
        detail::require_readable(section.protection(), section.guest_range(), operation), section));
    const KvmMemory memory = memory_of(section);
    VMSPACE_TRY(named(check(memory, operation), section));
    needed += detail::KvmPieces(memory).count();
  }
  std::uint64_t available = count_free(state_->numbers);
  for (const MemorySection& removed : change.removed) {
    if (!detail::has_part_of(change.added, removed.guest_range())) continue;
    if (const auto mapping = find(removed.guest_range(), operation))
      available += (*mapping)->size();
  }
  if (needed <= available) return {};
  return fail({.code = Errc::limit_exceeded,
               .operation = operation,
               .first = Operand::number(needed),
               .second = Operand::number(available),
               .reason = "the added memory needs more slots than there are slot numbers left",
               .text = change.added.front().name()});
}

Result<void> KvmMemslots::add(const MemorySection& section) {
  constexpr const char* operation = "KvmMemslots::add";
  VMSPACE_TRY(check_not_moved_from(operation));
  VMSPACE_TRY(named(
      detail::require_readable(section.protection(), section.guest_range(), operation), section));
  clear_leftovers(section.guest_range());
  return named(show(memory_of(section), section.region(), operation), section);
}

/// Tries again to take away what is left of sections that add() could not show, in this range.
void KvmMemslots::clear_leftovers(const GuestRange& range) noexcept {
  const auto bounds = range.range();
  if (!bounds) return;
  const auto take_one_away = [&]() -> std::optional<Range> {
    for (const auto& entry : state_->mappings.overlapping(*bounds)) {
      Mapping& mapping = *state_->mappings.find_value(entry.range.min());
      if (!mapping.is_leftover()) continue;
      mapping.take_away(state_->vm.value());
      if (mapping.shown() == Shown::no) return entry.range;
    }
    return std::nullopt;
  };
  while (const auto gone = take_one_away())
    forget({GuestAddress(gone->min()), gone->size()});
}

Result<void> KvmMemslots::remove(const MemorySection& section) {
  constexpr const char* operation = "KvmMemslots::remove";
  VMSPACE_TRY(check_not_moved_from(operation));
  const GuestRange range = section.guest_range();
  const auto found = find(range, operation);
  if (!found || (*found)->region() == nullptr ||
      !(*found)->region()->shares_memory_with(*section.region())) {
    return fail({.code = Errc::not_found,
                 .operation = operation,
                 .first = detail::operand(range),
                 .reason = "add() was not given this section",
                 .text = section.name()});
  }
  Mapping& mapping = **found;
  keep_log(mapping, state_->vm.value(), state_->manual_protect, section, operation);
  VMSPACE_TRY(named(mapping.show(state_->vm.value(), Shown::no, operation), section));
  forget(range);
  return {};
}

Result<void> KvmMemslots::log_start(const MemorySection& section) {
  return named(switch_log(section.guest_range(), true, "KvmMemslots::log_start"), section);
}

Result<void> KvmMemslots::log_sync(const MemorySection& section) {
  constexpr const char* operation = "KvmMemslots::log_sync";
  const auto mapping = find_logged(section.guest_range(), operation);
  if (!mapping) return named(fail(mapping.error()), section);
  const auto log = (*mapping)->fetch_log(state_->vm.value(), state_->manual_protect, operation);
  if (!log) return named(fail(log.error()), section);
  // KVM has forgotten it, so it must not get lost here: units that KVM gives always fit.
  VMSPACE_TRY_IN(operation,
                 section.region()->dirty().merge(section.region_offset(), log->bits, log->unit));
  return {};
}

Result<void> KvmMemslots::log_stop(const MemorySection& section) {
  constexpr const char* operation = "KvmMemslots::log_stop";
  const auto mapping = find(section.guest_range(), operation);
  if (!mapping) return named(fail(mapping.error()), section);
  keep_log(**mapping, state_->vm.value(), state_->manual_protect, section, operation);
  return named(switch_log(section.guest_range(), false, operation), section);
}

}  // namespace vmspace
