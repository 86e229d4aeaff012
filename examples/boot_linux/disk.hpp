// SPDX-License-Identifier: Apache-2.0
//
// The machine's disk: its registers and its interrupt from the resource manager, its requests in the
// guest's memory, its sectors in a file.

#pragma once

#include <memory>
#include <string>

#include "vmspace/resources/resource_manager.hpp"
#include "vmspace/vmm/vm_memory.hpp"

#include "acpi.hpp"
#include "descriptor.hpp"
#include "machine.hpp"
#include "virtio_mmio.hpp"

namespace boot_linux {

class Disk {
 public:
  /// Opens the file, and attaches the device to the machine; both outlive it.
  static vmspace::Result<std::unique_ptr<Disk>> attach(const std::string& path,
                                                       const vmspace::ResourceManager& manager,
                                                       const vmspace::VmMemory& memory,
                                                       Machine& machine);
  Disk(const Disk&) = delete;
  Disk& operator=(const Disk&) = delete;
  ~Disk();

  /// Where the guest finds it.
  [[nodiscard]] MmioDevice mmio() const;

 private:
  Disk(example::Descriptor file, std::uint64_t sectors, vmspace::DeviceResources resources,
       const vmspace::GuestMemory& memory, Machine& machine);

  example::Descriptor file_;
  vmspace::DeviceResources resources_;
  vmspace::GuestMemory memory_;
  Machine& machine_;
  VirtioMmioBlk device_;
};

}  // namespace boot_linux
