// SPDX-License-Identifier: Apache-2.0

#include "vmspace/virtio/split_queue.hpp"

#include <atomic>
#include <bit>
#include <limits>

#include "vmspace/base/try.hpp"

#include "virtio/chain_builder.hpp"

namespace vmspace {

using detail::broken;
using detail::broken_at;
using detail::max_queue_size;

namespace {

// Sections 2.7.6 and 2.7.8: both rings begin with flags and an index.
constexpr std::uint64_t flags_offset = 0;
constexpr std::uint64_t index_offset = 2;
constexpr std::uint64_t ring_offset = 4;
constexpr std::uint16_t no_notification = 1;  // VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY

struct UsedElement {
  Le32 head;
  Le32 written;
};
static_assert(sizeof(UsedElement) == 8);

constexpr const char* split_pop_operation = "SplitQueue::pop";

}  // namespace

Result<SplitQueue> SplitQueue::make(const SplitQueueOptions& options, SplitQueueState state) {
  constexpr const char* operation = "SplitQueue::make";
  if (!std::has_single_bit(options.size) || options.size > max_queue_size) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::number(options.size),
                 .reason = "the size of a queue must be a power of two, up to 32768"});
  }
  const std::uint64_t size = options.size;
  VMSPACE_TRY(
      detail::check_part(operation, options.descriptors, 16, size * sizeof(SplitDescriptor)));
  VMSPACE_TRY(detail::check_part(operation, options.available, 2,
                                 ring_offset + size * sizeof(Le16) + sizeof(Le16)));
  VMSPACE_TRY(detail::check_part(operation, options.used, 4,
                                 ring_offset + size * sizeof(UsedElement) + sizeof(Le16)));
  SplitQueue queue(options, state);
  if (queue.options_.max_chain == 0) queue.options_.max_chain = options.size;
  if (queue.in_flight() > options.size) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::number(queue.in_flight()),
                 .second = Operand::number(options.size),
                 .reason = "more requests are taken than the queue has entries"});
  }
  return queue;
}

Result<std::uint16_t> SplitQueue::count_available(const char* operation, const GuestMemory& memory,
                                                  std::memory_order order) const {
  const Le16 index =
      VMSPACE_TRY_IN(operation, memory.load<Le16>(available_at(index_offset), order));
  const auto count = static_cast<std::uint16_t>(index - state_.next_available);
  // A driver has no more requests outstanding than the queue has entries, and never takes one back
  // (section 2.7.6.1). This bounds what a device holds.
  if (count > options_.size - in_flight()) {
    return fail(broken(operation, std::uint64_t{count} + in_flight(), options_.size,
                       "more requests are available than the queue has entries"));
  }
  return count;
}

Result<bool> SplitQueue::pop(const GuestMemory& memory, DescriptorChain& chain) {
  // Acquire: what the driver wrote before it moved the index is seen (section 2.7.13.3).
  const std::uint16_t count =
      VMSPACE_TRY(count_available(split_pop_operation, memory, std::memory_order_acquire));
  if (count == 0) return false;
  const std::uint64_t slot = state_.next_available % options_.size;
  const Le16 head = VMSPACE_TRY_IN(
      split_pop_operation, memory.read<Le16>(available_at(ring_offset + slot * sizeof(Le16))));
  VMSPACE_TRY(walk(memory, head, chain));
  ++state_.next_available;
  return true;
}

Result<void> SplitQueue::walk(const GuestMemory& memory, std::uint16_t head,
                              DescriptorChain& chain) const {
  detail::ChainBuilder builder(split_pop_operation, chain, options_.max_chain);
  detail::DescriptorTable<SplitDescriptor> table{.base = options_.descriptors,
                                                 .count = options_.size};
  bool within_table = false;
  for (std::uint32_t index = head;;) {
    const SplitDescriptor descriptor = VMSPACE_TRY(table.read(split_pop_operation, memory, index));
    if ((descriptor.flags & SplitDescriptor::indirect) != 0) {
      // Not counted as a step of the chain, and followed at most once.
      if (within_table) {
        return fail(broken_at(split_pop_operation, index,
                              "an indirect descriptor within an indirect table"));
      }
      table = VMSPACE_TRY(builder.table(index, descriptor, options_.indirect));
      within_table = true;
      index = 0;
      continue;
    }
    VMSPACE_TRY(builder.add(index, descriptor));
    if ((descriptor.flags & SplitDescriptor::has_next) == 0) break;
    index = descriptor.next;
  }
  builder.finish({.number = head, .entries = 1});
  return {};
}

Result<void> SplitQueue::push_used(const GuestMemory& memory, RequestId id, std::uint32_t written) {
  constexpr const char* operation = "SplitQueue::push_used";
  if (in_flight() == 0) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = Operand::number(id.number),
                 .reason = "no request is taken"});
  }
  if (id.number >= options_.size) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = Operand::number(id.number),
                 .second = Operand::range(0, std::uint64_t{options_.size} - 1)});
  }
  const std::uint64_t slot = state_.next_used % options_.size;
  VMSPACE_TRY_IN(operation, memory.write(used_at(ring_offset + slot * sizeof(UsedElement)),
                                         UsedElement{.head = id.number, .written = written}));
  const auto next = static_cast<std::uint16_t>(state_.next_used + 1);
  // Release: the driver that sees the index sees the element and the buffers (section 2.7.8.2).
  VMSPACE_TRY_IN(operation,
                 memory.store(used_at(index_offset), Le16(next), std::memory_order_release));
  state_.next_used = next;
  // After 2^16 the difference would look like none.
  if (asked_at_ == next) asked_at_.reset();
  return {};
}

Result<bool> SplitQueue::needs_notification(const GuestMemory& memory) {
  constexpr const char* operation = "SplitQueue::needs_notification";
  // The driver writes its wish and then looks at the index; the index must be there before its wish is
  // read, or both miss each other (section 2.7.7). The index is stored again for that, seq_cst like
  // the load after it: a fence that ThreadSanitizer knows.
  VMSPACE_TRY_IN(operation, memory.store(used_at(index_offset), Le16(state_.next_used),
                                         std::memory_order_seq_cst));
  const auto before = asked_at_;
  if (!options_.event_index) {
    const Le16 flags = VMSPACE_TRY_IN(
        operation, memory.load<Le16>(available_at(flags_offset), std::memory_order_seq_cst));
    asked_at_ = state_.next_used;
    if (before && *before == state_.next_used) return false;
    return (flags & no_notification) == 0;
  }
  const Le16 event = VMSPACE_TRY_IN(
      operation,
      memory.load<Le16>(available_at(ring_offset + options_.size * std::uint64_t{sizeof(Le16)}),
                        std::memory_order_seq_cst));
  asked_at_ = state_.next_used;
  if (!before) return true;
  // Whether the entry `event` is among those given back since: modulo 2^16, as vring_need_event() of the
  // specification's virtio_queue.h (appendix A) counts.
  const auto since = static_cast<std::uint16_t>(state_.next_used - *before);
  return static_cast<std::uint16_t>(state_.next_used - event - 1) < since;
}

Result<void> SplitQueue::disable_notifications(const GuestMemory& memory) {
  // With the event index, the last one given stays where it is, which is behind.
  if (options_.event_index) return {};
  VMSPACE_TRY_IN(
      "SplitQueue::disable_notifications",
      memory.store(used_at(flags_offset), Le16(no_notification), std::memory_order_relaxed));
  return {};
}

Result<bool> SplitQueue::enable_notifications(const GuestMemory& memory) {
  constexpr const char* operation = "SplitQueue::enable_notifications";
  // seq_cst, and the load of the index after it: see needs_notification().
  if (options_.event_index) {
    const GuestAddress event =
        used_at(ring_offset + options_.size * std::uint64_t{sizeof(UsedElement)});
    VMSPACE_TRY_IN(operation,
                   memory.store(event, Le16(state_.next_available), std::memory_order_seq_cst));
  } else {
    VMSPACE_TRY_IN(operation,
                   memory.store(used_at(flags_offset), Le16(0), std::memory_order_seq_cst));
  }
  const std::uint16_t count =
      VMSPACE_TRY(count_available(operation, memory, std::memory_order_seq_cst));
  return count != 0;
}

}  // namespace vmspace
