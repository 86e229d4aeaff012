// SPDX-License-Identifier: Apache-2.0
//
// The driver's side of a packed virtqueue, which writes what it is told to, right or wrong.

#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <utility>

#include <gtest/gtest.h>

#include "vmspace/virtio/packed_queue.hpp"

#include "memory/guest_support.hpp"
#include "virtio/driver.hpp"

namespace vmspace::test {

/// Memory as that of Driver, with a packed queue at its start.
class PackedDriver {
 public:
  using Queue = PackedQueue;
  static constexpr std::uint64_t data = Driver::data;

  explicit PackedDriver(std::uint16_t size, bool indirect = false, bool event_index = false,
                        GuestMemory there = guest({{Driver::base, Driver::memory_size}}))
      : memory(std::move(there)),
        options{.size = size,
                .descriptors = at(Driver::base),
                .driver_event = at(Driver::base + 0x8'0000),
                .device_event = at(Driver::base + 0x10'0000),
                .indirect = indirect,
                .event_index = event_index} {}

  [[nodiscard]] PackedQueue queue(PackedQueueState state = {}) const {
    auto made = PackedQueue::make(options, state);
    VMSPACE_EXPECT_OK(made);
    return *made;
  }

  [[nodiscard]] GuestAddress entry(std::uint16_t position, std::uint64_t offset = 0) const {
    return at(options.descriptors.value() + (position & 0x7fffU) * std::uint64_t{16} + offset);
  }
  [[nodiscard]] std::uint16_t after(std::uint16_t position, unsigned entries = 1) const {
    const unsigned entry = (position & 0x7fffU) + entries;
    const unsigned wrap = position & 0x8000U;
    return static_cast<std::uint16_t>(
        entry < options.size ? wrap | entry : (wrap ^ 0x8000U) | (entry - options.size));
  }
  /// The flags that make a descriptor available in this lap.
  static std::uint16_t ours(std::uint16_t position) {
    return (position & 0x8000) != 0 ? PackedDescriptor::available : PackedDescriptor::used;
  }

  /// A descriptor at a position, with its flags last; `flags` are beside those of its lap.
  void describe(std::uint16_t position, std::uint64_t address, std::uint32_t length,
                std::uint16_t flags = 0, std::uint16_t id = 0) const {
    VMSPACE_EXPECT_OK(memory.write(entry(position), Le64(address)));
    set_half(position, length, static_cast<std::uint16_t>(flags | ours(position)), id);
  }
  void set_half(std::uint16_t position, std::uint32_t length, std::uint16_t flags,
                std::uint16_t id) const {
    const auto half = std::uint64_t{length} | std::uint64_t{id} << 32 | std::uint64_t{flags} << 48;
    VMSPACE_EXPECT_OK(memory.store(entry(position, 8), Le64(half), std::memory_order_release));
  }
  void describe_in(std::uint64_t table, std::uint32_t index, std::uint64_t address,
                   std::uint32_t length, std::uint16_t flags = 0) const {
    VMSPACE_EXPECT_OK(memory.write(
        at(table + std::uint64_t{index} * 16),
        PackedDescriptor{.address = address, .length = length, .id = 0xffff, .flags = flags}));
  }

  /// A request of these buffers with this ID, the first of its descriptors last.
  void offer(std::span<const Buffer> buffers, std::uint16_t id = 0) {
    entries_of[id] = static_cast<std::uint16_t>(buffers.size());
    for (std::size_t i = buffers.size(); i-- != 0;) {
      const bool last = i + 1 == buffers.size();
      describe(after(available, static_cast<unsigned>(i)), buffers[i].address, buffers[i].length,
               static_cast<std::uint16_t>((buffers[i].writable ? PackedDescriptor::writable : 0) |
                                          (last ? 0 : PackedDescriptor::has_next)),
               last ? id : std::uint16_t{0xffff});
    }
    available = after(available, static_cast<unsigned>(buffers.size()));
  }
  /// The next request that was given back, if there is one.
  std::optional<Used> take_used() {
    const std::uint64_t half = *memory.load<Le64>(entry(next_used, 8), std::memory_order_acquire);
    const auto flags = static_cast<std::uint16_t>(half >> 48);
    constexpr std::uint16_t both = PackedDescriptor::available | PackedDescriptor::used;
    if ((flags & both) != ((next_used & 0x8000) != 0 ? both : 0)) return std::nullopt;
    const auto id = static_cast<std::uint16_t>(half >> 32);
    const bool written = (flags & PackedDescriptor::writable) != 0;
    next_used = after(next_used, entries_of.at(id));
    return Used{.id = id, .length = written ? static_cast<std::uint32_t>(half) : 0};
  }

  void set_event(std::uint16_t flags, std::uint16_t position = 0) const {
    VMSPACE_EXPECT_OK(memory.store(options.driver_event,
                                   Le32(position | std::uint32_t{flags} << 16),
                                   std::memory_order_seq_cst));
  }
  [[nodiscard]] PackedEvent device_event() const {
    return *memory.read<PackedEvent>(options.device_event);
  }

  GuestMemory memory;
  PackedQueueOptions options;
  std::uint16_t available = 0x8000;  ///< where the next request goes
  std::uint16_t next_used = 0x8000;
  std::map<std::uint16_t, std::uint16_t> entries_of;
};

}  // namespace vmspace::test
