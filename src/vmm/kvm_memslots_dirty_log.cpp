// SPDX-License-Identifier: Apache-2.0

#include "vmspace/base/try.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"

#include "vmm/kvm_mapping.hpp"
#include "vmm/kvm_memslots_state.hpp"

namespace vmspace {

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

Result<KvmDirtyLog> KvmMemslots::fetch_dirty_log(const GuestRange& range) {
  constexpr const char* operation = "KvmMemslots::fetch_dirty_log";
  Mapping* const mapping = VMSPACE_TRY(find(range, operation));
  if (const auto shown = mapping->shown(); shown != Shown::logged) {
    return fail(
        {.code = Errc::bad_state,
         .operation = operation,
         .first = detail::operand(range),
         .reason = shown ? "the dirty log is off: call start_dirty_log() first"
                         : "the range is shown or logged only in part after an earlier failure"});
  }
  return mapping->fetch_log(state_->vm.value(), operation);
}

}  // namespace vmspace
