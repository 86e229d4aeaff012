// SPDX-License-Identifier: Apache-2.0
//
// A fifteen-minute tour of vmspace: a plain number allocator, the resources of devices, and a piece
// of guest memory. Exits with 0 only if every check holds.

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

#include "vmspace/address_space.hpp"
#include "vmspace/allocator.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/exit_on_error.hpp"
#include "vmspace/memory.hpp"
#include "vmspace/resources.hpp"

using namespace vmspace::literals;
using vmspace::GuestAddress;
using vmspace::IntervalTree;
using vmspace::LegacyIrq;
using vmspace::MmioRange;
using vmspace::MmioReach;
using vmspace::PioRange;
using vmspace::Range;
using vmspace::ResourceManager;
using vmspace::value_or_exit;

namespace {

// Every fallible call gives a value or an Error that says what was asked and what stood in the way.
// A VMM passes errors on (VMSPACE_TRY); this program prints them and ends (value_or_exit).

void check(bool holds, const char* what) {
  vmspace::exit_unless(holds, what);
  std::printf("ok: %s\n", what);
}

// find_value() returns null for a number that nobody holds.
bool owns(const IntervalTree<std::string>& numbers, std::uint64_t number, std::string_view who) {
  const std::string* owner = numbers.find_value(number);
  return owner != nullptr && *owner == who;
}

// Numbers of your own, such as device ids: interchangeable, and each in use at most once.
void device_ids() {
  IntervalTree<std::string> ids;
  value_or_exit(ids.insert(Range::of(0, 255)));

  const Range disk = value_or_exit(ids.allocate({.size = 1}, "disk"));
  const Range nic = value_or_exit(ids.allocate({.size = 1}, "nic"));
  check(disk.min() == 0 && nic.min() == 1, "the lowest free ids come first");
  check(owns(ids, nic.min(), "nic"), "an id knows its owner");

  value_or_exit(ids.free(disk));
  check(value_or_exit(ids.allocate({.size = 1}, "gpu")) == disk, "a freed id is used again");
  check(!ids.allocate_at(nic, "sound"), "an id in use is not given out twice");
}

// Devices need ports, interrupt lines, vectors and registers. A manager assigns everything that a
// device requests, or nothing, and reclaims it when the device is destroyed.
void device_resources() {
  const auto layout = value_or_exit(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 40}));
  const auto space = value_or_exit(vmspace::AddressSpace::create(layout));
  const auto manager = value_or_exit(ResourceManager::create(space));

  const auto nic = value_or_exit(manager.acquire(
      {PioRange{.size = 32}, MmioRange{.size = 4_KiB},
       MmioRange{.size = 64_KiB, .reach = MmioReach::high}, LegacyIrq{.shared = true}},
      "nic"));
  auto gpu = value_or_exit(
      manager.acquire({MmioRange{.size = 256_MiB}, LegacyIrq{.fixed = 5, .shared = true}}, "gpu"));
  check(nic.mmio()->base() == GuestAddress{0xc000'0000},
        "the first range is at the start of the aperture");
  check(gpu.mmio()->base() == GuestAddress{0xd000'0000}, "an aligned range leaves a gap before it");
  check(nic.mmio(1)->base() == GuestAddress{0x80'0000'0000}, "a 64-bit BAR lies above 4 GiB");
  check(nic.legacy_irq() == 5 && gpu.legacy_irq() == 5, "two devices may share a line");
  check(space.find_region(GuestAddress{0xd123'4567})->owner() == "gpu",
        "any address finds its owner");

  const auto none = manager.acquire({PioRange{.size = 8}, MmioRange{.size = 1_TiB}}, "fpga");
  check(!none && none.error().code == vmspace::Errc::no_space,
        "running out of space is an error...");
  std::printf("    %s\n", none.error().message().c_str());
  check(manager.holders().size() == 6, "... and leaves everything as it was");

  value_or_exit(gpu.release());
  check(space.find_region(GuestAddress{0xd123'4567}) == nullptr, "a device gives back what it had");
  std::printf("%s", resource_table(manager).c_str());
}

// An address space with one memory region, and access to its contents.
void guest_memory() {
  const auto layout = value_or_exit(
      vmspace::AddressSpaceLayout::make({.phys_max = 1_GiB - 1, .ram = Range::of(0, 16_MiB - 1)}));
  auto space = value_or_exit(vmspace::AddressSpace::create(layout));
  value_or_exit(space.insert_region({.name = "ram",
                                     .base = GuestAddress{1_MiB},
                                     .size = 1_MiB,
                                     .backing = {.source = vmspace::MemorySource::shmem}}));

  const auto memory = value_or_exit(vmspace::GuestMemory::map(*space.snapshot()));
  value_or_exit(memory.write(GuestAddress{1_MiB + 100}, std::uint64_t{0x1234'5678}));
  check(value_or_exit(memory.read<std::uint64_t>(GuestAddress{1_MiB + 100})) == 0x1234'5678,
        "what was written is read");

  const auto outside = memory.read<std::uint64_t>(GuestAddress{2_MiB - 4});
  check(!outside, "a read past the end is an error...");
  std::printf("    %s\n", outside.error().message().c_str());
}

}  // namespace

int main() {
  device_ids();
  device_resources();
  guest_memory();
  return 0;
}
