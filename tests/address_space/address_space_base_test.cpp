// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/address_space_base.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <ranges>
#include <type_traits>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

#include "address_space/space_support.hpp"
#include "base/iterator_traits.hpp"

namespace vmspace::address_space_base_test {
namespace {

using namespace literals;
using namespace test;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

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
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST(AddressSpaceBase, KeepsRegionsInAddressOrder) {
  const AddressSpaceBase space = example();
  EXPECT_EQ(space.size(), 3U);
  EXPECT_THAT(bases(space), ElementsAre(0, 0xc000'0000, 4_GiB));
  EXPECT_EQ(space.last_addr(), GuestAddress{5_GiB - 1});
  VMSPACE_EXPECT_OK(space.check_invariants());
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

TEST(AddressSpaceBase, OverlappingGivesTheRegionsThatHaveAByteOfTheRange) {
  const AddressSpaceBase space = example();
  const auto within = [&](std::uint64_t base, std::uint64_t size) {
    std::vector<std::uint64_t> found;
    for (const AddressSpaceRegionPtr& region : space.overlapping({GuestAddress{base}, size}))
      found.push_back(region->base().value());
    return found;
  };
  EXPECT_THAT(within(0, UINT64_MAX), ElementsAre(0, 0xc000'0000, 4_GiB));
  EXPECT_THAT(within(1_GiB - 1, 1), ElementsAre(0));
  EXPECT_THAT(within(1_GiB - 1, 0xc000'0000 - 1_GiB + 1), ElementsAre(0)) << "adjacent";
  EXPECT_THAT(within(1_GiB - 1, 0xc000'0000 - 1_GiB + 2), ElementsAre(0, 0xc000'0000));
  EXPECT_THAT(within(0xc000'8000, 4_GiB), ElementsAre(0xc000'0000, 4_GiB));
  EXPECT_THAT(within(1_GiB, 1_GiB), IsEmpty()) << "between two";
  EXPECT_THAT(within(0xfd'0000'0000, 4096), IsEmpty()) << "in a hole of the layout";
  EXPECT_THAT(within(5_GiB, UINT64_MAX - 5_GiB), IsEmpty()) << "above all";
}

TEST(AddressSpaceBase, OverlappingTakesWhateverRangeAGuestChose) {
  const AddressSpaceBase space = example();
  EXPECT_TRUE(space.overlapping({GuestAddress{0}, 0}).empty()) << "an empty range has no byte";
  EXPECT_TRUE(space.overlapping({GuestAddress{UINT64_MAX}, UINT64_MAX}).empty()) << "no wrapping";
  EXPECT_EQ(space.overlapping({GuestAddress{4_GiB}, UINT64_MAX}).front()->base(),
            GuestAddress{4_GiB});
  EXPECT_TRUE(AddressSpaceBase(pc()).overlapping({GuestAddress{0}, UINT64_MAX}).empty());
}

TEST(AddressSpaceBase, OverlappingLeavesOutWhatIsParked) {
  AddressSpaceBase space = example();
  const AddressSpaceRegionPtr device = *std::next(space.begin());
  VMSPACE_ASSERT_OK(space.move_regions({{.region = device}}));
  EXPECT_TRUE(space.overlapping(device->guest_range()).empty());
}

TEST(AddressSpaceBase, AMissAndAnUnsetValueAreDifferentAnswers) {
  AddressSpaceBase space(pc());
  ASSERT_THAT(space.insert_region({.name = "bound",
                                   .size = 1_MiB,
                                   .backing = {.source = MemorySource::anon},
                                   .numa_node = 1}),
              IsOk());
  ASSERT_THAT(space.insert_region({.name = "unbound", .base = GuestAddress{1_MiB}, .size = 1_MiB}),
              IsOk());
  ASSERT_THAT(space.insert_region({.name = "dax",
                                   .type = RegionType::dax_memory,
                                   .base = GuestAddress{0xc000'0000},
                                   .size = 1_MiB,
                                   .protection = Protection::read}),
              IsOk());
  EXPECT_EQ(*space.numa_node_id(GuestAddress{0}), 1U);
  EXPECT_EQ(*space.numa_node_id(GuestAddress{1_MiB}), std::nullopt);
  EXPECT_THAT(space.numa_node_id(GuestAddress{2_MiB}), HasError(Errc::not_found));
  EXPECT_EQ(space.numa_node_id(GuestAddress{2_MiB}).error().first, Operand::address(2_MiB));
  EXPECT_EQ(*space.is_dax_region(GuestAddress{0}), false);
  EXPECT_EQ(*space.is_dax_region(GuestAddress{0xc000'0000}), true);
  EXPECT_THAT(space.is_dax_region(GuestAddress{2_MiB}), HasError(Errc::not_found));
  EXPECT_EQ(*space.prot_flags(GuestAddress{0}), Protection::read_write);
  EXPECT_EQ(*space.prot_flags(GuestAddress{0xc00f'ffff}), Protection::read);
  EXPECT_THAT(space.prot_flags(GuestAddress{UINT64_MAX}), HasError(Errc::not_found));
}

TEST(AddressSpaceBase, InsertRefusesWhatOverlapsNamingTheLowestRegionInTheWay) {
  AddressSpaceBase space = example();
  ASSERT_THAT(space.insert_region(ram(1_GiB + 8_KiB, 4_KiB)), IsOk());
  const Error error =
      failing(space, [](AddressSpaceBase& s) { return s.insert_region(ram(1_GiB - 1, 1_GiB)); });
  EXPECT_EQ(error, (Error{.code = Errc::overlap,
                          .operation = "AddressSpaceBase::insert_region",
                          .first = Operand::span(1_GiB - 1, 1_GiB),
                          .second = Operand::span(0, 1_GiB),
                          .reason = "another region is there",
                          .text = {"ram", "ram"}}));
  EXPECT_EQ(
      failing(space, [](AddressSpaceBase& s) { return s.insert_region(ram(1_GiB, 1_GiB)); }).second,
      Operand::span(1_GiB + 8_KiB, 4_KiB));
  EXPECT_EQ(failing(space, [](AddressSpaceBase& s) { return s.insert_region(ram(0, 1_GiB)); }).code,
            Errc::overlap);
  VMSPACE_EXPECT_OK(space.insert_region(ram(1_GiB, 8_KiB)));  // just fits between two
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
            "(this aperture does not take regions of this type: \"mmio_low\")");
}

TEST(AddressSpaceBase, TakesRegionsUpToTheLastByteOfTheLayout) {
  AddressSpaceBase space(
      *AddressSpaceLayout::make({.phys_max = UINT64_MAX - 1, .ram = Range::of(0, UINT64_MAX - 1)}));
  ASSERT_THAT(space.insert_region(ram(0, 1)), IsOk());
  ASSERT_THAT(space.insert_region(ram(UINT64_MAX - 1, 1)), IsOk());
  EXPECT_EQ(
      failing(space, [](AddressSpaceBase& s) { return s.insert_region(ram(UINT64_MAX, 1)); }).code,
      Errc::out_of_bounds);
  VMSPACE_EXPECT_OK(space.insert_region(ram(1, UINT64_MAX - 2)));
  EXPECT_EQ(space.size(), 3U);
  EXPECT_EQ(space.find_region(GuestAddress{UINT64_MAX - 2})->base(), GuestAddress{1});
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST(AddressSpaceBase, TakesRegionsUpToTheLastByteOf64Bits) {
  AddressSpaceBase space(
      *AddressSpaceLayout::make({.phys_max = UINT64_MAX, .ram = Range::whole_domain()}));
  ASSERT_THAT(space.insert_region(ram(UINT64_MAX, 1)), IsOk());
  EXPECT_EQ(space.find_region(GuestAddress{UINT64_MAX})->size(), 1U);
  EXPECT_EQ(space.last_addr(), GuestAddress{UINT64_MAX});
  ASSERT_THAT(space.insert_region(ram(0, UINT64_MAX)), IsOk());
  VMSPACE_EXPECT_OK(space.check_invariants());
  ASSERT_THAT(space.remove_region(GuestAddress{UINT64_MAX}), IsOk());
  ASSERT_THAT(space.insert_region(ram(UINT64_MAX, 1)), IsOk());

  AddressSpaceBase holed(*AddressSpaceLayout::make(
      {.phys_max = UINT64_MAX,
       .ram = Range::whole_domain(),
       .holes = {{"bottom", Range::point(0)}, {"top", Range::point(UINT64_MAX)}}}));
  ASSERT_THAT(holed.insert_region(ram(1, UINT64_MAX - 1)), IsOk());
  VMSPACE_EXPECT_OK(holed.check_invariants());
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
  VMSPACE_EXPECT_OK(space.check_invariants());
  ASSERT_THAT(space.insert_region(*removed), IsOk());
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
    ASSERT_THAT(space.remove_region(GuestAddress{base}), IsOk());
  }
  EXPECT_EQ(space, AddressSpaceBase(pc()));
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST(AddressSpaceBase, MoveTakesTheRegionWithAllItsProperties) {
  AddressSpaceBase space = example();
  const auto moved = space.move_region(GuestAddress{0xc000'0000}, GuestAddress{0x2000'0000'0000});
  ASSERT_TRUE(moved);
  EXPECT_THAT(bases(space), ElementsAre(0, 4_GiB, 0x2000'0000'0000));
  EXPECT_THAT(*moved, says(device(0x2000'0000'0000, 64_KiB)));
  EXPECT_EQ(space.find_region(GuestAddress{0x2000'0000'ffff}), moved->get());
  EXPECT_EQ(space.size(), 3U);
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST(AddressSpaceBase, MoveMayOverlapTheOldPlaceOrGoNowhere) {
  AddressSpaceBase space = example();
  ASSERT_THAT(space.move_region(GuestAddress{0xc000'0000}, GuestAddress{0xc000'1000}), IsOk());
  EXPECT_THAT(bases(space), ElementsAre(0, 0xc000'1000, 4_GiB));
  VMSPACE_EXPECT_OK(space.check_invariants());
  ASSERT_THAT(space.move_region(GuestAddress{0xc000'1000}, GuestAddress{0xc000'0000}), IsOk());
  ASSERT_THAT(space.move_region(GuestAddress{0xc000'0000}, GuestAddress{0xc000'0000}), IsOk());
  EXPECT_EQ(space, example());
  ASSERT_THAT(space.move_region(GuestAddress{0xc000'0000}, GuestAddress{0xc001'0000}),
              IsOk());  // touches
  EXPECT_THAT(bases(space), ElementsAre(0, 0xc001'0000, 4_GiB));
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST(AddressSpaceBase, MoveHappensWhollyOrNotAtAll) {
  AddressSpaceBase space = example();
  ASSERT_THAT(space.insert_region(device(0xd000'0000, 4_KiB)), IsOk());
  const auto error = [&](std::uint64_t from, std::uint64_t to) {
    return failing(space, [&](AddressSpaceBase& s) {
      return s.move_region(GuestAddress{from}, GuestAddress{to});
    });
  };
  EXPECT_EQ(error(0xc000'0000, 0xcfff'f000), (Error{.code = Errc::overlap,
                                                    .operation = "AddressSpaceBase::move_region",
                                                    .first = Operand::span(0xcfff'f000, 64_KiB),
                                                    .second = Operand::span(0xd000'0000, 4_KiB),
                                                    .reason = "another region is there",
                                                    .text = {"device", "device"}}));
  EXPECT_EQ(error(0xc000'0000, 0).code, Errc::overlap);  // where RAM goes
  EXPECT_EQ(error(0xc000'0000, 0xfbff'8000).code, Errc::out_of_bounds);
  EXPECT_EQ(error(0xc000'0000, UINT64_MAX).code, Errc::overflow);
  EXPECT_EQ(error(0xc000'8000, 0xe000'0000).code, Errc::not_found);
}

TEST(AddressSpaceBase, FromRegionsTakesThemInAnyOrder) {
  const auto space = AddressSpaceBase::from_regions(
      pc(), {made(ram(4_GiB, 1_GiB)), made(ram(0, 1_GiB)), made(device(0xc000'0000, 64_KiB))});
  ASSERT_TRUE(space);
  EXPECT_EQ(*space, example());
  const auto overlapping =
      AddressSpaceBase::from_regions(pc(), {made(ram(0, 1_GiB)), made(ram(1_GiB - 1, 1))});
  EXPECT_THAT(overlapping, HasError(Errc::overlap));
  VMSPACE_EXPECT_OK(AddressSpaceBase::from_regions(pc(), {}));
}

TEST(AddressSpaceBase, HoldsTheRegionItselfAndGivesIt) {
  AddressSpaceBase space(pc());
  const AddressSpaceRegionPtr region = made(ram(0, 1_GiB));
  EXPECT_EQ(*space.insert_region(region), region);
  EXPECT_EQ(space.find_region(GuestAddress{0}), region.get());
  EXPECT_EQ(*space.begin(), region);
  AddressSpaceBase other(pc());
  ASSERT_THAT(other.insert_region(region), IsOk());  // spaces may share it
  EXPECT_EQ(other, space);
  EXPECT_EQ(*space.remove_region(GuestAddress{0}), region);
  EXPECT_EQ(other.find_region(GuestAddress{0}), region.get());
}

TEST(AddressSpaceBase, RefusesANullPointer) {
  AddressSpaceBase space = example();
  const auto insert_null = [](AddressSpaceBase& s) { return s.insert_region(nullptr); };
  EXPECT_EQ(failing(space, insert_null).code, Errc::invalid_argument);
  EXPECT_THAT(AddressSpaceBase::from_regions(pc(), {nullptr}), HasError(Errc::invalid_argument));
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
  ASSERT_THAT(other.insert_region(ram(4_GiB, 1_GiB)), IsOk());
  ASSERT_THAT(other.insert_region(device(0xc000'0000, 64_KiB)), IsOk());
  RegionOptions renamed = ram(0, 1_GiB);
  renamed.name = "other";
  ASSERT_THAT(other.insert_region(renamed), IsOk());
  EXPECT_NE(other, example());
  EXPECT_NE(AddressSpaceBase(pc()),
            AddressSpaceBase(*AddressSpaceLayout::x86_64({.phys_bits = 47})));
}

}  // namespace
}  // namespace vmspace::address_space_base_test
