// SPDX-License-Identifier: Apache-2.0

#include "devices.hpp"

#include "steps.hpp"

namespace tiny_vm {

using vmspace::Range;

Buses::Buses(const vmspace::AddressSpaceLayout& layout) {
  const vmspace::Aperture* window = layout.find_aperture("mmio_low");
  check(window != nullptr, "a PC has an MMIO window below 4 GiB");
  need(mmio.insert(window->range));
  need(pci_ids.insert(Range::of(1, 31)));           // 0 is the host bridge
  need(msi_vectors.insert(Range::of(0x20, 0xef)));  // below: exceptions; above: the guest's own
  need(ports.insert(Range::of(0x1000, 0xffff)));    // below: what every PC has at fixed ports
}

Device Buses::attach(const DeviceOptions& options) {
  const std::string& name = options.name;
  return {
      .name = name,
      .pci_id = need(pci_ids.allocate({.size = 1}, name)).min(),
      .msi_vector = need(msi_vectors.allocate({.size = 1}, name)).min(),
      .ports = need(ports.allocate({.size = options.ports, .align = options.ports}, name)),
      .bar = need(mmio.allocate({.size = options.bar_size, .align = options.bar_size}, name)),
  };
}

}  // namespace tiny_vm
