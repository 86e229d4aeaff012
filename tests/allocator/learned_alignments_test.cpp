// SPDX-License-Identifier: Apache-2.0

#include "vmspace/allocator/detail/learned_alignments.hpp"

#include <cstddef>
#include <cstdint>
#include <variant>

#include <gtest/gtest.h>

#include "vmspace/allocator/constraint.hpp"
#include "vmspace/allocator/detail/bplus_tree.hpp"
#include "vmspace/allocator/detail/free_search.hpp"
#include "vmspace/allocator/detail/free_summary.hpp"
#include "vmspace/allocator/range.hpp"

namespace vmspace::detail::learned_alignments_test {
namespace {

constexpr std::uint64_t top = UINT64_MAX;

TEST(AlignedLength, IsTheLongestSizeThatARequestOfThisAlignmentFinds) {
  for (const std::uint64_t base : {std::uint64_t{0}, std::uint64_t{0x1'0000'0000}, top - 69}) {
    for (std::uint64_t lo = base; lo < base + 70; ++lo) {
      for (std::uint64_t hi = lo; hi < base + 70; ++hi) {
        for (std::uint64_t align = 1; align <= 64; align *= 2) {
          const std::uint64_t length = aligned_length(lo, hi, align - 1);
          for (std::uint64_t size = 1; size <= 71; ++size) {
            const Request request({.size = size, .align = align});
            ASSERT_EQ(request.lowest_in(lo, hi).has_value(), size <= length)
                << lo << " " << hi << " " << size << " " << align;
          }
        }
        if (hi == top) break;
      }
    }
  }
  EXPECT_EQ(aligned_length(0, top, 0), top);
  EXPECT_EQ(aligned_length(1, top, top >> 1), std::uint64_t{1} << 63);
}

TEST(LearnedAlignments, AreThoseOfSearchesThatWentInVain) {
  LearnedAlignments learned;
  EXPECT_FALSE(learned.is_of_interest(0));
  EXPECT_TRUE(learned.is_of_interest(9));
  // A tenth of the leaves at a time.
  unsigned row = 0;
  unsigned searches = 0;
  for (; row == 0; ++searches) {
    ASSERT_LT(searches, 20U);
    row = learned.learn(0xfff, 100, 16'000);
  }
  EXPECT_GE(searches, 10U);
  EXPECT_EQ(learned.low_bits(row), 0xfffU);
  EXPECT_EQ(learned.row_for(0xfff), row);
  EXPECT_EQ(learned.row_for(0x1fff), row);  // its lengths are upper bounds
  EXPECT_EQ(learned.row_for(0x7ff), 0U);
}

TEST(LearnedAlignments, AreNotThoseOfSearchesThatRarelyErr) {
  LearnedAlignments learned;
  for (int i = 0; i < 100'000; ++i) {
    ASSERT_EQ(learned.learn(0xfff, i % 10 == 0 ? 50 : 0, 16'000), 0U) << i;
  }
}

TEST(LearnedAlignments, TakeOverTheRowOfAnotherWhenAllAreInUse) {
  LearnedAlignments learned;
  const auto learn = [&learned](std::uint64_t low_bits) {
    for (;;) {
      if (const unsigned row = learned.learn(low_bits, 1000, 16'000); row != 0) return row;
    }
  };
  for (unsigned shift = 1; shift < length_rows; ++shift)
    EXPECT_EQ(learn((1U << shift) - 1), shift);
  EXPECT_EQ(learned.rows(), length_rows);
  EXPECT_EQ(learn(0xffff), 1U);
  EXPECT_EQ(learn(0x1'ffff), 2U);
  EXPECT_EQ(learned.rows(), length_rows);
  EXPECT_EQ(learned.row_for(0xffff), 1U);
}

/// Gaps of three members that begin at odd addresses, and none for three at an even one.
TEST(LearnedAlignments, EndTheWasteOfATreesSearches) {
  BPlusTree<std::monostate> nodes;
  for (std::uint64_t i = 0; i < 2000; ++i) {
    BPlusTree<std::monostate>::Path at;
    const Range gap = unchecked_range(4 * i + 1, 4 * i + 3);
    if (i == 0) {
      nodes.insert_first(gap, NodeState::free, at);
    } else {
      nodes.upper_bound(gap.min(), at);
      nodes.split_if(nodes.prepare_split(at, 1), at);
      nodes.insert(at, gap, NodeState::free);
    }
  }
  const Constraint constraint{.size = 3, .align = 2};
  const auto waste_of_a_search = [&] {
    BPlusTree<std::monostate>::Path at;
    const SearchOutcome search = find_fit(nodes, Request(constraint), AllocPolicy::first_match, at);
    nodes.learn(constraint, search.wasted);
    return search.wasted;
  };
  EXPECT_GT(waste_of_a_search(), 60U);
  std::size_t searches = 1;
  while (waste_of_a_search() != 0)
    ASSERT_LT(++searches, 4U);
}

}  // namespace
}  // namespace vmspace::detail::learned_alignments_test
