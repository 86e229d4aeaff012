// SPDX-License-Identifier: Apache-2.0

#include "os/unix_socket.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "vmspace/base/try.hpp"

#include "os/system_calls.hpp"

namespace vmspace::detail {

namespace {

/// Room for the descriptors of one message. What does not fit is closed by the kernel, which then
/// says MSG_CTRUNC.
struct Control {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * max_message_fds)> bytes;
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

}  // namespace

Result<void> send_bytes(int socket_fd, std::span<const std::byte> head,
                        std::span<const std::byte> payload, std::span<const int> fds,
                        Deadline deadline, const char* operation) {
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
      control = {};
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

Result<std::size_t> receive_bytes(int socket_fd, std::span<std::byte> to, std::span<Descriptor> fds,
                                  std::size_t& fd_count, Deadline deadline, const char* operation) {
  iovec buffer{.iov_base = to.data(), .iov_len = to.size()};
  Control control;
  msghdr message{};
  const std::size_t got = VMSPACE_TRY(transfer(socket_fd, POLLIN, deadline, operation, [&] {
    message = {};
    message.msg_iov = &buffer;
    message.msg_iovlen = 1;
    if (!fds.empty()) {
      message.msg_control = control.bytes.data();
      message.msg_controllen = CMSG_SPACE(sizeof(int) * std::min(fds.size(), max_message_fds));
    }
    return kernel().recvmsg(socket_fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  }));
  const bool fits = take_fds(message, fds, fd_count);
  if (fits && (message.msg_flags & MSG_CTRUNC) == 0) return got;
  return fail({.code = Errc::corrupt,
               .operation = operation,
               .reason = fds.empty() ? "descriptors came where none belong"
                                     : "the message has too many descriptors, or this process has "
                                       "no room for them"});
}

}  // namespace vmspace::detail
