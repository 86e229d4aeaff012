// SPDX-License-Identifier: Apache-2.0
//
// Where place_region puts a region, what it says where it can't, and that find_place knows both.

#include <cstdint>
#include <random>
#include <string_view>
#include <type_traits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

#include "address_space/space_support.hpp"

namespace vmspace::address_space_base_placing_test {
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

TEST(AddressSpaceBase, ChoosesWhatFindPlaceFindsAndTakesNothing) {
  AddressSpaceBase space = example();
  const AddressSpaceBase before = space;
  for (const Constraint& constraint :
       {Constraint{.size = 64_KiB, .align = 64_KiB}, Constraint{.size = 12_KiB, .align = 8_KiB}}) {
    const auto place = space.choose_place(RegionType::device_memory, constraint, "mmio_low");
    VMSPACE_EXPECT_OK(place);
    EXPECT_EQ(place, before.find_place(RegionType::device_memory, constraint, "mmio_low"));
  }
  const Constraint too_long{.size = 1_GiB};
  EXPECT_EQ(space.choose_place(RegionType::device_memory, too_long, "mmio_low").error(),
            before.find_place(RegionType::device_memory, too_long, "mmio_low")
                .error()
                .in("AddressSpaceBase::choose_place"));
  EXPECT_EQ(space, before);
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

TEST(AddressSpaceBase, PlaceIsNotMisledByTheAlignmentOfTheBacking) {
  AddressSpaceBase space(pc());
  const auto message = [&](BackingSpec backing, std::uint64_t align) {
    return failing(space,
                   [&](AddressSpaceBase& s) {
                     return s.place_region({.name = "dimm", .backing = backing},
                                           {.size = 4_KiB, .align = align}, "ram_low");
                   })
        .message();
  };
  EXPECT_EQ(message({.source = MemorySource::shmem}, 3),
            "AddressSpaceBase::place_region: \"dimm\": invalid alignment: 0x3");
  EXPECT_EQ(message({.source = MemorySource::shmem, .page_size = 12_KiB}, 1),
            "AddressSpaceBase::place_region: \"dimm\": invalid alignment: 0x3000");
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
  EXPECT_THAT(message(bar, {.size = 0}, "mmio_low"), HasSubstr("place_region: \"bar\": "));
}

TEST(AddressSpaceBase, FindPlaceSaysWhereARegionWouldGoOrWhyNowhere) {
  const AddressSpaceBase space = example();
  const auto find = [&](RegionType type, Constraint constraint, std::string_view aperture) {
    return space.find_place(type, constraint, aperture);
  };
  constexpr RegionType bar = RegionType::device_memory;
  EXPECT_THAT(find(bar, {.size = 64_KiB, .align = 64_KiB}, "mmio_low"),
              IsOkAndHolds(Range::of(0xc001'0000, 0xc001'ffff)));
  EXPECT_THAT(find(bar, {.size = 4_KiB, .policy = AllocPolicy::last_match}, "mmio_low"),
              IsOkAndHolds(Range::of(0xfbff'f000, 0xfbff'ffff)));
  EXPECT_THAT(find(bar, {.size = 1, .min = 0xd000'0000}, "mmio_low"),
              IsOkAndHolds(Range::point(0xd000'0000)));
  EXPECT_EQ(
      find(bar, {.size = 1_GiB}, "mmio_low").error().message(),
      "AddressSpaceBase::find_place: no space for 0x40000000 in [0xc0000000, 0xfbffffff]; the "
      "largest free piece is [0xc0010000, 0xfbffffff] (no free range in this aperture fits: "
      "\"mmio_low\")");
  EXPECT_EQ(find(RegionType::default_memory, {.size = 1}, "mmio_low").error().message(),
            "AddressSpaceBase::find_place: wrong state: [0xc0000000, 0xfbffffff] (this aperture "
            "takes device_memory, dax_memory and firmware_memory: \"mmio_low\")");
  EXPECT_THAT(find(bar, {.size = 1, .min = 2, .max = 1}, "mmio_low"),
              HasError(Errc::invalid_range));
}

TEST(AddressSpaceBase, PlaceRegionDoesWhatFindPlaceSays) {
  AddressSpaceBase space = example();
  std::mt19937_64 random(42);
  const auto any = [&](auto... choices) {
    const std::common_type_t<decltype(choices)...> all[] = {choices...};
    return all[random() % sizeof...(choices)];
  };
  int placed = 0;
  int refused = 0;
  for (int round = 0; round < 5000; ++round) {
    const RegionType type = any(RegionType::default_memory, RegionType::device_memory,
                                RegionType::dax_memory, RegionType::firmware_memory);
    const Constraint constraint{
        .size = any(0_KiB, 4_KiB, 8_KiB, 12_KiB, 1_GiB),
        .min = any(0_KiB, 3_GiB, 3_GiB + 256_MiB, UINT64_MAX),
        .max = any(4_GiB - 1, UINT64_MAX),
        .align = any(0_KiB, 1_KiB, 64_KiB, 16_GiB, 3_KiB),
        .policy = any(AllocPolicy::first_match, AllocPolicy::last_match, AllocPolicy::best_match)};
    const std::string_view aperture =
        any("ram_low", "mmio_low", "platform", "ram_high", "mmio_high", "elsewhere");
    const auto found = space.find_place(type, constraint, aperture);
    const auto region = space.place_region({.type = type}, constraint, aperture);
    ASSERT_EQ(found.has_value(), region.has_value()) << "round " << round;
    if (found) {
      ASSERT_EQ((*region)->range(), *found) << "round " << round;
      ++placed;
      // Not all of them stay, so that there are gaps.
      if (random() % 2 == 0) {
        ASSERT_THAT(space.remove_region((*region)->base()), IsOk());
      }
    } else {
      ASSERT_EQ(region.error(), found.error().in("AddressSpaceBase::place_region"));
      ++refused;
    }
  }
  EXPECT_GT(placed, 500);
  EXPECT_GT(refused, 500);
  VMSPACE_EXPECT_OK(space.check_invariants());
}

}  // namespace
}  // namespace vmspace::address_space_base_placing_test
