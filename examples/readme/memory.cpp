// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory.hpp"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "vmspace/base/literals.hpp"

using namespace vmspace::literals;

namespace {

struct BootParams {
  std::uint32_t magic;
  std::uint32_t e820_entries;
};

vmspace::Result<void> example(const vmspace::AddressSpace& space) {
  const BootParams boot_params{.magic = 0x53726448, .e820_entries = 5};
  const vmspace::GuestAddress ring_index{0x9002};
  // README begin
  const auto memory = VMSPACE_TRY(vmspace::GuestMemory::map(*space.snapshot()));

  VMSPACE_TRY(memory.write(vmspace::GuestAddress{0x7000}, boot_params));
  const auto head =  // never torn, ordered with what the guest does
      VMSPACE_TRY(memory.load<std::uint16_t>(ring_index, std::memory_order_acquire));

  std::array<std::byte, 512> sector{};
  VMSPACE_TRY(memory.read_slice(vmspace::GuestAddress{0x8000}, sector));

  const auto hole = memory.read<std::uint32_t>(vmspace::GuestAddress{0xfee0'0000});
  if (!hole)
    std::printf("%s\n", hole.error().message().c_str());  // "GuestMemory::read: not found: ..."

  // After a hotplug: the regions that stay keep what they hold. (map() would make all of it new.)
  const auto after = VMSPACE_TRY(memory.remap(*space.snapshot()));
  // README end
  std::printf("%u, %zu region(s)\n", unsigned{head}, after.regions().size());
  return {};
}

vmspace::Result<vmspace::AddressSpace> make_space() {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 40}));
  auto space = VMSPACE_TRY(vmspace::AddressSpace::create(layout));
  VMSPACE_TRY(space.insert_region(
      {.name = "ram", .size = 512_MiB, .backing = {.source = vmspace::MemorySource::shmem}}));
  return space;
}

}  // namespace

int main() {
  const auto space = make_space();
  const auto ok = space ? example(*space) : vmspace::fail(space.error());
  if (!ok) std::fprintf(stderr, "%s\n", ok.error().message().c_str());
  return ok ? 0 : 1;
}
