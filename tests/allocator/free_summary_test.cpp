// SPDX-License-Identifier: Apache-2.0

#include "vmspace/allocator/detail/free_summary.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/allocator/range.hpp"

namespace vmspace::detail::free_summary_test {
namespace {

constexpr std::uint64_t top = UINT64_MAX;

/// The definition, word for word.
FreeSummary by_trial(std::uint64_t lo, std::uint64_t hi) {
  FreeSummary summary{.longest = hi - lo + 1, .order = 0, .zeros = 0};
  for (std::uint64_t at = lo; at <= hi; ++at) {
    const auto zeros = static_cast<std::uint8_t>(std::countr_zero(at));
    summary.zeros = std::max(summary.zeros, zeros);
    for (std::uint8_t k = 0; k <= std::min<std::uint8_t>(zeros, 10); ++k) {
      if (hi - at >= (std::uint64_t{1} << k) - 1) summary.order = std::max(summary.order, k);
    }
  }
  return summary;
}

TEST(FreeSummary, OfEveryShortRangeIsWhatTrialFinds) {
  for (const std::uint64_t base : {std::uint64_t{0}, std::uint64_t{0x1'0000'0000}, top - 130}) {
    for (std::uint64_t lo = base; lo < base + 130; ++lo) {
      for (std::uint64_t hi = lo; hi < base + 130; ++hi) {
        const FreeSummary summary = FreeSummary::of(lo, hi);
        const FreeSummary trial = by_trial(lo, hi);
        ASSERT_EQ(summary.longest, trial.longest) << lo << " " << hi;
        ASSERT_EQ(summary.order, trial.order) << lo << " " << hi;
        ASSERT_EQ(summary.zeros, trial.zeros) << lo << " " << hi;
      }
    }
  }
}

TEST(FreeSummary, ReachesTheEndsOfTheDomain) {
  EXPECT_EQ(FreeSummary::of(0, top), (FreeSummary{.longest = top, .order = 64, .zeros = 64}));
  EXPECT_EQ(FreeSummary::of(0, top - 1), (FreeSummary{.longest = top, .order = 63, .zeros = 64}));
  EXPECT_EQ(FreeSummary::of(1, top), (FreeSummary{.longest = top, .order = 63, .zeros = 63}));
  EXPECT_EQ(FreeSummary::of(0, 0), (FreeSummary{.longest = 1, .order = 0, .zeros = 64}));
  EXPECT_EQ(FreeSummary::of(top, top), (FreeSummary{.longest = 1, .order = 0, .zeros = 0}));
  EXPECT_EQ(FreeSummary::of(std::uint64_t{1} << 63, top),
            (FreeSummary{.longest = std::uint64_t{1} << 63, .order = 63, .zeros = 63}));
}

/// All small summaries: a whole is made of a part and the rest, and the part shrinks.
TEST(FreeSummary, IsUnchangedByAPartOnlyIfTheWholeStaysAsItWas) {
  std::vector<FreeSummary> summaries;
  for (std::uint8_t i = 0; i < 27; ++i) {
    summaries.push_back({.longest = i % 3U,
                         .order = static_cast<std::uint8_t>(i / 3 % 3),
                         .zeros = static_cast<std::uint8_t>(i / 9)});
  }
  const auto joined = [](FreeSummary a, const FreeSummary& b) {
    a.merge(b);
    return a;
  };
  for (const FreeSummary& before : summaries) {
    for (const FreeSummary& after : summaries) {
      if (joined(before, after) != before) continue;
      for (const FreeSummary& rest : summaries) {
        const FreeSummary whole = joined(before, rest);
        if (whole.is_unchanged_by(before, after)) {
          ASSERT_EQ(whole, joined(after, rest));
        }
      }
    }
  }
  // And it does where another part reaches as far, which is why it is asked.
  EXPECT_TRUE((FreeSummary{.longest = 9, .order = 3, .zeros = 5})
                  .is_unchanged_by({.longest = 8, .order = 2, .zeros = 4}, FreeSummary{}));
  EXPECT_TRUE((FreeSummary{.longest = 9, .order = 3, .zeros = 5})
                  .is_unchanged_by({.longest = 9, .order = 3, .zeros = 5},
                                   {.longest = 9, .order = 3, .zeros = 5}));
}

TEST(FreeSummary, OfManyRangesIsWhatMergingThoseOfEachGives) {
  const std::vector<Range> ranges = {Range::of(0, 4),       Range::point(7),
                                     Range::of(9, 15),      Range::of(16, 16),
                                     Range::of(31, 32),     Range::of(1024, 4095),
                                     Range::of(5000, 5003), Range::of(1 << 20, top - 9),
                                     Range::of(top, top),   Range::of(top - 4, top)};
  for (unsigned chosen = 0; chosen < 1U << ranges.size(); ++chosen) {
    FreeSummary merged;
    FreeSummaryBuilder built;
    for (unsigned i = 0; i < ranges.size(); ++i) {
      if ((chosen >> i & 1U) == 0) continue;
      merged.merge(FreeSummary::of(ranges[i].min(), ranges[i].max()));
      built.add(ranges[i].min(), ranges[i].max());
    }
    ASSERT_EQ(built.summary(), merged) << chosen;
  }
  FreeSummaryBuilder whole;
  whole.add(0, top);
  EXPECT_EQ(whole.summary(), FreeSummary::of(0, top));
  FreeSummaryBuilder rest;
  rest.add(1, top);
  EXPECT_EQ(rest.summary(), FreeSummary::of(1, top));
}

TEST(FreeSummary, NothingFreeSatisfiesNoRequest) {
  EXPECT_FALSE(Request({.size = 1}).may_fit(FreeSummary{}));
}

TEST(FreeSummary, ARequestThatFitsARangeIsNeverPruned) {
  for (std::uint64_t lo = 0; lo < 70; ++lo) {
    for (std::uint64_t hi = lo; hi < 70; ++hi) {
      for (std::uint64_t size = 1; size < 40; ++size) {
        for (std::uint64_t align = 1; align <= 64; align *= 2) {
          const Request request({.size = size, .align = align});
          const bool fits = request.lowest_in(lo, hi).has_value();
          ASSERT_EQ(fits, request.highest_in(lo, hi).has_value());
          const bool may = request.may_fit(FreeSummary::of(lo, hi));
          ASSERT_TRUE(may || !fits) << lo << " " << hi << " " << size << " " << align;
          // Without alignment, and for aligned blocks, the maxima decide alone.
          if (align == 1 || align == size) {
            ASSERT_EQ(may, fits) << lo << " " << hi << " " << size;
          }
        }
      }
    }
  }
}

TEST(FreeSummary, EightSubtreesAtOnceAreNumberedInTheirOrderInMemory) {
  const Request request({.size = 16, .align = 16});
  for (unsigned subtree = 0; subtree < 8; ++subtree) {
    std::array<std::uint8_t, 8> orders{};
    std::array<std::uint8_t, 8> zeros{};
    orders.fill(3);
    zeros.fill(64);
    orders[subtree] = 4;
    EXPECT_EQ(request.may_fit(orders.data(), zeros.data()), std::uint64_t{0x80} << 8 * subtree);
    orders.fill(64);
    zeros.fill(3);
    zeros[subtree] = 4;
    EXPECT_EQ(request.may_fit(orders.data(), zeros.data()), std::uint64_t{0x80} << 8 * subtree);
  }
}

TEST(FreeSummary, AGapCanPassAllThreeAndNotFit) {
  // Around 2 MiB: long enough, holds an aligned 8 KiB block, and a multiple of 2 MiB; not in one.
  const Request request({.size = 0x2000, .align = 0x20'0000});
  EXPECT_TRUE(request.may_fit(FreeSummary::of(0x1f'e000, 0x20'0fff)));
  EXPECT_EQ(request.lowest_in(0x1f'e000, 0x20'0fff), std::nullopt);
}

TEST(FreeSummary, APlaceNeverWrapsAroundTheDomain) {
  const std::uint64_t half = std::uint64_t{1} << 63;
  EXPECT_EQ(Request({.size = 1, .align = half}).lowest_in(half + 1, top), std::nullopt);
  EXPECT_EQ(Request({.size = 1, .align = half}).highest_in(half + 1, top), std::nullopt);
  EXPECT_EQ(Request({.size = half, .align = half}).lowest_in(1, top), half);
  EXPECT_EQ(Request({.size = top}).lowest_in(0, top), 0U);
  EXPECT_EQ(Request({.size = top}).highest_in(0, top), 1U);
  EXPECT_EQ(Request({.size = 2}).lowest_in(top, top), std::nullopt);
  EXPECT_EQ(Request({.size = 2}).highest_in(0, 0), std::nullopt);
  EXPECT_EQ(Request({.size = 1, .min = 5, .max = 9}).lowest_in(10, 20), std::nullopt);
  EXPECT_EQ(Request({.size = 1, .min = 21, .max = 29}).highest_in(10, 20), std::nullopt);
}

}  // namespace
}  // namespace vmspace::detail::free_summary_test
