// SPDX-License-Identifier: Apache-2.0

#include "vmspace/exit_on_error.hpp"

#include <cstdlib>
#include <memory>

#include <gtest/gtest.h>

namespace vmspace {
namespace {

Result<std::unique_ptr<int>> owned(int value) {
  if (value < 0) return fail({.code = Errc::no_space, .operation = "owned"});
  return std::make_unique<int>(value);
}

struct Pair {
  std::unique_ptr<int> first, second;
};

TEST(ValueOrExit, GivesTheValueAnywhereInAnExpression) {
  const Pair pair{.first = value_or_exit(owned(1)), .second = value_or_exit(owned(2))};
  EXPECT_EQ(*pair.first + *pair.second, 3);
  value_or_exit(Result<void>());
  const Result<int> variable = 7;
  EXPECT_EQ(value_or_exit(variable), 7);
}

TEST(ValueOrExitDeathTest, PrintsTheMessageAndEndsTheProgram) {
  EXPECT_EXIT(value_or_exit(owned(-1)), testing::ExitedWithCode(EXIT_FAILURE),
              "^error: owned: no space\n$");
  EXPECT_EXIT(value_or_exit(Result<void>(fail({.code = Errc::corrupt}))),
              testing::ExitedWithCode(EXIT_FAILURE), "^error: corrupt data\n$");
}

TEST(ExitUnlessDeathTest, SaysWhatDoesNotHold) {
  exit_unless(true, "the sky is up");
  EXPECT_EXIT(exit_unless(false, "the guest halts"), testing::ExitedWithCode(EXIT_FAILURE),
              "^error: expectation failed: the guest halts\n$");
}

}  // namespace
}  // namespace vmspace
