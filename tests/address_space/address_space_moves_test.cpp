// SPDX-License-Identifier: Apache-2.0
//
// Sets of moves and parked regions, as a guest's writes to BARs make them.

#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/address_space/address_space.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/text.hpp"

namespace vmspace::address_space_moves_test {
namespace {

using namespace literals;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr GuestAddress place_a{0xc000'0000};
constexpr GuestAddress place_b{0xc001'0000};
constexpr GuestAddress place_c{0xc002'0000};
constexpr GuestAddress elsewhere{0xd000'0000};
constexpr GuestAddress above_4g{0x2000'0000'0000};

AddressSpaceRegionPtr made(std::string name, GuestAddress base, std::uint64_t size = 64_KiB) {
  return *AddressSpaceRegion::make({.name = std::move(name),
                                    .type = RegionType::device_memory,
                                    .base = base,
                                    .size = size,
                                    .owner = "nic"});
}

/// Three BARs of 64 KiB that touch, and RAM.
class Bars : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const AddressSpaceRegionPtr& region : {ram, a, b, c})
      VMSPACE_EXPECT_OK(space.insert_region(region));
  }

  /// Names and bases of the placed regions, in address order.
  static std::vector<std::pair<std::string, GuestAddress>> map_of(const AddressSpaceBase& space) {
    std::vector<std::pair<std::string, GuestAddress>> all;
    for (const AddressSpaceRegionPtr& region : space)
      all.emplace_back(region->name(), region->base());
    return all;
  }

  /// The error of moves that must fail, and leave the space as it was.
  Error failing(const std::vector<RegionMove>& moves) {
    const AddressSpaceBase before = space;
    const auto result = space.move_regions(moves);
    EXPECT_FALSE(result);
    EXPECT_EQ(space, before);
    EXPECT_TRUE(diff(before, space).empty());
    VMSPACE_EXPECT_OK(space.check_invariants());
    return result ? Error{} : result.error();
  }

  AddressSpaceBase space{*AddressSpaceLayout::x86_64({.phys_bits = 46})};
  AddressSpaceRegionPtr ram =
      *AddressSpaceRegion::make({.name = "ram", .base = GuestAddress{0}, .size = 1_GiB});
  AddressSpaceRegionPtr a = made("a", place_a);
  AddressSpaceRegionPtr b = made("b", place_b);
  AddressSpaceRegionPtr c = made("c", place_c);
};

using Moves = Bars;
using Parking = Bars;

TEST_F(Moves, TwoRegionsSwapPlacesAndKeepAllElse) {
  const auto after = space.move_regions({{a, place_b}, {b, place_a}});
  ASSERT_THAT(after, IsOk());
  EXPECT_THAT(map_of(space), ElementsAre(std::pair("ram", GuestAddress{0}), std::pair("b", place_a),
                                         std::pair("a", place_b), std::pair("c", place_c)));
  ASSERT_EQ(after->size(), 2U);
  EXPECT_EQ(after->at(0).get(), space.find_region(place_b));
  EXPECT_EQ(after->at(1).get(), space.find_region(place_a));
  RegionOptions expected = a->options();
  expected.base = place_b;
  EXPECT_EQ(after->at(0)->options(), expected);
  EXPECT_EQ(space.size(), 4U);
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST_F(Moves, ThreeRegionsRotate) {
  VMSPACE_EXPECT_OK(space.move_regions({{a, place_b}, {b, place_c}, {c, place_a}}));
  EXPECT_THAT(map_of(space), ElementsAre(std::pair("ram", GuestAddress{0}), std::pair("c", place_a),
                                         std::pair("a", place_b), std::pair("b", place_c)));
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST_F(Moves, AChainIsJudgedAtItsEndInWhateverOrderItIsGiven) {
  const AddressSpaceBase before = space;
  VMSPACE_EXPECT_OK(space.move_regions({{a, place_b}, {b, place_c}, {c, elsewhere}}));
  AddressSpaceBase reversed = before;
  VMSPACE_EXPECT_OK(reversed.move_regions({{c, elsewhere}, {b, place_c}, {a, place_b}}));
  EXPECT_EQ(space, reversed);
  EXPECT_EQ(space.find_region(place_a), nullptr);
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST_F(Moves, ANewPlaceMayOverlapTheRegionsOwnAndThatOfAnother) {
  // b goes half onto its own old place and half onto that of c.
  VMSPACE_EXPECT_OK(space.move_regions({{b, GuestAddress{0xc001'8000}}, {c, elsewhere}}));
  EXPECT_EQ(space.find_region(GuestAddress{0xc001'7fff}), nullptr);
  EXPECT_EQ(space.find_region(GuestAddress{0xc002'7fff})->name(), "b");
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST_F(Moves, ABarMovesFromBelow4GiBToAbove) {
  VMSPACE_EXPECT_OK(space.move_regions({{a, above_4g}}));
  EXPECT_EQ(space.find_region(place_a), nullptr);
  EXPECT_EQ(space.find_region(above_4g)->name(), "a");
}

TEST_F(Moves, ARegionThatGoesNowhereStaysTheSameObject) {
  const AddressSpaceBase before = space;
  EXPECT_THAT(*space.move_regions({{a, place_a}}), ElementsAre(a));
  EXPECT_THAT((*space.move_regions({{c, elsewhere}, {b, place_b}}))[1], b);
  EXPECT_EQ(diff(before, space).removed, std::vector{c});
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST_F(Moves, NoMovesChangeNothing) {
  const AddressSpaceBase before = space;
  EXPECT_THAT(*space.move_regions(std::vector<RegionMove>{}), IsEmpty());
  EXPECT_EQ(space, before);
}

TEST_F(Moves, RefuseAPlaceThatARegionKeepsNamingBoth) {
  const Error error = failing({{a, elsewhere}, {b, place_c}});
  EXPECT_EQ(error.message(),
            "AddressSpaceBase::move_regions: \"b\": [0xc0020000, 0xc002ffff] overlaps "
            "[0xc0020000, 0xc002ffff] (another region is there: \"c\")");
  // A region keeps its place also when the set says so.
  EXPECT_EQ(failing({{a, place_a}, {b, place_a}}).code, Errc::overlap);
}

TEST_F(Moves, RefuseTwoNewPlacesThatOverlapNamingBoth) {
  const Error error = failing({{a, GuestAddress{0xd000'8000}}, {b, elsewhere}});
  EXPECT_EQ(error.message(),
            "AddressSpaceBase::move_regions: \"b\": [0xd0000000, 0xd000ffff] overlaps "
            "[0xd0008000, 0xd0017fff] (the new place of: \"a\")");
  EXPECT_EQ(failing({{a, elsewhere}, {b, above_4g}, {c, elsewhere}}).code, Errc::overlap);
}

TEST_F(Moves, RefuseWhatTheLayoutHasNoPlaceFor) {
  const std::pair<std::uint64_t, const char*> wrong[] = {
      {0x5000'0000, "(this aperture does not take regions of this type: \"ram_low\")"},
      {0xfbff'8000, "(the region must not cross the edge of this aperture: \"mmio_low\")"},
      {0xfd'0000'0000, "(the layout allows nothing in this hole: \"hypertransport\")"},
      {0x4000'0000'0000, "(the region must end at or below phys_max)"}};
  for (const auto& [to, why] : wrong) {
    const Error error = failing({{b, place_a}, {a, GuestAddress{to}}});
    EXPECT_THAT(error.message(),
                AllOf(StartsWith("AddressSpaceBase::move_regions: \"a\": "), HasSubstr(why)));
  }
}

TEST_F(Moves, RefuseAPlaceThatPassesTheEndOf64Bits) {
  const Error error = failing({{a, place_b}, {b, GuestAddress{UINT64_MAX}}});
  EXPECT_EQ(error.code, Errc::overflow);
  EXPECT_EQ(error.text.subject(), "b");
}

TEST_F(Moves, RefuseAPlaceThatIsMisalignedForTheBacking) {
  const auto memory = space.insert_region({.name = "ivshmem",
                                           .type = RegionType::device_memory,
                                           .base = elsewhere,
                                           .size = 64_KiB,
                                           .backing = {.source = MemorySource::shmem}});
  ASSERT_THAT(memory, IsOk());
  EXPECT_EQ(failing({{*memory, GuestAddress{0xe000'0001}}}).code, Errc::misaligned);
}

TEST_F(Moves, RefuseARegionThatIsNamedTwice) {
  const Error error = failing({{a, elsewhere}, {b, place_a}, {a, above_4g}});
  EXPECT_EQ(error.code, Errc::invalid_argument);
  EXPECT_EQ(error.text.subject(), "a");
  EXPECT_EQ(failing({{a, place_a}, {a, std::nullopt}}).code, Errc::invalid_argument);
}

TEST_F(Moves, RefuseANullPointer) {
  EXPECT_EQ(failing({{a, elsewhere}, {nullptr, place_a}}).code, Errc::invalid_argument);
  EXPECT_EQ(failing({{}}).code, Errc::invalid_argument);
}

TEST_F(Moves, RefuseARegionThatTheSpaceDoesNotHave) {
  EXPECT_EQ(failing({{made("x", elsewhere), above_4g}}).code, Errc::not_found);
  // One that says what the region there says is not that region.
  EXPECT_EQ(failing({{made("a", place_a), above_4g}}).code, Errc::not_found);
  // Neither is one that has been moved since.
  VMSPACE_EXPECT_OK(space.move_regions({{a, elsewhere}, {b, place_a}}));
  const Error error = failing({{b, above_4g}});
  EXPECT_EQ(error.code, Errc::not_found);
  EXPECT_EQ(error.text.subject(), "b");
  EXPECT_EQ(failing({{a, above_4g}}).code, Errc::not_found);
}

TEST_F(Moves, OneMoveAloneHasTheNameOfItsCallInItsErrors) {
  const auto onto_another = space.move_region(place_a, place_b);
  ASSERT_THAT(onto_another, HasError(Errc::overlap));
  EXPECT_EQ(onto_another.error().message(),
            "AddressSpaceBase::move_region: \"a\": [0xc0010000, 0xc001ffff] overlaps "
            "[0xc0010000, 0xc001ffff] (another region is there: \"b\")");
}

TEST_F(Parking, AParkedRegionIsKnownAtNoAddress) {
  const AddressSpaceBase before = space;
  EXPECT_THAT(*space.move_regions({{b, std::nullopt}}), ElementsAre(b));
  EXPECT_THAT(space.parked(), ElementsAre(b));
  EXPECT_EQ(space.find_region(place_b), nullptr);
  EXPECT_EQ(space.size(), 3U);
  EXPECT_THAT(map_of(space), ElementsAre(std::pair("ram", GuestAddress{0}), std::pair("a", place_a),
                                         std::pair("c", place_c)));
  EXPECT_THAT(space.remove_region(place_b), HasError(Errc::not_found));
  EXPECT_THAT(space.move_region(place_b, elsewhere), HasError(Errc::not_found));
  const RegionDiff changes = diff(before, space);
  EXPECT_THAT(changes.removed, ElementsAre(b));
  EXPECT_THAT(changes.added, IsEmpty());
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST_F(Parking, ARegionThatReturnsToItsPlaceIsTheSameObject) {
  const AddressSpaceBase before = space;
  VMSPACE_EXPECT_OK(space.move_regions({{b, std::nullopt}}));
  EXPECT_THAT(*space.move_regions({{b, place_b}}), ElementsAre(b));
  EXPECT_THAT(space.parked(), IsEmpty());
  EXPECT_EQ(space, before);
  EXPECT_TRUE(diff(before, space).empty());
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST_F(Parking, AGuestThatMovesOneBarOntoAnotherFirstGetsThereInSteps) {
  // It writes the address of b into a, then a new one into b.
  EXPECT_THAT(space.move_region(place_a, place_b), HasError(Errc::overlap));
  VMSPACE_EXPECT_OK(space.move_regions({{a, std::nullopt}}));
  VMSPACE_EXPECT_OK(space.move_regions({{b, elsewhere}, {a, place_b}}));
  EXPECT_THAT(map_of(space), ElementsAre(std::pair("ram", GuestAddress{0}), std::pair("a", place_b),
                                         std::pair("c", place_c), std::pair("b", elsewhere)));
  EXPECT_THAT(space.parked(), IsEmpty());
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST_F(Parking, OneRegionTakesThePlaceOfAnotherThatIsParkedInTheSameSet) {
  VMSPACE_EXPECT_OK(space.move_regions({{a, place_b}, {b, std::nullopt}}));
  EXPECT_EQ(space.find_region(place_b)->name(), "a");
  // Parked regions may have been at one place.
  VMSPACE_EXPECT_OK(space.move_regions({{*std::next(space.begin()), std::nullopt}}));
  EXPECT_EQ(space.find_region(place_b), nullptr);
  ASSERT_EQ(space.parked().size(), 2U);
  EXPECT_EQ(space.parked()[0]->base(), space.parked()[1]->base());
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST_F(Parking, RegionsAreListedInTheOrderInWhichTheyWereParked) {
  VMSPACE_EXPECT_OK(space.move_regions({{c, std::nullopt}, {a, std::nullopt}}));
  VMSPACE_EXPECT_OK(space.move_regions({{b, std::nullopt}, {c, std::nullopt}}));
  EXPECT_THAT(space.parked(), ElementsAre(c, a, b));
  VMSPACE_EXPECT_OK(space.move_regions({{a, place_a}}));
  EXPECT_THAT(space.parked(), ElementsAre(c, b));
}

TEST_F(Parking, AnErrorLeavesWhatIsParkedAsItWas) {
  VMSPACE_EXPECT_OK(space.move_regions({{b, std::nullopt}}));
  EXPECT_EQ(failing({{b, place_b}, {a, std::nullopt}, {c, place_b}}).code, Errc::overlap);
  EXPECT_EQ(failing({{b, place_a}}).code, Errc::overlap);
  EXPECT_EQ(failing({{b, std::nullopt}, {b, place_b}}).code, Errc::invalid_argument);
  EXPECT_THAT(space.parked(), ElementsAre(b));
}

TEST_F(Parking, TheFormerPlaceIsFreeForOthers) {
  VMSPACE_EXPECT_OK(space.move_regions({{b, std::nullopt}}));
  VMSPACE_EXPECT_OK(space.insert_region(made("new", place_b)));
  EXPECT_EQ(failing({{b, place_b}}).code, Errc::overlap);
}

TEST_F(Parking, ARegionIsInsertedParkedAndPlacedLater) {
  // A base that no device may have: it means nothing before the region is placed.
  const AddressSpaceRegionPtr later = made("later", GuestAddress{0});
  EXPECT_EQ(*space.insert_parked_region(later), later);
  EXPECT_THAT(space.parked(), ElementsAre(later));
  EXPECT_EQ(space.size(), 4U);
  VMSPACE_EXPECT_OK(space.check_invariants());
  EXPECT_NE(failing({{later, GuestAddress{0}}}).code, Errc::not_found);
  VMSPACE_EXPECT_OK(space.move_regions({{later, elsewhere}}));
  EXPECT_EQ(space.find_region(elsewhere)->name(), "later");
  EXPECT_THAT(space.parked(), IsEmpty());
}

TEST_F(Parking, ARegionIsInTheSpaceOnce) {
  VMSPACE_EXPECT_OK(space.move_regions({{b, std::nullopt}}));
  EXPECT_THAT(space.insert_region(b), HasError(Errc::bad_state));
  EXPECT_THAT(space.insert_parked_region(b), HasError(Errc::bad_state));
  EXPECT_THAT(space.insert_parked_region(a), HasError(Errc::bad_state));
  EXPECT_THAT(space.insert_parked_region(nullptr), HasError(Errc::invalid_argument));
  EXPECT_THAT(space.parked(), ElementsAre(b));
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST_F(Parking, RegionsAreRemovedByTheirPointerWhereverTheyAre) {
  VMSPACE_EXPECT_OK(space.move_regions({{a, std::nullopt}, {b, std::nullopt}}));
  EXPECT_EQ(*space.remove_region(space.parked()[0]), a);
  EXPECT_THAT(space.parked(), ElementsAre(b));
  EXPECT_EQ(*space.remove_region(c), c);
  EXPECT_EQ(space.size(), 1U);
  EXPECT_THAT(space.remove_region(a), HasError(Errc::not_found));
  EXPECT_THAT(space.remove_region(c), HasError(Errc::not_found));
  EXPECT_THAT(space.remove_region(nullptr), HasError(Errc::invalid_argument));
  VMSPACE_EXPECT_OK(space.check_invariants());
}

TEST_F(Parking, CountsInCopiesAndInEquality) {
  AddressSpaceBase one = space;
  AddressSpaceBase other = space;
  VMSPACE_EXPECT_OK(one.move_regions({{a, std::nullopt}, {b, std::nullopt}}));
  VMSPACE_EXPECT_OK(other.move_regions({{b, std::nullopt}}));
  EXPECT_NE(one, other);
  VMSPACE_EXPECT_OK(other.move_regions({{a, std::nullopt}}));
  EXPECT_EQ(one, other);  // in whatever order they were parked
  const AddressSpaceBase copy = one;
  EXPECT_THAT(copy.parked(), ElementsAre(a, b));
  VMSPACE_EXPECT_OK(one.remove_region(a));
  EXPECT_NE(one, copy);
  EXPECT_THAT(copy.parked(), ElementsAre(a, b));
}

TEST_F(Moves, HaveATextEach) {
  EXPECT_EQ(to_text(RegionMove{a, elsewhere}),
            "a device [0xc0000000-0xc000ffff] none owner nic to 0xd0000000");
  EXPECT_EQ(to_text(RegionMove{a, std::nullopt}),
            "a device [0xc0000000-0xc000ffff] none owner nic to be parked");
  EXPECT_EQ(to_text(RegionMove{}), "null to be parked");
}

TEST_F(Moves, OfASharedSpaceArePublishedOnceOrNotAtAll) {
  const AddressSpace shared(space);
  EXPECT_THAT(shared.move_regions({{a, place_b}}), HasError(Errc::overlap));
  EXPECT_STREQ(shared.move_regions({{a, place_b}}).error().operation, "AddressSpace::move_regions");
  EXPECT_EQ(shared.generation(), 1U);
  const auto after = shared.move_regions({{a, place_b}, {b, std::nullopt}});
  ASSERT_THAT(after, IsOk());
  EXPECT_EQ(shared.generation(), 2U);
  EXPECT_EQ(shared.find_region(place_b), after->at(0));
  EXPECT_THAT(shared.snapshot()->parked(), ElementsAre(b));
  VMSPACE_EXPECT_OK(shared.move_regions(std::vector<RegionMove>{{b, place_a}}));
  const AddressSpaceRegionPtr later = made("later", elsewhere);
  VMSPACE_EXPECT_OK(shared.insert_parked_region(later));
  VMSPACE_EXPECT_OK(shared.remove_region(later));
  EXPECT_EQ(shared.generation(), 5U);
  EXPECT_THAT(shared.snapshot()->parked(), IsEmpty());
  VMSPACE_EXPECT_OK(shared.snapshot()->check_invariants());
}

}  // namespace
}  // namespace vmspace::address_space_moves_test
