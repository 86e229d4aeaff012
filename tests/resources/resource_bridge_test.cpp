// SPDX-License-Identifier: Apache-2.0
//
// What is behind a bridge lies in its windows, and nothing else does.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "resources/manager_state.hpp"

namespace vmspace::resource_bridge_test {
namespace {

using testing::HasSubstr;
using namespace literals;

class ResourceBridgeTest : public test::ManagerTest {
 protected:
  /// A BAR of 64 KiB behind a bridge, or at this place.
  static MmioRange bar(std::string bridge, std::optional<std::uint64_t> at = {}) {
    MmioRange request{.size = 64_KiB, .bridge = std::move(bridge)};
    if (at) request.fixed = GuestAddress{*at};
    return request;
  }
  static BridgeWindow window(std::uint64_t size, std::optional<std::uint64_t> at = {}) {
    BridgeWindow request{.size = size};
    if (at) request.fixed = GuestAddress{*at};
    return request;
  }
};

TEST_F(ResourceBridgeTest, WhatIsBehindABridgeLiesInItsWindowAndNothingElseDoes) {
  const auto before = take({bar({})}, "before");
  const auto bridge = take({window(1_MiB)}, "br");
  const auto behind = take({bar("br"), bar("br", low + 1_MiB + 512_KiB)}, "behind");
  const auto beside = take(Requests(32, bar({})), "beside");
  EXPECT_EQ(bridge.bridge_window(), Range::of(low + 1_MiB, low + 2_MiB - 1));
  EXPECT_EQ(behind.mmio(0)->base().value(), low + 1_MiB);
  EXPECT_EQ(behind.mmio(1)->base().value(), low + 1_MiB + 512_KiB);
  for (std::size_t i = 0; i < 32; ++i) {
    EXPECT_FALSE(beside.mmio(i)->range().overlaps(bridge.bridge_window())) << i;
  }
}

TEST_F(ResourceBridgeTest, FixedRangesLieInTheWindowOfTheirBridgeOrAreRefused) {
  const auto bridge = take({window(1_MiB, low + 1_MiB)}, "br");
  EXPECT_THAT(refused(Errc::overlap, {bar({}, low + 1_MiB)}), HasSubstr("\"br\""));
  EXPECT_THAT(refused(Errc::out_of_bounds, {bar("br", low)}), HasSubstr("\"br\""));
  EXPECT_THAT(refused(Errc::out_of_bounds, {bar("br", low + 2_MiB - 32_KiB)}), HasSubstr("\"br\""));
  EXPECT_THAT(refused(Errc::not_found, {bar("other", low + 1_MiB)}), HasSubstr("\"other\""));
  EXPECT_THAT(refused(Errc::not_found, {bar("other")}), HasSubstr("\"other\""));
  EXPECT_THAT(refused(Errc::overlap,
                      {MemoryRange{.region = {.type = RegionType::dax_memory, .size = 64_KiB},
                                   .fixed = GuestAddress{low + 1_MiB}}}),
              HasSubstr("\"br\""));
  const auto behind = take({bar("br", low + 1_MiB), bar("br", low + 2_MiB - 64_KiB)}, "behind");
  EXPECT_THAT(refused(Errc::overlap, {bar("br", low + 1_MiB)}), HasSubstr("\"behind\""));
}

TEST_F(ResourceBridgeTest, AFullWindowIsAnError) {
  const auto bridge = take({window(1_MiB)}, "br");
  const auto behind = take(Requests(15, bar("br")), "behind");
  EXPECT_THAT(refused(Errc::no_space, {MmioRange{.size = 128_KiB, .bridge = "br"}}),
              HasSubstr("the largest free piece is [0xc00f0000, 0xc00fffff]"));
  const auto last = take({bar("br")}, "last");
  refused(Errc::no_space, {bar("br")});
}

TEST_F(ResourceBridgeTest, AWindowBeginsEmptyAndClearOfOtherWindows) {
  const auto device = take({bar({}, low + 1_MiB)}, "device");
  const auto bridge = take({window(1_MiB, low + 2_MiB)}, "br");
  EXPECT_THAT(refused(Errc::overlap, {window(2_MiB, low)}), HasSubstr("\"device\""));
  EXPECT_THAT(refused(Errc::overlap, {window(2_MiB, low + 2_MiB)}), HasSubstr("\"br\""));
  EXPECT_THAT(refused(Errc::overlap, {window(2_MiB, low), window(2_MiB, low)}, "twice"),
              HasSubstr("request 0"));
  EXPECT_THAT(refused(Errc::overlap, {window(1_MiB, low), window(1_MiB, low)}, "twice"),
              HasSubstr("request 1 (bridge_window) of twice"));
  const auto anywhere = take({window(2_MiB)}, "other");
  EXPECT_EQ(anywhere.bridge_window(), Range::of(low + 3_MiB, low + 5_MiB - 1));
}

TEST_F(ResourceBridgeTest, AWindowLiesInNoHole) {
  const auto prefetchable = [](std::uint64_t size, std::uint64_t at) {
    return BridgeWindow{.size = size, .prefetchable = true, .fixed = GuestAddress{at}};
  };
  EXPECT_THAT(refused(Errc::overlap, {prefetchable(1_MiB, hole)}), HasSubstr("hypertransport"));
  EXPECT_THAT(refused(Errc::overlap, {prefetchable(2_MiB, hole - 1_MiB)}),
              HasSubstr("hypertransport"));
  auto bridge = take({prefetchable(1_MiB, hole - 1_MiB)}, "br");
  refused_moves(Errc::overlap, {{&bridge, 0, GuestAddress{hole}, ResourceKind::bridge_window}});
}

TEST_F(ResourceBridgeTest, AFixedWindowLiesInItsOuterOneAndNowhereElse) {
  const auto outer = take({window(4_MiB, low)}, "outer");
  BridgeWindow inside = window(1_MiB, low + 1_MiB);
  inside.bridge = "outer";
  const auto inner = take({inside}, "inner");
  const auto deep = take({bar("inner")}, "deep");
  EXPECT_EQ(deep.mmio()->base().value(), low + 1_MiB);
  EXPECT_THAT(refused(Errc::overlap, {bar("outer", low + 1_MiB)}), HasSubstr("\"inner\""));
  BridgeWindow outside = window(1_MiB, low + 4_MiB);
  outside.bridge = "outer";
  EXPECT_THAT(refused(Errc::out_of_bounds, {outside}), HasSubstr("\"outer\""));
  const auto beside = take(Requests(48, bar("outer")), "beside");
  for (std::size_t i = 0; i < 48; ++i)
    EXPECT_FALSE(beside.mmio(i)->range().overlaps(inner.bridge_window())) << i;
  refused(Errc::no_space, {bar("outer")});
}

TEST_F(ResourceBridgeTest, OnlyAPrefetchableWindowMayLieAt4GiBOrAbove) {
  const GuestAddress above{high + 16_MiB};
  refused(Errc::invalid_argument, {BridgeWindow{.size = 1_MiB, .reach = MmioReach::high}});
  refused(Errc::invalid_argument,
          {BridgeWindow{.size = 1_MiB, .reach = MmioReach::high, .parked = true}});
  refused(Errc::out_of_bounds, {BridgeWindow{.size = 1_MiB, .fixed = above}});
  auto bridge =
      take({BridgeWindow{.size = 1_MiB, .fixed = GuestAddress{low}},
            BridgeWindow{.size = 1_MiB, .reach = MmioReach::high, .prefetchable = true},
            BridgeWindow{.size = 1_MiB, .prefetchable = true, .fixed = GuestAddress{low + 1_MiB}}},
           "br");
  EXPECT_EQ(bridge.bridge_window(1).min(), high);
  refused_moves(Errc::out_of_bounds, {{&bridge, 0, above, ResourceKind::bridge_window}});
  VMSPACE_EXPECT_OK(relocate({{&bridge, 2, above, ResourceKind::bridge_window}}));
  const std::vector<ResourceClaim> claims = {{"br", BridgeWindow{.size = 1_MiB, .fixed = above}}};
  const auto other = fresh();
  test::refusal(other, Errc::out_of_bounds, [&] { return other.adopt(claims); });
  // With nothing left below 4 GiB there is no second choice.
  const auto filled = take(
      {MmioRange{
           .size = 0xfc00'0000 - low - 2_MiB, .align = 1_MiB, .fixed = GuestAddress{low + 2_MiB}},
       MmioRange{.size = 1_MiB, .fixed = GuestAddress{low + 1_MiB}}},
      "filler");
  refused(Errc::no_space, {window(1_MiB)});
}

TEST_F(ResourceBridgeTest, PrefetchableRangesGoToThePrefetchableWindowFirst) {
  BridgeWindow prefetchable = window(1_MiB);
  prefetchable.prefetchable = true;
  const auto bridge = take({window(1_MiB), prefetchable}, "br");
  EXPECT_EQ(bridge.bridge_window(0).min(), low);
  EXPECT_EQ(bridge.bridge_window(1).min(), high);
  MmioRange wanted = bar("br");
  wanted.prefetchable = true;
  const auto first = take(Requests(16, wanted), "first");
  for (std::size_t i = 0; i < 16; ++i)
    EXPECT_TRUE(bridge.bridge_window(1).contains(first.mmio(i)->range())) << i;
  const auto then = take({wanted, bar("br")}, "then");
  EXPECT_TRUE(bridge.bridge_window(0).contains(then.mmio(0)->range()));
  EXPECT_TRUE(bridge.bridge_window(0).contains(then.mmio(1)->range()));
  refused(Errc::out_of_bounds, {bar("br", high)});
  MmioRange high_only = bar("br");
  high_only.reach = MmioReach::high;
  refused(Errc::no_space, {high_only});
}

TEST_F(ResourceBridgeTest, ABridgeHasOneParentAndIsNeverItsOwnAncestor) {
  const auto a = take({window(4_MiB)}, "a");
  BridgeWindow own = window(1_MiB);
  own.bridge = "x";
  refused(Errc::invalid_argument, {own}, "x");
  refused(Errc::invalid_argument, {bar("x")}, "x");
  BridgeWindow behind_a = window(1_MiB);
  behind_a.bridge = "a";
  refused(Errc::invalid_argument, {behind_a, window(1_MiB)}, "x");
  // Windows of bridges that come later may be named while they are parked.
  BridgeWindow early{.size = 1_MiB, .bridge = "late", .parked = true};
  const auto first = take({early}, "early");
  BridgeWindow late{.size = 1_MiB, .bridge = "early", .parked = true};
  EXPECT_THAT(refused(Errc::invalid_argument, {late}, "late"), HasSubstr("\"early\""));
}

TEST_F(ResourceBridgeTest, ABridgeThatGoesLeavesWhatIsBehindItWhereItIs) {
  auto bridge = take({window(1_MiB, low)}, "br");
  auto behind = take({bar("br")}, "behind");
  const auto place = behind.mmio()->base();
  VMSPACE_EXPECT_OK(bridge.release());
  VMSPACE_EXPECT_OK(manager.check_invariants());
  EXPECT_EQ(space.find_region(place), behind.mmio());
  // Its addresses are free but for that.
  const auto beside = take({bar({})}, "beside");
  EXPECT_EQ(beside.mmio()->base().value(), low + 64_KiB);
  EXPECT_THAT(refused_moves(Errc::not_found, {{&behind, 0, GuestAddress{low + 1_MiB}}}),
              HasSubstr("\"br\""));
  VMSPACE_EXPECT_OK(relocate({{&behind, 0, std::nullopt}}));
}

TEST_F(ResourceBridgeTest, WhatWasLeftBehindByAnInnerBridgeStaysInTheOuterOne) {
  const auto outer = take({window(4_MiB, low)}, "outer");
  std::optional<DeviceResources> middle =
      take({BridgeWindow{.size = 3_MiB, .bridge = "outer"}}, "middle");
  std::optional<DeviceResources> inner =
      take({BridgeWindow{.size = 1_MiB, .bridge = "middle"}}, "inner");
  auto deep = take({bar("inner")}, "deep");
  middle.reset();
  VMSPACE_EXPECT_OK(manager.check_invariants());
  // The outer bridge's own ranges respect what is there.
  const auto beside = take(Requests(48, bar("outer")), "beside");
  for (std::size_t i = 0; i < 48; ++i)
    EXPECT_FALSE(beside.mmio(i)->range().overlaps(inner->bridge_window())) << i;
  refused(Errc::no_space, {bar("outer")});
  inner.reset();
  VMSPACE_EXPECT_OK(manager.check_invariants());
  VMSPACE_EXPECT_OK(relocate({{&deep, 0, std::nullopt}}));
}

TEST_F(ResourceBridgeTest, ABridgeThatAnotherOneHasLeftKeepsWhatIsBehindIt) {
  std::optional<DeviceResources> outer = take({window(4_MiB, low)}, "outer");
  auto middle = take({BridgeWindow{.size = 2_MiB, .bridge = "outer"}}, "middle");
  auto inner = take({BridgeWindow{.size = 1_MiB, .bridge = "middle"}}, "inner");
  auto deep = take({bar("middle")}, "deep");
  outer.reset();
  const GuestAddress to{low + 8_MiB};
  const ResourceMove middle_moves{&middle, 0, to, ResourceKind::bridge_window};
  const ResourceMove inner_moves{&inner, 0, to, ResourceKind::bridge_window};
  const ResourceMove deep_moves{&deep, 0, GuestAddress{low + 9_MiB}};
  refused_moves(Errc::out_of_bounds, {middle_moves});
  refused_moves(Errc::out_of_bounds, {middle_moves, inner_moves});
  refused_moves(Errc::out_of_bounds, {middle_moves, deep_moves});
  refused_moves(Errc::out_of_bounds, {inner_moves});
  VMSPACE_EXPECT_OK(relocate({middle_moves, inner_moves, deep_moves}));
  const auto other = fresh();
  VMSPACE_EXPECT_OK(other.adopt(manager.claims()));
}

TEST_F(ResourceBridgeTest, NoWindowMovesOntoWhatABridgeLeftBehind) {
  std::optional<DeviceResources> bridge = take({window(1_MiB, low)}, "br");
  auto behind = take({bar("br")}, "behind");
  bridge.reset();
  auto other = take({window(1_MiB, low + 1_MiB)}, "other");
  EXPECT_THAT(
      refused_moves(Errc::overlap, {{&other, 0, GuestAddress{low}, ResourceKind::bridge_window}}),
      HasSubstr("\"behind\""));
}

TEST_F(ResourceBridgeTest, ABridgeComesBackOnceNothingIsAtAnAddressBehindItsName) {
  std::optional<DeviceResources> bridge = take({window(1_MiB, low)}, "br");
  auto behind = take({bar("br")}, "behind");
  bridge.reset();
  EXPECT_THAT(refused(Errc::bad_state, {window(1_MiB)}, "br"), HasSubstr("\"behind\""));
  EXPECT_THAT(refused(Errc::bad_state, {BridgeWindow{.size = 1_MiB, .parked = true}}, "br"),
              HasSubstr("\"behind\""));
  VMSPACE_EXPECT_OK(relocate({{&behind, 0, std::nullopt}}));
  auto again = VMSPACE_ASSERT_OK(manager.acquire({window(1_MiB, low + 8_MiB)}, "br"));
  VMSPACE_EXPECT_OK(relocate({{&behind, 0, GuestAddress{low + 8_MiB}}}));
}

TEST_F(ResourceBridgeTest, AWindowThatNothingHoldsInPlaceGoesOnlyWhereWindowsMayBe) {
  std::optional<DeviceResources> outer = take({window(4_MiB, low)}, "outer");
  auto inner = take({BridgeWindow{.size = 1_MiB, .bridge = "outer"}}, "inner");
  const auto to = [&](std::uint64_t base) {
    return ResourceMove{&inner, 0, GuestAddress{base}, ResourceKind::bridge_window};
  };
  const auto expect_refused = [&] {
    refused_moves(Errc::out_of_bounds, {to(1_GiB)});
    refused_moves(Errc::out_of_bounds, {to(1_TiB)});
    refused_moves(Errc::out_of_bounds, {to(hole)});
  };
  VMSPACE_EXPECT_OK(relocate({{&*outer, 0, std::nullopt, ResourceKind::bridge_window}}));
  expect_refused();
  VMSPACE_EXPECT_OK(relocate({to(low + 8_MiB)}));
  outer.reset();
  expect_refused();
  VMSPACE_EXPECT_OK(relocate({to(low + 16_MiB)}));

  auto claims = manager.claims();
  std::get<BridgeWindow>(claims.front().request).fixed = GuestAddress{1_GiB};
  const auto other = fresh();
  test::refusal(other, Errc::out_of_bounds, [&] { return other.adopt(claims); });
}

TEST_F(ResourceBridgeTest, TheWindowsOfADestroyedBridgeAreFreeAtOnce) {
  { const auto bridge = take({window(1_MiB, low)}, "br"); }
  const auto bar_there = take({bar({}, low)}, "device");
  EXPECT_EQ(bar_there.mmio()->base().value(), low);
}

}  // namespace
}  // namespace vmspace::resource_bridge_test
