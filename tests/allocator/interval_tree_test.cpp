// SPDX-License-Identifier: Apache-2.0

#include "vmspace/allocator/interval_tree.hpp"

#include <memory>
#include <string>

#include <gtest/gtest.h>

namespace vmspace {
namespace {

TEST(IntervalTree, GivesOutTheLowestPlaceAndTakesItBack) {
  IntervalTree<std::string> tree;
  ASSERT_TRUE(tree.insert(Range::of(0x100, 0x4ff)));
  ASSERT_EQ(tree.allocate({.size = 0x100}, "nic0"), Range::of(0x100, 0x1ff));
  EXPECT_EQ(*tree.find_value(0x180), "nic0");
  const auto value = tree.free(Range::of(0x100, 0x1ff));
  ASSERT_TRUE(value);
  EXPECT_EQ(*value, "nic0");
  EXPECT_EQ(tree.size(), 1U);
  EXPECT_TRUE(tree.check_invariants());
}

}  // namespace
}  // namespace vmspace
