// SPDX-License-Identifier: Apache-2.0

#include "vmspace/resources.hpp"

#include <cstdio>
#include <string>

#include "vmspace/base/literals.hpp"
#include "vmspace/text.hpp"

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
  // nic0: {pio [0x1000-0x101f], mmio [0xc0000000-0xc000ffff], legacy_irq 5, msix 1024-1026, ...}
  std::printf("%s\n", to_text(nic).c_str());

  // All or nothing: no aperture can hold the disk's BAR, so its ports are released too. The error:
  // "ResourceManager::acquire: "request 1 (mmio) of disk0": no space for 0x800000000000 in [...]".
  const auto disk = manager.acquire(
      {vmspace::PioRange{.size = 16}, vmspace::MmioRange{.size = 128_TiB}}, "disk0");
  if (!disk) std::printf("%s\n", disk.error().message().c_str());

  // The guest swaps two BARs: it disables decoding, writes both registers, and enables it again.
  auto gpu = VMSPACE_TRY(manager.acquire({vmspace::MmioRange{.size = 64_KiB}}, "gpu0"));
  const auto nic_base = nic.mmio()->base();
  const auto gpu_base = gpu.mmio()->base();
  VMSPACE_TRY(
      manager.relocate({vmspace::ResourceMove::park(nic), vmspace::ResourceMove::park(gpu)}));
  VMSPACE_TRY(manager.relocate(
      {vmspace::ResourceMove::place(nic, gpu_base), vmspace::ResourceMove::place(gpu, nic_base)}));
  // A bridge and a device behind it: the BAR is placed in the bridge's window.
  const auto bridge = VMSPACE_TRY(
      manager.acquire({vmspace::PciDevice{}, vmspace::BridgeWindow{.size = 2_MiB}}, "bridge0"));
  const auto behind = VMSPACE_TRY(
      manager.acquire({vmspace::MmioRange{.size = 4_KiB, .bridge = "bridge0"}}, "nvme0"));
  // Save as text and restore elsewhere: every resource is acquired, and checked, again.
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
