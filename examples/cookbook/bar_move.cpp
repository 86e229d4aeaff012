// SPDX-License-Identifier: Apache-2.0

#include <iostream>

#include "vmspace/exit_on_error.hpp"
#include "vmspace/ostream.hpp"
#include "vmspace/resources.hpp"

using namespace vmspace::literals;

namespace {

// README begin
/// The device that answers at an address, for the exit of a vCPU that has accessed it.
std::string decode(const vmspace::AddressSpace& space, std::uint64_t address) {
  const auto region = space.find_region(vmspace::GuestAddress{address});
  return region == nullptr ? "nobody" : region->owner();
}

vmspace::Result<void> example(const vmspace::AddressSpace& space) {
  const auto manager = VMSPACE_TRY(vmspace::ResourceManager::create(space));
  auto nic = VMSPACE_TRY(
      manager.acquire({vmspace::PciDevice{}, vmspace::MmioRange{.size = 64_KiB}}, "nic0"));
  auto gpu = VMSPACE_TRY(
      manager.acquire({vmspace::PciDevice{}, vmspace::MmioRange{.size = 64_KiB}}, "gpu0"));
  const auto nic_home = nic.mmio()->base();
  const auto gpu_home = gpu.mmio()->base();

  // The guest clears "memory space" in the command register: nobody answers at the BAR any more.
  VMSPACE_TRY(manager.relocate({vmspace::ResourceMove::park(nic)}));
  std::cout << "decoding off: " << decode(space, nic_home.value()) << '\n';

  // It writes the BAR, and sets the bit again. Where that can't be, nothing changes.
  const auto refused = manager.relocate({vmspace::ResourceMove::place(nic, gpu_home)});
  if (!refused) std::cout << refused.error().message() << '\n';
  VMSPACE_TRY(
      manager.relocate({vmspace::ResourceMove::place(nic, vmspace::GuestAddress{0xd000'0000})}));
  std::cout << "moved: " << decode(space, 0xd000'0010) << '\n';

  // Only the end of a set has to be possible: two devices change places.
  const auto nic_now = nic.mmio()->base();
  VMSPACE_TRY(manager.relocate(
      {vmspace::ResourceMove::place(nic, gpu_home), vmspace::ResourceMove::place(gpu, nic_now)}));
  std::cout << "swapped: " << decode(space, 0xd000'0010) << '\n';
  return {};
}
// README end

}  // namespace

int main() {
  using vmspace::value_or_exit;
  const auto layout = value_or_exit(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46}));
  value_or_exit(example(value_or_exit(vmspace::AddressSpace::create(layout))));
}
