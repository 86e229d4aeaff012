// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/layout.hpp"

#include <ostream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

namespace vmspace {

std::ostream& operator<<(std::ostream& out, const RamPiece& piece) {
  return out << detail::hex(piece.base.value()) << " + " << detail::hex(piece.size) << " node "
             << piece.node;
}

namespace {

using namespace literals;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

AddressSpaceLayout pc(unsigned phys_bits = 46) {
  return *AddressSpaceLayout::x86_64({.phys_bits = phys_bits});
}

RamPiece piece(std::uint64_t base, std::uint64_t size, std::uint32_t node = 0) {
  return {GuestAddress(base), size, node};
}

Errc code_of(const Result<void>& result) {
  return result ? Errc{} : result.error().code;
}

// ---- Plans against tables computed by hand. Bounds of the PC: the MMIO hole is [3 GiB, 4 GiB),
// the HyperTransport hole [1012 GiB, 1024 GiB).

TEST(PlanRam, OfAPcWithOneNode) {
  EXPECT_THAT(*pc().plan_ram({512_MiB}), ElementsAre(piece(0, 512_MiB)));
  EXPECT_THAT(*pc().plan_ram({3_GiB}), ElementsAre(piece(0, 3_GiB)));
  EXPECT_THAT(*pc().plan_ram({4_GiB}), ElementsAre(piece(0, 3_GiB), piece(4_GiB, 1_GiB)));
  EXPECT_THAT(*pc().plan_ram({6_GiB}), ElementsAre(piece(0, 3_GiB), piece(4_GiB, 3_GiB)));
  // 1536 = 3 below 4 GiB + 1008 below HyperTransport + 525 above it.
  EXPECT_THAT(*pc().plan_ram({1536_GiB}),
              ElementsAre(piece(0, 3_GiB), piece(4_GiB, 1008_GiB), piece(1024_GiB, 525_GiB)));
}

TEST(PlanRam, OfAPcWithTwoNodes) {
  EXPECT_THAT(*pc().plan_ram({256_MiB, 256_MiB}),
              ElementsAre(piece(0, 256_MiB, 0), piece(256_MiB, 256_MiB, 1)));
  EXPECT_THAT(*pc().plan_ram({1536_MiB, 1536_MiB}),
              ElementsAre(piece(0, 1536_MiB, 0), piece(1536_MiB, 1536_MiB, 1)));
  EXPECT_THAT(*pc().plan_ram({2_GiB, 2_GiB}),
              ElementsAre(piece(0, 2_GiB, 0), piece(2_GiB, 1_GiB, 1), piece(4_GiB, 1_GiB, 1)));
  EXPECT_THAT(*pc().plan_ram({3_GiB, 3_GiB}),
              ElementsAre(piece(0, 3_GiB, 0), piece(4_GiB, 3_GiB, 1)));
  // Node 0: 3 + 765 GiB, to 769 GiB. Node 1: 243 GiB up to 1012 GiB, 525 GiB from 1 TiB.
  EXPECT_THAT(*pc().plan_ram({768_GiB, 768_GiB}),
              ElementsAre(piece(0, 3_GiB, 0), piece(4_GiB, 765_GiB, 0), piece(769_GiB, 243_GiB, 1),
                          piece(1024_GiB, 525_GiB, 1)));
}

TEST(PlanRam, OfAnArmMachineBeginsAboveItsDevices) {
  const auto layout = AddressSpaceLayout::aarch64({.ipa_bits = 40});
  EXPECT_THAT(*layout->plan_ram({6_GiB}), ElementsAre(piece(1_GiB, 6_GiB)));
  EXPECT_THAT(*layout->plan_ram({2_GiB, 4_GiB}),
              ElementsAre(piece(1_GiB, 2_GiB, 0), piece(3_GiB, 4_GiB, 1)));
}

TEST(PlanRam, WithoutTheAmdHoleGoesStraightOn) {
  const auto layout = AddressSpaceLayout::x86_64({.phys_bits = 46, .amd_hole = false});
  EXPECT_THAT(*layout->plan_ram({1536_GiB}), ElementsAre(piece(0, 3_GiB), piece(4_GiB, 1533_GiB)));
}

TEST(PlanRam, ANodeThatWouldBeSplitLeavesNothingBelowWhenLessThan128MiBIsFreeThere) {
  const std::uint64_t first = 3_GiB - 128_MiB;
  EXPECT_THAT(
      *pc().plan_ram({first, 1_GiB}),
      ElementsAre(piece(0, first, 0), piece(first, 128_MiB, 1), piece(4_GiB, 1_GiB - 128_MiB, 1)));
  const std::uint64_t more = first + 4_KiB;
  EXPECT_THAT(*pc().plan_ram({more, 1_GiB}),
              ElementsAre(piece(0, more, 0), piece(4_GiB, 1_GiB, 1)));
  // A node that fits there is not split, and so is placed there.
  EXPECT_THAT(*pc().plan_ram({more, 64_MiB, 1_GiB}),
              ElementsAre(piece(0, more, 0), piece(more, 64_MiB, 1), piece(4_GiB, 1_GiB, 2)));
}

TEST(PlanRam, UsesSliversBelowHolesWhereTheRamWouldNotFitWithoutThem) {
  // 36 bits: 3 GiB below the hole, 28 GiB above it.
  const std::uint64_t first = 3_GiB - 64_MiB;
  EXPECT_THAT(*pc(36).plan_ram({first, 28_GiB}),
              ElementsAre(piece(0, first, 0), piece(4_GiB, 28_GiB, 1)));
  EXPECT_THAT(*pc(36).plan_ram({first, 28_GiB + 4_KiB}),
              ElementsAre(piece(0, first, 0), piece(first, 64_MiB, 1),
                          piece(4_GiB, 28_GiB + 4_KiB - 64_MiB, 1)));
  EXPECT_THAT(*pc(36).plan_ram({first, 28_GiB + 64_MiB}),
              ElementsAre(piece(0, first, 0), piece(first, 64_MiB, 1), piece(4_GiB, 28_GiB, 1)));
  EXPECT_THAT(pc(36).plan_ram({first, 28_GiB + 64_MiB + 4_KiB}), HasError(Errc::no_space));
  // All that there is, in areas smaller than 128 MiB.
  const auto crumbs =
      AddressSpaceLayout::make({.phys_max = 64_MiB - 1,
                                .ram = Range::of(0, 64_MiB - 1),
                                .holes = {{"hole", Range::of(16_MiB, 32_MiB - 1)}}});
  EXPECT_THAT(*crumbs->plan_ram({48_MiB}), ElementsAre(piece(0, 16_MiB), piece(32_MiB, 32_MiB)));
}

TEST(PlanRam, FillsTheSpaceToItsLastPageAndNotBeyond) {
  // 36 bits: RAM ends at 32 GiB, so 3 + 28 GiB fit.
  EXPECT_THAT(*pc(36).plan_ram({31_GiB}), ElementsAre(piece(0, 3_GiB), piece(4_GiB, 28_GiB)));
  const auto failed = pc(36).plan_ram({31_GiB + 4_KiB});
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error(), (Error{.code = Errc::no_space,
                                   .operation = "AddressSpaceLayout::plan_ram",
                                   .first = Operand::size(31_GiB + 4_KiB),
                                   .second = Operand::range(0, 32_GiB - 1),
                                   .text = "node 0"}));
  EXPECT_THAT(pc(36).plan_ram({31_GiB, 4_KiB}), HasError(Errc::no_space));
  EXPECT_THAT(pc(36).plan_ram({UINT64_MAX - 0xfff, 4_KiB}), HasError(Errc::no_space));
}

TEST(PlanRam, RefusesSizesThatMakeNoRam) {
  EXPECT_THAT(pc().plan_ram(std::vector<std::uint64_t>{}), HasError(Errc::invalid_argument));
  EXPECT_EQ(pc().plan_ram({1_GiB, 0}).error().message(),
            "AddressSpaceLayout::plan_ram: \"node 1\": size is zero");
  const Error misaligned = pc().plan_ram({1_GiB + 1}).error();
  EXPECT_EQ(misaligned.code, Errc::misaligned);
  EXPECT_EQ(misaligned.text.subject(), "node 0");
  EXPECT_EQ(pc(36).plan_ram({4_GiB, 64_GiB}).error().text.subject(), "node 1");
}

TEST(PlanRam, HasNoSpaceWhereTheLayoutHasNoRam) {
  const auto layout = AddressSpaceLayout::make({.phys_max = 1_GiB - 1});
  EXPECT_EQ(
      layout->plan_ram({4_KiB}).error().message(),
      "AddressSpaceLayout::plan_ram: \"node 0\": no space for 0x1000 (the layout has no RAM)");
  EXPECT_EQ(layout->check_place(RegionType::default_memory, Range::of(0, 0xfff)).error().message(),
            "AddressSpaceLayout::check_place: out of bounds: [0x0, 0xfff] (the layout has no RAM)");
  VMSPACE_EXPECT_OK(layout->check_place(RegionType::device_memory, Range::of(0, 1_GiB - 1)));
}

TEST(PlanRam, PiecesAreWholePagesAlsoWhereTheLayoutsBoundsAreNot) {
  const auto layout =
      AddressSpaceLayout::make({.phys_max = 2_GiB - 1,
                                .ram = Range::of(0x800, 1_GiB + 0x7ff),
                                .holes = {{"odd", Range::of(256_MiB + 0x10, 512_MiB + 0x10)},
                                          {"speck", Range::of(512_MiB + 0x20, 512_MiB + 0x20)}}});
  ASSERT_TRUE(layout);
  EXPECT_THAT(*layout->plan_ram({512_MiB}), ElementsAre(piece(0x1000, 256_MiB - 0x1000),
                                                        piece(512_MiB + 0x1000, 256_MiB + 0x1000)));
  EXPECT_THAT(layout->plan_ram({768_MiB}), HasError(Errc::no_space));

  const auto to_the_end = AddressSpaceLayout::make(
      {.phys_max = UINT64_MAX, .ram = Range::of(UINT64_MAX - 0x1ffe, UINT64_MAX)});
  EXPECT_THAT(*to_the_end->plan_ram({4_KiB}), ElementsAre(piece(UINT64_MAX - 0xfff, 4_KiB)));
  EXPECT_THAT(to_the_end->plan_ram({8_KiB}), HasError(Errc::no_space));
}

TEST(PlanRam, NoPageOfWhichTheLayoutsRamHasOnlyAPart) {
  const auto layout =
      AddressSpaceLayout::make({.phys_max = 2_GiB - 1, .ram = Range::of(0x800, 16_KiB + 0x7ff)});
  ASSERT_TRUE(layout);
  const auto plan = layout->plan_ram({12_KiB});
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(*plan, (std::vector<RamPiece>{{GuestAddress(4_KiB), 12_KiB, 0}}));
  EXPECT_THAT(layout->plan_ram({16_KiB}), HasError(Errc::no_space));
}

TEST(PlanRam, EveryPieceIsAPlaceForRam) {
  const auto plan = pc().plan_ram({100_GiB, 1000_GiB, 4_KiB, 500_GiB});
  for (const auto& run : *plan) {
    VMSPACE_EXPECT_OK(pc().check_place(RegionType::default_memory,
                                       *Range::from_base_size(run.base.value(), run.size)));
  }
}

// ---- The machines.

TEST(X86Layout, HasTheWindowsOfAPc) {
  EXPECT_THAT(
      pc().apertures(),
      ElementsAre(
          Aperture{"ram_low", Range::of(0, 0xbfff'ffff), ApertureUse::ram},
          Aperture{"mmio_low", Range::of(0xc000'0000, 0xfbff'ffff), ApertureUse::mmio},
          Aperture{"platform", Range::of(0xfc00'0000, 0xffff'ffff), ApertureUse::platform},
          Aperture{"ram_high", Range::of(0x1'0000'0000, 0x1fff'ffff'ffff), ApertureUse::ram},
          Aperture{"mmio_high", Range::of(0x2000'0000'0000, 0x3fff'ffff'ffff), ApertureUse::mmio}));
  EXPECT_THAT(pc().holes(),
              ElementsAre(Hole{"hypertransport", Range::of(0xfd'0000'0000, 0xff'ffff'ffff),
                               HoleKind::reserved}));
}

TEST(X86Layout, EcamTakesTheBottomOfTheMmioHole) {
  const auto layout = AddressSpaceLayout::x86_64({.phys_bits = 46, .ecam_buses = 256});
  EXPECT_EQ(layout->find_aperture("ecam")->range, Range::of(0xc000'0000, 0xcfff'ffff));
  EXPECT_EQ(layout->find_aperture("ecam")->use, ApertureUse::platform);
  EXPECT_EQ(layout->find_aperture("mmio_low")->range, Range::of(0xd000'0000, 0xfbff'ffff));
  EXPECT_EQ(pc().find_aperture("ecam"), nullptr);
}

TEST(X86Layout, TheAmdHoleIsThereWhereTheSpaceReachesIt) {
  EXPECT_THAT(pc(39).holes(), IsEmpty());
  EXPECT_EQ(pc(40).holes().size(), 1U);  // the hole is the top of mmio_high
  EXPECT_THAT(AddressSpaceLayout::x86_64({.phys_bits = 46, .amd_hole = false})->holes(), IsEmpty());
}

TEST(X86Layout, MemEndMovesTheBoundaryBetweenRamAndDevices) {
  const auto all_low = AddressSpaceLayout::x86_64({.phys_bits = 36, .mem_end = 4_GiB});
  EXPECT_EQ(all_low->find_aperture("ram_high"), nullptr);
  EXPECT_EQ(all_low->find_aperture("mmio_high")->range, Range::of(0x1'0000'0000, 0xf'ffff'ffff));
  const auto all_ram = AddressSpaceLayout::x86_64({.phys_bits = 36, .mem_end = 64_GiB});
  EXPECT_EQ(all_ram->find_aperture("mmio_high"), nullptr);
  EXPECT_EQ(all_ram->find_aperture("ram_high")->range, Range::of(0x1'0000'0000, 0xf'ffff'ffff));
}

TEST(X86Layout, RefusesWhatNoPcHas) {
  for (const unsigned bits : {0U, 20U, 35U, 53U, 60U, 64U, UINT_MAX}) {
    const auto layout = AddressSpaceLayout::x86_64({.phys_bits = bits});
    ASSERT_FALSE(layout) << bits;
    EXPECT_THAT(layout, HasError(Errc::invalid_argument));
    EXPECT_EQ(layout.error().first, Operand::number(bits));
  }
  EXPECT_TRUE(AddressSpaceLayout::x86_64({.phys_bits = 36}));
  EXPECT_TRUE(AddressSpaceLayout::x86_64({.phys_bits = 52}));
  EXPECT_FALSE(AddressSpaceLayout::x86_64({.phys_bits = 46, .ecam_buses = 257}));
  EXPECT_FALSE(AddressSpaceLayout::x86_64({.phys_bits = 36, .mem_end = 4_GiB - 4_KiB}));
  EXPECT_FALSE(AddressSpaceLayout::x86_64({.phys_bits = 36, .mem_end = 64_GiB + 4_KiB}));
  EXPECT_FALSE(AddressSpaceLayout::x86_64({.phys_bits = 36, .mem_end = 5_GiB + 1}));
  const auto cut = AddressSpaceLayout::x86_64({.phys_bits = 46, .mem_end = 1020_GiB});
  ASSERT_FALSE(cut);
  EXPECT_THAT(cut, HasError(Errc::overlap));
}

TEST(Aarch64Layout, HasItsDevicesBelowRam) {
  const auto layout = AddressSpaceLayout::aarch64({.ipa_bits = 40, .ecam_buses = 16});
  EXPECT_EQ(layout->ram_range(), Range::of(1_GiB, 0x7f'ffff'ffff));
  EXPECT_EQ(layout->phys_max(), 0xff'ffff'ffff);
  EXPECT_THAT(
      layout->apertures(),
      ElementsAre(
          Aperture{"platform", Range::of(0, 0xfff'ffff), ApertureUse::platform},
          Aperture{"ecam", Range::of(0x1000'0000, 0x10ff'ffff), ApertureUse::platform},
          Aperture{"mmio_low", Range::of(0x1100'0000, 0x3fff'ffff), ApertureUse::mmio},
          Aperture{"ram", Range::of(0x4000'0000, 0x7f'ffff'ffff), ApertureUse::ram},
          Aperture{"mmio_high", Range::of(0x80'0000'0000, 0xff'ffff'ffff), ApertureUse::mmio}));
}

TEST(Aarch64Layout, RefusesWhatNoArmMachineHas) {
  for (const unsigned bits : {0U, 20U, 31U, 53U, 60U}) {
    EXPECT_THAT(AddressSpaceLayout::aarch64({.ipa_bits = bits}), HasError(Errc::invalid_argument));
  }
  EXPECT_TRUE(AddressSpaceLayout::aarch64({.ipa_bits = 32}));
  EXPECT_TRUE(AddressSpaceLayout::aarch64({.ipa_bits = 52}));
  EXPECT_FALSE(AddressSpaceLayout::aarch64({.ipa_bits = 40, .mem_end = 1_GiB}));
  EXPECT_FALSE(AddressSpaceLayout::aarch64({.ipa_bits = 40, .ecam_buses = 300}));
}

// ---- Layouts of one's own.

TEST(Layout, TheRangeForRamLiesInTheSpace) {
  EXPECT_EQ(AddressSpaceLayout::make({.phys_max = 3, .ram = Range::of(2, 4)}).error().message(),
            "AddressSpaceLayout::make: out of bounds: [0x2, 0x4] is not within [0x0, 0x3] "
            "(the range for RAM must end at or below phys_max)");
  EXPECT_TRUE(AddressSpaceLayout::make({.phys_max = 3, .ram = Range::of(2, 3)}));
  EXPECT_TRUE(AddressSpaceLayout::make({.phys_max = 0, .ram = Range::point(0)}));
}

TEST(Layout, MayCoverAll64Bits) {
  constexpr std::uint64_t top = UINT64_MAX;
  const auto layout =
      AddressSpaceLayout::make({.phys_max = top,
                                .ram = Range::of(0, 1_GiB - 1),
                                .apertures = {{"mmio", Range::of(1_GiB, top), ApertureUse::mmio}},
                                .holes = {{"top", Range::point(top)}}});
  ASSERT_TRUE(layout);
  EXPECT_EQ(layout->phys_max(), top);
  VMSPACE_EXPECT_OK(layout->check_place(RegionType::device_memory, Range::of(1_GiB, top - 1)));
  EXPECT_EQ(code_of(layout->check_place(RegionType::device_memory, Range::of(1_GiB, top))),
            Errc::overlap);
  EXPECT_THAT(*layout->plan_ram({1_GiB}), ElementsAre(piece(0, 1_GiB)));
  const auto all_ram = AddressSpaceLayout::make({.phys_max = top, .ram = Range::whole_domain()});
  VMSPACE_EXPECT_OK(all_ram->check_place(RegionType::default_memory, Range::whole_domain()));
  EXPECT_EQ(code_of(all_ram->check_place(RegionType::device_memory, Range::point(top))),
            Errc::out_of_bounds);
  EXPECT_THAT(*all_ram->plan_ram({top - 0xfff, 4_KiB}),
              ElementsAre(piece(0, top - 0xfff, 0), piece(top - 0xfff, 4_KiB, 1)));
  EXPECT_THAT(all_ram->plan_ram({top - 0xfff, 8_KiB}), HasError(Errc::no_space));
}

TEST(Layout, RefusesUsesAndKindsWithoutAName) {
  const auto use = AddressSpaceLayout::make(
      {.phys_max = 0xffff, .apertures = {{"a", Range::of(0, 1), static_cast<ApertureUse>(3)}}});
  ASSERT_FALSE(use);
  EXPECT_EQ(use.error().message(),
            "AddressSpaceLayout::make: \"a\": invalid argument: 3 (not a value of ApertureUse)");
  const auto kind = AddressSpaceLayout::make(
      {.phys_max = 0xffff, .holes = {{"h", Range::of(0, 1), static_cast<HoleKind>(2)}}});
  ASSERT_FALSE(kind);
  EXPECT_EQ(kind.error().message(),
            "AddressSpaceLayout::make: \"h\": invalid argument: 2 (not a value of HoleKind)");
  EXPECT_EQ(code_of(pc().check_place(static_cast<RegionType>(4), Range::of(0, 1))),
            Errc::invalid_argument);
}

TEST(Layout, RefusesAperturesAndHolesThatCollideOrReachOut) {
  const auto make = [](std::vector<Aperture> apertures, std::vector<Hole> holes = {}) {
    const auto layout = AddressSpaceLayout::make({.phys_max = 0xffff,
                                                  .ram = Range::of(0x1000, 0x7fff),
                                                  .apertures = std::move(apertures),
                                                  .holes = std::move(holes)});
    return layout ? Errc{} : layout.error().code;
  };
  const auto mmio = [](std::string name, Range range) {
    return Aperture{std::move(name), range, ApertureUse::mmio};
  };
  EXPECT_EQ(make({mmio("a", Range::of(0x9000, 0x9fff)), mmio("b", Range::of(0x9fff, 0xafff))}),
            Errc::overlap);
  EXPECT_EQ(make({mmio("a", Range::of(0x9000, 0x9fff)), mmio("b", Range::of(0xa000, 0xafff))}),
            Errc{});
  EXPECT_EQ(make({mmio("a", Range::of(0x9000, 0x9fff)), mmio("a", Range::of(0xa000, 0xafff))}),
            Errc::invalid_argument);
  EXPECT_EQ(make({mmio("", Range::of(0x9000, 0x9fff))}), Errc::invalid_argument);
  EXPECT_EQ(make({mmio("a", Range::of(0x9000, 0x1'0000))}), Errc::out_of_bounds);
  EXPECT_EQ(make({mmio("a", Range::whole_domain())}), Errc::out_of_bounds);
  EXPECT_EQ(make({{"low", Range::of(0xfff, 0x1fff), ApertureUse::ram}}), Errc::out_of_bounds);
  EXPECT_EQ(make({{"low", Range::of(0x7000, 0x8000), ApertureUse::ram}}), Errc::out_of_bounds);
  EXPECT_EQ(make({{"low", Range::of(0x1000, 0x7fff), ApertureUse::ram}}), Errc{});

  EXPECT_EQ(make({}, {{"x", Range::of(0, 0xfff)}, {"y", Range::of(0xfff, 0x1000)}}), Errc::overlap);
  EXPECT_EQ(make({}, {{"x", Range::of(0xffff, 0x1'0000)}}), Errc::out_of_bounds);
  EXPECT_EQ(make({mmio("a", Range::of(0x9000, 0x9fff))}, {{"x", Range::of(0x9800, 0xa000)}}),
            Errc::overlap);
  EXPECT_EQ(make({mmio("a", Range::of(0x9000, 0x9fff))}, {{"x", Range::of(0x9800, 0x9fff)}}),
            Errc{});
}

TEST(Layout, FindsAperturesByName) {
  EXPECT_EQ(pc().find_aperture("nowhere"), nullptr);
  EXPECT_EQ(pc().find_aperture(""), nullptr);
}

// ---- What may lie where.

TEST(CheckPlace, RamLiesBetweenItsBoundsAndOverNothingElse) {
  const auto layout = pc();
  const auto check = [&](Range range) {
    return code_of(layout.check_place(RegionType::default_memory, range));
  };
  EXPECT_EQ(check(Range::of(0, 0xbfff'ffff)), Errc{});
  EXPECT_EQ(check(Range::of(0, 0xc000'0000)), Errc::overlap);
  EXPECT_EQ(check(Range::of(0xffff'ffff, 0x1'0000'0000)), Errc::overlap);
  EXPECT_EQ(check(Range::of(0x1'0000'0000, 0xfc'ffff'ffff)), Errc{});
  EXPECT_EQ(check(Range::of(0x1'0000'0000, 0xfd'0000'0000)), Errc::overlap);
  EXPECT_EQ(check(Range::of(0xff'ffff'ffff, 0x100'0000'0000)), Errc::overlap);
  EXPECT_EQ(check(Range::of(0x100'0000'0000, 0x1fff'ffff'ffff)), Errc{});
  EXPECT_EQ(check(Range::of(0x2000'0000'0000, 0x2000'0000'0fff)), Errc::overlap);
  EXPECT_EQ(check(Range::of(0x3fff'ffff'ffff, 0x4000'0000'0000)), Errc::out_of_bounds);
  EXPECT_EQ(check(Range::point(UINT64_MAX)), Errc::out_of_bounds);
  EXPECT_EQ(check(Range::whole_domain()), Errc::out_of_bounds);
}

TEST(CheckPlace, DevicesLieInsideOneApertureForThem) {
  const auto layout = pc();
  const auto check = [&](Range range, RegionType type = RegionType::device_memory) {
    return code_of(layout.check_place(type, range));
  };
  EXPECT_EQ(check(Range::of(0xc000'0000, 0xfbff'ffff)), Errc{});
  EXPECT_EQ(check(Range::of(0xbfff'f000, 0xc000'0fff)), Errc::overlap);
  EXPECT_EQ(check(Range::of(0xfbff'f000, 0xfc00'0fff)), Errc::out_of_bounds);
  EXPECT_EQ(check(Range::of(0xfec0'0000, 0xfec0'0fff)), Errc{});
  EXPECT_EQ(check(Range::of(0x1000, 0x1fff)), Errc::overlap);
  EXPECT_EQ(check(Range::of(0x2000'0000'0000, 0x3fff'ffff'ffff)), Errc{});
  EXPECT_EQ(check(Range::of(0xc000'0000, 0xc000'0fff), RegionType::dax_memory), Errc{});
  EXPECT_EQ(check(Range::of(0xfec0'0000, 0xfec0'0fff), RegionType::dax_memory), Errc::overlap);
}

TEST(CheckPlace, FirmwareLiesAnywhereButOverAHoleOrAnEdge) {
  const auto layout = pc();
  const auto check = [&](Range range) {
    return code_of(layout.check_place(RegionType::firmware_memory, range));
  };
  EXPECT_EQ(check(Range::of(0xffe0'0000, 0xffff'ffff)), Errc{});
  EXPECT_EQ(check(Range::of(0xf'0000, 0xf'ffff)), Errc{});
  EXPECT_EQ(check(Range::of(0xffff'f000, 0x1'0000'0fff)), Errc::out_of_bounds);
  EXPECT_EQ(check(Range::of(0xfd'0000'0000, 0xfd'0000'0fff)), Errc::overlap);
}

TEST(CheckPlace, WithoutAperturesTheBoundsDecide) {
  const auto layout =
      AddressSpaceLayout::make({.phys_max = 0xffff, .ram = Range::of(0x1000, 0x7fff)});
  const auto check = [&](RegionType type, Range range) {
    return code_of(layout->check_place(type, range));
  };
  EXPECT_EQ(check(RegionType::default_memory, Range::of(0x1000, 0x7fff)), Errc{});
  EXPECT_EQ(check(RegionType::default_memory, Range::of(0xfff, 0x1fff)), Errc::out_of_bounds);
  EXPECT_EQ(check(RegionType::default_memory, Range::of(0x7000, 0x8000)), Errc::out_of_bounds);
  EXPECT_EQ(check(RegionType::device_memory, Range::of(0x8000, 0xffff)), Errc{});
  EXPECT_EQ(check(RegionType::device_memory, Range::of(0x7fff, 0x8000)), Errc::out_of_bounds);
  EXPECT_EQ(check(RegionType::dax_memory, Range::of(0, 0xfff)), Errc::out_of_bounds);
  EXPECT_EQ(check(RegionType::firmware_memory, Range::of(0, 0xfff)), Errc{});
}

TEST(MachineLayouts, ErrorsSayWhatIsAllowed) {
  const auto message = [](const Result<AddressSpaceLayout>& layout) {
    return layout ? "made" : layout.error().message();
  };
  EXPECT_EQ(message(AddressSpaceLayout::x86_64({.phys_bits = 64})),
            "AddressSpaceLayout::x86_64: invalid argument: 64 (phys_bits must be 36 to 52)");
  EXPECT_EQ(message(AddressSpaceLayout::aarch64({.ipa_bits = 31})),
            "AddressSpaceLayout::aarch64: invalid argument: 31 (ipa_bits must be 32 to 52)");
  EXPECT_EQ(message(AddressSpaceLayout::x86_64({.phys_bits = 40, .ecam_buses = 257})),
            "AddressSpaceLayout::x86_64: invalid argument: 257 (ecam_buses must be at most 256)");
  EXPECT_EQ(message(AddressSpaceLayout::x86_64({.phys_bits = 36, .mem_end = 1_GiB})),
            "AddressSpaceLayout::x86_64: invalid argument: 0x40000000 for "
            "[0x100000000, 0x1000000000] (mem_end must lie within this range)");
  // The layout that the machine's parts make is the machine's own call.
  EXPECT_EQ(message(AddressSpaceLayout::x86_64({.phys_bits = 46, .mem_end = 0xfe'0000'0000})),
            "AddressSpaceLayout::x86_64: \"hypertransport\": [0xfd00000000, 0xffffffffff] overlaps "
            "[0x100000000, 0xfdffffffff] (a hole must lie inside one aperture or outside all of "
            "them: \"ram_high\")");
}

TEST(CheckPlace, ErrorsNameBothRanges) {
  EXPECT_EQ(
      pc().check_place(RegionType::default_memory, Range::of(0, 0xc000'0000)).error().message(),
      "AddressSpaceLayout::check_place: [0x0, 0xc0000000] overlaps [0xc0000000, 0xfbffffff] "
      "(this aperture does not take regions of this type: \"mmio_low\")");
}

}  // namespace
}  // namespace vmspace
