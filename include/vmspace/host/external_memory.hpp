// SPDX-License-Identifier: Apache-2.0
//
// Memory that the library did not map: a buffer of a driver, a part of another library's heap, a
// mapping that came with a peer. MemoryMapping::adopt() makes a mapping of it.
//
//   const ExternalMemory blob{.data = address, .size = size, .owner = {address, unmap}};
//   auto mapping = VMSPACE_TRY(MemoryMapping::adopt(blob));
//
// Memory behind the descriptor of a device needs none of this: it is MemorySource::device.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "vmspace/spec/protection.hpp"

namespace vmspace {

/// Where the memory is, and what keeps it there; an aggregate for designated initialisers.
struct ExternalMemory {
  std::byte* data = nullptr;  ///< a multiple of the machine's page size
  std::uint64_t size = 0;     ///< bytes; a multiple of the machine's page size
  /// What this process may do with it.
  Protection protection = Protection::read_write;
  /// Keeps the memory mapped. It is let go once nothing uses the memory any more, from whichever
  /// thread was the last to: its deleter is the place to unmap, and must not throw. Null for borrowed
  /// memory, which the caller keeps mapped for longer than anything here uses it.
  std::shared_ptr<const void> owner = {};
  /// Whether touching it may raise SIGBUS; see Backing::can_lose_pages().
  bool can_lose_pages = false;
};

}  // namespace vmspace
