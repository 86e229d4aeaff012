// SPDX-License-Identifier: Apache-2.0

#include "snapshot/handover_socket.hpp"

#include <sys/socket.h>

#include <cerrno>

#include "vmspace/base/try.hpp"

#include "os/system_calls.hpp"

namespace vmspace::detail {

Result<void> HandoverSocket::check(const char* operation, int socket_fd) {
  for (const auto& [option, wanted] : {std::pair{SO_DOMAIN, AF_UNIX}, {SO_TYPE, SOCK_STREAM}}) {
    int value = 0;
    socklen_t size = sizeof value;
    if (kernel().getsockopt(socket_fd, SOL_SOCKET, option, &value, &size) == 0) {
      if (value == wanted) continue;
    } else if (errno != ENOTSOCK) {
      return fail_os(operation, {}, "getsockopt");
    }
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "a UNIX stream socket is required (AF_UNIX, SOCK_STREAM)"});
  }
  return {};
}

HandoverSocket::~HandoverSocket() {
  if (open_) (void)shut_down();
}

Result<void> HandoverSocket::shut_down() {
  if (retry([&] { return kernel().shutdown(fd_, SHUT_RDWR); }) == 0 || errno == ENOTCONN) return {};
  return fail_os(operation_, {}, "shutdown");
}

Result<void> HandoverSocket::send(std::span<const std::byte> bytes, std::span<const int> fds) {
  return send_bytes(fd_, bytes, {}, fds, deadline_, operation_);
}

Result<void> HandoverSocket::receive(std::span<std::byte> to, std::span<Descriptor> fds) {
  std::size_t fd_count = 0;
  for (std::size_t filled = 0; filled < to.size();) {
    const std::size_t got =
        VMSPACE_TRY(receive_bytes(fd_, to.subspan(filled), fds, fd_count, deadline_, operation_));
    if (got == 0) {
      return fail_os(operation_, {}, "the peer closed the connection before the handover was done",
                     ECONNRESET);
    }
    filled += got;
  }
  if (fd_count == fds.size()) return {};
  return fail({.code = Errc::corrupt,
               .operation = operation_,
               .first = Operand::number(fd_count),
               .second = Operand::number(fds.size()),
               .reason = "fewer descriptors came than were announced"});
}

Result<void> HandoverSocket::expect(std::byte byte, std::span<Descriptor> fds) {
  std::byte got{};
  VMSPACE_TRY(receive({&got, 1}, fds));
  if (got == byte) return {};
  return fail({.code = Errc::corrupt,
               .operation = operation_,
               .first = Operand::number(std::to_integer<std::uint64_t>(got)),
               .second = Operand::number(std::to_integer<std::uint64_t>(byte)),
               .reason = "the peer sent another byte than the one that is due"});
}

}  // namespace vmspace::detail
