// SPDX-License-Identifier: Apache-2.0
//
// The device's side of a split virtqueue (Virtual I/O Device 1.2, section 2.7).
//
//   const bool any = VMSPACE_TRY(queue.pop(memory, chain));   // a request, if there is one
//   ...                                                        // GuestReader, GuestWriter
//   VMSPACE_TRY(queue.push_used(memory, chain.id(), written));
//   const bool notify = VMSPACE_TRY(queue.needs_notification(memory));
//   if (notify) interrupt();
//
// Everything in the rings and tables is the driver's, who may be hostile and change it at any time. So
// each descriptor and each index is read once, into a private copy, and what was checked in the copy is
// what is used; the number of steps and of bytes is bounded before the first step. A driver that breaks
// a rule of section 2.7 gets an error, not a guess; the device sets DEVICE_NEEDS_RESET then (section
// 2.1.2), since nothing that follows can be trusted.
//
// A queue is a value of some words: addresses, and two indices. It holds no memory, each call is given
// one, so that plugging memory needs no word to the queues; and saving a queue is copying its state.

#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/endian.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/virtio/descriptor_chain.hpp"

namespace vmspace {

/// An entry of a descriptor table, as it lies in memory (section 2.7.5).
struct SplitDescriptor {
  static constexpr std::uint16_t has_next = 1;  ///< VIRTQ_DESC_F_NEXT
  static constexpr std::uint16_t writable = 2;  ///< VIRTQ_DESC_F_WRITE: by the device
  static constexpr std::uint16_t indirect = 4;  ///< VIRTQ_DESC_F_INDIRECT: a table of its own

  Le64 address;  ///< of the buffer, or of a table
  Le32 length;   ///< in bytes
  Le16 flags;    ///< those above
  Le16 next;     ///< the index of the next descriptor, with has_next
};
static_assert(sizeof(SplitDescriptor) == 16);

/// What driver and device have agreed on; an aggregate for designated initialisers.
struct SplitQueueOptions {
  std::uint16_t size = 0;         ///< entries: a power of two, up to 32768
  GuestAddress descriptors = {};  ///< a multiple of 16
  GuestAddress available = {};    ///< a multiple of 2
  GuestAddress used = {};         ///< a multiple of 4
  bool indirect = false;          ///< VIRTIO_F_INDIRECT_DESC was negotiated
  bool event_index = false;       ///< VIRTIO_F_EVENT_IDX was negotiated
  /// The most descriptors of one request, tables included; 0: `size`, as section 2.7.5.3.1 has it.
  /// Linux puts more than that into indirect tables when the device allows many segments.
  std::uint16_t max_chain = 0;
};

/// Where a device is in a queue: what a VM's migration carries, beside the options.
struct SplitQueueState {
  std::uint16_t next_available = 0;  ///< how many requests were taken, modulo 2^16
  std::uint16_t next_used = 0;       ///< how many were given back, modulo 2^16

  friend bool operator==(const SplitQueueState&, const SplitQueueState&) = default;
};

/// A split virtqueue, as its device sees it.
///
/// Invariant: no more than size() requests are taken and not given back. Used by one thread at a time.
class VMSPACE_EXPORT SplitQueue {
 public:
  /// A queue at the given place, and where a saved one was in it. Requests that were taken and not
  /// given back are the device's to finish first, or to save. Errors: `invalid_argument` unless the
  /// size is a power of two up to 32768, and for a state with more than that many requests taken;
  /// `misaligned`; `overflow` for a ring that would pass 2^64. O(1): memory is looked at by each
  /// call.
  [[nodiscard]] static Result<SplitQueue> make(const SplitQueueOptions& options,
                                               SplitQueueState state = {});

  /// Takes the next request, in the order in which the driver has made them available; false when
  /// there is none. Errors, with the queue as it was and the chain unspecified: `corrupt` for a
  /// request that breaks a rule, with the rule as the reason; those of GuestMemory for rings and
  /// tables that are not in memory. O(n) in descriptors, of which there are at most max_chain;
  /// allocates above 16 buffers.
  [[nodiscard]] Result<bool> pop(const GuestMemory& memory, DescriptorChain& chain);

  /// Gives a request back, in any order; `written` bytes from the beginning of its writable buffers
  /// are valid (section 2.7.8.2: rather too few than too many). Errors: `bad_state` when no request is
  /// taken; `out_of_bounds` for an ID that is none; those of GuestMemory. O(1).
  [[nodiscard]] Result<void> push_used(const GuestMemory& memory, RequestId id,
                                       std::uint32_t written);

  /// Whether the driver wants to be told of what was given back since it was last asked (section
  /// 2.7.7): unless it has disabled it, always, the first time. Ask after a batch of push_used().
  /// Errors: those of GuestMemory. O(1), with a full memory barrier.
  [[nodiscard]] Result<bool> needs_notification(const GuestMemory& memory);

  /// Tells the driver that it need not notify of requests, while the device polls (section 2.7.10). A
  /// hint. Errors: those of GuestMemory. O(1).
  [[nodiscard]] Result<void> disable_notifications(const GuestMemory& memory);
  /// Tells the driver to notify of the next request; gives whether there is one already, of which it
  /// may not notify any more: then pop() again before waiting. Errors: those of GuestMemory;
  /// `corrupt` as pop(). O(1), with a full memory barrier.
  [[nodiscard]] Result<bool> enable_notifications(const GuestMemory& memory);

  /// How many descriptors the queue has.
  [[nodiscard]] std::uint16_t size() const noexcept { return options_.size; }
  /// Where its rings are and what was negotiated.
  [[nodiscard]] const SplitQueueOptions& options() const noexcept { return options_; }
  /// How many requests are taken and not given back.
  [[nodiscard]] std::uint16_t in_flight() const noexcept {
    return static_cast<std::uint16_t>(state_.next_available - state_.next_used);
  }
  /// What a saved VM has to keep of the queue, and VHOST_GET_VRING_BASE reports.
  [[nodiscard]] SplitQueueState state() const noexcept { return state_; }

 private:
  SplitQueue(const SplitQueueOptions& options, SplitQueueState state) noexcept
      : options_(options), state_(state) {}

  [[nodiscard]] Result<std::uint16_t> count_available(const char* operation,
                                                      const GuestMemory& memory,
                                                      std::memory_order order) const;
  [[nodiscard]] Result<void> walk(const GuestMemory& memory, std::uint16_t head,
                                  DescriptorChain& chain) const;

  // The parts of the rings; make() has checked that none is past 2^64.
  [[nodiscard]] GuestAddress available_at(std::uint64_t offset) const noexcept {
    return GuestAddress(options_.available.value() + offset);
  }
  [[nodiscard]] GuestAddress used_at(std::uint64_t offset) const noexcept {
    return GuestAddress(options_.used.value() + offset);
  }

  SplitQueueOptions options_;
  SplitQueueState state_;
  /// state_.next_used when the driver's wishes were last looked at; nothing before.
  std::optional<std::uint16_t> asked_at_;
};

}  // namespace vmspace
