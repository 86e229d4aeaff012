// SPDX-License-Identifier: Apache-2.0
//
// A split virtqueue whose device notes what it writes, so that the front-end can migrate its guest: the
// buffers of a request, and the entry of the used ring that gives it back.

#pragma once

#include <cstdint>
#include <vector>

#include "vmspace/base/try.hpp"
#include "vmspace/virtio/split_queue.hpp"
#include "vmspace/virtio/virtio_queue.hpp"
#include "vmspace/vmm/vhost_user_log.hpp"

namespace vhost_user_blk {

/// For a device that answers one request after the other. Without a log it is the queue alone.
class LoggedQueue {
 public:
  LoggedQueue(vmspace::SplitQueue& queue, const vmspace::VhostUserLog& log)
      : queue_(queue), log_(log) {}

  vmspace::Result<bool> pop(const vmspace::GuestMemory& memory, vmspace::DescriptorChain& chain) {
    const bool any = VMSPACE_TRY(queue_.pop(memory, chain));
    written_.clear();
    if (any && log_.is_on()) written_.assign(chain.writable().begin(), chain.writable().end());
    return any;
  }

  vmspace::Result<void> push_used(const vmspace::GuestMemory& memory, vmspace::RequestId id,
                                  std::uint32_t written) {
    for (const vmspace::GuestRange& range : written_)
      VMSPACE_TRY(log_.mark(range));
    VMSPACE_TRY(queue_.push_used(memory, id, written));
    return log_.mark(used_ring());
  }

  vmspace::Result<bool> needs_notification(const vmspace::GuestMemory& memory) {
    return queue_.needs_notification(memory);
  }
  vmspace::Result<void> disable_notifications(const vmspace::GuestMemory& memory) {
    VMSPACE_TRY(queue_.disable_notifications(memory));
    return log_.mark(used_ring());
  }
  vmspace::Result<bool> enable_notifications(const vmspace::GuestMemory& memory) {
    const bool any = VMSPACE_TRY(queue_.enable_notifications(memory));
    VMSPACE_TRY(log_.mark(used_ring()));
    return any;
  }

 private:
  /// Flags, index, entries and event (virtio 1.2, section 2.7.8); all of it, a page or a few.
  [[nodiscard]] vmspace::GuestRange used_ring() const {
    return {queue_.options().used, 6 + 8 * std::uint64_t{queue_.size()}};
  }

  vmspace::SplitQueue& queue_;
  const vmspace::VhostUserLog& log_;
  std::vector<vmspace::GuestRange> written_;  ///< of the request that was popped last
};
static_assert(vmspace::VirtioQueue<LoggedQueue>);

}  // namespace vhost_user_blk
