// SPDX-License-Identifier: Apache-2.0
//
// Claims replayed into another manager give what the first one had, or an error and nothing.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "resources/manager_state.hpp"

namespace vmspace::resource_adopt_test {
namespace {

using test::one_of_each;
using test::state_of;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using namespace literals;

using Claims = std::vector<ResourceClaim>;

class ResourceAdoptTest : public test::ManagerTest {
 protected:
  /// Checks that another manager, which adopts what this one claims, is as this one.
  void expect_replayed() const {
    const ResourceManager other = fresh();
    const auto adopted = VMSPACE_ASSERT_OK(other.adopt(manager.claims()));
    EXPECT_EQ(other.claims(), manager.claims());
    EXPECT_TRUE(state_of(other) == state_of(manager));
    VMSPACE_EXPECT_OK(other.check_invariants());
  }
  /// The message of adopt() on a fresh manager, which must fail with this code and change nothing.
  std::string refused_claims(Errc code, const Claims& claims) const {
    const ResourceManager other = fresh();
    return test::refusal(other, code, [&] { return other.adopt(claims); });
  }
};

TEST_F(ResourceAdoptTest, WhatWasClaimedIsHeldAgainByTheSameOwners) {
  const auto a = take(one_of_each(), "a");
  const auto b = take(one_of_each(), "b");
  const auto c = take({MmioRange{.size = 64_KiB, .bridge = "a"}}, "c");
  expect_replayed();

  const ResourceManager other = fresh();
  auto adopted = VMSPACE_ASSERT_OK(other.adopt(manager.claims()));
  ASSERT_THAT(adopted, SizeIs(3));
  EXPECT_EQ(adopted[0].owner(), "a");
  EXPECT_EQ(adopted[1].owner(), "b");
  EXPECT_EQ(adopted[2].mmio()->base(), c.mmio()->base());
  EXPECT_EQ(adopted[1].msix(), b.msix());
  // They are held as if they had been acquired.
  adopted.clear();
  EXPECT_THAT(other.holders(), IsEmpty());
  EXPECT_THAT(other.claims(), IsEmpty());
  VMSPACE_EXPECT_OK(other.collect());
  EXPECT_TRUE(state_of(other) == state_of(fresh()));
}

TEST_F(ResourceAdoptTest, NothingClaimedIsNothingAdopted) {
  const auto nothing = VMSPACE_ASSERT_OK(manager.adopt({}));
  EXPECT_THAT(nothing, IsEmpty());
  EXPECT_THAT(manager.holders(), IsEmpty());
}

TEST_F(ResourceAdoptTest, ClaimsSayWhatWasAskedAndWhereItIsNow) {
  auto a = take({MmioRange{.size = 64_KiB, .reach = MmioReach::below_4g, .name = "BAR0"},
                 MmioRange{.size = 64_KiB, .align = 1_MiB, .prefetchable = true}},
                "a");
  const GuestAddress to{low + 8_MiB};
  VMSPACE_EXPECT_OK(relocate({{&a, 0, to}, {&a, 1, std::nullopt}}));
  const auto claims = manager.claims();
  ASSERT_THAT(claims, SizeIs(2));
  EXPECT_EQ(std::get<MmioRange>(claims[0].request),
            (MmioRange{.size = 64_KiB, .reach = MmioReach::below_4g, .fixed = to, .name = "BAR0"}));
  EXPECT_EQ(std::get<MmioRange>(claims[1].request), (MmioRange{.size = 64_KiB,
                                                               .align = 1_MiB,
                                                               .prefetchable = true,
                                                               .fixed = GuestAddress{high},
                                                               .parked = true}));
  expect_replayed();
}

TEST_F(ResourceAdoptTest, SharedLinesHaveAsManyHoldersAgain) {
  const auto a = take({LegacyIrq{.fixed = 9, .shared = true}}, "a");
  auto b =
      take({LegacyIrq{.fixed = 9, .shared = true}, LegacyIrq{.fixed = 9, .shared = true}}, "b");
  expect_replayed();
  const ResourceManager other = fresh();
  auto adopted = VMSPACE_ASSERT_OK(other.adopt(manager.claims()));
  adopted.erase(adopted.begin());
  EXPECT_THAT(other.acquire({LegacyIrq{.fixed = 9}}, "x"), HasError(Errc::overlap));
  adopted.clear();
  VMSPACE_EXPECT_OK(other.acquire({LegacyIrq{.fixed = 9}}, "x"));
}

TEST_F(ResourceAdoptTest, OwnersComeInAnyOrder) {
  const auto outer = take({BridgeWindow{.size = 8_MiB}, MmioRange{.size = 4_KiB}}, "outer");
  const auto inner = take({BridgeWindow{.size = 2_MiB, .bridge = "outer"}}, "inner");
  const auto deep = take({MmioRange{.size = 64_KiB, .bridge = "inner"}, LegacyIrq{}}, "deep");
  const auto beside = take({MmioRange{.size = 64_KiB, .bridge = "outer"}}, "beside");
  Claims claims = manager.claims();
  const auto less = [](const auto& x, const auto& y) {
    return std::pair(x.owner, x.request.index()) < std::pair(y.owner, y.request.index());
  };
  std::sort(claims.begin(), claims.end(), less);
  do {
    const ResourceManager other = fresh();
    const auto adopted = VMSPACE_ASSERT_OK(other.adopt(claims));
    EXPECT_EQ(other.holders(), manager.holders());
    EXPECT_EQ(adopted.front().owner(), claims.front().owner);
    VMSPACE_EXPECT_OK(other.check_invariants());
  } while (std::next_permutation(claims.begin(), claims.end(), less));
}

TEST_F(ResourceAdoptTest, DevicesThatAreOlderThanTheirBridgeAreAdopted) {
  auto device = take({MmioRange{.size = 64_KiB, .bridge = "br", .parked = true}}, "device");
  const auto bridge = take({BridgeWindow{.size = 1_MiB}}, "br");
  VMSPACE_EXPECT_OK(relocate({{&device, 0, GuestAddress{bridge.bridge_window().min()}}}));
  expect_replayed();
}

TEST_F(ResourceAdoptTest, WhatABridgeHasLeftAndWhatIsBehindAParkedWindowIsAdopted) {
  const auto outer = take({BridgeWindow{.size = 8_MiB}}, "outer");
  std::optional<DeviceResources> gone =
      take({BridgeWindow{.size = 2_MiB, .bridge = "outer"}}, "gone");
  auto parked = take({BridgeWindow{.size = 2_MiB, .bridge = "outer"}}, "parked");
  const auto left = take({MmioRange{.size = 64_KiB, .bridge = "gone"}}, "left");
  const auto behind = take({MmioRange{.size = 64_KiB, .bridge = "parked"}}, "behind");
  VMSPACE_EXPECT_OK(relocate({{&parked, 0, std::nullopt, ResourceKind::bridge_window}}));
  expect_replayed();
  gone.reset();
  expect_replayed();
}

TEST_F(ResourceAdoptTest, AClaimThatClashesNamesBothOwners) {
  const auto a = take(one_of_each(), "a");
  const Claims claims = manager.claims();
  for (std::size_t i = 0; i < claims.size(); ++i) {
    if (claims[i].request == ResourceRequest{LegacyIrq{.fixed = 5, .shared = true}}) continue;
    Claims twice = claims;
    twice.push_back({"b", claims[i].request});
    EXPECT_THAT(refused_claims(Errc::overlap, twice),
                AllOf(HasSubstr("ResourceManager::adopt"), HasSubstr("of b\""), HasSubstr("\"a\"")))
        << i;
    // And with what the manager has already.
    EXPECT_THAT(test::refusal(manager, Errc::overlap,
                              [&] {
                                return manager.adopt(Claims{{"b", claims[i].request}});
                              }),
                AllOf(HasSubstr("claim 0"), HasSubstr("of b\""), HasSubstr("\"a\"")))
        << i;
  }
}

TEST_F(ResourceAdoptTest, TheSameOwnerTwiceIsOneOwnerAndOneThatHoldsSomethingIsRefused) {
  const Claims claims = {
      {"a", LegacyIrq{.fixed = 5}}, {"b", LegacyIrq{.fixed = 6}}, {"a", LegacyIrq{.fixed = 7}}};
  const auto adopted = VMSPACE_ASSERT_OK(manager.adopt(claims));
  ASSERT_THAT(adopted, SizeIs(2));
  EXPECT_EQ(adopted[0].legacy_irq(1), 7U);
  EXPECT_THAT(test::refusal(manager, Errc::bad_state,
                            [&] {
                              return manager.adopt(Claims{{"c", LegacyIrq{.fixed = 9}},
                                                          {"b", LegacyIrq{.fixed = 10}}});
                            }),
              HasSubstr("\"b\""));
  refused_claims(Errc::invalid_argument, {{"", LegacyIrq{.fixed = 5}}});
}

TEST_F(ResourceAdoptTest, ClaimsThatAreNotFixedAreRefused) {
  for (const ResourceRequest& request : one_of_each()) {
    EXPECT_THAT(
        refused_claims(Errc::invalid_argument, {{"b", LegacyIrq{.fixed = 7}}, {"a", request}}),
        HasSubstr("claim 1 (" + std::string(name_of(kind_of(request))) + ") of a"));
  }
  refused_claims(Errc::invalid_argument, {{"a", PciDevice{.bus = 0}}});
  refused_claims(Errc::invalid_argument, {{"a", MmioRange{.size = 4_KiB, .parked = true}}});
}

// A file may be altered in any field: it is then adopted exactly as written, or rejected.

/// Changes of a number that are likely to matter.
std::vector<std::uint64_t> changed(std::uint64_t value) {
  return {0,
          1,
          value - 1,
          value + 1,
          value * 2,
          value + 4_KiB,
          value - 1_MiB,
          value ^ 1_GiB,
          std::uint64_t{1} << 63U,
          ~std::uint64_t{0}};
}
template <typename T>
void change(std::vector<ResourceRequest>& out, const ResourceRequest& original, auto field) {
  T request = std::get<T>(original);
  auto& member = field(request);
  using Member = std::remove_reference_t<decltype(member)>;
  const Member before = member;
  const auto put = [&](const Member& value) {
    member = value;
    out.emplace_back(request);
  };
  if constexpr (std::is_same_v<Member, bool>) {
    put(!before);
  } else if constexpr (std::is_same_v<Member, std::string>) {
    for (const char* name : {"", "a", "b", "nobody", "ram_high", "mmio_low"})
      put(name);
  } else if constexpr (std::is_enum_v<Member>) {
    for (unsigned value = 0; value < 8; ++value)
      put(static_cast<Member>(value));
  } else if constexpr (std::is_same_v<Member, std::optional<GuestAddress>>) {
    for (const std::uint64_t value : changed(before->value()))
      put(GuestAddress{value});
    put(std::nullopt);
  } else if constexpr (std::is_integral_v<Member>) {
    for (const std::uint64_t value : changed(before))
      put(static_cast<Member>(value));
  } else if constexpr (std::is_same_v<Member, std::optional<Range>>) {
    put(Range::of(0, 0x1fff));
    put(Range::of(0x8000, 0x8fff));
  } else {
    for (const std::uint64_t value : changed(*before))
      put(static_cast<typename Member::value_type>(value));
    put(std::nullopt);
  }
}

/// All requests that differ from this one in one field.
std::vector<ResourceRequest> neighbours(const ResourceRequest& original) {
  std::vector<ResourceRequest> out;
#define VMSPACE_FIELD(type, name) \
  change<type>(                   \
      out, original, [](type & request) -> auto& { return request.name; })
  switch (kind_of(original)) {
    case ResourceKind::pio:
      VMSPACE_FIELD(PioRange, size);
      VMSPACE_FIELD(PioRange, align);
      VMSPACE_FIELD(PioRange, window);
      VMSPACE_FIELD(PioRange, fixed);
      VMSPACE_FIELD(PioRange, parked);
      break;
    case ResourceKind::mmio:
      VMSPACE_FIELD(MmioRange, size);
      VMSPACE_FIELD(MmioRange, align);
      VMSPACE_FIELD(MmioRange, reach);
      VMSPACE_FIELD(MmioRange, prefetchable);
      VMSPACE_FIELD(MmioRange, bridge);
      VMSPACE_FIELD(MmioRange, aperture);
      VMSPACE_FIELD(MmioRange, fixed);
      VMSPACE_FIELD(MmioRange, parked);
      VMSPACE_FIELD(MmioRange, name);
      break;
    case ResourceKind::memory:
      VMSPACE_FIELD(MemoryRange, region.size);
      VMSPACE_FIELD(MemoryRange, region.type);
      VMSPACE_FIELD(MemoryRange, region.protection);
      VMSPACE_FIELD(MemoryRange, region.hotplug);
      VMSPACE_FIELD(MemoryRange, region.populate);
      VMSPACE_FIELD(MemoryRange, region.name);
      VMSPACE_FIELD(MemoryRange, align);
      VMSPACE_FIELD(MemoryRange, aperture);
      VMSPACE_FIELD(MemoryRange, fixed);
      break;
    case ResourceKind::bridge_window:
      VMSPACE_FIELD(BridgeWindow, size);
      VMSPACE_FIELD(BridgeWindow, align);
      VMSPACE_FIELD(BridgeWindow, reach);
      VMSPACE_FIELD(BridgeWindow, prefetchable);
      VMSPACE_FIELD(BridgeWindow, bridge);
      VMSPACE_FIELD(BridgeWindow, aperture);
      VMSPACE_FIELD(BridgeWindow, fixed);
      VMSPACE_FIELD(BridgeWindow, parked);
      break;
    case ResourceKind::legacy_irq:
      VMSPACE_FIELD(LegacyIrq, fixed);
      VMSPACE_FIELD(LegacyIrq, shared);
      break;
    case ResourceKind::generic_irq:
      VMSPACE_FIELD(GenericIrq, count);
      VMSPACE_FIELD(GenericIrq, fixed);
      break;
    case ResourceKind::msi:
      VMSPACE_FIELD(MsiVectors, count);
      VMSPACE_FIELD(MsiVectors, fixed);
      break;
    case ResourceKind::msix:
      VMSPACE_FIELD(MsixVectors, count);
      VMSPACE_FIELD(MsixVectors, fixed);
      break;
    case ResourceKind::kvm_slot:
      VMSPACE_FIELD(KvmSlots, count);
      VMSPACE_FIELD(KvmSlots, fixed);
      break;
    case ResourceKind::pci_device:
      VMSPACE_FIELD(PciDevice, segment);
      VMSPACE_FIELD(PciDevice, bus);
      VMSPACE_FIELD(PciDevice, device);
      break;
    case ResourceKind::mac_address: VMSPACE_FIELD(MacAddress, fixed); break;
  }
#undef VMSPACE_FIELD
  return out;
}

/// A claim as claims() returns it: without search constraints that are not part of what is held,
/// and without a name equal to the owner's.
ResourceClaim as_held(ResourceClaim claim) {
  if (auto* pio = std::get_if<PioRange>(&claim.request)) {
    pio->window.reset();
  }
  if (auto* mmio = std::get_if<MmioRange>(&claim.request); mmio && mmio->name == claim.owner) {
    mmio->name.clear();
  }
  if (auto* memory = std::get_if<MemoryRange>(&claim.request);
      memory && memory->region.name == claim.owner) {
    memory->region.name.clear();
  }
  return claim;
}

TEST_F(ResourceAdoptTest, AClaimThatWasChangedIsAdoptedAsItSaysOrNotAtAll) {
  auto a = take(one_of_each(), "a");
  const auto b = take({BridgeWindow{.size = 1_MiB, .bridge = "a"}, MmioRange{.size = 4_KiB},
                       LegacyIrq{.shared = true}, MmioRange{.size = 4_KiB, .parked = true}},
                      "b");
  const auto c =
      take({MmioRange{.size = 4_KiB, .bridge = "b"}, MmioRange{.size = 4_KiB, .bridge = "a"}}, "c");
  VMSPACE_EXPECT_OK(relocate({{&a, 1, std::nullopt}}));
  const Claims claims = manager.claims();
  int adopted_ones = 0;
  int refused_ones = 0;
  for (std::size_t i = 0; i < claims.size(); ++i) {
    Claims altered = claims;
    auto requests = neighbours(claims[i].request);
    for (const ResourceRequest& request : requests) {
      altered[i].request = request;
      const ResourceManager other = fresh();
      const test::State before = state_of(other);
      const auto adopted = other.adopt(altered);
      VMSPACE_EXPECT_OK(other.check_invariants());
      if (adopted) {
        ++adopted_ones;
        Claims expected = altered;
        expected[i] = as_held(expected[i]);
        EXPECT_EQ(other.claims(), expected) << i << " " << name_of(kind_of(request));
      } else {
        ++refused_ones;
        EXPECT_TRUE(state_of(other) == before) << adopted.error().message();
      }
    }
    for (const char* owner : {"", "a", "b", "d"}) {
      altered[i] = {owner, claims[i].request};
      const ResourceManager other = fresh();
      const test::State before = state_of(other);
      const auto adopted = other.adopt(altered);
      VMSPACE_EXPECT_OK(other.check_invariants());
      if (adopted) {
        EXPECT_EQ(other.claims().size(), claims.size());
      } else {
        EXPECT_TRUE(state_of(other) == before) << adopted.error().message();
      }
    }
  }
  EXPECT_GT(adopted_ones, 50);
  EXPECT_GT(refused_ones, 300);
}

}  // namespace
}  // namespace vmspace::resource_adopt_test
