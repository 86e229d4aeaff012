// SPDX-License-Identifier: Apache-2.0
//
// Guest memory that several threads use at once, and a guest that changes what a device is reading.

#include <array>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/guest_ptr.hpp"
#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"
#include "memory/virtqueue.hpp"
#include "os/system_calls.hpp"

namespace vmspace::guest_memory_stress_test {
namespace {

using test::contents;
using test::guest;
using test::page;
using test::RingDescriptor;

class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t below(std::uint64_t limit) {
    state_ = state_ * 6364136223846793005 + 1442695040888963407;
    return (state_ >> 33) % limit;
  }

 private:
  std::uint64_t state_;
};

constexpr std::uint64_t base = 0x10'0000;
constexpr std::uint64_t pages = 130;  // three words of a bitmap
constexpr std::uint64_t size = pages * page;
constexpr int rounds = 30;
constexpr int writes = 300;

/// Writers write, a harvester copies what is dirty; when both have stopped, a last harvest must
/// make the copy complete. Tracking begins while the writers run.
void expect_no_write_is_missed() {
  const GuestMemory memory = guest({{base, size / 2}, {base + size / 2, size / 2}});
  std::vector<std::byte> replica(size);
  constexpr int writers = 2;
  std::barrier round(writers + 1);
  std::atomic<int> running{0};

  const auto write = [&](std::uint64_t seed) {
    Random random(seed);
    for (int r = 0; r < rounds; ++r) {
      round.arrive_and_wait();
      for (int i = 0; i < writes; ++i) {
        // Few pages, so that bits are cleared and set again under each other's hands.
        const GuestAddress address(base + random.below(pages / 8) * 8 * page +
                                   random.below(page / 8) * 8);
        const std::uint64_t value = random.below(~std::uint64_t{0});
        bool ok = false;
        switch (random.below(4)) {
          case 0: ok = memory.write(address, value).has_value(); break;
          case 1: ok = memory.store(address, value, std::memory_order_release).has_value(); break;
          case 2: ok = memory.fetch_or(address, value).has_value(); break;
          case 3:
            ok = memory.write_slice(address, std::as_bytes(std::span(&value, 1))).has_value();
            break;
        }
        if (!ok) ADD_FAILURE() << "a write failed";
      }
      running.fetch_sub(1);
      round.arrive_and_wait();
    }
  };
  const auto copy = [&](const std::vector<GuestRange>& ranges) {
    for (const GuestRange& range : ranges) {
      const std::span to(replica.data() + (range.base.value() - base), range.size);
      ASSERT_THAT(memory.read_slice(range.base, to), IsOk());
    }
  };

  std::vector<std::thread> threads;
  for (std::uint64_t i = 0; i < writers; ++i)
    threads.emplace_back(write, i + 1);
  for (int r = 0; r < rounds; ++r) {
    running.store(writers);
    round.arrive_and_wait();
    if (r % 10 == 0) {
      disable_dirty_tracking(memory);
      VMSPACE_EXPECT_OK(enable_dirty_tracking(memory));
      copy({{GuestAddress(base), size}});
    }
    while (running.load() != 0) {
      const auto dirty = harvest_dirty(memory);
      VMSPACE_EXPECT_OK(dirty);
      if (dirty) copy(*dirty);
    }
    round.arrive_and_wait();
    const auto dirty = harvest_dirty(memory);
    VMSPACE_EXPECT_OK(dirty);
    if (dirty) copy(*dirty);
    EXPECT_TRUE(contents(memory, base, size) == replica) << "in round " << r;
  }
  for (std::thread& thread : threads)
    thread.join();
}

TEST(DirtyTrackingStress, NoWriteIsEverMissing) {
  expect_no_write_is_missed();
}

TEST(DirtyTrackingStress, NoWriteIsEverMissingWithoutMembarrier) {
  static detail::SystemCalls without = detail::real_system_calls;
  without.membarrier = [](int, unsigned) {
    errno = ENOSYS;
    return -1;
  };
  detail::current_system_calls.store(&without);
  expect_no_write_is_missed();
  detail::current_system_calls.store(&detail::real_system_calls);
}

TEST(GuestMemoryStress, AlignedIntegersAreNeverTorn) {
  const GuestMemory memory = guest({{base, page}});
  const GuestAddress index(base + 2);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    for (std::uint16_t value = 0; !stop.load(); value = static_cast<std::uint16_t>(~value)) {
      VMSPACE_EXPECT_OK(memory.store(index, value, std::memory_order_release));
    }
  });
  for (int i = 0; i < 20000; ++i) {
    const auto loaded = memory.load<std::uint16_t>(index, std::memory_order_acquire);
    const auto read = memory.read<std::uint16_t>(index);
    ASSERT_TRUE(loaded && read);
    ASSERT_TRUE(*loaded == 0 || *loaded == 0xffff) << *loaded;
    ASSERT_TRUE(*read == 0 || *read == 0xffff) << *read;
  }
  stop.store(true);
  other.join();
}

/// An integer of 8 bytes among others, as a packed structure has it at any address.
template <std::size_t before, std::size_t after>
struct [[gnu::packed]] Around {
  std::array<std::uint8_t, before> head;
  std::uint64_t integer;
  std::array<std::uint8_t, after> tail;
};

/// Reads and writes the object around an aligned integer, while another thread stores or loads it.
template <typename Object>
void expect_whole_integers(const GuestMemory& memory, GuestAddress integer) {
  const GuestAddress object(integer.value() - offsetof(Object, integer));
  const auto is_whole = [](std::uint64_t value) {
    return value == 0 || value == ~std::uint64_t{0};
  };
  ASSERT_THAT(memory.write(object, Object{}), IsOk());
  for (const bool reading : {true, false}) {
    std::atomic<bool> stop{false};
    std::barrier both(2);
    std::thread other([&] {
      both.arrive_and_wait();
      for (std::uint64_t value = 0; !stop.load(std::memory_order_relaxed); value = ~value) {
        if (reading) {
          VMSPACE_EXPECT_OK(memory.store(integer, value, std::memory_order_relaxed));
        } else {
          Object written{};
          written.integer = value;
          VMSPACE_EXPECT_OK(memory.write(object, written));
        }
      }
    });
    both.arrive_and_wait();
    for (int i = 0; i < 100'000; ++i) {
      const std::uint64_t value =
          reading ? memory.read<Object>(object)->integer
                  : *memory.load<std::uint64_t>(integer, std::memory_order_relaxed);
      if (is_whole(value)) continue;
      ADD_FAILURE() << (reading ? "read " : "wrote ") << std::hex << value << " after " << i;
      break;
    }
    stop.store(true);
    other.join();
  }
}

TEST(GuestMemoryStress, AnAlignedIntegerIsNotTornWhereverItsObjectBegins) {
  const GuestMemory memory = guest({{base, page}, {base + page, page}});
  // At the begin of a cache line, where an access that is cut elsewhere is easily seen in parts.
  expect_whole_integers<Around<4, 1>>(memory, GuestAddress(base + 64));
  expect_whole_integers<Around<1, 3>>(memory, GuestAddress(base + 128));
  expect_whole_integers<Around<20, 20>>(memory, GuestAddress(base + 256));
  // Objects that begin in one region and end in the other.
  expect_whole_integers<Around<12, 1>>(memory, GuestAddress(base + page));
  expect_whole_integers<Around<4, 8>>(memory, GuestAddress(base + page - 8));
}

TEST(GuestMemoryStress, AHostileGuestNeitherLeadsADeviceOutOfBoundsNorHoldsItForEver) {
  constexpr std::uint16_t queue = 16;
  // The table is in the middle; behind the last page begins a guard.
  const GuestMemory memory = guest({{base, 4 * page}, {base + 8 * page, page}});
  const GuestPtr<RingDescriptor> table(memory, GuestAddress(base + page));
  std::atomic<bool> stop{false};
  std::thread hostile([&] {
    Random random(99);
    while (!stop.load()) {
      const auto slot = table.at(random.below(queue), queue);
      RingDescriptor descriptor;
      // Good ones and bad ones, a word at a time, as a guest would.
      const std::uint64_t places[] = {base, base + 4 * page - 8, base + 8 * page, 0,
                                      ~std::uint64_t{0} - 3};
      const std::uint32_t lengths[] = {0, 8, 64, 4096, 0xffff'ffff};
      descriptor.address = places[random.below(5)];
      descriptor.length = lengths[random.below(5)];
      descriptor.flags = static_cast<std::uint16_t>(random.below(4));
      descriptor.next = static_cast<std::uint16_t>(random.below(queue + 2));
      EXPECT_TRUE(slot && slot->write(descriptor));
    }
  });
  std::uint64_t whole = 0;
  std::uint64_t refused = 0;
  for (int i = 0; i < 5000 || whole == 0 || refused == 0; ++i) {
    const auto chain = test::walk(memory, table, queue, static_cast<std::uint16_t>(i % queue));
    if (chain) {
      ++whole;
      ASSERT_LE(chain->pieces, queue);
    } else {
      ++refused;
    }
  }
  stop.store(true);
  hostile.join();
  EXPECT_GT(whole, 0U);
  EXPECT_GT(refused, 0U);
}

}  // namespace
}  // namespace vmspace::guest_memory_stress_test
