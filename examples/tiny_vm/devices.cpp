// SPDX-License-Identifier: Apache-2.0

#include "devices.hpp"

#include "steps.hpp"

namespace tiny_vm {

using vmspace::Range;

Buses::Buses(const vmspace::AddressSpaceLayout& layout) {
  const vmspace::Aperture* mmio = layout.find_aperture("mmio_low");
  check(mmio != nullptr, "a PC has an MMIO window below 4 GiB");
  need(mmio_.insert(mmio->range));
  need(pci_ids_.insert(Range::of(1, 31)));           // 0 is the host bridge
  need(msi_vectors_.insert(Range::of(0x20, 0xef)));  // below: exceptions; above: the guest's own
  need(ports_.insert(Range::of(0x1000, 0xffff)));    // below: what every PC has at fixed ports
}

Device Buses::attach(const DeviceOptions& options) {
  const std::string& name = options.name;
  return {
      .name = name,
      .pci_id = need(pci_ids_.allocate({.size = 1}, name)).min(),
      .msi_vector = need(msi_vectors_.allocate({.size = 1}, name)).min(),
      .ports = need(ports_.allocate({.size = options.ports, .align = options.ports}, name)),
      .bar = need(mmio_.allocate({.size = options.bar_size, .align = options.bar_size}, name)),
  };
}

}  // namespace tiny_vm
