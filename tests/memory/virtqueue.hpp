// SPDX-License-Identifier: Apache-2.0
//
// The walk over a chain of virtqueue descriptors (Virtual I/O Device 1.2, section 2.7), as a device
// model would write it with GuestPtr.

#pragma once

#include <cstdint>
#include <vector>

#include "vmspace/memory/endian.hpp"
#include "vmspace/memory/guest_ptr.hpp"

namespace vmspace::test {

struct RingDescriptor {
  static constexpr std::uint16_t has_next = 1;
  static constexpr std::uint16_t writable = 2;

  Le64 address;
  Le32 length;
  Le16 flags;
  Le16 next;
};
static_assert(sizeof(RingDescriptor) == 16);

struct Chain {
  std::size_t pieces = 0;
  std::uint64_t bytes = 0;
};

/// Follows the chain from `head`; reads each buffer that the device reads, and fills each that it
/// writes. At most `size` descriptors, each read once: what is used is what was checked.
inline Result<Chain> walk(const GuestMemory& memory, const GuestPtr<RingDescriptor>& table,
                          std::uint16_t size, std::uint16_t head) {
  Chain chain;
  std::vector<std::byte> buffer;
  for (std::uint16_t index = head; chain.pieces < size;) {
    const auto slot = table.at(index, size);
    if (!slot) return fail(slot.error());
    const auto descriptor = slot->read();
    if (!descriptor) return fail(descriptor.error());
    const GuestAddress address(descriptor->address);
    const std::uint32_t length = descriptor->length;
    // Before the buffer is made: the length is the guest's.
    const auto pieces = memory.iovecs(
        {address, length},
        (descriptor->flags & RingDescriptor::writable) != 0 ? Access::write : Access::read);
    if (!pieces) return fail(pieces.error());
    buffer.resize(length);
    if ((descriptor->flags & RingDescriptor::writable) != 0) {
      if (auto ok = memory.write_slice(address, buffer); !ok) return fail(ok.error());
    } else {
      if (auto ok = memory.read_slice(address, buffer); !ok) return fail(ok.error());
    }
    ++chain.pieces;
    chain.bytes += length;
    if ((descriptor->flags & RingDescriptor::has_next) == 0) return chain;
    index = descriptor->next;
  }
  return fail({.code = Errc::limit_exceeded,
               .operation = "walk",
               .first = Operand::number(chain.pieces),
               .second = Operand::number(size),
               .reason = "the chain is longer than the queue"});
}

}  // namespace vmspace::test
