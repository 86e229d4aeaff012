// SPDX-License-Identifier: Apache-2.0
//
// The device's side of a packed virtqueue (Virtual I/O Device 1.2, section 2.8): one ring, in which the
// driver makes descriptors available and the device overwrites them with used ones. Called as
// SplitQueue is, with the same promises; a device that is written for a VirtioQueue takes either.
//
// Which descriptors are whose is said by two flags in each, compared with a counter of one bit that
// turns with each lap. A position in the ring is therefore an entry and that bit: 15 bits and one, as
// the event suppression structures and vhost's VRING_BASE have it.

#pragma once

#include <cstdint>
#include <optional>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/endian.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/virtio/descriptor_chain.hpp"

namespace vmspace {

/// An entry of the descriptor ring or of an indirect table, as it lies in memory (section 2.8.13).
struct PackedDescriptor {
  static constexpr std::uint16_t has_next = 1;        ///< VIRTQ_DESC_F_NEXT
  static constexpr std::uint16_t writable = 2;        ///< VIRTQ_DESC_F_WRITE: by the device
  static constexpr std::uint16_t indirect = 4;        ///< VIRTQ_DESC_F_INDIRECT: a table of its own
  static constexpr std::uint16_t available = 1 << 7;  ///< VIRTQ_DESC_F_AVAIL
  static constexpr std::uint16_t used = 1 << 15;      ///< VIRTQ_DESC_F_USED

  Le64 address;  ///< of the buffer, or of a table
  Le32 length;   ///< in bytes
  Le16 id;       ///< of the request; chosen by the driver
  Le16 flags;    ///< those above
};
static_assert(sizeof(PackedDescriptor) == 16);

/// An event suppression structure, as it lies in memory (section 2.8.14).
struct PackedEvent {
  static constexpr std::uint16_t enable = 0;      ///< RING_EVENT_FLAGS_ENABLE
  static constexpr std::uint16_t disable = 1;     ///< RING_EVENT_FLAGS_DISABLE
  static constexpr std::uint16_t descriptor = 2;  ///< RING_EVENT_FLAGS_DESC: at `position`

  Le16 position;  ///< the entry; bit 15: the wrap counter
  Le16 flags;     ///< one of those above
};
static_assert(sizeof(PackedEvent) == 4);

/// What driver and device have agreed on; an aggregate for designated initialisers.
struct PackedQueueOptions {
  std::uint16_t size = 0;          ///< entries: 1 to 32768, not only powers of two
  GuestAddress descriptors = {};   ///< the descriptor area: a multiple of 16
  GuestAddress driver_event = {};  ///< the driver area: a multiple of 4
  GuestAddress device_event = {};  ///< the device area: a multiple of 4
  bool indirect = false;           ///< VIRTIO_F_INDIRECT_DESC was negotiated
  bool event_index = false;        ///< VIRTIO_F_EVENT_IDX was negotiated
  /// The most descriptors of one request, which may lie in a table; 0: `size`, as section 2.8.5 has
  /// it.
  std::uint16_t max_chain = 0;
};

/// Where a device is in a queue: what a VM's migration carries, beside the options. Each is an entry of
/// the ring, and in bit 15 the wrap counter. VHOST_USER_SET_VRING_BASE and VHOST_SET_VRING_BASE have
/// the first in their lower 16 bits and the second in the upper ones.
struct PackedQueueState {
  std::uint16_t next_available = 0x8000;  ///< where the next request is looked for
  std::uint16_t next_used = 0x8000;       ///< where the next one is given back

  friend bool operator==(const PackedQueueState&, const PackedQueueState&) = default;
};

/// A packed virtqueue, as its device sees it.
///
/// Invariant: no more than size() entries are taken and not given back. Used by one thread at a time.
class VMSPACE_EXPORT PackedQueue {
 public:
  /// A queue at the given place, and where a saved one was in it. Requests that were taken and not
  /// given back are the device's to finish first, or to save with their IDs. Errors:
  /// `invalid_argument` unless the size is 1 to 32768, and for a state out of the ring, or with more
  /// entries taken than it has; `misaligned`; `overflow` for a part that would pass 2^64. O(1):
  /// memory is looked at by each call.
  [[nodiscard]] static Result<PackedQueue> make(const PackedQueueOptions& options,
                                                PackedQueueState state = {});

  /// Takes the next request, in the order in which the driver has made them available; false when
  /// there is none. Errors, with the queue as it was and the chain unspecified: `corrupt` for a
  /// request that breaks a rule, with the rule as the reason; those of GuestMemory for rings and
  /// tables that are not in memory. O(n) in descriptors, of which there are at most max_chain;
  /// allocates above 16 buffers.
  [[nodiscard]] Result<bool> pop(const GuestMemory& memory, DescriptorChain& chain);

  /// Gives a request back, in any order; `written` bytes from the beginning of its writable buffers
  /// are valid. Errors: `bad_state` when fewer entries are taken than it has, or it has none; those of
  /// GuestMemory. O(1).
  [[nodiscard]] Result<void> push_used(const GuestMemory& memory, RequestId id,
                                       std::uint32_t written);

  /// Whether the driver wants to be told of what was given back since it was last asked (section
  /// 2.8.10): unless it has disabled it, always, the first time. Ask after a batch of push_used().
  /// Errors: those of GuestMemory. O(1), with a full memory barrier.
  [[nodiscard]] Result<bool> needs_notification(const GuestMemory& memory);

  /// Tells the driver that it need not notify of requests, while the device polls. A hint. Errors:
  /// those of GuestMemory. O(1).
  [[nodiscard]] Result<void> disable_notifications(const GuestMemory& memory);
  /// Tells the driver to notify of the next request; gives whether there is one already, of which it
  /// may not notify any more: then pop() again before waiting. Errors: those of GuestMemory. O(1),
  /// with a full memory barrier.
  [[nodiscard]] Result<bool> enable_notifications(const GuestMemory& memory);

  /// How many entries the ring has.
  [[nodiscard]] std::uint16_t size() const noexcept { return options_.size; }
  /// Where the ring is and what was negotiated.
  [[nodiscard]] const PackedQueueOptions& options() const noexcept { return options_; }
  /// How many entries of the ring are taken and not given back: those of all requests together.
  [[nodiscard]] std::uint16_t in_flight() const noexcept;
  /// What a saved VM has to keep of the queue, and VHOST_GET_VRING_BASE reports.
  [[nodiscard]] PackedQueueState state() const noexcept { return state_; }

 private:
  PackedQueue(const PackedQueueOptions& options, PackedQueueState state) noexcept
      : options_(options), state_(state) {}

  [[nodiscard]] Result<void> walk(const GuestMemory& memory, PackedDescriptor descriptor,
                                  DescriptorChain& chain) const;
  [[nodiscard]] Result<void> walk_table(const GuestMemory& memory,
                                        const PackedDescriptor& descriptor,
                                        DescriptorChain& chain) const;

  PackedQueueOptions options_;
  PackedQueueState state_;
  /// The entries given back since the driver's wishes were last looked at, up to two laps; nothing
  /// before.
  std::optional<std::uint32_t> unasked_;
};

}  // namespace vmspace
