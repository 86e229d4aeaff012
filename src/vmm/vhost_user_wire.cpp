// SPDX-License-Identifier: Apache-2.0

#include "vmm/vhost_user_wire.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/vmm/vhost_user_message.hpp"

#include "os/system_calls.hpp"

namespace vmspace::detail {

namespace {

constexpr std::size_t max_fds = VhostUserMessage::max_fds;

/// Room for the descriptors of one message. What does not fit is closed by the kernel, which then
/// says MSG_CTRUNC.
struct Control {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * max_fds)> bytes{};
};

Result<void> wait_for(int socket_fd, short events, Deadline deadline, const char* operation) {
  for (;;) {
    const auto left = deadline - std::chrono::steady_clock::now();
    const auto ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
    pollfd wanted{.fd = socket_fd, .events = events, .revents = 0};
    const int timeout =
        static_cast<int>(std::clamp<decltype(ms)>(ms, 0, std::numeric_limits<int>::max()));
    const int ready = kernel().poll(&wanted, 1, timeout);
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return fail_os(operation, {}, "poll");
    if (std::chrono::steady_clock::now() >= deadline) {
      return fail({.code = Errc::timed_out,
                   .operation = operation,
                   .reason = events == POLLOUT ? "the peer does not read its messages"
                                               : "the peer has sent nothing"});
    }
  }
}

/// Makes a call on the socket that does not block, again and again until it does something.
template <typename Call>
Result<std::size_t> transfer(int socket_fd, short events, Deadline deadline, const char* operation,
                             Call call) {
  for (;;) {
    const ssize_t done = retry(call);
    if (done >= 0) return static_cast<std::size_t>(done);
    if (errno != EAGAIN) {
      return fail_os(operation, {}, events == POLLOUT ? "sendmsg" : "recvmsg");
    }
    VMSPACE_TRY(wait_for(socket_fd, events, deadline, operation));
  }
}

tl::unexpected<Error> corrupt(const char* operation, Operand what, const char* reason) {
  return fail({.code = Errc::corrupt, .operation = operation, .first = what, .reason = reason});
}

/// Takes the descriptors out of what recvmsg() has filled; they are ours from then on. False when
/// there were more than fit.
bool take_fds(msghdr& message, std::span<Descriptor> fds, std::size_t& fd_count) {
  bool fits = true;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
       part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof fd);
      Descriptor owned(fd);
      if (fd_count == fds.size()) {
        fits = false;
      } else {
        fds[fd_count++] = std::move(owned);
      }
    }
  }
  return fits;
}

/// Fills `to`. `fds` is empty where no descriptors may come.
Result<void> receive_bytes(int socket_fd, std::span<std::byte> to, std::span<Descriptor> fds,
                           std::size_t& fd_count, bool message_began, Deadline deadline,
                           const char* operation) {
  for (std::size_t filled = 0; filled < to.size();) {
    iovec buffer{.iov_base = to.data() + filled, .iov_len = to.size() - filled};
    Control control;
    msghdr message{};
    const auto got = transfer(socket_fd, POLLIN, deadline, operation, [&] {
      message = {};
      message.msg_iov = &buffer;
      message.msg_iovlen = 1;
      if (!fds.empty()) {
        message.msg_control = control.bytes.data();
        message.msg_controllen = control.bytes.size();
      }
      return kernel().recvmsg(socket_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    });
    const bool began = message_began || filled != 0;
    if (!got) {
      if (!began || got.error().code != Errc::timed_out) return fail(got.error());
      return corrupt(operation, {}, "the message did not arrive whole in time");
    }
    const bool fits = take_fds(message, fds, fd_count);
    if (!fits || (message.msg_flags & MSG_CTRUNC) != 0) {
      return corrupt(operation, {},
                     fds.empty() ? "descriptors came where none belong"
                                 : "the message has too many descriptors, or this process has no "
                                   "room for them");
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
    return corrupt(operation, Operand::size(payload.size()), "the table has no header");
  }
  const WireTable head =
      VMSPACE_TRY(decode<WireTable>(payload.first(sizeof(WireTable)), operation));
  if (head.padding != 0) {
    return corrupt(operation, Operand::number(head.padding), "the table's padding must be 0");
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
    return corrupt(operation, Operand::size(payload.size()),
                   "the payload must be exactly as long as the number of regions says");
  }
  WireRegions table{.regions = {}, .count = head.count};
  if (!rest.empty()) std::memcpy(table.regions.data(), rest.data(), rest.size());
  return table;
}

Result<WireRegion> decode_region(std::span<const std::byte> payload, const char* operation) {
  const WireSingle single = VMSPACE_TRY(decode<WireSingle>(payload, operation));
  if (single.padding == 0) return single.region;
  return corrupt(operation, Operand::number(single.padding), "the region's padding must be 0");
}

Deadline deadline_after(std::chrono::nanoseconds timeout) noexcept {
  const auto now = std::chrono::steady_clock::now();
  return timeout < Deadline::max() - now ? now + timeout : Deadline::max();
}

Result<void> send_message(int socket_fd, const WireHeader& header,
                          std::span<const std::byte> payload, std::span<const int> fds,
                          Deadline deadline, const char* operation) {
  const auto head = std::as_bytes(std::span(&header, 1));
  const std::size_t size = head.size() + payload.size();
  for (std::size_t sent = 0; sent < size;) {
    const auto head_left = head.subspan(std::min(sent, head.size()));
    const auto payload_left = payload.subspan(sent < head.size() ? 0 : sent - head.size());
    // sendmsg() only reads what these point to.
    std::array<iovec, 2> parts{
        iovec{const_cast<std::byte*>(head_left.data()), head_left.size()},
        iovec{const_cast<std::byte*>(payload_left.data()), payload_left.size()}};
    Control control;
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    // Descriptors travel with the first byte, however many bytes follow in the same call.
    if (sent == 0 && !fds.empty()) {
      message.msg_control = control.bytes.data();
      message.msg_controllen = CMSG_SPACE(fds.size_bytes());
      cmsghdr* const part = CMSG_FIRSTHDR(&message);
      part->cmsg_level = SOL_SOCKET;
      part->cmsg_type = SCM_RIGHTS;
      part->cmsg_len = CMSG_LEN(fds.size_bytes());
      std::memcpy(CMSG_DATA(part), fds.data(), fds.size_bytes());
    }
    sent += VMSPACE_TRY(transfer(socket_fd, POLLOUT, deadline, operation, [&] {
      return kernel().sendmsg(socket_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    }));
  }
  return {};
}

Result<WireHeader> receive_header(int socket_fd, Deadline deadline, std::span<Descriptor> fds,
                                  std::size_t& fd_count, const char* operation) {
  WireHeader header{};
  VMSPACE_TRY(receive_bytes(socket_fd, std::as_writable_bytes(std::span(&header, 1)), fds, fd_count,
                            false, deadline, operation));
  constexpr std::uint32_t known =
      vhost_user::version_mask | vhost_user::is_reply | vhost_user::need_reply;
  if ((header.flags & ~known) != 0 ||
      (header.flags & vhost_user::version_mask) != vhost_user::version) {
    return corrupt(operation, Operand::number(header.flags),
                   "the flags must have version 1 and no unknown bits");
  }
  if (header.size > VhostUserMessage::max_payload) {
    return corrupt(operation, Operand::size(header.size), "the payload is too long");
  }
  return header;
}

Result<void> receive_payload(int socket_fd, Deadline deadline, std::span<std::byte> payload,
                             const char* operation) {
  std::size_t none = 0;
  return receive_bytes(socket_fd, payload, {}, none, true, deadline, operation);
}

}  // namespace vmspace::detail
