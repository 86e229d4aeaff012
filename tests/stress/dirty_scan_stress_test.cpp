// SPDX-License-Identifier: Apache-2.0
//
// DirtyScan while threads write, and others discard: a copy that is brought up to date from its
// harvests alone never misses a page.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/snapshot/dirty_scan.hpp"
#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::dirty_scan_stress_test {
namespace {

using test::guest;
using test::page;

constexpr std::uint64_t base = 0x10'0000;
constexpr std::uint64_t pages = 512;
constexpr std::uint64_t writers = 3;
constexpr std::uint64_t harvests = 300;

/// A number in the first bytes of a page.
class Stamp {
 public:
  Stamp(const GuestMemory& memory, std::uint64_t index)
      : word_(*reinterpret_cast<std::uint64_t*>(
            *memory.host_address({GuestAddress(base + index * page), 8}))) {}
  void store(std::uint64_t value) const { word_.store(value, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t load() const { return word_.load(std::memory_order_relaxed); }

 private:
  std::atomic_ref<std::uint64_t> word_;
};

class DirtyScanStress : public ::testing::TestWithParam<MemorySource> {};

TEST_P(DirtyScanStress, NoWriteIsLost) {
  const GuestMemory memory = guest({{base, pages * page, Protection::read_write, GetParam()}});
  auto scan = DirtyScan::start(memory);
  if (!scan && (scan.error().code == Errc::unsupported || scan.error().code == Errc::access_denied))
    GTEST_SKIP() << scan.error().message();
  ASSERT_THAT(scan, IsOk());
  std::vector<std::uint64_t> copy(pages);
  const auto update = [&] {
    const auto found = scan->harvest();
    ASSERT_THAT(found, IsOk());
    for (const GuestRange& range : *found) {
      for (std::uint64_t at = range.base.value(); at < range.base.value() + range.size; at += page)
        copy[(at - base) / page] = Stamp(memory, (at - base) / page).load();
    }
  };

  // Each has its own pages, and stamps them with increasing numbers.
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (std::uint64_t writer = 0; writer < writers; ++writer) {
    threads.emplace_back([&, writer] {
      std::uint64_t random = writer + 1;
      for (std::uint64_t i = 1; !stop; ++i) {
        random = random * 6364136223846793005 + 1442695040888963407;
        const std::uint64_t index = (random >> 33) % (pages / writers) * writers + writer;
        Stamp(memory, index).store(i);
      }
    });
  }
  for (std::uint64_t i = 0; i < harvests; ++i)
    update();
  stop = true;
  for (std::thread& thread : threads)
    thread.join();
  update();
  for (std::uint64_t i = 0; i < pages; ++i)
    ASSERT_EQ(copy[i], Stamp(memory, i).load()) << "page " << i;
}

// Whether a discard comes before or after a harvest, one of them reports its pages.
TEST_P(DirtyScanStress, NoDiscardIsLost) {
  const GuestMemory memory = guest({{base, pages * page, Protection::read_write, GetParam()}});
  auto scan = DirtyScan::start(memory);
  if (!scan && (scan.error().code == Errc::unsupported || scan.error().code == Errc::access_denied))
    GTEST_SKIP() << scan.error().message();
  ASSERT_THAT(scan, IsOk());
  std::vector<std::uint64_t> copy(pages);
  std::atomic<bool> done{false};
  std::thread discarding([&] {
    for (std::uint64_t i = 0; i < 2'000; ++i) {
      const std::uint64_t index = i * 7 % pages;
      Stamp(memory, index).store(i + 1);
      if (i % 3 == 0) {
        VMSPACE_EXPECT_OK(memory.regions()[0]->mapping().discard(index * page, page));
      }
    }
    done = true;
  });
  const auto update = [&] {
    const auto found = scan->harvest();
    ASSERT_THAT(found, IsOk());
    for (const GuestRange& range : *found) {
      for (std::uint64_t at = range.base.value(); at < range.base.value() + range.size; at += page)
        copy[(at - base) / page] = Stamp(memory, (at - base) / page).load();
    }
  };
  while (!done)
    update();
  discarding.join();
  update();
  for (std::uint64_t i = 0; i < pages; ++i)
    ASSERT_EQ(copy[i], Stamp(memory, i).load()) << "page " << i;
}

INSTANTIATE_TEST_SUITE_P(Kinds, DirtyScanStress,
                         ::testing::Values(MemorySource::anon, MemorySource::shmem),
                         [](const auto& source) { return std::string(name_of(source.param)); });

}  // namespace
}  // namespace vmspace::dirty_scan_stress_test
