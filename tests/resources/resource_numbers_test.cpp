// SPDX-License-Identifier: Apache-2.0
//
// Numbers: interrupt lines that are shared or not, message vectors, slots, PCI devices, MAC addresses.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "resources/manager_state.hpp"

namespace vmspace::resource_numbers_test {
namespace {

using test::State;
using test::state_of;
using testing::Contains;
using testing::HasSubstr;
using namespace literals;

class ResourceNumbersTest : public test::ManagerTest {};

TEST_F(ResourceNumbersTest, ALineIsSharedOnlyByThoseWhoAllSaySo) {
  for (const bool first : {false, true}) {
    for (const bool second : {false, true}) {
      for (const bool any : {false, true}) {
        const auto holder = take({LegacyIrq{.fixed = 7, .shared = first}}, "holder");
        // All others are held, so that an unset number has only this one.
        const auto others = take(Requests(any ? 8 : 0, LegacyIrq{}), "others");
        LegacyIrq request{.shared = second};
        if (!any) request.fixed = 7;
        if (first && second) {
          const auto got = VMSPACE_ASSERT_OK(manager.acquire({request}, "dev"));
          EXPECT_EQ(got.legacy_irq(), 7U);
          EXPECT_THAT(manager.holders(), Contains(ResourceHolder{ResourceKind::legacy_irq,
                                                                 Range::point(7), "dev", true}));
        } else if (any) {
          refused(Errc::no_space, {request});
        } else {
          const std::string message = refused(Errc::overlap, {request});
          EXPECT_THAT(message, HasSubstr("\"holder\""));
          const char* const reason = first    ? "exclusive use was requested"
                                     : second ? "does not share it"
                                              : "held by";
          EXPECT_THAT(message, HasSubstr(reason));
        }
      }
    }
  }
}

TEST_F(ResourceNumbersTest, AnUnsetSharedLineIsAFreeOneThenTheOneWithTheFewestHolders) {
  const auto exclusive = take(Requests(6, LegacyIrq{}), "exclusive");  // 5 6 7 9 10 11
  const auto first = take(
      {LegacyIrq{.shared = true}, LegacyIrq{.shared = true}, LegacyIrq{.shared = true}}, "first");
  EXPECT_EQ(first.legacy_irq(0), 12U);
  EXPECT_EQ(first.legacy_irq(1), 14U);
  EXPECT_EQ(first.legacy_irq(2), 15U);
  const auto on_12 = take({LegacyIrq{.fixed = 12, .shared = true}}, "on 12");
  std::optional<DeviceResources> second = take({LegacyIrq{.shared = true}}, "second");
  EXPECT_EQ(second->legacy_irq(), 14U);  // the lowest of those with one holder
  const auto third = take({LegacyIrq{.shared = true}}, "third");
  EXPECT_EQ(third.legacy_irq(), 15U);
  second.reset();
  const auto fourth = take({LegacyIrq{.shared = true}}, "fourth");
  EXPECT_EQ(fourth.legacy_irq(), 14U);
  // A shared line outside of where unset numbers come from is for those who ask for it.
  const auto keyboard = take({LegacyIrq{.fixed = 1, .shared = true}}, "keyboard");
  const auto fifth = take({LegacyIrq{.shared = true}}, "fifth");
  EXPECT_NE(fifth.legacy_irq(), 1U);
}

TEST_F(ResourceNumbersTest, OfLinesWithAsManyHoldersTheLowestIsShared) {
  const auto exclusive = take(Requests(6, LegacyIrq{}), "exclusive");
  const auto shared =
      take({LegacyIrq{.fixed = 15, .shared = true}, LegacyIrq{.fixed = 12, .shared = true},
            LegacyIrq{.fixed = 14, .shared = true}},
           "shared");
  const auto next = take({LegacyIrq{.shared = true}}, "next");
  EXPECT_EQ(next.legacy_irq(), 12U);
}

TEST_F(ResourceNumbersTest, ALineIsFreeAgainOnlyAfterItsLastHolder) {
  auto a =
      take({LegacyIrq{.fixed = 9, .shared = true}, LegacyIrq{.fixed = 9, .shared = true}}, "a");
  auto b = take({LegacyIrq{.fixed = 9, .shared = true}}, "b");
  EXPECT_THAT(refused(Errc::overlap, {LegacyIrq{.fixed = 9}}), HasSubstr("\"a\""));
  VMSPACE_EXPECT_OK(a.release());
  EXPECT_THAT(refused(Errc::overlap, {LegacyIrq{.fixed = 9}}), HasSubstr("\"b\""));
  VMSPACE_EXPECT_OK(b.release());
  const auto c = VMSPACE_ASSERT_OK(manager.acquire({LegacyIrq{.fixed = 9}}, "c"));
}

TEST_F(ResourceNumbersTest, AListThatFailsLeavesTheHoldersOfALineAsTheyWere) {
  const auto a = take({LegacyIrq{.fixed = 9, .shared = true}}, "a");
  refused(Errc::overlap, {LegacyIrq{.fixed = 9, .shared = true},
                          LegacyIrq{.fixed = 10, .shared = true}, LegacyIrq{.fixed = 9}});
  const auto b = take({LegacyIrq{.fixed = 10}}, "b");
}

TEST_F(ResourceNumbersTest, LegacyAndGenericNumbersNeverMix) {
  const auto legacy = take(Requests(9, LegacyIrq{}), "legacy");
  for (std::size_t i = 0; i < 9; ++i)
    EXPECT_LT(legacy.legacy_irq(i), 16U);
  refused(Errc::no_space, {LegacyIrq{}});
  refused(Errc::out_of_bounds, {LegacyIrq{.fixed = 24}});
  refused(Errc::out_of_bounds, {GenericIrq{.fixed = 15}});
  const auto generic = take({GenericIrq{.count = 1000}}, "generic");
  EXPECT_EQ(generic.generic_irq(), Range::of(24, 1023));
  refused(Errc::no_space, {GenericIrq{}});
}

TEST_F(ResourceNumbersTest, MsiBlocksAreNaturallyAlignedWhateverIsTaken) {
  const auto odd = take({MsixVectors{.count = 1}, MsiVectors{.count = 2}, MsixVectors{.count = 3},
                         MsiVectors{.count = 8}, MsixVectors{.count = 1}, MsiVectors{.count = 32},
                         MsiVectors{.count = 16}, MsiVectors{.count = 4}, MsiVectors{.count = 1}},
                        "odd");
  EXPECT_EQ(odd.msi(0), Range::of(1026, 1027));
  for (std::size_t i = 0; i < odd.count(ResourceKind::msi); ++i)
    EXPECT_EQ(odd.msi(i).min() % odd.msi(i).size(), 0U) << i;
  const auto fixed = take({MsiVectors{.count = 8, .fixed = 2048}}, "fixed");
  EXPECT_EQ(fixed.msi(), Range::of(2048, 2055));
}

TEST_F(ResourceNumbersTest, MsiAndMsixAreTheSameNumbers) {
  const auto msix = take({MsixVectors{.count = 2048}, MsixVectors{.count = 1023}}, "msix");
  EXPECT_THAT(refused(Errc::no_space, {MsiVectors{.count = 2}}),
              HasSubstr("the largest free piece is [0xfff, 0xfff]"));
  const auto last = take({MsiVectors{.count = 1}}, "last");
  EXPECT_EQ(last.msi(), Range::point(4095));
  EXPECT_THAT(refused(Errc::overlap, {MsixVectors{.count = 1, .fixed = 4095}}),
              HasSubstr("\"last\""));
}

TEST_F(ResourceNumbersTest, SlotsAreSharedWithWhoeverElseTakesThem) {
  const auto theirs = VMSPACE_ASSERT_OK(slots.acquire({.size = 3}, "RAM"));
  const auto ours = take({KvmSlots{.count = 2}, KvmSlots{.fixed = 100}}, "ours");
  EXPECT_EQ(ours.kvm_slot(0), Range::of(3, 4));
  EXPECT_EQ(ours.kvm_slot(1), Range::point(100));
  EXPECT_THAT(refused(Errc::overlap, {KvmSlots{.count = 2, .fixed = 2}}), HasSubstr("\"RAM\""));
  EXPECT_THAT(slots.acquire_at(Range::point(3), "RAM"), HasError(Errc::bad_state));
  EXPECT_EQ(slots.holders().size(), 3U);
}

TEST_F(ResourceNumbersTest, SlotsThatNobodyHoldsInTwoRangesOfThePoolAreOutOfBounds) {
  const RangePool split = RangePool::create("slots", {Range::of(0, 9), Range::of(10, 19)}).value();
  const auto other = ResourceManager::create(space, {.kvm_slots = split}).value();
  const auto got = other.acquire({KvmSlots{.count = 2, .fixed = 9}}, "dev");
  ASSERT_THAT(got, HasError(Errc::out_of_bounds));
  EXPECT_EQ(got.error().text.detail(), "");  // no holder
}

TEST_F(ResourceNumbersTest, SlotsMacAddressesAndBusesThatAreNotConfiguredAreNotFound) {
  const auto bare = ResourceManager::create(space, {.pci_buses = {}}).value();
  const auto none = [&](const ResourceRequest& request) {
    return test::refusal(bare, Errc::not_found, [&] { return bare.acquire({request}, "dev"); });
  };
  EXPECT_THAT(none(KvmSlots{}), HasSubstr("pool of memory slots"));
  EXPECT_THAT(none(KvmSlots{.fixed = 0}), HasSubstr("pool of memory slots"));
  EXPECT_THAT(none(MacAddress{}), HasSubstr("MAC addresses"));
  EXPECT_THAT(none(PciDevice{}), HasSubstr("no such PCI bus"));
  EXPECT_THAT(none(PciDevice{.bus = 0, .device = 1}), HasSubstr("no such PCI bus"));
}

TEST_F(ResourceNumbersTest, PciDevicesAreOfSegmentsAndBuses) {
  const auto wide =
      ResourceManager::create(
          space, {.pci_buses = {{.segment = 0, .bus = 0, .last_device = 3},
                                {.segment = 0, .bus = 2, .first_device = 0, .last_device = 1},
                                {.segment = 0xffff, .bus = 0xff}}})
          .value();
  const auto all = VMSPACE_ASSERT_OK(wide.acquire(Requests(5, PciDevice{}), "all"));
  const std::array<PciSlot, 5> expected = {
      PciSlot{0, 0, 1}, {0, 0, 2}, {0, 0, 3}, {0, 2, 0}, {0, 2, 1}};
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_EQ(all.pci_device(i), expected[i]) << i;
  const auto no = [&](Errc code, const PciDevice& request) {
    return test::refusal(wide, code, [&] { return wide.acquire({request}, "dev"); });
  };
  no(Errc::no_space, PciDevice{});
  no(Errc::no_space, PciDevice{.bus = 2});
  no(Errc::not_found, PciDevice{.bus = 1});
  no(Errc::not_found, PciDevice{.segment = 1});
  no(Errc::not_found, PciDevice{.segment = 0xffff, .bus = 0});
  no(Errc::out_of_bounds, PciDevice{.bus = 0, .device = 0});
  no(Errc::out_of_bounds, PciDevice{.bus = 0, .device = 4});
  no(Errc::invalid_argument, PciDevice{.device = 1});
  no(Errc::invalid_argument, PciDevice{.bus = 0, .device = 32});
  EXPECT_THAT(no(Errc::overlap, PciDevice{.bus = 2, .device = 1}), HasSubstr("\"all\""));
  const auto last = VMSPACE_ASSERT_OK(wide.acquire(
      {PciDevice{.segment = 0xffff}, PciDevice{.segment = 0xffff, .bus = 0xff, .device = 31}},
      "last"));
  EXPECT_EQ(last.pci_device(0), (PciSlot{0xffff, 0xff, 1}));
  EXPECT_EQ(last.pci_device(1), (PciSlot{0xffff, 0xff, 31}));
  const auto again = ResourceManager::create(AddressSpace::create(layout).value(),
                                             {.pci_buses = {{.segment = 0xffff, .bus = 0xff}}})
                         .value();
  std::vector<ResourceClaim> claims = wide.claims();
  std::erase_if(claims, [](const ResourceClaim& claim) { return claim.owner != "last"; });
  const auto adopted = VMSPACE_ASSERT_OK(again.adopt(claims));
  EXPECT_EQ(adopted.front().pci_device(1), last.pci_device(1));
}

TEST_F(ResourceNumbersTest, MacAddressesAreGivenByteByByte) {
  const auto got = take({MacAddress{}, MacAddress{.fixed = 0x5254'0012'34ff}}, "nic");
  EXPECT_EQ(got.mac_address(1), (std::array<std::uint8_t, 6>{0x52, 0x54, 0, 0x12, 0x34, 0xff}));
  const auto all = take(Requests(254, MacAddress{}), "all");
  refused(Errc::no_space, {MacAddress{}});
}

}  // namespace
}  // namespace vmspace::resource_numbers_test
