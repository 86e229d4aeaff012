// SPDX-License-Identifier: Apache-2.0
//
// What the machine's devices share, and which of it each one holds: an interval tree for every kind
// of number, whose values are the holders' names.

#pragma once

#include <cstdint>
#include <string>

#include "vmspace/address_space.hpp"
#include "vmspace/allocator.hpp"

namespace tiny_vm {

/// What a device needs.
struct DeviceOptions {
  std::string name;
  std::uint64_t ports;     ///< I/O ports, a power of two
  std::uint64_t bar_size;  ///< bytes of registers, a power of two
};

/// What a device got.
struct Device {
  std::string name;
  std::uint64_t pci_id;
  std::uint64_t msi_vector;
  vmspace::Range ports;
  vmspace::Range bar;
};

/// Who holds what of all that a PC gives to devices.
struct Buses {
  /// Everything free.
  static vmspace::Result<Buses> create(const vmspace::AddressSpaceLayout& layout);

  /// Gives a device one of each kind; ports and BAR are aligned to their size, as PCI requires.
  vmspace::Result<Device> attach(const DeviceOptions& options);

  vmspace::IntervalTree<std::string> pci_ids;
  vmspace::IntervalTree<std::string> msi_vectors;
  vmspace::IntervalTree<std::string> ports;
  vmspace::IntervalTree<std::string> mmio;
};

}  // namespace tiny_vm
