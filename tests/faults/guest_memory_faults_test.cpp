// SPDX-License-Identifier: Apache-2.0
//
// Guest memory and its dirty tracking while memory runs out.

#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/dirty_bitmap.hpp"
#include "vmspace/memory/dirty_tracking.hpp"

#include "faults/failing_new.hpp"
#include "memory/guest_support.hpp"

namespace vmspace::guest_memory_faults_test {
namespace {

using test::fail_each_allocation;

constexpr std::uint64_t page = DirtyBitmap::page_size;
using Ranges = std::vector<DirtyRange>;

/// Runs `body` with no allocation granted.
template <typename Body>
auto without_memory(Body body) {
  test::granted = 0;
  auto result = body();
  test::granted = -1;
  return result;
}

TEST(DirtyBitmapFaults, ACleanBitmapOfAnySizeIsHarvestedWithoutMemory) {
  DirtyBitmap bitmap(std::uint64_t{1} << 36);
  ASSERT_TRUE(bitmap.enable());
  EXPECT_EQ(without_memory([&] { return bitmap.harvest(); }), Ranges{});
  bitmap.mark(70 * page, page);
  EXPECT_EQ(bitmap.harvest(), (Ranges{{70 * page, page}}));
  EXPECT_EQ(without_memory([&] { return bitmap.harvest(); }), Ranges{});
}

TEST(DirtyBitmapFaults, AHarvestTakesMemoryForWhatIsDirty) {
  DirtyBitmap bitmap(std::uint64_t{1} << 36);
  ASSERT_TRUE(bitmap.enable());
  bitmap.mark(0, bitmap.size());  // 16 Mi pages, and one range
  test::largest = 0;
  EXPECT_EQ(bitmap.harvest(), (Ranges{{0, bitmap.size()}}));
  EXPECT_LE(test::largest, 8192U);
}

TEST(DirtyBitmapFaults, AHarvestThatRunsOutOfMemoryForgetsNothing) {
  DirtyBitmap bitmap(4000 * page);
  ASSERT_TRUE(bitmap.enable());
  Ranges dirty;
  for (std::uint64_t i = 0; i < 4000; i += 2) {
    dirty.push_back({i * page, page});
    bitmap.mark(i * page, 1);
  }
  Ranges harvested;
  const int failures = fail_each_allocation(
      [&] {
        auto result = bitmap.harvest();
        ASSERT_TRUE(result);
        harvested = std::move(*result);
      },
      [&] { EXPECT_EQ(bitmap.peek(), dirty); });
  EXPECT_GT(failures, 3);
  EXPECT_EQ(harvested, dirty);
  EXPECT_TRUE(bitmap.peek().empty());
}

TEST(GuestMemoryFaults, ARegionJoinsATrackedMemoryWhollyOrNotAtAll) {
  const GuestMemory memory = test::guest({{0x1'0000, page}, {0x4'0000, page, Protection::read}});
  ASSERT_TRUE(enable_dirty_tracking(memory));
  const auto more = test::region({0x8'0000, page});
  const int failures = fail_each_allocation([&] { EXPECT_TRUE(memory.with_region(more)); },
                                            [&] {
                                              EXPECT_FALSE(more->dirty().is_enabled());
                                              EXPECT_TRUE(harvest_dirty(memory));
                                            });
  EXPECT_GT(failures, 3);
  EXPECT_TRUE(more->dirty().is_enabled());
}

}  // namespace
}  // namespace vmspace::guest_memory_faults_test
