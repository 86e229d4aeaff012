// SPDX-License-Identifier: Apache-2.0
//
// MemoryMapping::pin: pinned memory is not discarded, whoever asks, and all other memory is.

#include "vmspace/host/memory_pin.hpp"

#include <atomic>
#include <cstdint>
#include <limits>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"

namespace vmspace::memory_pin_test {
namespace {

using namespace test;
using testing::AllOf;
using testing::HasSubstr;

constexpr std::uint64_t page = 4_KiB;

MemoryMapping map_pages(std::uint64_t pages, MemorySource source = MemorySource::shmem) {
  return map_or_die({.source = source}, {.size = pages * page});
}

TEST(MemoryPin, KeepsAPartFromBeingDiscardedAndNamesIt) {
  for (const MemorySource source : {MemorySource::shmem, MemorySource::anon}) {
    const MemoryMapping mapping = map_pages(16, source);
    fill(mapping, 0xa5);
    {
      const auto pin = mapping.pin(4 * page, 4 * page, "dimm0");
      ASSERT_THAT(pin, IsOk());
      struct Part {
        std::uint64_t first, count;
      };
      for (const Part part : {Part{4, 4}, {0, 5}, {7, 2}, {5, 1}, {0, 16}}) {
        const auto refused = mapping.discard(part.first * page, part.count * page);
        ASSERT_THAT(refused, HasError(Errc::bad_state)) << part.first;
        EXPECT_THAT(refused.error().message(), AllOf(HasSubstr("MemoryMapping::discard: \"dimm0\""),
                                                     HasSubstr("mapped for DMA")));
      }
      EXPECT_TRUE(holds(mapping, 0, 16 * page, 0xa5));
      VMSPACE_EXPECT_OK(mapping.discard(0, 4 * page));
      VMSPACE_EXPECT_OK(mapping.discard(8 * page, 8 * page));
    }
    VMSPACE_EXPECT_OK(mapping.discard(0, 16 * page));
    EXPECT_TRUE(holds(mapping, 0, 16 * page, 0));
  }
}

TEST(MemoryPin, HoldsForEveryMappingOfTheFile) {
  const auto backing = Backing::open({.source = MemorySource::shmem}, 16 * page);
  const auto whole = MemoryMapping::map(*backing, {.size = 16 * page});
  const auto second_half = MemoryMapping::map(*backing, {.size = 8 * page, .offset = 8 * page});
  ASSERT_TRUE(whole && second_half);
  const auto pin = second_half->pin(0, page, "dimm0");
  ASSERT_THAT(pin, IsOk());
  EXPECT_THAT(whole->discard(8 * page, page), HasError(Errc::bad_state));
  VMSPACE_EXPECT_OK(whole->discard(0, 8 * page));
  VMSPACE_EXPECT_OK(whole->discard(9 * page, 7 * page));
}

TEST(MemoryPin, OfAnonymousMemoryIsThatOfItsMapping) {
  const auto backing = Backing::open({.source = MemorySource::anon}, 16 * page);
  const auto first = MemoryMapping::map(*backing, {.size = 16 * page});
  const auto second = MemoryMapping::map(*backing, {.size = 16 * page});
  ASSERT_TRUE(first && second);
  const auto pin = first->pin(0, page, "dimm0");
  ASSERT_THAT(pin, IsOk());
  EXPECT_THAT(first->discard(0, page), HasError(Errc::bad_state));
  VMSPACE_EXPECT_OK(second->discard(0, page));
}

TEST(MemoryPin, TakesOnlyAPartOfAMapping) {
  MemoryMapping mapping = map_pages(2);
  EXPECT_THAT(mapping.pin(0, 0, "x"), HasError(Errc::zero_size));
  EXPECT_THAT(mapping.pin(page, 2 * page, "x"), HasError(Errc::out_of_bounds));
  EXPECT_THAT(mapping.pin(std::numeric_limits<std::uint64_t>::max(), 2, "x"),
              HasError(Errc::out_of_bounds));
  {
    const auto byte = mapping.pin(page + 1, 1, "x");
    EXPECT_THAT(mapping.discard(page, page), HasError(Errc::bad_state));
    VMSPACE_EXPECT_OK(mapping.discard(0, page));
  }
  VMSPACE_ASSERT_OK(mapping.close());
  EXPECT_THAT(mapping.pin(0, page, "x"), HasError(Errc::bad_state));
}

TEST(MemoryPin, MovesIsReplacedAndIsAbandoned) {
  const MemoryMapping mapping = map_pages(4);
  MemoryPin first = std::move(*mapping.pin(0, page, "a"));
  MemoryPin second = std::move(*mapping.pin(page, page, "b"));
  second = std::move(first);
  EXPECT_THAT(mapping.discard(0, page), HasError(Errc::bad_state));
  VMSPACE_EXPECT_OK(mapping.discard(page, page));
  second = MemoryPin();
  VMSPACE_EXPECT_OK(mapping.discard(0, page));
  { std::move(*mapping.pin(2 * page, page, "c")).abandon(); }
  EXPECT_THAT(mapping.discard(2 * page, page), HasError(Errc::bad_state));
}

TEST(MemoryPin, AnyNumberOfPinsMayOverlap) {
  constexpr std::uint64_t pages = 32;
  const MemoryMapping mapping = map_pages(pages);
  std::mt19937 random(20);
  struct Pinned {
    std::uint64_t first, end;
    MemoryPin pin;
  };
  std::vector<Pinned> pins;
  for (int step = 0; step < 2000; ++step) {
    if (pins.size() < 6 && random() % 2 == 0) {
      const std::uint64_t first = random() % pages;
      const std::uint64_t count = 1 + random() % (pages - first);
      auto pin = mapping.pin(first * page, count * page, "some");
      ASSERT_THAT(pin, IsOk());
      pins.push_back({first, first + count, std::move(*pin)});
    } else if (!pins.empty()) {
      const std::size_t at = random() % pins.size();
      std::swap(pins[at], pins.back());
      pins.pop_back();
    }
    const std::uint64_t first = random() % pages;
    const std::uint64_t end = first + 1 + random() % (pages - first);
    bool is_pinned = false;
    for (const Pinned& each : pins)
      is_pinned |= each.first < end && first < each.end;
    const auto done = mapping.discard(first * page, (end - first) * page);
    ASSERT_EQ(done.has_value(), !is_pinned) << step;
  }
}

// What is pinned after a discard has returned, or was before it began, has the pages that everybody
// sees: what is written once it is pinned stays.
TEST(MemoryPin, IsOrderedWithDiscardsOfOtherThreads) {
  const MemoryMapping mapping = map_pages(1);
  std::atomic<bool> done{false};
  std::thread discards([&] {
    while (!done) {
      static_cast<void>(mapping.discard(0, page));
      std::this_thread::yield();
    }
  });
  for (int round = 0; round < 2000; ++round) {
    const auto pin = mapping.pin(0, page, "dimm0");
    ASSERT_THAT(pin, IsOk());
    std::atomic_ref<int> word(*reinterpret_cast<int*>(mapping.data()));
    word.store(round + 1);
    std::this_thread::yield();
    ASSERT_EQ(word.load(), round + 1);
  }
  done = true;
  discards.join();
}

}  // namespace
}  // namespace vmspace::memory_pin_test
