// SPDX-License-Identifier: Apache-2.0

#include "vmspace/resources/resource_request.hpp"

namespace vmspace {

std::string_view name_of(ResourceKind kind) noexcept {
  switch (kind) {
    case ResourceKind::pio: return "pio";
    case ResourceKind::mmio: return "mmio";
    case ResourceKind::memory: return "memory";
    case ResourceKind::bridge_window: return "bridge_window";
    case ResourceKind::legacy_irq: return "legacy_irq";
    case ResourceKind::generic_irq: return "generic_irq";
    case ResourceKind::msi: return "msi";
    case ResourceKind::msix: return "msix";
    case ResourceKind::kvm_slot: return "kvm_slot";
    case ResourceKind::pci_device: return "pci_device";
    case ResourceKind::mac_address: return "mac_address";
  }
  return "unknown";
}

std::string_view name_of(MmioReach reach) noexcept {
  switch (reach) {
    case MmioReach::any: return "any";
    case MmioReach::below_4g: return "below_4g";
    case MmioReach::high: return "high";
  }
  return "unknown";
}

}  // namespace vmspace
