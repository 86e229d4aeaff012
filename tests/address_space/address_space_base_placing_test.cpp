// SPDX-License-Identifier: Apache-2.0
//
// Where place_region puts a region, and what it says where it can't.

#include <cstdint>
#include <string_view>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

#include "address_space/space_support.hpp"

namespace vmspace {
namespace {

using namespace literals;
using namespace test;
using ::testing::HasSubstr;

TEST(AddressSpaceBase, PlaceFindsAnAddressInsideTheAperture) {
  AddressSpaceBase space = example();
  const RegionOptions bar{.name = "bar", .type = RegionType::device_memory};
  EXPECT_EQ((*space.place_region(bar, {.size = 64_KiB, .align = 64_KiB}, "mmio_low"))->base(),
            GuestAddress{0xc001'0000});
  EXPECT_EQ((*space.place_region(bar, {.size = 16_MiB, .align = 16_MiB}, "mmio_high"))->base(),
            GuestAddress{0x2000'0000'0000});
  EXPECT_EQ(
      (*space.place_region(bar, {.size = 4_KiB, .policy = AllocPolicy::last_match}, "mmio_low"))
          ->base(),
      GuestAddress{0xfbff'f000});
  EXPECT_EQ((*space.place_region(bar, {.size = 4_KiB, .min = 0xd000'0000, .max = 0xd000'0fff},
                                 "mmio_low"))
                ->base(),
            GuestAddress{0xd000'0000});
  EXPECT_EQ(space.find_region(GuestAddress{0xd000'0000})->name(), "bar");
  EXPECT_EQ(space.size(), 7U);
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST(AddressSpaceBase, PlaceKeepsOffHolesAndAlignsToTheBackingsPages) {
  AddressSpaceBase space(pc());
  ASSERT_THAT(space.insert_region(ram(4_GiB, 1007_GiB)), IsOk());
  // 1 GiB is left below the HyperTransport hole.
  EXPECT_EQ((*space.place_region({.name = "ram"}, {.size = 2_GiB}, "ram_high"))->base(),
            GuestAddress{1024_GiB});
  ASSERT_THAT(space.insert_region(ram(0, 4_KiB)), IsOk());
  EXPECT_EQ((*space.place_region({.name = "huge", .backing = {.source = MemorySource::hugeshmem}},
                                 {.size = 4_MiB}, "ram_low"))
                ->base(),
            GuestAddress{2_MiB});
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST(AddressSpaceBase, PlaceRefusesWhatCannotBePlaced) {
  AddressSpaceBase space = example();
  const RegionOptions bar{.name = "bar", .type = RegionType::device_memory};
  const auto error = [&](RegionOptions options, Constraint constraint, std::string_view aperture) {
    return failing(
        space, [&](AddressSpaceBase& s) { return s.place_region(options, constraint, aperture); });
  };
  EXPECT_EQ(error(bar, {.size = 4_KiB}, "nowhere").code, Errc::not_found);
  EXPECT_EQ(error(bar, {.size = 4_KiB}, "ram_low").code, Errc::bad_state);
  EXPECT_EQ(error({.name = "ram"}, {.size = 4_KiB}, "mmio_low").code, Errc::bad_state);
  EXPECT_EQ(error(bar, {.size = 0}, "mmio_low").code, Errc::zero_size);
  EXPECT_EQ(error(bar, {.size = 4_KiB, .min = 2, .max = 1}, "mmio_low").code, Errc::invalid_range);
  EXPECT_EQ(error(bar, {.size = 4_KiB, .align = 3}, "mmio_low").code, Errc::bad_alignment);
  EXPECT_EQ(error(device(0xd000'0000, 4_KiB), {.size = 4_KiB}, "mmio_low").code,
            Errc::invalid_argument);
  EXPECT_EQ(error(device(0, 8_KiB), {.size = 4_KiB}, "mmio_low").code, Errc::invalid_argument);
  EXPECT_EQ(error({.type = RegionType::dax_memory, .backing = {.source = MemorySource::hugeshmem}},
                  {.size = 4_KiB}, "mmio_low")
                .code,
            Errc::misaligned);
  EXPECT_EQ(error(bar, {.size = 1_GiB}, "mmio_low"),
            (Error{.code = Errc::no_space,
                   .operation = "AddressSpaceBase::place_region",
                   .first = Operand::size(1_GiB),
                   .second = Operand::range(0xc000'0000, 0xfbff'ffff),
                   .available = Operand::range(0xc001'0000, 0xfbff'ffff),
                   .reason = "no free range in this aperture fits",
                   .text = {"bar", "mmio_low"}}));
  EXPECT_EQ(error(bar, {.size = 4_KiB, .max = 0xbfff'ffff}, "mmio_low").code, Errc::no_space);
  EXPECT_EQ(error(bar, {.size = UINT64_MAX}, "mmio_high").code, Errc::no_space);
}

TEST(AddressSpaceBase, PlaceSaysWhichAperturesThereAreAndWhatEachTakes) {
  AddressSpaceBase space = example();
  const auto message = [&](RegionOptions options, Constraint constraint,
                           std::string_view aperture) {
    return failing(
               space,
               [&](AddressSpaceBase& s) { return s.place_region(options, constraint, aperture); })
        .message();
  };
  EXPECT_EQ(message({.name = "bar"}, {.size = 4_KiB}, "mmio_hgih"),
            "AddressSpaceBase::place_region: \"mmio_hgih\": not found (the layout's apertures are: "
            "\"ram_low, mmio_low, "
            "platform, ram_high, mmio_high\")");
  EXPECT_EQ(message({.name = "bar"}, {.size = 4_KiB}, "mmio_low"),
            "AddressSpaceBase::place_region: \"bar\": wrong state: [0xc0000000, 0xfbffffff] (this "
            "aperture takes device_memory, dax_memory and firmware_memory: \"mmio_low\")");
  const RegionOptions bar{.name = "bar", .type = RegionType::device_memory};
  EXPECT_THAT(message(bar, {.size = 4_KiB}, "ram_low"),
              HasSubstr("this aperture takes default_memory and firmware_memory"));
  EXPECT_EQ(message(bar, {.size = 4_KiB, .max = 0xbfff'ffff}, "mmio_low"),
            "AddressSpaceBase::place_region: \"bar\": no space for 0x1000 in [0xc0000000, "
            "0xfbffffff] (the constraint's min and max must overlap the aperture: \"mmio_low\")");
  AddressSpaceBase bare(*AddressSpaceLayout::make({.phys_max = UINT64_MAX}));
  EXPECT_EQ(bare.place_region(bar, {.size = 4_KiB}, "x").error().message(),
            "AddressSpaceBase::place_region: \"x\": not found (the layout has no apertures)");
}

}  // namespace
}  // namespace vmspace
