// SPDX-License-Identifier: Apache-2.0
//
// LazyRestore under threads: readers and writers in all of the memory while it is restored by several
// threads, discards of parts, pauses, and cancelling in the middle. Every page ends as what the source
// has, what a writer wrote, or zeros where it was discarded. Accesses are plain loads and stores of
// the test's own: one that faults inside of ThreadSanitizer's runtime could hold up all the others.

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/snapshot/lazy_restore.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/lazy_support.hpp"

namespace vmspace::lazy_restore_stress_test {
namespace {

using namespace test;
using namespace literals;

constexpr std::uint64_t base = 0x1'0000'0000;
constexpr std::uint64_t size = 16_MiB;

MemoryRegionPtr map(MemorySource kind) {
  auto region = MemoryRegion::map(
      {.name = "ram", .base = GuestAddress(base), .size = size, .backing = {.source = kind}});
  VMSPACE_EXPECT_OK(region);
  return *region;
}

/// The pages in an order of their own for each seed.
std::uint64_t nth_page(std::uint64_t i, std::uint64_t seed) {
  return (i * 1'237 + seed * 7'919) % (size / source_page) * source_page;
}

/// Not checked by the sanitizer: the kernel and the restore's threads write these bytes.
__attribute__((no_sanitize("thread"))) std::uint64_t load(const std::byte* at) {
  return *reinterpret_cast<const volatile std::uint64_t*>(at);
}
__attribute__((no_sanitize("thread"))) void store(std::byte* at, std::uint64_t value) {
  *reinterpret_cast<volatile std::uint64_t*>(at) = value;
}

class LazyRestoreStress : public ::testing::TestWithParam<MemorySource> {};

TEST_P(LazyRestoreStress, ReadersWritersAndDiscards) {
  const auto source = std::make_shared<WordSource>();
  source->is_zero = [](std::uint64_t at) { return at / source_page % 7 == 2; };
  for (unsigned round = 0; round < 6; ++round) {
    const MemoryRegionPtr region = map(GetParam());
    const GuestMemory memory = *GuestMemory::from_regions({region});
    std::byte* const data = region->host_base();
    START_RESTORE_OR_SKIP(restore, memory, source,
                          {.threads = 1 + round % 4,
                           .fault_size = round % 2 == 0 ? 4096U : 32768U,
                           .background = round % 3 != 0});
    const auto expected = [&](std::uint64_t at) {
      return source->is_zero(base + at) ? 0 : word_at(base + at + 16);
    };
    // Pages i % 16 == 5 are discarded, and the words 0 and 8 of others are written.
    const auto is_discarded = [](std::uint64_t at) { return at / source_page % 16 == 5; };
    std::atomic<std::uint64_t> wrong{0};
    std::vector<std::thread> threads;
    for (unsigned seed = 0; seed < 2; ++seed) {
      threads.emplace_back([&, seed] {
        for (std::uint64_t i = 0; i < size / source_page; ++i) {
          const std::uint64_t at = nth_page(i, seed);
          const std::uint64_t seen = load(data + at + 16);
          if (seen != expected(at) && !(is_discarded(at) && seen == 0)) ++wrong;
        }
      });
      threads.emplace_back([&, seed] {
        for (std::uint64_t i = 0; i < size / source_page; ++i) {
          const std::uint64_t at = nth_page(i, seed + 5);
          if (!is_discarded(at)) store(data + at + 8 * seed, at + seed);
        }
      });
    }
    threads.emplace_back([&] {
      for (std::uint64_t at = 5 * source_page; at < size; at += 16 * source_page)
        VMSPACE_EXPECT_OK(region->mapping().discard(at, source_page));
    });
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        restore.pause_background();
        std::this_thread::yield();
        EXPECT_EQ(settled(restore.statistics()) + restore.statistics().remaining > 0, true);
        restore.resume_background();
      }
    });
    for (auto& thread : threads)
      thread.join();
    restore.resume_background();
    VMSPACE_ASSERT_OK(restore.wait(long_enough));
    EXPECT_EQ(wrong, 0U);
    const auto done = restore.statistics();
    EXPECT_EQ(settled(done), size);
    EXPECT_EQ(done.lost, 0U);
    for (std::uint64_t at = 0; at < size; at += source_page) {
      if (is_discarded(at)) {
        ASSERT_TRUE(holds_words(data + at, base + at, true)) << at;
      } else {
        ASSERT_EQ(load(data + at), at);
        ASSERT_EQ(load(data + at + 8), at + 1);
        ASSERT_EQ(load(data + at + 16), expected(at));
        ASSERT_EQ(load(data + at + source_page - 8),
                  source->is_zero(base + at) ? 0 : word_at(base + at + source_page - 8));
      }
    }
  }
}

TEST_P(LazyRestoreStress, CancelledAndDestroyedAtAnyMoment) {
  const auto source = std::make_shared<WordSource>();
  std::atomic<std::uint64_t> lost{0};
  for (unsigned round = 0; round < 60; ++round) {
    const MemoryRegionPtr region = map(GetParam());
    const GuestMemory memory = *GuestMemory::from_regions({region});
    std::uint64_t lost_here = 0;
    {
      START_RESTORE_OR_SKIP(
          restore, memory, source,
          {.threads = 1 + round % 3,
           .background = round != 1,  // of which something is lost, whoever runs first
           .on_error = [&](GuestRange range, const Error&) { lost_here += range.size; }});
      std::vector<std::thread> threads;
      for (unsigned i = 0; i < round % 4; ++i)
        threads.emplace_back([&] { restore.cancel(); });
      threads.emplace_back([&] {
        for (std::uint64_t at = 0; at < size; at += 64 * source_page)
          VMSPACE_EXPECT_OK(region->mapping().discard(at, source_page));
      });
      for (unsigned i = 0; i < round % 64; ++i)
        std::this_thread::yield();
      for (auto& thread : threads)
        thread.join();
      if (restore.is_done()) {
        EXPECT_EQ(settled(restore.statistics()), size);
      }
    }
    lost += lost_here;
    // It is free for the next one, once it is as new.
    VMSPACE_EXPECT_OK(region->mapping().discard(0, size));
    // What was lost in shared memory stays lost in its mapping, but not in another one.
    MemoryRegionPtr next = region;
    if (GetParam() == MemorySource::shmem) {
      next = *MemoryRegion::map({.name = "ram",
                                 .base = GuestAddress(base),
                                 .size = size,
                                 .backing = {.source = MemorySource::shmem}},
                                {.backing = region->backing()});
    }
    START_RESTORE_OR_SKIP(again, *GuestMemory::from_regions({next}), source, {.background = false});
    ASSERT_EQ(load(next->host_base() + 8), word_at(base + 8));
  }
  EXPECT_GT(lost, 0U);
}

INSTANTIATE_TEST_SUITE_P(Memory, LazyRestoreStress,
                         ::testing::Values(MemorySource::anon, MemorySource::shmem),
                         [](const auto& kind) {
                           return kind.param == MemorySource::anon ? "anonymous" : "memfd";
                         });

}  // namespace
}  // namespace vmspace::lazy_restore_stress_test
