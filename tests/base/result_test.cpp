// SPDX-License-Identifier: Apache-2.0

#include "vmspace/base/result.hpp"

#include <memory>
#include <utility>

#include <gtest/gtest.h>

namespace vmspace::result_test {
namespace {

Result<int> half(int value) {
  if (value % 2 != 0) return fail({.code = Errc::misaligned, .operation = "half"});
  return value / 2;
}

TEST(Result, HoldsAValueOrAnError) {
  EXPECT_EQ(half(4), 2);
  const auto odd = half(3);
  ASSERT_FALSE(odd);
  EXPECT_EQ(odd.error(), (Error{.code = Errc::misaligned, .operation = "half"}));
}

TEST(Result, AnErrorPassesFromOneValueTypeToAnother) {
  const auto outer = []() -> Result<> {
    if (auto inner = half(1); !inner) return fail(inner.error());
    return {};
  };
  EXPECT_EQ(outer().error().code, Errc::misaligned);
}

TEST(Result, AnErrorIsAConstantExpression) {
  constexpr auto make = []() -> Result<int> { return fail({.code = Errc::misaligned}); };
  static_assert(make().error().code == Errc::misaligned);
}

TEST(Result, CarriesMoveOnlyValues) {
  Result<std::unique_ptr<int>> owner = std::make_unique<int>(7);
  const std::unique_ptr<int> taken = *std::move(owner);
  EXPECT_EQ(*taken, 7);
}

}  // namespace
}  // namespace vmspace::result_test
