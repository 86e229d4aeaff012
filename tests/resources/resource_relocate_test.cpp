// SPDX-License-Identifier: Apache-2.0
//
// Only the final state of a set of moves must be valid, and a set is applied as a whole or not at
// all.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "resources/manager_state.hpp"

namespace vmspace::resource_relocate_test {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using namespace literals;

constexpr std::uint64_t size = 64_KiB;

class ResourceRelocateTest : public test::ManagerTest {
 protected:
  static GuestAddress at(std::uint64_t index) { return GuestAddress{low + index * size}; }
  static ResourceMove window_to(DeviceResources& bridge, std::optional<GuestAddress> to,
                                std::size_t index = 0) {
    return {&bridge, index, to, ResourceKind::bridge_window};
  }

  // BARs at 0, 1 and 2.
  DeviceResources a =
      take({MmioRange{.size = size, .name = "a BAR0"}, MmioRange{.size = 4_KiB, .fixed = at(4096)}},
           "a");
  DeviceResources b = take({MmioRange{.size = size, .fixed = at(1)}, PioRange{.size = 8}}, "b");
  DeviceResources c = take({MmioRange{.size = size, .fixed = at(2)}}, "c");
};

TEST_F(ResourceRelocateTest, ARangeMovesToAFreePlace) {
  const AddressSpaceRegionPtr before = b.mmio();
  VMSPACE_EXPECT_OK(relocate({{&b, 0, at(9)}}));
  EXPECT_EQ(b.mmio()->base(), at(9));
  EXPECT_EQ(before->base(), at(1));  // regions never change: who had it, has it as it was
  EXPECT_EQ(space.find_region(at(9)), b.mmio());
  EXPECT_EQ(space.find_region(at(1)), nullptr);
  EXPECT_EQ(b.mmio()->owner(), "b");
}

TEST_F(ResourceRelocateTest, TwoSwapThreeRotateAndAChainFollows) {
  VMSPACE_EXPECT_OK(relocate({{&b, 0, at(2)}, {&c, 0, at(1)}}));
  EXPECT_EQ(b.mmio()->base(), at(2));
  EXPECT_EQ(c.mmio()->base(), at(1));
  auto d = take({MmioRange{.size = size, .fixed = at(3)}}, "d");
  VMSPACE_EXPECT_OK(relocate({{&b, 0, at(1)}, {&c, 0, at(3)}, {&d, 0, at(2)}}));
  EXPECT_EQ(b.mmio()->base(), at(1));
  EXPECT_EQ(c.mmio()->base(), at(3));
  EXPECT_EQ(d.mmio()->base(), at(2));
  // Each goes where the next has been, the last to a free place.
  VMSPACE_EXPECT_OK(relocate({{&b, 0, at(2)}, {&d, 0, at(3)}, {&c, 0, at(4)}}));
  EXPECT_EQ(b.mmio()->base(), at(2));
  EXPECT_EQ(d.mmio()->base(), at(3));
  EXPECT_EQ(c.mmio()->base(), at(4));
}

TEST_F(ResourceRelocateTest, ARangeMayOverlapItsOwnOldPlaceOrStayThere) {
  auto wide = take({MmioRange{.size = size, .align = 4_KiB, .fixed = at(8)}}, "wide");
  VMSPACE_EXPECT_OK(relocate({{&wide, 0, GuestAddress{at(8).value() + 4_KiB}}}));
  EXPECT_EQ(wide.mmio()->base().value(), at(8).value() + 4_KiB);
  VMSPACE_EXPECT_OK(relocate({{&wide, 0, wide.mmio()->base()}}));
  VMSPACE_EXPECT_OK(relocate({}));
}

TEST_F(ResourceRelocateTest, AParkedRangeIsAtNoAddressAndComesBack) {
  VMSPACE_EXPECT_OK(relocate({{&b, 0, std::nullopt}}));
  EXPECT_TRUE(b.is_parked(ResourceKind::mmio));
  EXPECT_EQ(b.mmio()->base(), at(1));  // where it has been
  EXPECT_EQ(space.find_region(at(1)), nullptr);
  VMSPACE_EXPECT_OK(relocate({{&b, 0, std::nullopt}}));  // it is already
  EXPECT_TRUE(b.is_parked(ResourceKind::mmio));
  VMSPACE_EXPECT_OK(relocate({{&b, 0, at(1)}}));
  EXPECT_FALSE(b.is_parked(ResourceKind::mmio));
  EXPECT_EQ(space.find_region(at(1)), b.mmio());
}

TEST_F(ResourceRelocateTest, ARangeThatWasFixedWhereNoBarCanBeReturnsThereAndMovesAnywhere) {
  const GuestAddress odd{at(8).value() + 4_KiB};
  auto device = take({MmioRange{.size = size, .fixed = odd}}, "device");
  VMSPACE_EXPECT_OK(relocate({{&device, 0, std::nullopt}}));
  VMSPACE_EXPECT_OK(relocate({{&device, 0, odd}}));
  EXPECT_EQ(device.mmio()->base(), odd);
  VMSPACE_EXPECT_OK(relocate({{&device, 0, GuestAddress{at(9).value() + 8_KiB}}}));
  VMSPACE_EXPECT_OK(relocate({{&device, 0, at(10)}}));
  // Restored at a place that a BAR could have, it is none yet.
  const auto claims = manager.claims();
  EXPECT_EQ(std::get<MmioRange>(claims.back().request).align, 1U);
  const ResourceManager other = fresh();
  auto adopted = VMSPACE_ASSERT_OK(other.adopt(claims));
  VMSPACE_EXPECT_OK(other.relocate({{&adopted.back(), 0, odd}}));
  // So does one that was parked when it was acquired.
  auto parked = take({MmioRange{.size = size, .fixed = odd, .parked = true}}, "parked");
  VMSPACE_EXPECT_OK(relocate({{&parked, 0, odd}}));
}

TEST_F(ResourceRelocateTest, ARangeThatWasFixedWhereABarCanBeMovesToSuchPlacesOnly) {
  auto device = take({MmioRange{.size = size, .fixed = at(8)},
                      MmioRange{.size = size, .align = 4_KiB, .fixed = at(9)}},
                     "device");
  const GuestAddress odd{at(16).value() + 4_KiB};
  refused_moves(Errc::misaligned, {{&device, 0, odd}});
  VMSPACE_EXPECT_OK(relocate({{&device, 1, odd}}));
}

TEST_F(ResourceRelocateTest, ReturningToAPlaceThatWasTakenNamesBoth) {
  VMSPACE_EXPECT_OK(relocate({{&b, 0, std::nullopt}}));
  VMSPACE_EXPECT_OK(relocate({{&c, 0, at(1)}}));
  EXPECT_THAT(
      refused_moves(Errc::overlap, {{&b, 0, at(1)}}),
      AllOf(HasSubstr("ResourceManager::relocate"), HasSubstr("\"b\""), HasSubstr("\"c\"")));
  EXPECT_TRUE(b.is_parked(ResourceKind::mmio));
  // One goes and one comes, in one set.
  VMSPACE_EXPECT_OK(relocate({{&b, 0, at(1)}, {&c, 0, std::nullopt}}));
}

TEST_F(ResourceRelocateTest, ARangeThatIsParkedWhenAcquiredIsPlacedLater) {
  auto d = take({MmioRange{.size = size, .fixed = at(1), .parked = true},
                 MmioRange{.size = size, .parked = true}},
                "d");
  EXPECT_TRUE(d.is_parked(ResourceKind::mmio));
  EXPECT_TRUE(d.is_parked(ResourceKind::mmio, 1));
  EXPECT_THAT(space.snapshot()->parked().size(), 2U);
  refused_moves(Errc::overlap, {{&d, 0, at(1)}});
  VMSPACE_EXPECT_OK(relocate({{&d, 0, at(5)}, {&d, 1, at(6)}}));
  EXPECT_EQ(space.find_region(at(6)), d.mmio(1));
}

TEST_F(ResourceRelocateTest, AnInvalidMoveIsRefusedAtEveryPositionOfTheSet) {
  auto low_only = take({MmioRange{.size = size, .reach = MmioReach::below_4g}}, "low_only");
  auto high_only = take({MmioRange{.size = size, .reach = MmioReach::high}}, "high_only");
  auto bridge = take({BridgeWindow{.size = 1_MiB, .fixed = GuestAddress{low + 16_MiB}}}, "br");
  auto behind = take({MmioRange{.size = size, .bridge = "br"}}, "behind");
  const auto other = fresh();
  auto foreign = VMSPACE_ASSERT_OK(other.acquire({MmioRange{.size = size}}, "foreign"));
  auto gone = take({MmioRange{.size = size}}, "gone");
  VMSPACE_EXPECT_OK(gone.release());
  const GuestAddress free{low + 32_MiB};
  const std::vector<std::pair<Errc, ResourceMove>> failing = {
      {Errc::invalid_argument, {nullptr, 0, free}},
      {Errc::bad_state, {&foreign, 0, free}},
      {Errc::bad_state, {&gone, 0, free}},
      {Errc::bad_state, {&gone, 0, std::nullopt}},
      {Errc::out_of_bounds, {&low_only, 1, free}},
      {Errc::out_of_bounds, {&low_only, SIZE_MAX, std::nullopt}},
      {Errc::out_of_bounds, {&low_only, 0, free, ResourceKind::bridge_window}},
      {Errc::invalid_argument, {&b, 0, free, ResourceKind::legacy_irq}},
      {Errc::invalid_argument, {&b, 0, free, ResourceKind::memory}},
      {Errc::invalid_argument, {&b, 0, free, static_cast<ResourceKind>(200)}},
      {Errc::invalid_argument, {&a, 0, free}},  // named by the rest of the set
      {Errc::misaligned, {&low_only, 0, GuestAddress{free.value() + 4_KiB}}},
      {Errc::misaligned,
       {&bridge, 0, GuestAddress{free.value() + size}, ResourceKind::bridge_window}},
      {Errc::out_of_bounds, {&low_only, 0, GuestAddress{high}}},
      {Errc::out_of_bounds, {&high_only, 0, free}},
      {Errc::out_of_bounds, {&low_only, 0, GuestAddress{0}}},
      {Errc::out_of_bounds, {&high_only, 0, GuestAddress{1_TiB}}},
      {Errc::overlap, {&high_only, 0, GuestAddress{hole}}},
      {Errc::overlap, {&low_only, 0, GuestAddress{low + 16_MiB}}},
      {Errc::out_of_bounds, {&behind, 0, free}},
      {Errc::out_of_bounds,
       {&bridge, 0, free, ResourceKind::bridge_window}},  // not without its BAR
      {Errc::overlap, {&low_only, 0, at(1)}},             // where another one of the set goes
  };
  for (const auto& [code, move] : failing) {
    for (std::size_t k = 0; k <= 3; ++k) {
      std::vector<ResourceMove> moves = {{&a, 0, at(1)}, {&b, 0, at(0)}, {&c, 0, std::nullopt}};
      moves.insert(moves.begin() + static_cast<std::ptrdiff_t>(k), move);
      const std::string message = refused_moves(code, moves);
      EXPECT_THAT(message, HasSubstr("ResourceManager::relocate")) << message;
      EXPECT_EQ(a.mmio()->base(), at(0));
      EXPECT_FALSE(c.is_parked(ResourceKind::mmio));
    }
  }
}

TEST_F(ResourceRelocateTest, MovesPastTheLastAddressAreRefused) {
  auto wide = take({MmioRange{.size = 32_KiB, .align = 1, .reach = MmioReach::high}}, "wide");
  refused_moves(Errc::overflow, {{&wide, 0, GuestAddress{0 - 4_KiB}}});
  auto bridge = take({BridgeWindow{.size = 2_MiB}}, "br");
  refused_moves(Errc::overflow, {window_to(bridge, GuestAddress{0 - 1_MiB})});
}

TEST_F(ResourceRelocateTest, ErrorsNameWhoseRangeCantMove) {
  EXPECT_THAT(refused_moves(Errc::out_of_bounds, {{&b, 0, GuestAddress{0}}}), HasSubstr("\"b\""));
  EXPECT_THAT(refused_moves(Errc::misaligned, {{&c, 0, GuestAddress{low + 4_KiB}}}),
              HasSubstr("\"c\""));
  EXPECT_THAT(refused_moves(Errc::overlap, {{&a, 0, at(1)}}),
              AllOf(HasSubstr("\"a BAR0\""), HasSubstr("\"b\"")));
  EXPECT_THAT(refused_moves(Errc::overlap, {{&a, 0, at(7)}, {&b, 0, at(7)}}),
              AllOf(HasSubstr("\"a BAR0\""), HasSubstr("\"b\"")));
}

TEST_F(ResourceRelocateTest, SomebodyElsesRegionIsRespected) {
  const auto pmem = VMSPACE_ASSERT_OK(space.insert_region(
      {.name = "pmem", .type = RegionType::dax_memory, .base = at(8), .size = size}));
  EXPECT_THAT(refused_moves(Errc::overlap, {{&b, 0, at(8)}}), HasSubstr("\"pmem\""));
  auto bridge = take({BridgeWindow{.size = 1_MiB}}, "br");
  EXPECT_THAT(refused_moves(Errc::overlap, {window_to(bridge, at(0))}),
              AllOf(HasSubstr("\"br\""), HasSubstr("\"a\"")));
  // And a region of ours that somebody else has taken out can't move.
  VMSPACE_EXPECT_OK(space.remove_region(b.mmio()));
  const auto moved = manager.relocate({{&b, 0, at(9)}});
  EXPECT_THAT(moved, HasError(Errc::not_found));
  VMSPACE_EXPECT_OK(space.insert_region(b.mmio()));
}

TEST_F(ResourceRelocateTest, ABridgeMovesWithWhatIsBehindIt) {
  auto bridge = take({BridgeWindow{.size = 1_MiB, .fixed = GuestAddress{low + 16_MiB}}}, "br");
  auto behind = take(
      {MmioRange{.size = size, .bridge = "br"}, MmioRange{.size = size, .bridge = "br"}}, "behind");
  const GuestAddress to{low + 32_MiB};
  const GuestAddress second{low + 32_MiB + size};
  EXPECT_THAT(refused_moves(Errc::out_of_bounds, {window_to(bridge, to)}), HasSubstr("\"behind\""));
  refused_moves(Errc::out_of_bounds, {window_to(bridge, to), {&behind, 0, to}});
  refused_moves(Errc::out_of_bounds, {{&behind, 0, to}, {&behind, 1, second}});
  VMSPACE_EXPECT_OK(relocate({{&behind, 0, to}, window_to(bridge, to), {&behind, 1, second}}));
  EXPECT_EQ(bridge.bridge_window().min(), to.value());
  EXPECT_EQ(behind.mmio(1)->base(), second);
  // A window may move onto part of its old place, but not onto a range that is not behind it.
  VMSPACE_EXPECT_OK(relocate({window_to(bridge, GuestAddress{low + 33_MiB}),
                              {&behind, 0, GuestAddress{low + 33_MiB}},
                              {&behind, 1, std::nullopt}}));
  const auto beside =
      take({MmioRange{.size = 32_MiB, .fixed = GuestAddress{low + 64_MiB}}}, "beside");
  EXPECT_THAT(refused_moves(Errc::overlap, {window_to(bridge, GuestAddress{low + 65_MiB}),
                                            {&behind, 0, GuestAddress{low + 65_MiB}}}),
              HasSubstr("\"beside\""));
}

TEST_F(ResourceRelocateTest, AParkedWindowNeitherHoldsNorExcludesRanges) {
  auto bridge = take({BridgeWindow{.size = 1_MiB, .fixed = GuestAddress{low + 16_MiB}}}, "br");
  auto behind = take({MmioRange{.size = size, .bridge = "br"}}, "behind");
  VMSPACE_EXPECT_OK(relocate({window_to(bridge, std::nullopt)}));
  EXPECT_TRUE(bridge.is_parked(ResourceKind::bridge_window));
  EXPECT_EQ(bridge.bridge_window().min(), low + 16_MiB);  // where it has been
  EXPECT_EQ(behind.mmio()->base().value(), low + 16_MiB);
  refused(Errc::not_found, {MmioRange{.size = size, .bridge = "br"}});
  refused_moves(Errc::not_found, {{&behind, 0, GuestAddress{low + 17_MiB}}});
  std::optional<DeviceResources> there =
      take({MmioRange{.size = size, .fixed = GuestAddress{low + 17_MiB - size}}}, "there");
  EXPECT_THAT(refused_moves(Errc::overlap, {window_to(bridge, GuestAddress{low + 16_MiB})}),
              HasSubstr("\"there\""));
  EXPECT_THAT(refused_moves(Errc::out_of_bounds, {window_to(bridge, GuestAddress{low + 32_MiB})}),
              HasSubstr("\"behind\""));
  there.reset();
  VMSPACE_EXPECT_OK(relocate({window_to(bridge, GuestAddress{low + 16_MiB})}));
}

TEST_F(ResourceRelocateTest, BridgesSwapTheirWindowsWithAllThatIsBehindThem) {
  auto x = take({BridgeWindow{.size = 2_MiB, .fixed = GuestAddress{low + 16_MiB}}}, "x");
  auto y = take({BridgeWindow{.size = 2_MiB, .fixed = GuestAddress{low + 32_MiB}}}, "y");
  auto inner = take({BridgeWindow{.size = 1_MiB, .bridge = "x"}}, "inner");
  auto deep = take({MmioRange{.size = size, .bridge = "inner"}}, "deep");
  auto behind_y = take({MmioRange{.size = size, .bridge = "y"}}, "behind_y");
  const GuestAddress first{low + 16_MiB};
  const GuestAddress second{low + 32_MiB};
  const std::vector<ResourceMove> all = {window_to(x, second),
                                         window_to(y, first),
                                         window_to(inner, second),
                                         {&deep, 0, second},
                                         {&behind_y, 0, first}};
  for (std::size_t i = 0; i < all.size(); ++i) {
    // The one left out is then in the way, or outside its window.
    auto but_one = all;
    but_one.erase(but_one.begin() + static_cast<std::ptrdiff_t>(i));
    const test::State before = test::state_of(manager);
    EXPECT_THAT(relocate(but_one), HasError(AnyOf(Errc::overlap, Errc::out_of_bounds))) << i;
    EXPECT_TRUE(test::state_of(manager) == before) << i;
  }
  VMSPACE_EXPECT_OK(relocate(all));
  EXPECT_EQ(inner.bridge_window().min(), second.value());
  EXPECT_EQ(deep.mmio()->base(), second);
}

TEST_F(ResourceRelocateTest, ParkedWindowsArePlacedTogetherWithWhatIsBehindThem) {
  auto bridge = take({BridgeWindow{.size = 1_MiB, .parked = true},
                      BridgeWindow{.size = 1_MiB, .prefetchable = true, .parked = true}},
                     "br");
  auto behind =
      take({MmioRange{.size = size, .bridge = "br", .parked = true},
            MmioRange{.size = size, .prefetchable = true, .bridge = "br", .parked = true}},
           "behind");
  refused_moves(Errc::not_found, {{&behind, 0, at(16)}});
  VMSPACE_EXPECT_OK(relocate({window_to(bridge, at(16), 0),
                              window_to(bridge, GuestAddress{high}, 1),
                              {&behind, 0, at(17)},
                              {&behind, 1, GuestAddress{high + size}}}));
  refused_moves(Errc::out_of_bounds, {{&behind, 0, GuestAddress{high}}});
  VMSPACE_EXPECT_OK(relocate({{&behind, 1, at(18)}}));  // prefetchable ones may lie in the other
}

}  // namespace
}  // namespace vmspace::resource_relocate_test
