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

/// Name, guest range, protection: `ram0 [0x0-0x3fff] rw-`, and for a part that begins 0x1000 bytes
/// into its region `ram0+0x1000 [0x1000-0x1fff] rw-`.
[[nodiscard]] inline std::string to_text(const MemorySection& section) {
  const std::uint64_t base = section.base().value();
  const std::uint64_t offset = section.region_offset();
  return detail::concat(section.name(), offset == 0 ? std::string() : "+" + detail::hex(offset),
                        " ", to_text(detail::unchecked_range(base, base + (section.size() - 1))),
                        " ", to_text(section.protection()));
}

/// `0x1000+0x2000 at host 0x7f0000000000 fd 5+0x1000 read_only`.
[[nodiscard]] inline std::string to_text(const DmaMapping& mapping) {
  std::string text =
      detail::concat(detail::base_and_size(mapping.iova, mapping.size), " at host ",
                     detail::hex(reinterpret_cast<std::uintptr_t>(mapping.host_address)));
  if (mapping.fd >= 0) {
    text.append(" fd ").append(std::to_string(mapping.fd)).append("+");
    text.append(detail::hex(mapping.file_offset));
  }
  return text.append(mapping.read_only ? " read_only" : "");
}

/// `pages of 0x1000 in {[0x0-0xfedfffff]}, 65535 mappings left`, where there is a limit of them.
[[nodiscard]] inline std::string to_text(const DmaLimits& limits) {
  std::string text = detail::concat("pages of ", detail::hex(limits.page_size), " in ",
                                    detail::list_text(limits.iova_ranges));
  if (limits.available == DmaLimits{}.available) return text;
  return text.append(", ").append(std::to_string(limits.available)).append(" mappings left");
}

/// The section and why: `BAR1 [0x0-0xfff] rw-: DmaMappings::add: ...`.
[[nodiscard]] inline std::string to_text(const UnmappedWindow& window) {
  return detail::concat(to_text(window.section), ": ", to_text(window.why));
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

/// The enumerator's name.
[[nodiscard]] inline std::string to_text(SectionUnit unit) {
  return unit == SectionUnit::slot ? "slot" : "block";
}

/// The enumerator's name.
[[nodiscard]] inline std::string to_text(BlockState state) {
  switch (state) {
    case BlockState::plugged: return "plugged";
    case BlockState::unplugged: return "unplugged";
    case BlockState::mixed: return "mixed";
  }
  return "BlockState " + std::to_string(static_cast<int>(state));
}

/// The enumerator's name.
[[nodiscard]] inline std::string to_text(Unsettled how) {
  switch (how) {
    case Unsettled::retired: return "retired";
    case Unsettled::missing: return "missing";
    case Unsettled::unlogged: return "unlogged";
  }
  return "Unsettled " + std::to_string(static_cast<int>(how));
}

/// `kvm: 0x1000+0x2000 retired`.
[[nodiscard]] inline std::string to_text(const UnsettledSection& section) {
  return detail::concat(section.listener, ": ", to_text(section.range), " ", to_text(section.how));
}

}  // namespace vmspace
