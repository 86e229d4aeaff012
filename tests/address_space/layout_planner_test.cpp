// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/layout_planner.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/text.hpp"

namespace vmspace::layout_planner_test {
namespace {

using namespace literals;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::uint64_t top = UINT64_MAX;

AddressSpaceLayout pc(unsigned phys_bits = 46) {
  return *AddressSpaceLayout::x86_64({.phys_bits = phys_bits});
}

GuestRange at(std::uint64_t base, std::uint64_t size) {
  return {GuestAddress(base), size};
}

PlacementRequest ram(const std::string& name, std::uint64_t size, std::uint64_t align = 0,
                     std::uint32_t node = 0) {
  return {.name = name, .kind = PlacementKind::ram, .size = size, .align = align, .node = node};
}

PlacementRequest fixed(const std::string& name, std::uint64_t base, std::uint64_t size) {
  return {.name = name, .kind = PlacementKind::fixed, .size = size, .base = GuestAddress(base)};
}

PlacementRequest reserve(const std::string& name, std::uint64_t base, std::uint64_t size) {
  return {.name = name, .kind = PlacementKind::reserve, .size = size, .base = GuestAddress(base)};
}

PlacementRequest mmio32(const std::string& name, std::uint64_t size, std::uint64_t align = 0) {
  return {.name = name, .kind = PlacementKind::mmio32, .size = size, .align = align};
}

PlacementRequest mmio64(const std::string& name, std::uint64_t size, std::uint64_t align = 0) {
  return {.name = name, .kind = PlacementKind::mmio64, .size = size, .align = align};
}

using Pieces = std::vector<GuestRange>;

/// Where the placement of this name lies; nothing when there is no plan or no such placement.
Pieces pieces_of(const Result<LayoutPlan>& plan, const std::string& name) {
  EXPECT_THAT(plan, IsOk());
  if (!plan) return {};
  for (const Placement& placement : plan->placements) {
    if (placement.name == name) return placement.pieces;
  }
  ADD_FAILURE() << "no placement " << name;
  return {};
}

std::string message(const AddressSpaceLayout& frame, std::vector<PlacementRequest> requests) {
  const auto plan = plan_layout(frame, requests);
  return plan ? "planned: " + to_text(*plan) : plan.error().message();
}

// ---- The rule.

TEST(LayoutPlanner, ListsPlacementsAsAskedAndPiecesByAddress) {
  const auto plan = plan_layout(
      pc(), {mmio64("bars", 1_GiB), ram("ram", 4_GiB), fixed("rom", 0xffe0'0000, 2_MiB)});
  ASSERT_THAT(plan, IsOk());
  EXPECT_THAT(plan->placements,
              ElementsAre(Placement{"bars", PlacementKind::mmio64, {at(0x2000'0000'0000, 1_GiB)}},
                          Placement{"ram", PlacementKind::ram, {at(0, 3_GiB), at(4_GiB, 1_GiB)}},
                          Placement{"rom", PlacementKind::fixed, {at(0xffe0'0000, 2_MiB)}}));
  EXPECT_THAT(
      plan->pieces,
      ElementsAre(PlannedPiece{at(0, 3_GiB), 1}, PlannedPiece{at(0xffe0'0000, 2_MiB), 2},
                  PlannedPiece{at(4_GiB, 1_GiB), 1}, PlannedPiece{at(0x2000'0000'0000, 1_GiB), 0}));
  EXPECT_EQ(to_text(*plan),
            "{bars mmio64 {0x200000000000+0x40000000}, "
            "ram ram {0x0+0xc0000000, 0x100000000+0x40000000} node 0, "
            "rom fixed {0xffe00000+0x200000}}");
}

TEST(LayoutPlanner, OfNothingIsEmpty) {
  const auto plan = plan_layout(pc(), {});
  ASSERT_THAT(plan, IsOk());
  EXPECT_THAT(plan->placements, IsEmpty());
  EXPECT_THAT(plan->pieces, IsEmpty());
}

TEST(LayoutPlanner, RamOfAGigabyteOrMoreBeginsAtAGigabyteAndOtherRamAtTwoMegabytes) {
  const auto plan = plan_layout(
      pc(), {ram("a", 3_MiB + 4_KiB), ram("b", 3_MiB), ram("c", 1_GiB), ram("d", 1_GiB - 4_KiB)});
  EXPECT_EQ(pieces_of(plan, "a"), Pieces{at(0, 3_MiB + 4_KiB)});
  EXPECT_EQ(pieces_of(plan, "b"), Pieces{at(4_MiB, 3_MiB)});
  EXPECT_EQ(pieces_of(plan, "c"), Pieces{at(1_GiB, 1_GiB)});
  EXPECT_EQ(pieces_of(plan, "d"), Pieces{at(2_GiB, 1_GiB - 4_KiB)});
}

TEST(LayoutPlanner, AnAlignmentOfItsOwnPacksRamAsPlanRamDoes) {
  const auto plan = plan_layout(pc(), {ram("a", 1536_MiB, 4_KiB), ram("b", 1536_MiB, 4_KiB, 1)});
  EXPECT_EQ(pieces_of(plan, "a"), Pieces{at(0, 1536_MiB)});
  EXPECT_EQ(pieces_of(plan, "b"), Pieces{at(1536_MiB, 1536_MiB)});
  const auto by_rule = plan_layout(pc(), {ram("a", 1536_MiB), ram("b", 1536_MiB, 0, 1)});
  EXPECT_EQ(pieces_of(by_rule, "b"), (Pieces{at(2_GiB, 1_GiB), at(4_GiB, 512_MiB)}));
}

TEST(LayoutPlanner, EveryPieceOfRamButTheLastIsAMultipleOfTheAlignment) {
  const auto plan = plan_layout(pc(), {reserve("kept", 2_GiB + 512_MiB, 1_MiB), ram("ram", 4_GiB)});
  EXPECT_EQ(pieces_of(plan, "ram"), (Pieces{at(0, 2_GiB), at(4_GiB, 2_GiB)}));
}

TEST(LayoutPlanner, RamBeginsAboveAReserveAtItsAlignment) {
  const auto plan =
      plan_layout(pc(), {reserve("vga", 0xa'0000, 0x6'0000), ram("ram", 1_GiB, 2_MiB)});
  EXPECT_EQ(pieces_of(plan, "ram"), Pieces{at(2_MiB, 1_GiB)});
}

TEST(LayoutPlanner, MmioIsPlacedByAlignmentThenSizeThenAsAsked) {
  const auto plan = plan_layout(
      pc(), {mmio32("page a", 4_KiB), mmio32("page b", 4_KiB), mmio32("long", 1_MiB, 4_KiB),
             mmio32("aligned", 64_KiB, 64_KiB), mmio32("bytes", 8, 8)});
  EXPECT_EQ(pieces_of(plan, "aligned"), Pieces{at(0xc000'0000, 64_KiB)});
  EXPECT_EQ(pieces_of(plan, "long"), Pieces{at(0xc001'0000, 1_MiB)});
  EXPECT_EQ(pieces_of(plan, "page a"), Pieces{at(0xc011'0000, 4_KiB)});
  EXPECT_EQ(pieces_of(plan, "page b"), Pieces{at(0xc011'1000, 4_KiB)});
  EXPECT_EQ(pieces_of(plan, "bytes"), Pieces{at(0xc011'2000, 8)});
}

TEST(LayoutPlanner, EqualDevicesLieInTheOrderAskedHoweverMany) {
  std::vector<PlacementRequest> requests;
  for (std::uint64_t i = 0; i < 100; ++i)
    requests.push_back(mmio32("virtio" + std::to_string(i), 4_KiB));
  const auto plan = plan_layout(pc(), requests);
  ASSERT_THAT(plan, IsOk());
  for (std::uint64_t i = 0; i < 100; ++i) {
    EXPECT_THAT(plan->placements[i].pieces, ElementsAre(at(0xc000'0000 + i * 4_KiB, 4_KiB)));
  }
}

TEST(LayoutPlanner, FixedAndReservedRangesKeepMmioOff) {
  const auto plan =
      plan_layout(pc(), {fixed("debug", 0xc000'0000, 4_KiB), reserve("later", 0xc000'2000, 4_KiB),
                         mmio32("small", 4_KiB), mmio32("large", 8_KiB)});
  EXPECT_EQ(pieces_of(plan, "large"), Pieces{at(0xc000'3000, 8_KiB)});
  EXPECT_EQ(pieces_of(plan, "small"), Pieces{at(0xc000'1000, 4_KiB)});
}

TEST(LayoutPlanner, NothingIsPlacedAcrossTheEdgeOfAnAperture) {
  const auto frame = *AddressSpaceLayout::make(
      {.phys_max = 0xffff,
       .apertures = {{"a", Range::of(0x0000, 0x1fff), ApertureUse::mmio},
                     {"b", Range::of(0x2000, 0x4fff), ApertureUse::mmio},
                     {"platform", Range::of(0x5000, 0x5fff), ApertureUse::platform}}});
  const auto plan = plan_layout(frame, {mmio32("three", 12_KiB), mmio32("two", 8_KiB)});
  EXPECT_EQ(pieces_of(plan, "three"), Pieces{at(0x2000, 12_KiB)});
  EXPECT_EQ(pieces_of(plan, "two"), Pieces{at(0, 8_KiB)});
  EXPECT_EQ(message(frame, {mmio32("four", 16_KiB)}),
            "plan_layout: \"mmio32 four (request 0)\": no space for 0x4000 in [0x0, 0xffff]; the "
            "largest free piece is [0x2000, 0x4fff]");
}

TEST(LayoutPlanner, AWindowAcrossFourGigabytesServesBothKinds) {
  const auto frame = *AddressSpaceLayout::make(
      {.phys_max = top, .apertures = {{"mmio", Range::of(4_GiB - 8_KiB, top), ApertureUse::mmio}}});
  const auto plan = plan_layout(frame, {mmio64("high", top - 4_GiB + 1, 1), mmio32("low", 8_KiB)});
  EXPECT_EQ(pieces_of(plan, "low"), Pieces{at(4_GiB - 8_KiB, 8_KiB)});
  EXPECT_EQ(pieces_of(plan, "high"), Pieces{at(4_GiB, top - 4_GiB + 1)});
}

TEST(LayoutPlanner, AReserveMayCoverHolesAndEdges) {
  EXPECT_EQ(message(pc(), {reserve("edge", 3_GiB - 4_KiB, 8_KiB),
                           reserve("ht", 0xfd'0000'0000, 12_GiB), reserve("zero", 0, 1)}),
            "planned: {edge reserve {0xbffff000+0x2000}, ht reserve {0xfd00000000+0x300000000}, "
            "zero reserve {0x0+0x1}}");
}

// ---- Peers' machines. A frame like theirs gives their addresses; see the header for where not.

/// RAM below `low_end` and from 4 GiB on, as all of them have it.
AddressSpaceLayout split_at(std::uint64_t low_end) {
  return *AddressSpaceLayout::make(
      {.phys_max = 1_TiB - 1,
       .ram = Range::of(0, 512_GiB - 1),
       .apertures = {{"mmio_low", *Range::make(low_end, 0xfebf'ffff), ApertureUse::mmio},
                     {"platform", Range::of(0xfec0'0000, 4_GiB - 1), ApertureUse::platform}}});
}

TEST(LayoutPlannerPeers, AsQemuSplitsRamOfAQ35) {
  // 2.75 GiB or more: 2 GiB are below; with -m 8G, 0..2 GiB and 4..10 GiB.
  EXPECT_EQ(pieces_of(plan_layout(split_at(2_GiB), {ram("pc.ram", 8_GiB)}), "pc.ram"),
            (Pieces{at(0, 2_GiB), at(4_GiB, 6_GiB)}));
  // Less is all below 0xb000'0000. QEMU chooses the frame by the size, ours is the caller's.
  EXPECT_EQ(pieces_of(plan_layout(split_at(0xb000'0000), {ram("pc.ram", 2560_MiB)}), "pc.ram"),
            Pieces{at(0, 2560_MiB)});
}

TEST(LayoutPlannerPeers, AsCloudHypervisorsAreas) {
  // 3 GiB below, the rest from 4 GiB; MMIO of 640 MiB from 3 GiB, then 256 MiB of ECAM.
  const auto plan = plan_layout(
      pc(), {ram("mem0", 8_GiB), fixed("ecam", 0xe800'0000, 256_MiB), mmio32("pci", 640_MiB)});
  EXPECT_EQ(pieces_of(plan, "mem0"), (Pieces{at(0, 3_GiB), at(4_GiB, 5_GiB)}));
  EXPECT_EQ(pieces_of(plan, "pci"), Pieces{at(0xc000'0000, 640_MiB)});
}

TEST(LayoutPlannerPeers, OpenVmmsOrderLetsADeviceMoveRamAndOursDoesNot) {
  // 32 MiB reserved below 4 GiB, 128 MiB of 32-bit MMIO and 2 GiB of RAM: RAM lies where theirs
  // does. Their MMIO ends at the reserved range, ours begins with its window.
  const std::vector<PlacementRequest> theirs = {reserve("reserved", 0xfe00'0000, 32_MiB),
                                                mmio32("vmbus", 128_MiB, 1_MiB),
                                                ram("ram", 2_GiB, 4_KiB)};
  const auto plan = plan_layout(split_at(3_GiB), theirs);
  EXPECT_EQ(pieces_of(plan, "ram"), Pieces{at(0, 2_GiB)});
  EXPECT_EQ(pieces_of(plan, "vmbus"), Pieces{at(3_GiB, 128_MiB)});
  // Of 4 GiB of RAM they put 0xf600'0000 bytes below 4 GiB, and 0xc600'0000 once there is a device
  // of 768 MiB; we put 3 GiB there, with and without it.
  auto more = theirs;
  more[2].size = 4_GiB;
  const Pieces expected{at(0, 3_GiB), at(4_GiB, 1_GiB)};
  EXPECT_EQ(pieces_of(plan_layout(split_at(3_GiB), more), "ram"), expected);
  more.push_back(mmio32("gpu", 768_MiB, 1_MiB));
  EXPECT_EQ(pieces_of(plan_layout(split_at(3_GiB), more), "ram"), expected);
}

// ---- Errors.

TEST(LayoutPlannerErrors, NameTheRequestItsKindAndItsIndex) {
  EXPECT_EQ(message(pc(), {ram("ram", 1_GiB), mmio32("nic", 0)}),
            "plan_layout: \"mmio32 nic (request 1)\": size is zero");
  EXPECT_EQ(message(pc(), {mmio64("nic", 4_KiB, 3)}),
            "plan_layout: \"mmio64 nic (request 0)\": invalid alignment: 0x3");
  EXPECT_EQ(message(pc(), {ram("ram", 1_GiB + 1)}),
            "plan_layout: \"ram ram (request 0)\": misaligned: 0x40000001 is not a multiple of "
            "0x1000");
  EXPECT_EQ(message(pc(), {ram("ram", 1_GiB, 2)}),
            "plan_layout: \"ram ram (request 0)\": misaligned: 0x2 is not a multiple of 0x1000 "
            "(the alignment and the page size)");
  EXPECT_EQ(message(pc(), {fixed("", 0, 1)}),
            "plan_layout: \"fixed  (request 0)\": invalid argument (the name is empty)");
  EXPECT_EQ(message(pc(), {mmio32("nic", 1), ram("disk", 2_MiB), mmio64("nic", 1)}),
            "plan_layout: \"mmio64 nic (request 2)\": invalid argument (the name is taken: "
            "\"mmio32 nic (request 0)\")");
  EXPECT_EQ(message(pc(), {{.name = "x", .kind = static_cast<PlacementKind>(5), .size = 1}}),
            "plan_layout: \"unknown x (request 0)\": invalid argument: 5 (no such PlacementKind)");
}

TEST(LayoutPlannerErrors, WhatAKindDoesNotTakeIsRefused) {
  PlacementRequest request = mmio32("nic", 4_KiB);
  request.base = GuestAddress(0xc000'0000);
  EXPECT_EQ(message(pc(), {request}),
            "plan_layout: \"mmio32 nic (request 0)\": invalid argument: 0xc0000000 (the base is to "
            "be found: leave it 0)");
  request = mmio32("nic", 4_KiB);
  request.node = 1;
  EXPECT_EQ(message(pc(), {request}),
            "plan_layout: \"mmio32 nic (request 0)\": invalid argument: 1 (only RAM has a node: "
            "leave it 0)");
}

TEST(LayoutPlannerErrors, FixedRangesThatMeetAreBothNamed) {
  EXPECT_EQ(message(pc(), {fixed("rom", 0xffe0'0000, 2_MiB), reserve("top", 0xffff'f000, 4_KiB)}),
            "plan_layout: \"reserve top (request 1)\": [0xfffff000, 0xffffffff] overlaps "
            "[0xffe00000, 0xffffffff] (already there: \"fixed rom (request 0)\")");
}

TEST(LayoutPlannerErrors, FixedRangesStayInTheFrame) {
  EXPECT_EQ(message(pc(36), {fixed("far", 64_GiB - 4_KiB, 8_KiB)}),
            "plan_layout: \"fixed far (request 0)\": out of bounds: [0xffffff000, 0x1000000fff] is "
            "not within [0x0, 0xfffffffff] (the region must end at or below phys_max)");
  EXPECT_EQ(message(pc(36), {reserve("far", 64_GiB, 1)}),
            "plan_layout: \"reserve far (request 0)\": out of bounds: [0x1000000000, 0x1000000000] "
            "is not within [0x0, 0xfffffffff] (the range must end at or below phys_max)");
  EXPECT_EQ(
      message(pc(), {fixed("ht", 0xfd'0000'0000, 4_KiB)}),
      "plan_layout: \"fixed ht (request 0)\": [0xfd00000000, 0xfd00000fff] overlaps "
      "[0xfd00000000, 0xffffffffff] (the layout allows nothing in this hole: \"hypertransport\")");
  EXPECT_THAT(plan_layout(pc(), {fixed("edge", 4_GiB - 4_KiB, 8_KiB)}),
              HasError(Errc::out_of_bounds));
  EXPECT_EQ(message(pc(), {fixed("wrap", top, 2)}),
            "plan_layout: \"fixed wrap (request 0)\": overflow: "
            "0xffffffffffffffff plus 0x2");
  PlacementRequest odd = fixed("odd", 0xffe0'1000, 4_KiB);
  odd.align = 2_MiB;
  EXPECT_EQ(message(pc(), {odd}),
            "plan_layout: \"fixed odd (request 0)\": misaligned: 0xffe01000 is not a multiple of "
            "0x200000 (the base and the alignment)");
}

TEST(LayoutPlannerErrors, WhatDoesNotFitComesWithTheLargestPieceLeft) {
  EXPECT_EQ(message(pc(), {mmio32("gpu", 512_MiB), mmio32("fpga", 512_MiB)}),
            "plan_layout: \"mmio32 fpga (request 1)\": no space for 0x20000000 in "
            "[0x0, 0xffffffff]; the largest free piece is [0xe0000000, 0xfbffffff]");
  EXPECT_EQ(message(pc(), {mmio32("wide", 4_KiB, 4_GiB)}),
            "plan_layout: \"mmio32 wide (request 0)\": no space for 0x1000 in [0x0, 0xffffffff]; "
            "the largest free piece is [0xc0000000, 0xfbffffff] (no free range is long enough at "
            "this alignment)");
  EXPECT_EQ(message(pc(36), {ram("a", 2_GiB), ram("b", 32_GiB)}),
            "plan_layout: \"ram b (request 1)\": no space for 0x800000000 in [0x0, 0x7ffffffff]; "
            "the largest free piece is [0x100000000, 0x7ffffffff]");
}

TEST(LayoutPlannerErrors, AFrameWithoutAPlaceSaysSo) {
  const auto small = *AddressSpaceLayout::make({.phys_max = 1_GiB - 1});
  EXPECT_EQ(message(small, {ram("ram", 4_KiB)}),
            "plan_layout: \"ram ram (request 0)\": no space for 0x1000 (the layout has no RAM)");
  EXPECT_EQ(message(small, {mmio64("bars", 4_KiB)}),
            "plan_layout: \"mmio64 bars (request 0)\": no space for 0x1000 in [0x0, 0x3fffffff] "
            "(the layout ends below 4 GiB)");
  const auto all_ram = *AddressSpaceLayout::make({.phys_max = top, .ram = Range::whole_domain()});
  EXPECT_EQ(message(all_ram, {mmio64("bars", 4_KiB)}),
            "plan_layout: \"mmio64 bars (request 0)\": no space for 0x1000 in [0x100000000, "
            "0xffffffffffffffff] (no free range lies in this window)");
}

TEST(LayoutPlannerErrors, HostileNumbersAreErrorsOrPlaces) {
  const auto whole = *AddressSpaceLayout::make({.phys_max = top, .ram = Range::whole_domain()});
  const auto devices = *AddressSpaceLayout::make({.phys_max = top});
  for (const std::uint64_t size : {std::uint64_t{1} << 63, top - 0xfff, top}) {
    for (const std::uint64_t align : {std::uint64_t{0}, 4_KiB, std::uint64_t{1} << 63}) {
      for (const AddressSpaceLayout& frame : {pc(), whole, devices}) {
        for (const PlacementRequest& request :
             {ram("x", size, align), mmio32("x", size, align), mmio64("x", size, align),
              fixed("x", std::uint64_t{1} << 63, size), reserve("x", 1, size)}) {
          const auto plan = plan_layout(frame, {request, ram("y", 4_KiB, 4_KiB)});
          if (!plan) continue;
          for (const GuestRange& piece : plan->placements[0].pieces) {
            EXPECT_THAT(piece.range(), IsOk());
            EXPECT_TRUE(piece.base.is_aligned(request.align)) << to_text(request);
          }
        }
      }
    }
  }
  // All of 2^64 bytes: 2^63 twice.
  const auto halves =
      plan_layout(whole, {ram("a", std::uint64_t{1} << 63, 4_KiB),
                          ram("b", std::uint64_t{1} << 63, std::uint64_t{1} << 63)});
  EXPECT_EQ(pieces_of(halves, "b"), Pieces{at(std::uint64_t{1} << 63, std::uint64_t{1} << 63)});
}

TEST(LayoutPlannerText, OfRequestsAndPieces) {
  EXPECT_EQ(to_text(fixed("rom", 0xffe0'0000, 2_MiB)), "rom fixed 0xffe00000+0x200000");
  EXPECT_EQ(to_text(ram("ram1", 1_GiB, 0, 1)), "ram1 ram 0x40000000 node 1");
  EXPECT_EQ(to_text(mmio64("bars", 16_KiB, 16_KiB)), "bars mmio64 0x4000 aligned to 0x4000");
  EXPECT_EQ(to_text(PlannedPiece{at(0, 3_GiB), 1}), "0x0+0xc0000000 of placement 1");
}

}  // namespace
}  // namespace vmspace::layout_planner_test
