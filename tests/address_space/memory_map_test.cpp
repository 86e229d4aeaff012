// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/memory_map.hpp"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/fmt.hpp"
#include "vmspace/testing.hpp"

namespace vmspace {
namespace {

using namespace literals;
using ::testing::HasSubstr;

AddressSpaceLayout pc() {
  return *AddressSpaceLayout::x86_64({.phys_bits = 46, .ecam_buses = 16});
}

/// A space of one region in a layout without apertures, whose map is one line.
std::string line_of(RegionOptions options) {
  AddressSpaceBase space(
      *AddressSpaceLayout::make({.phys_max = 1_TiB - 1, .ram = Range::of(0, 1_TiB - 1)}));
  VMSPACE_EXPECT_OK(space.insert_region(std::move(options)));
  return memory_map(space);
}

TEST(MemoryMap, ShowsRegionsHolesAndDevicesInsideTheirApertures) {
  AddressSpaceBase space(pc());
  const auto plan = space.layout().plan_ram({4_GiB, 2_GiB});
  for (const RamPiece& piece : *plan) {
    ASSERT_THAT(space.insert_region({.name = "ram",
                                     .base = piece.base,
                                     .size = piece.size,
                                     .backing = {.source = MemorySource::shmem},
                                     .numa_node = piece.node}),
                IsOk());
  }
  ASSERT_THAT(space.insert_region({.name = "firmware",
                                   .type = RegionType::firmware_memory,
                                   .base = GuestAddress{0xffe0'0000},
                                   .size = 2_MiB,
                                   .backing = {.source = MemorySource::anon},
                                   .protection = Protection::read}),
              IsOk());
  ASSERT_THAT(space.place_region({.name = "gpu BAR0", .type = RegionType::device_memory},
                                 {.size = 16_MiB}, "mmio_high"),
              IsOk());
  const DeviceRange devices[] = {{"gpu registers", Range::of(0x2000'0000'0000, 0x2000'0000'0fff)},
                                 {"i/o apic", Range::of(0xfec0'0000, 0xfec0'0fff)},
                                 {"nic0 BAR0", Range::of(0xc100'0000, 0xc100'3fff)}};
  EXPECT_EQ(
      memory_map(space, {.devices = devices}),
      "000000000000-0000bfffffff : ram_low            ram window           3 GiB\n"
      "  000000000000-0000bfffffff : ram              ram                  3 GiB  shmem  node 0\n"
      "0000c0000000-0000c0ffffff : ecam               platform window     16 MiB\n"
      "0000c1000000-0000fbffffff : mmio_low           mmio window        944 MiB\n"
      "  0000c1000000-0000c1003fff : nic0 BAR0        device              16 KiB\n"
      "0000fc000000-0000ffffffff : platform           platform window     64 MiB\n"
      "  0000fec00000-0000fec00fff : i/o apic         device               4 KiB\n"
      "  0000ffe00000-0000ffffffff : firmware         firmware             2 MiB  anon   -       "
      "read-only\n"
      "000100000000-1fffffffffff : ram_high           ram window       32764 GiB\n"
      "  000100000000-00013fffffff : ram              ram                  1 GiB  shmem  node 0\n"
      "  000140000000-0001bfffffff : ram              ram                  2 GiB  shmem  node 1\n"
      "  00fd00000000-00ffffffffff : hypertransport   reserved            12 GiB\n"
      "200000000000-3fffffffffff : mmio_high          mmio window         32 TiB\n"
      "  200000000000-200000ffffff : gpu BAR0         device              16 MiB  -      -\n"
      "    200000000000-200000000fff : gpu registers  device               4 KiB\n");
}

TEST(MemoryMap, LeavesOutEmptyAperturesWhenAsked) {
  AddressSpaceBase space(pc());
  ASSERT_THAT(space.insert_region({.name = "ram", .size = 1_GiB}), IsOk());
  const DeviceRange devices[] = {{"uart", Range::of(0xfc00'0000, 0xfc00'0007)}};
  EXPECT_EQ(memory_map(space, {.devices = devices, .empty_apertures = false}),
            "000000000000-0000bfffffff : ram_low         ram window        3 GiB\n"
            "  000000000000-00003fffffff : ram           ram               1 GiB  -  -\n"
            "0000fc000000-0000ffffffff : platform        platform window  64 MiB\n"
            "  0000fc000000-0000fc000007 : uart          device              8 B\n"
            "00fd00000000-00ffffffffff : hypertransport  reserved         12 GiB\n");
}

TEST(MemoryMap, OfASpaceWithNothingToShowIsEmpty) {
  EXPECT_EQ(memory_map(AddressSpaceBase(*AddressSpaceLayout::make({.phys_max = 1_GiB - 1}))), "");
}

TEST(MemoryMap, SizesAreExactInTheLargestUnitThatGivesQuarters) {
  const auto map = [](std::uint64_t size) { return line_of({.name = "r", .size = size}); };
  EXPECT_THAT(map(1), HasSubstr(" 1 B "));
  EXPECT_THAT(map(1023), HasSubstr(" 1023 B "));
  EXPECT_THAT(map(1_KiB), HasSubstr(" 1 KiB "));
  EXPECT_THAT(map(1_GiB + 512_MiB), HasSubstr(" 1.5 GiB "));
  EXPECT_THAT(map(2_GiB + 256_MiB), HasSubstr(" 2.25 GiB "));
  EXPECT_THAT(map(1_GiB + 128_MiB), HasSubstr(" 1152 MiB "));
  EXPECT_THAT(map(1_GiB + 4_KiB), HasSubstr(" 1048580 KiB "));
  EXPECT_THAT(map(768_GiB), HasSubstr(" 768 GiB "));
}

TEST(MemoryMap, OfADeviceRangeThatIsTheWholeDomainSaysItsSize) {
  const AddressSpaceBase space(pc());
  const DeviceRange everything{"everything", Range::whole_domain()};
  const std::string map = memory_map(space, {.devices = {&everything, 1}});
  EXPECT_THAT(map, HasSubstr("everything"));
  EXPECT_THAT(map, HasSubstr(" 16 EiB"));
}

TEST(MemoryMap, SaysWhatIsSpecialAboutARegion) {
  EXPECT_EQ(line_of({.name = "dimm0",
                     .base = GuestAddress{1_GiB},
                     .size = 1_GiB,
                     .backing = {.source = MemorySource::hugeshmem, .page_size = 1_GiB},
                     .protection = Protection::none,
                     .numa_node = 12,
                     .huge_pages = true,
                     .hotplug = true}),
            "0040000000-007fffffff : dimm0  ram  1 GiB  hugeshmem 1 GiB  node 12  no read access, "
            "huge pages, hotplug\n");
}

TEST(MemoryMap, ANameStaysOnItsLine) {
  EXPECT_THAT(line_of({.name = "evil\n0-1 : \x1b[31m", .size = 1_MiB}),
              HasSubstr(R"( evil\x0a0-1 : \x1b[31m )"));
  // A right-to-left override, and a control character above ASCII.
  EXPECT_THAT(line_of({.name = "a\xe2\x80\xae\xc2\x9b", .size = 1_MiB}),
              HasSubstr(R"( a\xe2\x80\xae\xc2\x9b )"));
  EXPECT_THAT(line_of({.name = "gr\xc3\xbc\xc3\x9f", .size = 1_MiB}),
              HasSubstr(" gr\xc3\xbc\xc3\x9f "));
}

TEST(MemoryMap, IsWhatTheFormatterWrites) {
  AddressSpaceBase space(pc());
  ASSERT_THAT(space.insert_region({.name = "ram", .size = 1_GiB}), IsOk());
  EXPECT_EQ(fmt::format("{}", space), memory_map(space));
}

TEST(Formatters, OfTheAddressSpaceLayer) {
  EXPECT_EQ(fmt::format("{}", GuestAddress{0xfee0'0000}), "0xfee00000");
  EXPECT_EQ(fmt::format("{}", MemorySource::hugeshmem), "hugeshmem");
  EXPECT_EQ(fmt::format("{}", RegionType::dax_memory), "dax");
  const auto region = AddressSpaceRegion::make(
      {.name = "ram", .size = 1_GiB, .backing = {.source = MemorySource::shmem}});
  EXPECT_EQ(fmt::format("{}", **region), "ram ram [0x0-0x3fffffff] shmem");
}

}  // namespace
}  // namespace vmspace
