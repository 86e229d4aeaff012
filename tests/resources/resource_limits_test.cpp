// SPDX-License-Identifier: Apache-2.0
//
// What a manager is created with: the numbers of each kind.

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "resources/manager_state.hpp"

namespace vmspace::resource_limits_test {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using namespace literals;

class ResourceLimitsTest : public test::ManagerTest {
 protected:
  std::string refused_limits(Errc code, ResourceLimits limits) const {
    const auto created = ResourceManager::create(space, std::move(limits));
    EXPECT_THAT(created, HasError(code));
    return created ? "" : created.error().message();
  }
};

TEST_F(ResourceLimitsTest, NumbersPastWhatAKindHasAreRefusedByName) {
  constexpr std::uint64_t past = std::uint64_t{1} << 32U;
  EXPECT_THAT(refused_limits(Errc::out_of_bounds, {.pio = {.ranges = {Range::of(0, 0x1'0000)}}}),
              AllOf(HasSubstr("ResourceManager::create"), HasSubstr("pio")));
  EXPECT_THAT(
      refused_limits(Errc::out_of_bounds, {.legacy_irqs = {.ranges = {Range::point(past)}}}),
      HasSubstr("legacy_irq"));
  EXPECT_THAT(
      refused_limits(Errc::out_of_bounds, {.generic_irqs = {.ranges = {Range::of(24, past)}}}),
      HasSubstr("generic_irq"));
  EXPECT_THAT(refused_limits(Errc::out_of_bounds, {.msi = {.ranges = {Range::of(0, past)}}}),
              HasSubstr("msi"));
  EXPECT_THAT(
      refused_limits(Errc::out_of_bounds, {.mac_addresses = Range::point(std::uint64_t{1} << 48U)}),
      HasSubstr("mac_address"));
  EXPECT_THAT(refused_limits(Errc::out_of_bounds, {.pci_buses = {{.last_device = 32}}}),
              HasSubstr("pci_device"));
}

TEST_F(ResourceLimitsTest, OverlappingLimitsAreRefusedByName) {
  EXPECT_THAT(
      refused_limits(Errc::overlap, {.pio = {.ranges = {Range::of(0, 9), Range::of(9, 20)}}}),
      HasSubstr("pio"));
  EXPECT_THAT(
      refused_limits(Errc::overlap,
                     {.msi = {.ranges = {Range::of(0, 9), Range::of(10, 20), Range::of(3, 4)}}}),
      HasSubstr("msi"));
  EXPECT_THAT(refused_limits(Errc::overlap, {.generic_irqs = {.ranges = {Range::of(15, 100)}}}),
              HasSubstr("legacy"));
  EXPECT_THAT(refused_limits(Errc::overlap, {.pci_buses = {{.bus = 1}, {.bus = 0}, {.bus = 1}}}),
              HasSubstr("pci_device"));
  EXPECT_THAT(
      refused_limits(Errc::invalid_range, {.pci_buses = {{.first_device = 5, .last_device = 4}}}),
      HasSubstr("pci_device"));
}

TEST_F(ResourceLimitsTest, NumbersForUnsetRequestsMustBeAmongThoseThatExist) {
  EXPECT_THAT(
      refused_limits(Errc::out_of_bounds, {.pio = {.ranges = {Range::of(0, 9), Range::of(20, 29)},
                                                   .any = Range::of(10, 19)}}),
      HasSubstr("pio"));
  EXPECT_THAT(refused_limits(Errc::out_of_bounds, {.msi = {.ranges = {}, .any = Range::of(0, 9)}}),
              HasSubstr("msi"));
}

TEST_F(ResourceLimitsTest, SlotsPastThe32BitsOfTheirNumbersAreLeftToOthers) {
  constexpr std::uint64_t past = std::uint64_t{1} << 32U;
  const RangePool far = RangePool::create("slots", {Range::of(past - 2, past + 8)}).value();
  const auto wide = ResourceManager::create(space, {.kvm_slots = far}).value();
  const auto got = VMSPACE_ASSERT_OK(wide.acquire({KvmSlots{}}, "a"));
  EXPECT_EQ(got.kvm_slot(), Range::point(past - 2));
  test::refusal(wide, Errc::no_space, [&] { return wide.acquire({KvmSlots{.count = 2}}, "b"); });
  test::refusal(wide, Errc::out_of_bounds,
                [&] { return wide.acquire({KvmSlots{.count = 2, .fixed = 0xffff'ffff}}, "b"); });
  const auto last = VMSPACE_ASSERT_OK(wide.acquire({KvmSlots{.fixed = 0xffff'ffff}}, "b"));
}

TEST_F(ResourceLimitsTest, ANullLedgerIsRefused) {
  const auto created = ResourceManager::create(std::shared_ptr<const RegionLedger>());
  EXPECT_THAT(created, HasError(Errc::invalid_argument));
}

TEST_F(ResourceLimitsTest, AKindWithoutNumbersIsExhausted) {
  const auto none =
      ResourceManager::create(
          space, {.pio = {}, .legacy_irqs = {}, .generic_irqs = {}, .msi = {}, .pci_buses = {}})
          .value();
  for (const ResourceRequest& request :
       Requests{PioRange{.size = 1}, LegacyIrq{}, LegacyIrq{.shared = true}, GenericIrq{},
                MsiVectors{.count = 1}, MsixVectors{.count = 1}}) {
    test::refusal(none, Errc::no_space, [&] { return none.acquire({request}, "dev"); });
  }
  for (const ResourceRequest& request :
       Requests{PioRange{.size = 1, .fixed = 0}, LegacyIrq{.fixed = 5, .shared = true},
                GenericIrq{.fixed = 24}, MsiVectors{.count = 1, .fixed = 1024}}) {
    test::refusal(none, Errc::out_of_bounds, [&] { return none.acquire({request}, "dev"); });
  }
}

TEST_F(ResourceLimitsTest, RangesThatTouchAreOne) {
  const auto joined = ResourceManager::create(
                          space, {.pio = {.ranges = {Range::of(0x100, 0x1ff), Range::of(0, 0xff)}}})
                          .value();
  const auto got = VMSPACE_ASSERT_OK(joined.acquire({PioRange{.size = 0x200}}, "dev"));
  EXPECT_EQ(got.pio(), Range::of(0, 0x1ff));
}

TEST_F(ResourceLimitsTest, UnsetNumbersComeFromWhereTheLimitsSayAndFixedOnesFromAnywhere) {
  const auto some =
      ResourceManager::create(
          space, {.pio = {.ranges = {Range::of(0, 0xffff)}, .any = Range::of(0x10, 0x1f)}})
          .value();
  const auto got = VMSPACE_ASSERT_OK(
      some.acquire({PioRange{.size = 16}, PioRange{.size = 16, .fixed = 0x100}}, "dev"));
  EXPECT_EQ(got.pio(0), Range::of(0x10, 0x1f));
  EXPECT_EQ(got.pio(1), Range::of(0x100, 0x10f));
  test::refusal(some, Errc::no_space, [&] { return some.acquire({PioRange{.size = 1}}, "b"); });
}

TEST_F(ResourceLimitsTest, TheLastNumbersOfEachKindAreGivenAndComeBack) {
  constexpr std::uint64_t last = 0xffff'ffff;
  const RangePool far = RangePool::create("slots", {Range::of(0, last)}).value();
  const auto wide =
      ResourceManager::create(space, {.pio = {.ranges = {Range::of(0, 0xffff)}},
                                      .legacy_irqs = {.ranges = {Range::of(0, 23)}},
                                      .generic_irqs = {.ranges = {Range::of(24, last)}},
                                      .msi = {.ranges = {Range::of(0, last)}},
                                      .kvm_slots = far,
                                      .mac_addresses = Range::of(0, (std::uint64_t{1} << 48U) - 1)})
          .value();
  const test::State before = test::state_of(wide);
  {
    const auto got = VMSPACE_ASSERT_OK(wide.acquire(
        {PioRange{.size = 1, .fixed = 0xffff}, GenericIrq{.count = 2, .fixed = last - 1},
         MsiVectors{.count = 32, .fixed = last - 31}, MsixVectors{.count = 1, .fixed = 0},
         KvmSlots{.count = 7, .fixed = last - 6}, GenericIrq{.count = last - 24 - 1},
         MacAddress{.fixed = (std::uint64_t{1} << 48U) - 1}},
        "dev"));
    EXPECT_EQ(got.msi().max(), last);
    EXPECT_EQ(got.generic_irq(0).max(), last);
    const auto again = ResourceManager::create(
                           AddressSpace::create(layout).value(),
                           {.legacy_irqs = {.ranges = {Range::of(0, 23)}},
                            .generic_irqs = {.ranges = {Range::of(24, last)}},
                            .msi = {.ranges = {Range::of(0, last)}},
                            .kvm_slots = RangePool::create("slots", {Range::of(0, last)}).value(),
                            .mac_addresses = Range::of(0, (std::uint64_t{1} << 48U) - 1)})
                           .value();
    const auto adopted = VMSPACE_ASSERT_OK(again.adopt(wide.claims()));
    EXPECT_EQ(again.claims(), wide.claims());
    test::refusal(wide, Errc::overflow, [&] {
      return wide.acquire({MacAddress{.fixed = 0}, PioRange{.size = ~std::uint64_t{0}, .fixed = 2}},
                          "x");
    });
  }
  EXPECT_TRUE(test::state_of(wide) == before);
}

TEST_F(ResourceLimitsTest, UsageCountsWhatThereIsAndWhatIsLeft) {
  const auto got =
      take({PioRange{.size = 0x10, .fixed = 0xd08}, LegacyIrq{.fixed = 5, .shared = true},
            MmioRange{.size = 1_MiB, .fixed = GuestAddress{low + 1_MiB}}},
           "dev");
  const auto usage = manager.usage();
  EXPECT_THAT(usage,
              Contains(ResourceUsage{"pio", 0x1'0000 - 8, 0x1'0000 - 8 - 0x10, 0xffff - 0xd17}));
  EXPECT_THAT(usage, Contains(ResourceUsage{"legacy_irq", 12, 11, 4}));
  EXPECT_THAT(usage, Contains(ResourceUsage{"kvm_slot", 509, 509, 509}));
  EXPECT_THAT(usage,
              Contains(ResourceUsage{"mmio_low", 0x3c00'0000, 0x3bf0'0000, 0x3be0'0000, true}));
  std::vector<std::string> names;
  for (const ResourceUsage& entry : usage)
    names.push_back(entry.name);
  EXPECT_THAT(names,
              ElementsAre("pio", "legacy_irq", "generic_irq", "msi", "pci_device", "mac_address",
                          "kvm_slot", "ram_low", "mmio_low", "platform", "ram_high", "mmio_high"));
}

}  // namespace
}  // namespace vmspace::resource_limits_test
