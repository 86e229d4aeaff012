// SPDX-License-Identifier: Apache-2.0
//
// The guest of the demo is handed over from one process to another in the middle of its run, as when
// a VMM is upgraded. The new process is this program, started with the descriptor of its socket.

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/snapshot.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm.hpp"

#include "guest.hpp"
#include "vm.hpp"

namespace {

using namespace vmspace;
using namespace vmspace::literals;
using tiny_vm::Event;
using tiny_vm::Pattern;
using tiny_vm::Vcpu;
using tiny_vm::Vm;

constexpr std::string_view take_argument = "--take-guest-from=";
constexpr GuestAddress below{64_MiB};
constexpr GuestAddress above{5_GiB};
constexpr GuestAddress dimm{6_GiB};
constexpr std::uint64_t seed = 0x1234'5678'0000;
constexpr std::uint64_t port = 0x1000;
constexpr std::chrono::seconds patience{60};

Result<void> expect(bool holds, const char* what) {
  if (holds) return {};
  return fail({.code = Errc::bad_state, .operation = "handover_kvm_test", .reason = what});
}

Result<void> expect_report(Vcpu& vcpu, std::uint64_t report) {
  const Event event = VMSPACE_TRY(vcpu.next_event(patience));
  return expect(
      event.kind == Event::Kind::port_write && event.address == port && event.value == report,
      "the guest reports something else");
}

Result<void> expect_pattern(const GuestMemory& memory, GuestAddress where, const Pattern& pattern) {
  const auto found = VMSPACE_TRY(memory.read<Pattern>(where));
  return expect(found == pattern, "the guest's memory is as it was left");
}

/// Shows the memory to a VM, now and after each change.
Result<std::shared_ptr<VcpuGate>> connect(const VmMemory& memory, const Vm& vm) {
  auto numbers = VMSPACE_TRY(RangePool::create("slots", {Range::of(0, 31)}));
  auto slots = VMSPACE_TRY(KvmMemslots::create(vm.fd(), std::move(numbers)));
  VMSPACE_TRY(memory.add_listener(std::make_shared<KvmMemslots>(std::move(slots))));
  auto gate = std::make_shared<VcpuGate>();
  VMSPACE_TRY(memory.set_gate(gate));
  return gate;
}

/// A guest with RAM below and above 4 GiB.
Result<AddressSpaceBase> plan() {
  auto layout = VMSPACE_TRY(AddressSpaceLayout::x86_64({.phys_bits = 40}));
  AddressSpaceBase space(std::move(layout));
  const auto ram = [&](const char* name, GuestAddress base) {
    return space.insert_region(
        {.name = name, .base = base, .size = 128_MiB, .backing = {.source = MemorySource::shmem}});
  };
  VMSPACE_TRY(ram("low", GuestAddress(0)));
  VMSPACE_TRY(ram("high", above));
  return space;
}

/// The old process: runs the guest to its first report, and gives it away while it waits for memory to
/// be plugged.
Result<void> run_and_send(const Vm& vm, int socket) {
  const AddressSpaceBase space = VMSPACE_TRY(plan());
  const VmMemory memory = VMSPACE_TRY(VmMemory::create(space));
  const auto gate = VMSPACE_TRY(connect(memory, vm));
  const tiny_vm::Start start = VMSPACE_TRY(tiny_vm::load_guest(
      memory.map()->memory, {.low = below, .high = above, .seed = seed, .port = port}));
  const auto vcpu = VMSPACE_TRY(Vcpu::start(vm, start, gate));
  VMSPACE_TRY(expect_report(*vcpu, REPORT_PATTERNS_WRITTEN));
  const auto paused = VMSPACE_TRY(gate->pause_vcpus());
  auto registers = VMSPACE_TRY(vcpu->registers());
  const auto now = memory.map();
  VMSPACE_TRY(send_handover(
      socket, {.space = now->space, .memory = now->memory, .state = std::move(registers)}));
  vcpu->stop();  // before the pause ends: it runs in the other process now
  return {};
}

/// The new process: takes the guest, and plugs the memory that it waits for.
Result<void> take_and_run(int socket) {
  const Handover guest = VMSPACE_TRY(receive_handover(socket));
  const VmMemory memory =
      VMSPACE_TRY(VmMemory::adopt({.space = guest.space, .memory = guest.memory}));
  const Vm vm = VMSPACE_TRY(Vm::create());
  const auto gate = VMSPACE_TRY(connect(memory, vm));
  const auto vcpu = VMSPACE_TRY(Vcpu::resume(vm, guest.state, gate));

  VMSPACE_TRY(memory.plug({.name = "dimm0",
                           .base = dimm,
                           .size = 128_MiB,
                           .backing = {.source = MemorySource::shmem}}));
  const GuestMemory ram = memory.map()->memory;
  VMSPACE_TRY(ram.write(dimm, tiny_vm::make_pattern(seed)));
  const GuestAddress plugged{tiny_vm::boot_params.value() + BOOT_PLUGGED};
  VMSPACE_TRY(ram.store(plugged, dimm.value(), std::memory_order_release));
  VMSPACE_TRY(expect_report(*vcpu, REPORT_REGION_USED));
  VMSPACE_TRY(expect_pattern(ram, dimm, tiny_vm::inverted(tiny_vm::make_pattern(seed))));
  VMSPACE_TRY(expect_pattern(ram, below, tiny_vm::make_pattern(seed)));
  return expect_pattern(ram, above, tiny_vm::make_pattern(seed));
}

/// Starts this program anew, to take the guest that comes through `socket`.
pid_t start_successor(int socket) {
  const std::string argument = std::string(take_argument) + std::to_string(socket);
  const pid_t child = ::fork();
  if (child != 0) return child;
  std::string name = "handover_kvm_test";
  std::string copy = argument;
  char* arguments[] = {name.data(), copy.data(), nullptr};
  ::fcntl(socket, F_SETFD, 0);
  ::execv("/proc/self/exe", arguments);
  ::_exit(127);
}

TEST(HandoverOfARunningGuest, RunsOnInAnotherProcess) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  const auto vm = Vm::create();
  if (!vm) GTEST_SKIP() << "there is no usable KVM: " << vm.error().message();
  const pid_t child = start_successor(ends[1]);
  ASSERT_GT(child, 0);
  ::close(ends[1]);
  EXPECT_THAT(run_and_send(*vm, ends[0]), IsOk());
  ::close(ends[0]);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]).starts_with(take_argument)) {
    const std::string_view digits = std::string_view(argv[1]).substr(take_argument.size());
    int socket = -1;
    std::from_chars(digits.data(), digits.data() + digits.size(), socket);
    const auto done = take_and_run(socket);
    if (!done) std::fprintf(stderr, "the new process: %s\n", done.error().message().c_str());
    return done ? 0 : 1;
  }
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
