// SPDX-License-Identifier: Apache-2.0
//
// What is true of every chain that comes out of a queue, whoever its driver is.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "vmspace/memory/guest_cursor.hpp"
#include "vmspace/virtio/descriptor_chain.hpp"

namespace fuzz {

inline void expect(bool holds) {
  if (!holds) std::abort();
}

/// Up to `limit` buffers of up to 2^32 bytes, which are read and, up to a page, written.
inline void check_chain(const vmspace::GuestMemory& memory, const vmspace::DescriptorChain& chain,
                        std::size_t limit) {
  constexpr std::uint64_t page = 4096;
  expect(chain.readable().size() + chain.writable().size() <= limit);
  std::uint64_t bytes = 0;
  for (const auto& list : {chain.readable(), chain.writable()}) {
    for (const vmspace::GuestRange& range : list) {
      expect(range.size != 0);
      bytes += range.size;
    }
  }
  expect(bytes <= std::uint64_t{1} << 32);
  auto in = vmspace::GuestReader::make(memory, chain.readable());
  if (in) {
    while (in->read<std::uint64_t>()) {
    }
    expect(in->remaining() < 8);
  }
  // The device's writes may go into its own rings.
  auto out = vmspace::GuestWriter::make(memory, chain.writable());
  if (out && out->remaining() <= page) {
    while (out->write(std::uint16_t{0xffff})) {
    }
    expect(out->remaining() < 2);
  }
}

}  // namespace fuzz
