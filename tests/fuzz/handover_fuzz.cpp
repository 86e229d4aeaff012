// SPDX-License-Identifier: Apache-2.0
//
// The input is what a sender sends. Whatever comes, the receiver refuses it or has a guest that keeps its
// invariants and can be used, and no descriptor is left open.
//
// The first byte tells how many descriptors come (bits 0 and 1) and of what (bits 2 to 4); whether the
// input has a head of its own (bit 5), or one is made that fits it; and whether that says that dirty
// pages are tracked (bit 6). The second byte tells how many bytes at the end of the input are not the
// map.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/endian.hpp"
#include "vmspace/snapshot/handover.hpp"

#include "fuzz/peer_files.hpp"

namespace {

using namespace vmspace;
using fuzz::check;
using fuzz::memory_file;

/// What a sender can hand over; open as long as the program.
const std::array<int, 8>& files() {
  static const std::array<int, 8> all = [] {
    int ends[2];
    check(::pipe2(ends, O_CLOEXEC) == 0, "pipe2");
    const int sealed = memory_file(1 << 20, F_SEAL_SHRINK);
    return std::array{sealed,
                      sealed,
                      memory_file(1 << 20, F_SEAL_SHRINK),
                      memory_file(1 << 20, 0),
                      memory_file(4096, F_SEAL_SHRINK),
                      memory_file(1 << 20, F_SEAL_SHRINK | F_SEAL_WRITE),
                      ::open("/dev/null", O_RDWR | O_CLOEXEC),
                      ends[0]};
  }();
  return all;
}

/// The number that the next descriptor gets: it stays the same while none is left open.
int next_descriptor() {
  const int fd = ::dup(0);
  ::close(fd);
  return fd;
}

/// The head of a handover, as its format describes it, written a second time.
struct Head {
  std::array<char, 8> magic{'v', 'm', 's', 'p', 'H', 'A', 'N', 'D'};
  Le32 version = 1;
  Le32 files = 0;
  Le64 map_size = 0;
  Le64 state_size = 0;
  Le32 flags = 0;
  Le32 reserved = 0;
};
static_assert(sizeof(Head) == 40);

void send_bytes(int socket, const void* bytes, std::size_t size) {
  if (size != 0) (void)::send(socket, bytes, size, MSG_NOSIGNAL);
}

void send_files(int socket, std::size_t count, std::size_t kind) {
  const char byte = 'F';
  std::array<int, 3> fds{};
  for (std::size_t i = 0; i < count; ++i)
    fds[i] = files()[(kind + i) % files().size()];
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof fds)> buffer{};
  iovec part{const_cast<char*>(&byte), 1};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = buffer.data();
  message.msg_controllen = CMSG_SPACE(count * sizeof(int));
  cmsghdr* const rights = CMSG_FIRSTHDR(&message);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(count * sizeof(int));
  std::memcpy(CMSG_DATA(rights), fds.data(), count * sizeof(int));
  (void)::sendmsg(socket, &message, MSG_NOSIGNAL);
}

void use(const Handover& guest) {
  check(guest.memory.check_invariants().has_value(), "the memory keeps its invariant");
  check(guest.space.check_invariants().has_value(), "the space keeps its invariant");
  for (const auto& region : guest.memory.regions()) {
    const AddressSpaceRegion* described = guest.space.find_region(region->base());
    check(described == &region->description(), "the space describes the memory");
    (void)guest.memory.read<std::uint64_t>(region->base());
    (void)guest.memory.write(GuestAddress(region->last_addr().value() - 7), std::uint64_t{1});
  }
  (void)harvest_dirty(guest.memory);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  (void)files();
  const int before = next_descriptor();
  std::span<const std::uint8_t> input(data + 2, size - 2);
  const std::size_t count = data[0] & 3U;
  const std::size_t rest = std::min<std::size_t>(data[1], input.size());
  Head head{.files = static_cast<std::uint32_t>(count),
            .map_size = input.size() - rest,
            .flags = (data[0] >> 6U) & 1U};
  // Of what follows, all is state, if there is no bitmap before it.
  head.state_size = head.flags == 0 ? rest : 0;
  if ((data[0] & 0x20U) != 0) {
    const std::size_t given = std::min(sizeof head, input.size());
    std::memcpy(&head, input.data(), given);
    input = input.subspan(given);
  }
  int ends[2];
  check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
  send_bytes(ends[0], &head, sizeof head);
  if (count != 0) send_files(ends[0], count, (data[0] >> 2U) & 7U);
  send_bytes(ends[0], input.data(), input.size());
  send_bytes(ends[0], "C", 1);
  ::shutdown(ends[0], SHUT_WR);
  if (const auto guest = receive_handover(ends[1], {.max_memory = 1 << 30})) use(*guest);
  ::close(ends[0]);
  ::close(ends[1]);
  check(next_descriptor() == before, "no descriptor is left open");
  return 0;
}
