// SPDX-License-Identifier: Apache-2.0
//
// A network device's packets (Virtual I/O Device 1.2, section 5.1.6), from and to a descriptor such as
// a tap device's, where one system call moves one packet. Without VIRTIO_NET_F_MRG_RXBUF: a packet has
// one request.

#pragma once

#include <cerrno>
#include <cstdint>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/endian.hpp"
#include "vmspace/memory/guest_cursor.hpp"
#include "vmspace/virtio/virtio_queue.hpp"

namespace example {

struct NetHeader {
  std::uint8_t flags;
  std::uint8_t gso_type;
  vmspace::Le16 header_length;
  vmspace::Le16 gso_size;
  vmspace::Le16 checksum_start;
  vmspace::Le16 checksum_offset;
  vmspace::Le16 buffers;
};

class NetDevice {
 public:
  /// A descriptor in non-blocking mode.
  explicit NetDevice(int tap) : tap_(tap) {}

  /// Sends every packet that the driver has put into its queue; a packet that the network does not
  /// take is dropped. Gives whether the driver is to be notified.
  vmspace::Result<bool> send(const vmspace::GuestMemory& memory, vmspace::VirtioQueue auto& queue) {
    for (;;) {
      const bool any = VMSPACE_TRY(queue.pop(memory, chain_));
      if (!any) return queue.needs_notification(memory);
      auto in = VMSPACE_TRY(vmspace::GuestReader::make(memory, chain_.readable()));
      VMSPACE_TRY(in.read<NetHeader>());  // no offloads were offered: nothing in it matters
      static_cast<void>(in.read_to(tap_, in.remaining()));
      VMSPACE_TRY(queue.push_used(memory, chain_.id(), 0));
    }
  }

  /// Receives packets for as long as there are some, and buffers for them. Gives whether the driver is
  /// to be notified.
  vmspace::Result<bool> receive(const vmspace::GuestMemory& memory,
                                vmspace::VirtioQueue auto& queue) {
    for (;;) {
      // A buffer that no packet came for is kept for the next.
      if (!has_buffer_) has_buffer_ = VMSPACE_TRY(queue.pop(memory, chain_));
      if (!has_buffer_) return queue.needs_notification(memory);
      auto out = VMSPACE_TRY(vmspace::GuestWriter::make(memory, chain_.writable()));
      auto packet = VMSPACE_TRY(out.split_at(sizeof(NetHeader)));
      const auto size = packet.write_from(tap_, packet.remaining());
      if (!size) {
        if (size.error().os_errno == EAGAIN) return queue.needs_notification(memory);
        return vmspace::fail(size.error());
      }
      VMSPACE_TRY(out.write(NetHeader{.flags = 0,
                                      .gso_type = 0,
                                      .header_length = 0,
                                      .gso_size = 0,
                                      .checksum_start = 0,
                                      .checksum_offset = 0,
                                      .buffers = 1}));
      has_buffer_ = false;
      VMSPACE_TRY(queue.push_used(memory, chain_.id(),
                                  static_cast<std::uint32_t>(sizeof(NetHeader) + *size)));
    }
  }

 private:
  int tap_;
  bool has_buffer_ = false;
  vmspace::DescriptorChain chain_;
};

}  // namespace example
