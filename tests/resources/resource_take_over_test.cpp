// SPDX-License-Identifier: Apache-2.0
//
// Claims adopted where the ledger has the devices' regions already, as after a handover.

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "resources/manager_state.hpp"
#include "resources/test_ledger.hpp"

namespace vmspace::resource_take_over_test {
namespace {

using test::one_of_each;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using testing::UnorderedElementsAreArray;
using namespace literals;

using Claims = std::vector<ResourceClaim>;

/// Managers of a guest whose map was handed over: the devices' regions are in it already.
class ResourceTakeOverTest : public test::ManagerTest {
 protected:
  /// A manager of another process that has this map.
  [[nodiscard]] ResourceManager with_map(const AddressSpaceBase& map) const {
    return ResourceManager::create(AddressSpace(map), test::limits_with(test::pool_of_slots()))
        .value();
  }
  [[nodiscard]] static Result<std::vector<DeviceResources>> take_over(const ResourceManager& other,
                                                                      const Claims& claims) {
    return other.adopt(claims, FoundRegions::take_over);
  }
  [[nodiscard]] static Claims as_text_and_back(const Claims& claims) {
    return parse_claims(format_claims(claims)).value();
  }
};

TEST_F(ResourceTakeOverTest, RegionsThatTheLedgerHasAlreadyAreTheOnesThatAreHeld) {
  auto a = take(one_of_each(), "a");
  const auto b = take({MmioRange{.size = 64_KiB, .bridge = "a"},
                       MmioRange{.size = 4_KiB, .parked = true, .name = "option ROM"},
                       MmioRange{.size = 4_KiB, .parked = true, .name = "option ROM"}},
                      "b");
  VMSPACE_EXPECT_OK(relocate({ResourceMove::park(a, 1)}));
  VMSPACE_ASSERT_OK(space.insert_region(
      {.name = "ram", .size = 1_GiB, .backing = {.source = MemorySource::shmem}}));
  const auto map = space.snapshot();
  for (const Claims& claims : {manager.claims(), as_text_and_back(manager.claims())}) {
    const ResourceManager other = with_map(*map);
    auto adopted = VMSPACE_ASSERT_OK(take_over(other, claims));
    VMSPACE_EXPECT_OK(other.check_invariants());
    EXPECT_EQ(other.claims(), manager.claims());
    EXPECT_EQ(other.holders(), manager.holders());
    const auto after = other.ledger().snapshot();
    EXPECT_TRUE(std::ranges::equal(*after, *map)) << "not the same objects";
    EXPECT_THAT(after->parked(), UnorderedElementsAreArray(map->parked()));
    // They go with their device, as if it had acquired them.
    adopted.clear();
    VMSPACE_EXPECT_OK(other.collect());
    EXPECT_THAT(*other.ledger().snapshot(), SizeIs(1));
    EXPECT_THAT(other.ledger().snapshot()->parked(), IsEmpty());
  }
}

TEST_F(ResourceTakeOverTest, MemoryIsTakenOverWhateverItIsMappedFrom) {
  const auto dimm = take({MemoryRange{.region = {.size = 1_GiB,
                                                 .backing = {.source = MemorySource::anon},
                                                 .numa_node = 0,
                                                 .hotplug = true,
                                                 .populate = true}}},
                         "dimm0");
  AddressSpaceBase map(layout);
  RegionOptions sent = (*space.snapshot()->begin())->options();
  sent.backing = {.source = MemorySource::shmem};
  VMSPACE_ASSERT_OK(map.insert_region(std::move(sent)));
  const ResourceManager other = with_map(map);
  const auto adopted = VMSPACE_ASSERT_OK(take_over(other, as_text_and_back(manager.claims())));
  ASSERT_THAT(adopted, SizeIs(1));
  EXPECT_EQ((*other.ledger().snapshot()->begin())->backing().source, MemorySource::shmem);
  EXPECT_EQ(*other.ledger().snapshot(), map);
}

TEST_F(ResourceTakeOverTest, ARegionThatSaysSomethingElseIsInTheWay) {
  const auto a = take({BridgeWindow{.size = 2_MiB}}, "a");
  const auto b = take({MmioRange{.size = 64_KiB, .bridge = "a", .name = "BAR0"}}, "b");
  const RegionOptions held = (*space.snapshot()->begin())->options();
  std::vector<RegionOptions> others(5, held);
  others[0].owner = "c";
  others[1].name = "BAR1";
  others[2].size *= 2;
  others[3].type = RegionType::firmware_memory;
  others[4].protection = Protection::read;
  for (const RegionOptions& other_region : others) {
    AddressSpaceBase map(layout);
    VMSPACE_ASSERT_OK(map.insert_region(RegionOptions(other_region)));
    const ResourceManager other = with_map(map);
    // The window would not be empty.
    test::refusal(other, Errc::overlap, [&] { return take_over(other, manager.claims()); });
    // Nor is there space for the region alone.
    Claims alone{manager.claims().back()};
    std::get<MmioRange>(alone[0].request).bridge.clear();
    const std::string message =
        test::refusal(other, Errc::overlap, [&] { return take_over(other, alone); });
    EXPECT_THAT(message, HasSubstr("held by: \"" + other_region.owner));
  }
}

TEST_F(ResourceTakeOverTest, OneRegionIsTakenOverOnce) {
  const auto a = take({MmioRange{.size = 64_KiB}, MmioRange{.size = 4_KiB, .parked = true}}, "a");
  const ResourceManager other = with_map(*space.snapshot());
  Claims twice = manager.claims();
  twice.push_back(twice[0]);
  test::refusal(other, Errc::overlap, [&] { return take_over(other, twice); });
  // Of parked ones there may be two, and the second is new.
  twice.back() = twice[1];
  const auto adopted = VMSPACE_ASSERT_OK(take_over(other, twice));
  EXPECT_THAT(other.ledger().snapshot()->parked(), SizeIs(2));
  VMSPACE_EXPECT_OK(other.check_invariants());
}

TEST_F(ResourceTakeOverTest, NothingIsTakenOverUnasked) {
  const auto a = take({MmioRange{.size = 64_KiB}}, "a");
  const ResourceManager other = with_map(*space.snapshot());
  const Claims claims = manager.claims();
  const std::vector<ResourceRequest> requests{claims[0].request};
  test::refusal(other, Errc::overlap, [&] { return other.acquire(requests, "a"); });
  test::refusal(other, Errc::overlap, [&] { return other.adopt(claims); });
  test::refusal(other, Errc::invalid_argument,
                [&] { return other.adopt(claims, static_cast<FoundRegions>(2)); });
}

TEST_F(ResourceTakeOverTest, ARetiredRegionIsNotTakenOver) {
  const ResourceManager first = fresh();
  std::optional a = VMSPACE_ASSERT_OK(first.acquire({MmioRange{.size = 64_KiB}}, "a"));
  const Claims claims = first.claims();
  const AddressSpaceRegionPtr old = *first.ledger().snapshot()->begin();
  a.reset();
  ASSERT_THAT(first.retired(), SizeIs(1));
  const auto again = VMSPACE_ASSERT_OK(take_over(first, claims));
  EXPECT_THAT(first.retired(), IsEmpty());
  EXPECT_NE(*first.ledger().snapshot()->begin(), old);
}

/// Retires regions as a change begins: what that change finds, and the next one takes out.
class RetiringLedger final : public test::TestLedger {
 public:
  using TestLedger::TestLedger;
  Result<void> transact(const Edit& edit) const override {
    return space().transact([&](AddressSpaceBase& draft) {
      retire({next.begin(), next.end()});
      return edit(draft);
    });
  }

  mutable std::vector<AddressSpaceRegionPtr> next;
};

TEST_F(ResourceTakeOverTest, ARegionThatGoesWithTheNextChangeIsNotTakenOver) {
  const auto a = take({MmioRange{.size = 64_KiB}}, "a");
  const auto b = take({MmioRange{.size = 4_KiB, .parked = true}}, "b");
  const AddressSpaceBase map = *space.snapshot();
  const auto ledger = std::make_shared<RetiringLedger>(AddressSpace(map));
  const ResourceManager other =
      ResourceManager::create(ledger, test::limits_with(test::pool_of_slots())).value();
  ledger->next = {*map.begin(), map.parked()[0]};
  const Claims claims = manager.claims();
  EXPECT_THAT(take_over(other, claims), HasError(Errc::overlap));
  EXPECT_THAT(other.holders(), IsEmpty());
  ledger->next = {map.parked()[0]};
  const auto parked = VMSPACE_ASSERT_OK(take_over(other, {claims[1]}));
  ledger->next = {};
  VMSPACE_EXPECT_OK(other.collect());
  VMSPACE_EXPECT_OK(other.check_invariants());
}

}  // namespace
}  // namespace vmspace::resource_take_over_test
