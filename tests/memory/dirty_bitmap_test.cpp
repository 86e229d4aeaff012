// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/dirty_bitmap.hpp"

#include <array>
#include <cerrno>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "os/system_calls.hpp"

namespace vmspace::dirty_bitmap_test {
namespace {

constexpr std::uint64_t page = DirtyBitmap::page_size;
using Ranges = std::vector<DirtyRange>;

Ranges harvest(DirtyBitmap& bitmap) {
  auto ranges = bitmap.harvest();
  VMSPACE_EXPECT_OK(ranges);
  return *ranges;
}

TEST(DirtyBitmap, IsOffUntilEnabledAndForgetsWhenDisabled) {
  DirtyBitmap bitmap(10 * page);
  bitmap.mark(0, 10 * page);
  EXPECT_FALSE(bitmap.is_enabled());
  EXPECT_TRUE(harvest(bitmap).empty());
  ASSERT_THAT(bitmap.enable(), IsOk());
  EXPECT_TRUE(bitmap.is_enabled());
  EXPECT_TRUE(harvest(bitmap).empty());
  bitmap.mark(0, 1);
  VMSPACE_EXPECT_OK(bitmap.enable());  // again: changes nothing
  EXPECT_EQ(bitmap.peek(), (Ranges{{0, page}}));
  bitmap.disable();
  EXPECT_TRUE(bitmap.peek().empty());
  ASSERT_THAT(bitmap.enable(), IsOk());
  EXPECT_TRUE(harvest(bitmap).empty());
}

TEST(DirtyBitmap, MarksEveryPageThatIsTouchedAndNoOther) {
  DirtyBitmap bitmap(200 * page);
  ASSERT_THAT(bitmap.enable(), IsOk());
  bitmap.mark(page - 1, 1);
  EXPECT_EQ(harvest(bitmap), (Ranges{{0, page}}));
  bitmap.mark(page - 1, 2);
  EXPECT_EQ(harvest(bitmap), (Ranges{{0, 2 * page}}));
  // Across the words of the bitmap, coalesced.
  bitmap.mark(60 * page, 70 * page);
  bitmap.mark(199 * page + 17, 4);
  bitmap.mark(0, 1);
  EXPECT_EQ(harvest(bitmap), (Ranges{{0, page}, {60 * page, 70 * page}, {199 * page, page}}));
  EXPECT_TRUE(harvest(bitmap).empty());
  bitmap.mark(0, 200 * page);
  EXPECT_EQ(harvest(bitmap), (Ranges{{0, 200 * page}}));
}

TEST(DirtyBitmap, IgnoresWhatLiesOutside) {
  constexpr auto top = std::numeric_limits<std::uint64_t>::max();
  DirtyBitmap bitmap(2 * page);
  ASSERT_THAT(bitmap.enable(), IsOk());
  bitmap.mark(0, 0);
  bitmap.mark(2 * page, 1);
  bitmap.mark(top, 1);
  bitmap.mark(top, top);
  EXPECT_TRUE(harvest(bitmap).empty());
  bitmap.mark(page + 5, top);
  EXPECT_EQ(harvest(bitmap), (Ranges{{page, page}}));
}

TEST(DirtyBitmap, ASizeThatWrapsMarksUpToTheEnd) {
  constexpr auto top = std::numeric_limits<std::uint64_t>::max();
  DirtyBitmap bitmap(5 * page);
  ASSERT_THAT(bitmap.enable(), IsOk());
  // Offset and size whose sum comes out in the page where it began.
  for (const std::uint64_t size : {top, top - 1, top - 15, top - page}) {
    bitmap.mark(page + 16, size);
    EXPECT_EQ(harvest(bitmap), (Ranges{{page, 4 * page}})) << size;
  }
  bitmap.mark(16, top);
  EXPECT_EQ(harvest(bitmap), (Ranges{{0, 5 * page}}));
}

TEST(DirtyBitmap, ALastPageThatIsNotWholeEndsWithTheRegion) {
  DirtyBitmap bitmap(2 * page + 100);
  ASSERT_THAT(bitmap.enable(), IsOk());
  bitmap.mark(2 * page, 1);
  EXPECT_EQ(bitmap.peek(), (Ranges{{2 * page, 100}}));
  EXPECT_EQ(harvest(bitmap), (Ranges{{2 * page, 100}}));
  bitmap.mark(0, 3 * page);
  EXPECT_EQ(harvest(bitmap), (Ranges{{0, 2 * page + 100}}));
}

// Around the borders of words and of blocks of words, from few pages to most.
TEST(DirtyBitmap, AnyPatternIsHarvestedAsItsRuns) {
  std::mt19937_64 random(1);
  for (const std::uint64_t pages : {1U, 63U, 64U, 65U, 511U, 512U, 513U, 575U, 1024U, 5000U}) {
    DirtyBitmap bitmap(pages * page - 1);
    VMSPACE_ASSERT_OK(bitmap.enable());
    for (const unsigned dirty_of_64 : {0U, 1U, 8U, 32U, 60U, 64U}) {
      std::vector<DirtyRange> expected;
      for (std::uint64_t i = 0; i < pages; ++i) {
        if (random() % 64 >= dirty_of_64) continue;
        bitmap.mark(i * page, 1);
        const std::uint64_t bytes = i == pages - 1 ? page - 1 : page;
        if (!expected.empty() && expected.back().offset + expected.back().size == i * page) {
          expected.back().size += bytes;
        } else {
          expected.push_back({i * page, bytes});
        }
      }
      EXPECT_EQ(bitmap.peek(), expected) << pages << " " << dirty_of_64;
      EXPECT_EQ(*bitmap.harvest(), expected) << pages << " " << dirty_of_64;
      EXPECT_TRUE(bitmap.harvest()->empty());
    }
  }
}

TEST(DirtyBitmap, MergesAForeignLogWhereItBelongs) {
  DirtyBitmap bitmap(130 * page);
  ASSERT_THAT(bitmap.enable(), IsOk());
  const std::array<std::uint64_t, 3> log{std::uint64_t{1} << 63, 1, 0b11};
  ASSERT_THAT(bitmap.merge(0, log, page), IsOk());
  EXPECT_EQ(harvest(bitmap), (Ranges{{63 * page, 2 * page}, {128 * page, 2 * page}}));
  ASSERT_THAT(bitmap.merge(2 * page, std::span(log).first(2), page), IsOk());
  EXPECT_EQ(harvest(bitmap), (Ranges{{65 * page, 2 * page}}));
  // KVM's log is made of whole words: bits past the end are clear.
  const std::array<std::uint64_t, 4> long_log{1, 0, 0, 0};
  ASSERT_THAT(bitmap.merge(129 * page, long_log, page), IsOk());
  EXPECT_EQ(harvest(bitmap), (Ranges{{129 * page, page}}));

  EXPECT_THAT(bitmap.merge(page, log, page), HasError(Errc::out_of_bounds));
  EXPECT_THAT(bitmap.merge(130 * page, log, page), HasError(Errc::out_of_bounds));
  EXPECT_THAT(bitmap.merge(1, log, page), HasError(Errc::misaligned));
  EXPECT_TRUE(harvest(bitmap).empty());
  VMSPACE_EXPECT_OK(bitmap.merge(0, {}, page));
  bitmap.disable();
  VMSPACE_EXPECT_OK(bitmap.merge(0, log, page));
  ASSERT_THAT(bitmap.enable(), IsOk());
  EXPECT_TRUE(harvest(bitmap).empty());
}

// KVM's bit is a page of the host: 16 or 64 KiB on some aarch64 machines.
TEST(DirtyBitmap, MergesALogWhoseBitsStandForMoreThanAPage) {
  for (const std::uint64_t unit : {page, 4 * page, 16 * page}) {
    DirtyBitmap bitmap(70 * unit);
    ASSERT_THAT(bitmap.enable(), IsOk());
    // Two words, of which the second is used in part; a run that crosses from one into the other.
    const std::array<std::uint64_t, 2> log{std::uint64_t{1} << 63 | 0b1011, 0b10'0001};
    ASSERT_THAT(bitmap.merge(0, log, unit), IsOk());
    EXPECT_EQ(harvest(bitmap),
              (Ranges{{0, 2 * unit}, {3 * unit, unit}, {63 * unit, 2 * unit}, {69 * unit, unit}}));
    // From inside: what lies before the offset stays clear.
    ASSERT_THAT(bitmap.merge(page, std::span(log).first(1), unit), IsOk());
    EXPECT_EQ(harvest(bitmap),
              (Ranges{{page, 2 * unit}, {page + 3 * unit, unit}, {page + 63 * unit, unit}}));
    const std::array<std::uint64_t, 2> beyond{0, 0b100'0000};
    const auto refused = bitmap.merge(0, beyond, unit);
    ASSERT_THAT(refused, HasError(Errc::out_of_bounds));
    EXPECT_TRUE(harvest(bitmap).empty());
  }
}

TEST(DirtyBitmap, TheLastUnitOfALogMayReachPastTheEnd) {
  for (const std::uint64_t unit : {4 * page, 16 * page, std::uint64_t{1} << 63}) {
    DirtyBitmap bitmap(3 * page);
    ASSERT_THAT(bitmap.enable(), IsOk());
    ASSERT_THAT(bitmap.merge(0, std::array<std::uint64_t, 1>{1}, unit), IsOk());
    EXPECT_EQ(harvest(bitmap), (Ranges{{0, 3 * page}}));
    EXPECT_THAT(bitmap.merge(0, std::array<std::uint64_t, 1>{0b11}, unit),
                HasError(Errc::out_of_bounds));
    EXPECT_TRUE(harvest(bitmap).empty());
  }
  DirtyBitmap bitmap(67 * 4 * page + page);
  ASSERT_THAT(bitmap.enable(), IsOk());
  ASSERT_THAT(bitmap.merge(0, std::array<std::uint64_t, 2>{0, 0b1000}, 4 * page), IsOk());
  EXPECT_EQ(harvest(bitmap), (Ranges{{67 * 4 * page, page}}));
  const std::array<std::uint64_t, 2> all{~std::uint64_t{0}, 0b1111};
  ASSERT_THAT(bitmap.merge(0, all, 4 * page), IsOk());
  EXPECT_EQ(harvest(bitmap), (Ranges{{0, 67 * 4 * page + page}}));
}

TEST(DirtyBitmap, AUnitThatIsNoWholePageIsRefused) {
  DirtyBitmap bitmap(64 * page);
  ASSERT_THAT(bitmap.enable(), IsOk());
  for (const std::uint64_t unit : {std::uint64_t{0}, std::uint64_t{1}, page / 2, page + 1, 3 * page,
                                   std::numeric_limits<std::uint64_t>::max()}) {
    const auto refused = bitmap.merge(0, std::array<std::uint64_t, 1>{1}, unit);
    ASSERT_THAT(refused, HasError(Errc::bad_alignment)) << unit;
    EXPECT_EQ(refused.error().first, Operand::size(unit));
  }
  EXPECT_TRUE(harvest(bitmap).empty());
}

/// membarrier fails from its nth call on.
class WithoutMembarrier {
 public:
  explicit WithoutMembarrier(int works) {
    left_ = works;
    table_ = detail::real_system_calls;
    table_.membarrier = [](int command, unsigned flags) {
      if (left_ > 0) {
        --left_;
        return detail::real_system_calls.membarrier(command, flags);
      }
      errno = EPERM;
      return -1;
    };
    detail::current_system_calls.store(&table_);
  }
  WithoutMembarrier(const WithoutMembarrier&) = delete;
  WithoutMembarrier& operator=(const WithoutMembarrier&) = delete;
  ~WithoutMembarrier() { detail::current_system_calls.store(&detail::real_system_calls); }

 private:
  static inline int left_ = 0;
  detail::SystemCalls table_;
};

TEST(DirtyBitmap, WithoutMembarrierWritersFenceAndEverythingElseIsTheSame) {
  const WithoutMembarrier missing(0);
  DirtyBitmap bitmap(100 * page);
  EXPECT_TRUE(bitmap.writers_fence());
  EXPECT_FALSE(bitmap.is_enabled());
  bitmap.mark(0, 1);
  EXPECT_TRUE(harvest(bitmap).empty());
  ASSERT_THAT(bitmap.enable(), IsOk());
  EXPECT_TRUE(bitmap.is_enabled());
  EXPECT_TRUE(bitmap.writers_fence());
  bitmap.mark(5 * page, 8);
  bitmap.mark(70 * page - 1, 2);
  EXPECT_EQ(harvest(bitmap), (Ranges{{5 * page, page}, {69 * page, 2 * page}}));
  bitmap.disable();
  EXPECT_TRUE(bitmap.writers_fence());
  bitmap.mark(0, 1);
  EXPECT_TRUE(bitmap.peek().empty());
}

TEST(DirtyBitmap, AHarvestThatFailsLosesNothing) {
  if (DirtyBitmap(page).writers_fence()) GTEST_SKIP() << "this kernel has no membarrier(2)";
  const WithoutMembarrier later(2);  // registers and enables
  DirtyBitmap bitmap(100 * page);
  ASSERT_THAT(bitmap.enable(), IsOk());
  bitmap.mark(5 * page, 8);
  bitmap.mark(80 * page, 8);
  const auto failed = bitmap.harvest();
  ASSERT_THAT(failed, HasError(Errc::os));
  EXPECT_EQ(failed.error().os_errno, EPERM);
  EXPECT_EQ(bitmap.peek(), (Ranges{{5 * page, page}, {80 * page, page}}));
}

TEST(DirtyBitmap, EnablingThatFailsLeavesItOff) {
  if (DirtyBitmap(page).writers_fence()) GTEST_SKIP() << "this kernel has no membarrier(2)";
  const WithoutMembarrier later(1);
  DirtyBitmap bitmap(100 * page);
  EXPECT_EQ(bitmap.enable().error().os_errno, EPERM);
  EXPECT_FALSE(bitmap.is_enabled());
}

}  // namespace
}  // namespace vmspace::dirty_bitmap_test
