// SPDX-License-Identifier: Apache-2.0

#include <linux/kvm.h>

#include <bit>
#include <cstdint>
#include <span>

#include "vmspace/base/try.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"

#include "os/argument_checks.hpp"
#include "os/page_size.hpp"
#include "os/system_calls.hpp"
#include "vmm/kvm_mapping.hpp"
#include "vmm/kvm_memslots_state.hpp"

namespace vmspace {

using detail::fail_os;
using detail::kernel;
using Mapping = detail::KvmMapping;
using Shown = Mapping::Shown;

Result<void> KvmMemslots::switch_log(const GuestRange& range, bool on, const char* operation) {
  Mapping* const mapping = VMSPACE_TRY(find(range, operation));
  if (!mapping->is_whole()) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = detail::operand(range),
                 .reason = "the range is shown only in part after an earlier failure: clear() it"});
  }
  return mapping->show(state_->vm.value(), on ? Shown::logged : Shown::yes, operation);
}

Result<void> KvmMemslots::start_dirty_log(const GuestRange& range) {
  return switch_log(range, true, "KvmMemslots::start_dirty_log");
}

Result<void> KvmMemslots::stop_dirty_log(const GuestRange& range) {
  return switch_log(range, false, "KvmMemslots::stop_dirty_log");
}

Result<Mapping*> KvmMemslots::find_logged(const GuestRange& range, const char* operation) const {
  Mapping* const mapping = VMSPACE_TRY(find(range, operation));
  const auto shown = mapping->shown();
  if (shown == Shown::logged) return mapping;
  return fail(
      {.code = Errc::bad_state,
       .operation = operation,
       .first = detail::operand(range),
       .reason = shown ? "the dirty log is off: call start_dirty_log() first"
                       : "the range is shown or logged only in part after an earlier failure"});
}

Result<KvmDirtyLog> KvmMemslots::fetch_dirty_log(const GuestRange& range) {
  constexpr const char* operation = "KvmMemslots::fetch_dirty_log";
  Mapping* const mapping = VMSPACE_TRY(find_logged(range, operation));
  return mapping->fetch_log(state_->vm.value(), state_->manual_protect, operation);
}

Result<void> KvmMemslots::enable_manual_protect() {
  constexpr const char* operation = "KvmMemslots::enable_manual_protect";
  VMSPACE_TRY(check_not_moved_from(operation));
  if (state_->manual_protect) return {};
  const auto which = std::uintptr_t{KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2};
  const int known =
      kernel().ioctl(state_->vm.value(), KVM_CHECK_EXTENSION, reinterpret_cast<void*>(which));
  if (known < 0) return fail_os(operation, {}, "KVM_CHECK_EXTENSION");
  if ((static_cast<unsigned>(known) & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) == 0) {
    return fail({.code = Errc::unsupported,
                 .operation = operation,
                 .reason = "this KVM has no KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"});
  }
  if (!state_->set_manual_protect(true)) return fail_os(operation, {}, "KVM_ENABLE_CAP");
  return {};
}

Result<void> KvmMemslots::check_manual(const char* operation) const {
  VMSPACE_TRY(check_not_moved_from(operation));
  if (state_->manual_protect) return {};
  return fail({.code = Errc::bad_state,
               .operation = operation,
               .reason = "KVM clears what it gives: call enable_manual_protect() first"});
}

Result<KvmDirtyLog> KvmMemslots::read_dirty_log(const GuestRange& range) {
  constexpr const char* operation = "KvmMemslots::read_dirty_log";
  VMSPACE_TRY(check_manual(operation));
  Mapping* const mapping = VMSPACE_TRY(find_logged(range, operation));
  return mapping->read_log(state_->vm.value(), true, operation);
}

Result<void> KvmMemslots::clear_dirty_log(const KvmDirtyLog& log) {
  constexpr const char* operation = "KvmMemslots::clear_dirty_log";
  VMSPACE_TRY(check_manual(operation));
  const std::uint64_t page = detail::base_page_size();
  if (log.unit != page) {
    return fail({.code = Errc::bad_alignment,
                 .operation = operation,
                 .first = Operand::size(log.unit),
                 .reason = "the unit must be the host's page size"});
  }
  const auto entry = state_->mappings.find(log.base.value());
  if (!entry) {
    return fail({.code = Errc::not_found,
                 .operation = operation,
                 .first = Operand::address(log.base.value()),
                 .reason = "the log must begin in a range that is shown"});
  }
  const Range bounds = entry->range;
  Mapping* const mapping =
      VMSPACE_TRY(find_logged({GuestAddress(bounds.min()), bounds.size()}, operation));
  const std::uint64_t offset = log.base.value() - bounds.min();
  VMSPACE_TRY(detail::require_multiple(operation, Operand::size(offset), 64 * page,
                                       "the log must begin at a multiple of 64 pages"));
  std::span<const std::uint64_t> words = log.bits;
  while (!words.empty() && words.back() == 0)
    words = words.first(words.size() - 1);
  if (words.empty()) return {};
  const std::uint64_t bits =
      64 * (words.size() - 1) + static_cast<std::uint64_t>(std::bit_width(words.back()));
  if (bits > (bounds.size() - offset) / page) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = Operand::number(bits),
                 .second = Operand::number((bounds.size() - offset) / page),
                 .reason = "the log has a set bit past the end of the range"});
  }
  return mapping->clear_log(state_->vm.value(), offset / page / 64, words, operation);
}

}  // namespace vmspace
