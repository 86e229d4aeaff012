// SPDX-License-Identifier: Apache-2.0
//
// What Linux finds in memory when it starts: itself, its initrd, its command line, and the tables that
// say what its memory is.
//
//   0x500    GDT
//   0x6000   start_info (PVH) or boot_params (64-bit protocol)
//   0x9000   page tables, for 64-bit mode: the first 4 GiB, each address to itself
//   0x20000  command line
//   0xe0000  ACPI tables: where a PC's firmware leaves its tables, which e820 has as reserved
//   0xffff0  the reset vector
//   0x1000000 (or what the kernel says)  the kernel
//   below 2 GiB, or the end of the first piece of RAM  the initrd

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "vmspace/boot.hpp"
#include "vmspace/memory/guest_memory.hpp"

#include "acpi.hpp"
#include "kernel_image.hpp"

namespace boot_linux {

/// How the processor is set up, and where it begins.
struct Entry {
  enum class Mode : std::uint8_t { protected_32, long_64 };
  Mode mode;
  vmspace::GuestAddress code;
  vmspace::GuestAddress argument;  ///< in %ebx (PVH) or %rsi
  vmspace::GuestAddress page_tables;
};

/// What to start, and with what.
struct Boot {
  const KernelImage& kernel;
  std::span<const std::byte> initrd;
  std::string_view command_line;
  std::span<const vmspace::E820Entry> e820;
  std::span<const std::byte> srat;
  const MmioDevice* device;  ///< or null
  bool use_pvh;              ///< where the kernel has the entry; else the 64-bit boot protocol
};

/// Writes all of it. Errors: `no_space` for a kernel or an initrd that does not fit into RAM;
/// `limit_exceeded` for a command line of more than 2047 bytes.
vmspace::Result<Entry> load_linux(const vmspace::GuestMemory& memory, const Boot& boot);

}  // namespace boot_linux
