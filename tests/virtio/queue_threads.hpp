// SPDX-License-Identifier: Apache-2.0
//
// A driver and a device on threads of their own, which notify each other only when they are asked to.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <semaphore>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/memory/guest_cursor.hpp"

#include "os/full_fence.hpp"
#include "virtio/driver.hpp"
#include "virtio/packed_driver.hpp"

namespace vmspace::test {

inline constexpr std::uint16_t queue_ids = 8;
inline constexpr unsigned most_buffers = 4;

// Whether a device wants to be told of the request that was offered last.
inline bool wants_notification(const Driver& driver, std::uint16_t before) {
  detail::full_fence();
  if (driver.options.event_index) return driver.available_event() == before;
  return (driver.used_flags() & 1) == 0;
}
inline bool wants_notification(const PackedDriver& driver, std::uint16_t before) {
  detail::full_fence();
  const std::uint32_t word =
      *driver.memory.load<Le32>(driver.options.device_event, std::memory_order_relaxed);
  if (word >> 16 != PackedEvent::descriptor) return word >> 16 == PackedEvent::enable;
  for (; before != driver.available; before = driver.after(before)) {
    if (before == (word & 0xffff)) return true;
  }
  return false;
}

// Whether the driver is to be told of the next request that is given back.
inline void want_notification(const Driver& driver, bool wanted) {
  if (!driver.options.event_index) {
    driver.set_available_flags(wanted ? 0 : 1);
  } else if (wanted) {
    driver.set_used_event(driver.taken);
  }
  detail::full_fence();
}
inline void want_notification(const PackedDriver& driver, bool wanted) {
  if (!wanted) {
    driver.set_event(PackedEvent::disable);
  } else if (driver.options.event_index) {
    driver.set_event(PackedEvent::descriptor, driver.next_used);
  } else {
    driver.set_event(PackedEvent::enable);
  }
  detail::full_fence();
}

// The ID of a split queue's request is its first descriptor.
inline std::uint16_t ids_apart(const Driver&) {
  return most_buffers;
}
inline std::uint16_t ids_apart(const PackedDriver&) {
  return 1;
}

inline std::uint64_t answer(std::uint64_t question) {
  return 3 * question + 1;
}
inline std::uint64_t place(std::uint32_t id) {
  return Driver::data + id * std::uint64_t{64};
}

// Takes what is there, and gives it back in any order.
template <typename Queue>
bool serve(const GuestMemory& memory, Queue& queue, DescriptorChain& chain,
           std::minstd_rand& random) {
  std::vector<RequestId> taken;
  while (*queue.pop(memory, chain)) {
    auto in = GuestReader::make(memory, chain.readable());
    auto out = GuestWriter::make(memory, chain.writable());
    VMSPACE_EXPECT_OK(out->write(answer(*in->template read<std::uint64_t>())));
    taken.push_back(chain.id());
  }
  std::shuffle(taken.begin(), taken.end(), random);
  for (const RequestId& id : taken)
    VMSPACE_EXPECT_OK(queue.push_used(memory, id, 8));
  return *queue.needs_notification(memory);
}

/// Has a device on a thread of its own serve so many requests of the driver, and checks each answer.
template <typename AnyDriver>
void serve_requests(AnyDriver driver, std::uint64_t requests) {
  std::counting_semaphore<> kick(0);
  std::counting_semaphore<> interrupt(0);
  std::atomic<bool> done = false;
  const GuestMemory& memory = driver.memory;
  std::thread device([&, queue = driver.queue()]() mutable {
    std::minstd_rand random(1);
    DescriptorChain chain;
    while (!done) {
      EXPECT_THAT(queue.disable_notifications(memory), IsOk());
      if (serve(memory, queue, chain, random)) interrupt.release();
      if (!*queue.enable_notifications(memory)) kick.acquire();
    }
  });
  // Also when a check has failed.
  const auto end = [&](std::thread* thread) {
    done = true;
    kick.release();
    thread->join();
  };
  const std::unique_ptr<std::thread, decltype(end)> ended(&device, end);
  std::minstd_rand random(2);
  std::vector<std::uint16_t> free_ids = {0, 1, 2, 3, 4, 5, 6, 7};
  std::map<std::uint32_t, unsigned> buffers_of;
  unsigned free = driver.options.size;
  std::uint64_t offered = 0;
  std::uint64_t answered = 0;
  while (answered != requests) {
    while (offered != requests && !free_ids.empty() && free >= most_buffers) {
      const std::uint16_t id = free_ids.back();
      free_ids.pop_back();
      EXPECT_THAT(memory.write(at(place(id)), offered), IsOk());
      EXPECT_THAT(memory.write(at(place(id) + 8), std::uint64_t{0}), IsOk());
      // The question in one to three buffers, and the answer.
      const auto pieces = static_cast<std::uint32_t>(1 + random() % (most_buffers - 1));
      std::vector<Buffer> buffers;
      for (std::uint32_t i = 0; i + 1 < pieces; ++i)
        buffers.push_back({place(id) + i, 1});
      buffers.push_back({place(id) + pieces - 1, 9 - pieces});
      buffers.push_back({place(id) + 8, 8, true});
      buffers_of[id] = pieces + 1;
      free -= pieces + 1;
      const std::uint16_t before = driver.available;
      driver.offer(buffers, static_cast<std::uint16_t>(id * ids_apart(driver)));
      ++offered;
      if (wants_notification(driver, before)) kick.release();
    }
    auto used = driver.take_used();
    if (!used) {
      want_notification(driver, true);
      used = driver.take_used();
      if (!used) {
        interrupt.acquire();
        continue;
      }
    }
    want_notification(driver, false);
    for (; used; used = driver.take_used()) {
      const auto id = static_cast<std::uint16_t>(used->id / ids_apart(driver));
      ASSERT_EQ(used->length, 8U);
      ASSERT_EQ(*memory.template read<std::uint64_t>(at(place(id) + 8)),
                answer(*memory.template read<std::uint64_t>(at(place(id)))));
      free += buffers_of.at(id);
      free_ids.push_back(id);
      ++answered;
    }
  }
}

}  // namespace vmspace::test
