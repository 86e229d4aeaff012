// SPDX-License-Identifier: Apache-2.0
//
// Results in tests with GoogleTest and GoogleMock, for programs that use them; no other header
// includes this one. Every type of the library prints as text.hpp says, so that a failure tells
// why:
//
//   const Range bar = VMSPACE_ASSERT_OK(tree.allocate({.size = 16_KiB}, "nic0"));
//   VMSPACE_EXPECT_OK(tree.free(bar));
//   EXPECT_THAT(tree.allocate({.size = 1}), IsOkAndHolds(Range::point(7)));
//   EXPECT_THAT(tree.free(bar), HasError(Errc::not_found));
//   EXPECT_THAT(tree.free(bar), HasErrorThat(Property(&Error::message, HasSubstr("0x100"))));
//
// EXPECT_TRUE(result) works as well, but GoogleTest cannot print why.

#pragma once

#include <ostream>
#include <string>
#include <type_traits>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/ostream.hpp"

namespace vmspace {

namespace detail {

class IsOkMatcher {
 public:
  template <typename R>
  bool MatchAndExplain(const R& result, ::testing::MatchResultListener*) const {
    return result.has_value();
  }
  void DescribeTo(std::ostream* out) const { *out << "is ok"; }
  void DescribeNegationTo(std::ostream* out) const { *out << "is an error"; }
};

template <typename Inner>
class IsOkAndHoldsMatcher {
 public:
  explicit IsOkAndHoldsMatcher(Inner inner) : inner_(std::move(inner)) {}

  // NOLINTNEXTLINE(google-explicit-constructor): that is how a matcher becomes one of a type.
  template <typename R>
  operator ::testing::Matcher<R>() const {
    return ::testing::Matcher<R>(new Implementation<R>(inner_));
  }

 private:
  template <typename R>
  class Implementation : public ::testing::MatcherInterface<R> {
   public:
    explicit Implementation(const Inner& inner)
        : value_(::testing::SafeMatcherCast<const Value&>(inner)) {}

    bool MatchAndExplain(R result, ::testing::MatchResultListener* listener) const override {
      return result.has_value() && value_.MatchAndExplain(*result, listener);
    }
    void DescribeTo(std::ostream* out) const override {
      *out << "is ok and holds a value that ";
      value_.DescribeTo(out);
    }
    void DescribeNegationTo(std::ostream* out) const override {
      *out << "is an error or holds a value that ";
      value_.DescribeNegationTo(out);
    }

   private:
    using Value = typename std::remove_cvref_t<R>::value_type;
    ::testing::Matcher<const Value&> value_;
  };

  Inner inner_;
};

class HasErrorMatcher {
 public:
  HasErrorMatcher(std::string what, ::testing::Matcher<const Error&> error)
      : what_(std::move(what)), error_(std::move(error)) {}

  template <typename R>
  bool MatchAndExplain(const R& result, ::testing::MatchResultListener* listener) const {
    return !result.has_value() && error_.MatchAndExplain(result.error(), listener);
  }
  void DescribeTo(std::ostream* out) const {
    *out << "is an error " << what_;
    error_.DescribeTo(out);
  }
  void DescribeNegationTo(std::ostream* out) const {
    *out << "is ok, or an error " << what_;
    error_.DescribeNegationTo(out);
  }

 private:
  std::string what_;
  ::testing::Matcher<const Error&> error_;
};

/// Matches the code of an error, and describes itself as a matcher of the code alone.
class CodeMatcher : public ::testing::MatcherInterface<const Error&> {
 public:
  explicit CodeMatcher(::testing::Matcher<Errc> code) : code_(std::move(code)) {}

  bool MatchAndExplain(const Error& error,
                       ::testing::MatchResultListener* listener) const override {
    *listener << "whose code is " << error.code;
    return code_.Matches(error.code);
  }
  void DescribeTo(std::ostream* out) const override { code_.DescribeTo(out); }
  void DescribeNegationTo(std::ostream* out) const override { code_.DescribeNegationTo(out); }

 private:
  ::testing::Matcher<Errc> code_;
};

}  // namespace detail

/// Matches a Result that has a value.
inline auto IsOk() {
  return ::testing::MakePolymorphicMatcher(detail::IsOkMatcher());
}

/// Matches a Result with a value that `value` matches: a matcher, or what it is equal to.
template <typename Inner>
auto IsOkAndHolds(Inner value) {
  return detail::IsOkAndHoldsMatcher<Inner>(std::move(value));
}

/// Matches a Result with an error that has this code: an Errc, or a matcher of one.
inline auto HasError(const ::testing::Matcher<Errc>& code) {
  return ::testing::MakePolymorphicMatcher(detail::HasErrorMatcher(
      "whose code ", ::testing::Matcher<const Error&>(new detail::CodeMatcher(code))));
}

/// Matches a Result with an error that `error` matches: a matcher, or what it is equal to.
inline auto HasErrorThat(const ::testing::Matcher<const Error&>& error) {
  return ::testing::MakePolymorphicMatcher(detail::HasErrorMatcher("that ", error));
}

/// Checks that a Result has a value; otherwise the test fails with the error's message and goes on.
#define VMSPACE_EXPECT_OK(...) EXPECT_THAT((__VA_ARGS__), ::vmspace::IsOk())

/// The value of an expression of type Result<T>; or the test fails with the error's message, and the
/// calling function, which gives void, returns. Stands where VMSPACE_TRY does; see try.hpp.
#define VMSPACE_ASSERT_OK(...)                                                              \
  VMSPACE_DETAIL_ASSERT_OK(VMSPACE_DETAIL_JOIN(vmspace_result_, __COUNTER__), #__VA_ARGS__, \
                           __VA_ARGS__)

#define VMSPACE_DETAIL_ASSERT_OK(result, text, ...)                                           \
  __extension__({                                                                             \
    auto&& result = (__VA_ARGS__);                                                            \
    if (!result.has_value()) GTEST_FAIL() << text << "\nerror: " << result.error().message(); \
    ::vmspace::detail::take_value(::std::forward<decltype(result)>(result));                  \
  })

}  // namespace vmspace
