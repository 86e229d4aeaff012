// SPDX-License-Identifier: Apache-2.0
//
// A message of the vhost-user protocol, as a device process receives it.
//
// vhost-user lets a device live in a process of its own: the front-end (the VMM) sends requests over
// a Unix socket, with descriptors where memory or events are handed over; the back-end (the device)
// carries them out and, where that is asked for, replies. What has to be right about every message,
// whatever it asks for, is here: nothing that a peer sends makes this process wait beyond a deadline,
// read past a buffer or keep a descriptor.
//
//   auto message = VMSPACE_TRY(VhostUserMessage::receive(socket, 10s));
//   const bool served = VMSPACE_TRY(memory.serve(socket, message));  // see vhost_user_backend.hpp
//   if (served) continue;
//   switch (message.request()) ...
//
// Source: QEMU's docs/interop/vhost-user.rst.

#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// The protocol features (VHOST_USER_PROTOCOL_F_*) that concern memory, as bits of the number that
/// GET_PROTOCOL_FEATURES and SET_PROTOCOL_FEATURES carry.
struct VhostUserFeature {
  /// The log of dirty pages comes as a descriptor.
  static constexpr std::uint64_t log_shmfd = std::uint64_t{1} << 1U;
  /// Any request can ask for a reply.
  static constexpr std::uint64_t reply_ack = std::uint64_t{1} << 3U;
  /// Regions come and go one by one, as many as the back-end has slots.
  static constexpr std::uint64_t configure_mem_slots = std::uint64_t{1} << 15U;
};

/// A received message. It owns the descriptors that came with it and closes those that nobody took.
///
/// Threads: const calls may run at the same time; any other call excludes all others.
class VMSPACE_EXPORT VhostUserMessage {
 public:
  /// The longest payload that is accepted, in bytes; the protocol's longest are shorter.
  static constexpr std::size_t max_payload = 4096;
  /// The most descriptors that are accepted: a table of memory regions has as many.
  static constexpr std::size_t max_fds = 8;

  /// Waits for the next message of a connected Unix stream socket, blocking or not, and reads all of
  /// it. Received descriptors are close-on-exec.
  ///
  /// Errors: `timed_out` when no message began in time, and nothing was read: call it again;
  /// `corrupt` for a message that is not one of this protocol, is too long, has too many descriptors
  /// or has not arrived whole in time; `os`, with ECONNRESET when the peer has closed the
  /// connection. After any but `timed_out` the connection is of no more use: close it. No descriptor
  /// is left open. A few system calls.
  [[nodiscard]] static Result<VhostUserMessage> receive(int socket_fd,
                                                        std::chrono::nanoseconds timeout);

  /// Takes over the message and its descriptors; `other` has none then.
  VhostUserMessage(VhostUserMessage&& other) noexcept;
  /// As moving; descriptors that were not taken out are closed.
  VhostUserMessage& operator=(VhostUserMessage&& other) noexcept;
  ~VhostUserMessage();

  /// The request's number, VHOST_USER_*; any.
  [[nodiscard]] std::uint32_t request() const noexcept { return request_; }
  /// Whether it is a reply to a request.
  [[nodiscard]] bool is_reply() const noexcept;
  /// Whether the sender wants a reply, whatever the request (REPLY_ACK).
  [[nodiscard]] bool needs_reply() const noexcept;
  /// The bytes that follow the header, in the machine's byte order.
  [[nodiscard]] std::span<const std::byte> payload() const noexcept {
    return std::span(payload_).first(size_);
  }
  /// The payload as one 64-bit number. Errors: `corrupt` unless it is exactly that.
  [[nodiscard]] Result<std::uint64_t> number() const;
  /// The descriptors that came with it; they stay the message's.
  [[nodiscard]] std::span<const int> fds() const noexcept {
    return std::span(fds_).first(fd_count_);
  }
  /// Hands all descriptors over to the caller, who closes them; behind the last come numbers of -1.
  /// fds() is empty afterwards.
  [[nodiscard]] std::array<int, max_fds> release_fds() noexcept;

  /// Sends the reply to this request. Errors: `invalid_argument` above max_payload; `timed_out`;
  /// `os`, with EPIPE when the peer has closed the connection. After an error close the connection:
  /// a part may have been sent. A few system calls.
  [[nodiscard]] Result<void> reply(int socket_fd, std::span<const std::byte> payload,
                                   std::chrono::nanoseconds timeout) const;
  /// Replies with a number: what was asked for, or, to a request that needs_reply() and has no other
  /// reply, 0 for done and anything else for refused.
  [[nodiscard]] Result<void> reply(int socket_fd, std::uint64_t number,
                                   std::chrono::nanoseconds timeout) const;

 private:
  VhostUserMessage() noexcept = default;
  void close_fds() noexcept;

  std::uint32_t request_ = 0;
  std::uint32_t flags_ = 0;
  std::uint32_t size_ = 0;
  std::uint32_t fd_count_ = 0;
  std::array<int, max_fds> fds_{};
  alignas(8) std::array<std::byte, max_payload> payload_;  // the first size_ bytes
};

}  // namespace vmspace
