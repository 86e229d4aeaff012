// SPDX-License-Identifier: Apache-2.0

#include "vmspace/testing.hpp"

#include <memory>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

namespace {

using testing::_;
using testing::AllOf;
using testing::AnyOf;
using testing::Field;
using testing::Gt;
using testing::HasSubstr;
using testing::Not;
using testing::Pointee;
using testing::Property;
using testing::StrEq;
using vmspace::Errc;
using vmspace::Error;
using vmspace::HasError;
using vmspace::HasErrorThat;
using vmspace::IsOk;
using vmspace::IsOkAndHolds;
using vmspace::Range;
using vmspace::Result;

Result<Range> first() {
  return Range::of(0x100, 0x1ff);
}
Result<std::unique_ptr<int>> owned(int value) {
  return std::make_unique<int>(value);
}
Result<Range> none(int = 0, int = 0) {
  return vmspace::fail({.code = Errc::no_space, .operation = "allocate", .reason = "full"});
}
Result<> nothing() {
  return vmspace::fail({.code = Errc::not_found, .operation = "free"});
}

// What the failing statement would have printed.
template <typename Statement>
std::string failure_of(const Statement& statement) {
  testing::TestPartResultArray results;
  {
    testing::ScopedFakeTestPartResultReporter reporter(&results);
    statement();
  }
  EXPECT_EQ(results.size(), 1);
  std::string message = results.size() == 1 ? results.GetTestPartResult(0).message() : "";
  // Some versions of GoogleTest end a message with a newline.
  if (message.ends_with('\n')) message.pop_back();
  return message;
}

TEST(Matchers, IsOkMatchesValuesOnly) {
  EXPECT_THAT(first(), IsOk());
  EXPECT_THAT(Result<>(), IsOk());
  EXPECT_THAT(owned(1), IsOk());
  EXPECT_THAT(none(), Not(IsOk()));
  EXPECT_THAT(nothing(), Not(IsOk()));
}

TEST(Matchers, IsOkAndHoldsLooksAtTheValue) {
  EXPECT_THAT(first(), IsOkAndHolds(Range::of(0x100, 0x1ff)));
  EXPECT_THAT(first(), IsOkAndHolds(Property(&Range::min, Gt(1u))));
  EXPECT_THAT(first(), Not(IsOkAndHolds(Range::point(0))));
  EXPECT_THAT(none(), Not(IsOkAndHolds(_)));
  EXPECT_THAT(owned(7), IsOkAndHolds(Pointee(7)));
  EXPECT_THAT(Result<std::string>("nic0"), IsOkAndHolds("nic0"));
}

TEST(Matchers, HasErrorLooksAtTheCodeAndHasErrorThatAtAllOfIt) {
  EXPECT_THAT(none(), HasError(Errc::no_space));
  EXPECT_THAT(nothing(), HasError(AnyOf(Errc::no_space, Errc::not_found)));
  EXPECT_THAT(none(), Not(HasError(Errc::overlap)));
  EXPECT_THAT(first(), Not(HasError(_)));
  EXPECT_THAT(none(), HasErrorThat(none().error()));
  EXPECT_THAT(none(), HasErrorThat(AllOf(Property(&Error::message, HasSubstr("full")),
                                         Field(&Error::operation, StrEq("allocate")))));
  EXPECT_THAT(first(), Not(HasErrorThat(_)));
}

TEST(Matchers, AFailureShowsTheMessageOrTheValue) {
  EXPECT_EQ(failure_of([] { EXPECT_THAT(none(), IsOk()); }),
            "Value of: none()\nExpected: is ok\n  Actual: error: allocate: no space (full)");
  EXPECT_EQ(failure_of([] { EXPECT_THAT(nothing(), IsOk()); }),
            "Value of: nothing()\nExpected: is ok\n  Actual: error: free: not found");
  EXPECT_EQ(failure_of([] { EXPECT_THAT(first(), IsOkAndHolds(Range::point(1))); }),
            "Value of: first()\nExpected: is ok and holds a value that is equal to [0x1-0x1]\n"
            "  Actual: [0x100-0x1ff]");
  EXPECT_EQ(failure_of([] { EXPECT_THAT(none(), HasError(Errc::overlap)); }),
            "Value of: none()\nExpected: is an error whose code is equal to overlap\n"
            "  Actual: error: allocate: no space (full), whose code is no_space");
  EXPECT_EQ(failure_of([] { EXPECT_THAT(first(), HasError(Errc::overlap)); }),
            "Value of: first()\nExpected: is an error whose code is equal to overlap\n"
            "  Actual: [0x100-0x1ff]");
  EXPECT_EQ(failure_of([] { EXPECT_THAT(none(), HasErrorThat(nothing().error())); }),
            "Value of: none()\nExpected: is an error that is equal to free: not found\n"
            "  Actual: error: allocate: no space (full)");
}

TEST(Matchers, FailuresOfPlainExpectationsAreReadable) {
  EXPECT_THAT(failure_of([] { EXPECT_EQ(first(), Range::point(1)); }),
              AllOf(HasSubstr("[0x100-0x1ff]"), HasSubstr("[0x1-0x1]")));
  EXPECT_THAT(failure_of([] { EXPECT_EQ(none().error().code, Errc::overlap); }),
              AllOf(HasSubstr("Which is: no_space"), HasSubstr("overlap")));
}

TEST(Macros, ExpectOkShowsTheMessageAndGoesOn) {
  VMSPACE_EXPECT_OK(first());
  bool went_on = false;
  EXPECT_THAT(failure_of([&] {
                VMSPACE_EXPECT_OK(none(1, 2));
                went_on = true;
              }),
              AllOf(HasSubstr("none(1, 2)"), HasSubstr("allocate: no space (full)")));
  EXPECT_TRUE(went_on);
}

TEST(Macros, AssertOkGivesTheValue) {
  const Range range = VMSPACE_ASSERT_OK(first());
  EXPECT_EQ(range, Range::of(0x100, 0x1ff));
  const std::unique_ptr<int> owner = VMSPACE_ASSERT_OK(owned(7));
  EXPECT_EQ(*owner, 7);
  VMSPACE_ASSERT_OK(Result<>());
}

TEST(Macros, AssertOkShowsTheMessageAndReturns) {
  bool went_on = false;
  EXPECT_EQ(failure_of([&] {
              const Range range = VMSPACE_ASSERT_OK(none(1, 2));
              went_on = range == range;
            }),
            "Failed\nnone(1, 2)\nerror: allocate: no space (full)");
  EXPECT_FALSE(went_on);
}

}  // namespace
