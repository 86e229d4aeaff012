// SPDX-License-Identifier: Apache-2.0
//
// The machine's memory in its three shapes, which change together: described (the address space),
// mapped on the host (guest memory), and shown to the guest (KVM's slots).

#pragma once

#include <optional>

#include "vmspace/address_space.hpp"
#include "vmspace/memory.hpp"
#include "vmspace/resources.hpp"
#include "vmspace/vmm.hpp"

namespace tiny_vm {

class Machine {
 public:
  /// Maps all memory that the space of the manager describes. Pages come when they are touched.
  static vmspace::Result<Machine> create(const vmspace::ResourceManager& manager);

  [[nodiscard]] const vmspace::GuestMemory& memory() const { return memory_; }

  /// Shows all memory, and from now on what is plugged, to the guest of this VM, in slots with
  /// numbers of this pool.
  vmspace::Result<void> show_to(int vm_fd, const vmspace::RangePool& slots);

  /// Adds RAM where there is room for it. It is described first, so that nobody else gets the
  /// addresses, and the guest sees it last. After an error the next change of the space takes it out.
  vmspace::Result<vmspace::DeviceResources> plug(const vmspace::RegionOptions& options);
  /// Takes it away again, in the opposite order.
  vmspace::Result<void> unplug(vmspace::DeviceResources& dimm);

 private:
  Machine(const vmspace::ResourceManager& manager, vmspace::GuestMemory memory);

  vmspace::ResourceManager manager_;
  vmspace::GuestMemory memory_;
  std::optional<vmspace::KvmMemslots> slots_;  // destroyed first: no slot outlives its memory
};

}  // namespace tiny_vm
