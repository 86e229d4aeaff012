// SPDX-License-Identifier: Apache-2.0
//
// A virtual machine whose memory vmspace plans, allocates, maps and shows to KVM. Every step prints
// a line; the exit status is 0 when every step held.
//
// Read in this order: plan (what lies where and who has what), here (memory that exists, and changes),
// guest and guest.S (what runs in it), vm (KVM itself).

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "vmspace/base/literals.hpp"
#include "vmspace/fmt.hpp"
#include "vmspace/vmm.hpp"

#include "guest.hpp"
#include "plan.hpp"
#include "steps.hpp"
#include "vm.hpp"

namespace tiny_vm {
namespace {

using namespace vmspace::literals;
using vmspace::DeviceResources;
using vmspace::GuestAddress;
using vmspace::Result;
using vmspace::VmMemory;

constexpr GuestAddress below_hole{2_GiB};
constexpr GuestAddress above_hole{5_GiB};
constexpr std::uint64_t seed = 0x1234'5678'9abc'0000;
constexpr std::chrono::seconds patience{20};  // the guest itself needs microseconds

/// Guests add and remove RAM in blocks of 128 MiB.
const vmspace::MemoryRange dimm{.region = {.name = "dimm0",
                                           .size = 256_MiB,
                                           .backing = {.source = vmspace::MemorySource::shmem},
                                           .hotplug = true},
                                .align = 128_MiB,
                                .aperture = "ram_high"};

/// The machine's addresses, memory and slots, and who has which part of them. A change of one is a
/// change of all.
struct Machine {
  VmMemory memory;
  vmspace::ResourceManager manager;
};

Result<void> expect_pattern(const Machine& machine, GuestAddress where, const Pattern& pattern) {
  const Pattern found = VMSPACE_TRY(machine.memory.map()->memory.read<Pattern>(where));
  VMSPACE_TRY(
      expect(found == pattern, fmt::format("the host finds the pattern at {:#x}", where.value())));
  say("host", "finds the right pattern at {:#x}", where.value());
  return {};
}

Result<DeviceResources> plug(const Machine& machine) {
  auto plugged = VMSPACE_TRY(machine.manager.acquire({dimm}, dimm.region.name));
  say("host", "plugged {}: {} MiB at {:#x}", plugged.owner(), dimm.region.size / 1_MiB,
      plugged.memory()->base().value());
  return plugged;
}

Result<void> unplug(const Machine& machine, DeviceResources& plugged) {
  VMSPACE_TRY(plugged.release());
  VMSPACE_TRY(machine.memory.wait_released(patience));  // until it is unmapped
  say("host", "unplugged {}", dimm.region.name);
  return {};
}

/// Used where no guest can run: the host exercises the memory alone.
Result<void> run_without_guest(const Machine& machine) {
  const auto use = [&machine](GuestAddress where) -> Result<void> {
    VMSPACE_TRY(machine.memory.map()->memory.write(where, make_pattern(seed)));
    return expect_pattern(machine, where, make_pattern(seed));
  };
  VMSPACE_TRY(use(below_hole));
  VMSPACE_TRY(use(above_hole));
  auto plugged = VMSPACE_TRY(plug(machine));
  VMSPACE_TRY(use(plugged.memory()->base()));
  return unplug(machine, plugged);
}

Result<void> run_guest(const Machine& machine, const DeviceResources& reporter, const Vm& vm,
                       std::shared_ptr<const vmspace::VcpuGate> gate) {
  const Start start = VMSPACE_TRY(load_guest(
      machine.memory.map()->memory,
      {.low = below_hole, .high = above_hole, .seed = seed, .port = reporter.pio().min()}));
  const auto vcpu = VMSPACE_TRY(Vcpu::start(vm, start, std::move(gate)));
  say("guest", "started in 64-bit mode");

  const auto expect_report = [&](std::uint32_t report, std::string_view meaning) -> Result<void> {
    const Event event = VMSPACE_TRY(vcpu->next_event(patience));
    VMSPACE_TRY(expect(event.kind == Event::Kind::port_write && event.value == report &&
                           reporter.pio().contains(event.address),
                       fmt::format("the guest reports: {}", meaning)));
    say("guest", "reports on port {:#x} ({}): {}", event.address, reporter.owner(), meaning);
    return {};
  };
  VMSPACE_TRY(expect_report(REPORT_PATTERNS_WRITTEN, "patterns written below and above 4 GiB"));
  VMSPACE_TRY(expect_pattern(machine, below_hole, make_pattern(seed)));
  VMSPACE_TRY(expect_pattern(machine, above_hole, make_pattern(seed)));

  // The guest polls these words, so it runs while its memory changes.
  const auto tell = [&](std::size_t field, std::uint64_t value) {
    const GuestAddress word{boot_params.value() + field};
    return machine.memory.map()->memory.store(word, value, std::memory_order_release);
  };
  auto plugged = VMSPACE_TRY(plug(machine));
  const GuestAddress base = plugged.memory()->base();
  VMSPACE_TRY(machine.memory.map()->memory.write(base, make_pattern(seed)));
  VMSPACE_TRY(tell(BOOT_PLUGGED, base.value()));
  VMSPACE_TRY(expect_report(REPORT_REGION_USED, "inverted what it found in the plugged region"));
  VMSPACE_TRY(expect_pattern(machine, base, inverted(make_pattern(seed))));

  VMSPACE_TRY(unplug(machine, plugged));
  VMSPACE_TRY(tell(BOOT_UNPLUGGED, 1));
  const Event read = VMSPACE_TRY(vcpu->next_event(patience));
  VMSPACE_TRY(expect(read.kind == Event::Kind::unmapped_read && read.address == base.value(),
                     "the guest's read of the unplugged region reaches the host"));
  VMSPACE_TRY(expect_report(REPORT_REGION_GONE, "nothing answers where the region was"));
  const Event last = VMSPACE_TRY(vcpu->next_event(patience));
  VMSPACE_TRY(expect(last.kind == Event::Kind::halted, "the guest halts"));
  say("guest", "halted");
  return {};
}

/// Shows the guest its memory, now and after each change.
Result<std::shared_ptr<vmspace::VcpuGate>> connect(const VmMemory& memory, const Vm& vm,
                                                   const vmspace::RangePool& slot_numbers) {
  auto slots = VMSPACE_TRY(vmspace::KvmMemslots::create(vm.fd(), slot_numbers));
  VMSPACE_TRY(memory.add_listener(std::make_shared<vmspace::KvmMemslots>(std::move(slots))));
  auto gate = std::make_shared<vmspace::VcpuGate>();
  VMSPACE_TRY(memory.set_gate(gate));
  return gate;
}

/// Moves a device's registers. The resources of a released device are available to the next one
/// immediately.
Result<void> move_and_replace(const vmspace::ResourceManager& manager, DeviceResources& nic) {
  const auto ports = nic.pio();
  const auto registers = nic.mmio()->range();
  VMSPACE_TRY(
      manager.relocate({vmspace::ResourceMove::place(nic, GuestAddress{registers.min() + 1_MiB})}));
  say("device", "nic0 has its registers at {:#x}", nic.mmio()->base().value());
  VMSPACE_TRY(nic.release());
  say("device", "nic0 is detached");
  const auto next = VMSPACE_TRY(attach(manager, "nic1", ports.size(), registers.size()));
  return expect(next.pio() == ports && next.mmio()->range() == registers,
                "the next device gets the same ports and addresses");
}

Result<void> run() {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 40}));
  const auto space = VMSPACE_TRY(plan_ram(layout, 6_GiB));
  const auto memory = VMSPACE_TRY(VmMemory::create(space));
  say("host", "mapped {} regions of memory, to be filled when touched",
      memory.map()->memory.regions().size());

  // The least that any KVM offers; shared by the machine's RAM and by devices with memory of their
  // own.
  const auto slots =
      VMSPACE_TRY(vmspace::RangePool::create("memory slots", {vmspace::Range::of(0, 508)}));
  const auto manager = VMSPACE_TRY(
      vmspace::ResourceManager::create(std::make_shared<VmMemory>(memory), {.kvm_slots = slots}));
  const Machine machine{.memory = memory, .manager = manager};
  const auto reporter = VMSPACE_TRY(attach(manager, "reporter", 4, 4_KiB));
  auto nic = VMSPACE_TRY(attach(manager, "nic0", 32, 64_KiB));
  fmt::print("{}", vmspace::resource_table(manager));
  fmt::print("{}", vmspace::memory_map(manager));

  if (const auto vm = Vm::create(); vm) {
    auto gate = VMSPACE_TRY(connect(memory, *vm, slots));
    VMSPACE_TRY(run_guest(machine, reporter, *vm, std::move(gate)));
  } else {
    say("guest", "skipped, there is no usable KVM: {}", vm.error().message());
    VMSPACE_TRY(run_without_guest(machine));
  }
  VMSPACE_TRY(move_and_replace(manager, nic));
  say("done", "every step held");
  return {};
}

}  // namespace
}  // namespace tiny_vm

int main() {
  const auto done = tiny_vm::run();
  if (!done) fmt::print(stderr, "tiny_vm: {}\n", done.error().message());
  return done ? 0 : 1;
}
