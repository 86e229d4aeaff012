// SPDX-License-Identifier: Apache-2.0
//
// Every outcome of every call that changes a tree: what it gives, what it leaves, and, where it
// fails, that it leaves everything. See picture.hpp for how trees are drawn.

#include "vmspace/allocator/interval_tree.hpp"

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "allocator/picture.hpp"

namespace vmspace::interval_tree_test {
namespace {

using test::from_picture;
using test::Letters;
using test::to_picture;

constexpr std::uint64_t top = UINT64_MAX;

/// A call on a copy of `tree`, which must fail with this error and change nothing.
template <typename Call>
void fails(const Letters& tree, Errc code, const Operand& first, const Operand& second, Call call) {
  Letters after(tree);
  const auto result = call(after);
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, code) << result.error().message();
  EXPECT_EQ(result.error().first, first) << result.error().message();
  EXPECT_EQ(result.error().second, second) << result.error().message();
  EXPECT_EQ(after, tree) << to_picture(after);
  VMSPACE_EXPECT_OK(after.check_invariants());
}

Operand range(std::uint64_t min, std::uint64_t max) {
  return Operand::range(min, max);
}

/// What update, free and erase give of a range that had this value, or none.
Result<std::optional<char>> had(char value) {
  return std::optional(value);
}
Result<std::optional<char>> had_none() {
  return std::optional<char>();
}

// -- insert ------------------------------------------------------------------------------------

TEST(IntervalTree, InsertAddsAFreeRange) {
  Letters tree;
  VMSPACE_EXPECT_OK(tree.insert(Range::of(2, 4)));
  EXPECT_EQ(to_picture(tree), "  ...");
}

TEST(IntervalTree, InsertWithAValueAddsATakenRange) {
  Letters tree;
  VMSPACE_EXPECT_OK(tree.insert(Range::of(2, 4), 'A'));
  EXPECT_EQ(to_picture(tree), "  AAA");
}

TEST(IntervalTree, InsertDoesNotMerge) {
  Letters tree = from_picture("..");
  VMSPACE_EXPECT_OK(tree.insert(Range::of(2, 4)));
  EXPECT_EQ(to_picture(tree), "..|...");
}

TEST(IntervalTree, InsertOfAnOverlapNamesTheLowestRangeItMeetsAndChangesNothing) {
  const Letters tree = from_picture("  ..xA   ..");
  const auto insert = [](std::uint64_t min, std::uint64_t max) {
    return [=](Letters& t) { return t.insert(*Range::make(min, max)); };
  };
  fails(tree, Errc::overlap, range(3, 3), range(2, 3), insert(3, 3));
  fails(tree, Errc::overlap, range(0, 2), range(2, 3), insert(0, 2));
  fails(tree, Errc::overlap, range(5, 9), range(5, 5), insert(5, 9));
  fails(tree, Errc::overlap, range(6, 20), range(9, 10), insert(6, 20));
  fails(tree, Errc::overlap, range(0, top), range(2, 3), insert(0, top));
  fails(tree, Errc::overlap, range(4, 4), range(4, 4),
        [](Letters& t) { return t.insert(Range::point(4), 'B'); });
}

TEST(IntervalTree, InsertReachesBothEndsOfTheDomain) {
  IntervalTree<> tree;
  VMSPACE_EXPECT_OK(tree.insert(Range::point(top)));
  VMSPACE_EXPECT_OK(tree.insert(Range::point(0)));
  VMSPACE_EXPECT_OK(tree.insert(Range::of(1, top - 1)));
  EXPECT_EQ(tree.size(), 3U);
  EXPECT_EQ(tree.insert(Range::whole_domain()).error().second, range(0, 0));
  VMSPACE_EXPECT_OK(tree.check_invariants());
}

// -- allocate_at -------------------------------------------------------------------------------

TEST(IntervalTree, AllocateAtTakesExactlyTheRange) {
  Letters tree = from_picture("......");
  EXPECT_EQ(tree.allocate_at(Range::of(2, 3)), Range::of(2, 3));
  EXPECT_EQ(to_picture(tree), "..xx..");
  EXPECT_EQ(tree.allocate_at(Range::of(0, 1), 'A'), Range::of(0, 1));
  EXPECT_EQ(to_picture(tree), "AAxx..");
  EXPECT_EQ(tree.allocate_at(Range::of(5, 5), 'B'), Range::of(5, 5));
  EXPECT_EQ(to_picture(tree), "AAxx.B");
  EXPECT_EQ(tree.allocate_at(Range::of(4, 4)), Range::of(4, 4));
  EXPECT_EQ(to_picture(tree), "AAxxxB");
}

TEST(IntervalTree, AllocateAtOfWhatIsTakenIsBadStateBeforeAllElse) {
  //                               0123456789
  const Letters tree = from_picture(" ..x.A ..|.");
  const auto at = [](std::uint64_t min, std::uint64_t max) {
    return [=](Letters& t) { return t.allocate_at(*Range::make(min, max)); };
  };
  // Taken, taken with free and unmanaged parts, and both: the lowest is named.
  fails(tree, Errc::bad_state, range(3, 3), range(3, 3), at(3, 3));
  fails(tree, Errc::bad_state, range(0, 3), range(3, 3), at(0, 3));
  fails(tree, Errc::bad_state, range(4, 6), range(5, 5), at(4, 6));
  fails(tree, Errc::bad_state, range(0, top), range(3, 3), at(0, top));
  // Not managed, in whole, at an end, between.
  fails(tree, Errc::not_found, range(0, 0), {}, at(0, 0));
  fails(tree, Errc::not_found, range(0, 1), {}, at(0, 1));
  fails(tree, Errc::not_found, range(9, 10), {}, at(9, 10));
  fails(tree, Errc::not_found, range(6, 8), {}, at(6, 8));
  fails(tree, Errc::not_found, range(20, top), {}, at(20, top));
  // Free and in one piece for the eye only.
  fails(tree, Errc::bad_state, range(8, 9), {}, at(8, 9));
  fails(tree, Errc::bad_state, range(8, 9), {},
        [](Letters& t) { return t.allocate_at(Range::of(8, 9), 'C'); });
}

TEST(IntervalTree, AllocateAtLooksForGapsUpToTheEndOfTheDomain) {
  IntervalTree<> tree;
  ASSERT_THAT(tree.insert(Range::of(top - 9, top - 5)), IsOk());
  ASSERT_THAT(tree.insert(Range::of(top - 4, top)), IsOk());
  EXPECT_THAT(tree.allocate_at(Range::of(top - 9, top)), HasError(Errc::bad_state));
  EXPECT_THAT(tree.allocate_at(Range::of(top - 10, top)), HasError(Errc::not_found));
  EXPECT_EQ(tree.allocate_at(Range::of(top, top)), Range::point(top));
  ASSERT_THAT(tree.erase(Range::point(top)), IsOk());
  EXPECT_THAT(tree.allocate_at(Range::of(top - 1, top)), HasError(Errc::not_found));
}

TEST(IntervalTree, AllocateAtInAnEmptyTreeIsNotFound) {
  fails(Letters(), Errc::not_found, range(0, top), {},
        [](Letters& t) { return t.allocate_at(Range::whole_domain()); });
}

// -- update ------------------------------------------------------------------------------------

TEST(IntervalTree, UpdateGivesBackTheOldValue) {
  Letters tree = from_picture("xA.");
  EXPECT_EQ(tree.update(Range::point(1), 'B'), had('A'));
  EXPECT_EQ(to_picture(tree), "xB.");
  EXPECT_EQ(tree.update(Range::point(0), 'C'), had_none());
  EXPECT_EQ(to_picture(tree), "CB.");
}

TEST(IntervalTree, UpdateOfAFreeOrUnknownRangeFailsAndChangesNothing) {
  const Letters tree = from_picture("xA.. ");
  const auto update = [](std::uint64_t min, std::uint64_t max) {
    return [=](Letters& t) { return t.update(*Range::make(min, max), 'Z'); };
  };
  fails(tree, Errc::bad_state, range(2, 3), {}, update(2, 3));
  fails(tree, Errc::bad_state, range(2, 2), {}, update(2, 2));
  fails(tree, Errc::overlap, range(0, 1), range(0, 0), update(0, 1));
  fails(tree, Errc::overlap, range(1, 2), range(1, 1), update(1, 2));
  fails(tree, Errc::not_found, range(4, 4), {}, update(4, 4));
  fails(Letters(), Errc::not_found, range(0, top), {}, update(0, top));
}

// -- free --------------------------------------------------------------------------------------

TEST(IntervalTree, FreeMergesWithTheFreeRangesThatTouch) {
  struct Case {
    const char* before;
    Range range;
    const char* after;
  };
  const std::vector<Case> cases = {
      {"x", Range::point(0), "."},
      {"xAx", Range::point(1), "x.x"},
      {"..A", Range::point(2), "..."},
      {"A..", Range::point(0), "..."},
      {"..A..", Range::point(2), "....."},
      {".x.", Range::point(1), "..."},
      {". A .", Range::point(2), ". . ."},
      {"..|..A..|..", Range::point(4), "..|.....|.."},  // the immediate ones, no further
      {".Ax.", Range::point(1), "..x."},
  };
  for (const Case& c : cases) {
    Letters tree = from_picture(c.before);
    const auto value = tree.free(c.range);
    ASSERT_TRUE(value) << c.before;
    EXPECT_EQ(value->has_value(), std::string(c.before).find('A') != std::string::npos);
    EXPECT_EQ(to_picture(tree), c.after) << c.before;
    VMSPACE_EXPECT_OK(tree.check_invariants());
  }
}

TEST(IntervalTree, NeighboursOfLengthOneMerge) {
  Letters tree = from_picture("xxxx");
  for (const std::uint64_t i : {0U, 2U, 1U, 3U})
    ASSERT_THAT(tree.free(Range::point(i)), IsOk());
  EXPECT_EQ(to_picture(tree), "....");
  EXPECT_EQ(tree.size(), 1U);
}

TEST(IntervalTree, FreeOfARangeThatWasNeverAllocatedIsNotFoundAndAddsNothing) {
  const Letters tree = from_picture("  xA");
  const auto free = [](std::uint64_t min, std::uint64_t max) {
    return [=](Letters& t) { return t.free(*Range::make(min, max)); };
  };
  fails(tree, Errc::not_found, range(0, 1), {}, free(0, 1));
  fails(tree, Errc::not_found, range(9, 9), {}, free(9, 9));
  fails(Letters(), Errc::not_found, range(0, 0), {}, free(0, 0));
  fails(Letters(), Errc::not_found, range(0, top), {}, free(0, top));
}

TEST(IntervalTree, FreeTwiceIsBadStateHoweverItMergedAndChangesNothing) {
  // All of 4 to 7 is free: by itself, merged on one side or both, or in pieces that touch.
  for (const char* picture : {"xxxx....xxxx", "xx......xxxx", "xxxx......xx", "............",
                              "xxxx..|..xxx", "xx....|...|.", "    ....    "}) {
    fails(from_picture(picture), Errc::bad_state, range(4, 7), {},
          [](Letters& t) { return t.free(Range::of(4, 7)); });
  }
  // And as it comes about.
  Letters tree = from_picture("xAx");
  ASSERT_THAT(tree.free(Range::point(1)), IsOk());
  fails(tree, Errc::bad_state, range(1, 1), {}, [](Letters& t) { return t.free(Range::point(1)); });
  ASSERT_THAT(tree.free(Range::point(0)), IsOk());
  fails(tree, Errc::bad_state, range(1, 1), {}, [](Letters& t) { return t.free(Range::point(1)); });
  fails(tree, Errc::bad_state, range(0, 0), {}, [](Letters& t) { return t.free(Range::point(0)); });
}

TEST(IntervalTree, FreeOfTheWholeDomainTwiceIsBadState) {
  Letters tree;
  ASSERT_THAT(tree.insert(Range::whole_domain(), 'A'), IsOk());
  ASSERT_THAT(tree.free(Range::whole_domain()), IsOk());
  for (const Range again : {Range::whole_domain(), Range::point(0), Range::point(top)}) {
    fails(tree, Errc::bad_state, range(again.min(), again.max()), {},
          [&](Letters& t) { return t.free(again); });
  }
}

TEST(IntervalTree, FreeOfWhatWasNotTakenAsItIsGivenIsOverlapAndNamesTheRangeThatIsThere) {
  Letters tree;
  ASSERT_THAT(tree.insert(Range::of(10, 19), 'A'), IsOk());
  ASSERT_THAT(tree.insert(Range::of(20, 29), 'B'), IsOk());
  ASSERT_THAT(tree.insert(Range::of(30, 39)), IsOk());
  ASSERT_THAT(tree.insert(Range::of(50, 59)), IsOk());
  struct Case {
    Range wrong;
    Range named;
  };
  for (const Case& c : std::initializer_list<Case>{
           {Range::of(10, 18), Range::of(10, 19)},  // a part, at each end and inside
           {Range::of(11, 19), Range::of(10, 19)},
           {Range::point(25), Range::of(20, 29)},
           {Range::of(10, 29), Range::of(10, 19)},  // two
           {Range::of(9, 19), Range::of(10, 19)},   // with what is not in the tree
           {Range::of(20, 39), Range::of(20, 29)},  // with what is free
           {Range::of(25, 59), Range::of(20, 29)},
           {Range::whole_domain(), Range::of(10, 19)},
           // Free, and not in the tree, in any order: what is there is free.
           {Range::of(30, 40), Range::of(30, 39)},
           {Range::of(40, 55), Range::of(50, 59)},
           {Range::of(35, 55), Range::of(30, 39)},
           {Range::of(55, top), Range::of(50, 59)},
       }) {
    fails(tree, Errc::overlap, range(c.wrong.min(), c.wrong.max()),
          range(c.named.min(), c.named.max()), [&](Letters& t) { return t.free(c.wrong); });
    fails(tree, Errc::overlap, range(c.wrong.min(), c.wrong.max()),
          range(c.named.min(), c.named.max()), [&](Letters& t) { return t.update(c.wrong, 'Z'); });
  }
}

TEST(IntervalTree, FreeOfARangeThatIsPartlyFreedNamesThePartThatIsTaken) {
  Letters tree = from_picture("....xx");
  fails(tree, Errc::overlap, range(0, 5), range(4, 4),
        [](Letters& t) { return t.free(Range::of(0, 5)); });
  EXPECT_EQ(tree.free(Range::of(0, 5)).error().message(),
            "IntervalTree::free: [0x0, 0x5] overlaps [0x4, 0x4] (the range must be exactly one "
            "taken range)");
}

TEST(IntervalTree, FreeCoalescesBackToTheWholeDomain) {
  IntervalTree<> tree;
  ASSERT_THAT(tree.insert(Range::whole_domain()), IsOk());
  const std::uint64_t half = std::uint64_t{1} << 63;
  const std::vector<Range> parts = {Range::point(0), Range::of(half, half + 9),
                                    Range::of(top - 4, top - 1), Range::point(top)};
  for (const Range& part : parts)
    ASSERT_EQ(tree.allocate_at(part), part);
  EXPECT_EQ(tree.size(), 6U);
  for (const Range& part : {parts[3], parts[0], parts[2], parts[1]})
    ASSERT_THAT(tree.free(part), IsOk());
  ASSERT_EQ(tree.size(), 1U);
  EXPECT_EQ((*tree.begin()).range, Range::whole_domain());
  VMSPACE_EXPECT_OK(tree.check_invariants());
}

TEST(IntervalTree, TheEndsOfTheDomainDoNotMergeAroundIt) {
  IntervalTree<> tree;
  for (const Range& end : {Range::point(0), Range::point(top)}) {
    ASSERT_THAT(tree.insert(end), IsOk());
    ASSERT_THAT(tree.allocate_at(end), IsOk());
  }
  ASSERT_THAT(tree.free(Range::point(0)), IsOk());
  ASSERT_THAT(tree.free(Range::point(top)), IsOk());
  EXPECT_EQ(tree.size(), 2U);
}

// -- erase -------------------------------------------------------------------------------------

TEST(IntervalTree, EraseTakesARangeInAnyStateOutOfTheTree) {
  Letters tree = from_picture("..xA.");
  EXPECT_EQ(tree.erase(Range::point(3)), had('A'));
  EXPECT_EQ(to_picture(tree), "..x .");
  EXPECT_EQ(tree.erase(Range::of(0, 1)), had_none());
  EXPECT_EQ(to_picture(tree), "  x .");
  EXPECT_EQ(tree.erase(Range::point(2)), had_none());
  VMSPACE_EXPECT_OK(tree.erase(Range::point(4)));
  EXPECT_TRUE(tree.empty());
  VMSPACE_EXPECT_OK(tree.check_invariants());
}

TEST(IntervalTree, EraseOfWhatIsNotThereExactlyFailsAndChangesNothing) {
  const Letters tree = from_picture("..xA.");
  const auto erase = [](std::uint64_t min, std::uint64_t max) {
    return [=](Letters& t) { return t.erase(*Range::make(min, max)); };
  };
  fails(tree, Errc::overlap, range(0, 0), range(0, 1), erase(0, 0));
  fails(tree, Errc::overlap, range(1, 1), range(0, 1), erase(1, 1));
  fails(tree, Errc::overlap, range(0, 2), range(0, 1), erase(0, 2));
  fails(tree, Errc::overlap, range(2, 3), range(2, 2), erase(2, 3));
  fails(tree, Errc::overlap, range(0, top), range(0, 1), erase(0, top));
  fails(tree, Errc::not_found, range(9, 9), {}, erase(9, 9));
  fails(Letters(), Errc::not_found, range(0, top), {}, erase(0, top));
}

// -- errors ------------------------------------------------------------------------------------

TEST(IntervalTree, ErrorsReadAsOneLine) {
  Letters tree = from_picture("..A");
  EXPECT_EQ(tree.insert(Range::of(1, 5)).error().message(),
            "IntervalTree::insert: [0x1, 0x5] overlaps [0x0, 0x1]");
  EXPECT_EQ(tree.allocate({.size = 0x4000}).error().message(),
            "IntervalTree::allocate: no space for 0x4000 in [0x0, 0xffffffffffffffff]; the largest "
            "free piece is [0x0, 0x1]");
  EXPECT_EQ(tree.free(Range::of(0, 1)).error().message(),
            "IntervalTree::free: wrong state: [0x0, 0x1] (the range is already free)");
  EXPECT_EQ(
      tree.allocate_at(Range::of(1, 2)).error().message(),
      "IntervalTree::allocate_at: wrong state: [0x1, 0x2] conflicts with [0x2, 0x2] (part of the "
      "range is already taken)");
}

TEST(IntervalTree, EveryErrorNamesTheCallThatFailed) {
  Letters tree = from_picture("..A");
  const auto expect = [](const Error& error, const char* operation) {
    EXPECT_STREQ(error.operation, operation) << error.message();
  };
  expect(tree.insert(Range::of(0, 9)).error(), "IntervalTree::insert");
  expect(tree.insert(Range::of(0, 9), 'B').error(), "IntervalTree::insert");
  for (const std::uint64_t size : {0U, 9U}) {
    expect(tree.find_place({.size = size}).error(), "IntervalTree::find_place");
    expect(tree.allocate({.size = size}).error(), "IntervalTree::allocate");
    expect(tree.allocate({.size = size}, 'B').error(), "IntervalTree::allocate");
  }
  expect(tree.allocate_at(Range::point(2)).error(), "IntervalTree::allocate_at");
  expect(tree.allocate_at(Range::point(2), 'B').error(), "IntervalTree::allocate_at");
  expect(tree.update(Range::point(0), 'B').error(), "IntervalTree::update");
  expect(tree.free(Range::point(0)).error(), "IntervalTree::free");
  expect(tree.erase(Range::point(0)).error(), "IntervalTree::erase");
}

}  // namespace
}  // namespace vmspace::interval_tree_test
