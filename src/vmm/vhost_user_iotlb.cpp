// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vhost_user_iotlb.hpp"

#include <cstdint>
#include <span>

#include "vmspace/base/try.hpp"

#include "base/corrupt.hpp"
#include "vmm/vhost_user_wire.hpp"

namespace vmspace {

namespace {

namespace vhost_user = detail::vhost_user;
using detail::corrupt;
using detail::WireIotlb;

constexpr const char* iotlb_operation = "serve_iotlb";

static_assert(static_cast<std::uint8_t>(Protection::read) == vhost_user::access_read &&
              static_cast<std::uint8_t>(Protection::write) == vhost_user::access_write &&
              static_cast<std::uint8_t>(Protection::read_write) == vhost_user::access_both);

Result<void> update(const WireIotlb& wire, const VhostUserBackendMemory& memory, IoTlb& tlb) {
  if (wire.access < vhost_user::access_read || wire.access > vhost_user::access_both)
    return corrupt(iotlb_operation, "an update must allow reading, writing or both",
                   Operand::number(wire.access));
  const GuestAddress guest =
      VMSPACE_TRY_IN(iotlb_operation, memory.guest_address(wire.user_address, wire.size));
  VMSPACE_TRY_IN(iotlb_operation, tlb.update({.iova = GuestAddress(wire.iova),
                                              .guest = {guest, wire.size},
                                              .access = static_cast<Protection>(wire.access)}));
  return {};
}

Result<void> carry_out(const VhostUserMessage& message, const VhostUserBackendMemory& memory,
                       IoTlb& tlb, const VhostUserIotlbOptions& options) {
  if (!message.fds().empty())
    return corrupt(iotlb_operation, "an IOTLB message must not have descriptors",
                   Operand::number(message.fds().size()));
  const WireIotlb wire = VMSPACE_TRY(detail::decode<WireIotlb>(message.payload(), iotlb_operation));
  switch (wire.type) {
    case vhost_user::iotlb_update: return update(wire, memory, tlb);
    case vhost_user::iotlb_invalidate:
      VMSPACE_TRY_IN(iotlb_operation,
                     tlb.invalidate({GuestAddress(wire.iova), wire.size}, options.release_timeout));
      return {};
    default:
      return corrupt(iotlb_operation, "a front-end must send updates and invalidations only",
                     Operand::number(wire.type));
  }
}

}  // namespace

Result<bool> serve_iotlb(int socket_fd, const VhostUserMessage& message,
                         const VhostUserBackendMemory& memory, IoTlb& tlb,
                         const VhostUserIotlbOptions& options) {
  if (message.request() != vhost_user::iotlb_msg || message.is_reply()) return false;
  const auto done = carry_out(message, memory, tlb, options);
  if (!done) {
    // That the front-end can't be told either makes the error no better.
    if (message.needs_reply())
      static_cast<void>(message.reply(socket_fd, 1, options.reply_timeout));
    return fail(done.error());
  }
  if (message.needs_reply())
    VMSPACE_TRY_IN(iotlb_operation, message.reply(socket_fd, 0, options.reply_timeout));
  return true;
}

Result<void> send_iotlb_miss(int channel_fd, GuestAddress iova, Access access,
                             std::chrono::nanoseconds timeout) {
  const std::uint8_t wanted =
      access == Access::read ? vhost_user::access_read : vhost_user::access_write;
  const WireIotlb wire{.iova = iova.value(), .access = wanted, .type = vhost_user::iotlb_miss};
  const detail::WireHeader header{
      .request = vhost_user::backend_iotlb_msg, .flags = vhost_user::version, .size = sizeof wire};
  return detail::send_message(channel_fd, header, std::as_bytes(std::span(&wire, 1)), {},
                              detail::deadline_after(timeout), "send_iotlb_miss");
}

}  // namespace vmspace
