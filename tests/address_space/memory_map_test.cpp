// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/memory_map.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/fmt.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::memory_map_test {
namespace {

using namespace literals;
using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;

AddressSpaceLayout pc() {
  return *AddressSpaceLayout::x86_64({.phys_bits = 46, .ecam_buses = 16});
}

/// The row of the only region in a space without apertures.
std::string row_of(RegionOptions options) {
  AddressSpaceBase space(
      *AddressSpaceLayout::make({.phys_max = 1_TiB - 1, .ram = Range::of(0, 1_TiB - 1)}));
  VMSPACE_EXPECT_OK(space.insert_region(std::move(options)));
  const std::string map = memory_map(space);
  return map.substr(map.find('\n') + 1);
}

/// The map of a space without apertures in which device ranges of these sizes lie.
std::string map_of(const std::vector<std::uint64_t>& sizes) {
  std::vector<DeviceRange> devices;
  for (const std::uint64_t size : sizes)
    devices.push_back({"d", *Range::from_base_size(devices.size() * 1_TiB, size)});
  return memory_map(AddressSpaceBase(*AddressSpaceLayout::make({.phys_max = 1_GiB - 1})),
                    {.devices = devices});
}

TEST(MemoryMap, LeavesOutEmptyAperturesWhenAsked) {
  AddressSpaceBase space(pc());
  ASSERT_THAT(space.insert_region({.name = "ram", .size = 1_GiB}), IsOk());
  const DeviceRange devices[] = {{"uart", Range::of(0xfc00'0000, 0xfc00'0fff)}};
  EXPECT_EQ(memory_map(space, {.devices = devices, .empty_apertures = false}),
            "range                      name            kind             size (KiB)\n"
            "000000000000-0000bfffffff  ram_low         ram window        3,145,728\n"
            "000000000000-00003fffffff    ram           ram               1,048,576\n"
            "0000fc000000-0000ffffffff  platform        platform window      65,536\n"
            "0000fc000000-0000fc000fff    uart          device                    4\n"
            "00fd00000000-00ffffffffff  hypertransport  reserved         12,582,912\n");
}

TEST(MemoryMap, HasTheColumnsThatItNeeds) {
  const auto headings = [](RegionOptions options) {
    AddressSpaceBase space(pc());
    VMSPACE_EXPECT_OK(space.insert_region(std::move(options)));
    const std::string map = memory_map(space, {.empty_apertures = false});
    const std::string line = map.substr(0, map.find('\n'));
    return line.substr(line.find("(MiB)") + 5);
  };
  const BackingSpec anon{.source = MemorySource::anon};
  EXPECT_EQ(headings({.size = 1_MiB}), "");
  EXPECT_EQ(headings({.size = 1_MiB, .owner = "vmm"}), "  owner");
  EXPECT_EQ(headings({.size = 1_MiB, .backing = anon}), "  backing");
  EXPECT_EQ(headings({.size = 1_MiB, .backing = anon, .numa_node = 0}), "  backing  host node");
  EXPECT_EQ(headings({.size = 1_MiB, .hotplug = true, .owner = "vmm"}), "  owner  remarks");
}

TEST(MemoryMap, NamesTheOwnersOfDeviceRanges) {
  const DeviceRange devices[] = {{"a", Range::of(0, 1023), "isa"}, {"b", Range::of(1024, 2047)}};
  EXPECT_EQ(memory_map(AddressSpaceBase(*AddressSpaceLayout::make({.phys_max = 1_GiB - 1})),
                       {.devices = devices}),
            "range              name  kind    size (KiB)  owner\n"
            "00000000-000003ff  a     device           1  isa\n"
            "00000400-000007ff  b     device           1\n");
}

TEST(MemoryMap, IndentsRegionsInADeviceRangeAroundThem) {
  AddressSpaceBase space(
      *AddressSpaceLayout::make({.phys_max = 1_GiB - 1, .ram = Range::of(0, 1_MiB)}));
  for (const std::uint64_t base : {513_MiB, 514_MiB, 516_MiB}) {
    ASSERT_THAT(space.insert_region({.name = "BAR0",
                                     .type = RegionType::device_memory,
                                     .base = GuestAddress{base},
                                     .size = 1_MiB}),
                IsOk());
  }
  const DeviceRange devices[] = {{"inner bridge", Range::of(514_MiB, 516_MiB - 1)},
                                 {"outer bridge", Range::of(512_MiB, 516_MiB - 1)}};
  EXPECT_EQ(memory_map(space, {.devices = devices}),
            "range              name            kind    size (MiB)\n"
            "20000000-203fffff  outer bridge    device           4\n"
            "20100000-201fffff    BAR0          device           1\n"
            "20200000-203fffff    inner bridge  device           2\n"
            "20200000-202fffff      BAR0        device           1\n"
            "20400000-204fffff  BAR0            device           1\n");
}

TEST(MemoryMap, EndsWithWhatIsParked) {
  AddressSpaceBase space(pc());
  const auto first = space.insert_region({.name = "first", .size = 1_MiB});
  ASSERT_THAT(first, IsOk());
  ASSERT_THAT(space.insert_region({.name = "second", .base = GuestAddress{1_MiB}, .size = 2_MiB}),
              IsOk());
  ASSERT_THAT(space.move_regions({{*first, std::nullopt}}), IsOk());
  EXPECT_THAT(
      memory_map(space),
      EndsWith("200000000000-3fffffffffff  mmio_high         mmio window      33,554,432\n"
               "parked                     first             ram                       1\n"));
}

TEST(MemoryMap, OfNothingIsItsHeadings) {
  EXPECT_EQ(map_of({}), "range  name  kind  size\n");
}

TEST(MemoryMap, GivesAllSizesInTheLargestUnitThatKeepsThemWhole) {
  EXPECT_THAT(map_of({1}), AllOf(HasSubstr("size (B)\n"), HasSubstr(" 1\n")));
  EXPECT_THAT(map_of({1023}), AllOf(HasSubstr("size (B)\n"), HasSubstr(" 1,023\n")));
  EXPECT_THAT(map_of({1_KiB}), AllOf(HasSubstr("size (KiB)\n"), HasSubstr(" 1\n")));
  EXPECT_THAT(map_of({1_GiB + 512_MiB}), AllOf(HasSubstr("size (MiB)\n"), HasSubstr(" 1,536\n")));
  EXPECT_THAT(map_of({768_GiB}), AllOf(HasSubstr("size (GiB)\n"), HasSubstr(" 768\n")));
  EXPECT_THAT(map_of({64_GiB, 4_KiB, 1000_KiB}),
              AllOf(HasSubstr("size (KiB)\n"), HasSubstr("  67,108,864\n"),
                    HasSubstr("           4\n"), HasSubstr("       1,000\n")));
  EXPECT_THAT(map_of({1_TiB, 8}), HasSubstr("  1,099,511,627,776\n"));
}

TEST(MemoryMap, HasRoomForTheWholeDomain) {
  const AddressSpaceBase space(pc());
  const DeviceRange devices[] = {{"everything", Range::whole_domain()},
                                 {"the last byte", Range::point(UINT64_MAX)}};
  EXPECT_THAT(memory_map(space, {.devices = {&devices[0], 1}}),
              AllOf(HasSubstr("\n0000000000000000-ffffffffffffffff  everything "),
                    HasSubstr("  17,592,186,044,416\n"),
                    HasSubstr("\n0000000000000000-00000000bfffffff    ram_low ")));
  EXPECT_THAT(memory_map(space, {.devices = devices}), HasSubstr("  18,446,744,073,709,551,616\n"));
}

TEST(MemoryMap, SaysWhatIsSpecialAboutARegion) {
  EXPECT_EQ(row_of({.name = "dimm0",
                    .base = GuestAddress{1_GiB},
                    .size = 1_GiB,
                    .backing = {.source = MemorySource::hugeshmem, .page_size = 1_GiB},
                    .protection = Protection::none,
                    .numa_node = 12,
                    .huge_pages = true,
                    .hotplug = true,
                    .owner = "vmm"}),
            "0040000000-007fffffff  dimm0  ram            1  vmm    hugeshmem 1 GiB  12         "
            "no read access, huge pages, hotplug\n");
}

TEST(MemoryMap, ANameStaysOnItsLine) {
  EXPECT_THAT(row_of({.name = "evil\n0-1 : \x1b[31m", .size = 1_MiB}),
              HasSubstr(R"( evil\x0a0-1 : \x1b[31m )"));
  EXPECT_THAT(row_of({.size = 1_MiB, .owner = "evil\n0-1 : \x1b[31m"}),
              HasSubstr(R"( evil\x0a0-1 : \x1b[31m)"));
  // A right-to-left override, and a control character above ASCII.
  EXPECT_THAT(row_of({.name = "a\xe2\x80\xae\xc2\x9b", .size = 1_MiB}),
              HasSubstr(R"( a\xe2\x80\xae\xc2\x9b )"));
  EXPECT_THAT(row_of({.name = "gr\xc3\xbc\xc3\x9f", .size = 1_MiB}),
              HasSubstr(" gr\xc3\xbc\xc3\x9f "));
}

TEST(MemoryMap, ALongNameMovesItsOwnRowOnly) {
  const std::string name(1000, 'n');
  const DeviceRange devices[] = {{name, Range::point(0)}, {"d", Range::point(1)}};
  EXPECT_EQ(memory_map(AddressSpaceBase(*AddressSpaceLayout::make({.phys_max = 1_GiB - 1})),
                       {.devices = devices}),
            "range              name  kind    size (B)\n"
            "00000000-00000000  " +
                name +
                "  device         1\n"
                "00000001-00000001  d     device         1\n");
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
}  // namespace vmspace::memory_map_test
