// SPDX-License-Identifier: Apache-2.0
//
// The ACPI table that tells a guest which NUMA node each processor and each part of its memory
// belongs to: the System Resource Affinity Table (ACPI specification 6.4, section 5.2.16).
//
//   const auto plan = VMSPACE_TRY(layout.plan_ram({2_GiB, 2_GiB}));
//   const std::vector<std::byte> table = VMSPACE_TRY(vmspace::srat(
//       {{.apic_id = 0, .node = 0}, {.apic_id = 1, .node = 1}}, vmspace::srat_memory(plan)));
//
// A guest finds the table through those of the VMM: RSDP and XSDT. It believes the nodes only if
// together they cover the RAM that its e820 map has.

#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/layout.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// A processor and the node that it belongs to.
struct SratProcessor {
  std::uint32_t apic_id;  ///< of 255 and above, the table has the form for x2APIC
  std::uint32_t node;     ///< its proximity domain, as the guest numbers nodes

  friend bool operator==(const SratProcessor&, const SratProcessor&) = default;
};

/// A part of the guest's addresses and the node that it belongs to.
struct SratMemory {
  GuestAddress base;   ///< the first address
  std::uint64_t size;  ///< bytes
  std::uint32_t node;  ///< its proximity domain, as the guest numbers nodes
  /// Memory may be plugged and unplugged there; the guest keeps addresses up to its end in mind.
  bool hotplug = false;

  friend bool operator==(const SratMemory&, const SratMemory&) = default;
};

/// The pieces of a plan (AddressSpaceLayout::plan_ram), each with its node. O(n).
[[nodiscard]] VMSPACE_EXPORT std::vector<SratMemory> srat_memory(std::span<const RamPiece> plan);

/// The table's bytes, complete with its checksum: processors, then memory, in the order given.
///
/// Errors: `zero_size` and `overflow` (past 2^64) for memory; `overlap` of one memory with another,
/// or of a processor with one of the same APIC id; `limit_exceeded` above 2^32 - 1 bytes, which no
/// table has. O(n log n). Threads: any.
[[nodiscard]] VMSPACE_EXPORT Result<std::vector<std::byte>> srat(
    std::span<const SratProcessor> processors, std::span<const SratMemory> memory);
/// As above, for processors that are written in braces.
[[nodiscard]] inline Result<std::vector<std::byte>> srat(
    std::initializer_list<SratProcessor> processors, std::span<const SratMemory> memory) {
  return srat(std::span(processors.begin(), processors.size()), memory);
}

}  // namespace vmspace
