// SPDX-License-Identifier: Apache-2.0
//
// Writers and readers of one published value, on more threads than there are cores.

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/address_space/published.hpp"

namespace vmspace {
namespace {

using namespace std::chrono_literals;

constexpr int writers = 2;
constexpr int updates_per_writer = 1000;
constexpr int readers = 4;

/// Every published Pair has twice == 2 * number. A destroyed one has not, and destruction is no
/// atomic access: a reader that still looked would be a race for ThreadSanitizer.
struct Pair {
  explicit Pair(std::atomic<int>* a) : alive(a) { ++*alive; }
  Pair(const Pair& other) : number(other.number), twice(other.twice), alive(other.alive) {
    ++*alive;
  }
  Pair& operator=(const Pair&) = delete;
  ~Pair() {
    number = -1;
    twice = 0;
    --*alive;
  }

  int number = 0;
  int twice = 0;
  std::atomic<int>* alive;
};

TEST(PublishedStress, ReadersSeeOnlyWholeValuesInTheOrderOfTheirGenerations) {
  std::atomic<int> alive{0};
  std::atomic<int> writing{writers};
  std::atomic<bool> sound{true};
  {
    const Published<Pair> pair{Pair(&alive)};
    std::vector<std::thread> threads;
    for (int r = 0; r < readers; ++r) {
      threads.emplace_back([&, r] {
        auto reader = pair.reader();
        std::uint64_t generation = 0;
        int number = 0;
        const auto check = [&](const Pair& seen, std::uint64_t seen_generation) {
          // Each update adds one, so the number tells which generation a value belongs to.
          if (seen.twice != 2 * seen.number || seen.number < number ||
              seen_generation < generation ||
              seen_generation != static_cast<std::uint64_t>(seen.number) + 1) {
            sound = false;
          }
          number = seen.number;
          generation = seen_generation;
        };
        for (int round = 0; writing > 0 || round < 100; ++round) {
          const Pair& seen = reader.current();
          check(seen, reader.generation());
          if (r % 2 == 1 && round % 3 == 0) reader.park();
          if (r == 2 && round % 16 == 0) {
            const auto snapshot = pair.snapshot();
            check(*snapshot, static_cast<std::uint64_t>(snapshot->number) + 1);
          }
          if (r == 3 && round % 64 == 0) reader = pair.reader();
        }
      });
    }
    for (int w = 0; w < writers; ++w) {
      threads.emplace_back([&, w] {
        const Published<Pair> own = pair;
        for (int i = 0; i < updates_per_writer; ++i) {
          const auto updated = own.update([](Pair& draft) -> Result<void> {
            ++draft.number;
            draft.twice += 2;
            return {};
          });
          if (!updated) sound = false;
          if (w == 0 && i % 64 == 0 && !own.wait_released(10min)) sound = false;
        }
        --writing;
      });
    }
    for (auto& thread : threads)
      thread.join();
    EXPECT_TRUE(sound);
    EXPECT_EQ(pair.snapshot()->number, writers * updates_per_writer);
    EXPECT_EQ(pair.generation(), std::uint64_t{writers * updates_per_writer + 1});
    EXPECT_TRUE(pair.wait_released(0s));
    EXPECT_EQ(alive, 1);
  }
  EXPECT_EQ(alive, 0);
}

// Park and publication race for who gives the old value up: if both missed each other,
// wait_released would wait for ever.
TEST(PublishedStress, AValueIsReleasedHoweverParkAndPublicationInterleave) {
  std::atomic<bool> done{false};
  const Published<int> number{0};
  std::thread vcpu([&] {
    auto reader = number.reader();
    int last = 0;
    while (!done) {
      last = std::max(last, reader.current());
      reader.park();
    }
    EXPECT_GE(last, 0);
  });
  for (int i = 1; i <= 2000; ++i) {
    ASSERT_TRUE(number.update([&](int& draft) -> Result<void> {
      draft = i;
      return {};
    }));
    const auto released = number.wait_released(10min);
    ASSERT_TRUE(released) << released.error().message();
  }
  done = true;
  vcpu.join();
}

}  // namespace
}  // namespace vmspace
