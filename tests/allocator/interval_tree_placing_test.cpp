// SPDX-License-Identifier: Apache-2.0
//
// Where allocate puts what: policies, windows and alignments, fragmentation drawn beside each case.

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "allocator/picture.hpp"

namespace vmspace::interval_tree_placing_test {
namespace {

using test::from_picture;
using test::Letters;
using test::to_picture;

constexpr std::uint64_t top = UINT64_MAX;
constexpr std::uint64_t half = std::uint64_t{1} << 63;

constexpr AllocPolicy first = AllocPolicy::first_match;
constexpr AllocPolicy last = AllocPolicy::last_match;
constexpr AllocPolicy best = AllocPolicy::best_match;

TEST(IntervalTree, AllocatePutsItWhereThePolicySays) {
  struct Case {
    const char* before;
    Constraint constraint;
    const char* after;
  };
  const std::vector<Case> cases = {
      {"........", {.size = 2}, "AA......"},
      {"........", {.size = 2, .policy = last}, "......AA"},
      {"xx.x....", {.size = 1}, "xxAx...."},
      {"xx.x....", {.size = 2}, "xx.xAA.."},
      {"xx..x...", {.size = 2, .policy = last}, "xx..x.AA"},
      {"....x..x...", {.size = 2, .policy = best}, "....xAAx..."},
      {"...x..x..x", {.size = 2, .policy = best}, "...xAAx..x"},  // equals: the lowest
      {"....x...", {.size = 2, .policy = best}, "....xAA."},
      {"x...x....x...", {.size = 2, .policy = best}, "xAA.x....x..."},  // none is just the size
      {"..|..x...", {.size = 3}, "..|..xAAA"},                          // what touches is not one
      {".. ....", {.size = 3}, ".. AAA."},
      // windows
      {"........", {.size = 2, .min = 3}, "...AA..."},
      {"........", {.size = 2, .min = 3, .max = 4}, "...AA..."},
      {"........", {.size = 2, .max = 4, .policy = last}, "...AA..."},
      {"...x....", {.size = 2, .min = 2}, "...xAA.."},
      {".....x..", {.size = 2, .min = 1, .policy = best}, ".....xAA"},
      {".....x..", {.size = 2, .min = 1, .max = 6, .policy = best}, ".AA..x.."},
      // best is what is left of a gap inside the window, not the whole gap
      {"..........x....x..", {.size = 2, .min = 8, .policy = best}, "........AAx....x.."},
      {"...x....x.........",
       {.size = 2, .min = 3, .max = 11, .policy = best},
       "...x....xAA......."},
      {"......x...x.......",
       {.size = 2, .min = 4, .max = 11, .policy = best},
       "....AAx...x......."},
      {"x...x....x...", {.size = 3, .min = 6, .max = 12, .policy = best}, "x...x.AAAx..."},
      // alignment
      {".......", {.size = 2, .min = 1, .align = 4}, "....AA."},
      {".......", {.size = 1, .align = 4, .policy = last}, "....A.."},
      {"x..x....", {.size = 2, .align = 2}, "x..xAA.."},  // long enough, wrong place
      {"x...x...", {.size = 2, .align = 2}, "x.AAx..."},
      {"x..x.x...", {.size = 1, .align = 8}, "x..x.x..A"},
      {"x..xx.x..", {.size = 2, .align = 2, .policy = best}, nullptr},
      {"....", {.size = 2, .align = 0}, "AA.."},
      {"x......", {.size = 3, .align = 2}, "x.AAA.."},
      // full, empty, not there
      {"xxAA", {.size = 1}, nullptr},
      {"...", {.size = 4}, nullptr},
      {"....", {.size = 2, .min = 3}, nullptr},
      {"....", {.size = 2, .min = 4}, nullptr},
      {" ...", {.size = 1, .max = 0}, nullptr},
      {"x...", {.size = 1, .align = half}, nullptr},
      {".xxx", {.size = 1, .align = half}, "Axxx"},
  };
  for (const Case& c : cases) {
    const Letters before = from_picture(c.before);
    Letters tree(before);
    const auto got = tree.allocate(c.constraint, 'A');
    VMSPACE_EXPECT_OK(tree.check_invariants());
    if (c.after != nullptr) {
      ASSERT_TRUE(got) << c.before << " " << got.error().message();
      EXPECT_EQ(to_picture(tree), c.after) << c.before;
      EXPECT_EQ(got->size(), c.constraint.size);
      EXPECT_EQ(*tree.find_value(got->min()), 'A');
      // And back: what touches at an edge of the picture stays as it was.
      ASSERT_THAT(tree.free(*got), IsOk());
      if (std::string_view(c.before).find('|') == std::string_view::npos) {
        EXPECT_EQ(tree, before) << c.before;
      }
    } else {
      ASSERT_FALSE(got) << c.before << " " << to_picture(tree);
      EXPECT_THAT(got, HasError(Errc::no_space));
      EXPECT_EQ(got.error().first, Operand::size(c.constraint.size));
      EXPECT_EQ(got.error().second, Operand::range(c.constraint.min, c.constraint.max));
      EXPECT_EQ(tree, before);
    }
  }
}

TEST(IntervalTree, AllocateWithoutAValueLeavesTheRangeAllocated) {
  Letters tree = from_picture("....");
  ASSERT_THAT(tree.allocate({.size = 2}), IsOk());
  EXPECT_EQ(to_picture(tree), "xx..");
}

TEST(IntervalTree, AllocateGivesTheConstraintsOwnError) {
  const Letters before = from_picture("....");
  for (const Constraint& bad : {Constraint{.size = 0}, Constraint{.size = 1, .align = 3},
                                Constraint{.size = 1, .min = 2, .max = 1}}) {
    Letters tree(before);
    const auto got = tree.allocate(bad, 'A');
    ASSERT_FALSE(got);
    EXPECT_EQ(got.error(), bad.validate().error().in("IntervalTree::allocate"));
    EXPECT_NE(got.error().code, Errc::no_space);
    EXPECT_EQ(tree, before);
    EXPECT_FALSE(tree.allocate(bad));
    EXPECT_EQ(tree, before);
  }
}

/// All that is needed to agree with allocate() for every constraint is in the model; here, that the
/// tree need not be one's own, and stays as it is.
TEST(IntervalTree, FindPlaceSaysWhereAllocateWouldGoAndTakesNothing) {
  const Letters tree = from_picture("x..A....");
  const Letters before(tree);
  for (const AllocPolicy policy : {first, last, best}) {
    const Constraint constraint{.size = 2, .policy = policy};
    const auto place = tree.find_place(constraint);
    ASSERT_TRUE(place);
    EXPECT_EQ(place, tree.find_place(constraint));
    EXPECT_EQ(place, Letters(tree).allocate(constraint));
    EXPECT_EQ(place, Letters(tree).choose_place(constraint));
    EXPECT_EQ(tree, before);
  }
  EXPECT_EQ(tree.find_place({.size = 2}), Range::of(1, 2));
  EXPECT_EQ(tree.find_place({.size = 2, .policy = last}), Range::of(6, 7));
}

TEST(IntervalTree, FindPlaceFailsAsAllocateDoesUnderItsOwnName) {
  Letters tree = from_picture("..x....x..");
  for (const Constraint& constraint :
       {Constraint{.size = 5}, Constraint{.size = 0}, Constraint{.size = 1, .align = 3}}) {
    EXPECT_EQ(tree.find_place(constraint).error(),
              tree.allocate(constraint).error().in("IntervalTree::find_place"));
    EXPECT_EQ(tree.choose_place(constraint).error(),
              tree.allocate(constraint).error().in("IntervalTree::choose_place"));
  }
  EXPECT_THAT(Letters().find_place({.size = 1}), HasError(Errc::no_space));
}

TEST(IntervalTree, AllocateInAnEmptyTreeIsNoSpace) {
  for (const AllocPolicy policy : {first, last, best}) {
    Letters tree;
    EXPECT_THAT(tree.allocate({.size = 1, .policy = policy}), HasError(Errc::no_space));
  }
}

TEST(IntervalTree, NoSpaceNamesTheLargestFreePieceOfTheWindow) {
  struct Case {
    const char* picture;
    Constraint constraint;
    Operand available;
    const char* reason;
  };
  const char* const misaligned = "no free range is long enough at this alignment";
  const char* const nothing = "no free range lies in this window";
  const std::vector<Case> cases = {
      {"..x....x..", {.size = 5}, Operand::range(3, 6), nullptr},
      {"..x....x..", {.size = 5, .policy = best}, Operand::range(3, 6), nullptr},
      {"..x..x..", {.size = 3, .policy = last}, Operand::range(0, 1), nullptr},  // the lowest
      {"..|...", {.size = 5}, Operand::range(2, 4), nullptr},
      {"..x....x..", {.size = 3, .min = 6}, Operand::range(8, 9), nullptr},
      {"..x....x...", {.size = 4, .min = 4, .max = 9}, Operand::range(4, 6), nullptr},
      {"..........", {.size = 4, .min = 4, .max = 6}, Operand::range(4, 6), nullptr},
      {"x......x", {.size = 4, .align = 8}, Operand::range(1, 6), misaligned},
      {"x...x.", {.size = 4, .align = 8}, Operand::range(1, 3), nullptr},
      {"xxAA", {.size = 1}, {}, nothing},
      {"..xx..", {.size = 1, .min = 2, .max = 3}, {}, nothing},
      {"", {.size = 1}, {}, nothing},
  };
  for (const Case& c : cases) {
    const auto got = from_picture(c.picture).allocate(c.constraint);
    ASSERT_FALSE(got) << c.picture;
    EXPECT_EQ(got.error(), (Error{.code = Errc::no_space,
                                  .operation = "IntervalTree::allocate",
                                  .first = Operand::size(c.constraint.size),
                                  .second = Operand::range(c.constraint.min, c.constraint.max),
                                  .available = c.available,
                                  .reason = c.reason}))
        << c.picture << " " << got.error().message();
  }
}

TEST(IntervalTree, NoSpaceNamesTheLargestFreePieceUpToTheWholeDomain) {
  IntervalTree<> tree;
  ASSERT_THAT(tree.insert(Range::whole_domain()), IsOk());
  const auto available = [&](const Constraint& constraint) {
    return tree.allocate(constraint).error().available;
  };
  EXPECT_EQ(available({.size = top, .min = 1, .align = half}), Operand::range(1, top));
  EXPECT_EQ(available({.size = top, .min = 2}), Operand::range(2, top));
  EXPECT_EQ(available({.size = top, .max = top - 2}), Operand::range(0, top - 2));
  EXPECT_EQ(available({.size = 2, .min = top}), Operand::range(top, top));
  EXPECT_EQ(available({.size = 2, .max = 0}), Operand::range(0, 0));
}

TEST(IntervalTree, AllocateReachesTheEndsOfTheDomain) {
  for (const AllocPolicy policy : {first, last, best}) {
    IntervalTree<> tree;
    ASSERT_THAT(tree.insert(Range::whole_domain()), IsOk());
    // The most that can be asked for leaves one member over.
    const auto most = tree.allocate({.size = top, .policy = policy});
    ASSERT_TRUE(most);
    EXPECT_EQ(*most, policy == last ? Range::of(1, top) : Range::of(0, top - 1));
    EXPECT_EQ(tree.allocate({.size = 1, .policy = policy}), Range::point(policy == last ? 0 : top));
    EXPECT_THAT(tree.allocate({.size = 1, .policy = policy}), HasError(Errc::no_space));
  }
}

TEST(IntervalTree, AllocateWithHugeAlignmentsTakesTheOnlyPlacesThereAre) {
  IntervalTree<> tree;
  ASSERT_THAT(tree.insert(Range::of(1, top)), IsOk());
  EXPECT_EQ(tree.allocate({.size = 1, .align = half}), Range::point(half));
  EXPECT_THAT(tree.allocate({.size = 1, .align = half}), HasError(Errc::no_space));
  EXPECT_THAT(tree.allocate({.size = half - 1, .align = half / 2, .policy = last}),
              HasError(Errc::no_space));
  EXPECT_EQ(tree.allocate({.size = half / 2, .align = half / 2, .policy = last}),
            Range::of(half + half / 2, top));
}

TEST(IntervalTree, AllocateNeverPassesTheEndOfTheDomain) {
  IntervalTree<> tree;
  ASSERT_THAT(tree.insert(Range::of(top - 0x1800, top)), IsOk());
  EXPECT_EQ(tree.allocate({.size = 0x1000, .align = 0x1000}), Range::of(top - 0xfff, top));
  EXPECT_THAT(tree.allocate({.size = 0x1000, .align = 0x1000}), HasError(Errc::no_space));
  EXPECT_EQ(tree.allocate({.size = 0x800, .min = top - 0x17ff}),
            Range::of(top - 0x17ff, top - 0x1000));
}

/// Thousands of gaps: the answer is the same as in a small tree, on every level.
TEST(IntervalTree, AllocateFindsTheOneGapThatFitsAmongThousands) {
  constexpr std::uint64_t gaps = 5000;
  for (const std::uint64_t wide : {std::uint64_t{0}, gaps / 2 + 7, gaps - 1}) {
    // Gaps of two members at odd addresses, and one of four.
    IntervalTree<std::uint64_t> tree;
    for (std::uint64_t i = 0; i < gaps; ++i) {
      const std::uint64_t base = 8 * i + 1;
      ASSERT_THAT(tree.insert(*Range::from_base_size(base, i == wide ? 4 : 2)), IsOk());
      ASSERT_THAT(tree.insert(Range::point(base + 6), std::uint64_t{i}), IsOk());
    }
    const std::uint64_t at = 8 * wide + 1;
    for (const AllocPolicy policy : {first, last, best}) {
      for (const auto& [constraint, place] :
           {std::pair<Constraint, std::uint64_t>{{.size = 3}, policy == last ? at + 1 : at},
            {{.size = 4}, at},
            {{.size = 2, .align = 2}, at + 1}}) {
        Constraint wanted = constraint;
        wanted.policy = policy;
        const auto got = tree.allocate(wanted);
        ASSERT_TRUE(got);
        EXPECT_EQ(got->min(), place);
        ASSERT_THAT(tree.free(*got), IsOk());
        wanted.min = at + 4;
        EXPECT_FALSE(tree.allocate(wanted));
        wanted.min = 0;
        wanted.max = at;
        EXPECT_FALSE(tree.allocate(wanted));
      }
    }
    VMSPACE_EXPECT_OK(tree.check_invariants());
  }
}

/// Subtrees on every level begin at some of these addresses: the only place is the first of one, and
/// the window ends, or begins, exactly there. All are taken and touch, so that the next subtree
/// begins one address on.
TEST(IntervalTree, TheSameRequestFindsWhatWasGivenBackBelow) {
  IntervalTree<> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 99'999)));
  const auto piece = [](std::uint64_t i) { return *Range::from_base_size(10 * i, 10); };
  for (std::uint64_t i = 0; i < 1000; ++i) {
    ASSERT_EQ(tree.allocate({.size = 10}), piece(i));
    if (i % 100 != 99) continue;
    const Range back = piece(i / 2);
    ASSERT_TRUE(tree.free(back));
    ASSERT_TRUE(tree.check_invariants());
    ASSERT_EQ(tree.allocate({.size = 10}), back);
    ASSERT_TRUE(tree.erase(back));
    ASSERT_TRUE(tree.insert(back));
    ASSERT_TRUE(tree.check_invariants());
    ASSERT_EQ(tree.allocate({.size = 10}), back);
    ASSERT_TRUE(tree.erase(back));
    ASSERT_EQ(tree.allocate({.size = 10}), piece(i + 1));
    ASSERT_TRUE(tree.restore(back));
    ASSERT_TRUE(tree.check_invariants());
    ASSERT_EQ(tree.allocate({.size = 10}), back);
    ASSERT_TRUE(tree.free(piece(i + 1)));
  }
}

TEST(IntervalTree, TheSameRequestFindsNothingInATreeThatWasEmptied) {
  IntervalTree<> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 99)));
  ASSERT_EQ(tree.allocate({.size = 10}), Range::of(0, 9));
  ASSERT_TRUE(tree.erase(Range::of(0, 9)));
  ASSERT_EQ(tree.extract({.size = 10}), Range::of(10, 19));
  ASSERT_TRUE(tree.erase(Range::of(20, 99)));
  ASSERT_TRUE(tree.check_invariants());
  EXPECT_FALSE(tree.allocate({.size = 10}));
  ASSERT_TRUE(tree.insert(Range::of(200, 299)));
  EXPECT_EQ(tree.allocate({.size = 10}), Range::of(200, 209));
  EXPECT_TRUE(tree.check_invariants());
}

TEST(IntervalTree, ARequestThatLiesInTheTreeIsMetAgainAfterItMoved) {
  IntervalTree<Constraint> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 9)));
  for (std::uint64_t i = 0; i < 40; ++i)
    ASSERT_TRUE(tree.insert(Range::point(100 + i), Constraint{.size = 1}));
  ASSERT_TRUE(tree.insert(Range::of(5000, 5999)));
  for (std::uint64_t i = 0; i < 10; ++i) {
    ASSERT_TRUE(tree.insert(Range::point(6000 + i),
                            i == 5 ? Constraint{.size = 1, .min = 5000} : Constraint{.size = 1}));
  }
  for (std::uint64_t i = 0; i < 40; ++i) {
    ASSERT_EQ(tree.allocate(*tree.find_value(6005)), Range::point(5000 + i));
    ASSERT_TRUE(tree.check_invariants()) << i;
  }
  EXPECT_EQ(tree.allocate({.size = 1}), Range::point(0));
}

TEST(IntervalTree, ARequestThatWasMetInOneLeafIsNotLookedForInAnother) {
  IntervalTree<> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 99'999)));
  for (std::uint64_t i = 0; i < 100; ++i)
    ASSERT_TRUE(tree.allocate_at(*Range::from_base_size(100 + 2 * i, 1)));
  constexpr Constraint low{.size = 10, .max = 99};
  ASSERT_EQ(tree.allocate(low), Range::of(0, 9));
  ASSERT_TRUE(tree.allocate_at(Range::of(1000, 1009)));  // cuts from the leaf at the end
  ASSERT_TRUE(tree.check_invariants());
  ASSERT_EQ(tree.allocate(low), Range::of(10, 19));
}

TEST(IntervalTree, AWindowThatEndsOrBeginsAtTheOnlyPlaceFindsIt) {
  constexpr std::uint64_t count = 3000;
  IntervalTree<> tree;
  for (std::uint64_t i = 0; i < count; ++i) {
    ASSERT_THAT(tree.insert(Range::point(i + 1)), IsOk());
    ASSERT_THAT(tree.allocate_at(Range::point(i + 1)), IsOk());
  }
  for (std::uint64_t i = 0; i < count; ++i) {
    const Range only = Range::point(i + 1);
    ASSERT_THAT(tree.free(only), IsOk());
    for (const AllocPolicy policy : {first, last, best}) {
      for (const std::uint64_t min : {std::uint64_t{0}, only.min()}) {
        const auto got =
            tree.allocate({.size = 1, .min = min, .max = only.max(), .policy = policy});
        ASSERT_EQ(got, only);
        ASSERT_THAT(tree.free(only), IsOk());
      }
      const auto above = tree.allocate({.size = 1, .min = only.min(), .policy = policy});
      ASSERT_EQ(above, only);
      ASSERT_THAT(tree.free(only), IsOk());
      ASSERT_FALSE(tree.allocate({.size = 1, .max = only.min() - 1, .policy = policy}));
      ASSERT_FALSE(tree.allocate({.size = 1, .min = only.max() + 1, .policy = policy}));
    }
    ASSERT_THAT(tree.allocate_at(only), IsOk());
  }
}

TEST(IntervalTree, WindowsOfEveryKindGiveWhatLiesInside) {
  IntervalTree<> tree;
  // 1,000 gaps of one page at every second page.
  for (std::uint64_t i = 0; i < 1000; ++i) {
    ASSERT_THAT(tree.insert(*Range::from_base_size(0x2000 * i, 0x1000)), IsOk());
  }
  for (std::uint64_t i = 0; i < 1000; i += 13) {
    const std::uint64_t base = 0x2000 * i;
    const Range page = *Range::from_base_size(base, 0x1000);
    // Just the page; a bit more on each side; what begins in the page before.
    const std::array windows = {page, *Range::make(base, base + 0x1fff),
                                *Range::make(base == 0 ? 0 : base - 0x1000, base + 0xfff),
                                *Range::make(base == 0 ? 0 : base - 0x1800, base + 0x27ff)};
    for (const Range& window : windows) {
      for (const AllocPolicy policy : {first, last, best}) {
        const auto got = tree.allocate(
            {.size = 0x1000, .min = window.min(), .max = window.max(), .policy = policy});
        ASSERT_EQ(got, page);
        ASSERT_THAT(tree.free(*got), IsOk());
      }
    }
    EXPECT_FALSE(tree.allocate({.size = 0x1000, .min = base + 1, .max = base + 0x2ffe}));
  }
  EXPECT_FALSE(tree.allocate({.size = 1, .min = 0x2000 * 1000}));
  // Of a thousand equal pieces the lowest of the window is named, and the longest of unequal ones.
  EXPECT_EQ(tree.allocate({.size = 0x1001, .min = 0x2001}).error().available,
            Operand::range(0x4000, 0x4fff));
  ASSERT_THAT(tree.erase(*Range::from_base_size(0x2000 * 999, 0x1000)), IsOk());
  ASSERT_THAT(tree.insert(*Range::from_base_size(0x2000 * 999, 0x1800)), IsOk());
  EXPECT_EQ(tree.allocate({.size = 0x1801}).error().available,
            Operand::range(0x2000 * 999, 0x2000 * 999 + 0x17ff));
}

TEST(IntervalTree, ARefusalNamesTheLowestOfTheLargestPiecesOfTheWindow) {
  // Gaps of 1 to 20 members, then of 20 to 1, then of 1 to 20.
  IntervalTree<> tree;
  std::vector<Range> gaps;
  std::uint64_t at = 0;
  for (int lap = 0; lap < 3; ++lap) {
    for (std::uint64_t i = 1; i <= 20; ++i) {
      const std::uint64_t size = lap == 1 ? 21 - i : i;
      gaps.push_back(*Range::from_base_size(at, size));
      ASSERT_TRUE(tree.insert(gaps.back()));
      at += size + 1;
    }
  }
  for (std::uint64_t min = 0; min < at; min += 3) {
    for (std::uint64_t max = min; max < at; max += 7) {
      std::optional<Range> largest;
      for (const Range& gap : gaps) {
        const auto part = gap.intersection(*Range::make(min, max));
        if (part && (!largest || part->size() > largest->size())) largest = part;
      }
      const auto refused = tree.allocate({.size = 21, .min = min, .max = max});
      ASSERT_THAT(refused, HasError(Errc::no_space));
      ASSERT_EQ(refused.error().available, largest ? detail::operand(*largest) : Operand{})
          << min << " to " << max;
    }
  }
  // A leaf whose longest range was cut, of which its ancestors have not heard.
  ASSERT_TRUE(tree.insert(Range::of(1000, 2000)));
  for (int i = 0; i < 10; ++i)
    ASSERT_TRUE(tree.allocate({.size = 100}));
  EXPECT_EQ(tree.allocate({.size = 100}).error().available, Operand::range(209, 228));
}

}  // namespace
}  // namespace vmspace::interval_tree_placing_test
