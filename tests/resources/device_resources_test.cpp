// SPDX-License-Identifier: Apache-2.0
//
// What a device holds is given back when it goes, wherever and whenever that is.

#include "vmspace/resources/device_resources.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "resources/manager_state.hpp"

namespace vmspace::device_resources_test {
namespace {

using test::one_of_each;
using test::state_of;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using namespace literals;

static_assert(std::is_nothrow_move_constructible_v<DeviceResources>);
static_assert(std::is_nothrow_move_assignable_v<DeviceResources>);
static_assert(std::is_nothrow_destructible_v<DeviceResources>);
static_assert(!std::is_copy_constructible_v<DeviceResources>);

class DeviceResourcesTest : public test::ManagerTest {
 protected:
  const Requests at_low = {MmioRange{.size = 64_KiB, .fixed = GuestAddress{low}}};
};

TEST_F(DeviceResourcesTest, RegionsOfADestroyedDeviceStayUntilTheNextChange) {
  AddressSpaceRegionPtr region;
  {
    const auto device = take(at_low, "dev");
    region = device.mmio();
  }
  EXPECT_THAT(manager.retired(), ElementsAre(region));
  EXPECT_EQ(space.find_region(GuestAddress{low}), region);
  EXPECT_THAT(manager.holders(), IsEmpty());
  VMSPACE_EXPECT_OK(manager.collect());
  EXPECT_THAT(manager.retired(), IsEmpty());
  EXPECT_EQ(space.find_region(GuestAddress{low}), nullptr);
  VMSPACE_EXPECT_OK(manager.collect());
}

TEST_F(DeviceResourcesTest, TheAddressesOfADestroyedDeviceCanBeAcquiredAtOnce) {
  { const auto device = take(at_low, "dev"); }
  const auto next = VMSPACE_ASSERT_OK(manager.acquire(at_low, "dev"));
  EXPECT_EQ(space.find_region(GuestAddress{low}), next.mmio());
  EXPECT_THAT(manager.retired(), IsEmpty());
}

TEST_F(DeviceResourcesTest, OthersCanEnterRegionsWhereADestroyedDeviceWas) {
  { const auto device = take(at_low, "dev"); }
  VMSPACE_EXPECT_OK(space.insert_region({.name = "theirs",
                                         .type = RegionType::device_memory,
                                         .base = GuestAddress{low},
                                         .size = 4_KiB}));
  EXPECT_THAT(manager.retired(), IsEmpty());
}

TEST_F(DeviceResourcesTest, AChangeThatFailsLeavesRetiredRegionsForTheNext) {
  {
    const auto device =
        take({MmioRange{.size = 64_KiB}, MmioRange{.size = 4_KiB, .parked = true}}, "dev");
  }
  EXPECT_THAT(manager.retired(), SizeIs(2));
  refused(Errc::no_space, {MmioRange{.size = 1_TiB}});
  auto other = take({LegacyIrq{}}, "other");  // no change of addresses
  EXPECT_THAT(manager.retired(), SizeIs(2));
  VMSPACE_EXPECT_OK(manager.relocate({}));
  EXPECT_THAT(manager.retired(), IsEmpty());
  EXPECT_TRUE(space.snapshot()->empty());
  EXPECT_TRUE(space.snapshot()->parked().empty());
}

TEST_F(DeviceResourcesTest, ARetiredRegionThatSomebodyHasRemovedIsNoTrouble) {
  {
    const auto device = take(at_low, "dev");
    VMSPACE_EXPECT_OK(space.remove_region(device.mmio()));
  }
  EXPECT_THAT(manager.retired(), SizeIs(1));
  VMSPACE_EXPECT_OK(space.insert_region({.name = "theirs",
                                         .type = RegionType::device_memory,
                                         .base = GuestAddress{low},
                                         .size = 4_KiB}));
  EXPECT_THAT(manager.retired(), IsEmpty());
  EXPECT_EQ(space.snapshot()->size(), 1U);
}

TEST_F(DeviceResourcesTest, ReleaseTakesEverythingOutNowAndOnce) {
  const test::State before = state_of(manager);
  auto device = take(one_of_each(), "dev");
  const std::uint64_t generation = space.generation();
  VMSPACE_EXPECT_OK(device.release());
  EXPECT_EQ(space.generation(), generation + 1);
  EXPECT_TRUE(state_of(manager) == before);
  EXPECT_FALSE(device.is_held());
  EXPECT_EQ(device.owner(), "");
  EXPECT_EQ(device.count(ResourceKind::mmio), 0U);
  test::refusal(manager, Errc::bad_state, [&] { return device.release(); });
}

TEST_F(DeviceResourcesTest, ReleasingNumbersAloneChangesNoAddresses) {
  auto device = take({LegacyIrq{}, BridgeWindow{.size = 1_MiB}}, "dev");
  const std::uint64_t generation = space.generation();
  VMSPACE_EXPECT_OK(device.release());
  EXPECT_EQ(space.generation(), generation);
  EXPECT_THAT(manager.holders(), IsEmpty());
}

TEST_F(DeviceResourcesTest, ReleaseOfARegionThatSomebodyHasRemovedNamesItAndKeepsEverything) {
  auto device = take({MmioRange{.size = 64_KiB, .name = "BAR0"},
                      MmioRange{.size = 64_KiB, .name = "BAR1"}, LegacyIrq{}},
                     "dev");
  VMSPACE_EXPECT_OK(space.remove_region(device.mmio(0)));
  const auto before = manager.claims();
  const auto released = device.release();
  EXPECT_THAT(released, HasError(Errc::not_found));
  EXPECT_THAT(released.error().message(), HasSubstr("\"BAR0\""));
  EXPECT_TRUE(device.is_held());
  EXPECT_EQ(manager.claims(), before);
  EXPECT_EQ(space.find_region(device.mmio(1)->base()), device.mmio(1));
  VMSPACE_EXPECT_OK(space.insert_region(device.mmio(0)));
  VMSPACE_EXPECT_OK(device.release());
}

TEST_F(DeviceResourcesTest, MovingHandsOverAndAssigningGivesBackWhatWasHeld) {
  auto a = take({LegacyIrq{.fixed = 5}}, "a");
  auto b = take({LegacyIrq{.fixed = 6}}, "b");
  a = std::move(b);
  EXPECT_EQ(a.owner(), "b");
  EXPECT_FALSE(b.is_held());
  EXPECT_THAT(manager.holders(), SizeIs(1));
  auto& same = a;
  a = std::move(same);
  EXPECT_EQ(a.legacy_irq(), 6U);
  const auto c = std::move(a);
  EXPECT_EQ(c.owner(), "b");
  EXPECT_FALSE(a.is_held());
  refused_moves(Errc::bad_state, {{&a, 0, std::nullopt}});
}

TEST_F(DeviceResourcesTest, ADeviceMayOutliveEveryHandle) {
  std::optional<DeviceResources> device;
  RangePool pool = test::pool_of_slots();
  AddressSpaceRegionPtr region;
  {
    const AddressSpace gone = AddressSpace::create(layout).value();
    const auto short_lived = ResourceManager::create(gone, test::limits_with(pool)).value();
    device = VMSPACE_ASSERT_OK(short_lived.acquire(one_of_each(), "dev"));
    region = device->mmio();
  }
  EXPECT_EQ(pool.holders().size(), 1U);
  EXPECT_EQ(device->mmio()->base().value(), low);
  device.reset();
  EXPECT_THAT(pool.holders(), IsEmpty());
  EXPECT_EQ(region.use_count(), 1);
}

TEST_F(DeviceResourcesTest, ADeviceMayBeDestroyedOnAnotherThread) {
  std::optional<DeviceResources> device = take(one_of_each(), "dev");
  std::thread([&] { device.reset(); }).join();
  EXPECT_THAT(manager.holders(), IsEmpty());
  EXPECT_THAT(manager.retired(), SizeIs(3));
}

TEST_F(DeviceResourcesTest, ADeviceMayBeDestroyedInsideAChangeWhichOthersWaitFor) {
  std::optional<DeviceResources> device = take(at_low, "dev");
  VMSPACE_EXPECT_OK(space.transact([&](AddressSpaceBase&) -> Result<void> {
    device.reset();
    return {};
  }));
  EXPECT_THAT(manager.retired(), SizeIs(1));  // that change had begun
  std::optional<DeviceResources> again = take(at_low, "dev");
  VMSPACE_EXPECT_OK(space.transact([&](AddressSpaceBase&) -> Result<void> {
    std::thread([&] { again.reset(); }).join();  // would wait forever if it waited for the change
    return {};
  }));
  EXPECT_THAT(manager.retired(), SizeIs(1));
}

TEST_F(DeviceResourcesTest, CallsFromInsideAChangeAreRefused) {
  auto device = take(at_low, "dev");
  const test::State before = state_of(manager);
  VMSPACE_EXPECT_OK(space.transact([&](AddressSpaceBase&) -> Result<void> {
    EXPECT_THAT(manager.acquire({MmioRange{.size = 4_KiB}, LegacyIrq{}}, "x"),
                HasError(Errc::would_deadlock));
    EXPECT_THAT(manager.adopt(manager.claims()), HasError(Errc::would_deadlock));
    EXPECT_THAT(manager.relocate({{&device, 0, std::nullopt}}), HasError(Errc::would_deadlock));
    EXPECT_THAT(device.release(), HasError(Errc::would_deadlock));
    return {};
  }));
  EXPECT_TRUE(state_of(manager) == before);
  EXPECT_TRUE(device.is_held());
}

using DeviceResourcesDeathTest = DeviceResourcesTest;

TEST_F(DeviceResourcesDeathTest, AnIndexThatIsNotBelowTheCountEndsTheProcess) {
  auto device = take({LegacyIrq{}, MmioRange{.size = 4_KiB}, BridgeWindow{.size = 1_MiB}}, "dev");
  const char* const message = "index must be below count";
  EXPECT_DEATH(static_cast<void>(device.legacy_irq(1)), message);
  EXPECT_DEATH(static_cast<void>(device.pio()), message);
  EXPECT_DEATH(static_cast<void>(device.mmio(SIZE_MAX)), message);
  EXPECT_DEATH(static_cast<void>(device.memory()), message);
  EXPECT_DEATH(static_cast<void>(device.bridge_window(1)), message);
  EXPECT_DEATH(static_cast<void>(device.is_parked(ResourceKind::bridge_window, 1)), message);
  VMSPACE_EXPECT_OK(device.release());
  EXPECT_DEATH(static_cast<void>(device.legacy_irq()), message);
  EXPECT_DEATH(static_cast<void>(device.mmio()), message);
}

TEST_F(DeviceResourcesTest, SeveralManagersMayEnterRegionsInOneSpace) {
  const auto other = ResourceManager::create(space, test::limits_with(slots)).value();
  const auto ours = take({MmioRange{.size = 64_KiB}, LegacyIrq{.fixed = 5}, KvmSlots{}}, "dev");
  const auto theirs = VMSPACE_ASSERT_OK(
      other.acquire({MmioRange{.size = 64_KiB}, LegacyIrq{.fixed = 5}, KvmSlots{}}, "dev"));
  EXPECT_FALSE(ours.mmio()->range().overlaps(theirs.mmio()->range()));
  EXPECT_NE(ours.kvm_slot(), theirs.kvm_slot());
  VMSPACE_EXPECT_OK(other.check_invariants());
}

}  // namespace
}  // namespace vmspace::device_resources_test
