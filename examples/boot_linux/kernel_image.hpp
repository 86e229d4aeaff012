// SPDX-License-Identifier: Apache-2.0
//
// A Linux kernel of a distribution as the ELF image that is to lie in guest memory. Every number in
// the file is checked: a file that is no kernel, or only a part of one, is an error.
//
// Sources: the kernel's Documentation/arch/x86/boot.rst ("bzImage", payload_offset), elf(5), and
// docs/misc/pvh.pandoc of Xen for the note.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/base/result.hpp"

namespace boot_linux {

/// A part of the image: bytes of the file, and zeros up to `size`.
struct Segment {
  vmspace::GuestAddress where;
  std::span<const std::byte> bytes;
  std::uint64_t size;
};

/// An uncompressed kernel, and where it begins.
class KernelImage {
 public:
  /// Reads a bzImage, whose payload is decompressed here rather than in the guest, or a vmlinux.
  static vmspace::Result<KernelImage> read(const std::string& path);

  /// How the file was compressed, for people.
  [[nodiscard]] const char* compression() const { return compression_; }
  [[nodiscard]] std::span<const Segment> segments() const { return segments_; }
  /// Where the kernel begins in 32-bit mode by the PVH protocol, if its note says so.
  [[nodiscard]] std::optional<vmspace::GuestAddress> pvh_entry() const { return pvh_entry_; }
  /// Where it begins in 64-bit mode.
  [[nodiscard]] vmspace::GuestAddress entry() const { return entry_; }
  /// The address after its last byte.
  [[nodiscard]] vmspace::GuestAddress end() const;

 private:
  vmspace::Result<void> parse();

  const char* compression_ = "not compressed";
  std::vector<std::byte> elf_;
  std::vector<Segment> segments_;
  std::optional<vmspace::GuestAddress> pvh_entry_;
  vmspace::GuestAddress entry_;
};

}  // namespace boot_linux
