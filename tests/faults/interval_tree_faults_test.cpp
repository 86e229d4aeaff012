// SPDX-License-Identifier: Apache-2.0
//
// Memory runs out at every allocation that a call on a tree makes: the tree is as it was, and what
// takes things back never asks for memory.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/allocator.hpp"

#include "faults/failing_new.hpp"

namespace vmspace::interval_tree_faults_test {
namespace {

using test::asked;
using test::granted;
using Tree = IntervalTree<std::uint64_t>;

/// Calls `change` on copies of `tree` with one more allocation granted each time, until it gets
/// through; returns how often it failed.
template <typename T, typename Change>
int fail_each_allocation(const T& tree, Change change) {
  for (int n = 0;; ++n) {
    T copy(tree);
    const auto* const first = copy.empty() ? nullptr : (*copy.begin()).value;
    granted = n;
    try {
      change(copy);
      granted = -1;
      EXPECT_TRUE(copy.check_invariants());
      return n;
    } catch (const std::bad_alloc&) {
      granted = -1;
      EXPECT_EQ(copy, tree) << "after " << n << " allocations";
      EXPECT_TRUE(copy.check_invariants());
      // Not even moved: pointers to values hold.
      if (first != nullptr) {
        EXPECT_EQ(first, (*copy.begin()).value);
      }
    }
  }
}

/// `n` values at even addresses, and one long free range after them.
Tree tree_of(std::uint64_t n) {
  Tree tree;
  for (std::uint64_t i = 0; i < n; ++i)
    EXPECT_TRUE(tree.insert(Range::point(2 * i), i));
  EXPECT_TRUE(tree.insert(Range::of(10'000, 99'999)));
  return tree;
}

TEST(IntervalTreeFaults, MakingAndMovingAndDestroyingATreeAsksForNoMemory) {
  asked = 0;
  {
    Tree tree;
    Tree moved(std::move(tree));
    swap(tree, moved);
    moved = std::move(tree);
    EXPECT_EQ(moved.find(0), std::nullopt);
  }
  EXPECT_EQ(asked, 0);
}

TEST(IntervalTreeFaults, AFailedInsertOrAllocateLeavesTheTreeAsItWas) {
  int most = 0;
  for (std::uint64_t n = 0; n < 1100; n += n < 100 ? 1 : 37) {
    const Tree tree = tree_of(n);
    most = std::max(most, fail_each_allocation(tree, [](Tree& t) {
                      ASSERT_TRUE(t.insert(Range::point(1), std::uint64_t{7}));
                    }));
    most = std::max(most, fail_each_allocation(
                              tree, [](Tree& t) { ASSERT_TRUE(t.insert(Range::of(5001, 5002))); }));
    most = std::max(most, fail_each_allocation(tree, [](Tree& t) {
                      ASSERT_TRUE(t.allocate({.size = 10, .min = 20'001}, std::uint64_t{1}));
                    }));
    most = std::max(most, fail_each_allocation(tree, [](Tree& t) {
                      ASSERT_TRUE(t.allocate_at(Range::of(50'000, 50'001)));
                    }));
    most = std::max(most, fail_each_allocation(tree, [](Tree& t) {
                      ASSERT_TRUE(t.allocate({.size = 10, .policy = AllocPolicy::best_match}));
                    }));
    most = std::max(most, fail_each_allocation(tree, [](Tree& t) {
                      ASSERT_TRUE(t.extract({.size = 10, .min = 20'001}));
                    }));
    most = std::max(most, fail_each_allocation(tree, [](Tree& t) {
                      ASSERT_TRUE(t.extract_at(Range::of(50'000, 50'001)));
                    }));
    most = std::max(
        most, fail_each_allocation(tree, [](Tree& t) { t.subtract(Range::of(50'000, 50'001)); }));
    most = std::max(
        most, fail_each_allocation(tree, [](Tree& t) { ASSERT_TRUE(t.restore(Range::point(1))); }));
    most = std::max(most, fail_each_allocation(tree, [](Tree& t) {
                      ASSERT_TRUE(t.restore(Range::of(5001, 5002)));
                    }));
  }
  EXPECT_EQ(most, 2);  // a leaf and a root, at 32 and 33 ranges
}

TEST(IntervalTreeFaults, AFailedMoveFromOneRangeToAnotherLeavesTheValueWhereItWas) {
  for (std::uint64_t n = 1; n < 70; ++n) {
    IntervalTree<std::string> tree;
    for (std::uint64_t i = 0; i < n; ++i)
      ASSERT_TRUE(tree.insert(Range::point(1000 + i), std::to_string(i)));
    ASSERT_TRUE(tree.insert(Range::of(500, 999)));
    fail_each_allocation(tree, [](auto& t) {
      ASSERT_TRUE(t.insert(Range::point(1), std::move(*t.find_value(1000))));
    });
    fail_each_allocation(tree, [](auto& t) {
      ASSERT_TRUE(t.allocate({.size = 1, .min = 700}, std::move(*t.find_value(1000))));
    });
  }
}

/// Every node on the way is full: the call asks for one on each level and one for a new root.
TEST(IntervalTreeFaults, AFailedSplitOfEveryLevelLeavesTheTreeAsItWas) {
  const auto grow = [](Tree& tree, std::uint64_t n) {
    return tree.insert(Range::point(UINT64_MAX - 2 * n), n).has_value();
  };
  // How many ranges there are when a split first asks for a leaf, an inner node, and a root.
  asked = 0;
  std::uint64_t full = 0;
  for (Tree tree; asked < 3; ++full) {
    asked = 0;
    ASSERT_TRUE(grow(tree, full));
    ASSERT_LT(full, 10'000U);
  }
  Tree tree;
  for (std::uint64_t n = 0; n + 1 < full; ++n)
    ASSERT_TRUE(grow(tree, n));
  EXPECT_EQ(fail_each_allocation(tree, [&](Tree& t) { ASSERT_TRUE(grow(t, full - 1)); }), 3);
}

TEST(IntervalTreeFaults, AFailedCopyLeavesNothingBehind) {
  IntervalTree<std::string> tree;
  for (std::uint64_t i = 0; i < 100; ++i) {
    ASSERT_TRUE(tree.insert(Range::point(i), "a text that is too long to be kept in place"));
  }
  const int failed =
      fail_each_allocation(tree, [&tree](IntervalTree<std::string>& t) { t = tree; });
  EXPECT_GT(failed, 100);
}

TEST(IntervalTreeFaults, FreeEraseAndUpdateNeverAskForMemory) {
  for (const bool erase : {false, true}) {
    Tree tree;
    ASSERT_TRUE(tree.insert(Range::whole_domain()));
    std::vector<Range> live;
    for (std::uint64_t i = 0; i < 3000; ++i) {
      live.push_back(*tree.allocate({.size = 1 + i % 7, .align = std::uint64_t{1} << i % 4}, i));
    }
    asked = 0;
    granted = 0;
    // Steps that share no divisor with 3,000 meet every range once, in an order that leaves holes.
    for (std::uint64_t i = 0; i < live.size(); ++i) {
      const Range& range = live[i * 1'009 % live.size()];
      ASSERT_TRUE(tree.update(range, i));
      ASSERT_TRUE(erase ? tree.erase(range) : tree.free(range));
    }
    granted = -1;
    EXPECT_EQ(asked, 0);
    EXPECT_TRUE(tree.check_invariants());
    if (!erase) {
      ASSERT_EQ(tree.size(), 1U);
      EXPECT_EQ((*tree.begin()).range, Range::whole_domain());
    }
  }
}

/// In an order that leaves holes, and in both orders that fill nodes least.
TEST(IntervalTreeFaults, NothingAsksForMoreMemoryThanIsReserved) {
  constexpr std::uint64_t count = 3001;
  const std::vector<std::uint64_t (*)(std::uint64_t)> orders = {
      [](std::uint64_t n) { return n; },
      [](std::uint64_t n) { return count - 1 - n; },
      [](std::uint64_t n) { return n * 1'009 % count; },
  };
  for (const auto& order : orders) {
    for (std::uint64_t kept = 1; kept < 11; ++kept) {
      IntervalTree<> tree;
      tree.reserve(count);
      asked = 0;
      granted = 0;
      for (int round = 0; round < 3; ++round) {
        for (std::uint64_t i = 0; i < count; ++i)
          ASSERT_TRUE(tree.restore(Range::point(2 * order(i))));
        // Of so many, one stays: nodes empty until they are merged, and fill up again.
        for (std::uint64_t i = 0; i < count; ++i) {
          if (i % kept == 0) continue;
          ASSERT_TRUE(tree.extract_at(Range::point(2 * i)));
        }
        for (std::uint64_t i = 0; i < count; ++i) {
          if (i % kept == 0) continue;
          ASSERT_TRUE(tree.restore(Range::point(2 * i)));
        }
        while (!tree.empty())
          ASSERT_TRUE(tree.extract({.size = 1}));
      }
      granted = -1;
      EXPECT_EQ(asked, 0);
      EXPECT_TRUE(tree.check_invariants());
    }
  }
}

/// Gaps of three begin at odd addresses, but for the last: to learn that alignment takes memory.
TEST(IntervalTreeFaults, ATreeThatCanNotLearnAnAlignmentAllocatesAllTheSame) {
  IntervalTree<> tree;
  for (std::uint64_t i = 0; i < 3000; ++i)
    ASSERT_TRUE(tree.insert(*Range::make(4 * i + 1, 4 * i + 3)));
  const Range fit = Range::of(12'002, 12'004);
  ASSERT_TRUE(tree.insert(fit));
  const IntervalTree<> before(tree);
  const auto allocate_and_free = [&](int granted_to_each) {
    for (int i = 0; i < 20; ++i) {
      granted = granted_to_each;
      const auto got = tree.allocate({.size = 3, .align = 2});
      granted = -1;
      ASSERT_TRUE(got);
      ASSERT_EQ(*got, fit);
      ASSERT_TRUE(tree.check_invariants());
      ASSERT_TRUE(tree.free(fit));
    }
    EXPECT_EQ(tree, before);
  };
  asked = 0;
  allocate_and_free(0);
  EXPECT_GT(asked, 0);
  allocate_and_free(3);  // some nodes have space for it then, and others do not
  EXPECT_TRUE(tree.insert(Range::of(20'000, 30'000)));
  for (std::uint64_t i = 0; i < 3000; ++i)  // nodes split and merge meanwhile
    ASSERT_TRUE(tree.allocate_at(Range::point(20'000 + 2 * i)));
  for (std::uint64_t i = 0; i < 3000; ++i)
    ASSERT_TRUE(tree.free(Range::point(20'000 + 2 * i)));
  ASSERT_TRUE(tree.check_invariants());
  ASSERT_TRUE(tree.erase(Range::of(20'000, 30'000)));
  allocate_and_free(-1);
  asked = 0;
  allocate_and_free(0);
  EXPECT_EQ(asked, 0);
}

TEST(IntervalTreeFaults, AFailedReserveLeavesTheTreeAsItWas) {
  EXPECT_GT(fail_each_allocation(tree_of(40), [](Tree& t) { t.reserve(1000); }), 80);
}

TEST(IntervalTreeFaults, SubtractThatCutsNoRangeInTwoAsksForNoMemory) {
  Tree tree;
  for (std::uint64_t i = 0; i < 2000; ++i)
    ASSERT_TRUE(tree.insert(*Range::make(4 * i, 4 * i + 2)));
  asked = 0;
  granted = 0;
  tree.subtract(Range::of(1, 5000));
  tree.subtract(Range::whole_domain());
  granted = -1;
  EXPECT_EQ(asked, 0);
  EXPECT_TRUE(tree.empty());
}

TEST(IntervalTreeFaults, RestoreThatMergesAsksForNoMemory) {
  IntervalTree<> tree;
  for (std::uint64_t i = 0; i < 1000; ++i)
    ASSERT_TRUE(tree.insert(*Range::make(4 * i, 4 * i + 1)));
  asked = 0;
  for (std::uint64_t i = 0; i < 1000; ++i)
    ASSERT_TRUE(tree.restore(Range::point(4 * i + 2)));
  for (std::uint64_t i = 0; i < 1000; ++i)
    ASSERT_TRUE(tree.restore(Range::point(4 * i + 3)));
  EXPECT_EQ(asked, 0);
  EXPECT_EQ(tree.size(), 1U);
}

TEST(IntervalTreeFaults, CallsThatFailOrChangeNothingAskForNoMemory) {
  Tree tree = tree_of(500);
  const Tree before(tree);
  asked = 0;
  EXPECT_FALSE(tree.insert(Range::of(0, 10)));
  EXPECT_FALSE(tree.allocate({.size = 0}));
  EXPECT_FALSE(tree.allocate({.size = 100'000}));
  EXPECT_FALSE(tree.find_place({.size = 100'000}));
  EXPECT_TRUE(tree.find_place({.size = 1}));
  EXPECT_FALSE(tree.allocate_at(Range::of(0, 1)));
  EXPECT_FALSE(tree.free(Range::of(1, 1)));
  EXPECT_FALSE(tree.erase(Range::of(1, 1)));
  EXPECT_FALSE(tree.update(Range::of(1, 1), std::uint64_t{0}));
  EXPECT_EQ(asked, 0);
  EXPECT_EQ(tree, before);
}

}  // namespace
}  // namespace vmspace::interval_tree_faults_test
