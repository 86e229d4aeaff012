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

/// The enumerator's name.
[[nodiscard]] inline std::string to_text(VhostUserAddresses addresses) {
  return addresses == VhostUserAddresses::guest ? "guest" : "host";
}

/// `0x1000 bytes of fd 5 offset 0x0`.
[[nodiscard]] inline std::string to_text(const VhostUserLogArea& log) {
  return detail::concat(detail::hex(log.size), " bytes of fd ", std::to_string(log.fd), " offset ",
                        detail::hex(log.offset));
}

/// `request 37 payload 0x28 fds 1 needs_reply`, or `reply to request 37 ...`.
[[nodiscard]] inline std::string to_text(const VhostUserMessage& message) {
  return detail::concat(
      message.is_reply() ? "reply to request " : "request ", std::to_string(message.request()),
      " payload ", detail::hex(message.payload().size()), " fds ",
      std::to_string(message.fds().size()), message.needs_reply() ? " needs_reply" : "");
}

}  // namespace vmspace
