// SPDX-License-Identifier: Apache-2.0
//
// How VmMemory keeps vCPUs out of the guest while an address range changes what it is.
//
// A slot of KVM that is replaced has to go before the next one comes, and an access in between is
// answered as if nothing were there. Only the VMM can keep its vCPUs from making one; VcpuGate
// (vcpu_gate.hpp) does where they are threads that call KVM_RUN.

#pragma once

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/vmm/memory_listener.hpp"

namespace vmspace {

/// Stops and restarts the vCPUs of a virtual machine.
///
/// A vCPU is paused while it is neither in KVM_RUN nor entering it. So a vCPU thread that handles an
/// exit is paused already, as is one that waits inside of VmMemory, or makes the change itself: a
/// gate that waited for it to come to a certain place would wait for ever.
class VMSPACE_EXPORT VmGate {
 public:
  virtual ~VmGate() = default;

  /// Takes every vCPU out of the guest and keeps it out, and has devices that use DMA leave alone the
  /// memory that the change removes. Returns when both hold. An error refuses the change; then
  /// resume() is not called.
  [[nodiscard]] virtual Result<void> pause(const MemoryChange& change) = 0;

  /// Lets them go on. Called once after each pause() that succeeded, whatever came of the change.
  virtual void resume() noexcept = 0;

 protected:
  VmGate() = default;
  VmGate(const VmGate&) = default;
  VmGate& operator=(const VmGate&) = default;
};

}  // namespace vmspace
