// SPDX-License-Identifier: Apache-2.0

#include "virtio_mmio.hpp"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "vmspace/base/try.hpp"

namespace boot_linux {

using vmspace::GuestAddress;
using vmspace::Result;

namespace {

// Registers, by their offsets.
enum : std::uint64_t {
  magic_value = 0x000,
  version = 0x004,
  device_id = 0x008,
  vendor_id = 0x00c,
  device_features = 0x010,
  device_features_sel = 0x014,
  driver_features = 0x020,
  driver_features_sel = 0x024,
  queue_sel = 0x030,
  queue_num_max = 0x034,
  queue_num = 0x038,
  queue_ready = 0x044,
  queue_notify = 0x050,
  interrupt_status = 0x060,
  interrupt_ack = 0x064,
  device_status = 0x070,
  queue_desc_low = 0x080,
  queue_desc_high = 0x084,
  queue_driver_low = 0x090,
  queue_driver_high = 0x094,
  queue_device_low = 0x0a0,
  queue_device_high = 0x0a4,
  shared_memory_length_low = 0x0b0,
  shared_memory_length_high = 0x0b4,
  config = 0x100,
};

constexpr std::uint32_t largest_queue = 256;
constexpr std::uint32_t features_ok = 8, needs_reset = 64;
constexpr std::uint32_t used_buffers = 1, configuration_change = 2;
constexpr std::uint64_t indirect = std::uint64_t{1} << 28;     // VIRTIO_F_INDIRECT_DESC
constexpr std::uint64_t event_index = std::uint64_t{1} << 29;  // VIRTIO_F_EVENT_IDX
constexpr std::uint64_t version_1 = std::uint64_t{1} << 32;    // VIRTIO_F_VERSION_1
constexpr std::uint64_t offered = indirect | event_index | version_1;

std::uint32_t half(std::uint64_t value, std::uint32_t word) {
  return word > 1 ? 0 : static_cast<std::uint32_t>(value >> (32 * word));
}
void set_half(std::uint64_t& value, std::uint32_t word, std::uint32_t half) {
  if (word > 1) return;
  const unsigned shift = 32 * word;
  value = (value & ~(std::uint64_t{0xffff'ffff} << shift)) | std::uint64_t{half} << shift;
}

}  // namespace

void VirtioMmioBlk::read(std::uint64_t offset, std::span<std::byte> to) const {
  std::ranges::fill(to, std::byte{0});
  if (offset < config) {
    const std::uint32_t value = read_register(offset);
    if (to.size() == sizeof value) std::memcpy(to.data(), &value, sizeof value);
    return;
  }
  // The configuration is the capacity in sectors, and zeros.
  for (std::size_t i = 0; i < to.size(); ++i) {
    const std::uint64_t at = offset - config + i;
    if (at < sizeof sectors_) to[i] = static_cast<std::byte>(sectors_ >> (8 * at));
  }
}

void VirtioMmioBlk::write(std::uint64_t offset, std::span<const std::byte> from) {
  std::uint32_t value = 0;
  if (offset >= config || from.size() != sizeof value) return;
  std::memcpy(&value, from.data(), sizeof value);
  write_register(offset, value);
}

std::uint32_t VirtioMmioBlk::read_register(std::uint64_t offset) const {
  switch (offset) {
    case magic_value: return 0x7472'6976;  // "virt"
    case version: return 2;
    case device_id: return 2;  // a block device
    case device_features: return half(offered, device_word_);
    case queue_num_max: return selected_ == 0 ? largest_queue : 0;
    case queue_ready: return selected_ == 0 && queue_ ? 1 : 0;
    case interrupt_status: return reasons_;
    case device_status: return status_;
    case shared_memory_length_low:
    case shared_memory_length_high: return 0xffff'ffff;  // there is none
    default: return 0;
  }
}

void VirtioMmioBlk::write_register(std::uint64_t offset, std::uint32_t value) {
  switch (offset) {
    case device_features_sel: device_word_ = value; return;
    case driver_features_sel: driver_word_ = value; return;
    case driver_features:
      if ((status_ & features_ok) == 0) set_half(features_, driver_word_, value);
      return;
    case queue_sel: selected_ = value; return;
    case queue_notify:
      if (value == 0) serve();
      return;
    case interrupt_ack:
      reasons_ &= ~value;
      interrupt_(reasons_ != 0);
      return;
    case device_status: set_status(value); return;
    default: break;
  }
  if (selected_ != 0) return;
  switch (offset) {
    case queue_ready: set_ready(value == 1); return;
    case queue_num: entries_ = value; return;
    case queue_desc_low: set_half(descriptors_, 0, value); return;
    case queue_desc_high: set_half(descriptors_, 1, value); return;
    case queue_driver_low: set_half(available_, 0, value); return;
    case queue_driver_high: set_half(available_, 1, value); return;
    case queue_device_low: set_half(used_, 0, value); return;
    case queue_device_high: set_half(used_, 1, value); return;
    default: return;
  }
}

void VirtioMmioBlk::set_status(std::uint32_t status) {
  if (status == 0) {
    queue_.reset();
    features_ = 0;
    reasons_ = 0;
    interrupt_(false);
  }
  // Features that were not offered are not accepted, nor a driver of before version 1, whose ring is
  // another: the driver reads that back.
  if ((features_ & ~offered) != 0 || (features_ & version_1) == 0) status &= ~features_ok;
  status_ = status;
}

void VirtioMmioBlk::set_ready(bool on) {
  queue_.reset();
  if (!on || entries_ > largest_queue) return;
  const auto made = vmspace::SplitQueue::make({.size = static_cast<std::uint16_t>(entries_),
                                               .descriptors = GuestAddress(descriptors_),
                                               .available = GuestAddress(available_),
                                               .used = GuestAddress(used_),
                                               .indirect = (features_ & indirect) != 0,
                                               .event_index = (features_ & event_index) != 0});
  if (made) queue_ = *made;
}

void VirtioMmioBlk::serve() {
  if (!queue_) return;
  const auto serve_all = [&]() -> Result<void> {
    for (bool any = true; any;) {
      const bool notify = VMSPACE_TRY(device_.serve(memory_, *queue_));
      if (notify) raise(used_buffers);
      any = VMSPACE_TRY(queue_->enable_notifications(memory_));  // one that came meanwhile
    }
    return {};
  };
  const auto served = serve_all();
  if (served) return;
  fmt::print(stderr, "boot_linux: the disk's driver broke a rule: {}\n", served.error().message());
  queue_.reset();
  status_ |= needs_reset;
  raise(configuration_change);
}

void VirtioMmioBlk::raise(std::uint32_t reasons) {
  reasons_ |= reasons;
  interrupt_(true);
}

}  // namespace boot_linux
