// SPDX-License-Identifier: Apache-2.0

#include "vmspace/resources.hpp"

#include <cstdio>
#include <string>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example() {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46}));
  const auto space = VMSPACE_TRY(vmspace::AddressSpace::create(layout));
  const auto other_space = VMSPACE_TRY(vmspace::AddressSpace::create(layout));
  // README begin
  const auto manager = VMSPACE_TRY(vmspace::ResourceManager::create(space));

  auto nic = VMSPACE_TRY(manager.acquire(
      {vmspace::PciDevice{}, vmspace::PioRange{.size = 32}, vmspace::MmioRange{.size = 64_KiB},
       vmspace::LegacyIrq{.shared = true}, vmspace::MsixVectors{.count = 3}},
      "nic0"));
  std::printf("%llx\n", nic.mmio()->base().value() + 0ULL);  // c0000000
  std::printf("line %u\n", nic.legacy_irq());                // line 5

  // All or nothing: the disk's ports are free again, because its BAR fits nowhere. The error says
  // "ResourceManager::acquire: "request 1 (mmio) of disk0": no space for 0x800000000000 in [...]".
  const auto disk = manager.acquire(
      {vmspace::PioRange{.size = 16}, vmspace::MmioRange{.size = 128_TiB}}, "disk0");
  if (!disk) std::printf("%s\n", disk.error().message().c_str());

  // The guest swaps two BARs, one register at a time: decoding off, both written, decoding on.
  auto gpu = VMSPACE_TRY(manager.acquire({vmspace::MmioRange{.size = 64_KiB}}, "gpu0"));
  const auto nic_base = nic.mmio()->base();
  const auto gpu_base = gpu.mmio()->base();
  VMSPACE_TRY(manager.relocate({{&nic}, {&gpu}}));  // parked
  VMSPACE_TRY(manager.relocate({{&nic, 0, gpu_base}, {&gpu, 0, nic_base}}));
  // A bridge, and a device behind it: in its window, where nobody else is.
  const auto bridge = VMSPACE_TRY(
      manager.acquire({vmspace::PciDevice{}, vmspace::BridgeWindow{.size = 2_MiB}}, "bridge0"));
  const auto behind = VMSPACE_TRY(
      manager.acquire({vmspace::MmioRange{.size = 4_KiB, .bridge = "bridge0"}}, "nvme0"));
  // Saved as text, and restored elsewhere: everything is asked for again, and checked again.
  const std::string saved = format_claims(manager.claims());
  const auto claims = VMSPACE_TRY(vmspace::parse_claims(saved));
  const auto other = VMSPACE_TRY(vmspace::ResourceManager::create(other_space));
  const auto restored = VMSPACE_TRY(other.adopt(claims));
  std::printf("%s", saved.c_str());                  // pci_device owner="nic0" bus=0 device=1 ...
  std::printf("%s\n", restored[0].owner().c_str());  // nic0
  // README end
  return {};
}

}  // namespace

int main() {
  const auto done = example();
  if (!done) std::fprintf(stderr, "%s\n", done.error().message().c_str());
  return done ? 0 : 1;
}
