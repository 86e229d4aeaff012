// SPDX-License-Identifier: Apache-2.0

#include "snapshot/page_buffer.hpp"

namespace vmspace::detail {

PageBuffer::PageBuffer(std::uint64_t bytes, std::uint64_t smallest)
    : ring_(bytes), slots_(bytes / smallest) {}

PageBuffer::Slot* PageBuffer::reserve(std::size_t region, std::uint64_t offset,
                                      std::uint64_t size) {
  std::unique_lock lock(mutex_);
  bool wraps = false;
  std::uint64_t skipped = 0;
  room_.wait(lock, [&] {
    if (used_ == 0) next_ = 0;
    // A page lies in one piece: what is left at the end is skipped where it is too little.
    wraps = next_ + size > ring_.size();
    skipped = wraps ? ring_.size() - next_ : 0;
    return closed_ || used_ + skipped + size <= ring_.size();
  });
  if (closed_) return nullptr;
  Slot& slot = slots_[(first_ + count_++) % slots_.size()];
  const std::uint64_t at = wraps ? 0 : next_;
  slot.region = region;
  slot.offset = offset;
  slot.size = size;
  slot.bytes = ring_.data() + at;
  slot.taken_ = skipped + size;
  slot.is_filled_ = false;
  used_ += slot.taken_;
  next_ = at + size;
  return &slot;
}

void PageBuffer::fill(Slot& slot) {
  {
    const std::lock_guard lock(mutex_);
    slot.is_filled_ = true;
  }
  filled_.notify_one();
}

const PageBuffer::Slot* PageBuffer::front() {
  const std::lock_guard lock(mutex_);
  return oldest();
}

const PageBuffer::Slot* PageBuffer::wait_front() {
  std::unique_lock lock(mutex_);
  filled_.wait(lock, [&] { return closed_ || oldest() != nullptr || (ended_ && count_ == 0); });
  return closed_ ? nullptr : oldest();
}

void PageBuffer::pop() {
  {
    const std::lock_guard lock(mutex_);
    used_ -= slots_[first_].taken_;
    first_ = (first_ + 1) % slots_.size();
    --count_;
  }
  room_.notify_all();
}

void PageBuffer::end() {
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  filled_.notify_all();
}

void PageBuffer::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  filled_.notify_all();
  room_.notify_all();
}

}  // namespace vmspace::detail
