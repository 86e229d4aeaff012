// SPDX-License-Identifier: Apache-2.0
//
// The driver's side of a split virtqueue, which writes what it is told to, right or wrong.

#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include <gtest/gtest.h>

#include "vmspace/virtio/split_queue.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::test {

struct Buffer {
  std::uint64_t address;
  std::uint32_t length;
  bool writable = false;
};

struct Used {
  std::uint32_t id;
  std::uint32_t length;

  friend bool operator==(const Used&, const Used&) = default;
};

/// Memory of 4 MiB at 1 MiB: a queue at its start, then whatever the driver puts there.
class Driver {
 public:
  using Queue = SplitQueue;
  static constexpr std::uint64_t base = 0x10'0000;
  static constexpr std::uint64_t memory_size = 0x40'0000;
  static constexpr std::uint64_t data = base + 0x18'0000;  ///< behind the largest queue

  explicit Driver(std::uint16_t size, bool indirect = false, bool event_index = false,
                  GuestMemory there = guest({{base, memory_size}}))
      : memory(std::move(there)),
        options{.size = size,
                .descriptors = at(base),
                .available = at(base + 0x8'0000),
                .used = at(base + 0x10'0000),
                .indirect = indirect,
                .event_index = event_index} {}

  [[nodiscard]] SplitQueue queue(SplitQueueState state = {}) const {
    auto made = SplitQueue::make(options, state);
    VMSPACE_EXPECT_OK(made);
    return *made;
  }

  void describe(std::uint16_t index, std::uint64_t address, std::uint32_t length,
                std::uint16_t flags = 0, std::uint16_t next = 0) const {
    describe_in(options.descriptors.value(), index, address, length, flags, next);
  }
  void describe_in(std::uint64_t table, std::uint32_t index, std::uint64_t address,
                   std::uint32_t length, std::uint16_t flags = 0, std::uint16_t next = 0) const {
    VMSPACE_EXPECT_OK(memory.write(
        at(table + std::uint64_t{index} * 16),
        SplitDescriptor{.address = address, .length = length, .flags = flags, .next = next}));
  }

  void set_available_index(std::uint16_t index) {
    available = index;
    VMSPACE_EXPECT_OK(
        memory.store(at(options.available.value() + 2), Le16(index), std::memory_order_release));
  }
  void offer(std::uint16_t head) {
    const std::uint64_t slot = available % options.size;
    VMSPACE_EXPECT_OK(memory.write(at(options.available.value() + 4 + 2 * slot), Le16(head)));
    set_available_index(static_cast<std::uint16_t>(available + 1));
  }

  /// A request of these buffers, in the descriptors from `head` on, which is its ID.
  void offer(std::span<const Buffer> buffers, std::uint16_t head = 0) {
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      const auto index = static_cast<std::uint16_t>(head + i);
      const bool last = i + 1 == buffers.size();
      describe(index, buffers[i].address, buffers[i].length,
               static_cast<std::uint16_t>((buffers[i].writable ? SplitDescriptor::writable : 0) |
                                          (last ? 0 : SplitDescriptor::has_next)),
               static_cast<std::uint16_t>(index + 1));
    }
    offer(head);
  }
  /// The next request that was given back, if there is one.
  std::optional<Used> take_used() {
    if (used_index() == taken) return std::nullopt;
    const auto slot = static_cast<std::uint16_t>(taken++ % options.size);
    return Used{.id = used_head(slot), .length = used_length(slot)};
  }

  [[nodiscard]] std::uint16_t used_index() const {
    return *memory.load<Le16>(at(options.used.value() + 2), std::memory_order_acquire);
  }
  [[nodiscard]] std::uint32_t used_head(std::uint16_t slot) const {
    return *memory.read<Le32>(at(options.used.value() + 4 + std::uint64_t{8} * slot));
  }
  [[nodiscard]] std::uint32_t used_length(std::uint16_t slot) const {
    return *memory.read<Le32>(at(options.used.value() + 8 + std::uint64_t{8} * slot));
  }
  void set_used_event(std::uint16_t index) const {
    VMSPACE_EXPECT_OK(memory.write(
        at(options.available.value() + 4 + std::uint64_t{2} * options.size), Le16(index)));
  }
  [[nodiscard]] std::uint16_t available_event() const {
    return *memory.read<Le16>(at(options.used.value() + 4 + std::uint64_t{8} * options.size));
  }
  void set_available_flags(std::uint16_t flags) const {
    VMSPACE_EXPECT_OK(memory.write(options.available, Le16(flags)));
  }
  [[nodiscard]] std::uint16_t used_flags() const { return *memory.read<Le16>(options.used); }

  GuestMemory memory;
  SplitQueueOptions options;
  std::uint16_t available = 0;
  std::uint16_t taken = 0;
};

}  // namespace vmspace::test
