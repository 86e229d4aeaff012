// SPDX-License-Identifier: Apache-2.0
//
// Writers and readers of one published value, on more threads than there are cores.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/published.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::published_stress_test {
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
    VMSPACE_EXPECT_OK(pair.wait_released(0s));
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
    ASSERT_THAT(number.update([&](int& draft) -> Result<void> {
      draft = i;
      return {};
    }),
                IsOk());
    const auto released = number.wait_released(10min);
    ASSERT_THAT(released, IsOk());
  }
  done = true;
  vcpu.join();
}

Result<void> increment(const Published<std::uint64_t>& number) {
  return number.update([](std::uint64_t& draft) -> Result<void> {
    ++draft;
    return {};
  });
}

// What a thread does that keeps a cache of its own beside the value: look at the generation, and ask
// again only when it has changed. A value older than the generation would be kept for ever.
TEST(PublishedStress, WhoSeesAGenerationGetsAValueAtLeastAsNew) {
  constexpr std::uint64_t rounds = 5'000;
  const Published<std::uint64_t> number{1};  // the value is its own generation
  std::atomic<std::uint64_t> seen{1};
  std::uint64_t too_old = 0;
  std::thread cache([&] {
    auto reader = number.reader();
    unsigned spins = 0;
    for (std::uint64_t generation = 1; generation <= rounds;) {
      const std::uint64_t now = number.generation();
      if (now == generation) {
        if (++spins % (1U << 15) == 0) std::this_thread::yield();
        continue;
      }
      generation = now;
      if (reader.current() < generation) ++too_old;
      seen = generation;
    }
  });
  for (std::uint64_t i = 1; i <= rounds; ++i) {
    EXPECT_TRUE(increment(number));
    while (seen <= i)
      std::this_thread::yield();
  }
  cache.join();
  EXPECT_EQ(too_old, 0U);
}

// A reader that was parked, and comes back while the writer still takes the old value away from
// others: it holds that value, and must see that it is the old one.
TEST(PublishedStress, AParkedReaderThatComesBackGetsAValueAsNewAsTheGeneration) {
  constexpr std::uint64_t rounds = 3'000;
  constexpr int others = 1'000;  // so that the writer is at work for a while after it has published
  const Published<std::uint64_t> number{1};
  std::vector<Published<std::uint64_t>::Reader> parked;
  for (int i = 0; i < others; ++i)
    parked.push_back(number.reader());
  std::atomic<std::uint64_t> ready{0};
  std::uint64_t too_old = 0;
  std::thread cache([&] {
    auto reader = number.reader();
    for (std::uint64_t generation = 1; generation <= rounds; ++generation) {
      static_cast<void>(reader.current());
      reader.park();
      ready = generation;
      for (unsigned spins = 0; number.generation() == generation;) {
        if (++spins % (1U << 15) == 0) std::this_thread::yield();
      }
      if (reader.current() <= generation) ++too_old;
    }
  });
  for (std::uint64_t i = 1; i <= rounds; ++i) {
    for (auto& reader : parked) {
      static_cast<void>(reader.current());
      reader.park();
    }
    while (ready < i)
      std::this_thread::yield();
    EXPECT_TRUE(increment(number));
  }
  cache.join();
  EXPECT_EQ(too_old, 0U);
}

TEST(PublishedStress, WaitReleasedEndsBesideBusyWritersAndReaders) {
  constexpr int rounds = 200;
  const Published<std::uint64_t> number{1};
  std::atomic<bool> done{false};
  std::atomic<bool> sound{true};
  std::vector<std::thread> threads;
  for (int w = 0; w < writers; ++w) {
    threads.emplace_back([&] {
      while (!done) {
        if (!increment(number)) sound = false;
      }
    });
  }
  threads.emplace_back([&] {
    auto reader = number.reader();
    while (!done)
      static_cast<void>(reader.current());
  });
  for (int i = 0; i < rounds; ++i) {
    const auto released = number.wait_released(10min);
    VMSPACE_EXPECT_OK(released);
  }
  done = true;
  for (auto& thread : threads)
    thread.join();
  EXPECT_TRUE(sound);
}

}  // namespace
}  // namespace vmspace::published_stress_test
