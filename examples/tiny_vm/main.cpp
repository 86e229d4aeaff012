// SPDX-License-Identifier: Apache-2.0
//
// A virtual machine whose memory vmspace plans, allocates, maps and shows to KVM. Every step prints
// a line; the exit status is 0 when every step held.
//
// Read in this order: plan (what lies where and who has what), machine (memory that exists), guest and
// guest.S (what runs in it), vm (KVM itself).

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "vmspace/base/literals.hpp"
#include "vmspace/fmt.hpp"

#include "guest.hpp"
#include "machine.hpp"
#include "plan.hpp"
#include "steps.hpp"
#include "vm.hpp"

namespace tiny_vm {
namespace {

using namespace vmspace::literals;
using vmspace::DeviceResources;
using vmspace::GuestAddress;
using vmspace::Result;

constexpr GuestAddress below_hole{2_GiB};
constexpr GuestAddress above_hole{5_GiB};
constexpr std::uint64_t seed = 0x1234'5678'9abc'0000;
constexpr std::chrono::seconds patience{20};  // the guest itself needs microseconds

const vmspace::RegionOptions dimm{
    .name = "dimm0",
    .size = 256_MiB,
    .backing = {.source = vmspace::MemorySource::shmem},
    .hotplug = true,
};

Result<void> expect_pattern(const Machine& machine, GuestAddress where, const Pattern& pattern) {
  const Pattern found = VMSPACE_TRY(machine.memory().read<Pattern>(where));
  VMSPACE_TRY(
      expect(found == pattern, fmt::format("the host finds the pattern at {:#x}", where.value())));
  say("host", "finds the right pattern at {:#x}", where.value());
  return {};
}

Result<DeviceResources> plug(Machine& machine) {
  auto plugged = VMSPACE_TRY(machine.plug(dimm));
  say("host", "plugged {}: {} MiB at {:#x}", dimm.name, dimm.size / 1_MiB,
      plugged.memory()->base().value());
  return plugged;
}

Result<void> unplug(Machine& machine, DeviceResources& plugged) {
  VMSPACE_TRY(machine.unplug(plugged));
  say("host", "unplugged {}", dimm.name);
  return {};
}

/// Used where no guest can run: the host exercises the memory alone.
Result<void> run_without_guest(Machine& machine) {
  const auto use = [&machine](GuestAddress where) -> Result<void> {
    VMSPACE_TRY(machine.memory().write(where, make_pattern(seed)));
    return expect_pattern(machine, where, make_pattern(seed));
  };
  VMSPACE_TRY(use(below_hole));
  VMSPACE_TRY(use(above_hole));
  auto plugged = VMSPACE_TRY(plug(machine));
  VMSPACE_TRY(use(plugged.memory()->base()));
  return unplug(machine, plugged);
}

Result<void> run_guest(Machine& machine, const DeviceResources& reporter, const Vm& vm) {
  const Start start = VMSPACE_TRY(load_guest(
      machine.memory(),
      {.low = below_hole, .high = above_hole, .seed = seed, .port = reporter.pio().min()}));
  const auto vcpu = VMSPACE_TRY(Vcpu::start(vm, start));
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
    return machine.memory().store(word, value, std::memory_order_release);
  };
  auto plugged = VMSPACE_TRY(plug(machine));
  const GuestAddress base = plugged.memory()->base();
  VMSPACE_TRY(machine.memory().write(base, make_pattern(seed)));
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

/// The resources of a released device are available to the next one immediately.
Result<void> replace(const vmspace::ResourceManager& manager, DeviceResources& nic) {
  const auto ports = nic.pio();
  const auto registers = nic.mmio()->range();
  VMSPACE_TRY(nic.release());
  say("device", "nic0 is detached");
  const auto next = VMSPACE_TRY(attach(manager, "nic1", ports.size(), registers.size()));
  return expect(next.pio() == ports && next.mmio()->range() == registers,
                "the next device gets the same ports and addresses");
}

Result<void> run() {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 40}));
  const auto space = VMSPACE_TRY(plan_ram(layout, 6_GiB));
  // The least that any KVM offers; shared by the machine's RAM and by devices with memory of their
  // own.
  const auto slots =
      VMSPACE_TRY(vmspace::RangePool::create("memory slots", {vmspace::Range::of(0, 508)}));
  const auto manager = VMSPACE_TRY(vmspace::ResourceManager::create(space, {.kvm_slots = slots}));

  const auto reporter = VMSPACE_TRY(attach(manager, "reporter", 4, 4_KiB));
  auto nic = VMSPACE_TRY(attach(manager, "nic0", 32, 64_KiB));
  fmt::print("{}", vmspace::resource_table(manager));

  Machine machine = VMSPACE_TRY(Machine::create(manager));
  say("host", "mapped {} regions of memory, to be filled when touched",
      machine.memory().regions().size());
  fmt::print("{}", vmspace::memory_map(manager));

  if (const auto vm = Vm::create(); vm) {
    VMSPACE_TRY(machine.show_to(vm->fd(), slots));
    VMSPACE_TRY(run_guest(machine, reporter, *vm));
  } else {
    say("guest", "skipped, there is no usable KVM: {}", vm.error().message());
    VMSPACE_TRY(run_without_guest(machine));
  }
  VMSPACE_TRY(replace(manager, nic));
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
