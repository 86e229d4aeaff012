// SPDX-License-Identifier: Apache-2.0
//
// That the checker of the structure sees what is broken: each rule is broken by hand.

#include "vmspace/allocator/detail/bplus_tree.hpp"

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace vmspace::detail::bplus_tree_test {
namespace {

using TestTree = BPlusTree<int>;

/// `n` ranges of two members, four apart; each third is taken and has a value.
void fill(TestTree& tree, std::uint64_t n) {
  for (std::uint64_t i = 0; i < n; ++i) {
    TestTree::Path at;
    const Range range = unchecked_range(4 * i, 4 * i + 1);
    const NodeState state = i % 3 == 0 ? NodeState::allocated : NodeState::free;
    if (i == 0) {
      tree.insert_first(range, state, at);
    } else {
      tree.upper_bound(range.min(), at);
      tree.split_if(tree.prepare_split(at, 1), at);
      tree.insert(at, range, state);
    }
    if (state == NodeState::allocated) {
      at.leaf->values.construct(at.pos, 1);
      at.leaf->valued.set(at.pos);
    }
  }
}

TEST(BPlusTree, IsSoundAtEverySize) {
  for (const std::uint64_t n : {0U, 1U, 32U, 33U, 1000U, 20'000U}) {
    TestTree tree;
    fill(tree, n);
    EXPECT_EQ(tree.check(), nullptr) << n << " " << tree.check();
  }
}

/// A tree that has learned two alignments keeps their lengths exact in every node, however it changes.
TEST(BPlusTree, IsSoundAfterEachEntryThatComesOrGoesOnceAlignmentsAreLearned) {
  constexpr std::uint64_t count = 1300;
  const auto range_of = [](std::uint64_t i) {
    return unchecked_range(0x100 * i + i % 7, 0x100 * i + i % 7 + i % 32);
  };
  TestTree tree;
  fill(tree, 100);
  tree.learn({.size = 3, .align = 8}, 1'000'000);
  tree.learn({.size = 3, .align = 16}, 1'000'000);
  ASSERT_NE(tree.row_for(7), 0U);
  ASSERT_NE(tree.row_for(15), tree.row_for(7));
  for (std::uint64_t n = 4; n < count; ++n) {
    TestTree::Path at;
    const Range range = range_of(4 + n * 499 % (count - 4));
    tree.upper_bound(range.min(), at);
    tree.split_if(tree.prepare_split(at, 1), at);
    tree.insert(at, range, NodeState::free);
    ASSERT_EQ(tree.check(), nullptr) << n << " " << tree.check();
  }
  const TestTree copy(tree);
  ASSERT_EQ(copy.check(), nullptr);
  for (std::uint64_t i = 4; i < count; ++i) {
    TestTree::Path at;
    ASSERT_TRUE(tree.locate(range_of(i), at));
    tree.remove(at, 1);
    ASSERT_EQ(tree.check(), nullptr) << i << " " << tree.check();
  }
}

/// No two free ranges are of one length, so that each node's summary is that of one entry, and every
/// move of an entry to another node shows. The trees have three levels.
TEST(BPlusTree, IsSoundAfterEachEntryThatComesOrGoes) {
  constexpr std::uint64_t count = 1300;
  const std::vector<std::function<std::uint64_t(std::uint64_t)>> orders = {
      [](std::uint64_t n) { return n; },
      [](std::uint64_t n) { return count - 1 - n; },
      [](std::uint64_t n) { return n * 499 % count; },
      // Upwards, in fives of which the last comes first: what splits a node is not the longest.
      [](std::uint64_t n) { return n / 5 * 5 + (n + 4) % 5; },
  };
  for (const auto& order : orders) {
    const auto range_of_entry = [&order](std::uint64_t n) {
      const std::uint64_t i = order(n);
      return unchecked_range(0x1'0000 * i, 0x1'0000 * i + i);
    };
    TestTree tree;
    for (std::uint64_t n = 0; n < count; ++n) {
      TestTree::Path at;
      const Range range = range_of_entry(n);
      if (n == 0) {
        tree.insert_first(range, NodeState::free, at);
      } else {
        tree.upper_bound(range.min(), at);
        tree.split_if(tree.prepare_split(at, 1), at);
        tree.insert(at, range, NodeState::free);
      }
      ASSERT_EQ(tree.check(), nullptr) << n << " " << tree.check();
    }
    for (std::uint64_t n = 0; n < count; ++n) {
      TestTree::Path at;
      ASSERT_TRUE(tree.locate(range_of_entry(n), at));
      tree.remove(at, 1);
      ASSERT_EQ(tree.check(), nullptr) << n << " " << tree.check();
    }
  }
}

/// Leaves `count` free ranges of four members, and one of 2^20 that pieces are cut from, at the end.
TestTree with_long_range_after(std::uint64_t count) {
  TestTree tree;
  for (std::uint64_t i = 0; i <= count; ++i) {
    TestTree::Path at;
    const Range range =
        unchecked_range(8 * i, i < count ? 8 * i + 3 : 8 * i + (std::uint64_t{1} << 20) - 1);
    if (i == 0) {
      tree.insert_first(range, NodeState::free, at);
    } else {
      tree.upper_bound(range.min(), at);
      tree.split_if(tree.prepare_split(at, 1), at);
      tree.insert(at, range, NodeState::free);
    }
  }
  return tree;
}

/// Cuts `size` members from the beginning of the free range that contains `point`.
void cut(TestTree& tree, std::uint64_t point, std::uint64_t size, TestTree::Path& at) {
  tree.upper_bound(point, at);
  --at.pos;
  const std::uint64_t min = at.leaf->min[at.pos];
  tree.split_if(tree.prepare_split(at, 1), at);
  tree.split_entry(at, unchecked_range(min, min + size - 1));
}

// Two levels of inner nodes, so that there is a parent's parent to be told.

TEST(BPlusTree, IsSoundWhileALeafIsBehindAndWhenAnotherIs) {
  constexpr std::uint64_t end = ~std::uint64_t{0};
  TestTree tree = with_long_range_after(1500);
  ASSERT_GE(tree.height(), 2U);
  for (std::uint64_t i = 0; i < 300; ++i) {
    TestTree::Path at;
    cut(tree, i % 7 == 6 ? 8 * (i / 7) : end, 1 + i % 3, at);
    ASSERT_EQ(tree.check(), nullptr) << i << " " << tree.check();
    const TestTree copy(tree);
    ASSERT_EQ(copy.check(), nullptr) << i << " " << copy.check();
    if (i % 50 == 0) tree.settle();
    ASSERT_EQ(tree.check(), nullptr) << i << " " << tree.check();
  }
}

TEST(BPlusTree, IsSoundWhenALeafThatIsBehindGetsEntriesOfASibling) {
  TestTree tree = with_long_range_after(1500);
  ASSERT_GE(tree.height(), 2U);
  TestTree::Path at;
  ASSERT_TRUE(tree.locate(unchecked_range(40, 43), at));
  tree.remove(at, 1);
  tree.upper_bound(40, at);
  tree.insert(at, unchecked_range(40, 46), NodeState::free);  // longer than those around
  cut(tree, 40, 1, at);                                       // splits the leaf, which was full
  for (std::uint64_t i = 16; i < 64; ++i) {
    ASSERT_TRUE(tree.locate(unchecked_range(8 * i, 8 * i + 3), at));
    tree.remove(at, 1);
    ASSERT_EQ(tree.check(), nullptr) << i << " " << tree.check();
  }
}

TEST(BPlusTree, CheckFindsALeafThatIsBehindAndHasMoreThanIsKnown) {
  TestTree tree = with_long_range_after(100);
  TestTree::Path at;
  cut(tree, ~std::uint64_t{0}, 4, at);
  std::uint64_t& known = at.ancestors[0].node->longest[at.ancestors[0].slot];
  ASSERT_EQ(known, std::uint64_t{1} << 20);  // the cut has not been told
  known -= 4;
  EXPECT_EQ(tree.check(), nullptr) << "what is there is not below the truth";
  --known;
  EXPECT_STREQ(tree.check(), "a summary must be exact for its subtree");
}

TEST(BPlusTree, CheckFindsAPlaceBeforeTheOneThatWouldBeFoundAgain) {
  TestTree tree = with_long_range_after(100);
  const Constraint long_one{.size = 5};
  TestTree::Path at;
  cut(tree, ~std::uint64_t{0}, 5, at);
  tree.note_first_match(long_one, at);
  EXPECT_EQ(tree.check(), nullptr);
  EXPECT_TRUE(tree.find_again(long_one, at));
  EXPECT_FALSE(tree.find_again({.size = 4}, at));
  tree.note_first_match({.size = 4}, at);
  EXPECT_STREQ(tree.check(),
               "what is found again must have no place before the leaf that is behind");
}

TEST(BPlusTree, CheckNamesTheRuleThatIsBroken) {
  struct Case {
    const char* rule;
    std::function<void(TestTree::Path&)> damage;
  };
  const std::vector<Case> cases = {
      {"min must not exceed max", [](auto& at) { at.leaf->max[1] = at.leaf->min[1] - 1; }},
      {"ranges must ascend and not overlap", [](auto& at) { at.leaf->max[1] = at.leaf->min[2]; }},
      {"a free range must have no value",
       [](auto& at) { at.leaf->valued.set(at.leaf->free.lowest()); }},
      {"an unused entry must have no state", [](auto& at) { at.leaf->free.set(31); }},
      {"an unused key must be 2^64-1", [](auto& at) { at.leaf->min[31] = 7; }},
      {"an unused key must be 2^64-1", [](auto& at) { at.ancestors[0].node->key[31] = 7; }},
      {"a key must be the lowest address below its child",
       [](auto& at) { ++at.ancestors[0].node->key[at.ancestors[0].slot]; }},
      {"a summary must be exact for its subtree",
       [](auto& at) { ++at.ancestors[0].node->longest[at.ancestors[0].slot]; }},
      {"an aligned length must be exact for its subtree",
       [](auto& at) { ++at.ancestors[0].node->lengths(1)[at.ancestors[0].slot]; }},
      {"an aligned length must be exact for its subtree",
       [](auto& at) { --at.ancestors[0].node->lengths(1)[at.ancestors[0].slot]; }},
      {"a node must have space for the lengths that the tree has learned",
       [](auto& at) { delete std::exchange(at.ancestors[0].node->learned, nullptr); }},
      {"the lengths of an unused child must be 0",
       [](auto& at) { at.ancestors[0].node->lengths(1)[31] = 1; }},
      {"the summary of an unused child must be empty",
       [](auto& at) { at.ancestors[0].node->zeros[31] = 1; }},
      {"a summary must be exact for its subtree",
       [](auto& at) { ++at.ancestors[0].node->order[at.ancestors[0].slot]; }},
      {"a summary must be exact for its subtree",
       [](auto& at) { ++at.ancestors[0].node->zeros[at.ancestors[0].slot]; }},
      {"a summary must be exact for its subtree",
       [](auto& at) { at.leaf->max[at.leaf->free.lowest()] += 1; }},
      {"a node must be at least three eighths full", [](auto& at) { at.leaf->count = 10; }},
      {"a node must have at most 32 entries", [](auto& at) { at.leaf->count = 33; }},
      {"leaves must be linked in order", [](auto& at) { at.leaf->prev = nullptr; }},
      {"leaves must be linked in order", [](auto& at) { at.leaf->prev->next = at.leaf->next; }},
  };
  for (const Case& c : cases) {
    TestTree tree;
    fill(tree, 100);
    tree.learn({.size = 3, .align = 2}, 1'000'000);
    TestTree::Path at;
    for (const std::uint64_t i : {46U, 47U, 49U}) {  // free; a full leaf has nothing unused
      ASSERT_TRUE(tree.locate(unchecked_range(4 * i, 4 * i + 1), at));
      tree.remove(at, 1);
    }
    tree.upper_bound(200, at);
    ASSERT_NE(at.leaf->prev, nullptr);
    ASSERT_NE(at.leaf->next, nullptr);
    ASSERT_LT(at.leaf->count, 31U);
    // What is damaged is put back, for the destructor.
    Leaf<int>& leaf = *at.leaf;
    const auto count = leaf.count;
    const Bits valued = leaf.valued;
    Leaf<int>* const prev = leaf.prev;
    c.damage(at);
    const char* const found = tree.check();
    leaf.count = count;
    leaf.valued = valued;
    leaf.prev = prev;
    prev->next = &leaf;
    ASSERT_NE(found, nullptr) << c.rule;
    EXPECT_STREQ(found, c.rule);
  }
}

}  // namespace
}  // namespace vmspace::detail::bplus_tree_test
