// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/address_space_base.hpp"

#include <algorithm>
#include <iterator>
#include <ranges>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"

#include "base/iterator_traits.hpp"

namespace vmspace {
namespace {

using namespace literals;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pointee;
using ::testing::Property;

AddressSpaceLayout pc() {
  return *AddressSpaceLayout::x86_64({.phys_bits = 46});
}

RegionOptions ram(std::uint64_t base, std::uint64_t size) {
  return {.name = "ram", .base = GuestAddress{base}, .size = size};
}

RegionOptions device(std::uint64_t base, std::uint64_t size) {
  return {.name = "device",
          .type = RegionType::device_memory,
          .base = GuestAddress{base},
          .size = size};
}

AddressSpaceRegionPtr made(RegionOptions options) {
  return *AddressSpaceRegion::make(std::move(options));
}

/// A pointer to a region that says this.
auto says(RegionOptions options) {
  return Pointee(Property("options", &AddressSpaceRegion::options, std::move(options)));
}

/// RAM at [0, 1 GiB), a device at 0xc000'0000, RAM at [4 GiB, 5 GiB).
AddressSpaceBase example() {
  AddressSpaceBase space(pc());
  EXPECT_TRUE(space.insert_region(ram(4_GiB, 1_GiB)));
  EXPECT_TRUE(space.insert_region(device(0xc000'0000, 64_KiB)));
  EXPECT_TRUE(space.insert_region(ram(0, 1_GiB)));
  return space;
}

std::vector<std::uint64_t> bases(const AddressSpaceBase& space) {
  std::vector<std::uint64_t> all;
  for (const AddressSpaceRegionPtr& region : space)
    all.push_back(region->base().value());
  return all;
}

/// Runs a call that must fail, and checks that the space is what it was.
template <typename Call>
Error failing(AddressSpaceBase& space, Call call) {
  const AddressSpaceBase before = space;
  const auto result = call(space);
  EXPECT_FALSE(result);
  EXPECT_EQ(space, before);
  EXPECT_EQ(bases(space), bases(before));
  const auto sound = space.check_invariants();
  EXPECT_TRUE(sound) << sound.error().message();
  return result ? Error{} : result.error();
}

static_assert(std::ranges::bidirectional_range<AddressSpaceBase>);
static_assert(test::is_bidirectional<AddressSpaceBase::Iterator>);
static_assert(std::is_lvalue_reference_v<std::iter_reference_t<AddressSpaceBase::Iterator>>);

TEST(AddressSpaceBase, IsWalkedInBothDirections) {
  const AddressSpaceBase space = example();
  EXPECT_EQ((*std::prev(space.end()))->base(), GuestAddress{4_GiB});
  EXPECT_EQ(std::prev(space.end(), 3), space.begin());
  std::vector<std::uint64_t> backwards;
  for (auto at = std::reverse_iterator(space.end()); at != std::reverse_iterator(space.begin());
       ++at)
    backwards.push_back((*at)->base().value());
  EXPECT_THAT(backwards, ElementsAre(4_GiB, 0xc000'0000, 0));
}

TEST(AddressSpaceBase, BeginsEmpty) {
  const AddressSpaceBase space(pc());
  EXPECT_TRUE(space.empty());
  EXPECT_EQ(space.size(), 0U);
  EXPECT_EQ(space.begin(), space.end());
  EXPECT_EQ(space.last_addr(), std::nullopt);
  EXPECT_EQ(space.find_region(GuestAddress{0}), nullptr);
  EXPECT_EQ(space.find_region(GuestAddress{UINT64_MAX}), nullptr);
  EXPECT_EQ(space.layout(), pc());
  EXPECT_TRUE(space.check_invariants());
}

TEST(AddressSpaceBase, KeepsRegionsInAddressOrder) {
  const AddressSpaceBase space = example();
  EXPECT_EQ(space.size(), 3U);
  EXPECT_THAT(bases(space), ElementsAre(0, 0xc000'0000, 4_GiB));
  EXPECT_EQ(space.last_addr(), GuestAddress{5_GiB - 1});
  EXPECT_TRUE(space.check_invariants());
  EXPECT_EQ(
      std::count_if(space.begin(), space.end(),
                    [](const AddressSpaceRegionPtr& region) { return region->size() == 1_GiB; }),
      2);
}

TEST(AddressSpaceBase, FindsTheRegionOfEachOfItsBytes) {
  const AddressSpaceBase space = example();
  const auto base_of = [&](std::uint64_t address) {
    const AddressSpaceRegion* region = space.find_region(GuestAddress{address});
    return region == nullptr ? UINT64_MAX : region->base().value();
  };
  EXPECT_EQ(base_of(0), 0U);
  EXPECT_EQ(base_of(1_GiB - 1), 0U);
  EXPECT_EQ(base_of(1_GiB), UINT64_MAX);
  EXPECT_EQ(base_of(0xc000'0000), 0xc000'0000);
  EXPECT_EQ(base_of(0xc000'ffff), 0xc000'0000);
  EXPECT_EQ(base_of(0xc001'0000), UINT64_MAX);
  EXPECT_EQ(base_of(0xfd'0000'0000), UINT64_MAX);
  EXPECT_EQ(base_of(UINT64_MAX), UINT64_MAX);
}

TEST(AddressSpaceBase, AMissAndAnUnsetValueAreDifferentAnswers) {
  AddressSpaceBase space(pc());
  ASSERT_TRUE(space.insert_region(
      {.name = "bound", .size = 1_MiB, .backing = {.source = MemorySource::anon}, .numa_node = 1}));
  ASSERT_TRUE(space.insert_region({.name = "unbound", .base = GuestAddress{1_MiB}, .size = 1_MiB}));
  ASSERT_TRUE(space.insert_region({.name = "dax",
                                   .type = RegionType::dax_memory,
                                   .base = GuestAddress{0xc000'0000},
                                   .size = 1_MiB,
                                   .protection = Protection::read}));
  EXPECT_EQ(*space.numa_node_id(GuestAddress{0}), 1U);
  EXPECT_EQ(*space.numa_node_id(GuestAddress{1_MiB}), std::nullopt);
  EXPECT_EQ(space.numa_node_id(GuestAddress{2_MiB}).error().code, Errc::not_found);
  EXPECT_EQ(space.numa_node_id(GuestAddress{2_MiB}).error().first, Operand::address(2_MiB));
  EXPECT_EQ(*space.is_dax_region(GuestAddress{0}), false);
  EXPECT_EQ(*space.is_dax_region(GuestAddress{0xc000'0000}), true);
  EXPECT_EQ(space.is_dax_region(GuestAddress{2_MiB}).error().code, Errc::not_found);
  EXPECT_EQ(*space.prot_flags(GuestAddress{0}), Protection::read_write);
  EXPECT_EQ(*space.prot_flags(GuestAddress{0xc00f'ffff}), Protection::read);
  EXPECT_EQ(space.prot_flags(GuestAddress{UINT64_MAX}).error().code, Errc::not_found);
}

TEST(AddressSpaceBase, InsertRefusesWhatOverlapsNamingTheLowestRegionInTheWay) {
  AddressSpaceBase space = example();
  ASSERT_TRUE(space.insert_region(ram(1_GiB + 8_KiB, 4_KiB)));
  const Error error =
      failing(space, [](AddressSpaceBase& s) { return s.insert_region(ram(1_GiB - 1, 1_GiB)); });
  EXPECT_EQ(error, (Error{.code = Errc::overlap,
                          .operation = "AddressSpaceBase::insert_region",
                          .first = Operand::span(1_GiB - 1, 1_GiB),
                          .second = Operand::span(0, 1_GiB),
                          .reason = "the region there",
                          .text = {"ram", "ram"}}));
  EXPECT_EQ(
      failing(space, [](AddressSpaceBase& s) { return s.insert_region(ram(1_GiB, 1_GiB)); }).second,
      Operand::span(1_GiB + 8_KiB, 4_KiB));
  EXPECT_EQ(failing(space, [](AddressSpaceBase& s) { return s.insert_region(ram(0, 1_GiB)); }).code,
            Errc::overlap);
  EXPECT_TRUE(space.insert_region(ram(1_GiB, 8_KiB)));  // just fits between two
}

TEST(AddressSpaceBase, InsertRefusesWhatTheLayoutHasNoPlaceFor) {
  AddressSpaceBase space = example();
  const auto code = [&](RegionOptions options) {
    return failing(space, [&](AddressSpaceBase& s) { return s.insert_region(options); }).code;
  };
  EXPECT_EQ(code(ram(2_GiB, 1_GiB + 4_KiB)), Errc::overlap);             // over the MMIO hole
  EXPECT_EQ(code(ram(0xfd'0000'0000 - 4_KiB, 8_KiB)), Errc::overlap);    // over the AMD hole
  EXPECT_EQ(code(ram(0xfe'0000'0000, 4_KiB)), Errc::overlap);            // inside it
  EXPECT_EQ(code(device(2_GiB, 4_KiB)), Errc::overlap);                  // where RAM goes
  EXPECT_EQ(code(device(0xfbff'f000, 8_KiB)), Errc::out_of_bounds);      // over an aperture's edge
  EXPECT_EQ(code(ram(0x4000'0000'0000, 4_KiB)), Errc::out_of_bounds);    // past phys_max
  EXPECT_EQ(code(ram(UINT64_MAX - 0xfff, 4_KiB)), Errc::out_of_bounds);  // ends at 2^64
  EXPECT_EQ(code(ram(0, UINT64_MAX)), Errc::out_of_bounds);
  EXPECT_EQ(code(ram(1_GiB, 0)), Errc::zero_size);
  EXPECT_EQ(code(ram(UINT64_MAX, 2)), Errc::overflow);
  RegionOptions misaligned = ram(1_GiB + 1, 4_KiB);
  misaligned.backing.source = MemorySource::shmem;
  EXPECT_EQ(code(misaligned), Errc::misaligned);
}

TEST(AddressSpaceBase, AnErrorOfTheLayoutSaysWhichCallFailed) {
  AddressSpaceBase space(pc());
  EXPECT_EQ(failing(space, [](AddressSpaceBase& s) { return s.insert_region(ram(3_GiB, 4_KiB)); })
                .message(),
            "AddressSpaceBase::insert_region: \"ram\": [0xc0000000, 0xc0000fff] overlaps "
            "[0xc0000000, 0xfbffffff] "
            "(an aperture for something else: \"mmio_low\")");
}

TEST(AddressSpaceBase, TakesRegionsUpToTheLastByteOfTheLayout) {
  AddressSpaceBase space(
      *AddressSpaceLayout::make({.phys_max = UINT64_MAX - 1, .ram = Range::of(0, UINT64_MAX - 1)}));
  ASSERT_TRUE(space.insert_region(ram(0, 1)));
  ASSERT_TRUE(space.insert_region(ram(UINT64_MAX - 1, 1)));
  EXPECT_EQ(
      failing(space, [](AddressSpaceBase& s) { return s.insert_region(ram(UINT64_MAX, 1)); }).code,
      Errc::out_of_bounds);
  EXPECT_TRUE(space.insert_region(ram(1, UINT64_MAX - 2)));
  EXPECT_EQ(space.size(), 3U);
  EXPECT_EQ(space.find_region(GuestAddress{UINT64_MAX - 2})->base(), GuestAddress{1});
  EXPECT_TRUE(space.check_invariants());
}

TEST(AddressSpaceBase, TakesRegionsUpToTheLastByteOf64Bits) {
  AddressSpaceBase space(
      *AddressSpaceLayout::make({.phys_max = UINT64_MAX, .ram = Range::whole_domain()}));
  ASSERT_TRUE(space.insert_region(ram(UINT64_MAX, 1)));
  EXPECT_EQ(space.find_region(GuestAddress{UINT64_MAX})->size(), 1U);
  EXPECT_EQ(space.last_addr(), GuestAddress{UINT64_MAX});
  ASSERT_TRUE(space.insert_region(ram(0, UINT64_MAX)));
  EXPECT_TRUE(space.check_invariants());
  ASSERT_TRUE(space.remove_region(GuestAddress{UINT64_MAX}));
  ASSERT_TRUE(space.insert_region(ram(UINT64_MAX, 1)));

  AddressSpaceBase holed(*AddressSpaceLayout::make(
      {.phys_max = UINT64_MAX,
       .ram = Range::whole_domain(),
       .holes = {{"bottom", Range::point(0)}, {"top", Range::point(UINT64_MAX)}}}));
  ASSERT_TRUE(holed.insert_region(ram(1, UINT64_MAX - 1)));
  EXPECT_TRUE(holed.check_invariants());
  EXPECT_EQ(
      failing(holed, [](AddressSpaceBase& s) { return s.insert_region(ram(UINT64_MAX, 1)); }).code,
      Errc::overlap);
}

TEST(AddressSpaceBase, RemoveGivesTheRegionBackAndFreesItsPlace) {
  AddressSpaceBase space = example();
  const AddressSpaceBase before = space;
  const AddressSpaceRegionPtr region = *std::next(space.begin());
  const auto removed = space.remove_region(GuestAddress{0xc000'0000});
  ASSERT_TRUE(removed);
  EXPECT_EQ(*removed, region);
  EXPECT_EQ(space.size(), 2U);
  EXPECT_EQ(space.find_region(GuestAddress{0xc000'0000}), nullptr);
  EXPECT_TRUE(space.check_invariants());
  ASSERT_TRUE(space.insert_region(*removed));
  EXPECT_EQ(space, before);
}

TEST(AddressSpaceBase, RemoveNeedsTheBaseOfARegion) {
  AddressSpaceBase space = example();
  for (const std::uint64_t address : {std::uint64_t{1}, 1_GiB - 1, 1_GiB, UINT64_MAX}) {
    const Error error =
        failing(space, [&](AddressSpaceBase& s) { return s.remove_region(GuestAddress{address}); });
    EXPECT_EQ(error.code, Errc::not_found);
    EXPECT_EQ(error.first, Operand::address(address));
  }
}

TEST(AddressSpaceBase, RemovingEverythingGivesAnEmptySpace) {
  AddressSpaceBase space = example();
  for (const std::uint64_t base : bases(space)) {
    ASSERT_TRUE(space.remove_region(GuestAddress{base}));
  }
  EXPECT_EQ(space, AddressSpaceBase(pc()));
  EXPECT_TRUE(space.check_invariants());
}

TEST(AddressSpaceBase, MoveTakesTheRegionWithAllItsProperties) {
  AddressSpaceBase space = example();
  const auto moved = space.move_region(GuestAddress{0xc000'0000}, GuestAddress{0x2000'0000'0000});
  ASSERT_TRUE(moved);
  EXPECT_THAT(bases(space), ElementsAre(0, 4_GiB, 0x2000'0000'0000));
  EXPECT_THAT(*moved, says(device(0x2000'0000'0000, 64_KiB)));
  EXPECT_EQ(space.find_region(GuestAddress{0x2000'0000'ffff}), moved->get());
  EXPECT_EQ(space.size(), 3U);
  EXPECT_TRUE(space.check_invariants());
}

TEST(AddressSpaceBase, MoveMayOverlapTheOldPlaceOrGoNowhere) {
  AddressSpaceBase space = example();
  ASSERT_TRUE(space.move_region(GuestAddress{0xc000'0000}, GuestAddress{0xc000'1000}));
  EXPECT_THAT(bases(space), ElementsAre(0, 0xc000'1000, 4_GiB));
  EXPECT_TRUE(space.check_invariants());
  ASSERT_TRUE(space.move_region(GuestAddress{0xc000'1000}, GuestAddress{0xc000'0000}));
  ASSERT_TRUE(space.move_region(GuestAddress{0xc000'0000}, GuestAddress{0xc000'0000}));
  EXPECT_EQ(space, example());
  ASSERT_TRUE(space.move_region(GuestAddress{0xc000'0000}, GuestAddress{0xc001'0000}));  // touches
  EXPECT_THAT(bases(space), ElementsAre(0, 0xc001'0000, 4_GiB));
  EXPECT_TRUE(space.check_invariants());
}

TEST(AddressSpaceBase, MoveHappensWhollyOrNotAtAll) {
  AddressSpaceBase space = example();
  ASSERT_TRUE(space.insert_region(device(0xd000'0000, 4_KiB)));
  const auto error = [&](std::uint64_t from, std::uint64_t to) {
    return failing(space, [&](AddressSpaceBase& s) {
      return s.move_region(GuestAddress{from}, GuestAddress{to});
    });
  };
  EXPECT_EQ(error(0xc000'0000, 0xcfff'f000), (Error{.code = Errc::overlap,
                                                    .operation = "AddressSpaceBase::move_region",
                                                    .first = Operand::span(0xcfff'f000, 64_KiB),
                                                    .second = Operand::span(0xd000'0000, 4_KiB),
                                                    .reason = "the region there",
                                                    .text = {"device", "device"}}));
  EXPECT_EQ(error(0xc000'0000, 0).code, Errc::overlap);  // where RAM goes
  EXPECT_EQ(error(0xc000'0000, 0xfbff'8000).code, Errc::out_of_bounds);
  EXPECT_EQ(error(0xc000'0000, UINT64_MAX).code, Errc::overflow);
  EXPECT_EQ(error(0xc000'8000, 0xe000'0000).code, Errc::not_found);
}

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
  EXPECT_TRUE(space.check_invariants());
}

TEST(AddressSpaceBase, PlaceKeepsOffHolesAndAlignsToTheBackingsPages) {
  AddressSpaceBase space(pc());
  ASSERT_TRUE(space.insert_region(ram(4_GiB, 1007_GiB)));
  // 1 GiB is left below the HyperTransport hole.
  EXPECT_EQ((*space.place_region({.name = "ram"}, {.size = 2_GiB}, "ram_high"))->base(),
            GuestAddress{1024_GiB});
  ASSERT_TRUE(space.insert_region(ram(0, 4_KiB)));
  EXPECT_EQ((*space.place_region({.name = "huge", .backing = {.source = MemorySource::hugeshmem}},
                                 {.size = 4_MiB}, "ram_low"))
                ->base(),
            GuestAddress{2_MiB});
  EXPECT_TRUE(space.check_invariants());
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
                   .reason = "in the aperture",
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
            "AddressSpaceBase::place_region: \"bar\": wrong state: [0xc0000000, 0xfbffffff] (set "
            ".type to "
            "device_memory, dax_memory or firmware_memory, as this takes: \"mmio_low\")");
  const RegionOptions bar{.name = "bar", .type = RegionType::device_memory};
  EXPECT_THAT(message(bar, {.size = 4_KiB}, "ram_low"),
              HasSubstr("set .type to default_memory or firmware_memory, as this takes"));
  EXPECT_EQ(message(bar, {.size = 4_KiB, .max = 0xbfff'ffff}, "mmio_low"),
            "AddressSpaceBase::place_region: \"bar\": no space for 0x1000 in [0xc0000000, "
            "0xfbffffff] (the "
            "constraint's window lies outside of the aperture: \"mmio_low\")");
  AddressSpaceBase bare(*AddressSpaceLayout::make({.phys_max = UINT64_MAX}));
  EXPECT_EQ(bare.place_region(bar, {.size = 4_KiB}, "x").error().message(),
            "AddressSpaceBase::place_region: \"x\": not found (the layout has no apertures)");
}

TEST(AddressSpaceBase, FromRegionsTakesThemInAnyOrder) {
  const auto space = AddressSpaceBase::from_regions(
      pc(), {made(ram(4_GiB, 1_GiB)), made(ram(0, 1_GiB)), made(device(0xc000'0000, 64_KiB))});
  ASSERT_TRUE(space);
  EXPECT_EQ(*space, example());
  const auto overlapping =
      AddressSpaceBase::from_regions(pc(), {made(ram(0, 1_GiB)), made(ram(1_GiB - 1, 1))});
  EXPECT_EQ(overlapping.error().code, Errc::overlap);
  EXPECT_TRUE(AddressSpaceBase::from_regions(pc(), {}));
}

TEST(AddressSpaceBase, HoldsTheRegionItselfAndGivesIt) {
  AddressSpaceBase space(pc());
  const AddressSpaceRegionPtr region = made(ram(0, 1_GiB));
  EXPECT_EQ(*space.insert_region(region), region);
  EXPECT_EQ(space.find_region(GuestAddress{0}), region.get());
  EXPECT_EQ(*space.begin(), region);
  AddressSpaceBase other(pc());
  ASSERT_TRUE(other.insert_region(region));  // spaces may share it
  EXPECT_EQ(other, space);
  EXPECT_EQ(*space.remove_region(GuestAddress{0}), region);
  EXPECT_EQ(other.find_region(GuestAddress{0}), region.get());
}

TEST(AddressSpaceBase, RefusesANullPointer) {
  AddressSpaceBase space = example();
  const auto insert_null = [](AddressSpaceBase& s) { return s.insert_region(nullptr); };
  EXPECT_EQ(failing(space, insert_null).code, Errc::invalid_argument);
  EXPECT_EQ(AddressSpaceBase::from_regions(pc(), {nullptr}).error().code, Errc::invalid_argument);
}

TEST(AddressSpaceBase, CopiesAreIndependentAndShareRegions) {
  AddressSpaceBase space = example();
  const AddressSpaceBase copy = space;
  const AddressSpaceRegion* region = copy.find_region(GuestAddress{0});
  EXPECT_EQ(space.find_region(GuestAddress{0}), region);
  EXPECT_EQ(space.remove_region(GuestAddress{0})->get(), region);
  EXPECT_EQ(copy, example());
  EXPECT_EQ(copy.find_region(GuestAddress{0}), region);
  EXPECT_NE(space, copy);
}

TEST(AddressSpaceBase, EqualityComparesWhatRegionsSay) {
  EXPECT_EQ(example(), example());
  AddressSpaceBase other(pc());
  ASSERT_TRUE(other.insert_region(ram(4_GiB, 1_GiB)));
  ASSERT_TRUE(other.insert_region(device(0xc000'0000, 64_KiB)));
  RegionOptions renamed = ram(0, 1_GiB);
  renamed.name = "other";
  ASSERT_TRUE(other.insert_region(renamed));
  EXPECT_NE(other, example());
  EXPECT_NE(AddressSpaceBase(pc()),
            AddressSpaceBase(*AddressSpaceLayout::x86_64({.phys_bits = 47})));
}

TEST(Diff, NamesWhatOnlyTheOneOrTheOtherHas) {
  const AddressSpaceBase before = example();
  EXPECT_TRUE(diff(before, before).empty());
  EXPECT_TRUE(diff(before, example()).empty());

  AddressSpaceBase after = before;
  ASSERT_TRUE(after.remove_region(GuestAddress{0}));
  RegionOptions changed = ram(0, 1_GiB);
  changed.owner = 1;
  ASSERT_TRUE(after.insert_region(changed));
  ASSERT_TRUE(after.move_region(GuestAddress{0xc000'0000}, GuestAddress{0xe000'0000}));
  ASSERT_TRUE(after.insert_region(ram(8_GiB, 1_GiB)));
  const RegionDiff forward = diff(before, after);
  EXPECT_THAT(forward.removed, ElementsAre(says(ram(0, 1_GiB)), says(device(0xc000'0000, 64_KiB))));
  EXPECT_THAT(forward.added, ElementsAre(says(changed), says(device(0xe000'0000, 64_KiB)),
                                         says(ram(8_GiB, 1_GiB))));
  const RegionDiff back = diff(after, before);
  EXPECT_EQ(back.removed, forward.added);
  EXPECT_EQ(back.added, forward.removed);
}

TEST(Diff, WithAnEmptySpaceIsEverything) {
  const AddressSpaceBase none(pc());
  EXPECT_EQ(diff(none, example()).added.size(), 3U);
  EXPECT_THAT(diff(none, example()).removed, IsEmpty());
  EXPECT_EQ(diff(example(), none).removed.size(), 3U);
}

}  // namespace
}  // namespace vmspace
