// SPDX-License-Identifier: Apache-2.0
//
// Free ranges that leave the tree and come back. See picture.hpp for how trees are drawn.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/allocator/interval_tree.hpp"
#include "vmspace/testing.hpp"

#include "allocator/picture.hpp"

namespace vmspace::interval_tree_extract_test {
namespace {

using test::from_picture;
using test::Letters;
using test::to_picture;
using ::testing::ElementsAre;

constexpr std::uint64_t top = UINT64_MAX;

/// The picture after a call that must succeed.
template <typename Call>
std::string after(Letters tree, Call call) {
  VMSPACE_EXPECT_OK(call(tree));
  VMSPACE_EXPECT_OK(tree.check_invariants());
  return to_picture(tree);
}

TEST(IntervalTreeExtract, TakesAPieceOutOfAFreeRangeAndLeavesTheRest) {
  const auto extract = [](std::uint64_t min, std::uint64_t max) {
    return [=](Letters& t) { return t.extract_at(*Range::make(min, max)); };
  };
  const Letters tree = from_picture("x.....A");
  EXPECT_EQ(after(tree, extract(3, 3)), "x.. ..A");
  EXPECT_EQ(after(tree, extract(1, 2)), "x  ...A");
  EXPECT_EQ(after(tree, extract(4, 5)), "x...  A");
  EXPECT_EQ(after(tree, extract(1, 5)), "x     A");
}

TEST(IntervalTreeExtract, GivesTheRangeThatAllocateWould) {
  for (const AllocPolicy policy :
       {AllocPolicy::first_match, AllocPolicy::last_match, AllocPolicy::best_match}) {
    Letters tree = from_picture(".......x..x.....A....");
    const Constraint constraint{.size = 2, .min = 1, .align = 2, .policy = policy};
    const Result<Range> expected = Letters(tree).allocate(constraint);
    EXPECT_EQ(tree.extract(constraint), expected);
    VMSPACE_EXPECT_OK(tree.check_invariants());
  }
}

TEST(IntervalTreeExtract, OfTheOnlyRangeLeavesAnEmptyTree) {
  EXPECT_EQ(after(from_picture(" .."), [](Letters& t) { return t.extract({.size = 2}); }), "");
}

TEST(IntervalTreeExtract, OfWhatIsNotFreeFailsAsAllocateAtDoesAndChangesNothing) {
  const Letters tree = from_picture("..x .|.A");
  for (std::uint64_t min = 0; min < 9; ++min) {
    for (std::uint64_t max = min; max < 9; ++max) {
      const Range range = *Range::make(min, max);
      Letters changed(tree);
      const auto taken = changed.extract_at(range);
      const auto expected = Letters(tree).allocate_at(range);
      ASSERT_EQ(taken.has_value(), expected.has_value()) << min << " " << max;
      if (taken) continue;
      EXPECT_EQ(taken.error(), expected.error().in("IntervalTree::extract_at"));
      EXPECT_EQ(changed, tree);
    }
  }
}

TEST(IntervalTreeExtract, WithoutAPlaceFailsAsAllocateDoes) {
  Letters tree = from_picture("..x.");
  const auto taken = tree.extract({.size = 3});
  ASSERT_FALSE(taken);
  EXPECT_EQ(
      taken.error().message(),
      "IntervalTree::extract: no space for 0x3 in [0x0, 0xffffffffffffffff]; the largest free "
      "piece is [0x0, 0x1]");
  EXPECT_EQ(tree.extract({.size = 0}).error().code, Errc::zero_size);
}

TEST(IntervalTreeExtract, RestoreAddsAFreeRangeAndMergesItWithThoseThatTouch) {
  const auto restore = [](std::uint64_t min, std::uint64_t max) {
    return [=](Letters& t) { return t.restore(*Range::make(min, max)); };
  };
  EXPECT_EQ(after(Letters(), restore(1, 2)), " ..");
  EXPECT_EQ(after(from_picture(".   ."), restore(2, 2)), ". . .");
  EXPECT_EQ(after(from_picture(".   ."), restore(1, 2)), "... .");
  EXPECT_EQ(after(from_picture(".   ."), restore(2, 3)), ". ...");
  EXPECT_EQ(after(from_picture(".   ."), restore(1, 3)), ".....");
  EXPECT_EQ(after(from_picture("x   A"), restore(1, 3)), "x...A");
  EXPECT_EQ(after(from_picture(".   A"), restore(1, 3)), "....A");
  EXPECT_EQ(after(from_picture("x   ."), restore(1, 3)), "x....");
  EXPECT_EQ(after(from_picture("   ."), restore(0, 1)), ".. .");
  // Those beside the ones that touch stay as they are.
  EXPECT_EQ(after(from_picture(".|.  .|."), restore(2, 3)), ".|....|.");
}

TEST(IntervalTreeExtract, RestoreOfAnOverlapNamesTheLowestRangeInTheWayAndChangesNothing) {
  Letters tree = from_picture("  .x  A");
  const Letters before(tree);
  const auto fails = [&](std::uint64_t min, std::uint64_t max, std::uint64_t obstacle) {
    const auto restored = tree.restore(*Range::make(min, max));
    ASSERT_FALSE(restored);
    EXPECT_EQ(restored.error().code, Errc::overlap);
    EXPECT_STREQ(restored.error().operation, "IntervalTree::restore");
    EXPECT_EQ(restored.error().first, Operand::range(min, max));
    EXPECT_EQ(restored.error().second, Operand::range(obstacle, obstacle));
    EXPECT_EQ(tree, before);
  };
  fails(2, 2, 2);
  fails(0, 2, 2);
  fails(3, 5, 3);
  fails(4, 6, 6);
  fails(0, top, 2);
  fails(6, top, 6);
}

TEST(IntervalTreeExtract, TheEndsOfTheDomainDoNotMergeAroundIt) {
  IntervalTree<> tree;
  VMSPACE_EXPECT_OK(tree.restore(Range::point(0)));
  VMSPACE_EXPECT_OK(tree.restore(Range::point(top)));
  EXPECT_EQ(tree.size(), 2U);
  VMSPACE_EXPECT_OK(tree.restore(Range::of(1, top - 1)));
  EXPECT_EQ(tree.size(), 1U);
  EXPECT_EQ(tree.extract({.size = top}), Range::of(0, top - 1));
  EXPECT_EQ(tree.extract_at(Range::point(top)), Range::point(top));
  EXPECT_TRUE(tree.empty());
  VMSPACE_EXPECT_OK(tree.restore(Range::whole_domain()));
  EXPECT_EQ(tree.extract_at(Range::whole_domain()), Range::whole_domain());
}

TEST(IntervalTreeExtract, SubtractTakesOutWhatIsFreeOfARangeAndNothingElse) {
  const auto without = [](std::string_view picture, std::uint64_t min, std::uint64_t max) {
    Letters tree = from_picture(picture);
    tree.subtract(*Range::make(min, max));
    VMSPACE_EXPECT_OK(tree.check_invariants());
    return to_picture(tree);
  };
  EXPECT_EQ(without("..........", 3, 4), "...  .....");
  EXPECT_EQ(without("....|.....", 3, 4), "...  ....");
  EXPECT_EQ(without("....|.....", 0, 9), "");
  EXPECT_EQ(without("..x..A. ..", 1, 8), ". x  A   .") << "what is taken stays";
  EXPECT_EQ(without("..x..A. ..", 2, 2), "..x..A. ..");
  EXPECT_EQ(without("  ..", 0, 1), "  ..") << "what is not there is no error";
  EXPECT_EQ(without("", 0, top), "");
}

TEST(IntervalTreeExtract, SubtractOfAnyRangeIsThatOfEachOfItsMembers) {
  const Letters tree = from_picture(" ..|.xA .|...x.B..|");
  for (std::uint64_t min = 0; min < 18; ++min) {
    for (std::uint64_t max = min; max < 20; ++max) {
      Letters at_once(tree);
      at_once.subtract(*Range::make(min, max));
      Letters one_by_one(tree);
      for (std::uint64_t member = min; member <= max; ++member)
        one_by_one.subtract(Range::point(member));
      EXPECT_EQ(at_once, one_by_one) << min << " " << max;
      VMSPACE_EXPECT_OK(at_once.check_invariants());
    }
  }
}

// What is left of a window when others have reserved parts of it, which may overlap and reach out.
TEST(IntervalTreeExtract, SubtractingGivesWhatReservedRangesLeave) {
  IntervalTree<> usable;
  VMSPACE_ASSERT_OK(usable.insert(Range::of(0x1000, 0xffff'ffff'ffff)));
  for (const Range& reserved : {Range::of(0, 0x1fff), Range::of(0xfee0'0000, 0xfeef'ffff),
                                Range::of(0xfee0'0000, 0xfeef'ffff),
                                Range::of(0xfeef'f000, 0xfef0'0fff), Range::of(1ULL << 40, top)})
    usable.subtract(reserved);
  const auto left = usable.free_ranges();
  EXPECT_THAT(
      std::vector<Range>(left.begin(), left.end()),
      ElementsAre(Range::of(0x2000, 0xfedf'ffff), Range::of(0xfef0'1000, (1ULL << 40) - 1)));
}

TEST(IntervalTreeExtract, SubtractReachesOverLeaves) {
  IntervalTree<int> tree;
  constexpr std::uint64_t count = 2000;
  for (std::uint64_t i = 0; i < count; ++i) {  // two free, a taken one, a gap
    VMSPACE_ASSERT_OK(tree.insert(*Range::make(4 * i, 4 * i + 1)));
    VMSPACE_ASSERT_OK(tree.insert(Range::point(4 * i + 2), 1));
  }
  tree.subtract(Range::of(5, 4 * count - 4));
  VMSPACE_EXPECT_OK(tree.check_invariants());
  const auto left = tree.free_ranges();
  EXPECT_THAT(std::vector<Range>(left.begin(), left.end()),
              ElementsAre(Range::of(0, 1), Range::point(4), Range::point(4 * count - 3)));
  EXPECT_EQ(tree.stats().valued_ranges, count);
  tree.subtract(Range::whole_domain());
  EXPECT_TRUE(tree.free_ranges().empty());
  EXPECT_EQ(tree.size(), count);
}

TEST(IntervalTreeExtract, MergesAcrossLeaves) {
  IntervalTree<> tree;
  constexpr std::uint64_t count = 2000;
  for (std::uint64_t i = 0; i < count; ++i)
    VMSPACE_EXPECT_OK(tree.restore(Range::point(2 * i)));
  ASSERT_EQ(tree.size(), count);
  for (std::uint64_t i = 0; i + 1 < count; ++i)
    VMSPACE_ASSERT_OK(tree.restore(Range::point(2 * (i * 7 % (count - 1)) + 1)));
  ASSERT_EQ(tree.size(), 1U);
  EXPECT_EQ((*tree.begin()).range, Range::of(0, 2 * count - 2));
}

TEST(IntervalTreeExtract, ReserveChangesNoRange) {
  Letters tree = from_picture("..x.A");
  const Letters before(tree);
  tree.reserve(10'000);
  EXPECT_EQ(tree, before);
  Letters copy(tree);
  copy.reserve(0);
  EXPECT_EQ(copy, before);
  Letters moved(std::move(tree));
  EXPECT_EQ(moved, before);
  VMSPACE_EXPECT_OK(moved.check_invariants());
}

}  // namespace
}  // namespace vmspace::interval_tree_extract_test
