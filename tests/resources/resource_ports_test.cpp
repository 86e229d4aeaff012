// SPDX-License-Identifier: Apache-2.0
//
// Ranges of ports move as BARs in memory do: firmware assigns them anew, and a guest switches their
// decoding off while it does.

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "resources/manager_state.hpp"

namespace vmspace::resource_ports_test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using namespace literals;

constexpr auto pio = ResourceKind::pio;

Range ports(std::uint64_t first, std::uint64_t size) {
  return Range::from_base_size(first, size).value();
}

class ResourcePortsTest : public test::ManagerTest {
 protected:
  static ResourceMove to(DeviceResources& device, std::uint64_t first, std::size_t index = 0) {
    return ResourceMove::place_ports(device, first, index);
  }

  DeviceResources a = take({PioRange{.size = 32, .fixed = 0xc000}}, "a");
  DeviceResources b = take({PioRange{.size = 32, .fixed = 0xc020}, MmioRange{.size = 4_KiB}}, "b");
};

TEST_F(ResourcePortsTest, MoveToFreeOnesAndLeaveTheirsFree) {
  VMSPACE_EXPECT_OK(relocate({to(a, 0xc100)}));
  EXPECT_EQ(a.pio(), ports(0xc100, 32));
  VMSPACE_EXPECT_OK(manager.acquire({PioRange{.size = 32, .fixed = 0xc000}}, "next"));
  EXPECT_THAT(refused(Errc::overlap, {PioRange{.size = 1, .fixed = 0xc11f}}),
              AllOf(HasSubstr("0xc11f"), HasSubstr("held by: \"a\"")));
}

TEST_F(ResourcePortsTest, SwapFollowAndOverlapTheirOldPlace) {
  VMSPACE_EXPECT_OK(relocate({to(a, 0xc020), to(b, 0xc000)}));
  EXPECT_EQ(a.pio(), ports(0xc020, 32));
  EXPECT_EQ(b.pio(), ports(0xc000, 32));
  VMSPACE_EXPECT_OK(relocate({to(b, 0xc020), to(a, 0xc040)}));
  EXPECT_EQ(b.pio(), ports(0xc020, 32));
  auto c = take({PioRange{.size = 32, .align = 1, .fixed = 0xd000}}, "c");
  VMSPACE_EXPECT_OK(relocate({to(c, 0xd010)}));
  VMSPACE_EXPECT_OK(relocate({to(c, 0xd010)}));
  EXPECT_EQ(c.pio(), ports(0xd010, 32));
}

TEST_F(ResourcePortsTest, AreFreeWhileParkedAndCountAsNobodys) {
  VMSPACE_EXPECT_OK(relocate({ResourceMove::park_ports(a)}));
  EXPECT_TRUE(a.is_parked(pio));
  EXPECT_FALSE(b.is_parked(pio));
  EXPECT_EQ(a.pio(), ports(0xc000, 32)) << "the last ones";
  VMSPACE_EXPECT_OK(relocate({to(b, 0xc000), ResourceMove::park_ports(a)}));
  EXPECT_THAT(refused_moves(Errc::overlap, {to(a, 0xc000)}),
              AllOf(HasSubstr("\"a\""), HasSubstr("held by: \"b\"")));
  // A parked one takes its place with one that leaves it.
  VMSPACE_EXPECT_OK(relocate({to(a, 0xc000), ResourceMove::park_ports(b)}));
  EXPECT_FALSE(a.is_parked(pio));
  EXPECT_TRUE(b.is_parked(pio));
  VMSPACE_EXPECT_OK(b.release());
  const auto none = take({PioRange{.size = 8, .parked = true}}, "none");
  EXPECT_TRUE(none.is_parked(pio));
  EXPECT_EQ(none.pio(), ports(0, 8));
}

TEST_F(ResourcePortsTest, RefusalsNameTheOwnerAndWhatIsInTheWay) {
  EXPECT_THAT(
      refused_moves(Errc::overlap, {to(a, 0xc020)}),
      AllOf(HasSubstr("\"a\""), HasSubstr("[0xc020, 0xc03f]"), HasSubstr("held by: \"b\"")));
  EXPECT_THAT(refused_moves(Errc::overlap, {to(a, 0xd000), to(b, 0xd000)}),
              AllOf(HasSubstr("\"b\""), HasSubstr("\"a\""), HasSubstr("same set")));
  EXPECT_THAT(refused_moves(Errc::misaligned, {to(a, 0xc110)}), HasSubstr("\"a\""));
  EXPECT_THAT(refused_moves(Errc::out_of_bounds, {to(a, 0x1'0000)}), HasSubstr("\"a\""));
  EXPECT_THAT(refused_moves(Errc::overflow, {to(a, ~std::uint64_t{0})}), HasSubstr("\"a\""));
  EXPECT_THAT(refused_moves(Errc::out_of_bounds, {to(a, 0xd000, 1)}), HasSubstr("\"a\""));
  EXPECT_THAT(refused_moves(Errc::invalid_argument, {to(a, 0xd000), to(a, 0xd000)}),
              HasSubstr("twice"));
  // What is refused of a BAR in memory leaves the ports of the set, and the other way round.
  refused_moves(Errc::misaligned,
                {to(a, 0xd000), ResourceMove::place(b, GuestAddress{low + 64_MiB + 1})});
  refused_moves(Errc::overlap, {ResourceMove::place(b, GuestAddress{low + 64_MiB}), to(a, 0xc020)});
}

TEST_F(ResourcePortsTest, ThatNoBarCanHaveMayMoveAnywhere) {
  auto odd = take({PioRange{.size = 8, .fixed = 0x3f6}, PioRange{.size = 3, .align = 2}}, "odd");
  VMSPACE_EXPECT_OK(relocate({to(odd, 0x2f5)}));
  VMSPACE_EXPECT_OK(relocate({to(odd, 0x2f8)}));
  refused_moves(Errc::misaligned, {to(odd, 0xd001, 1)});
  VMSPACE_EXPECT_OK(relocate({to(odd, 0xd002, 1)}));
  // And after a restore.
  const ResourceManager restored = fresh();
  auto adopted = VMSPACE_ASSERT_OK(restored.adopt(manager.claims()));
  EXPECT_EQ(restored.claims(), manager.claims());
  EXPECT_EQ(restored.holders(), manager.holders());
  VMSPACE_EXPECT_OK(restored.relocate({to(adopted.back(), 0x2f5)}));
  EXPECT_THAT(restored.relocate({to(adopted.front(), 0xc110)}), HasError(Errc::misaligned));
}

TEST_F(ResourcePortsTest, AreSavedAsTheyAre) {
  VMSPACE_EXPECT_OK(relocate({ResourceMove::park_ports(a), to(b, 0xd000)}));
  const auto claims = VMSPACE_ASSERT_OK(parse_claims(format_claims(manager.claims())));
  EXPECT_EQ(claims, manager.claims());
  const ResourceManager restored = fresh();
  const auto adopted = VMSPACE_ASSERT_OK(restored.adopt(claims));
  EXPECT_TRUE(adopted.front().is_parked(pio));
  EXPECT_EQ(adopted.front().pio(), ports(0xc000, 32));
  EXPECT_EQ(restored.holders(), manager.holders());
}

/// Ports of an oracle: one bit each, of whoever has it.
using Bits = std::bitset<128>;

TEST_F(ResourcePortsTest, AnySetIsMadeIfItsEndIsValid) {
  constexpr std::uint64_t first = 0xe000;
  constexpr std::size_t count = 6;
  std::mt19937 random(1);
  const auto below = [&](std::size_t limit) { return random() % limit; };
  std::vector<DeviceResources> devices;
  std::vector<std::optional<std::size_t>> at(count);
  std::vector<std::size_t> sizes;
  for (std::size_t i = 0; i < count; ++i) {
    sizes.push_back(1 + below(12));
    devices.push_back(take({PioRange{.size = sizes[i], .align = 1, .parked = true}},
                           "device " + std::to_string(i)));
  }
  std::size_t moved = 0;
  for (int round = 0; round < 4000; ++round) {
    auto after = at;
    std::vector<ResourceMove> moves;
    for (std::size_t i = 0; i < count; ++i) {
      if (below(2) == 0) continue;
      if (below(4) == 0) {
        after[i].reset();
        moves.push_back(ResourceMove::park_ports(devices[i]));
      } else {
        after[i] = below(40);
        moves.push_back(to(devices[i], first + *after[i]));
      }
    }
    Bits taken;
    bool fits = true;
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t port = 0; after[i] && port < sizes[i]; ++port) {
        fits = fits && !taken[*after[i] + port];
        taken.set(*after[i] + port);
      }
    }
    const auto done = manager.relocate(moves);
    ASSERT_EQ(done.has_value(), fits) << round;
    if (fits) at = after;
    moved += fits && !moves.empty();
    ASSERT_THAT(manager.check_invariants(), IsOk()) << round;
    for (std::size_t i = 0; i < count; ++i) {
      ASSERT_EQ(devices[i].is_parked(pio), !at[i]) << round;
      if (at[i]) {
        ASSERT_EQ(devices[i].pio(), ports(first + *at[i], sizes[i])) << round;
      }
    }
  }
  EXPECT_GT(moved, 100U);
  devices.clear();
  VMSPACE_EXPECT_OK(manager.acquire({PioRange{.size = 64, .fixed = first}}, "all of it"));
}

}  // namespace
}  // namespace vmspace::resource_ports_test
