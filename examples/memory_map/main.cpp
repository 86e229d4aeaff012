// SPDX-License-Identifier: Apache-2.0
//
// memory_map [<directory>]
//
// Prints the memory maps of two guests, and writes their pictures to the directory (default: this one):
// 4g.svg, of 4 GiB, mapped, with what this program wrote; 12t.svg, of 12 TiB in eight nodes, not mapped.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "vmspace/address_space.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/exit_on_error.hpp"
#include "vmspace/host.hpp"
#include "vmspace/memory.hpp"
#include "vmspace/resources.hpp"

using namespace vmspace::literals;
using vmspace::AddressSpace;
using vmspace::AddressSpaceLayout;
using vmspace::BridgeWindow;
using vmspace::DeviceRange;
using vmspace::GuestAddress;
using vmspace::GuestMemory;
using vmspace::GuestRange;
using vmspace::MmioRange;
using vmspace::MmioReach;
using vmspace::PageHeat;
using vmspace::Range;
using vmspace::ResourceManager;
using vmspace::Result;

namespace {

Result<void> insert_ram(const AddressSpace& space, const std::vector<std::uint64_t>& nodes,
                        const vmspace::BackingSpec& backing, bool bind) {
  for (const auto& piece : VMSPACE_TRY(space.snapshot()->layout().plan_ram(nodes))) {
    vmspace::RegionOptions ram{.name = "ram" + std::to_string(piece.node),
                               .base = piece.base,
                               .size = piece.size,
                               .backing = backing};
    if (bind) ram.numa_node = piece.node;
    VMSPACE_TRY(space.insert_region(ram));
  }
  return {};
}

Result<void> insert_firmware(const AddressSpace& space) {
  VMSPACE_TRY(space.insert_region({.name = "firmware",
                                   .type = vmspace::RegionType::firmware_memory,
                                   .base = GuestAddress{4_GiB - 4_MiB},
                                   .size = 4_MiB,
                                   .backing = {.source = vmspace::MemorySource::shmem},
                                   .protection = vmspace::Protection::read}));
  return {};
}

std::vector<DeviceRange> interrupt_controllers() {
  return {{"i/o apic", Range::of(0xfec0'0000, 0xfec0'0fff)},
          {"local apic", Range::of(0xfee0'0000, 0xfee0'0fff)}};
}

// -- where heat comes from -------------------------------------------------------------------------

Result<void> add(std::vector<PageHeat>& heat, const GuestRange& where, double density = 1) {
  const Range range = VMSPACE_TRY(where.range());
  heat.push_back({range, density});
  return {};
}

/// The memory that is in RAM, without touching any that is not.
Result<std::vector<PageHeat>> resident_memory(const GuestMemory& memory) {
  std::vector<PageHeat> heat;
  for (const auto& region : memory.regions()) {
    const vmspace::MemoryMapping& mapping = region->mapping();
    vmspace::PageScan scan(mapping, vmspace::PageQuery::present);
    for (std::uint64_t at = 0; at < mapping.size();) {
      const vmspace::Extent found = VMSPACE_TRY(scan.next(at, mapping.size()));
      const GuestAddress base{region->base().value() + found.offset};
      if (found.size != 0) VMSPACE_TRY(add(heat, {base, found.size}));
      at = found.end();
    }
  }
  return heat;
}

/// The memory that was written since the last harvest.
Result<std::vector<PageHeat>> dirty_memory(const GuestMemory& memory) {
  std::vector<PageHeat> heat;
  for (const GuestRange& written : VMSPACE_TRY(harvest_dirty(memory)))
    VMSPACE_TRY(add(heat, written));
  return heat;
}

/// As a guest would: whole pieces of 2 MiB, so that the host's choice of pages makes no difference.
Result<void> write_some(const GuestMemory& memory, std::uint64_t from, std::uint64_t end) {
  static const std::vector<std::byte> piece(2_MiB, std::byte{0xa5});
  for (std::uint64_t at = from; at < end; at += piece.size())
    VMSPACE_TRY(memory.write_slice(GuestAddress{at}, piece));
  return {};
}

// -- guests ----------------------------------------------------------------------------------------

Result<std::string> small_guest() {
  const auto space =
      VMSPACE_TRY(AddressSpace::create(VMSPACE_TRY(AddressSpaceLayout::x86_64({.phys_bits = 40}))));
  VMSPACE_TRY(insert_ram(space, {4_GiB}, {.source = vmspace::MemorySource::shmem}, false));
  VMSPACE_TRY(insert_firmware(space));
  const auto manager = VMSPACE_TRY(ResourceManager::create(space));
  const auto bridge = VMSPACE_TRY(manager.acquire({BridgeWindow{.size = 2_MiB}}, "bridge0"));
  const auto nic = VMSPACE_TRY(manager.acquire({MmioRange{.size = 64_KiB, .bridge = "bridge0"},
                                                MmioRange{.size = 16_KiB, .bridge = "bridge0"}},
                                               "nic0"));
  const auto disk = VMSPACE_TRY(manager.acquire({MmioRange{.size = 16_KiB}}, "disk0"));
  const auto gpu = VMSPACE_TRY(
      manager.acquire({MmioRange{.size = 16_MiB},
                       MmioRange{.size = 256_MiB, .reach = MmioReach::high, .prefetchable = true}},
                      "gpu0"));

  const auto memory = VMSPACE_TRY(GuestMemory::map(*space.snapshot()));
  VMSPACE_TRY(enable_dirty_tracking(memory));
  VMSPACE_TRY(write_some(memory, 0, 64_MiB));
  VMSPACE_TRY(write_some(memory, 1_GiB, 1_GiB + 128_MiB));
  VMSPACE_TRY(harvest_dirty(memory));  // and sent
  VMSPACE_TRY(write_some(memory, 1_GiB + 32_MiB, 1_GiB + 64_MiB));
  VMSPACE_TRY(write_some(memory, 4_GiB, 4_GiB + 16_MiB));

  const auto resident = VMSPACE_TRY(resident_memory(memory));
  const auto dirty = VMSPACE_TRY(dirty_memory(memory));
  std::printf("%s\n", memory_map(manager).c_str());
  return memory_map_svg(manager, {.title = "A guest of 4 GiB",
                                  .devices = interrupt_controllers(),
                                  .resident = resident,
                                  .dirty = dirty});
}

Result<std::string> large_guest() {
  const auto space =
      VMSPACE_TRY(AddressSpace::create(VMSPACE_TRY(AddressSpaceLayout::x86_64({.phys_bits = 46}))));
  const vmspace::BackingSpec huge{.source = vmspace::MemorySource::hugeshmem, .page_size = 1_GiB};
  VMSPACE_TRY(insert_ram(space, std::vector<std::uint64_t>(8, 1536_GiB), huge, true));
  VMSPACE_TRY(insert_firmware(space));
  VMSPACE_TRY(space.insert_region({.name = "dimm0",
                                   .base = GuestAddress{16_TiB},
                                   .size = 512_GiB,
                                   .backing = huge,
                                   .numa_node = 3,
                                   .hotplug = true}));
  VMSPACE_TRY(space.place_region({.name = "shared files", .type = vmspace::RegionType::dax_memory},
                                 {.size = 1_TiB, .align = 1_TiB}, "mmio_high"));
  const auto manager = VMSPACE_TRY(ResourceManager::create(space));
  std::vector<vmspace::DeviceResources> devices;
  for (const char* name : {"gpu0", "gpu1"}) {
    auto gpu = VMSPACE_TRY(
        manager.acquire({MmioRange{.size = 128_GiB, .reach = MmioReach::high, .prefetchable = true},
                         MmioRange{.size = 16_MiB}},
                        name));
    devices.push_back(std::move(gpu));
  }
  const auto nic =
      VMSPACE_TRY(manager.acquire({MmioRange{.size = 64_KiB, .parked = true}}, "nic0"));

  // Nobody maps 12 TiB for an example. What a PageScan and a log would say, node by node:
  std::vector<PageHeat> resident;
  std::vector<PageHeat> dirty;
  for (std::uint64_t node = 0; node < 8; ++node) {
    const std::uint64_t base = node * 1536_GiB + 128_GiB;
    const double load = 1.0 - static_cast<double>(node) * 0.11;
    VMSPACE_TRY(add(resident, {GuestAddress(base), 1_TiB}, load));
    VMSPACE_TRY(add(dirty, {GuestAddress(base + 256_GiB), 192_GiB}, load * load));
  }
  std::printf("%s", memory_map(manager).c_str());
  return memory_map_svg(manager, {.title = "A guest of 12 TiB in eight nodes",
                                  .devices = interrupt_controllers(),
                                  .resident = resident,
                                  .dirty = dirty});
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  vmspace::exit_unless(static_cast<bool>(out.flush()), path.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  const std::string directory = argc > 1 ? argv[1] : ".";
  write_file(directory + "/4g.svg", vmspace::value_or_exit(small_guest()));
  write_file(directory + "/12t.svg", vmspace::value_or_exit(large_guest()));
}
