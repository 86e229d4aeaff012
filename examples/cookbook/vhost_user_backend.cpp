// SPDX-License-Identifier: Apache-2.0

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <memory>
#include <thread>

#include "vmspace/exit_on_error.hpp"
#include "vmspace/vmm.hpp"

using namespace vmspace::literals;
using namespace std::chrono_literals;
using vmspace::GuestAddress;
using vmspace::Result;

namespace {

constexpr GuestAddress request_at{4_GiB};  // in memory that comes while the device runs
constexpr GuestAddress answer_at{4_GiB + 8};

// README begin
/// The device's thread: serves the guest whenever it kicks, in the memory as it is then.
Result<void> serve_guest(const vmspace::VhostUserBackendMemory& shared, int kick, int interrupt,
                         const std::atomic<bool>& stop) {
  auto reader = shared.map().reader();
  for (;;) {
    eventfd_t count = 0;
    if (::eventfd_read(kick, &count) != 0 || stop) return {};
    const vmspace::VhostUserMap& now = reader.current();
    const auto request = VMSPACE_TRY(now.memory.read<std::uint64_t>(request_at));
    VMSPACE_TRY(now.memory.write(answer_at, request * 2));
    VMSPACE_TRY(now.log.mark({answer_at, 8}));  // does nothing unless the VM is migrated
    reader.park();                              // before it sleeps
    ::eventfd_write(interrupt, 1);
  }
}

/// Serves the VMM until it closes the connection.
Result<void> serve_vmm(vmspace::VhostUserBackendMemory& shared, int socket) {
  for (;;) {
    const auto message = vmspace::VhostUserMessage::receive(socket, 1h);
    if (!message && message.error().code == vmspace::Errc::timed_out) continue;
    if (!message && message.error().os_errno == ECONNRESET) return {};
    if (!message) return vmspace::fail(message.error());
    if (VMSPACE_TRY(shared.serve(socket, *message))) continue;  // it was about memory
    // Features, rings, configuration are the device's: see examples/vhost_user_blk.
  }
}

Result<void> run_backend(int socket, int kick, int interrupt) {
  auto shared = VMSPACE_TRY(vmspace::VhostUserBackendMemory::create());
  std::atomic<bool> stop = false;
  std::thread device([&] { vmspace::value_or_exit(serve_guest(shared, kick, interrupt, stop)); });
  const auto served = serve_vmm(shared, socket);
  stop = true;
  ::eventfd_write(kick, 1);
  device.join();
  return served;
}
// README end

/// The VMM's process.
Result<void> run_vmm(int socket, int kick, int interrupt) {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 40}));
  vmspace::AddressSpaceBase plan(layout);
  VMSPACE_TRY(plan.insert_region(
      {.name = "ram", .size = 64_MiB, .backing = {.source = vmspace::MemorySource::shmem}}));
  const auto memory = VMSPACE_TRY(vmspace::VmMemory::create(plan));

  // With the features that both sides have agreed on, the device is told of all memory, and of changes.
  std::shared_ptr<vmspace::VhostUserMemory> device = VMSPACE_TRY(vmspace::VhostUserMemory::create(
      socket, {.name = "device0",
               .protocol_features = vmspace::VhostUserFeature::reply_ack |
                                    vmspace::VhostUserFeature::configure_mem_slots}));
  VMSPACE_TRY(memory.add_listener(device));
  const auto dimm = VMSPACE_TRY(memory.plug({.name = "dimm0",
                                             .base = request_at,
                                             .size = 64_MiB,
                                             .backing = {.source = vmspace::MemorySource::shmem}}));
  std::cout << "the device has " << device->used() << " regions\n";

  const auto now = memory.map();
  VMSPACE_TRY(now->memory.write(request_at, std::uint64_t{21}));
  ::eventfd_write(kick, 1);
  eventfd_t count = 0;
  ::eventfd_read(interrupt, &count);
  const auto answer = VMSPACE_TRY(now->memory.read<std::uint64_t>(answer_at));
  std::cout << "it answers " << answer << '\n';
  return {};
}

}  // namespace

int main() {
  std::array<int, 2> sockets{};
  const int kick = ::eventfd(0, EFD_CLOEXEC);
  const int interrupt = ::eventfd(0, EFD_CLOEXEC);
  vmspace::exit_unless(kick >= 0 && interrupt >= 0, "eventfds can be made");
  vmspace::exit_unless(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets.data()) == 0,
                       "a socket can be made");
  const pid_t child = ::fork();
  vmspace::exit_unless(child >= 0, "a process can be made");
  if (child == 0) {
    ::close(sockets[0]);
    vmspace::value_or_exit(run_backend(sockets[1], kick, interrupt));
    return 0;
  }
  ::close(sockets[1]);
  vmspace::value_or_exit(run_vmm(sockets[0], kick, interrupt));
  ::close(sockets[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return status == 0 ? 0 : 1;
}
