// SPDX-License-Identifier: Apache-2.0
//
// The machine's memory in its three shapes, which change together: described (the address space),
// mapped on the host (guest memory), and shown to the guest (KVM's slots).

#pragma once

#include <optional>

#include "vmspace/address_space.hpp"
#include "vmspace/memory.hpp"
#include "vmspace/vmm.hpp"

namespace tiny_vm {

class Machine {
 public:
  /// Maps all memory that the space describes. Pages come when they are touched.
  explicit Machine(vmspace::AddressSpace space);

  [[nodiscard]] const vmspace::AddressSpace& space() const { return space_; }
  [[nodiscard]] const vmspace::GuestMemory& memory() const { return memory_; }

  /// Shows all memory, and from now on what is plugged, to the guest of this VM.
  void show_to(int vm_fd);

  /// Adds RAM where there is room for it, and says where. Described first, so that nobody else gets
  /// the addresses; the guest sees it last.
  vmspace::GuestAddress plug(const vmspace::RegionOptions& options);
  /// Takes it away again, in the opposite order.
  void unplug(vmspace::GuestAddress base);

 private:
  vmspace::AddressSpace space_;
  vmspace::GuestMemory memory_;
  std::optional<vmspace::KvmMemslots> slots_;  // destroyed first: no slot outlives its memory
};

}  // namespace tiny_vm
