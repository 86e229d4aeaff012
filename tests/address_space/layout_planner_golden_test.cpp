// SPDX-License-Identifier: Apache-2.0
//
// Plans of whole machines against files, which pin every address that a guest sees.
//
// A difference is a change of an ABI: snapshots and migration peers of released versions hold the
// old addresses. golden.hpp says how a file is written.

#include <cinttypes>
#include <cstdio>
#include <ostream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/address_space/layout_planner.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

#include "address_space/golden.hpp"

namespace vmspace::layout_planner_golden_test {
namespace {

using namespace literals;
using Requests = std::vector<PlacementRequest>;

struct Machine {
  const char* file;
  const char* what;
  AddressSpaceLayout frame;
  Requests requests;

  friend void PrintTo(const Machine& machine, std::ostream* out) { *out << machine.file; }
};

AddressSpaceLayout pc(const X86LayoutOptions& options = {.phys_bits = 46}) {
  return *AddressSpaceLayout::x86_64(options);
}

PlacementRequest ram(const std::string& name, std::uint64_t size, std::uint32_t node = 0) {
  return {.name = name, .kind = PlacementKind::ram, .size = size, .node = node};
}

PlacementRequest fixed(const std::string& name, std::uint64_t base, std::uint64_t size) {
  return {.name = name, .kind = PlacementKind::fixed, .size = size, .base = GuestAddress(base)};
}

PlacementRequest mmio(const std::string& name, PlacementKind kind, std::uint64_t size,
                      std::uint64_t align) {
  return {.name = name, .kind = kind, .size = size, .align = align};
}

/// The windows of a PCI host bridge, after the requests given.
Requests with_pci(Requests requests, const std::string& name = "pci0") {
  requests.push_back(mmio(name + " mmio64", PlacementKind::mmio64, 64_GiB, 1_GiB));
  requests.push_back(mmio(name + " mmio32", PlacementKind::mmio32, 256_MiB, 2_MiB));
  return requests;
}

Requests nodes(std::uint32_t count, std::uint64_t size) {
  Requests requests;
  for (std::uint32_t node = 0; node < count; ++node)
    requests.push_back(ram("ram" + std::to_string(node), size, node));
  return requests;
}

std::vector<Machine> machines() {
  return {
      {"microvm_128m.txt",
       "A microVM of one vCPU and 128 MiB, with eight virtio-mmio devices",
       pc({.phys_bits = 36}),
       {ram("ram0", 128_MiB), mmio("virtio-mmio", PlacementKind::mmio32, 32_KiB, 4_KiB)}},
      {"pc_3584m.txt", "A PC of 3.5 GiB", pc(), with_pci({ram("ram0", 3584_MiB)})},
      {"pc_4g.txt", "A PC of 4 GiB", pc(), with_pci({ram("ram0", 4_GiB)})},
      {"pc_64g.txt", "A PC of 64 GiB", pc(), with_pci({ram("ram0", 64_GiB)})},
      {"pc_1t_2_nodes.txt", "A PC of 1 TiB in two nodes", pc(), with_pci(nodes(2, 512_GiB))},
      {"pc_12t_8_nodes.txt", "A PC of 12 TiB in eight nodes", pc(), with_pci(nodes(8, 1536_GiB))},
      {"pc_ecam.txt", "A PC of 8 GiB with ECAM for 256 buses",
       pc({.phys_bits = 46, .ecam_buses = 256}),
       with_pci({fixed("ecam", 0xc000'0000, 256_MiB), ram("ram0", 8_GiB)})},
      {"pc_firmware.txt",
       "A PC of 8 GiB with firmware and interrupt controllers at their addresses", pc(),
       with_pci({fixed("firmware", 0xffc0'0000, 4_MiB), fixed("i/o apic", 0xfec0'0000, 4_KiB),
                 fixed("local apic", 0xfee0'0000, 4_KiB), ram("ram0", 8_GiB)})},
      {"pc_2_segments.txt",
       "A PC of 16 GiB with two PCI segments, ECAM and windows for each",
       pc(),
       {ram("ram0", 16_GiB), mmio("pci0 ecam", PlacementKind::mmio32, 256_MiB, 256_MiB),
        mmio("pci0 mmio32", PlacementKind::mmio32, 128_MiB, 2_MiB),
        mmio("pci0 mmio64", PlacementKind::mmio64, 512_GiB, 1_GiB),
        mmio("pci1 ecam", PlacementKind::mmio32, 256_MiB, 256_MiB),
        mmio("pci1 mmio32", PlacementKind::mmio32, 128_MiB, 2_MiB),
        mmio("pci1 mmio64", PlacementKind::mmio64, 1_TiB, 1_GiB)}},
      {"pc_mmio64_only.txt",
       "A PC of 32 GiB whose devices are all above 4 GiB",
       pc(),
       {ram("ram0", 32_GiB), mmio("nic0 BAR0", PlacementKind::mmio64, 16_KiB, 16_KiB),
        mmio("gpu BAR2", PlacementKind::mmio64, 32_GiB, 32_GiB),
        mmio("nvme BAR0", PlacementKind::mmio64, 16_KiB, 16_KiB)}},
      {"aarch64.txt", "An Arm machine of 6 GiB",
       *AddressSpaceLayout::aarch64({.ipa_bits = 40, .ecam_buses = 16}),
       with_pci({fixed("flash", 0, 64_MiB), fixed("gic", 0x0800'0000, 16_MiB),
                 fixed("uart", 0x0900'0000, 4_KiB), fixed("ecam", 0x1000'0000, 16_MiB),
                 ram("ram0", 6_GiB)})},
  };
}

/// `3 GiB`: in the largest unit of which it is a whole number.
std::string size_text(std::uint64_t size) {
  const char* unit = "B";
  for (const char* larger : {"KiB", "MiB", "GiB", "TiB"}) {
    if (size % 1024 != 0) break;
    size /= 1024;
    unit = larger;
  }
  return std::to_string(size) + " " + unit;
}

/// A row a piece, in address order: range, name, kind, size, and for RAM its node.
std::string table_of(const Machine& machine, const LayoutPlan& plan) {
  std::string text = std::string(machine.what) + "\n";
  for (const PlannedPiece& piece : plan.pieces) {
    const Placement& placement = plan.placements[piece.placement];
    char row[160];
    std::snprintf(row, sizeof row, "%012" PRIx64 "-%012" PRIx64 "  %-12s %-7s %8s%s",
                  piece.range.base.value(), piece.range.last()->value(), placement.name.c_str(),
                  std::string(name_of(placement.kind)).c_str(), size_text(piece.range.size).c_str(),
                  placement.kind == PlacementKind::ram
                      ? ("  node " + std::to_string(placement.node)).c_str()
                      : "");
    text.append(row).append("\n");
  }
  return text;
}

class GoldenPlan : public testing::TestWithParam<Machine> {};

TEST_P(GoldenPlan, IsWhatItsFileSays) {
  const LayoutPlan plan = VMSPACE_ASSERT_OK(plan_layout(GetParam().frame, GetParam().requests));
  test::expect_golden(table_of(GetParam(), plan), GetParam().file);
}

INSTANTIATE_TEST_SUITE_P(Machines, GoldenPlan, testing::ValuesIn(machines()),
                         [](const testing::TestParamInfo<Machine>& machine) {
                           const std::string file = machine.param.file;
                           return file.substr(0, file.find('.'));
                         });

}  // namespace
}  // namespace vmspace::layout_planner_golden_test
