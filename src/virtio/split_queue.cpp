// SPDX-License-Identifier: Apache-2.0

#include "vmspace/virtio/split_queue.hpp"

#include <atomic>
#include <bit>
#include <limits>

#include "vmspace/base/try.hpp"

namespace vmspace {

namespace {

// Sections 2.7.6 and 2.7.8: both rings begin with flags and an index.
constexpr std::uint64_t flags_offset = 0;
constexpr std::uint64_t index_offset = 2;
constexpr std::uint64_t ring_offset = 4;
constexpr std::uint16_t no_notification = 1;  // VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY
constexpr std::uint16_t max_size = 32768;     // section 2.7

struct UsedElement {
  Le32 head;
  Le32 written;
};
static_assert(sizeof(UsedElement) == 8);

constexpr const char* pop_operation = "SplitQueue::pop";

Error broken(const char* operation, std::uint64_t what, std::uint64_t limit, const char* rule) {
  return {.code = Errc::corrupt,
          .operation = operation,
          .first = Operand::number(what),
          .second = Operand::number(limit),
          .reason = rule};
}

/// A table of descriptors: the queue's, or that of one request.
struct Table {
  GuestAddress base;
  std::uint32_t count;

  [[nodiscard]] Result<SplitDescriptor> read(const GuestMemory& memory, std::uint32_t index) const {
    if (index >= count) {
      return fail(broken(pop_operation, index, count,
                         "the index of a descriptor must lie within its table"));
    }
    const auto at = base.checked_add(std::uint64_t{index} * sizeof(SplitDescriptor));
    if (!at) {
      return fail({.code = Errc::overflow,
                   .operation = pop_operation,
                   .first = Operand::address(base.value()),
                   .second = Operand::size(std::uint64_t{index} * sizeof(SplitDescriptor))});
    }
    return VMSPACE_TRY_IN(pop_operation, memory.read<SplitDescriptor>(*at));
  }
};

/// What a descriptor that refers to a table must be (section 2.7.5.3.1), or null.
const char* broken_rule(const SplitDescriptor& descriptor, bool within_table, bool negotiated) {
  if (!negotiated) return "an indirect descriptor without VIRTIO_F_INDIRECT_DESC";
  if (within_table) return "an indirect descriptor within an indirect table";
  if ((descriptor.flags & SplitDescriptor::has_next) != 0) {
    return "an indirect descriptor must be the last of its chain";
  }
  if (descriptor.length == 0 || descriptor.length % sizeof(SplitDescriptor) != 0) {
    return "an indirect table must consist of whole descriptors";
  }
  return nullptr;
}

}  // namespace

Result<SplitQueue> SplitQueue::make(const SplitQueueOptions& options, SplitQueueState state) {
  constexpr const char* operation = "SplitQueue::make";
  if (!std::has_single_bit(options.size) || options.size > max_size) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::number(options.size),
                 .reason = "the size of a queue must be a power of two, up to 32768"});
  }
  struct Part {
    GuestAddress base;
    std::uint64_t align;
    std::uint64_t size;
  };
  const std::uint64_t size = options.size;
  for (const Part& part :
       {Part{options.descriptors, 16, size * sizeof(SplitDescriptor)},
        Part{options.available, 2, ring_offset + size * sizeof(Le16) + sizeof(Le16)},
        Part{options.used, 4, ring_offset + size * sizeof(UsedElement) + sizeof(Le16)}}) {
    if (!part.base.is_aligned(part.align)) {
      return fail({.code = Errc::misaligned,
                   .operation = operation,
                   .first = Operand::address(part.base.value()),
                   .second = Operand::size(part.align)});
    }
    if (!part.base.checked_add(part.size - 1)) {
      return fail({.code = Errc::overflow,
                   .operation = operation,
                   .first = Operand::address(part.base.value()),
                   .second = Operand::size(part.size)});
    }
  }
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
      VMSPACE_TRY(count_available(pop_operation, memory, std::memory_order_acquire));
  if (count == 0) return false;
  const std::uint64_t slot = state_.next_available % options_.size;
  const Le16 head = VMSPACE_TRY_IN(
      pop_operation, memory.read<Le16>(available_at(ring_offset + slot * sizeof(Le16))));
  chain.clear();
  chain.head_ = head;
  VMSPACE_TRY(walk(memory, chain));
  ++state_.next_available;
  return true;
}

Result<void> SplitQueue::walk(const GuestMemory& memory, DescriptorChain& chain) const {
  Table table{.base = options_.descriptors, .count = options_.size};
  bool within_table = false;
  bool writing = false;
  std::uint64_t bytes = 0;
  std::uint32_t index = chain.head_;
  // One that refers to a table is not counted. It is followed at most once, so that the limit on
  // steps is a limit on loops.
  for (std::uint32_t left = options_.max_chain; left != 0;) {
    const SplitDescriptor descriptor = VMSPACE_TRY(table.read(memory, index));
    if ((descriptor.flags & SplitDescriptor::indirect) != 0) {
      const char* const rule = broken_rule(descriptor, within_table, options_.indirect);
      if (rule != nullptr) {
        return fail({.code = Errc::corrupt,
                     .operation = pop_operation,
                     .first = Operand::number(index),
                     .reason = rule});
      }
      table = {.base = GuestAddress(descriptor.address),
               .count = descriptor.length / static_cast<std::uint32_t>(sizeof(SplitDescriptor))};
      within_table = true;
      index = 0;
      continue;
    }
    const bool writes = (descriptor.flags & SplitDescriptor::writable) != 0;
    if (writing && !writes) {
      return fail({.code = Errc::corrupt,
                   .operation = pop_operation,
                   .first = Operand::number(index),
                   .reason = "buffers to read must come before those to write"});  // 2.7.4.2
    }
    writing = writes;
    bytes += descriptor.length;  // can't wrap: at most 2^16 numbers of 32 bits
    if (bytes > std::uint64_t{1} << 32) {
      return fail({.code = Errc::corrupt,
                   .operation = pop_operation,
                   .first = Operand::size(bytes),
                   .reason = "a chain must not be longer than 2^32 bytes"});  // 2.7.5.2
    }
    if (descriptor.length != 0) {
      chain.ranges_.push_back({GuestAddress(descriptor.address), descriptor.length});
      if (!writes) ++chain.readable_;
    }
    if ((descriptor.flags & SplitDescriptor::has_next) == 0) return {};
    index = descriptor.next;
    --left;
  }
  return fail(broken(pop_operation, std::uint64_t{options_.max_chain} + 1, options_.max_chain,
                     "a chain in a loop, or with more descriptors than it may have"));
}

Result<void> SplitQueue::push_used(const GuestMemory& memory, std::uint16_t head,
                                   std::uint32_t written) {
  constexpr const char* operation = "SplitQueue::push_used";
  if (in_flight() == 0) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = Operand::number(head),
                 .reason = "no request is taken"});
  }
  if (head >= options_.size) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = Operand::number(head),
                 .second = Operand::range(0, std::uint64_t{options_.size} - 1)});
  }
  const std::uint64_t slot = state_.next_used % options_.size;
  VMSPACE_TRY_IN(operation, memory.write(used_at(ring_offset + slot * sizeof(UsedElement)),
                                         UsedElement{.head = head, .written = written}));
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
