// SPDX-License-Identifier: Apache-2.0

#include "snapshot/snapshot_io.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>

#include "vmspace/base/try.hpp"

#include "os/system_calls.hpp"

namespace vmspace::detail {

Result<struct stat> check_snapshot_file(const char* operation, int fd) {
  struct stat file {};
  if (kernel().fstat(fd, &file) != 0) return fail_os(operation, {}, "fstat");
  if (!S_ISREG(file.st_mode)) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "the fd must refer to a regular file"});
  }
  return file;
}

Result<void> read_all(const char* operation, int fd, std::byte* to, std::uint64_t size,
                      std::uint64_t offset) {
  while (size != 0) {
    const auto count =
        retry([&] { return kernel().pread(fd, to, size, static_cast<off_t>(offset)); });
    if (count < 0) {
      return fail_os(
          operation, Operand::span(offset, size),
          errno == EFAULT
              ? "out of pages while reading: the hugetlb pool, file system or memory cgroup is full"
              : "pread");
    }
    if (count == 0) {
      return fail({.code = Errc::corrupt,
                   .operation = operation,
                   .first = Operand::span(offset, size),
                   .reason = "the file is truncated"});
    }
    to += count;
    size -= static_cast<std::uint64_t>(count);
    offset += static_cast<std::uint64_t>(count);
  }
  return {};
}

Result<void> write_all(const char* operation, int fd, std::span<const std::byte> bytes,
                       std::uint64_t offset) {
  while (!bytes.empty()) {
    const auto count = retry([&] {
      return kernel().pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    });
    if (count <= 0) {
      // A file system that writes nothing without an error would go on like that for ever.
      return fail_os(operation, Operand::span(offset, bytes.size()), "pwrite",
                     count == 0 ? EIO : errno);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
  return {};
}

namespace {

/// Waits for a descriptor that does not block.
Result<void> wait_for(const char* operation, int fd, short events) {
  struct pollfd waiting {
    .fd = fd, .events = events, .revents = 0
  };
  if (retry([&] { return kernel().poll(&waiting, 1, -1); }) < 0)
    return fail_os(operation, {}, "poll");
  return {};
}

}  // namespace

Result<void> receive_all(const char* operation, int fd, std::span<std::byte> to) {
  while (!to.empty()) {
    const auto count = retry([&] { return kernel().read(fd, to.data(), to.size()); });
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      VMSPACE_TRY(wait_for(operation, fd, POLLIN));
      continue;
    }
    if (count < 0) return fail_os(operation, Operand::size(to.size()), "read");
    if (count == 0) {
      return fail(
          {.code = Errc::corrupt,
           .operation = operation,
           .first = Operand::size(to.size()),
           .reason = "the file ends, or the other end closed the pipe or socket, too early"});
    }
    to = to.subspan(static_cast<std::size_t>(count));
  }
  return {};
}

Result<void> send_all(const char* operation, int fd, bool is_socket,
                      std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto count = retry([&] {
      if (!is_socket) return kernel().write(fd, bytes.data(), bytes.size());
      struct iovec piece {
        // sendmsg(2) only reads, but is not declared so.
        .iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()
      };
      struct msghdr message {};
      message.msg_iov = &piece;
      message.msg_iovlen = 1;
      return kernel().sendmsg(fd, &message, MSG_NOSIGNAL);
    });
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      VMSPACE_TRY(wait_for(operation, fd, POLLOUT));
      continue;
    }
    if (count <= 0) {
      return fail_os(operation, Operand::size(bytes.size()), "write", count == 0 ? EIO : errno);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return {};
}

}  // namespace vmspace::detail
