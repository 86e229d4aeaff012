// SPDX-License-Identifier: Apache-2.0

#include <cerrno>
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include "vmspace/boot.hpp"
#include "vmspace/exit_on_error.hpp"
#include "vmspace/memory.hpp"
#include "vmspace/ostream.hpp"

using namespace vmspace::literals;

namespace {

// README begin
/// A guest with two NUMA nodes. `host_node[i]` is where the memory of its node i comes from.
vmspace::Result<vmspace::GuestMemory> build(const std::vector<std::uint32_t>& host_node) {
  const auto layout = VMSPACE_TRY(vmspace::AddressSpaceLayout::x86_64({.phys_bits = 46}));
  const auto plan = VMSPACE_TRY(layout.plan_ram({64_MiB, 64_MiB}));
  vmspace::AddressSpaceBase space(layout);
  for (const vmspace::RamPiece& piece : plan) {
    VMSPACE_TRY(space.insert_region({.name = "node" + std::to_string(piece.node),
                                     .base = piece.base,
                                     .size = piece.size,
                                     .backing = {.source = vmspace::MemorySource::anon},
                                     .numa_node = host_node[piece.node],
                                     .huge_pages = true,
                                     .populate = true}));
  }

  // One processor a node; the guest believes the table if its nodes cover all of the RAM.
  const auto table =
      VMSPACE_TRY(srat({{.apic_id = 0, .node = 0}, {.apic_id = 1, .node = 1}}, srat_memory(plan)));
  std::cout << "SRAT: " << table.size() << " bytes\n";
  // In this order: mapped, bound to its node, advised, and filled by threads that run there.
  return vmspace::GuestMemory::map(
      space, {.numa_mode = vmspace::NumaMode::bind, .populate = {.threads = 2}});
}
// README end

}  // namespace

int main() {
  const auto memory = build({0, 0});  // both on the one node that every host has
  if (!memory && (memory.error().code == vmspace::Errc::unsupported ||
                  memory.error().code == vmspace::Errc::not_found ||
                  memory.error().os_errno == EPERM)) {  // as in a container
    std::cout << "skipped: memory can't be bound to node 0: " << memory.error().message() << '\n';
    return 77;  // CTest shows it as skipped
  }
  if (!memory) vmspace::value_or_exit(memory);

  bool all_huge = true;
  for (const vmspace::MemoryRegionPtr& region : memory->regions()) {
    const auto residency = vmspace::value_or_exit(region->mapping().residency());
    std::cout << region->description().name() << ": " << residency.resident / 1_MiB
              << " MiB resident, " << region->mapping().numa_policy() << '\n';
    all_huge = all_huge && residency.huge == region->size();
  }
  // Advice is not a promise: the host's settings decide, and whether huge pages are free.
  if (!all_huge)
    std::cerr << "not all of it is in huge pages: see /sys/kernel/mm/transparent_hugepage\n";
}
