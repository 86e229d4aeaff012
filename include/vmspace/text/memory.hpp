// SPDX-License-Identifier: Apache-2.0
//
// to_text() of the memory layer's types. Include text.hpp, which has all of them.

#pragma once

#include <bit>
#include <cstdint>
#include <string>

#include "vmspace/memory.hpp"
#include "vmspace/text/address_space.hpp"

namespace vmspace {

/// The enumerator's name: `read`, `write`.
[[nodiscard]] inline std::string to_text(Access access) {
  return access == Access::read ? "read" : "write";
}

/// Offset and size: `0x1000+0x2000`.
[[nodiscard]] inline std::string to_text(const DirtyRange& range) {
  return detail::base_and_size(range.offset, range.size);
}

/// The number in hexadecimal: `0x1234`.
template <typename T, std::endian order>
[[nodiscard]] std::string to_text(const EndianInteger<T, order>& number) {
  return detail::hex(number.value());
}

/// The address: `0x1000`.
template <typename T>
[[nodiscard]] std::string to_text(const GuestPtr<T>& pointer) {
  return to_text(pointer.address());
}

/// `0x1000+0x2000`.
[[nodiscard]] inline std::string to_text(const PresentBlocks::Run& run) {
  return detail::base_and_size(run.offset, run.size);
}

/// How much is there, and where: `0x2000 of 0x8000 in blocks of 0x1000: {0x1000+0x2000}`.
[[nodiscard]] inline std::string to_text(const PresentBlocks& blocks) {
  return detail::concat(detail::hex(blocks.present_size()), " of ",
                        detail::hex(blocks.region_size()), " in blocks of ",
                        detail::hex(blocks.block_size()), ": ", detail::list_text(blocks.runs()));
}

/// What its description says.
[[nodiscard]] inline std::string to_text(const MemoryRegion& region) {
  return to_text(region.description());
}

/// Its regions: `{ram [0x0-0xfff] shmem, ...}`.
[[nodiscard]] inline std::string to_text(const GuestMemory& memory) {
  return detail::list_text(memory.regions());
}

/// `0x1000+0x2000 rw- of fd 5 offset 0x1000`.
[[nodiscard]] inline std::string to_text(const RegionDescriptor& region) {
  return detail::concat(to_text(region.range), " ", to_text(region.protection), " of fd ",
                        std::to_string(region.fd), " offset ", detail::hex(region.offset));
}

/// The enumerator's name.
[[nodiscard]] inline std::string to_text(Unsealed unsealed) {
  switch (unsealed) {
    case Unsealed::accept: return "accept";
    case Unsealed::refuse: return "refuse";
    case Unsealed::guard: return "guard";
  }
  return "Unsealed " + std::to_string(static_cast<int>(unsealed));
}

}  // namespace vmspace
