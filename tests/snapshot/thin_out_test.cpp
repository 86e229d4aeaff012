// SPDX-License-Identifier: Apache-2.0

#include "snapshot/thin_out.hpp"

#include <cstdint>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmspace::thin_out_test {
namespace {

using detail::PageRun;
using ::testing::ElementsAre;
using ::testing::Pair;

std::vector<std::pair<std::uint64_t, std::uint64_t>> thinned(std::vector<PageRun> runs,
                                                             std::size_t limit,
                                                             std::uint64_t border = UINT64_MAX) {
  std::uint64_t gap = 0;
  detail::thin_out(runs, limit, gap, [&](const PageRun& a, const PageRun& b) {
    return (a.first < border) == (b.first < border);
  });
  std::vector<std::pair<std::uint64_t, std::uint64_t>> pairs;
  for (const PageRun& run : runs)
    pairs.emplace_back(run.first, run.end);
  return pairs;
}

TEST(ThinOut, FillsTheSmallestGapsUntilFewEnoughAreLeft) {
  const std::vector<PageRun> runs{{0, 1}, {2, 3}, {7, 8}, {100, 101}};
  EXPECT_THAT(thinned(runs, 4), ElementsAre(Pair(0, 1), Pair(2, 3), Pair(7, 8), Pair(100, 101)));
  EXPECT_THAT(thinned(runs, 3), ElementsAre(Pair(0, 3), Pair(7, 8), Pair(100, 101)));
  EXPECT_THAT(thinned(runs, 2), ElementsAre(Pair(0, 8), Pair(100, 101)));
  EXPECT_THAT(thinned(runs, 1), ElementsAre(Pair(0, 101)));
}

TEST(ThinOut, JoinsRunsThatOverlap) {
  EXPECT_THAT(thinned({{0, 10}, {3, 4}, {20, 30}, {20, 21}}, 2),
              ElementsAre(Pair(0, 10), Pair(20, 30)));
  EXPECT_THAT(thinned({{0, 10}, {3, 4}}, 1), ElementsAre(Pair(0, 10)));
}

TEST(ThinOut, EndsWhereNoMoreMayBeJoined) {
  EXPECT_THAT(thinned({{0, 1}, {5, 6}, {UINT64_MAX - 1, UINT64_MAX}}, 1, 6),
              ElementsAre(Pair(0, 6), Pair(UINT64_MAX - 1, UINT64_MAX)));
}

}  // namespace
}  // namespace vmspace::thin_out_test
