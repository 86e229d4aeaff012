// SPDX-License-Identifier: Apache-2.0

#include "vmspace/boot/e820.hpp"

#include <ostream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

namespace vmspace {

std::ostream& operator<<(std::ostream& out, const E820Entry& entry) {
  return out << detail::hex(entry.base.value()) << " + " << detail::hex(entry.size) << " type "
             << static_cast<unsigned>(entry.type);
}

namespace {

using namespace literals;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

AddressSpaceLayout pc(unsigned ecam_buses = 0) {
  return *AddressSpaceLayout::x86_64({.phys_bits = 46, .ecam_buses = ecam_buses});
}

E820Entry ram(std::uint64_t begin, std::uint64_t end) {
  return {GuestAddress{begin}, end - begin, E820Type::ram};
}
E820Entry reserved(std::uint64_t begin, std::uint64_t end) {
  return {GuestAddress{begin}, end - begin, E820Type::reserved};
}

// The same table from a plan, and from the regions made from it.
std::vector<E820Entry> table(const AddressSpaceLayout& layout,
                             std::initializer_list<std::uint64_t> nodes) {
  const auto plan = *layout.plan_ram(nodes);
  AddressSpaceBase space(layout);
  for (const RamPiece& piece : plan) {
    VMSPACE_EXPECT_OK(space.insert_region({.base = piece.base, .size = piece.size}));
  }
  EXPECT_EQ(e820(space), e820(layout, plan));
  return e820(space);
}

TEST(E820, OfA512MiBPc) {
  EXPECT_THAT(table(pc(), {512_MiB}),
              ElementsAre(ram(0, 0x9'fc00), reserved(0x9'fc00, 1_MiB), ram(1_MiB, 512_MiB),
                          reserved(0xfc00'0000, 4_GiB), reserved(0xfd'0000'0000, 1_TiB)));
}

TEST(E820, OfA3GiBPcEndsWhereTheMmioHoleBegins) {
  const auto expected =
      ElementsAre(ram(0, 0x9'fc00), reserved(0x9'fc00, 1_MiB), ram(1_MiB, 0xc000'0000),
                  reserved(0xfc00'0000, 4_GiB), reserved(0xfd'0000'0000, 1_TiB));
  EXPECT_THAT(table(pc(), {3_GiB}), expected);
  EXPECT_THAT(table(pc(), {1536_MiB, 1536_MiB}), expected);  // neighbours of two nodes are merged
}

TEST(E820, OfA4GiBAndA6GiBPcGoesOnAboveTheMmioHole) {
  EXPECT_THAT(table(pc(), {4_GiB}),
              ElementsAre(ram(0, 0x9'fc00), reserved(0x9'fc00, 1_MiB), ram(1_MiB, 0xc000'0000),
                          reserved(0xfc00'0000, 4_GiB), ram(4_GiB, 5_GiB),
                          reserved(0xfd'0000'0000, 1_TiB)));
  EXPECT_THAT(table(pc(), {3_GiB, 3_GiB}),
              ElementsAre(ram(0, 0x9'fc00), reserved(0x9'fc00, 1_MiB), ram(1_MiB, 0xc000'0000),
                          reserved(0xfc00'0000, 4_GiB), ram(4_GiB, 7_GiB),
                          reserved(0xfd'0000'0000, 1_TiB)));
}

TEST(E820, OfA1536GiBPcGoesAroundHyperTransport) {
  EXPECT_THAT(table(pc(), {768_GiB, 768_GiB}),
              ElementsAre(ram(0, 0x9'fc00), reserved(0x9'fc00, 1_MiB), ram(1_MiB, 0xc000'0000),
                          reserved(0xfc00'0000, 4_GiB), ram(4_GiB, 0xfd'0000'0000),
                          reserved(0xfd'0000'0000, 1_TiB), ram(1_TiB, 1_TiB + 525_GiB)));
}

TEST(E820, PciConfigurationSpaceIsReservedAndTheMmioWindowIsInNoEntry) {
  EXPECT_THAT(table(pc(256), {512_MiB}),
              ElementsAre(ram(0, 0x9'fc00), reserved(0x9'fc00, 1_MiB), ram(1_MiB, 512_MiB),
                          reserved(0xc000'0000, 0xd000'0000), reserved(0xfc00'0000, 4_GiB),
                          reserved(0xfd'0000'0000, 1_TiB)));
}

TEST(E820, HolesAreToldApartByTheirKind) {
  const auto layout = *AddressSpaceLayout::make(
      {.phys_max = 1_GiB - 1,
       .ram = Range::of(0, 1_GiB - 1),
       .holes = {{"unused", Range::of(0x1000'0000, 0x10ff'ffff), HoleKind::unused},
                 {"reserved", Range::of(0x2000'0000, 0x20ff'ffff), HoleKind::reserved}}});
  // 256 MiB below the unused hole, 240 MiB up to the reserved one, 16 MiB above it.
  EXPECT_THAT(table(layout, {512_MiB}),
              ElementsAre(ram(0, 0x9'fc00), reserved(0x9'fc00, 1_MiB), ram(1_MiB, 0x1000'0000),
                          ram(0x1100'0000, 0x2000'0000), reserved(0x2000'0000, 0x2100'0000),
                          ram(0x2100'0000, 0x2200'0000)));
}

TEST(E820, OnlyRamThatStaysIsRam) {
  AddressSpaceBase space(pc());
  ASSERT_THAT(space.insert_region({.name = "ram", .size = 512_MiB}), IsOk());
  ASSERT_THAT(space.insert_region(
                  {.name = "dimm", .base = GuestAddress{4_GiB}, .size = 1_GiB, .hotplug = true}),
              IsOk());
  ASSERT_THAT(space.insert_region({.name = "bar",
                                   .type = RegionType::device_memory,
                                   .base = GuestAddress{0xc000'0000},
                                   .size = 1_MiB}),
              IsOk());
  ASSERT_THAT(space.insert_region({.name = "pmem",
                                   .type = RegionType::dax_memory,
                                   .base = GuestAddress{0x2000'0000'0000},
                                   .size = 1_GiB}),
              IsOk());
  ASSERT_THAT(space.insert_region({.name = "firmware",
                                   .type = RegionType::firmware_memory,
                                   .base = GuestAddress{1_GiB},
                                   .size = 1_MiB}),
              IsOk());
  EXPECT_THAT(e820(space),
              ElementsAre(ram(0, 0x9'fc00), reserved(0x9'fc00, 1_MiB), ram(1_MiB, 512_MiB),
                          reserved(1_GiB, 1_GiB + 1_MiB), reserved(0xfc00'0000, 4_GiB),
                          reserved(0xfd'0000'0000, 1_TiB)));
}

TEST(E820, OfAnEmptySpaceHasWhatTheMachineReserves) {
  EXPECT_THAT(e820(AddressSpaceBase(pc())),
              ElementsAre(reserved(0x9'fc00, 1_MiB), reserved(0xfc00'0000, 4_GiB),
                          reserved(0xfd'0000'0000, 1_TiB)));
}

TEST(E820, ListsNothingAboveTheLayoutsEnd) {
  const auto of = [](std::uint64_t phys_max) {
    return e820(AddressSpaceBase(*AddressSpaceLayout::make({.phys_max = phys_max})));
  };
  EXPECT_THAT(of(0xfff), IsEmpty());
  EXPECT_THAT(of(0x9'fbff), IsEmpty());
  EXPECT_THAT(of(0x9'fc00), ElementsAre(reserved(0x9'fc00, 0x9'fc01)));
  EXPECT_THAT(of(0x9'ffff), ElementsAre(reserved(0x9'fc00, 0xa'0000)));
  EXPECT_THAT(of(UINT64_MAX), ElementsAre(reserved(0x9'fc00, 1_MiB)));
}

TEST(E820, ListsNothingAboveTheLastAddressOfAnyPc) {
  constexpr std::uint64_t end = std::uint64_t{1} << 52;
  AddressSpaceBase space(
      *AddressSpaceLayout::make({.phys_max = UINT64_MAX, .ram = Range::whole_domain()}));
  ASSERT_THAT(space.insert_region({.name = "all", .base = GuestAddress{1}, .size = UINT64_MAX}),
              IsOk());
  EXPECT_THAT(e820(space),
              ElementsAre(ram(1, 0x9'fc00), reserved(0x9'fc00, 1_MiB), ram(1_MiB, end)));
}

TEST(E820, RamThatEndsInsideTheLegacyAreaIsCutThere) {
  AddressSpaceBase space(pc());
  ASSERT_THAT(space.insert_region({.name = "tiny", .size = 0xa'0000}), IsOk());
  EXPECT_EQ(e820(space)[0], ram(0, 0x9'fc00));
  EXPECT_EQ(e820(space)[1], reserved(0x9'fc00, 1_MiB));
}

}  // namespace
}  // namespace vmspace
