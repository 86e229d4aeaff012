// SPDX-License-Identifier: Apache-2.0
//
// Sample claims of every kind, and their text.

#pragma once

#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmspace/resources/resource_claim.hpp"

namespace vmspace {

/// GoogleTest shows a claim as its text.
inline void PrintTo(const ResourceClaim& claim, std::ostream* out) {
  *out << format_claims(std::span(&claim, 1));
}

}  // namespace vmspace

namespace vmspace::test {

/// For each kind, a minimal claim, and claims that set every field.
inline std::vector<ResourceClaim> sample_claims() {
  return {
      {"nic0", PioRange{.size = 32, .align = 32, .fixed = 0x1000}},
      {"uart", PioRange{.size = 8, .window = Range::of(0x100, 0x3ff), .fixed = 0x3f8}},
      {"nic0", MmioRange{.size = 0x4000, .fixed = GuestAddress(0xc000'0000)}},
      {"gpu", MmioRange{.size = 0x1000'0000,
                        .align = 0x4000'0000,
                        .reach = MmioReach::high,
                        .prefetchable = true,
                        .bridge = "root port 1",
                        .aperture = "segment0_mmio64",
                        .fixed = GuestAddress(0x80'0000'0000),
                        .parked = true,
                        .name = "gpu BAR1"}},
      {"dimm0", MemoryRange{.region = {.size = 0x4000'0000}, .fixed = GuestAddress(0x1'0000'0000)}},
      {"fs0", MemoryRange{.region = {.name = "fs0 window",
                                     .type = RegionType::dax_memory,
                                     .size = 0x20'0000,
                                     .protection = Protection::read | Protection::execute,
                                     .numa_node = 1,
                                     .huge_pages = true,
                                     .hotplug = true,
                                     .populate = true},
                          .align = 0x20'0000,
                          .aperture = "dax",
                          .fixed = GuestAddress(0x2'0000'0000)}},
      {"root port 1", BridgeWindow{.size = 0x10'0000, .fixed = GuestAddress(0xe000'0000)}},
      {"switch", BridgeWindow{.size = 0x10'0000,
                              .align = 0x20'0000,
                              .reach = MmioReach::below_4g,
                              .prefetchable = true,
                              .bridge = "root port 1",
                              .aperture = "segment0_mmio32",
                              .fixed = GuestAddress(0xe000'0000),
                              .parked = true}},
      {"nic0", LegacyIrq{.fixed = 5, .shared = true}},
      {"uart", LegacyIrq{.fixed = 4}},
      {"timer", GenericIrq{.fixed = 24}},
      {"gpio", GenericIrq{.count = 16, .fixed = 32}},
      {"gpu", MsiVectors{.count = 4, .fixed = 1024}},
      {"nic0", MsixVectors{.count = 3, .fixed = 1028}},
      {"dimm0", KvmSlots{.fixed = 3}},
      {"fs0", KvmSlots{.count = 2, .fixed = 4}},
      {"nic0", PciDevice{.bus = 0, .device = 3}},
      {"gpu", PciDevice{.segment = 1, .bus = 255, .device = 31}},
      {"nic0", MacAddress{.fixed = 0x5254'0012'3456}},
  };
}

inline constexpr std::string_view sample_text =
    R"(vmspace-claims 1
pio owner="nic0" first=0x1000 size=0x20 align=0x20
pio owner="uart" first=0x3f8 size=0x8 window=0x100-0x3ff
mmio owner="nic0" base=0xc0000000 size=0x4000
mmio owner="gpu" base=0x8000000000 size=0x10000000 align=0x40000000 reach=high prefetchable bridge="root port 1" aperture="segment0_mmio64" parked name="gpu BAR1"
memory owner="dimm0" base=0x100000000 size=0x40000000
memory owner="fs0" base=0x200000000 size=0x200000 align=0x200000 aperture="dax" type=dax protection=r-x numa_node=1 huge_pages hotplug populate name="fs0 window"
bridge_window owner="root port 1" base=0xe0000000 size=0x100000
bridge_window owner="switch" base=0xe0000000 size=0x100000 align=0x200000 reach=below_4g prefetchable bridge="root port 1" aperture="segment0_mmio32" parked
legacy_irq owner="nic0" first=5 shared
legacy_irq owner="uart" first=4
generic_irq owner="timer" first=24
generic_irq owner="gpio" first=32 count=16
msi owner="gpu" first=1024 count=4
msix owner="nic0" first=1028 count=3
kvm_slot owner="dimm0" first=3
kvm_slot owner="fs0" first=4 count=2
pci_device owner="nic0" bus=0 device=3
pci_device owner="gpu" segment=1 bus=255 device=31
mac_address owner="nic0" address=52:54:00:12:34:56
end
)";

}  // namespace vmspace::test
