// SPDX-License-Identifier: Apache-2.0

#include "vmspace/resources.hpp"

#include <cstdio>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<void> example() {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46}));
  const auto space = VMSPACE_TRY(vmspace::AddressSpace::create(layout));
  // README begin
  const auto manager = VMSPACE_TRY(vmspace::ResourceManager::create(space));

  // All of it, or an error that names the request, the owner and the conflicting holder.
  auto nic = VMSPACE_TRY(
      manager.acquire({vmspace::PioRange{.size = 32}, vmspace::MmioRange{.size = 64_KiB},
                       vmspace::LegacyIrq{.shared = true}, vmspace::MsixVectors{.count = 3}},
                      "nic0"));
  std::printf("%#llx\n", nic.mmio()->base().value() + 0ULL);  // 0xc0000000

  // The guest reprograms a BAR. A set of moves may even swap them.
  VMSPACE_TRY(
      manager.relocate({vmspace::ResourceMove::place(nic, vmspace::GuestAddress{0xd000'0000})}));

  std::printf("%s%s", resource_table(manager).c_str(), memory_map(manager).c_str());
  VMSPACE_TRY(nic.release());  // or its destructor
  // README end
  return {};
}

}  // namespace

int main() {
  const auto ok = example();
  if (!ok) std::fprintf(stderr, "%s\n", ok.error().message().c_str());
  return ok ? 0 : 1;
}
