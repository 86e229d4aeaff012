// SPDX-License-Identifier: Apache-2.0

#include "vmspace/virtio/packed_queue.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <utility>

#include "vmspace/base/try.hpp"

#include "os/full_fence.hpp"
#include "virtio/chain_builder.hpp"

namespace vmspace {

using detail::broken;
using detail::broken_at;
using detail::max_queue_size;

namespace {

constexpr const char* packed_pop_operation = "PackedQueue::pop";

// Positions: an entry of the ring, and in bit 15 the wrap counter of this lap.
constexpr std::uint16_t wrap_bit = 0x8000;

constexpr std::uint16_t entry_of(std::uint16_t position) noexcept {
  return position & static_cast<std::uint16_t>(~wrap_bit);
}

constexpr bool wrap_of(std::uint16_t position) noexcept {
  return (position & wrap_bit) != 0;
}

/// The position `entries` behind, up to a lap.
constexpr std::uint16_t advanced(std::uint16_t position, std::uint32_t entries,
                                 std::uint16_t size) noexcept {
  const std::uint32_t entry = entry_of(position) + entries;
  const std::uint32_t wrap = position & wrap_bit;
  if (entry < size) return static_cast<std::uint16_t>(wrap | entry);
  return static_cast<std::uint16_t>((wrap ^ wrap_bit) | (entry - size));
}

/// The entries from one position to another, less than two laps: the counter tells a lap from the next.
constexpr std::uint32_t distance(std::uint16_t from, std::uint16_t to,
                                 std::uint16_t size) noexcept {
  const std::int32_t laps = wrap_of(from) == wrap_of(to) ? 0 : size;
  const std::int32_t entries = entry_of(to) - entry_of(from) + laps;
  return static_cast<std::uint32_t>(entries < 0 ? entries + 2 * size : entries);
}

/// Section 2.8.1: available when the one flag is the driver's counter in this lap and the other is not.
constexpr bool is_available(std::uint16_t flags, std::uint16_t position) noexcept {
  constexpr std::uint16_t both = PackedDescriptor::available | PackedDescriptor::used;
  return (flags & both) ==
         (wrap_of(position) ? PackedDescriptor::available : PackedDescriptor::used);
}

/// The half of a descriptor with its flags, which is read and written in one access: so flags are
/// neither seen without the length and the ID that they go with, nor read twice.
struct Half {
  static constexpr std::uint64_t offset = 8;

  Le32 length;
  Le16 id;
  Le16 flags;
};
static_assert(sizeof(Half) == sizeof(std::uint64_t));

GuestAddress entry_at(const PackedQueueOptions& options, std::uint16_t position) noexcept {
  // make() has checked that none is past 2^64.
  return GuestAddress(options.descriptors.value() +
                      std::uint64_t{entry_of(position)} * sizeof(PackedDescriptor));
}

Result<Half> load_half(const char* operation, const GuestMemory& memory, GuestAddress entry) {
  // Acquire: what the driver wrote before it set the flags is seen (section 2.8.21.1).
  const auto half = VMSPACE_TRY_IN(
      operation, memory.load<std::uint64_t>(GuestAddress(entry.value() + Half::offset),
                                            std::memory_order_acquire));
  return std::bit_cast<Half>(half);
}

}  // namespace

Result<PackedQueue> PackedQueue::make(const PackedQueueOptions& options, PackedQueueState state) {
  constexpr const char* operation = "PackedQueue::make";
  if (options.size == 0 || options.size > max_queue_size) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::number(options.size),
                 .reason = "the size of a packed queue must be 1 to 32768"});
  }
  VMSPACE_TRY(detail::check_part(operation, options.descriptors, 16,
                                 options.size * std::uint64_t{sizeof(PackedDescriptor)}));
  VMSPACE_TRY(detail::check_part(operation, options.driver_event, 4, sizeof(PackedEvent)));
  VMSPACE_TRY(detail::check_part(operation, options.device_event, 4, sizeof(PackedEvent)));
  for (const std::uint16_t position : {state.next_available, state.next_used}) {
    if (entry_of(position) >= options.size) {
      return fail({.code = Errc::invalid_argument,
                   .operation = operation,
                   .first = Operand::number(entry_of(position)),
                   .second = Operand::number(options.size),
                   .reason = "a position must lie within the ring"});
    }
  }
  PackedQueue queue(options, state);
  if (queue.options_.max_chain == 0) queue.options_.max_chain = options.size;
  if (queue.in_flight() > options.size) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = Operand::number(queue.in_flight()),
                 .second = Operand::number(options.size),
                 .reason = "more entries are taken than the queue has"});
  }
  return queue;
}

std::uint16_t PackedQueue::in_flight() const noexcept {
  return static_cast<std::uint16_t>(
      distance(state_.next_used, state_.next_available, options_.size));
}

Result<bool> PackedQueue::pop(const GuestMemory& memory, DescriptorChain& chain) {
  const GuestAddress at = entry_at(options_, state_.next_available);
  const Half half = VMSPACE_TRY(load_half(packed_pop_operation, memory, at));
  if (!is_available(half.flags, state_.next_available)) return false;
  const Le64 address = VMSPACE_TRY_IN(packed_pop_operation, memory.read<Le64>(at));
  const PackedDescriptor first{
      .address = address, .length = half.length, .id = half.id, .flags = half.flags};
  if ((first.flags & PackedDescriptor::indirect) != 0) {
    VMSPACE_TRY(walk_table(memory, first, chain));
  } else {
    VMSPACE_TRY(walk(memory, first, chain));
  }
  state_.next_available = advanced(state_.next_available, chain.id().entries, options_.size);
  return true;
}

Result<void> PackedQueue::walk(const GuestMemory& memory, PackedDescriptor descriptor,
                               DescriptorChain& chain) const {
  detail::ChainBuilder builder(packed_pop_operation, chain, options_.max_chain);
  // The rest of the ring is taken: what lies there was read already.
  const std::uint32_t free = std::uint32_t{options_.size} - in_flight();
  std::uint16_t position = state_.next_available;
  std::uint16_t entries = 1;
  for (;; ++entries) {
    if (entries > free) {
      return fail(broken(packed_pop_operation, std::uint64_t{entries} + in_flight(), options_.size,
                         "more descriptors are available than the queue has entries"));
    }
    VMSPACE_TRY(builder.add(entry_of(position), descriptor));
    if ((descriptor.flags & PackedDescriptor::has_next) == 0) break;
    position = advanced(position, 1, options_.size);
    descriptor = VMSPACE_TRY_IN(packed_pop_operation,
                                memory.read<PackedDescriptor>(entry_at(options_, position)));
    // All of them were made available before the first (section 2.8.6).
    if (!is_available(descriptor.flags, position)) {
      return fail(broken_at(packed_pop_operation, entry_of(position),
                            "a chain must not lead to a descriptor that is not available"));
    }
    if ((descriptor.flags & PackedDescriptor::indirect) != 0) {
      return fail(broken_at(packed_pop_operation, entry_of(position),
                            "an indirect descriptor must be the only one of its chain"));
    }
  }
  builder.finish({.number = descriptor.id, .entries = entries});  // the last one's ID
  return {};
}

Result<void> PackedQueue::walk_table(const GuestMemory& memory, const PackedDescriptor& descriptor,
                                     DescriptorChain& chain) const {
  detail::ChainBuilder builder(packed_pop_operation, chain, options_.max_chain);
  const std::uint16_t entry = entry_of(state_.next_available);
  if (in_flight() == options_.size) {
    return fail(broken(packed_pop_operation, std::uint64_t{options_.size} + 1, options_.size,
                       "more descriptors are available than the queue has entries"));
  }
  const auto table = VMSPACE_TRY(builder.table(entry, descriptor, options_.indirect));
  if (table.count > options_.max_chain) {
    return fail(broken_at(packed_pop_operation, entry,
                          "an indirect table with more descriptors than a chain may have"));
  }
  // All of the table, one after another. Of their flags only the direction counts, the others are to
  // be ignored (section 2.8.7): so there are no tables within tables.
  for (std::uint32_t i = 0; i < table.count; ++i) {
    const PackedDescriptor next = VMSPACE_TRY(table.read(packed_pop_operation, memory, i));
    VMSPACE_TRY(builder.add(i, next));
  }
  builder.finish({.number = descriptor.id, .entries = 1});
  return {};
}

Result<void> PackedQueue::push_used(const GuestMemory& memory, RequestId id,
                                    std::uint32_t written) {
  constexpr const char* operation = "PackedQueue::push_used";
  if (id.entries == 0 || id.entries > in_flight()) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = Operand::number(id.entries),
                 .second = Operand::number(in_flight()),
                 .reason = "a request must have entries, no more than are taken"});
  }
  std::uint16_t flags = written != 0 ? PackedDescriptor::writable : 0;
  if (wrap_of(state_.next_used)) flags |= PackedDescriptor::available | PackedDescriptor::used;
  const GuestAddress at = entry_at(options_, state_.next_used);
  // Release: the driver that sees the flags sees the buffers.
  VMSPACE_TRY_IN(operation, memory.store(GuestAddress(at.value() + Half::offset),
                                         std::bit_cast<std::uint64_t>(Half{
                                             .length = written, .id = id.number, .flags = flags}),
                                         std::memory_order_release));
  // The driver knows how many entries the request had, and looks behind them for the next.
  state_.next_used = advanced(state_.next_used, id.entries, options_.size);
  if (unasked_) *unasked_ = std::min<std::uint32_t>(*unasked_ + id.entries, 2U * options_.size);
  return {};
}

Result<bool> PackedQueue::needs_notification(const GuestMemory& memory) {
  // The driver writes its wish and then looks at the flags; they must be there before its wish is
  // read, or both miss each other. The descriptor can't be stored again for that, as SplitQueue does
  // with its index: the driver may have put another one there.
  detail::full_fence();
  const auto word =
      VMSPACE_TRY_IN("PackedQueue::needs_notification",
                     memory.load<std::uint32_t>(options_.driver_event, std::memory_order_relaxed));
  const auto event = std::bit_cast<PackedEvent>(word);
  const auto unasked = std::exchange(unasked_, 0U);
  if (unasked == 0U) return false;
  switch (event.flags & 3) {
    case PackedEvent::disable: return false;
    case PackedEvent::descriptor: break;
    default: return true;
  }
  const std::uint16_t position = event.position;
  // One notification too many does no harm, where the driver may not name a descriptor, or names none.
  if (!unasked || !options_.event_index || entry_of(position) >= options_.size) return true;
  // Whether that entry is among those since: counted back from the last one.
  const std::uint32_t back = distance(position, state_.next_used, options_.size);
  return *unasked == 2U * options_.size || (back != 0 && back <= *unasked);
}

Result<void> PackedQueue::disable_notifications(const GuestMemory& memory) {
  constexpr PackedEvent event{.position = 0, .flags = PackedEvent::disable};
  VMSPACE_TRY_IN("PackedQueue::disable_notifications",
                 memory.store(options_.device_event, std::bit_cast<std::uint32_t>(event),
                              std::memory_order_relaxed));
  return {};
}

Result<bool> PackedQueue::enable_notifications(const GuestMemory& memory) {
  constexpr const char* operation = "PackedQueue::enable_notifications";
  PackedEvent event{.position = 0, .flags = PackedEvent::enable};
  if (options_.event_index) {
    event = {.position = state_.next_available, .flags = PackedEvent::descriptor};
  }
  VMSPACE_TRY_IN(operation, memory.store(options_.device_event, std::bit_cast<std::uint32_t>(event),
                                         std::memory_order_relaxed));
  // The driver sets flags and then looks at the wish: see needs_notification().
  detail::full_fence();
  const Half half =
      VMSPACE_TRY(load_half(operation, memory, entry_at(options_, state_.next_available)));
  return is_available(half.flags, state_.next_available);
}

}  // namespace vmspace
