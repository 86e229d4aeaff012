// SPDX-License-Identifier: Apache-2.0

#include "ring.hpp"

#include "vmspace/base/try.hpp"

namespace vhost_user_blk {

using vmspace::Result;

Result<void> Ring::start(const vmspace::VhostUserBackendMemory& memory, std::uint64_t negotiated) {
  if (queue_) state_ = queue_->state();
  queue_.reset();
  if (!addresses_ || kick_.get() < 0) return {};
  const std::uint64_t entries = size_;
  const auto descriptors = VMSPACE_TRY(memory.guest_address(addresses_->descriptors, 16 * entries));
  const auto available = VMSPACE_TRY(memory.guest_address(addresses_->available, 6 + 2 * entries));
  const auto used = VMSPACE_TRY(memory.guest_address(addresses_->used, 6 + 8 * entries));
  queue_ = VMSPACE_TRY(vmspace::SplitQueue::make({.size = size_,
                                                  .descriptors = descriptors,
                                                  .available = available,
                                                  .used = used,
                                                  .indirect = (negotiated & indirect) != 0,
                                                  .event_index = (negotiated & event_index) != 0},
                                                 state_));
  return {};
}

std::uint16_t Ring::stop() {
  if (queue_) state_ = queue_->state();
  queue_.reset();
  kick_ = Descriptor();
  return state_.next_available;
}

void Ring::acknowledge() const {
  std::uint64_t count = 0;
  static_cast<void>(::read(kick_.get(), &count, sizeof count));
}

void Ring::notify() const {
  const std::uint64_t one = 1;
  if (call_.get() >= 0) static_cast<void>(::write(call_.get(), &one, sizeof one));
}

}  // namespace vhost_user_blk
