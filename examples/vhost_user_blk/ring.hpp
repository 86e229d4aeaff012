// SPDX-License-Identifier: Apache-2.0
//
// A ring as a vhost-user front-end sets it up: where it is, how it goes on, and the eventfds of its
// two sides.

#pragma once

#include <cstdint>
#include <optional>

#include "vmspace/base/result.hpp"
#include "vmspace/virtio/split_queue.hpp"
#include "vmspace/vmm/vhost_user_backend.hpp"

#include "descriptor.hpp"

namespace vhost_user_blk {

using example::Descriptor;

class Ring {
 public:
  /// What it can be asked for (VIRTIO_RING_F_INDIRECT_DESC, VIRTIO_RING_F_EVENT_IDX).
  static constexpr std::uint64_t indirect = std::uint64_t{1} << 28;
  static constexpr std::uint64_t event_index = std::uint64_t{1} << 29;
  static constexpr std::uint64_t features = indirect | event_index;

  /// What SET_VRING_ADDR says, by the front-end's own addresses.
  struct Addresses {
    std::uint64_t descriptors, used, available;
  };

  void set_size(std::uint16_t size) { size_ = size; }
  void set_addresses(const Addresses& addresses) { addresses_ = addresses; }
  void set_next(std::uint16_t next) { state_ = {.next_available = next, .next_used = next}; }
  void set_kick(Descriptor fd) { kick_ = std::move(fd); }
  void set_call(Descriptor fd) { call_ = std::move(fd); }
  void enable(bool on) { is_enabled_ = on; }

  /// Begins, or goes on after the memory has changed, if all that it needs is there. Errors: those of
  /// VhostUserBackendMemory::guest_address() and SplitQueue::make().
  vmspace::Result<void> start(const vmspace::VhostUserBackendMemory& memory,
                              std::uint64_t negotiated);
  /// Gives the request that would have been next.
  std::uint16_t stop();

  /// The queue, while it runs.
  [[nodiscard]] vmspace::SplitQueue* queue() { return queue_ && is_enabled_ ? &*queue_ : nullptr; }
  /// For poll(2); -1 while there is none.
  [[nodiscard]] int kick_fd() const { return kick_.get(); }
  /// Takes the driver's kick.
  void acknowledge() const;
  /// Interrupts the driver.
  void notify() const;

 private:
  std::uint16_t size_ = 0;
  std::optional<Addresses> addresses_;
  vmspace::SplitQueueState state_;
  Descriptor kick_, call_;
  bool is_enabled_ = false;
  std::optional<vmspace::SplitQueue> queue_;
};

}  // namespace vhost_user_blk
