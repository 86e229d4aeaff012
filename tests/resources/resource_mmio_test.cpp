// SPDX-License-Identifier: Apache-2.0
//
// Where addresses are found: apertures in the order that reach and prefetchable ask for.

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "resources/manager_state.hpp"

namespace vmspace::resource_mmio_test {
namespace {

using testing::HasSubstr;
using namespace literals;

class ResourceMmioTest : public test::ManagerTest {
 protected:
  static constexpr std::uint64_t last = std::numeric_limits<std::uint64_t>::max();

  static ResourceManager manager_of(LayoutOptions options) {
    return ResourceManager::create(
               AddressSpace::create(AddressSpaceLayout::make(std::move(options)).value()).value())
        .value();
  }
  /// Leaves nothing free in an aperture.
  [[nodiscard]] DeviceResources fill(std::string_view aperture, std::string_view owner) const {
    const Range range = layout.find_aperture(aperture)->range;
    Requests requests;
    std::uint64_t end = aperture == "mmio_high" ? hole : range.max() + 1;
    requests.push_back(MmioRange{.size = end - range.min(), .fixed = GuestAddress{range.min()}});
    return take(requests, owner);
  }
};

TEST_F(ResourceMmioTest, ReachAndPrefetchableSayWhichApertureIsTriedFirst) {
  const auto got =
      take({MmioRange{.size = 4_KiB}, MmioRange{.size = 4_KiB, .prefetchable = true},
            MmioRange{.size = 4_KiB, .reach = MmioReach::below_4g},
            MmioRange{.size = 4_KiB, .reach = MmioReach::below_4g, .prefetchable = true},
            MmioRange{.size = 4_KiB, .reach = MmioReach::high},
            MmioRange{.size = 4_KiB, .reach = MmioReach::high, .prefetchable = true}},
           "dev");
  const std::uint64_t expected[] = {low,         high,         low + 4_KiB,
                                    low + 8_KiB, high + 4_KiB, high + 8_KiB};
  for (std::size_t i = 0; i < 6; ++i)
    EXPECT_EQ(got.mmio(i)->base().value(), expected[i]) << i;
}

TEST_F(ResourceMmioTest, WhatFindsNoSpaceFallsBackAsFarAsItReaches) {
  {
    const auto filled = fill("mmio_high", "filler");
    const auto got =
        take({MmioRange{.size = 4_KiB, .prefetchable = true},
              MmioRange{.size = 4_KiB, .reach = MmioReach::high, .prefetchable = true}},
             "dev");
    EXPECT_EQ(got.mmio(0)->base().value(), low);
    EXPECT_EQ(got.mmio(1)->base().value(), low + 4_KiB);
    refused(Errc::no_space, {MmioRange{.size = 4_KiB, .reach = MmioReach::high}}, "other");
  }
  const auto filled = fill("mmio_low", "filler");
  const auto got = take({MmioRange{.size = 4_KiB}}, "dev");
  EXPECT_EQ(got.mmio()->base().value(), high);
  refused(Errc::no_space, {MmioRange{.size = 4_KiB, .reach = MmioReach::below_4g}}, "other");
}

TEST_F(ResourceMmioTest, EverySizeIsNaturallyAlignedAndNoTwoDevicesShareAPage) {
  Requests requests;
  for (const std::uint64_t size :
       {std::uint64_t{1}, 16_KiB, std::uint64_t{4097}, 1_MiB, 12_KiB, 256_MiB})
    requests.push_back(MmioRange{.size = size});
  const auto got = take(requests, "dev");
  const std::uint64_t aligns[] = {4_KiB, 16_KiB, 8_KiB, 1_MiB, 16_KiB, 256_MiB};
  for (std::size_t i = 0; i < requests.size(); ++i)
    EXPECT_EQ(got.mmio(i)->base().value() % aligns[i], 0U) << i;
  EXPECT_EQ(got.mmio(0)->size(), 1U);
  const auto packed =
      take({MmioRange{.size = 16, .align = 16}, MmioRange{.size = 16, .align = 16}}, "packed");
  EXPECT_EQ(packed.mmio(1)->base().value() - packed.mmio(0)->base().value(), 16U);
}

TEST_F(ResourceMmioTest, FixedRangesMayLieInAPlatformApertureAndOthersNeverDo) {
  const auto hpet = take({MmioRange{.size = 1_KiB, .fixed = GuestAddress{0xfed0'0000}}}, "hpet");
  EXPECT_EQ(hpet.mmio()->base().value(), 0xfed0'0000U);
  const auto odd = take({MmioRange{.size = 0x30, .fixed = GuestAddress{0xfed4'0010}}}, "odd");
  EXPECT_EQ(odd.mmio()->base().value(), 0xfed4'0010U);
  const auto filled = fill("mmio_low", "filler");
  refused(Errc::no_space, {MmioRange{.size = 4_KiB, .reach = MmioReach::below_4g}});
}

TEST_F(ResourceMmioTest, AParkedRangeTakesNoAddressUntilItIsPlaced) {
  auto got = take({MmioRange{.size = 16_KiB, .parked = true},
                   MmioRange{.size = 16_KiB, .fixed = GuestAddress{low}, .parked = true}},
                  "dev");
  EXPECT_TRUE(got.is_parked(ResourceKind::mmio));
  EXPECT_EQ(got.mmio(1)->base().value(), low);
  const auto other = take({MmioRange{.size = 16_KiB}}, "other");
  EXPECT_EQ(other.mmio()->base().value(), low);
  EXPECT_TRUE(manager.holders()[1].parked);
  VMSPACE_EXPECT_OK(got.release());
  EXPECT_TRUE(space.snapshot()->parked().empty());
}

TEST_F(ResourceMmioTest, MemoryGoesToTheLowestApertureThatTakesItOrToTheOneNamed) {
  const BackingSpec shmem{.source = MemorySource::shmem};
  const auto got = take(
      {MemoryRange{.region = {.size = 1_GiB}},
       MemoryRange{
           .region = {.size = 1_GiB, .backing = shmem}, .align = 1_GiB, .aperture = "ram_high"},
       MemoryRange{.region = {.name = "dax window", .type = RegionType::dax_memory, .size = 2_MiB}},
       MemoryRange{.region = {.type = RegionType::dax_memory, .size = 2_MiB},
                   .aperture = "mmio_high"},
       MemoryRange{.region = {.type = RegionType::firmware_memory,
                              .size = 64_KiB,
                              .backing = shmem,
                              .protection = Protection::read},
                   .aperture = "platform"},
       MemoryRange{.region = {.size = 4_KiB, .backing = shmem}, .fixed = GuestAddress{2_GiB}}},
      "dev");
  EXPECT_EQ(got.memory(0)->base().value(), 0U);
  EXPECT_EQ(got.memory(1)->base().value(), 4_GiB);
  EXPECT_EQ(got.memory(1)->backing().source, MemorySource::shmem);
  EXPECT_EQ(got.memory(2)->base().value(), low);
  EXPECT_EQ(got.memory(2)->name(), "dax window");
  EXPECT_EQ(got.memory(3)->base().value(), high);
  EXPECT_EQ(got.memory(3)->name(), "dev");
  EXPECT_EQ(got.memory(4)->base().value(), 0xfc00'0000U);
  EXPECT_EQ(got.memory(5)->base().value(), 2_GiB);
}

TEST_F(ResourceMmioTest, ANamedApertureConfinesRangesAndWindowsWhereverTheyGo) {
  const auto segments = manager_of(
      {.phys_max = 64_GiB - 1,
       .apertures = {{"s0_32", Range::of(1_GiB, 2_GiB - 1), ApertureUse::mmio},
                     {"s1_32", Range::of(2_GiB, 3_GiB - 1), ApertureUse::mmio},
                     {"platform", Range::of(3_GiB, 3_GiB + 1_MiB - 1), ApertureUse::platform},
                     {"s1_64", Range::of(8_GiB, 9_GiB - 1), ApertureUse::mmio}}});
  auto got = VMSPACE_ASSERT_OK(segments.acquire(
      {MmioRange{.size = 4_KiB, .aperture = "s1_32"}, MmioRange{.size = 4_KiB, .aperture = "s1_64"},
       MmioRange{.size = 4_KiB, .aperture = "platform"},
       MmioRange{.size = 4_KiB, .aperture = "s1_32", .parked = true},
       BridgeWindow{.size = 1_MiB, .aperture = "s1_32"},
       BridgeWindow{.size = 1_MiB, .prefetchable = true, .aperture = "s1_64"}},
      "dev"));
  EXPECT_EQ(got.mmio(0)->base().value(), 2_GiB);
  EXPECT_EQ(got.mmio(1)->base().value(), 8_GiB);
  EXPECT_EQ(got.mmio(2)->base().value(), 3_GiB);
  EXPECT_EQ(got.bridge_window(0).min(), 2_GiB + 1_MiB);
  EXPECT_EQ(got.bridge_window(1).min(), 8_GiB + 1_MiB);
  // Behind a bridge, only those of its windows count that are in the aperture.
  const auto behind = VMSPACE_ASSERT_OK(segments.acquire(
      {MmioRange{.size = 4_KiB, .prefetchable = true, .bridge = "dev", .aperture = "s1_32"}},
      "behind"));
  EXPECT_EQ(behind.mmio()->base().value(), 2_GiB + 1_MiB);

  const auto refused_request = [&](Errc code, const ResourceRequest& request) {
    test::refusal(segments, code, [&] { return segments.acquire({request}, "other"); });
  };
  refused_request(Errc::no_space, MmioRange{.size = 2_GiB, .aperture = "s1_32"});
  refused_request(Errc::not_found, MmioRange{.size = 4_KiB, .aperture = "attic"});
  refused_request(Errc::not_found, MmioRange{.size = 4_KiB, .aperture = "attic", .parked = true});
  refused_request(Errc::not_found,
                  BridgeWindow{.size = 1_MiB, .aperture = "attic", .parked = true});
  refused_request(Errc::not_found, MmioRange{.size = 4_KiB, .bridge = "dev", .aperture = "s0_32"});
  refused_request(Errc::out_of_bounds,
                  MmioRange{.size = 4_KiB, .aperture = "s0_32", .fixed = GuestAddress{2_GiB}});
  refused_request(
      Errc::out_of_bounds,
      BridgeWindow{.size = 1_MiB, .aperture = "s0_32", .fixed = GuestAddress{2_GiB + 2_MiB}});
  const auto refused_move = [&](const ResourceMove& move) {
    test::refusal(segments, Errc::out_of_bounds, [&] { return segments.relocate({move}); });
  };
  refused_move({&got, 0, GuestAddress{1_GiB}});
  refused_move({&got, 3, GuestAddress{1_GiB}});
  refused_move({&got, 1, GuestAddress{1_GiB}, ResourceKind::bridge_window});
  VMSPACE_EXPECT_OK(segments.relocate({{&got, 3, GuestAddress{2_GiB + 4_KiB}}}));
}

TEST_F(ResourceMmioTest, MemoryThatNoApertureTakesIsRefused) {
  const RegionOptions ram{.size = 1_GiB};
  const RegionOptions dax{.type = RegionType::dax_memory, .size = 1_GiB};
  EXPECT_THAT(refused(Errc::not_found, {MemoryRange{.region = ram, .aperture = "attic"}}),
              HasSubstr("\"attic\""));
  EXPECT_THAT(refused(Errc::not_found, {MemoryRange{.region = ram, .aperture = "mmio_low"}}),
              HasSubstr("\"mmio_low\""));
  for (const RegionOptions& region : {ram, dax}) {
    refused(Errc::not_found,
            {MemoryRange{.region = region, .aperture = "attic", .fixed = GuestAddress{4_GiB}}});
  }
  refused(Errc::out_of_bounds,
          {MemoryRange{.region = ram, .aperture = "ram_high", .fixed = GuestAddress{0}}});
  refused(Errc::out_of_bounds,
          {MemoryRange{.region = dax, .aperture = "mmio_high", .fixed = GuestAddress{low}}});
  RegionOptions based = ram;
  based.base = GuestAddress{4_GiB};
  refused(Errc::invalid_argument, {MemoryRange{.region = based}});
  RegionOptions owned = ram;
  owned.owner = "somebody";
  EXPECT_THAT(refused(Errc::invalid_argument, {MemoryRange{.region = owned}}),
              HasSubstr("\"somebody\""));
  RegionOptions bad = ram;
  bad.populate = true;  // without a backing
  refused(Errc::invalid_argument, {MemoryRange{.region = bad}});
  bad = {.size = 4097, .backing = {.source = MemorySource::shmem}};
  refused(Errc::misaligned, {MemoryRange{.region = bad}});
  refused(Errc::misaligned, {MemoryRange{.region = {.size = 4_KiB, .backing = bad.backing},
                                         .fixed = GuestAddress{2_GiB + 512}}});
}

TEST_F(ResourceMmioTest, ARangeMayCross4GiBWhereAnApertureDoes) {
  const auto arm = ResourceManager::create(
                       AddressSpace::create(
                           AddressSpaceLayout::aarch64({.ipa_bits = 36, .mem_end = 8_GiB}).value())
                           .value())
                       .value();
  const auto ram = VMSPACE_ASSERT_OK(arm.acquire({MemoryRange{.region = {.size = 6_GiB}}}, "ram"));
  EXPECT_EQ(ram.memory()->base().value(), 1_GiB);
  const auto wide =
      manager_of({.phys_max = 16_GiB - 1,
                  .apertures = {{"mmio", Range::of(1_GiB, 8_GiB - 1), ApertureUse::mmio}}});
  const auto got = VMSPACE_ASSERT_OK(
      wide.acquire({MmioRange{.size = 5_GiB, .align = 1_GiB, .prefetchable = true},
                    MmioRange{.size = 1_GiB, .reach = MmioReach::high}},
                   "dev"));
  EXPECT_EQ(got.mmio(0)->base().value(), 1_GiB);
  EXPECT_EQ(got.mmio(1)->base().value(), 6_GiB);
  EXPECT_THAT(wide.acquire({MmioRange{.size = 1_GiB, .reach = MmioReach::below_4g}}, "other"),
              HasError(Errc::no_space));
}

TEST_F(ResourceMmioTest, SeveralAperturesOfAKindAreTriedInTurn) {
  const auto many =
      manager_of({.phys_max = 64_GiB - 1,
                  .apertures = {{"a", Range::of(1_GiB, 1_GiB + 64_KiB - 1), ApertureUse::mmio},
                                {"b", Range::of(2_GiB, 2_GiB + 128_KiB - 1), ApertureUse::mmio},
                                {"c", Range::of(8_GiB, 8_GiB + 64_KiB - 1), ApertureUse::mmio},
                                {"d", Range::of(9_GiB, 9_GiB + 64_KiB - 1), ApertureUse::mmio}}});
  const auto got =
      VMSPACE_ASSERT_OK(many.acquire({MmioRange{.size = 64_KiB}, MmioRange{.size = 64_KiB},
                                      MmioRange{.size = 64_KiB, .prefetchable = true},
                                      MmioRange{.size = 64_KiB, .prefetchable = true},
                                      MmioRange{.size = 32_KiB, .prefetchable = true}},
                                     "dev"));
  const std::uint64_t expected[] = {1_GiB, 2_GiB, 8_GiB, 9_GiB, 2_GiB + 64_KiB};
  for (std::size_t i = 0; i < 5; ++i)
    EXPECT_EQ(got.mmio(i)->base().value(), expected[i]) << i;
  EXPECT_THAT(test::refusal(many, Errc::no_space,
                            [&] { return many.acquire({MmioRange{.size = 64_KiB}}, "other"); }),
              HasSubstr("the largest free piece is [0x80018000, 0x8001ffff]"));
}

TEST_F(ResourceMmioTest, TheLastAddressesAreGivenAndComeBack) {
  const auto top =
      manager_of({.phys_max = last,
                  .apertures = {{"mmio", Range::of(last - 1_GiB + 1, last), ApertureUse::mmio}}});
  {
    auto got = VMSPACE_ASSERT_OK(top.acquire(
        {MmioRange{.size = 4_KiB, .fixed = GuestAddress{last - 4_KiB + 1}},
         BridgeWindow{
             .size = 1_MiB, .prefetchable = true, .fixed = GuestAddress{last - 2_MiB + 1}}},
        "dev"));
    EXPECT_EQ(got.mmio()->range().max(), last);
    test::refusal(top, Errc::overlap, [&] {
      return top.acquire({MmioRange{.size = 1, .fixed = GuestAddress{last}}}, "b");
    });
    VMSPACE_EXPECT_OK(top.relocate({{&got, 0, GuestAddress{last - 8_KiB + 1}}}));
    VMSPACE_EXPECT_OK(
        top.relocate({{&got, 0, GuestAddress{last - 1_MiB + 1}, ResourceKind::bridge_window},
                      {&got, 0, std::nullopt}}));
    const auto behind = VMSPACE_ASSERT_OK(
        top.acquire({MmioRange{.size = 1_MiB, .prefetchable = true, .bridge = "dev"}}, "behind"));
    EXPECT_EQ(behind.mmio()->range().max(), last);
    test::refusal(top, Errc::no_space,
                  [&] { return top.acquire({MmioRange{.size = 1_GiB, .align = 1}}, "b"); });
  }
  VMSPACE_EXPECT_OK(top.collect());
  const auto all = VMSPACE_ASSERT_OK(top.acquire({MmioRange{.size = 1_GiB}}, "all"));
  EXPECT_EQ(all.mmio()->range(), Range::of(last - 1_GiB + 1, last));

  const auto pc =
      ResourceManager::create(
          AddressSpace::create(AddressSpaceLayout::x86_64({.phys_bits = 52}).value()).value())
          .value();
  const auto highest = VMSPACE_ASSERT_OK(pc.acquire(
      {MmioRange{.size = 4_KiB, .fixed = GuestAddress{(std::uint64_t{1} << 52U) - 4_KiB}}}, "dev"));
  EXPECT_EQ(highest.mmio()->range().max(), (std::uint64_t{1} << 52U) - 1);
  test::refusal(pc, Errc::out_of_bounds, [&] {
    return pc.acquire({MmioRange{.size = 4_KiB, .fixed = GuestAddress{std::uint64_t{1} << 52U}}},
                      "b");
  });
}

TEST_F(ResourceMmioTest, FirmwareKeepsOutOfBridgeWindows) {
  const auto bridge = take({BridgeWindow{.size = 1_MiB, .fixed = GuestAddress{low}}}, "br");
  const auto ram = take({MemoryRange{.region = {.size = 3_GiB}, .fixed = GuestAddress{0}}}, "ram");
  const auto rom =
      take({MemoryRange{.region = {.type = RegionType::firmware_memory, .size = 64_KiB}}}, "rom");
  EXPECT_EQ(rom.memory()->base().value(), low + 1_MiB);
}

TEST_F(ResourceMmioTest, RegionsThatOthersEnterAreRespected) {
  VMSPACE_EXPECT_OK(space.insert_region({.name = "theirs",
                                         .type = RegionType::device_memory,
                                         .base = GuestAddress{low},
                                         .size = 4_KiB}));
  const auto got = take({MmioRange{.size = 4_KiB}}, "dev");
  EXPECT_EQ(got.mmio()->base().value(), low + 4_KiB);
  EXPECT_THAT(
      refused(Errc::overlap, {MmioRange{.size = 4_KiB, .fixed = GuestAddress{low}}}, "other"),
      HasSubstr("\"theirs\""));
}

}  // namespace
}  // namespace vmspace::resource_mmio_test
