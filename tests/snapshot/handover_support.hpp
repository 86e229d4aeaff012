// SPDX-License-Identifier: Apache-2.0
//
// What the tests of handovers share: sockets, a guest to hand over, and what a sender has sent, to be
// sent again with something wrong in it.

#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <future>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/snapshot/handover.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"
#include "memory/guest_support.hpp"

namespace vmspace::test {

using test::contents;
using test::page;
using test::pattern;

inline constexpr std::chrono::milliseconds soon{50};

/// A descriptor, closed at the end.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() { close(); }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

/// Two ends of a connection.
struct Ends {
  explicit Ends(int type = SOCK_STREAM) {
    int fds[2] = {-1, -1};
    EXPECT_EQ(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds), 0);
    sender = Fd(fds[0]);
    receiver = Fd(fds[1]);
  }
  Fd sender{-1};
  Fd receiver{-1};
};

/// A memfd that can't be cut off, or one that can.
inline Fd memory_file(std::uint64_t size, int seals = F_SEAL_SHRINK) {
  Fd file(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(size)), 0);
  if (seals != 0) {
    EXPECT_EQ(::fcntl(file.get(), F_ADD_SEALS, seals), 0);
  }
  return file;
}

inline constexpr GuestAddress low_ram{0};
inline constexpr GuestAddress high_ram{4_GiB};

/// Two regions of RAM and one of firmware on memfds, a device's registers, a parked BAR, and a state.
inline Handover sample_guest(BackingSpec ram = {.source = MemorySource::shmem}) {
  const auto layout = AddressSpaceLayout::x86_64({.phys_bits = 40});
  VMSPACE_EXPECT_OK(layout);
  AddressSpaceBase space(*layout);
  const auto insert = [&](RegionOptions options) {
    VMSPACE_EXPECT_OK(space.insert_region(std::move(options)));
  };
  insert({.name = "low", .base = low_ram, .size = 64 * page, .backing = ram});
  insert({.name = "high \u00fc",
          .base = high_ram,
          .size = 32 * page,
          .backing = ram,
          .huge_pages = true,
          .hotplug = true,
          .populate = true,
          .owner = "dimm0"});
  insert({.name = "bios",
          .type = RegionType::firmware_memory,
          .base = GuestAddress(0xffff'0000),
          .size = 16 * page,
          .backing = ram,
          .protection = Protection::read | Protection::execute});
  insert({.name = "nic BAR0",
          .type = RegionType::device_memory,
          .base = GuestAddress(0xd000'0000),
          .size = page,
          .owner = "nic"});
  const auto bar = AddressSpaceRegion::make(
      {.name = "parked", .type = RegionType::device_memory, .size = 2 * page, .owner = "gpu"});
  VMSPACE_EXPECT_OK(bar);
  VMSPACE_EXPECT_OK(space.insert_parked_region(*bar));
  const auto memory = GuestMemory::map(space);
  VMSPACE_EXPECT_OK(memory);
  VMSPACE_EXPECT_OK(memory->write_slice(GuestAddress(3 * page + 5), pattern(2 * page, 1)));
  VMSPACE_EXPECT_OK(memory->write_slice(high_ram, pattern(page, 2)));
  VMSPACE_EXPECT_OK(memory->region_at(GuestAddress(0xffff'0000))->load_image(0, pattern(100, 3)));
  return {.space = space, .memory = *memory, .state = pattern(300, 4)};
}

struct Outcome {
  Result<void> sent;
  Result<Handover> received;
};

/// Both sides at once.
inline Outcome hand_over(const Handover& guest, const SendHandoverOptions& send_options = {},
                         const ReceiveHandoverOptions& receive_options = {}) {
  Ends ends;
  auto sent = std::async(std::launch::async,
                         [&] { return send_handover(ends.sender.get(), guest, send_options); });
  auto received = receive_handover(ends.receiver.get(), receive_options);
  return {.sent = sent.get(), .received = std::move(received)};
}

/// What came in one message.
struct Piece {
  std::vector<std::byte> bytes;
  std::vector<std::shared_ptr<Fd>> fds;
};

/// Receives one message, or a part of it; empty at the end.
inline Piece receive_piece(int socket, std::size_t most = 65'536) {
  Piece piece{.bytes = std::vector<std::byte>(most), .fds = {}};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(253 * sizeof(int))> control{};
  iovec part{piece.bytes.data(), piece.bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  EXPECT_GE(got, 0) << std::strerror(errno);
  piece.bytes.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  for (cmsghdr* rights = CMSG_FIRSTHDR(&message); rights != nullptr;
       rights = CMSG_NXTHDR(&message, rights)) {
    std::vector<int> fds((rights->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    std::memcpy(fds.data(), CMSG_DATA(rights), fds.size() * sizeof(int));
    for (const int fd : fds)
      piece.fds.push_back(std::make_shared<Fd>(fd));
  }
  return piece;
}

/// Sends bytes, and descriptors with the first of them. False when the peer is gone.
inline bool send_piece(int socket, std::span<const std::byte> bytes,
                       std::span<const int> fds = {}) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(253 * sizeof(int))> control{};
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* const rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

/// All that a sender sends of a guest, without the commit, as bytes and the files among them.
struct Recording {
  /// The size of the head, after which the byte of the (one) batch of files comes.
  static constexpr std::size_t head = 40;

  std::vector<std::byte> bytes;
  std::vector<std::shared_ptr<Fd>> files;

  [[nodiscard]] std::vector<int> fds() const {
    std::vector<int> numbers;
    for (const auto& file : files)
      numbers.push_back(file->get());
    return numbers;
  }

  static Recording of(const Handover& guest) {
    Ends ends;
    auto sent = std::async(std::launch::async, [&] {
      return send_handover(ends.sender.get(), guest, {.timeout = soon});
    });
    Recording recording;
    for (;;) {
      Piece piece = receive_piece(ends.receiver.get());
      if (piece.bytes.empty()) break;
      if (!piece.fds.empty()) recording.files = std::move(piece.fds);
      recording.bytes.insert(recording.bytes.end(), piece.bytes.begin(), piece.bytes.end());
    }
    EXPECT_THAT(sent.get(), HasError(Errc::timed_out));
    return recording;
  }

  /// Sends the bytes with these descriptors among them, if they get so far.
  static void send(int socket, std::span<const std::byte> bytes, std::span<const int> fds) {
    const std::size_t before = std::min(head, bytes.size());
    if (before != 0 && !send_piece(socket, bytes.first(before))) return;
    if (bytes.size() <= head) return;
    if (!send_piece(socket, bytes.subspan(head, 1), fds)) return;
    if (bytes.size() > head + 1) (void)send_piece(socket, bytes.subspan(head + 1));
  }
};

/// What a receiver makes of it when all of this has come, and nothing more will.
inline Result<Handover> receive_from(std::span<const std::byte> bytes, std::span<const int> fds,
                                     const ReceiveHandoverOptions& options = {}) {
  Ends ends;
  Recording::send(ends.sender.get(), bytes, fds);
  EXPECT_EQ(::shutdown(ends.sender.get(), SHUT_WR), 0);
  return receive_handover(ends.receiver.get(), options);
}

/// Expects a guest to be what sample_guest() is.
inline void expect_sample(const Handover& guest) {
  EXPECT_THAT(guest.memory.check_invariants(), IsOk());
  EXPECT_THAT(guest.space.check_invariants(), IsOk());
  EXPECT_EQ(contents(guest.memory, 3 * page + 5, 2 * page), pattern(2 * page, 1));
  EXPECT_EQ(contents(guest.memory, high_ram.value(), page), pattern(page, 2));
  EXPECT_EQ(contents(guest.memory, 0xffff'0000, 100), pattern(100, 3));
  EXPECT_EQ(guest.state, pattern(300, 4));
  ASSERT_EQ(guest.space.parked().size(), 1U);
  EXPECT_EQ(guest.space.parked()[0]->owner(), "gpu");
}

}  // namespace vmspace::test
