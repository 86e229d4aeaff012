// SPDX-License-Identifier: Apache-2.0
//
// Numbers come back without memory: what that needs stays with the numbers.

#include "resources/number_space.hpp"

#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "faults/failing_new.hpp"

namespace vmspace::number_space_test {
namespace {

using detail::NumberSpace;

static_assert(!std::is_copy_constructible_v<NumberSpace>);
static_assert(!std::is_copy_assignable_v<NumberSpace>);
static_assert(std::is_nothrow_move_constructible_v<NumberSpace>);
static_assert(std::is_nothrow_move_assignable_v<NumberSpace>);

TEST(NumberSpaceTest, EverySecondNumberComesBackWithoutMemoryAlsoAfterAMove) {
  constexpr std::uint64_t count = 1000;
  NumberSpace taken =
      VMSPACE_ASSERT_OK(NumberSpace::create({Range::of(0, count - 1)}, std::nullopt));
  for (std::uint64_t i = 0; i < count; ++i)
    VMSPACE_EXPECT_OK(taken.take(1));
  NumberSpace numbers;
  numbers = std::move(taken);
  const int asked = test::asked;
  test::granted = 0;
  for (const std::uint64_t first : {0U, 1U}) {  // every range that comes first stands alone
    for (std::uint64_t number = first; number < count; number += 2)
      numbers.give_back(Range::point(number));
  }
  test::granted = -1;
  EXPECT_EQ(test::asked, asked);
  EXPECT_EQ(numbers.free().stats().largest_free, count);
  VMSPACE_EXPECT_OK(numbers.free().check_invariants());
}

}  // namespace
}  // namespace vmspace::number_space_test
