// SPDX-License-Identifier: Apache-2.0
//
// Compares the tables of complete machines with golden files; golden.hpp says how to update them.

#include "vmspace/resources/resource_table.hpp"

#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/resources.hpp"
#include "vmspace/testing.hpp"

#include "address_space/golden.hpp"

namespace vmspace::resource_table_test {
namespace {

using namespace literals;
using test::expect_golden;
using testing::HasSubstr;

AddressSpace make_space() {
  const AddressSpaceLayout layout =
      AddressSpaceLayout::x86_64({.phys_bits = 46, .ecam_buses = 16}).value();
  AddressSpace space = AddressSpace::create(layout).value();
  const std::vector<RamPiece> plan = layout.plan_ram({6_GiB}).value();
  for (const RamPiece& piece : plan) {
    VMSPACE_EXPECT_OK(space.insert_region({.name = "ram",
                                           .base = piece.base,
                                           .size = piece.size,
                                           .backing = {.source = MemorySource::shmem}}));
  }
  return space;
}

ResourceLimits every_kind() {
  return {.pci_buses = {{.bus = 0}, {.bus = 1, .first_device = 0}, {.segment = 1}},
          .kvm_slots = RangePool::create("slots", {Range::of(0, 508)}).value(),
          .mac_addresses = Range::of(0x5254'0012'3400, 0x5254'0012'34ff)};
}

class ResourceTable : public testing::Test {
 protected:
  const ResourceManager manager = ResourceManager::create(make_space(), every_kind()).value();
  std::vector<DeviceResources> devices;

  void attach(const char* owner, const std::vector<ResourceRequest>& requests) {
    auto device = VMSPACE_ASSERT_OK(manager.acquire(requests, owner));
    devices.push_back(std::move(device));
  }

  /// Seven devices that hold something of each kind, two of them behind a bridge.
  void attach_all() {
    attach("com1", {PioRange{.size = 8, .fixed = 0x3f8}, LegacyIrq{.fixed = 4}});
    attach("pcie0", {PciDevice{.bus = 0}, BridgeWindow{.size = 2_MiB},
                     BridgeWindow{.size = 512_MiB, .prefetchable = true}, MsiVectors{.count = 1}});
    attach("nvme0", {PciDevice{.bus = 1}, MmioRange{.size = 16_KiB, .bridge = "pcie0"},
                     MsixVectors{.count = 33}});
    attach(
        "gpu0",
        {PciDevice{.bus = 1}, MmioRange{.size = 1_MiB, .bridge = "pcie0", .name = "gpu0 registers"},
         MmioRange{.size = 512_MiB, .prefetchable = true, .bridge = "pcie0", .name = "gpu0 memory"},
         LegacyIrq{.shared = true}, MsiVectors{.count = 8}});
    attach("nic0", {PciDevice{.bus = 0}, PioRange{.size = 32}, MmioRange{.size = 64_KiB},
                    LegacyIrq{.fixed = 5, .shared = true}, MsixVectors{.count = 3}, MacAddress{}});
    attach("audio0", {PciDevice{.segment = 1}, MmioRange{.size = 16_KiB, .parked = true},
                      LegacyIrq{.fixed = 5, .shared = true}});
    attach(
        "dimm0",
        {MemoryRange{
             .region = {.size = 1_GiB, .backing = {.source = MemorySource::shmem}, .hotplug = true},
             .align = 128_MiB,
             .aperture = "ram_high"},
         KvmSlots{.count = 2}, GenericIrq{.count = 4}});
  }
};

TEST_F(ResourceTable, ShowsWhoHoldsWhatAndWhatIsLeft) {
  attach_all();
  expect_golden(resource_table(manager), "table_pc.txt");
}

TEST_F(ResourceTable, ShowsBridgesAroundWhatLiesBehindThem) {
  attach_all();
  expect_golden(memory_map(manager), "map_pc.txt");
}

TEST_F(ResourceTable, DrawsBridgesAndTheDeviceRangesOfItsOptions) {
  attach_all();
  const DeviceRange apic[] = {{"local apic", Range::of(0xfee0'0000, 0xfee0'0fff)}};
  const std::string svg = memory_map_svg(manager, {.title = "A PC", .devices = apic});
  for (const char* expected :
       {">A PC<", ">pcie0<", ">bridge window<", "gpu0 registers", ">local apic<"})
    EXPECT_THAT(svg, HasSubstr(expected));
  EXPECT_THAT(memory_map_svg(manager), HasSubstr("bridge window"));
}

TEST_F(ResourceTable, LeavesOutWindowsThatAreParkedAndWhatIsGone) {
  attach_all();
  VMSPACE_EXPECT_OK(manager.relocate({{&devices[2]},
                                      {&devices[3], 0},
                                      {&devices[3], 1},
                                      {.device = &devices[1], .kind = ResourceKind::bridge_window},
                                      {&devices[1], 1, {}, ResourceKind::bridge_window}}));
  VMSPACE_EXPECT_OK(devices.back().release());
  expect_golden(memory_map(manager), "map_pc_parked.txt");
}

TEST_F(ResourceTable, ShowsParkedPortsAsHeldAndAsNowhere) {
  attach("nic0", {PioRange{.size = 32, .fixed = 0x1000}});
  const std::string placed = resource_table(manager);
  EXPECT_THAT(placed, HasSubstr("\npio   0x1000-0x101f     32  nic0\n"));
  VMSPACE_EXPECT_OK(manager.relocate({ResourceMove::park_ports(devices[0])}));
  EXPECT_THAT(resource_table(manager), HasSubstr("\npio   parked     32  nic0\n"));
}

TEST_F(ResourceTable, ShowsTotalsAloneWhenNothingIsHeld) {
  expect_golden(resource_table(manager), "table_nothing_held.txt");
}

TEST_F(ResourceTable, KeepsEveryRowOnItsLineWhateverOwnersAreCalled) {
  for (const char* owner :
       {"two\nlines", "\x1b[31mred\x1b[0m", "\"quoted\"", "right to left \xe2\x80\xae",
        "not UTF-8 \xff\xc0\x80", "gr\xc3\xbc\xc3\x9f",
        "a name of sixty characters, more than a column is wide.....", " "}) {
    attach(owner, {MmioRange{.size = 4_KiB}, LegacyIrq{.fixed = 10, .shared = true}});
  }
  expect_golden(resource_table(manager) + '\n' + memory_map(manager), "hostile_owners.txt");
}

TEST_F(ResourceTable, WritesAddressesAsWideAsTheWidest) {
  attach("low", {MmioRange{.size = 4_KiB}});
  EXPECT_THAT(resource_table(manager), HasSubstr("\nmmio  c1000000-c1000fff  "));
  attach("high", {MmioRange{.size = 4_KiB, .reach = MmioReach::high}});
  EXPECT_THAT(resource_table(manager), HasSubstr("\nmmio  0000c1000000-0000c1000fff  "));
}

TEST_F(ResourceTable, GivesSizesInTheLargestUnitThatKeepsThemWhole) {
  attach("disk", {MmioRange{.size = 64_MiB}});
  EXPECT_THAT(resource_table(manager), HasSubstr("  size (MiB)  owner\n"));
  attach("uart", {MmioRange{.size = 8}});
  EXPECT_THAT(resource_table(manager), HasSubstr("  67,108,864  disk\n"));
}

}  // namespace
}  // namespace vmspace::resource_table_test
