// SPDX-License-Identifier: Apache-2.0
//
// A virtio block device behind memory-mapped registers (virtio 1.2, section 4.2), with a file for its
// disk: registers here, the ring by SplitQueue, requests by BlkDevice.

#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/virtio/split_queue.hpp"

#include "virtio_blk.hpp"

namespace boot_linux {

class VirtioMmioBlk {
 public:
  static constexpr std::uint32_t size = 0x1000;  ///< of its registers, bytes

  /// `disk` is a descriptor of a file of so many sectors; `interrupt` is given the level of the
  /// device's interrupt. The memory is the guest's, and outlives the device.
  VirtioMmioBlk(const vmspace::GuestMemory& memory, int disk, std::uint64_t sectors,
                std::function<void(bool)> interrupt)
      : memory_(memory),
        device_(disk, sectors),
        sectors_(sectors),
        interrupt_(std::move(interrupt)) {}

  /// The driver's access to its registers, of up to 8 bytes.
  void read(std::uint64_t offset, std::span<std::byte> to) const;
  void write(std::uint64_t offset, std::span<const std::byte> from);

 private:
  [[nodiscard]] std::uint32_t read_register(std::uint64_t offset) const;
  void write_register(std::uint64_t offset, std::uint32_t value);
  void set_status(std::uint32_t status);
  void set_ready(bool on);
  void serve();
  void raise(std::uint32_t reasons);

  const vmspace::GuestMemory& memory_;
  example::BlkDevice device_;
  std::uint64_t sectors_;
  std::function<void(bool)> interrupt_;

  std::uint32_t device_word_ = 0, driver_word_ = 0;  ///< which half of the features
  std::uint64_t features_ = 0;                       ///< that the driver has taken
  std::uint32_t status_ = 0;
  std::uint32_t reasons_ = 0;  ///< of the interrupt
  std::uint32_t selected_ = 0;
  std::uint32_t entries_ = 0;
  std::uint64_t descriptors_ = 0, available_ = 0, used_ = 0;
  std::optional<vmspace::SplitQueue> queue_;
};

}  // namespace boot_linux
