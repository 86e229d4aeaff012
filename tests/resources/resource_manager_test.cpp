// SPDX-License-Identifier: Apache-2.0

#include "vmspace/resources/resource_manager.hpp"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/resources.hpp"
#include "vmspace/testing.hpp"

namespace vmspace {
namespace {

using namespace literals;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

/// All that a manager decides: what a failing call must leave as it was.
struct State {
  std::vector<ResourceHolder> holders;
  std::vector<ResourceUsage> usage;
  std::shared_ptr<const AddressSpaceBase> space;
  std::vector<AddressSpaceRegionPtr> retired;

  friend bool operator==(const State& a, const State& b) {
    return a.holders == b.holders && a.usage == b.usage && *a.space == *b.space &&
           a.retired == b.retired;
  }
};

State state_of(const ResourceManager& manager) {
  return {manager.holders(), manager.usage(), manager.ledger().snapshot(), manager.retired()};
}

class ResourceManagerTest : public testing::Test {
 protected:
  const AddressSpaceLayout layout = AddressSpaceLayout::x86_64({.phys_bits = 40}).value();
  const AddressSpace space = AddressSpace::create(layout).value();
  const RangePool slots = RangePool::create("slots", {Range::of(0, 508)}).value();
  const ResourceManager manager =
      ResourceManager::create(
          space,
          {.kvm_slots = slots, .mac_addresses = Range::of(0x5254'0012'3400, 0x5254'0012'34ff)})
          .value();

  const std::vector<ResourceRequest> nic = {PciDevice{},
                                            PioRange{.size = 32},
                                            MmioRange{.size = 16_KiB, .name = "nic BAR0"},
                                            MmioRange{.size = 64_MiB, .prefetchable = true},
                                            LegacyIrq{.shared = true},
                                            MsixVectors{.count = 3},
                                            MsiVectors{.count = 4},
                                            GenericIrq{},
                                            KvmSlots{},
                                            MacAddress{}};

  void TearDown() override { VMSPACE_EXPECT_OK(manager.check_invariants()); }
};

TEST_F(ResourceManagerTest, GivesADeviceEverythingThatItAsksForByKind) {
  const auto got = VMSPACE_ASSERT_OK(manager.acquire(nic, "nic0"));
  EXPECT_EQ(got.owner(), "nic0");
  EXPECT_EQ(got.pci_device(), (PciAddress{.segment = 0, .bus = 0, .device = 1}));
  EXPECT_EQ(got.pio(), Range::of(0x1000, 0x101f));
  EXPECT_EQ(got.mmio(0)->range(), Range::of(0xc000'0000, 0xc000'3fff));
  EXPECT_EQ(got.mmio(0)->name(), "nic BAR0");
  EXPECT_EQ(got.mmio(0)->owner(), "nic0");
  EXPECT_GE(got.mmio(1)->base().value(), 4_GiB);
  EXPECT_EQ(got.legacy_irq(), 5U);
  EXPECT_EQ(got.msix().size(), 3U);
  EXPECT_EQ(got.msi().min() % 4, 0U);
  EXPECT_EQ(got.generic_irq(), Range::point(24));
  EXPECT_EQ(got.kvm_slot(), Range::point(0));
  EXPECT_EQ(got.mac_address(), (std::array<std::uint8_t, 6>{0x52, 0x54, 0, 0x12, 0x34, 0}));
  EXPECT_THAT(manager.holders(), SizeIs(nic.size()));
  std::printf("%s\n%s", resource_table(manager).c_str(), memory_map(manager).c_str());
}

TEST_F(ResourceManagerTest, GivesBackEverythingWhenTheDeviceGoes) {
  const State before = state_of(manager);
  { const auto got = VMSPACE_ASSERT_OK(manager.acquire(nic, "nic0")); }
  EXPECT_THAT(manager.holders(), IsEmpty());
  EXPECT_THAT(manager.retired(), SizeIs(2));
  VMSPACE_EXPECT_OK(manager.collect());
  EXPECT_EQ(state_of(manager), before);
}

TEST_F(ResourceManagerTest, LeavesEverythingAsItWasWhenAnyRequestCantBeMet) {
  const auto other = VMSPACE_ASSERT_OK(manager.acquire(nic, "other"));
  const State before = state_of(manager);
  for (std::size_t k = 0; k <= nic.size(); ++k) {
    auto requests = nic;
    requests.insert(requests.begin() + static_cast<std::ptrdiff_t>(k), MmioRange{.size = 1_TiB});
    const auto got = manager.acquire(requests, "nic0");
    ASSERT_FALSE(got);
    EXPECT_EQ(got.error().code, Errc::no_space);
    EXPECT_THAT(got.error().message(),
                HasSubstr("request " + std::to_string(k) + " (mmio) of nic0"));
    EXPECT_EQ(state_of(manager), before);
  }
}

TEST_F(ResourceManagerTest, SwapsTheBarsOfTwoDevices) {
  auto a = VMSPACE_ASSERT_OK(manager.acquire({MmioRange{.size = 64_KiB}}, "a"));
  auto b = VMSPACE_ASSERT_OK(manager.acquire({MmioRange{.size = 64_KiB}}, "b"));
  const auto a_base = a.mmio()->base();
  const auto b_base = b.mmio()->base();
  VMSPACE_EXPECT_OK(manager.relocate({{&a, 0, b_base}, {&b, 0, a_base}}));
  EXPECT_EQ(a.mmio()->base(), b_base);
  EXPECT_EQ(b.mmio()->base(), a_base);
  EXPECT_EQ(space.find_region(a_base), b.mmio());
}

TEST_F(ResourceManagerTest, AdoptsWhatWasClaimed) {
  const auto a = VMSPACE_ASSERT_OK(manager.acquire(nic, "a"));
  const auto b = VMSPACE_ASSERT_OK(manager.acquire(nic, "b"));
  const auto claims = manager.claims();

  const AddressSpace other_space = AddressSpace::create(layout).value();
  const ResourceManager other =
      ResourceManager::create(other_space,
                              {.kvm_slots = RangePool::create("slots", {Range::of(0, 508)}).value(),
                               .mac_addresses = Range::of(0x5254'0012'3400, 0x5254'0012'34ff)})
          .value();
  const auto adopted = VMSPACE_ASSERT_OK(other.adopt(claims));
  EXPECT_EQ(other.claims(), claims);
  EXPECT_EQ(state_of(other), state_of(manager));
}

}  // namespace
}  // namespace vmspace
