// SPDX-License-Identifier: Apache-2.0
//
// Looking into a tree and walking it, and the tree as a value: what it counts, when it equals
// another, how it is copied and moved.

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <ranges>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/testing.hpp"

#include "allocator/picture.hpp"
#include "base/iterator_traits.hpp"

namespace vmspace::interval_tree_lookup_test {
namespace {

using test::from_picture;
using test::Letters;
using test::to_picture;

constexpr std::uint64_t top = UINT64_MAX;

static_assert(std::ranges::bidirectional_range<IntervalTree<>>);
static_assert(std::ranges::bidirectional_range<decltype(IntervalTree<>().free_ranges())>);
static_assert(
    std::ranges::bidirectional_range<decltype(IntervalTree<>().overlapping(Range::point(0)))>);
static_assert(test::is_bidirectional<IntervalTree<>::Iterator>);
static_assert(test::is_bidirectional<IntervalTree<std::string>::Iterator>);
static_assert(test::is_bidirectional<decltype(IntervalTree<>().free_ranges().begin())>);
static_assert(std::ranges::view<decltype(IntervalTree<>().overlapping(Range::point(0)))>);
static_assert(std::ranges::borrowed_range<decltype(IntervalTree<>().free_ranges())>);

// -- looking up --------------------------------------------------------------------------------

TEST(IntervalTree, LookUpsTellWhatIsThere) {
  Letters tree;
  ASSERT_THAT(tree.insert(Range::of(10, 19), 'A'), IsOk());
  ASSERT_THAT(tree.insert(Range::of(20, 29)), IsOk());

  ASSERT_TRUE(tree.find(19));
  EXPECT_EQ(tree.find(19)->range, Range::of(10, 19));
  EXPECT_EQ(tree.find(19)->state, NodeState::valued);
  EXPECT_EQ(*tree.find(19)->value, 'A');
  EXPECT_EQ(tree.find(20)->state, NodeState::free);
  EXPECT_EQ(tree.find(20)->value, nullptr);
  EXPECT_FALSE(tree.find(9));
  EXPECT_FALSE(tree.find(30));
  EXPECT_FALSE(tree.find(top));
  EXPECT_FALSE(Letters().find(0));

  EXPECT_TRUE(tree.get(Range::of(10, 19)));
  EXPECT_FALSE(tree.get(Range::of(10, 18)));
  EXPECT_FALSE(tree.get(Range::of(11, 19)));
  EXPECT_TRUE(tree.get_superset(Range::of(11, 19)));
  EXPECT_FALSE(tree.get_superset(Range::of(19, 20)));
  EXPECT_FALSE(tree.get_superset(Range::of(9, 10)));
}

TEST(IntervalTree, FindValueIsNullWhereThereIsNone) {
  Letters tree = from_picture("A.x ");
  ASSERT_NE(tree.find_value(0), nullptr);
  *tree.find_value(0) = 'B';
  EXPECT_EQ(*std::as_const(tree).find_value(0), 'B');
  for (const std::uint64_t point : {1U, 2U, 3U, 4U})
    EXPECT_EQ(tree.find_value(point), nullptr);
  EXPECT_EQ(tree.find_value(top), nullptr);
  EXPECT_EQ(Letters().find_value(0), nullptr);
}

TEST(IntervalTree, OverlappingGivesWhatHasAMemberInCommon) {
  const Letters tree = from_picture("AB..  x.", 10);
  const auto letters = [&](const Range& window) {
    std::string text;
    for (const auto& entry : tree.overlapping(window)) {
      text += entry.state == NodeState::free ? '.' : entry.value == nullptr ? 'x' : *entry.value;
    }
    return text;
  };
  EXPECT_EQ(letters(Range::whole_domain()), "AB.x.");
  EXPECT_EQ(letters(Range::of(11, 12)), "B.");
  EXPECT_EQ(letters(Range::of(13, 16)), ".x");
  EXPECT_EQ(letters(Range::of(14, 15)), "");
  EXPECT_EQ(letters(Range::of(0, 9)), "");
  EXPECT_EQ(letters(Range::of(0, 10)), "A");
  EXPECT_EQ(letters(Range::of(18, top)), "");
  EXPECT_TRUE(Letters().overlapping(Range::whole_domain()).empty());
}

TEST(IntervalTree, FreeRangesSkipsWhatIsTakenInBothDirections) {
  IntervalTree<> tree;
  std::vector<Range> free;
  for (std::uint64_t i = 0; i < 500; ++i) {
    const Range range = Range::point(top - 2 * (500 - i));
    ASSERT_THAT(tree.insert(range), IsOk());
    // Long runs of taken ranges, so that whole leaves are skipped.
    if (i / 100 % 2 == 0 || i % 50 == 0) {
      free.push_back(range);
    } else {
      ASSERT_THAT(tree.allocate_at(range), IsOk());
    }
  }
  EXPECT_TRUE(std::ranges::equal(tree.free_ranges(), free));
  auto back = tree.free_ranges().end();
  for (auto range = free.rbegin(); range != free.rend(); ++range)
    EXPECT_EQ(*--back, *range);
  EXPECT_EQ(back, tree.free_ranges().begin());
  EXPECT_TRUE(IntervalTree<>().free_ranges().empty());
}

TEST(IntervalTree, FreeRangesOfATreeWithoutAnyIsEmpty) {
  const Letters tree = from_picture("xABx");
  EXPECT_TRUE(tree.free_ranges().empty());
}

/// std::prev chooses by the category of C++17; of an input iterator it goes forward, past the end.
TEST(IntervalTree, IteratorsStepBackWithWhatTheStandardLibraryHas) {
  Letters tree;
  std::vector<Range> all;
  std::vector<Range> free;
  for (std::uint64_t i = 0; i < 200; ++i) {
    all.push_back(Range::point(2 * i));
    if (i % 3 == 0) {
      ASSERT_THAT(tree.insert(all.back(), 'A'), IsOk());
    } else {
      ASSERT_THAT(tree.insert(all.back()), IsOk());
      free.push_back(all.back());
    }
  }
  EXPECT_EQ(std::prev(tree.end())->range, all.back());
  EXPECT_EQ(std::prev(tree.end(), 200), tree.begin());
  EXPECT_EQ(std::next(tree.begin(), 199), std::prev(tree.end()));
  EXPECT_EQ(std::distance(tree.begin(), tree.end()), 200);
  EXPECT_EQ(*std::prev(tree.free_ranges().end()), free.back());
  EXPECT_EQ(std::prev(tree.free_ranges().end())->min(), free.back().min());

  std::vector<Range> backwards;
  std::reverse_iterator last(tree.end());
  for (; last != std::reverse_iterator(tree.begin()); ++last)
    backwards.push_back(last->range);
  EXPECT_TRUE(std::equal(backwards.rbegin(), backwards.rend(), all.begin(), all.end()));

  const auto gaps = tree.free_ranges();
  backwards.clear();
  std::reverse_copy(gaps.begin(), gaps.end(), std::back_inserter(backwards));
  EXPECT_TRUE(std::equal(backwards.rbegin(), backwards.rend(), free.begin(), free.end()));
}

// -- the whole ---------------------------------------------------------------------------------

TEST(IntervalTree, StatsCountAndMeasure) {
  const auto stats = from_picture("xA....B.. .").stats();
  EXPECT_EQ(stats.free_ranges, 3U);
  EXPECT_EQ(stats.allocated_ranges, 1U);
  EXPECT_EQ(stats.valued_ranges, 2U);
  EXPECT_EQ(stats.free_amount, 7U);
  EXPECT_EQ(stats.taken_amount, 3U);
  EXPECT_EQ(stats.largest_free, 4U);
  EXPECT_DOUBLE_EQ(stats.fragmentation(), 3.0 / 7);
  EXPECT_DOUBLE_EQ(Letters().stats().fragmentation(), 0);
  EXPECT_DOUBLE_EQ(from_picture("x...").stats().fragmentation(), 0);
}

TEST(IntervalTree, StatsSaturateAtTheWholeDomain) {
  IntervalTree<> tree;
  ASSERT_THAT(tree.insert(Range::whole_domain()), IsOk());
  EXPECT_EQ(tree.stats().free_amount, top);
  EXPECT_EQ(tree.stats().largest_free, top);
  ASSERT_THAT(tree.allocate_at(Range::whole_domain()), IsOk());
  EXPECT_EQ(tree.stats().free_amount, 0U);
  EXPECT_EQ(tree.stats().taken_amount, top);
}

TEST(IntervalTree, IsEqualWhenRangesStatesAndValuesAre) {
  EXPECT_EQ(from_picture("xA.. ."), from_picture("xA.. ."));
  EXPECT_NE(from_picture("xA.."), from_picture("xB.."));
  EXPECT_NE(from_picture("x"), from_picture("."));
  EXPECT_NE(from_picture("x"), from_picture("A"));
  EXPECT_NE(from_picture("..|.."), from_picture("...."));
  EXPECT_NE(from_picture(". "), from_picture(".."));
  EXPECT_EQ(Letters(), Letters());
}

TEST(IntervalTree, ACopyIsIndependent) {
  Letters tree = from_picture("xA..");
  Letters copy(tree);
  ASSERT_THAT(copy.update(Range::point(1), 'B'), IsOk());
  EXPECT_EQ(to_picture(tree), "xA..");
  tree = copy;
  EXPECT_EQ(to_picture(tree), "xB..");
  const Letters& self = tree;
  tree = self;
  EXPECT_EQ(to_picture(tree), "xB..");
}

TEST(IntervalTree, AMovedFromTreeIsEmptyAndUsable) {
  Letters tree = from_picture("xA..");
  Letters moved(std::move(tree));
  EXPECT_EQ(to_picture(moved), "xA..");
  EXPECT_TRUE(tree.empty());  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(tree.begin(), tree.end());
  VMSPACE_EXPECT_OK(tree.check_invariants());
  VMSPACE_EXPECT_OK(tree.insert(Range::of(0, 1)));
  EXPECT_EQ(to_picture(tree), "..");
  moved = std::move(tree);
  EXPECT_EQ(to_picture(moved), "..");
}

TEST(IntervalTree, SwapExchangesAndClearForgets) {
  Letters a = from_picture("xA..");
  Letters b = from_picture(" B");
  swap(a, b);
  EXPECT_EQ(to_picture(a), " B");
  EXPECT_EQ(to_picture(b), "xA..");
  b.clear();
  EXPECT_TRUE(b.empty());
  VMSPACE_EXPECT_OK(b.insert(Range::whole_domain()));
}

}  // namespace
}  // namespace vmspace::interval_tree_lookup_test
