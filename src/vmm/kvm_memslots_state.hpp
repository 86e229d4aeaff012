// SPDX-License-Identifier: Apache-2.0
//
// What a KvmMemslots holds; its sources share it.

#pragma once

#include <linux/kvm.h>

#include <cstdint>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/allocator/range_pool.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/spec/protection.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"

#include "os/descriptor.hpp"
#include "os/system_calls.hpp"
#include "vmm/kvm_mapping.hpp"

namespace vmspace {

struct VMSPACE_HIDDEN KvmMemslots::State {
  detail::Descriptor vm;
  bool can_read_only;
  detail::KvmSlotNumbers numbers;
  std::uint32_t used = 0;
  bool manual_protect = false;                     ///< KVM clears logs only when it is told to
  IntervalTree<detail::KvmMapping> mappings = {};  ///< by guest physical addresses

  /// Switches KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; false, with errno, when KVM refuses.
  [[nodiscard]] bool set_manual_protect(bool on) noexcept {
    kvm_enable_cap request{};
    request.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
    request.args[0] = on ? KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE : 0;
    if (detail::kernel().ioctl(vm.value(), KVM_ENABLE_CAP, &request) < 0) return false;
    manual_protect = on;
    return true;
  }
};

namespace detail {

/// `access_denied` for memory that the guest may not read.
[[nodiscard]] inline Result<void> require_readable(Protection protection, const GuestRange& range,
                                                   const char* operation) {
  if (allows(protection, Protection::read)) return {};
  return fail({.code = Errc::access_denied,
               .operation = operation,
               .first = operand(range),
               .reason = "a guest can read every slot, so the region must be readable"});
}

}  // namespace detail

}  // namespace vmspace
