// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vhost_user_message.hpp"

#include <algorithm>
#include <utility>

#include "vmspace/base/try.hpp"

#include "os/descriptor.hpp"
#include "os/system_calls.hpp"
#include "vmm/vhost_user_wire.hpp"

namespace vmspace {

using detail::Deadline;
using detail::Descriptor;
using detail::WireHeader;
namespace vhost_user = detail::vhost_user;

VhostUserMessage::VhostUserMessage(VhostUserMessage&& other) noexcept
    : request_(other.request_),
      flags_(other.flags_),
      size_(other.size_),
      fd_count_(std::exchange(other.fd_count_, 0)),
      fds_(other.fds_) {
  std::ranges::copy(other.payload(), payload_.begin());
}

VhostUserMessage& VhostUserMessage::operator=(VhostUserMessage&& other) noexcept {
  if (this == &other) return *this;
  close_fds();
  request_ = other.request_;
  flags_ = other.flags_;
  size_ = other.size_;
  fds_ = other.fds_;
  fd_count_ = std::exchange(other.fd_count_, 0);
  std::ranges::copy(other.payload(), payload_.begin());
  return *this;
}

VhostUserMessage::~VhostUserMessage() {
  close_fds();
}

void VhostUserMessage::close_fds() noexcept {
  for (const int fd : fds())
    detail::kernel().close(fd);
  fd_count_ = 0;
}

std::array<int, VhostUserMessage::max_fds> VhostUserMessage::release_fds() noexcept {
  std::ranges::fill(std::span(fds_).subspan(fd_count_), -1);
  fd_count_ = 0;
  return fds_;
}

bool VhostUserMessage::is_reply() const noexcept {
  return (flags_ & vhost_user::is_reply) != 0;
}

bool VhostUserMessage::needs_reply() const noexcept {
  return (flags_ & vhost_user::need_reply) != 0;
}

Result<std::uint64_t> VhostUserMessage::number() const {
  return detail::decode<std::uint64_t>(payload(), "VhostUserMessage::number");
}

Result<VhostUserMessage> VhostUserMessage::receive(int socket_fd,
                                                   std::chrono::nanoseconds timeout) {
  constexpr const char* operation = "VhostUserMessage::receive";
  const Deadline deadline = detail::deadline_after(timeout);
  std::array<Descriptor, max_fds> fds;
  std::size_t fd_count = 0;
  const WireHeader header =
      VMSPACE_TRY(detail::receive_header(socket_fd, deadline, fds, fd_count, operation));
  VhostUserMessage message;
  message.request_ = header.request;
  message.flags_ = header.flags;
  const std::span payload = std::span(message.payload_).first(header.size);
  VMSPACE_TRY(detail::receive_payload(socket_fd, deadline, payload, operation));
  message.size_ = header.size;
  for (std::size_t i = 0; i < fd_count; ++i)
    message.fds_[i] = fds[i].release();
  message.fd_count_ = static_cast<std::uint32_t>(fd_count);
  return message;
}

Result<void> VhostUserMessage::reply(int socket_fd, std::span<const std::byte> payload,
                                     std::chrono::nanoseconds timeout) const {
  constexpr const char* operation = "VhostUserMessage::reply";
  if (payload.size() > max_payload) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::size(payload.size()),
                 .second = Operand::size(max_payload),
                 .reason = "the payload must not be longer than max_payload"});
  }
  const WireHeader header{.request = request_,
                          .flags = vhost_user::version | vhost_user::is_reply,
                          .size = static_cast<std::uint32_t>(payload.size())};
  return detail::send_message(socket_fd, header, payload, {}, detail::deadline_after(timeout),
                              operation);
}

Result<void> VhostUserMessage::reply(int socket_fd, std::uint64_t number,
                                     std::chrono::nanoseconds timeout) const {
  return reply(socket_fd, std::as_bytes(std::span(&number, 1)), timeout);
}

}  // namespace vmspace
