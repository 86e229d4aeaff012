// SPDX-License-Identifier: Apache-2.0

#include "devices.hpp"

#include "steps.hpp"

namespace tiny_vm {

using vmspace::Range;
using vmspace::Result;

Result<Buses> Buses::create(const vmspace::AddressSpaceLayout& layout) {
  const vmspace::Aperture* window = layout.find_aperture("mmio_low");
  VMSPACE_TRY(expect(window != nullptr, "a PC has an MMIO window below 4 GiB"));
  Buses buses;
  VMSPACE_TRY(buses.mmio.insert(window->range));
  VMSPACE_TRY(buses.pci_ids.insert(Range::of(1, 31)));  // 0 is the host bridge
  VMSPACE_TRY(
      buses.msi_vectors.insert(Range::of(0x20, 0xef)));  // below exceptions, above the guest's
  VMSPACE_TRY(buses.ports.insert(Range::of(0x1000, 0xffff)));  // below what every PC has
  return buses;
}

Result<Device> Buses::attach(const DeviceOptions& options) {
  const std::string& name = options.name;
  const Range id = VMSPACE_TRY(pci_ids.allocate({.size = 1}, name));
  const Range vector = VMSPACE_TRY(msi_vectors.allocate({.size = 1}, name));
  const Range device_ports =
      VMSPACE_TRY(ports.allocate({.size = options.ports, .align = options.ports}, name));
  const Range bar =
      VMSPACE_TRY(mmio.allocate({.size = options.bar_size, .align = options.bar_size}, name));
  return Device{.name = name,
                .pci_id = id.min(),
                .msi_vector = vector.min(),
                .ports = device_ports,
                .bar = bar};
}

}  // namespace tiny_vm
