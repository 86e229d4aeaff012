// SPDX-License-Identifier: Apache-2.0

#include "vmspace/base/try.hpp"

#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "base/try_cases.hpp"

namespace vmspace::try_test {
namespace {

using namespace try_cases;

TEST(Try, AnInitialiserIsTheValueOrTheFunctionReturnsTheError) {
  EXPECT_EQ(initialiser(4), "2");
  ASSERT_FALSE(initialiser(3));
  EXPECT_EQ(initialiser(3).error(), odd_error);
}

TEST(Try, AStatementGoesOnOrReturns) {
  int reached = 0;
  EXPECT_TRUE(statement(4, reached));
  EXPECT_EQ(reached, 1);
  EXPECT_FALSE(statement(3, reached));
  EXPECT_EQ(reached, 1);
}

TEST(Try, StandsInReturnsAssignmentsAndConditions) {
  EXPECT_EQ(return_operand(4), 2);
  EXPECT_FALSE(return_operand(3));
  EXPECT_EQ(assignment(4), 4);
  EXPECT_FALSE(assignment(3));
  EXPECT_EQ(conditions(4), 2);
  EXPECT_EQ(conditions(400), 100);
  EXPECT_FALSE(conditions(3));
}

TEST(Try, TheRangeOfAForLivesUntilTheLoopEnds) {
  int alive_inside = 0;
  EXPECT_EQ(range_of_for(4, alive_inside), 0 + 1 + 2 + 3);
  EXPECT_EQ(alive_inside, 4);
  EXPECT_EQ(Counted::alive, 0);
  EXPECT_FALSE(range_of_for(3, alive_inside));
  EXPECT_FALSE(error_inside_a_range_for(4));
  EXPECT_EQ(Counted::alive, 0);
}

TEST(Try, OneInsideAnotherReturnsTheErrorOfTheFirstThatFails) {
  EXPECT_EQ(nested(4), 3);
  EXPECT_FALSE(nested(3));
  EXPECT_FALSE(nested(6));  // 3 has no half
  EXPECT_EQ(lambda(4), 4);
  EXPECT_FALSE(lambda(3));
}

TEST(Try, ReturningDestroysEverythingMadeBefore) {
  EXPECT_EQ(temporaries_beside_it(4), 5);
  EXPECT_EQ(Counted::alive, 0);
  EXPECT_FALSE(temporaries_beside_it(3));
  EXPECT_EQ(Counted::alive, 0);
  EXPECT_EQ(locals_before_it(4), 3);
  EXPECT_FALSE(locals_before_it(3));
  EXPECT_EQ(Counted::alive, 0);
}

TEST(Try, MovesValuesThatCanNotBeCopied) {
  EXPECT_EQ(move_only(8), 8);
  EXPECT_FALSE(move_only(3));
}

TEST(Try, CopiesFromVariablesAndLeavesThemAsTheyWere) {
  {
    Result<Counted> variable{Counted(1)};
    const Result<Counted> constant{Counted(2)};
    EXPECT_EQ(references(variable, constant), std::pair(1, 2));
    EXPECT_EQ(variable->value(), 1);
    EXPECT_EQ(Counted::alive, 2);
    Result<Counted> failed = fail(odd_error);
    EXPECT_FALSE(references(variable, failed));
  }
  EXPECT_EQ(Counted::alive, 0);
}

TEST(Try, TakesExpressionsWithCommas) {
  EXPECT_EQ(commas(3), 6);
}

TEST(Try, AFalseValueIsNoError) {
  EXPECT_EQ(false_is_a_value(), false);
}

TEST(Try, InGivesTheErrorAnotherOperation) {
  static_assert(relabelled(4) == 2);
  EXPECT_EQ(relabelled(3).error(), odd_error.in("inner"));
}

TEST(Try, AValueIsAConstantExpression) {
  static_assert(nested(4) == 3);
  static_assert(assignment(4) == 4);
}

}  // namespace
}  // namespace vmspace::try_test
