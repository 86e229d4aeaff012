// SPDX-License-Identifier: Apache-2.0
//
// Claims that no VM has saved, but a file may hold: deep, circular and plentiful bridges.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "resources/manager_state.hpp"

namespace vmspace::resource_hostile_test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::SizeIs;
using namespace literals;

using Claims = std::vector<ResourceClaim>;

constexpr std::size_t deepest = 256;

class ResourceHostileTest : public test::ManagerTest {
 protected:
  static std::string bridge_name(std::size_t chain, std::size_t depth) {
    return "bridge " + std::to_string(chain) + "." + std::to_string(depth);
  }
  /// As many bridges as that, each behind the one before, the first behind `outer`; their windows are
  /// all at one address.
  static Claims chain_of(std::size_t bridges, std::uint64_t base, std::string outer = {},
                         std::size_t chain = 0) {
    Claims claims;
    for (std::size_t depth = 0; depth < bridges; ++depth) {
      std::string name = bridge_name(chain, depth);
      claims.push_back({name, BridgeWindow{.size = 1_MiB,
                                           .bridge = std::exchange(outer, name),
                                           .fixed = GuestAddress{base}}});
    }
    return claims;
  }
  std::string refused_claims(Errc code, const Claims& claims) const {
    return test::refusal(manager, code, [&] { return manager.adopt(claims); });
  }
};

TEST_F(ResourceHostileTest, BridgesAreNestedAsDeepAsDocumentedAndNoDeeper) {
  Claims claims = chain_of(deepest + 1, low);
  EXPECT_THAT(refused_claims(Errc::invalid_argument, claims),
              AllOf(HasSubstr("claim 256 (bridge_window)"), HasSubstr("256 deep")));
  std::reverse(claims.begin(), claims.end());
  EXPECT_THAT(refused_claims(Errc::invalid_argument, claims), HasSubstr("claim 0 "));

  claims.erase(claims.begin());
  auto adopted = VMSPACE_ASSERT_OK(manager.adopt(claims));
  const std::string innermost = bridge_name(0, deepest - 1);
  const auto device = take({MmioRange{.size = 64_KiB, .bridge = innermost}}, "device");
  EXPECT_THAT(refused(Errc::invalid_argument, {BridgeWindow{.size = 1_MiB, .bridge = innermost}}),
              HasSubstr("256 deep"));
  EXPECT_EQ(device.mmio()->base().value(), low);
}

TEST_F(ResourceHostileTest, BridgesThatJoinTwoChainsCountBoth) {
  // Parked windows may name a bridge that comes later.
  Claims below = chain_of(200, low, "middle", 1);
  for (ResourceClaim& claim : below)
    std::get<BridgeWindow>(claim.request).parked = true;
  const auto inner = VMSPACE_ASSERT_OK(manager.adopt(below));
  const auto outer = VMSPACE_ASSERT_OK(manager.adopt(chain_of(56, low)));
  const BridgeWindow under_55{.size = 1_MiB, .bridge = bridge_name(0, 54)};
  const BridgeWindow under_56{.size = 1_MiB, .bridge = bridge_name(0, 55)};
  EXPECT_THAT(refused(Errc::invalid_argument, {under_56}, "middle"), HasSubstr("256 deep"));
  // Some of the 56 are in the way of the window, which is about places, and no more about depth.
  EXPECT_THAT(
      refused(Errc::overlap,
              {BridgeWindow{.size = 1_MiB, .bridge = under_55.bridge, .fixed = GuestAddress{low}}},
              "middle"),
      HasSubstr(bridge_name(0, 55)));
}

TEST_F(ResourceHostileTest, BridgesBehindEachOtherAreRefusedHoweverMany) {
  Claims claims = chain_of(5000, low, bridge_name(0, 4999));
  const ResourceManager before = fresh();
  EXPECT_FALSE(manager.adopt(claims));
  EXPECT_TRUE(test::state_of(manager) == test::state_of(before));
  for (ResourceClaim& claim : claims)
    std::get<BridgeWindow>(claim.request).parked = true;
  EXPECT_FALSE(manager.adopt(claims));
  EXPECT_TRUE(test::state_of(manager) == test::state_of(before));
}

TEST_F(ResourceHostileTest, WhatBridgesHaveLeftIsAdoptedOutermostFirstInWhateverOrderItComes) {
  std::optional<DeviceResources> outer = take({BridgeWindow{.size = 2_MiB}}, "outer");
  // The inner bridge is older than the one that it is behind.
  auto inner = take({BridgeWindow{.size = 1_MiB, .bridge = "middle", .parked = true}}, "inner");
  const auto middle = take({BridgeWindow{.size = 1_MiB, .bridge = "outer"}}, "middle");
  VMSPACE_EXPECT_OK(relocate({{&inner, 0, GuestAddress{low}, ResourceKind::bridge_window}}));
  outer.reset();
  const ResourceManager other = fresh();
  const auto adopted = VMSPACE_ASSERT_OK(other.adopt(manager.claims()));
  EXPECT_EQ(other.holders(), manager.holders());
  EXPECT_EQ(other.claims(), manager.claims());
}

TEST_F(ResourceHostileTest, HundredsOfBridgesAndRangesAreAdoptedAndCheckedAndLetGo) {
  constexpr std::size_t chains = 3;
  Claims claims;
  for (std::size_t chain = 0; chain < chains; ++chain) {
    const std::uint64_t base = low + chain * 1_MiB;
    const Claims bridges = chain_of(deepest, base, {}, chain);
    claims.insert(claims.end(), bridges.rbegin(), bridges.rend());
    for (std::size_t i = 0; i < deepest; ++i) {
      claims.push_back({"device " + std::to_string(chain) + "." + std::to_string(i),
                        MmioRange{.size = 4_KiB,
                                  .bridge = bridge_name(chain, deepest - 1),
                                  .fixed = GuestAddress{base + i * 4_KiB}}});
    }
  }
  auto adopted = VMSPACE_ASSERT_OK(manager.adopt(claims));
  EXPECT_THAT(adopted, SizeIs(2 * chains * deepest));
  VMSPACE_EXPECT_OK(manager.check_invariants());
  // A window moves, and the arrangement is judged as a whole.
  EXPECT_THAT(manager.relocate(
                  {{&adopted.front(), 0, GuestAddress{low + 64_MiB}, ResourceKind::bridge_window}}),
              HasError(Errc::out_of_bounds));
  adopted.clear();
  VMSPACE_EXPECT_OK(manager.collect());
  EXPECT_TRUE(manager.holders().empty());
}

}  // namespace
}  // namespace vmspace::resource_hostile_test
