// SPDX-License-Identifier: Apache-2.0
//
// How bytes and descriptors go through a UNIX stream socket before a deadline. Nothing here blocks
// but in poll(2), whatever mode the socket is in.

#pragma once

#include <chrono>
#include <cstddef>
#include <span>

#include "vmspace/base/detail/deadline.hpp"
#include "vmspace/base/result.hpp"

#include "os/descriptor.hpp"

namespace vmspace::detail {

/// The most descriptors that can come with one message: the kernel's SCM_MAX_FD.
inline constexpr std::size_t max_message_fds = 253;

/// Sends `head`, then `payload`, and descriptors, at most max_message_fds, with the first byte.
/// Errors: `timed_out`; `os`. After any, a part may have been sent; of a single byte, nothing.
[[nodiscard]] Result<void> send_bytes(int socket_fd, std::span<const std::byte> head,
                                      std::span<const std::byte> payload, std::span<const int> fds,
                                      Deadline deadline, const char* operation);

/// Waits for bytes, and gives how many it has put into `to`, which is not empty; 0 when the peer has
/// closed the connection. Descriptors that came with them are put into `fds`, from `fd_count` on,
/// which counts them; `fds` is empty where none may come. Errors: `corrupt` for more descriptors than
/// fit; `timed_out`; `os`. What came with a message that is refused is closed.
[[nodiscard]] Result<std::size_t> receive_bytes(int socket_fd, std::span<std::byte> to,
                                                std::span<Descriptor> fds, std::size_t& fd_count,
                                                Deadline deadline, const char* operation);

}  // namespace vmspace::detail
