// SPDX-License-Identifier: Apache-2.0
//
// DirtyScan of memory that is being restored, while threads write, others discard, and the restore or
// the scan ends at any moment: a copy that is brought up to date from harvests alone never misses a
// page, and nobody waits for ever. Accesses are plain loads and stores of the test's own: one that
// faults inside of ThreadSanitizer's runtime could hold up all the others.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/snapshot/dirty_scan.hpp"
#include "vmspace/snapshot/lazy_restore.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/lazy_support.hpp"

namespace vmspace::dirty_scan_restore_stress_test {
namespace {

using namespace test;
using namespace literals;

constexpr std::uint64_t base = 0x1'0000'0000;
constexpr std::uint64_t pages = 1024;
constexpr std::uint64_t size = pages * source_page;
constexpr std::uint64_t writers = 2;

__attribute__((no_sanitize("thread"))) std::uint64_t load(const std::byte* at) {
  return *reinterpret_cast<const volatile std::uint64_t*>(at);
}
__attribute__((no_sanitize("thread"))) void store(std::byte* at, std::uint64_t value) {
  *reinterpret_cast<volatile std::uint64_t*>(at) = value;
}

class WatchedRestoreStress : public ::testing::TestWithParam<MemorySource> {
 protected:
  void SetUp() override {
    source->is_zero = [](std::uint64_t at) { return at / source_page % 7 == 2; };
    map();
    const auto tried = DirtyScan::start(memory);
    if (!tried &&
        (tried.error().code == Errc::unsupported || tried.error().code == Errc::access_denied))
      GTEST_SKIP() << tried.error().message();
    ASSERT_TRUE(tried.has_value());
  }
  void map() {
    auto region = MemoryRegion::map({.name = "ram",
                                     .base = GuestAddress(base),
                                     .size = size,
                                     .backing = {.source = GetParam()}});
    VMSPACE_ASSERT_OK(region);
    memory = *GuestMemory::from_regions({*region});
    data = (*region)->host_base();
  }
  [[nodiscard]] std::byte* page(std::uint64_t index) const { return data + index * source_page; }
  [[nodiscard]] std::uint64_t expected(std::uint64_t index) const {
    const std::uint64_t at = base + index * source_page;
    return source->is_zero(at) ? 0 : word_at(at);
  }

  std::shared_ptr<WordSource> source = std::make_shared<WordSource>();
  GuestMemory memory;
  std::byte* data = nullptr;
};

TEST_P(WatchedRestoreStress, NoWriteIsLostAcrossTheEndOfTheRestore) {
  for (unsigned round = 0; round < 10; ++round) {
    map();
    std::optional<LazyRestore> restore;
    {
      START_RESTORE_OR_SKIP(started, memory, source,
                            {.threads = 1 + round % 3, .background = false});
      restore = std::move(started);
    }
    auto scan = DirtyScan::start(memory);
    ASSERT_TRUE(scan.has_value()) << scan.error().message();
    std::vector<std::uint64_t> copy(pages);
    for (std::uint64_t i = 0; i < pages; ++i)
      copy[i] = expected(i);
    const auto update = [&] {
      const auto found = scan->harvest();
      ASSERT_TRUE(found.has_value()) << found.error().message();
      for (const GuestRange& range : *found) {
        const std::uint64_t first = (range.base.value() - base) / source_page;
        for (std::uint64_t i = first; i < first + range.size / source_page; ++i)
          copy[i] = load(page(i));
      }
    };
    // Each has its own pages, and stamps them with increasing numbers; some are discarded instead.
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (std::uint64_t writer = 0; writer < writers; ++writer) {
      threads.emplace_back([&, writer] {
        std::uint64_t random = writer + 1 + round;
        for (std::uint64_t i = 1; !stop; ++i) {
          random = random * 6364136223846793005 + 1442695040888963407;
          const std::uint64_t index = (random >> 33) % (pages / writers) * writers + writer;
          store(page(index), i);
          if (i % 64 == 0) {
            VMSPACE_EXPECT_OK(
                memory.regions()[0]->mapping().discard(index * source_page, source_page));
          }
        }
      });
    }
    for (int i = 0; i < 10; ++i)
      update();
    restore->resume_background();
    while (!restore->is_done())
      update();
    restore.reset();
    for (int i = 0; i < 20; ++i)
      update();
    stop = true;
    for (std::thread& thread : threads)
      thread.join();
    update();
    for (std::uint64_t i = 0; i < pages; ++i)
      ASSERT_EQ(copy[i], load(page(i))) << "page " << i;
  }
}

TEST_P(WatchedRestoreStress, EitherMayEndFirstAtAnyMoment) {
  for (unsigned round = 0; round < 60; ++round) {
    map();
    // While both start, too; of a page that is zeros all the same.
    const std::jthread discarder([&](const std::stop_token& stop) {
      constexpr std::uint64_t index = 5;
      EXPECT_EQ(expected(index), 0U);
      while (!stop.stop_requested()) {
        VMSPACE_EXPECT_OK(memory.regions()[0]->mapping().discard(index * source_page, source_page));
        std::this_thread::yield();
      }
    });
    std::optional<LazyRestore> restore;
    {
      START_RESTORE_OR_SKIP(started, memory, source, {.threads = 1 + round % 2});
      restore = std::move(started);
    }
    std::thread reader([&] {
      for (std::uint64_t i = 0; i < pages; ++i) {
        const std::uint64_t index = i * 619 % pages;
        EXPECT_EQ(load(page(index)), expected(index));
      }
    });
    std::thread scanner([&] {
      for (unsigned i = 0; i <= round % 4; ++i) {
        auto scan = DirtyScan::start(memory);
        ASSERT_TRUE(scan.has_value()) << scan.error().message();
        for (unsigned j = 0; j < round % 3; ++j)
          EXPECT_TRUE(scan->harvest().has_value());
      }
    });
    if (round % 2 == 0) {
      EXPECT_TRUE(restore->wait(long_enough).has_value());
      restore.reset();
    }
    reader.join();
    scanner.join();
    if (restore) {
      EXPECT_TRUE(restore->wait(long_enough).has_value());
    }
    restore.reset();
    EXPECT_TRUE(DirtyScan::start(memory).has_value()) << "nothing is registered any more";
    for (std::uint64_t i = 0; i < pages; ++i)
      ASSERT_EQ(load(page(i)), expected(i));
  }
}

INSTANTIATE_TEST_SUITE_P(Memory, WatchedRestoreStress,
                         ::testing::Values(MemorySource::anon, MemorySource::shmem),
                         [](const auto& kind) { return std::string(name_of(kind.param)); });

}  // namespace
}  // namespace vmspace::dirty_scan_restore_stress_test
