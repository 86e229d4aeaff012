// SPDX-License-Identifier: Apache-2.0
//
// The machine's memory in its three forms, which change together: described (the address space),
// mapped on the host (guest memory) and visible to the guest (KVM memory slots).

#pragma once

#include <optional>

#include "vmspace/address_space.hpp"
#include "vmspace/memory.hpp"
#include "vmspace/resources.hpp"
#include "vmspace/vmm.hpp"

namespace tiny_vm {

class Machine {
 public:
  /// Maps all memory that the space of the manager describes. Pages are allocated on first touch.
  static vmspace::Result<Machine> create(const vmspace::ResourceManager& manager);

  [[nodiscard]] const vmspace::GuestMemory& memory() const { return memory_; }

  /// Makes all memory, including what is plugged later, visible to the VM's guest, in slots
  /// numbered from this pool.
  vmspace::Result<void> show_to(int vm_fd, const vmspace::RangePool& slots);

  /// Adds RAM where there is room for it. The region is inserted into the space first, which
  /// reserves its addresses, and becomes visible to the guest last. On error, the next change of
  /// the space removes it.
  vmspace::Result<vmspace::DeviceResources> plug(const vmspace::RegionOptions& options);
  /// Unplugs it, in the reverse order.
  vmspace::Result<void> unplug(vmspace::DeviceResources& dimm);

 private:
  Machine(const vmspace::ResourceManager& manager, vmspace::GuestMemory memory);

  vmspace::ResourceManager manager_;
  vmspace::GuestMemory memory_;
  std::optional<vmspace::KvmMemslots> slots_;  // destroyed first: no slot outlives its memory
};

}  // namespace tiny_vm
