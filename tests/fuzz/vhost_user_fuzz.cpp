// SPDX-License-Identifier: Apache-2.0
//
// The input is what a front-end sends: a number of descriptors, then bytes that are cut into pieces
// or not. Whatever comes, the back-end keeps its invariant, a refused message changes nothing, and
// no descriptor is left open.
//
// Each message is a control byte, and then the bytes of the message. The control byte tells how many
// descriptors come with it (its lowest four bits) and of what: a sealed memfd, one that can shrink,
// one that is short, or the end of a pipe. A length that the header gets wrong makes the rest of the
// input another message, as on a socket.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "vmspace/vmm/vhost_user_backend.hpp"

#include "fuzz/peer_files.hpp"

namespace {

using namespace vmspace;
using fuzz::check;
using fuzz::memory_file;

/// What a front-end can hand over; open as long as the program.
const std::array<int, 4>& files() {
  static const std::array<int, 4> all = [] {
    int ends[2];
    check(::pipe2(ends, O_CLOEXEC) == 0, "pipe2");
    return std::array{memory_file(1 << 20, F_SEAL_SHRINK), memory_file(1 << 20, 0),
                      memory_file(4096, F_SEAL_SHRINK), ends[0]};
  }();
  return all;
}

/// The number that the next descriptor gets: it stays the same while none is left open.
int next_descriptor() {
  const int fd = ::dup(0);
  ::close(fd);
  return fd;
}

void send_all(int socket, std::span<const std::uint8_t> bytes, std::uint8_t control) {
  std::array<int, 16> fds{};
  const std::size_t count = control & 0xfU;
  for (std::size_t i = 0; i < count; ++i)
    fds[i] = files()[(control >> 4U) % files().size()];
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof fds)> buffer{};
  iovec part{const_cast<std::uint8_t*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (count != 0) {
    message.msg_control = buffer.data();
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    cmsghdr* const rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(count * sizeof(int));
    std::memcpy(CMSG_DATA(rights), fds.data(), count * sizeof(int));
  }
  check(::sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()), "sendmsg");
}

/// How long the message at the front is, as its header says; all that is left where it says more.
std::size_t message_size(std::span<const std::uint8_t> input) {
  std::uint32_t size = 0;
  if (input.size() < 12) return input.size();
  std::memcpy(&size, input.data() + 8, sizeof size);
  return size < input.size() - 12 ? 12 + size : input.size();
}

/// Serves one message; false when the connection is of no more use.
bool serve_one(VhostUserBackendMemory& memory, int front, int back) {
  const auto message = VhostUserMessage::receive(back, std::chrono::nanoseconds(0));
  if (!message) {
    const Errc code = message.error().code;
    check(code == Errc::corrupt || code == Errc::os, message.error().message().c_str());
    return false;
  }
  const auto before = memory.map().generation();
  const auto served = memory.serve(back, *message);
  const auto valid = memory.check_invariants();
  check(valid.has_value(), valid ? "" : valid.error().message().c_str());
  if (!served) {
    check(memory.map().generation() == before, "a refused message has published something");
    check(std::strlen(served.error().operation) != 0, "an error without an operation");
  } else if (*served) {
    const auto map = memory.map().snapshot();
    for (const auto& region : map->memory.regions()) {
      check(map->memory.write(region->base(), std::uint8_t{1}).has_value(),
            "a region is no memory");
      check(map->log.mark(region->guest_range()).has_value(), "a region has no bits in the log");
    }
  }
  std::array<char, 256> reply;
  while (::recv(front, reply.data(), reply.size(), MSG_DONTWAIT) > 0) {
  }
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static_cast<void>(files());
  const int free_descriptor = next_descriptor();
  {
    auto memory = *VhostUserBackendMemory::create({.max_regions = 6, .release_timeout = {}});
    int ends[2];
    check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
    std::span<const std::uint8_t> input(data, size);
    while (input.size() > 1) {
      const std::uint8_t control = input[0];
      input = input.subspan(1);
      const std::size_t length = message_size(input);
      send_all(ends[0], input.first(length), control);
      input = input.subspan(length);
      if (!serve_one(memory, ends[0], ends[1])) break;
    }
    ::close(ends[0]);
    ::close(ends[1]);
  }
  check(next_descriptor() == free_descriptor, "a descriptor is left open");
  return 0;
}
