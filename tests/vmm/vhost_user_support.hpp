// SPDX-License-Identifier: Apache-2.0
//
// What the tests of vhost-user share: a connected pair of sockets, messages made byte by byte (so
// that they may be wrong), and memory to put into them.

#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/vhost_user_backend.hpp"
#include "vmspace/vmm/vhost_user_message.hpp"

#include "host/host_support.hpp"
#include "os/descriptor.hpp"
#include "vmm/vhost_user_wire.hpp"

namespace vmspace::test {

namespace vhost_user = detail::vhost_user;
using detail::Descriptor;
using detail::WireHeader;
using detail::WireLog;
using detail::WireRegion;
using detail::WireSingle;
using detail::WireTable;

/// Long enough for any machine; no test waits for it to be over.
inline constexpr std::chrono::seconds long_enough{60};

/// Two ends of a connection.
struct SocketPair {
  explicit SocketPair(int flags = 0) {
    int fds[2] = {-1, -1};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0, fds), 0);
    front = Descriptor(fds[0]);
    back = Descriptor(fds[1]);
  }
  Descriptor front;
  Descriptor back;
};

/// Values as the bytes of a payload, one after the other.
template <typename... T>
std::vector<std::byte> bytes_of(const T&... values) {
  std::vector<std::byte> bytes;
  const auto append = [&bytes](const auto& value) {
    const auto more = std::as_bytes(std::span(&value, 1));
    bytes.insert(bytes.end(), more.begin(), more.end());
  };
  (append(values), ...);
  return bytes;
}

/// Sends bytes as they are, with descriptors.
inline void send_bytes(int socket, const std::vector<std::byte>& bytes,
                       const std::vector<int>& fds = {}) {
  iovec buffer{const_cast<std::byte*>(bytes.data()), bytes.size()};
  std::vector<char> control(CMSG_SPACE(sizeof(int) * fds.size()));
  msghdr message{};
  message.msg_iov = &buffer;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(part), fds.data(), sizeof(int) * fds.size());
  }
  EXPECT_EQ(::sendmsg(socket, &message, MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
}

/// Sends a message, its size as it is.
inline void send_request(int socket, std::uint32_t request, const std::vector<std::byte>& payload,
                         const std::vector<int>& fds = {}, std::uint32_t flags = 0) {
  auto bytes = bytes_of(WireHeader{.request = request,
                                   .flags = vhost_user::version | flags,
                                   .size = static_cast<std::uint32_t>(payload.size())});
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  send_bytes(socket, bytes, fds);
}

/// A memfd; sealed against shrinking unless `seals` says otherwise.
inline Descriptor memory_file(std::uint64_t size, int seals = F_SEAL_SHRINK) {
  Descriptor file(::memfd_create("vhost_user_test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(::ftruncate(file.value(), static_cast<off_t>(size)), 0);
  if (seals != 0) {
    EXPECT_EQ(::fcntl(file.value(), F_ADD_SEALS, seals), 0);
  }
  return file;
}

/// A shared region of RAM.
inline MemoryRegionPtr shared_ram(std::uint64_t base, std::uint64_t size,
                                  RegionOptions options = {}) {
  options.base = GuestAddress(base);
  options.size = size;
  if (options.backing.source == MemorySource::none)
    options.backing = {.source = MemorySource::shmem};
  auto region = MemoryRegion::map(std::move(options));
  EXPECT_TRUE(region) << region.error().message();
  return region.value_or(nullptr);
}

/// A back-end as a device would run it, in a thread: its memory, and what it answers to the rest.
class Backend {
 public:
  explicit Backend(Descriptor socket, const VhostUserBackendOptions& options = {})
      : memory(std::move(*VhostUserBackendMemory::create(options))),
        socket_(std::move(socket)),
        thread_([this] { run(); }) {}
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  /// Returns when the front-end has closed its side.
  ~Backend() {
    if (thread_.joinable()) thread_.join();
  }

  /// Waits until the front-end has closed its side.
  void join() { thread_.join(); }
  /// Keeps the thread from serving messages, so that another may look at what it works with.
  [[nodiscard]] std::unique_lock<std::mutex> pause() { return std::unique_lock(serving_); }

  VhostUserBackendMemory memory;
  /// The numbers of the requests that came and the errors of those refused: to be read after join()
  /// or under pause().
  std::vector<std::uint32_t> requests;
  std::vector<Error> errors;

 private:
  void run() {
    for (;;) {
      const auto message = VhostUserMessage::receive(socket_.value(), long_enough);
      if (!message) return;
      const std::lock_guard lock(serving_);
      requests.push_back(message->request());
      const auto served = memory.serve(socket_.value(), *message);
      if (!served) errors.push_back(served.error());
      if (!served && !message->needs_reply()) break;
      if (served && !*served && message->request() == vhost_user::get_features) {
        EXPECT_TRUE(message->reply(socket_.value(), 0, long_enough));
      }
    }
    socket_ = {};
  }

  Descriptor socket_;
  std::mutex serving_;
  std::thread thread_;
};

}  // namespace vmspace::test
