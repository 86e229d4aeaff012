// SPDX-License-Identifier: Apache-2.0

#include "vmspace/fmt.hpp"

#include <memory>
#include <string>

#include <gtest/gtest.h>

namespace vmspace {
namespace {

TEST(Fmt, RangeIsItsBoundsInHexadecimal) {
  EXPECT_EQ(fmt::format("{}", Range::of(0x100, 0x1ff)), "[0x100-0x1ff]");
  EXPECT_EQ(fmt::format("{}", Range::whole_domain()), "[0x0-0xffffffffffffffff]");
  EXPECT_EQ(fmt::format("{:>10}|", Range::point(1)), " [0x1-0x1]|");
}

TEST(Fmt, NodeStateAndPolicyAreTheirNames) {
  EXPECT_EQ(fmt::format("{} {} {}", NodeState::free, NodeState::allocated, NodeState::valued),
            "free allocated valued");
  EXPECT_EQ(fmt::format("{} {} {}", AllocPolicy::first_match, AllocPolicy::last_match,
                        AllocPolicy::best_match),
            "first_match last_match best_match");
}

TEST(Fmt, ConstraintSaysSizeAlignmentWindowAndPolicy) {
  EXPECT_EQ(fmt::format("{}", Constraint{.size = 0x4000,
                                         .min = 0xc000'0000,
                                         .max = 0xffff'ffff,
                                         .align = 0x1000,
                                         .policy = AllocPolicy::last_match}),
            "0x4000 aligned to 0x1000 in [0xc0000000-0xffffffff], last_match");
  EXPECT_EQ(fmt::format("{}", Constraint{.size = 1, .align = 0}),
            "0x1 aligned to 0x1 in [0x0-0xffffffffffffffff], first_match");
}

TEST(Fmt, ErrorIsItsMessage) {
  const Error error{.code = Errc::overlap,
                    .operation = "insert",
                    .first = Operand::range(0x200, 0x2ff),
                    .second = Operand::range(0x100, 0x20f)};
  EXPECT_EQ(fmt::format("{}", error), "insert: [0x200, 0x2ff] overlaps [0x100, 0x20f]");
}

TEST(Fmt, TreeIsOneLine) {
  IntervalTree<std::string> tree;
  EXPECT_EQ(fmt::format("{}", tree), "");
  ASSERT_TRUE(tree.insert(Range::of(0x100, 0x1ff), "nic0"));
  ASSERT_TRUE(tree.insert(Range::of(0x200, 0x5ff)));
  ASSERT_TRUE(tree.insert(Range::of(0x700, 0x7ff)));
  ASSERT_TRUE(tree.allocate_at(Range::of(0x500, 0x5ff)));
  EXPECT_EQ(fmt::format("{}", tree),
            "[0x100-0x1ff] nic0 | free 0x300 | [0x500-0x5ff] | gap 0x100 | free 0x100");
}

TEST(Fmt, TreeOfTheWholeDomainSaysSo) {
  IntervalTree<> tree;
  ASSERT_TRUE(tree.insert(Range::whole_domain()));
  EXPECT_EQ(fmt::format("{}", tree), "free 2^64");
}

TEST(Fmt, TreeShowsNoValueThatFmtDoesNotKnow) {
  IntervalTree<std::unique_ptr<std::string>> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 0xf), std::make_unique<std::string>("x")));
  EXPECT_EQ(fmt::format("{}", tree), "[0x0-0xf]");
}

}  // namespace
}  // namespace vmspace
