// SPDX-License-Identifier: Apache-2.0

#include "vmm/vhost_user_wire.hpp"

#include <cerrno>

#include "vmspace/base/try.hpp"
#include "vmspace/vmm/vhost_user_message.hpp"

#include "base/corrupt.hpp"
#include "os/system_calls.hpp"

namespace vmspace::detail {

namespace {

/// Fills `to`. `fds` is empty where no descriptors may come.
Result<void> receive_whole(int socket_fd, std::span<std::byte> to, std::span<Descriptor> fds,
                           std::size_t& fd_count, bool message_began, Deadline deadline,
                           const char* operation) {
  for (std::size_t filled = 0; filled < to.size();) {
    const auto got =
        receive_bytes(socket_fd, to.subspan(filled), fds, fd_count, deadline, operation);
    const bool began = message_began || filled != 0;
    if (!got) {
      if (!began || got.error().code != Errc::timed_out) return fail(got.error());
      return corrupt(operation, "the message did not arrive whole in time");
    }
    if (*got == 0) {
      return fail_os(operation, {},
                     began ? "the peer closed the connection in the middle of a message"
                           : "the peer closed the connection",
                     ECONNRESET);
    }
    filled += *got;
  }
  return {};
}

}  // namespace

Result<WireRegions> decode_table(std::span<const std::byte> payload, const char* operation) {
  if (payload.size() < sizeof(WireTable)) {
    return corrupt(operation, "the table has no header", Operand::size(payload.size()));
  }
  const WireTable head =
      VMSPACE_TRY(decode<WireTable>(payload.first(sizeof(WireTable)), operation));
  if (head.padding != 0) {
    return corrupt(operation, "the table's padding must be 0", Operand::number(head.padding));
  }
  if (head.count > vhost_user::max_table) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = operation,
                 .first = Operand::number(head.count),
                 .second = Operand::number(vhost_user::max_table),
                 .reason = "too many regions for one table"});
  }
  const auto rest = payload.subspan(sizeof(WireTable));
  if (rest.size() != head.count * sizeof(WireRegion)) {
    return corrupt(operation, "the payload must be exactly as long as the number of regions says",
                   Operand::size(payload.size()));
  }
  WireRegions table{.regions = {}, .count = head.count};
  if (!rest.empty()) std::memcpy(table.regions.data(), rest.data(), rest.size());
  return table;
}

Result<WireRegion> decode_region(std::span<const std::byte> payload, const char* operation) {
  const WireSingle single = VMSPACE_TRY(decode<WireSingle>(payload, operation));
  if (single.padding == 0) return single.region;
  return corrupt(operation, "the region's padding must be 0", Operand::number(single.padding));
}

Result<void> send_message(int socket_fd, const WireHeader& header,
                          std::span<const std::byte> payload, std::span<const int> fds,
                          Deadline deadline, const char* operation) {
  return send_bytes(socket_fd, std::as_bytes(std::span(&header, 1)), payload, fds, deadline,
                    operation);
}

Result<WireHeader> receive_header(int socket_fd, Deadline deadline, std::span<Descriptor> fds,
                                  std::size_t& fd_count, const char* operation) {
  WireHeader header{};
  VMSPACE_TRY(receive_whole(socket_fd, std::as_writable_bytes(std::span(&header, 1)), fds, fd_count,
                            false, deadline, operation));
  constexpr std::uint32_t known =
      vhost_user::version_mask | vhost_user::is_reply | vhost_user::need_reply;
  if ((header.flags & ~known) != 0 ||
      (header.flags & vhost_user::version_mask) != vhost_user::version) {
    return corrupt(operation, "the flags must have version 1 and no unknown bits",
                   Operand::number(header.flags));
  }
  if (header.size > VhostUserMessage::max_payload) {
    return corrupt(operation, "the payload is too long", Operand::size(header.size));
  }
  return header;
}

Result<void> receive_payload(int socket_fd, Deadline deadline, std::span<std::byte> payload,
                             const char* operation) {
  std::size_t none = 0;
  return receive_whole(socket_fd, payload, {}, none, true, deadline, operation);
}

}  // namespace vmspace::detail
