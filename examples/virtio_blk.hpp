// SPDX-License-Identifier: Apache-2.0
//
// A block device's requests (Virtual I/O Device 1.2, section 5.2.6), on a file: what a VMM writes on
// top of a VirtioQueue, GuestReader and GuestWriter. Wherever the driver divides its buffers, and
// whatever it writes into them while they are looked at, is not seen here.

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/endian.hpp"
#include "vmspace/memory/guest_cursor.hpp"
#include "vmspace/virtio/virtio_queue.hpp"

namespace example {

struct BlkHeader {
  static constexpr std::uint32_t in = 0;      // VIRTIO_BLK_T_IN: from the disk to the guest
  static constexpr std::uint32_t out = 1;     // VIRTIO_BLK_T_OUT
  static constexpr std::uint32_t get_id = 8;  // VIRTIO_BLK_T_GET_ID

  vmspace::Le32 type;
  vmspace::Le32 reserved;
  vmspace::Le64 sector;
};

enum class BlkStatus : std::uint8_t { ok, io_error, unsupported };

class BlkDevice {
 public:
  static constexpr std::uint64_t sector_size = 512;

  /// `disk` is a descriptor of a file of so many sectors.
  BlkDevice(int disk, std::uint64_t sectors) : disk_(disk), sectors_(sectors) {}

  /// Serves every request that is there; gives whether the driver is to be notified. Before it waits
  /// for the driver's next notification, the caller asks for it (enable_notifications). An error is a
  /// driver that breaks the rules of the queue, or puts buffers where no memory is.
  vmspace::Result<bool> serve(const vmspace::GuestMemory& memory,
                              vmspace::VirtioQueue auto& queue) {
    for (;;) {
      const bool any = VMSPACE_TRY(queue.pop(memory, chain_));
      if (!any) return queue.needs_notification(memory);
      auto in = VMSPACE_TRY(vmspace::GuestReader::make(memory, chain_.readable()));
      auto out = VMSPACE_TRY(vmspace::GuestWriter::make(memory, chain_.writable()));
      const std::uint32_t written = VMSPACE_TRY(answer(in, out));
      VMSPACE_TRY(queue.push_used(memory, chain_.id(), written));
    }
  }

 private:
  /// Gives how many bytes the driver may take for valid: none when the data before the status is not.
  vmspace::Result<std::uint32_t> answer(vmspace::GuestReader& in, vmspace::GuestWriter& out) {
    const auto header = VMSPACE_TRY(in.read<BlkHeader>());
    if (out.remaining() == 0) {
      return vmspace::fail({.code = vmspace::Errc::corrupt,
                            .operation = "BlkDevice::answer",
                            .reason = "a request has no room for its status"});
    }
    const std::uint64_t size = out.remaining() - 1;  // at most 2^32, as all of the chain
    auto status = VMSPACE_TRY(out.split_at(size));
    const BlkStatus done = transfer(header, in, out);
    VMSPACE_TRY(status.write(done));
    if (done != BlkStatus::ok || size >= std::numeric_limits<std::uint32_t>::max()) return 0;
    return static_cast<std::uint32_t>(size + 1);
  }

  BlkStatus transfer(const BlkHeader& header, vmspace::GuestReader& in, vmspace::GuestWriter& out) {
    const std::uint64_t sector = header.sector;
    switch (header.type) {
      case BlkHeader::in:
        if (!holds(sector, out.remaining())) return BlkStatus::io_error;
        return result(out.write_exact_from(disk_, out.remaining(), sector * sector_size));
      case BlkHeader::out:
        if (!holds(sector, in.remaining())) return BlkStatus::io_error;
        return result(in.read_exact_to(disk_, in.remaining(), sector * sector_size));
      case BlkHeader::get_id: {
        static constexpr std::byte name[20] = {std::byte{'v'}, std::byte{'m'}, std::byte{'s'}};
        return result(out.write_exact(name));
      }
      default: return BlkStatus::unsupported;
    }
  }

  [[nodiscard]] bool holds(std::uint64_t sector, std::uint64_t bytes) const {
    return bytes % sector_size == 0 && sector <= sectors_ &&
           bytes / sector_size <= sectors_ - sector;
  }
  static BlkStatus result(const vmspace::Result<void>& done) {
    return done ? BlkStatus::ok : BlkStatus::io_error;
  }

  int disk_;
  std::uint64_t sectors_;
  vmspace::DescriptorChain chain_;
};

}  // namespace example
