// SPDX-License-Identifier: Apache-2.0
//
// A VMM in miniature: every layer is used, so that a missing symbol or header shows.

#include <cstdint>
#include <cstdio>

#include "vmspace/vmspace.hpp"

using namespace vmspace::literals;

namespace {

vmspace::Result<std::uint32_t> run() {
  auto layout = vmspace::AddressSpaceLayout::x86_64({.phys_bits = 40});
  if (!layout) return vmspace::fail(layout.error());
  auto space = vmspace::AddressSpace::create(*layout);
  if (!space) return vmspace::fail(space.error());
  auto inserted = space->insert_region({.name = "ram",
                                        .base = vmspace::GuestAddress{1_MiB},
                                        .size = 1_MiB,
                                        .backing = {.source = vmspace::MemorySource::shmem}});
  if (!inserted) return vmspace::fail(inserted.error());
  auto memory = vmspace::GuestMemory::map(*space->snapshot());
  if (!memory) return vmspace::fail(memory.error());
  const vmspace::GuestAddress address{1_MiB + 4_KiB};
  if (auto ok = memory->write(address, std::uint32_t{42}); !ok) return vmspace::fail(ok.error());
  return memory->read<std::uint32_t>(address);
}

}  // namespace

int main() {
  const auto value = run();
  if (!value) std::fprintf(stderr, "%s\n", value.error().message().c_str());
  return value && *value == 42 ? 0 : 1;
}
