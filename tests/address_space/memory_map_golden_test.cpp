// SPDX-License-Identifier: Apache-2.0
//
// Memory maps of whole machines against files, to be looked at as people see them. golden.hpp says
// how a file is written.

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/address_space/memory_map.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

#include "address_space/golden.hpp"

namespace vmspace::memory_map_golden_test {
namespace {

using namespace literals;
using test::expect_golden;

AddressSpaceLayout pc(const X86LayoutOptions& options = {.phys_bits = 46}) {
  return *AddressSpaceLayout::x86_64(options);
}

/// The RAM of a machine, as its layout plans it.
void insert_ram(AddressSpaceBase& space, const std::vector<std::uint64_t>& nodes,
                const BackingSpec& backing) {
  const auto plan = VMSPACE_ASSERT_OK(space.layout().plan_ram(nodes));
  for (const RamPiece& piece : plan) {
    ASSERT_THAT(space.insert_region({.name = "ram" + std::to_string(piece.node),
                                     .base = piece.base,
                                     .size = piece.size,
                                     .backing = backing,
                                     .numa_node = piece.node}),
                IsOk());
  }
}

RegionOptions bar(const char* name, const char* owner) {
  return {.name = name, .type = RegionType::device_memory, .owner = owner};
}

DeviceRange page(const char* name, std::uint64_t base, const char* owner = "") {
  return {name, *Range::from_base_size(base, 4_KiB), owner};
}

TEST(MemoryMapGolden, OfAMicroVm) {
  AddressSpaceBase space(pc({.phys_bits = 36}));
  VMSPACE_EXPECT_OK(space.insert_region(
      {.name = "ram", .size = 128_MiB, .backing = {.source = MemorySource::anon}}));
  const DeviceRange devices[] = {page("virtio-mmio 0", 0xc000'0000, "rootfs"),
                                 page("virtio-mmio 1", 0xc000'1000, "eth0"),
                                 page("virtio-mmio 2", 0xc000'2000, "vsock")};
  expect_golden(memory_map(space, {.devices = devices, .empty_apertures = false}),
                "map_microvm_128m.txt");
}

TEST(MemoryMapGolden, OfAPcOf6GiB) {
  AddressSpaceBase space(pc());
  insert_ram(space, {4_GiB, 2_GiB}, {.source = MemorySource::shmem});
  VMSPACE_EXPECT_OK(space.insert_region({.name = "firmware",
                                         .type = RegionType::firmware_memory,
                                         .base = GuestAddress{0xffe0'0000},
                                         .size = 2_MiB,
                                         .backing = {.source = MemorySource::anon},
                                         .protection = Protection::read}));
  VMSPACE_EXPECT_OK(space.place_region(bar("BAR0", "nic0"), {.size = 16_KiB}, "mmio_low"));
  VMSPACE_EXPECT_OK(space.place_region(bar("BAR2", "gpu0"), {.size = 16_GiB}, "mmio_high"));
  RegionOptions unplaced = bar("BAR0", "nvme0");
  unplaced.size = 16_KiB;
  const auto parked = VMSPACE_ASSERT_OK(AddressSpaceRegion::make(unplaced));
  VMSPACE_EXPECT_OK(space.insert_parked_region(parked));
  const DeviceRange devices[] = {page("local apic", 0xfee0'0000), page("i/o apic", 0xfec0'0000),
                                 page("registers", 0x2000'0000'0000, "gpu0")};
  expect_golden(memory_map(space, {.devices = devices}), "map_pc_6g.txt");
}

TEST(MemoryMapGolden, OfAPcOf12TiBInEightNodes) {
  AddressSpaceBase space(pc());
  insert_ram(space, std::vector<std::uint64_t>(8, 1536_GiB),
             {.source = MemorySource::hugeshmem, .page_size = 1_GiB});
  expect_golden(memory_map(space), "map_pc_12t_8_nodes.txt");
}

TEST(MemoryMapGolden, OfBarsBehindBridges) {
  AddressSpaceBase space(pc({.phys_bits = 46, .ecam_buses = 256}));
  for (RegionOptions region : {bar("BAR0", "nic0"), bar("BAR0", "nic1")}) {
    VMSPACE_EXPECT_OK(space.place_region(region, {.size = 64_KiB, .min = 0xd010'0000}, "mmio_low"));
  }
  const DeviceRange devices[] = {
      {"window of bus 2", *Range::from_base_size(0xd010'0000, 1_MiB), "bridge 2"},
      {"window of bus 1", *Range::from_base_size(0xd000'0000, 4_MiB), "bridge 1"},
      {"window of bus 3", *Range::from_base_size(0xd040'0000, 1_MiB), "bridge 3"}};
  expect_golden(memory_map(space, {.devices = devices, .empty_apertures = false}),
                "map_pc_bridges.txt");
}

TEST(MemoryMapGolden, OfAnArmMachine) {
  AddressSpaceBase space(*AddressSpaceLayout::aarch64({.ipa_bits = 40, .ecam_buses = 16}));
  insert_ram(space, {6_GiB}, {.source = MemorySource::shmem});
  VMSPACE_EXPECT_OK(space.insert_region({.name = "flash0",
                                         .type = RegionType::firmware_memory,
                                         .size = 64_MiB,
                                         .backing = {.source = MemorySource::shmem},
                                         .protection = Protection::read}));
  VMSPACE_EXPECT_OK(space.insert_region({.name = "dimm0",
                                         .base = GuestAddress{8_GiB},
                                         .size = 1_GiB,
                                         .backing = {.source = MemorySource::shmem},
                                         .huge_pages = true,
                                         .hotplug = true}));
  const DeviceRange devices[] = {{"gic", *Range::from_base_size(0x0800'0000, 16_MiB)},
                                 page("uart", 0x0900'0000),
                                 page("rtc", 0x0901'0000)};
  expect_golden(memory_map(space, {.devices = devices}), "map_aarch64.txt");
}

TEST(MemoryMapGolden, OfAnEmptyPc) {
  expect_golden(memory_map(AddressSpaceBase(pc())), "map_pc_empty.txt");
}

TEST(MemoryMapGolden, OfNothing) {
  expect_golden(memory_map(AddressSpaceBase(*AddressSpaceLayout::make({.phys_max = 1_GiB - 1}))),
                "map_nothing.txt");
}

TEST(MemoryMapGolden, OfHostileNames) {
  AddressSpaceBase space(*AddressSpaceLayout::make(
      {.phys_max = 1_GiB - 1,
       .ram = Range::of(0, 1_GiB - 1),
       .apertures = {{"window\r\n", Range::of(0, 512_MiB - 1), ApertureUse::ram}},
       .holes = {{"hole\x1b[2J", Range::of(768_MiB, 1_GiB - 1), HoleKind::unused}}}));
  const auto insert = [&](const std::string& name, const std::string& owner) {
    VMSPACE_EXPECT_OK(space.insert_region(
        {.name = name, .base = GuestAddress(space.size() * 1_MiB), .size = 1_MiB, .owner = owner}));
  };
  insert("two\nlines", "bell\a");
  insert("\x1b[31mred\x1b[0m", "\"quoted\"");
  insert("right to left \xe2\x80\xae", "\xc2\x9b above ASCII");
  insert("not UTF-8 \xff\xc0\x80", std::string("nul \0", 5));
  insert("", "");
  insert("gr\xc3\xbc\xc3\x9f", "\xce\xb1\xce\xb2\xce\xb3");
  insert(std::string(60, 'n') + " is too long for a column", std::string(60, 'o'));
  const DeviceRange devices[] = {{"uart\t0", Range::of(0x1000, 0x1007), "isa\x7f"}};
  expect_golden(memory_map(space, {.devices = devices}), "map_hostile_names.txt");
}

}  // namespace
}  // namespace vmspace::memory_map_golden_test
