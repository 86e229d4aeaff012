// SPDX-License-Identifier: Apache-2.0

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iostream>
#include <span>
#include <thread>
#include <vector>

#include "vmspace/exit_on_error.hpp"
#include "vmspace/vmm.hpp"

using namespace vmspace::literals;
using vmspace::GuestAddress;
using vmspace::GuestMemory;
using vmspace::GuestRange;
using vmspace::Result;

namespace {

// README begin
/// What precedes the bytes of a range on the wire; an empty range is the end.
struct Frame {
  vmspace::Le64 base;
  vmspace::Le64 size;
};

Result<void> send_range(int socket, const GuestMemory& memory, const GuestRange& range) {
  const Frame frame{.base = range.base.value(), .size = range.size};
  if (::send(socket, &frame, sizeof(frame), MSG_NOSIGNAL) != sizeof(frame)) {
    return vmspace::fail({.code = vmspace::Errc::os, .operation = "send", .os_errno = errno});
  }
  VMSPACE_TRY(write_from_guest(socket, memory, range, {.exact = true}));
  return {};
}

Result<void> send_machine(int socket, const vmspace::VmMemory& vm,
                          const std::function<void()>& stop_guest) {
  auto log = VMSPACE_TRY(vm.start_dirty_log());
  const auto map = vm.map();
  std::vector<GuestRange> next;
  for (const auto& region : map->memory.regions())
    next.push_back(region->guest_range());

  // The guest runs on. Each round sends what was written during the one before.
  std::uint64_t left = map->memory.total_size();
  for (int round = 0; round < 30 && left > 256_KiB; ++round) {
    for (const GuestRange& range : next)
      VMSPACE_TRY(send_range(socket, map->memory, range));
    next = VMSPACE_TRY(log.harvest());
    left = 0;
    for (const GuestRange& range : next)
      left += range.size;
  }

  // Little enough, or a guest that writes faster than the socket takes it: the rest while it stands.
  stop_guest();
  for (const GuestRange& range : VMSPACE_TRY(log.harvest()))
    next.push_back(range);
  for (const GuestRange& range : next)
    VMSPACE_TRY(send_range(socket, map->memory, range));
  return send_range(socket, map->memory, {});
}

/// A frame may say anything: memory is checked by every access, so it needs no check here.
Result<void> receive_machine(int socket, const GuestMemory& memory) {
  for (;;) {
    Frame frame;
    const auto got = ::recv(socket, &frame, sizeof(frame), MSG_WAITALL);
    if (got != sizeof(frame)) {
      const int error = got < 0 ? errno : EIO;  // cut off
      return vmspace::fail({.code = vmspace::Errc::os, .operation = "recv", .os_errno = error});
    }
    if (frame.size.value() == 0) return {};
    const GuestRange range{GuestAddress{frame.base}, frame.size};
    VMSPACE_TRY(read_into_guest(socket, memory, range, {.exact = true}));
  }
}
// README end

/// A guest that is never idle: counts in page after page, until it is stopped.
void run_guest(const GuestMemory& memory, const std::atomic<bool>& stop) {
  for (std::uint64_t i = 1; !stop; ++i) {
    static_cast<void>(memory.write(GuestAddress{i * 7919 % 4096 * 4_KiB}, i));
    if (i % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

Result<bool> same(const GuestMemory& a, const GuestMemory& b, const GuestRange& range) {
  const std::byte* const in_a = VMSPACE_TRY(a.const_host_address(range));
  const std::byte* const in_b = VMSPACE_TRY(b.const_host_address(range));
  return std::memcmp(in_a, in_b, range.size) == 0;
}

Result<void> example(std::span<const int, 2> sockets) {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 40}));
  vmspace::AddressSpaceBase plan(layout);
  VMSPACE_TRY(plan.insert_region(
      {.name = "ram", .size = 16_MiB, .backing = {.source = vmspace::MemorySource::shmem}}));
  const auto vm = VMSPACE_TRY(vmspace::VmMemory::create(plan));
  const auto source = vm.map()->memory;
  const auto destination = VMSPACE_TRY(GuestMemory::map(plan));

  std::atomic<bool> stop = false;
  std::thread guest([&] { run_guest(source, stop); });
  std::thread receiver([&] { vmspace::value_or_exit(receive_machine(sockets[1], destination)); });
  const auto sent = send_machine(sockets[0], vm, [&] {
    stop = true;
    guest.join();
  });
  if (!sent) vmspace::value_or_exit(sent);
  receiver.join();

  const bool equal = VMSPACE_TRY(same(source, destination, {GuestAddress{0}, 16_MiB}));
  std::cout << (equal ? "the same on both sides\n" : "different\n");
  return {};
}

}  // namespace

int main() {
  std::array<int, 2> sockets{};
  vmspace::exit_unless(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets.data()) == 0,
                       "a socket can be made");
  vmspace::value_or_exit(example(sockets));
  for (const int socket : sockets)
    ::close(socket);
}
