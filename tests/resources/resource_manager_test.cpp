// SPDX-License-Identifier: Apache-2.0
//
// A list of requests is acquired as a whole or not at all, whatever it contains and wherever it
// fails.

#include "vmspace/resources/resource_manager.hpp"

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "resources/manager_state.hpp"

namespace vmspace::resource_manager_test {
namespace {

using test::one_of_each;
using test::State;
using test::state_of;
using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using namespace literals;

constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();

class ResourceManagerTest : public test::ManagerTest {};

TEST_F(ResourceManagerTest, GivesADeviceEverythingThatItAsksForByKind) {
  const auto got = VMSPACE_ASSERT_OK(manager.acquire(one_of_each(), "nic0"));
  EXPECT_EQ(got.owner(), "nic0");
  EXPECT_EQ(got.pci_device(), (PciSlot{.segment = 0, .bus = 0, .device = 1}));
  EXPECT_EQ(got.pio(), Range::of(0x1000, 0x101f));
  EXPECT_EQ(got.mmio(0)->range(), Range::of(low, low + 0x3fff));
  EXPECT_EQ(got.mmio(0)->name(), "BAR0");
  EXPECT_EQ(got.mmio(0)->owner(), "nic0");
  EXPECT_EQ(got.mmio(0)->type(), RegionType::device_memory);
  EXPECT_EQ(got.mmio(1)->base(), GuestAddress{high});
  EXPECT_EQ(got.mmio(1)->name(), "nic0");
  EXPECT_EQ(got.memory()->base(), GuestAddress{4_GiB});
  EXPECT_TRUE(got.memory()->is_hotplug());
  EXPECT_EQ(got.memory()->owner(), "nic0");
  EXPECT_EQ(got.bridge_window(), Range::of(low + 1_MiB, low + 3_MiB - 1));
  EXPECT_EQ(got.legacy_irq(0), 5U);
  EXPECT_EQ(got.legacy_irq(1), 6U);
  EXPECT_EQ(got.generic_irq(), Range::of(24, 25));
  EXPECT_EQ(got.msi(), Range::of(1024, 1027));
  EXPECT_EQ(got.msix(), Range::of(1028, 1030));
  EXPECT_EQ(got.kvm_slot(), Range::point(0));
  EXPECT_EQ(got.mac_address(), (std::array<std::uint8_t, 6>{0x52, 0x54, 0, 0x12, 0x34, 0}));
  EXPECT_EQ(got.count(ResourceKind::mmio), 2U);
  EXPECT_EQ(got.count(ResourceKind::legacy_irq), 2U);
  EXPECT_THAT(manager.holders(), SizeIs(one_of_each().size()));
}

TEST_F(ResourceManagerTest, HoldersNameTheirRegionsAndTheSlotsOfPciDevices) {
  const auto got = take({MmioRange{.size = 4_KiB, .name = "BAR0"}, PciDevice{}}, "nic0");
  const auto holders = manager.holders();
  EXPECT_EQ(holders[0].name, "BAR0");
  EXPECT_EQ(pci_slot_of(holders[1]), got.pci_device());
}

TEST_F(ResourceManagerTest, HandlesOfOneManagerAreTheSame) {
  const ResourceManager copy = manager;
  EXPECT_TRUE(copy.same_as(manager));
  EXPECT_FALSE(copy.same_as(fresh()));
}

TEST_F(ResourceManagerTest, GivesBackEverythingWhenTheDeviceGoes) {
  const State before = state_of(manager);
  { const auto got = VMSPACE_ASSERT_OK(manager.acquire(one_of_each(), "nic0")); }
  EXPECT_THAT(manager.holders(), IsEmpty());
  VMSPACE_EXPECT_OK(manager.collect());
  EXPECT_TRUE(state_of(manager) == before);
}

// Each request below fails for a different reason, and is tried at every position of an otherwise
// valid list.
TEST_F(ResourceManagerTest, LeavesEverythingAsItWasWhereverOneRequestFails) {
  const auto other = take(one_of_each(), "other");
  const auto line = take({LegacyIrq{.fixed = 7}}, "line");
  const std::vector<std::pair<Errc, ResourceRequest>> failing = {
      {Errc::overlap, PioRange{.size = 1, .fixed = other.pio().max()}},
      {Errc::no_space, PioRange{.size = 0x1'0000}},
      {Errc::no_space, MmioRange{.size = 1_TiB}},
      {Errc::overlap, MmioRange{.size = 4_KiB, .fixed = other.mmio()->base()}},
      {Errc::not_found, MmioRange{.size = 4_KiB, .bridge = "nobody"}},
      {Errc::no_space, MemoryRange{.region = {.size = 1_TiB}}},
      {Errc::overlap, MemoryRange{.region = {.size = 4_KiB}, .fixed = GuestAddress{4_GiB}}},
      {Errc::misaligned, BridgeWindow{.size = 4_KiB}},
      {Errc::overlap,
       BridgeWindow{.size = 1_MiB, .fixed = GuestAddress{other.bridge_window().min()}}},
      {Errc::overlap, LegacyIrq{.fixed = 7}},
      {Errc::overlap, LegacyIrq{.fixed = 7, .shared = true}},
      {Errc::out_of_bounds, LegacyIrq{.fixed = 24}},
      {Errc::no_space, GenericIrq{.count = 1000}},
      {Errc::overlap, GenericIrq{.fixed = 25}},
      {Errc::invalid_argument, MsiVectors{.count = 3}},
      {Errc::overlap, MsiVectors{.count = 4, .fixed = 1024}},
      {Errc::overlap, MsixVectors{.count = 2, .fixed = 1030}},
      {Errc::overlap, KvmSlots{.fixed = 0}},
      {Errc::no_space, KvmSlots{.count = 509}},
      {Errc::overlap, PciDevice{.bus = 0, .device = 1}},
      {Errc::not_found, PciDevice{.bus = 1}},
      {Errc::overlap, MacAddress{.fixed = 0x5254'0012'3400}},
  };
  for (const auto& [code, request] : failing) {
    for (std::size_t k = 0; k <= one_of_each().size(); ++k) {
      auto requests = one_of_each();
      requests.insert(requests.begin() + static_cast<std::ptrdiff_t>(k), request);
      const std::string kind(name_of(kind_of(request)));
      EXPECT_THAT(refused(code, requests),
                  HasSubstr("ResourceManager::acquire: \"request " + std::to_string(k) + " (" +
                            kind + ") of dev\":"));
    }
  }
}

TEST_F(ResourceManagerTest, NamesWhoHoldsWhatIsAskedFor) {
  const auto other = take(one_of_each(), "other");
  const Requests held_by_other = {
      PioRange{.size = 64, .fixed = other.pio().min() - 32},
      MmioRange{.size = 4_KiB, .fixed = other.mmio(1)->base()},
      MmioRange{.size = 4_KiB, .fixed = GuestAddress{other.bridge_window().min()}},
      MemoryRange{.region = {.size = 2_GiB}, .fixed = other.memory()->base()},
      BridgeWindow{.size = 1_MiB, .fixed = GuestAddress{other.bridge_window().min()}},
      LegacyIrq{.fixed = other.legacy_irq(0)},
      LegacyIrq{.fixed = other.legacy_irq(1), .shared = true},
      GenericIrq{.count = 8, .fixed = 25},
      MsiVectors{.count = 4, .fixed = 1028},
      MsixVectors{.count = 1, .fixed = 1024},
      KvmSlots{.count = 3, .fixed = 0},
      PciDevice{.bus = 0, .device = other.pci_device().device},
      MacAddress{.fixed = 0x5254'0012'3400}};
  for (const ResourceRequest& request : held_by_other) {
    EXPECT_THAT(refused(Errc::overlap, {request}), HasSubstr("\"other\""))
        << name_of(kind_of(request));
  }
}

TEST_F(ResourceManagerTest, RefusesWhatLiesOutsideOfEveryWindow) {
  const Requests outside = {
      PioRange{.size = 1, .fixed = 0xcf8},
      PioRange{.size = 16, .fixed = 0xcf0},
      PioRange{.size = 2, .fixed = 0xffff},
      PioRange{.size = 1, .fixed = 0x1'0000},
      PioRange{.size = 4, .window = Range::of(0x2000, 0x2fff), .fixed = 0x3000},
      MmioRange{.size = 4_KiB, .fixed = GuestAddress{0}},
      MmioRange{.size = 4_KiB, .fixed = GuestAddress{4_GiB}},
      MmioRange{.size = 8_KiB, .fixed = GuestAddress{low - 4_KiB}},
      MmioRange{.size = 8_KiB, .fixed = GuestAddress{0xfbff'f000}},
      MmioRange{.size = 4_KiB, .fixed = GuestAddress{1_TiB}},
      MmioRange{.size = 4_KiB, .reach = MmioReach::below_4g, .fixed = GuestAddress{high}},
      MmioRange{.size = 4_KiB, .reach = MmioReach::high, .fixed = GuestAddress{low}},
      MemoryRange{.region = {.type = RegionType::dax_memory, .size = 4_KiB},
                  .fixed = GuestAddress{4_GiB}},
      MemoryRange{.region = {.size = 4_KiB}, .fixed = GuestAddress{1_TiB}},
      BridgeWindow{.size = 1_MiB, .fixed = GuestAddress{1_GiB}},
      LegacyIrq{.fixed = 0},
      LegacyIrq{.fixed = 2, .shared = true},
      LegacyIrq{.fixed = 0xffff'ffff},
      GenericIrq{.fixed = 5},
      GenericIrq{.count = 2, .fixed = 1023},
      GenericIrq{.fixed = 0xffff'ffff},
      MsiVectors{.count = 1, .fixed = 1023},
      MsixVectors{.count = 2, .fixed = 4095},
      KvmSlots{.fixed = 509},
      KvmSlots{.count = 0xffff'ffff, .fixed = 0xffff'ffff},
      PciDevice{.bus = 0, .device = 0},
      MacAddress{.fixed = 0},
      MacAddress{.fixed = std::uint64_t{1} << 48U},
      MacAddress{.fixed = most}};
  for (const ResourceRequest& request : outside) {
    const std::string message = refused(Errc::out_of_bounds, {request});
    EXPECT_THAT(message, HasSubstr("request 0")) << name_of(kind_of(request));
  }
  const std::string memory =
      refused(Errc::overlap, {MemoryRange{.region = {.size = 4_KiB}, .fixed = GuestAddress{low}}});
  EXPECT_THAT(memory, HasSubstr("mmio_low"));
}

TEST_F(ResourceManagerTest, RefusesZeroSizes) {
  for (const Requests& requests :
       {Requests{PioRange{.size = 0}}, Requests{PioRange{.size = 0, .fixed = 0x1000}},
        Requests{MmioRange{.size = 0}}, Requests{MmioRange{.size = 0, .fixed = GuestAddress{low}}},
        Requests{MmioRange{.size = 0, .parked = true}}, Requests{MemoryRange{}},
        Requests{MemoryRange{.fixed = GuestAddress{4_GiB}}}, Requests{BridgeWindow{.size = 0}},
        Requests{BridgeWindow{.size = 0, .parked = true}}, Requests{GenericIrq{.count = 0}},
        Requests{GenericIrq{.count = 0, .fixed = 24}}, Requests{MsixVectors{.count = 0}},
        Requests{MsixVectors{.count = 0, .fixed = 1024}}, Requests{KvmSlots{.count = 0}},
        Requests{KvmSlots{.count = 0, .fixed = 1}}}) {
    refused(Errc::zero_size, requests);
  }
  refused(Errc::invalid_argument, {MsiVectors{.count = 0}});
}

TEST_F(ResourceManagerTest, RefusesSizesThatNoMachineHas) {
  for (const std::uint64_t size : {std::uint64_t{1} << 63U, (std::uint64_t{1} << 63U) + 1, most}) {
    refused(Errc::no_space, {PioRange{.size = size}});
    refused(Errc::no_space, {MmioRange{.size = size}});
    refused(Errc::no_space, {MmioRange{.size = size, .align = 1}});
    refused(Errc::no_space, {MemoryRange{.region = {.size = size}}});
    refused(Errc::out_of_bounds, {MmioRange{.size = size, .fixed = GuestAddress{0}}});
    refused(Errc::overflow, {MmioRange{.size = size, .fixed = GuestAddress{most - 4095}}});
    refused(Errc::overflow,
            {MmioRange{.size = size, .fixed = GuestAddress{most - 4095}, .parked = true}});
    refused(Errc::overflow, {PioRange{.size = size, .fixed = most}});
    refused(Errc::overflow,
            {MemoryRange{.region = {.size = size}, .fixed = GuestAddress{most - 4095}}});
  }
  refused(Errc::no_space, {BridgeWindow{.size = std::uint64_t{1} << 63U}});
  refused(Errc::overflow, {BridgeWindow{.size = std::uint64_t{1} << 63U,
                                        .fixed = GuestAddress{std::uint64_t{3} << 62U}}});
  refused(Errc::overflow, {BridgeWindow{.size = std::uint64_t{1} << 63U,
                                        .fixed = GuestAddress{std::uint64_t{3} << 62U},
                                        .parked = true}});
  refused(Errc::no_space, {GenericIrq{.count = 0xffff'ffff}});
  refused(Errc::no_space, {KvmSlots{.count = 0xffff'ffff}});
  refused(Errc::invalid_argument, {MsixVectors{.count = 2049}});
  refused(Errc::invalid_argument, {MsiVectors{.count = 64}});
  refused(Errc::invalid_argument, {PciDevice{.bus = 0, .device = 32}});
}

TEST_F(ResourceManagerTest, RefusesInvalidAndUnsatisfiableAlignments) {
  for (const std::uint64_t align : {std::uint64_t{3}, std::uint64_t{4097}, most}) {
    refused(Errc::bad_alignment, {PioRange{.size = 4, .align = align}});
    refused(Errc::bad_alignment, {PioRange{.size = 4, .align = align, .fixed = 0x1000}});
    refused(Errc::bad_alignment, {MmioRange{.size = 4_KiB, .align = align}});
    refused(Errc::bad_alignment, {MmioRange{.size = 4_KiB, .align = align, .parked = true}});
    refused(Errc::bad_alignment, {MemoryRange{.region = {.size = 4_KiB}, .align = align}});
    refused(Errc::bad_alignment, {BridgeWindow{.size = 1_MiB, .align = align}});
  }
  constexpr std::uint64_t wide = std::uint64_t{1} << 63U;
  refused(Errc::no_space, {PioRange{.size = 4, .align = 0x1'0000}});
  refused(Errc::no_space, {MmioRange{.size = 4_KiB, .align = wide}});
  refused(Errc::no_space,
          {MemoryRange{.region = {.size = 4_KiB}, .align = wide, .aperture = "ram_high"}});
  refused(Errc::no_space, {BridgeWindow{.size = 1_MiB, .align = wide}});
  refused(Errc::misaligned, {PioRange{.size = 4, .align = 32, .fixed = 0x1010}});
  refused(Errc::misaligned,
          {MmioRange{.size = 4_KiB, .align = 64_KiB, .fixed = GuestAddress{low + 4_KiB}}});
  refused(Errc::misaligned,
          {MemoryRange{
              .region = {.size = 4_KiB}, .align = 2_MiB, .fixed = GuestAddress{4_GiB + 4_KiB}}});
  refused(Errc::misaligned, {MemoryRange{.region = {.type = RegionType::dax_memory, .size = 4_KiB},
                                         .align = 2_MiB,
                                         .fixed = GuestAddress{high + 4_KiB}}});
  refused(Errc::misaligned, {BridgeWindow{.size = 1_MiB, .fixed = GuestAddress{low + 4_KiB}}});
  refused(Errc::misaligned, {MsiVectors{.count = 4, .fixed = 1026}});
}

TEST_F(ResourceManagerTest, RefusesUnnamedEnumValues) {
  constexpr auto reach = static_cast<MmioReach>(7);
  constexpr auto type = static_cast<RegionType>(99);
  refused(Errc::invalid_argument, {MmioRange{.size = 4_KiB, .reach = reach}});
  refused(Errc::invalid_argument, {MmioRange{.size = 4_KiB, .reach = reach, .parked = true}});
  refused(Errc::invalid_argument, {BridgeWindow{.size = 1_MiB, .reach = reach}});
  refused(Errc::invalid_argument, {MemoryRange{.region = {.type = type, .size = 4_KiB}}});
  refused(Errc::invalid_argument,
          {MemoryRange{.region = {.type = type, .size = 4_KiB}, .fixed = GuestAddress{4_GiB}}});
  refused(Errc::invalid_argument,
          {MemoryRange{.region = {.size = 4_KiB, .protection = static_cast<Protection>(99)}}});
}

TEST_F(ResourceManagerTest, ListsForNobodyOrForAnOwnerThatHoldsSomethingAreRefused) {
  refused(Errc::invalid_argument, {LegacyIrq{}}, "");
  const auto held = take({LegacyIrq{}}, "nic0");
  EXPECT_THAT(refused(Errc::bad_state, {LegacyIrq{}}, "nic0"), HasSubstr("nic0"));
  EXPECT_THAT(refused(Errc::bad_state, {MmioRange{.size = 4_KiB}}, "nic0"), HasSubstr("nic0"));
  refused(Errc::bad_state, {}, "nic0");
}

TEST_F(ResourceManagerTest, AnOwnerMayAskForNothingAndHoldsItsName) {
  auto nothing = VMSPACE_ASSERT_OK(manager.acquire({}, "idle"));
  EXPECT_TRUE(nothing.is_held());
  EXPECT_THAT(manager.holders(), IsEmpty());
  refused(Errc::bad_state, {LegacyIrq{}}, "idle");
  VMSPACE_EXPECT_OK(nothing.release());
  const auto irq = VMSPACE_ASSERT_OK(manager.acquire({LegacyIrq{}}, "idle"));
}

TEST_F(ResourceManagerTest, AListOfManyRequestsIsGivenBackWhenItsLastFails) {
  std::vector<ResourceRequest> requests(9'999, MmioRange{.size = 4_KiB, .reach = MmioReach::high});
  for (std::uint16_t port = 0; port < 1'000; ++port)
    requests[port * std::size_t{9}] =
        PioRange{.size = 1, .fixed = port % 2 * 2'000U + 10'000U + port / 2U};
  requests.push_back(MmioRange{.size = 1_TiB});
  EXPECT_THAT(refused(Errc::no_space, requests), HasSubstr("request 9999 (mmio) of dev"));
  requests.pop_back();
  const auto got = VMSPACE_ASSERT_OK(manager.acquire(requests, "dev"));
  EXPECT_EQ(got.count(ResourceKind::mmio), 8'999U);
  EXPECT_EQ(got.count(ResourceKind::pio), 1'000U);
}

TEST_F(ResourceManagerTest, NoSpaceReportsTheLargestFreePiece) {
  Requests ports;
  for (std::uint64_t port = 0x1000; port < 0x1'0000; port += 0x400)
    ports.push_back(PioRange{.size = 0x200, .fixed = port});
  const auto all = take(ports, "all");
  EXPECT_THAT(refused(Errc::no_space, {PioRange{.size = 0x400}}),
              HasSubstr("the largest free piece is [0x1200, 0x13ff]"));
  const auto bars = take({MmioRange{.size = 512_MiB, .reach = MmioReach::below_4g}}, "bar");
  EXPECT_THAT(refused(Errc::no_space, {MmioRange{.size = 512_MiB, .reach = MmioReach::below_4g}}),
              HasSubstr("the largest free piece is [0xe0000000, 0xfbffffff]"));
  const auto lines = take(Requests(9, LegacyIrq{}), "lines");
  EXPECT_THAT(refused(Errc::no_space, {LegacyIrq{}}), HasSubstr("no space"));
}

TEST_F(ResourceManagerTest, EveryPortIncludingTheLastCanBeTakenAndReturned) {
  const State before = state_of(manager);
  {
    const auto last = take({PioRange{.size = 0x300, .fixed = 0xfd00}}, "last");
    EXPECT_EQ(last.pio().max(), 0xffffU);
    refused(Errc::overlap, {PioRange{.size = 1, .fixed = 0xffff}});
    const auto all = take(
        {PioRange{.size = 0xcf8, .fixed = 0}, PioRange{.size = 0xf000, .fixed = 0xd00}}, "all");
  }
  EXPECT_TRUE(state_of(manager) == before);
}

TEST_F(ResourceManagerTest, APortRangeStaysInItsWindow) {
  const auto got = take({PioRange{.size = 8, .window = Range::of(0x3f0, 0x3ff)},
                         PioRange{.size = 8, .window = Range::of(0x3f0, 0x3ff)}},
                        "serial");
  EXPECT_EQ(got.pio(0), Range::of(0x3f0, 0x3f7));
  EXPECT_EQ(got.pio(1), Range::of(0x3f8, 0x3ff));
  refused(Errc::no_space, {PioRange{.size = 8, .window = Range::of(0x3f0, 0x3ff)}});
  refused(Errc::no_space, {PioRange{.size = 8, .window = Range::of(0x2'0000, 0x3'0000)}});
  refused(Errc::out_of_bounds,
          {PioRange{.size = 8, .window = Range::of(0x4f0, 0x4ff), .fixed = 0x4fc}});
}

}  // namespace
}  // namespace vmspace::resource_manager_test
