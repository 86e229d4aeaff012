// SPDX-License-Identifier: Apache-2.0
//
// to_text() of the types of the VMM layer. Include text.hpp, which has all of them.

#pragma once

#include <cstdint>
#include <string>

#include "vmspace/text/memory.hpp"
#include "vmspace/vmm.hpp"

namespace vmspace {

/// `0x1000+0x2000 at host 0x7f0000000000 read_only log_dirty`.
[[nodiscard]] inline std::string to_text(const KvmMemory& memory) {
  return detail::concat(detail::base_and_size(memory.base.value(), memory.size), " at host ",
                        detail::hex(reinterpret_cast<std::uintptr_t>(memory.host_address)),
                        memory.read_only ? " read_only" : "", memory.log_dirty ? " log_dirty" : "");
}

/// `slot 3 0x1000+0x2000`.
[[nodiscard]] inline std::string to_text(const KvmSlot& slot) {
  return detail::concat("slot ", std::to_string(slot.number), " ", to_text(slot.range));
}

}  // namespace vmspace
