// SPDX-License-Identifier: Apache-2.0
//
// Threads that acquire ranges of one pool, hand their leases to each other and return them.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/allocator/range_pool.hpp"

namespace vmspace::range_pool_stress_test {
namespace {

constexpr std::uint64_t numbers = 64;
constexpr int rounds = 5000;

unsigned thread_count() {
  return std::max(4U, std::thread::hardware_concurrency());
}

TEST(RangePoolStress, NoNumberIsHeldTwiceAndAllComeBack) {
  const RangePool pool = *RangePool::create("numbers", {Range::of(0, numbers - 1)});
  std::array<std::atomic<int>, numbers> held{};
  std::atomic<bool> sound{true};
  // Leases cross threads here: one puts its own in, and destroys what it finds.
  std::mutex mutex;
  std::optional<Lease> shelf;

  std::vector<std::thread> threads;
  for (unsigned t = 0; t < thread_count(); ++t) {
    threads.emplace_back([&, t, handle = pool] {
      const std::string tag = "a tag that needs memory of its own: " + std::to_string(t);
      for (int round = 0; round < rounds; ++round) {
        const std::uint64_t size = 1 + static_cast<std::uint64_t>(round) % 5;
        auto lease = handle.acquire({.size = size}, tag);
        if (!lease) continue;  // the others hold too much
        const auto [min, max] = lease->range();
        for (std::uint64_t n = min; n <= max; ++n)
          if (held[n].fetch_add(1) != 0) sound = false;
        if (lease->tag() != tag) sound = false;
        for (std::uint64_t n = min; n <= max; ++n)
          held[n].fetch_sub(1);
        if (round % 3 == 0) {
          const std::lock_guard lock(mutex);
          std::optional<Lease> found = std::exchange(shelf, std::nullopt);
          shelf.emplace(*std::move(lease));
        } else if (round % 3 == 1) {
          if (!lease->release()) sound = false;
        }
      }
    });
  }
  threads.emplace_back([&] {
    for (int round = 0; round < rounds / 10; ++round) {
      for (const RangeHolder& holder : pool.holders())
        if (!holder.tag.starts_with("a tag")) sound = false;
      if (!pool.check_invariants()) sound = false;
      const auto stats = pool.snapshot().stats();
      if (stats.free_amount + stats.taken_amount != numbers) sound = false;
    }
  });
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_TRUE(sound);
  shelf.reset();
  EXPECT_TRUE(pool.holders().empty());
  EXPECT_TRUE(pool.acquire({.size = numbers}, "all"));
}

TEST(RangePoolStress, TheLastLeaseOfAPoolWithoutHandlesMayGoOnAnyThread) {
  for (int round = 0; round < 500; ++round) {
    std::vector<std::thread> threads;
    {
      const RangePool pool = *RangePool::create("numbers", {Range::of(0, numbers - 1)});
      for (unsigned t = 0; t < 4; ++t) {
        threads.emplace_back([lease = *pool.acquire({.size = 2}, "thread")]() mutable {
          EXPECT_EQ(lease.tag(), "thread");
          if (lease.range().min() % 4 == 0) {
            EXPECT_TRUE(lease.release());
          }
        });
      }
    }
    for (std::thread& thread : threads)
      thread.join();
  }
}

}  // namespace
}  // namespace vmspace::range_pool_stress_test
