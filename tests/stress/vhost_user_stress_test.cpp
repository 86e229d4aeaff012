// SPDX-License-Identifier: Apache-2.0
//
// Device threads at work while a front-end adds and removes memory, and starts and ends logs: what
// was acknowledged is not touched any more.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmm/vhost_user_front_support.hpp"

namespace vmspace::vhost_user_stress_test {
namespace {

using namespace test;

constexpr std::uint64_t low = 0;
constexpr std::uint64_t high = 1_MiB;
constexpr int rounds = 500;

/// Which memory a device thread uses now, for the front-end to look at after an acknowledgement.
struct Use {
  std::atomic<bool> of_high = false;
  std::atomic<std::uint64_t> of_log = 0;  ///< the log's size
};

class DeviceThreads {
 public:
  explicit DeviceThreads(const VhostUserBackendMemory& memory) {
    for (Use& use : uses_)
      threads_.emplace_back([this, &memory, &use] { run(memory, use); });
  }
  DeviceThreads(const DeviceThreads&) = delete;
  DeviceThreads& operator=(const DeviceThreads&) = delete;
  ~DeviceThreads() {
    stop_ = true;
    for (std::thread& thread : threads_)
      thread.join();
  }

  [[nodiscard]] bool use_high() const {
    return std::ranges::any_of(uses_, [](const Use& use) { return use.of_high.load(); });
  }
  [[nodiscard]] bool use_log(std::uint64_t size) const {
    return std::ranges::any_of(uses_, [=](const Use& use) { return use.of_log.load() == size; });
  }
  [[nodiscard]] std::uint64_t writes() const { return writes_; }

 private:
  void run(const VhostUserBackendMemory& memory, Use& use) {
    auto reader = memory.map().reader();
    for (std::uint64_t turn = 0; !stop_; ++turn) {
      const VhostUserMap& now = reader.current();
      const GuestRange where{.base = GuestAddress(high + turn % 16 * 4_KiB), .size = 8};
      if (now.memory.contains(where, Access::write)) {
        use.of_high = true;
        EXPECT_TRUE(now.memory.write(where.base, turn));
        use.of_log = now.log.size();
        EXPECT_TRUE(now.log.mark(where));
        ++writes_;
        use.of_log = 0;
        use.of_high = false;
      }
      // The value is let go of at once, or kept until the next turn, or a view outlives it.
      if (turn % 3 == 0) {
        reader.park();
        std::this_thread::yield();
      }
      if (turn % 3 == 1) {
        const auto view = reader.current().memory.view({.base = GuestAddress(low), .size = 8});
        reader.park();
        EXPECT_TRUE(!view || view->size() == 8);
      }
    }
  }

  std::atomic<bool> stop_ = false;
  std::atomic<std::uint64_t> writes_ = 0;
  std::array<Use, 3> uses_;
  std::vector<std::thread> threads_;
};

TEST(VhostUserStress, WhatIsAcknowledgedAsRemovedIsNotUsed) {
  for (const std::uint64_t features : {slots | acks | logs, acks | logs, logs}) {
    SocketPair pair;
    Backend device(std::move(pair.back), {.release_timeout = long_enough});
    auto memory = memory_for(pair, with(features));
    const MemorySection first(shared_ram(low, 64_KiB));
    const MemorySection second(shared_ram(high, 64_KiB));
    const SharedLog log(8_KiB);
    VMSPACE_ASSERT_OK(memory->add(first));
    VMSPACE_ASSERT_OK(memory->commit());
    {
      const DeviceThreads threads(device.memory);
      for (int round = 0; round < rounds; ++round) {
        VMSPACE_ASSERT_OK(memory->add(second));
        VMSPACE_ASSERT_OK(memory->commit());
        const std::uint64_t before = threads.writes();
        const std::uint64_t size = round % 2 == 0 ? 4_KiB : 8_KiB;
        VMSPACE_ASSERT_OK(memory->share_log({.fd = log.file.value(), .size = size}));
        EXPECT_FALSE(threads.use_log(size == 4_KiB ? 8_KiB : 4_KiB));
        while (threads.writes() == before)
          std::this_thread::yield();
        VMSPACE_ASSERT_OK(memory->remove(second));
        VMSPACE_ASSERT_OK(memory->commit());
        EXPECT_FALSE(threads.use_high());
      }
    }
    memory.reset();
    pair.front = {};
    device.join();
    EXPECT_TRUE(device.errors.empty());
    EXPECT_NE(log.bits[high / 4_KiB / 8], 0U);
  }
}

// The device writes, then marks; the front-end takes the marks, then reads. What it has read last is
// what was written last, in every page.
TEST(VhostUserStress, NoMarkOfADeviceIsLostWhileTheyAreTaken) {
  constexpr std::size_t count = 192;  // three words of bits, which all threads share
  std::array<std::atomic<std::uint64_t>, count> written{};
  std::array<std::uint64_t, count> copy{};
  const SharedLog shared(4_KiB);
  const auto log = VhostUserLog::map({.fd = shared.file.value(), .size = 4_KiB}).value();
  const auto take = [&] {
    // As two regions that meet within a word.
    for (const GuestRange half : {GuestRange{GuestAddress(0), 100 * 4_KiB},
                                  GuestRange{GuestAddress(100 * 4_KiB), (count - 100) * 4_KiB}}) {
      log.take(half, [&](const GuestRange& run) {
        const std::uint64_t first = run.base.value() / 4_KiB;
        for (std::uint64_t page = first; page < first + run.size / 4_KiB; ++page)
          copy[page] = written[page].load(std::memory_order_relaxed);
      });
    }
  };
  std::atomic<int> running{3};
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t round = 1; round <= 200; ++round) {
        for (std::size_t page = t; page < count; page += 3) {
          written[page].store(round, std::memory_order_relaxed);
          EXPECT_TRUE(log.mark({GuestAddress(page * 4_KiB + 8), 8}));
        }
      }
      --running;
    });
  }
  while (running > 0)
    take();
  for (std::thread& thread : threads)
    thread.join();
  take();
  for (std::size_t page = 0; page < count; ++page)
    EXPECT_EQ(copy[page], 200u) << page;
}

}  // namespace
}  // namespace vmspace::vhost_user_stress_test
