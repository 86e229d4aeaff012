// SPDX-License-Identifier: Apache-2.0
//
// The socket of a handover, for both sides.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "vmspace/base/result.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"

#include "os/descriptor.hpp"
#include "os/unix_socket.hpp"

namespace vmspace::detail {

/// How many 64-bit words a dirty bitmap travels in.
[[nodiscard]] constexpr std::uint64_t bitmap_words(std::uint64_t region_size) noexcept {
  return (region_size / DirtyBitmap::page_size +
          (region_size % DirtyBitmap::page_size != 0 ? 1 : 0) + 63) /
         64;
}
/// How many of them at a time: 64 KiB.
inline constexpr std::uint64_t bitmap_piece = 8192;

/// The caller's socket, during a handover. Destroyed without done(), it shuts the connection down, so
/// that the peer does not wait for what won't come.
class HandoverSocket {
 public:
  /// Errors: `invalid_argument` for what is not a UNIX stream socket; `os`. One system call of each.
  [[nodiscard]] static Result<void> check(const char* operation, int socket_fd);

  HandoverSocket(const char* operation, int socket_fd, std::chrono::nanoseconds timeout) noexcept
      : operation_(operation), fd_(socket_fd), deadline_(deadline_after(timeout)) {}
  HandoverSocket(const HandoverSocket&) = delete;
  HandoverSocket& operator=(const HandoverSocket&) = delete;
  ~HandoverSocket();

  [[nodiscard]] Result<void> send(std::span<const std::byte> bytes, std::span<const int> fds = {});
  /// Fills `to`; what comes may bring exactly as many descriptors as `fds` has. Errors: `corrupt`;
  /// `timed_out`; `os`, also ECONNRESET for a peer that is gone.
  [[nodiscard]] Result<void> receive(std::span<std::byte> to, std::span<Descriptor> fds = {});
  /// Receives one byte, which must be this one. Errors: those of receive().
  [[nodiscard]] Result<void> expect(std::byte byte, std::span<Descriptor> fds = {});

  /// Lets nothing more through in either direction; what has come already can still be received.
  /// Errors: `os`.
  [[nodiscard]] Result<void> shut_down();
  /// The handover is over; the connection remains.
  void done() noexcept { open_ = false; }

 private:
  const char* operation_;
  int fd_;
  Deadline deadline_;
  bool open_ = true;
};

}  // namespace vmspace::detail
