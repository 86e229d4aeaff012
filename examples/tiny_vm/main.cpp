// SPDX-License-Identifier: Apache-2.0
//
// A virtual machine whose memory vmspace plans, allocates, maps and shows to KVM. Every step prints
// a line; the exit status is 0 when every step held.
//
// Read in this order: plan (what lies where), devices (who got what), machine (memory that exists),
// guest and guest.S (what runs in it), vm (KVM itself).

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>
#include <utility>

#include "vmspace/base/literals.hpp"
#include "vmspace/fmt.hpp"

#include "devices.hpp"
#include "guest.hpp"
#include "machine.hpp"
#include "plan.hpp"
#include "steps.hpp"
#include "vm.hpp"

namespace tiny_vm {
namespace {

using namespace vmspace::literals;
using vmspace::GuestAddress;

constexpr GuestAddress below_hole{2_GiB};
constexpr GuestAddress above_hole{5_GiB};
constexpr std::uint64_t seed = 0x1234'5678'9abc'0000;
constexpr std::chrono::seconds patience{20};  // for a guest that needs microseconds

const vmspace::RegionOptions dimm{
    .name = "dimm0",
    .size = 256_MiB,
    .backing = {.source = vmspace::MemorySource::shmem},
    .hotplug = true,
};

void expect_pattern(const Machine& machine, GuestAddress where, const Pattern& pattern) {
  check(need(machine.memory().read<Pattern>(where)) == pattern,
        fmt::format("the host finds the pattern at {:#x}", where.value()));
  say("host", "finds the right pattern at {:#x}", where.value());
}

GuestAddress plug(Machine& machine) {
  const GuestAddress base = machine.plug(dimm);
  say("host", "plugged {}: {} MiB at {:#x}", dimm.name, dimm.size / 1_MiB, base.value());
  return base;
}

void unplug(Machine& machine, GuestAddress base) {
  machine.unplug(base);
  say("host", "unplugged {}", dimm.name);
}

/// What remains where no guest can run: the host alone uses the memory.
void run_without_guest(Machine& machine) {
  const auto use = [&machine](GuestAddress where) {
    need(machine.memory().write(where, make_pattern(seed)));
    expect_pattern(machine, where, make_pattern(seed));
  };
  use(below_hole);
  use(above_hole);
  const GuestAddress plugged = plug(machine);
  use(plugged);
  unplug(machine, plugged);
}

void run_guest(Machine& machine, const Buses& buses, const Device& reporter, const Vm& vm) {
  machine.show_to(vm.fd());
  const Start start = need(load_guest(
      machine.memory(),
      {.low = below_hole, .high = above_hole, .seed = seed, .port = reporter.ports.min()}));
  const auto vcpu = need(Vcpu::start(vm, start));
  say("guest", "started in 64-bit mode");

  const auto expect_report = [&](std::uint32_t report, std::string_view meaning) {
    const Event event = need(vcpu->next_event(patience));
    const std::string* device = buses.ports.find_value(event.address);
    check(event.kind == Event::Kind::port_write && event.value == report && device != nullptr &&
              *device == reporter.name,
          fmt::format("the guest reports: {}", meaning));
    say("guest", "reports on port {:#x} ({}): {}", event.address, *device, meaning);
  };
  expect_report(REPORT_PATTERNS_WRITTEN, "patterns written below and above 4 GiB");
  expect_pattern(machine, below_hole, make_pattern(seed));
  expect_pattern(machine, above_hole, make_pattern(seed));

  // The guest polls these words, so it runs while its memory changes.
  const auto tell = [&](std::size_t field, std::uint64_t value) {
    const GuestAddress word{boot_params.value() + field};
    need(machine.memory().store(word, value, std::memory_order_release));
  };
  const GuestAddress plugged = plug(machine);
  need(machine.memory().write(plugged, make_pattern(seed)));
  tell(BOOT_PLUGGED, plugged.value());
  expect_report(REPORT_REGION_USED, "inverted what it found in the plugged region");
  expect_pattern(machine, plugged, inverted(make_pattern(seed)));

  unplug(machine, plugged);
  tell(BOOT_UNPLUGGED, 1);
  const Event read = need(vcpu->next_event(patience));
  check(read.kind == Event::Kind::unmapped_read && read.address == plugged.value(),
        "the guest's read of the unplugged region reaches the host");
  expect_report(REPORT_REGION_GONE, "nothing answers where the region was");
  check(need(vcpu->next_event(patience)).kind == Event::Kind::halted, "the guest halts");
  say("guest", "halted");
}

void run() {
  const auto layout = need(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 40}));
  vmspace::AddressSpace space = plan_ram(layout, 6_GiB);

  Buses buses(layout);
  const Device reporter = buses.attach({.name = "reporter", .ports = 4, .bar_size = 4_KiB});
  const Device nic = buses.attach({.name = "nic0", .ports = 32, .bar_size = 64_KiB});
  plan_device(space, reporter);
  plan_device(space, nic);

  say("pci ids", "{}", buses.pci_ids);
  say("vectors", "{}", buses.msi_vectors);
  say("ports", "{}", buses.ports);
  say("mmio", "{}", buses.mmio);

  Machine machine(std::move(space));
  say("host", "mapped {} regions of memory, to be filled when touched",
      machine.memory().regions().size());
  fmt::print("{}", vmspace::memory_map(*machine.space().snapshot()));

  if (const auto vm = Vm::create(); vm) {
    run_guest(machine, buses, reporter, *vm);
  } else {
    say("guest", "skipped, there is no usable KVM: {}", vm.error().message());
    run_without_guest(machine);
  }
  say("done", "every step held");
}

}  // namespace
}  // namespace tiny_vm

int main() {
  try {
    tiny_vm::run();
    return 0;
  } catch (const std::exception& failure) {
    fmt::print(stderr, "tiny_vm: {}\n", failure.what());
    return 1;
  }
}
