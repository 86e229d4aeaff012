// SPDX-License-Identifier: Apache-2.0

#include "vmspace/allocator/constraint.hpp"

#include <cstdint>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

namespace vmspace::constraint_test {
namespace {

constexpr std::uint64_t top = UINT64_MAX;

TEST(Constraint, DefaultsToAnyPlaceLowestFirst) {
  constexpr Constraint constraint{.size = 1};
  EXPECT_EQ(constraint.min, 0U);
  EXPECT_EQ(constraint.max, top);
  EXPECT_EQ(constraint.align, 1U);
  EXPECT_EQ(constraint.policy, AllocPolicy::first_match);
  EXPECT_TRUE(constraint.validate());
}

TEST(Constraint, EveryPowerOfTwoIsAnAlignmentAndZeroMeansOne) {
  EXPECT_TRUE((Constraint{.size = 1, .align = 0}.validate()));
  for (unsigned shift = 0; shift < 64; ++shift) {
    EXPECT_TRUE((Constraint{.size = 1, .align = std::uint64_t{1} << shift}.validate()));
  }
}

TEST(Constraint, AnAlignmentThatIsNoPowerOfTwoIsAnErrorOfItsOwn) {
  for (const std::uint64_t align : {std::uint64_t{3}, std::uint64_t{0x1001}, top}) {
    const auto valid = Constraint{.size = 1, .align = align}.validate();
    ASSERT_FALSE(valid);
    EXPECT_THAT(valid, HasError(Errc::bad_alignment));
    EXPECT_EQ(valid.error().first, Operand::size(align));
  }
  EXPECT_THAT((Constraint{.size = 1, .min = 5, .max = 5, .align = 3}.validate()),
              HasError(Errc::bad_alignment));
}

TEST(Constraint, SizeZeroIsAnError) {
  EXPECT_EQ((Constraint{.size = 0}.validate().error().code), Errc::zero_size);
  EXPECT_TRUE((Constraint{.size = top}.validate()));
}

TEST(Constraint, AWindowMayBeOneMemberAndNotInverted) {
  EXPECT_TRUE((Constraint{.size = 1, .min = top, .max = top}.validate()));
  EXPECT_TRUE((Constraint{.size = 1, .min = 0, .max = 0}.validate()));
  const auto valid = Constraint{.size = 1, .min = 2, .max = 1}.validate();
  ASSERT_FALSE(valid);
  EXPECT_THAT(valid, HasError(Errc::invalid_range));
  EXPECT_EQ(valid.error().first, Operand::range(2, 1));
}

}  // namespace
}  // namespace vmspace::constraint_test
