// SPDX-License-Identifier: Apache-2.0
//
// Functions that use VMSPACE_TRY in every way it is meant to be used. Included by the test, and by
// a program that is compiled with all warnings as errors and with neither exceptions nor RTTI.

#pragma once

#include <array>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace::try_cases {

/// Counts the objects that are alive.
class Counted {
 public:
  explicit Counted(int value = 0) noexcept : value_(value) { ++alive; }
  Counted(const Counted& other) noexcept : value_(other.value_) { ++alive; }
  Counted(Counted&& other) noexcept : value_(std::exchange(other.value_, -1)) { ++alive; }
  Counted& operator=(const Counted&) = default;
  Counted& operator=(Counted&& other) noexcept {
    value_ = std::exchange(other.value_, -1);
    return *this;
  }
  ~Counted() { --alive; }

  [[nodiscard]] int value() const noexcept { return value_; }

  inline static int alive = 0;

 private:
  int value_;
};

inline constexpr Error odd_error{.code = Errc::misaligned, .operation = "half"};

constexpr Result<int> half(int value) {
  if (value % 2 != 0) return fail(odd_error);
  return value / 2;
}

constexpr Result<void> check_even(int value) {
  if (value % 2 != 0) return fail(odd_error);
  return {};
}

constexpr Result<int> sum(int a, int b) {
  return a + b;
}

inline Result<std::unique_ptr<int>> owned_half(int value) {
  const int result = VMSPACE_TRY(half(value));
  return std::make_unique<int>(result);
}

inline Result<std::vector<Counted>> counted(int values) {
  const int pairs = VMSPACE_TRY(half(values));
  std::vector<Counted> made;
  for (int i = 0; i < pairs * 2; ++i)
    made.emplace_back(i);
  return made;
}

// The function that returns gives another type than the expression.
inline Result<std::string> initialiser(int value) {
  const auto halved = VMSPACE_TRY(half(value));
  return std::to_string(halved);
}

constexpr Result<void> statement(int value, int& reached) {
  VMSPACE_TRY(check_even(value));
  ++reached;
  VMSPACE_TRY(half(value));  // a value that nobody needs
  return {};
}

inline Result<int> return_operand(int value) {
  return VMSPACE_TRY(half(value));
}

constexpr Result<int> assignment(int value) {
  int result = 0;
  result = VMSPACE_TRY(half(value));
  result += VMSPACE_TRY(half(value));
  return result;
}

inline Result<int> conditions(int value) {
  if (const int halved = VMSPACE_TRY(half(value)); halved > 100) return 100;
  if (const auto owner = VMSPACE_TRY(owned_half(value))) return *owner;
  return -1;
}

// The vector lives until the loop ends, in spite of being nobody's variable.
inline Result<int> range_of_for(int values, int& alive_inside) {
  int total = 0;
  for (const Counted& each : VMSPACE_TRY(counted(values))) {
    total += each.value();
    alive_inside = Counted::alive;
  }
  return total;
}

inline Result<int> error_inside_a_range_for(int values) {
  for (const Counted& each : VMSPACE_TRY(counted(values))) {
    VMSPACE_TRY(half(each.value()));
  }
  return 0;
}

constexpr Result<int> nested(int value) {
  return VMSPACE_TRY(sum(VMSPACE_TRY(half(value)), VMSPACE_TRY(half(VMSPACE_TRY(half(value))))));
}

inline Result<int> temporaries_beside_it(int value) {
  const auto plus = [](const Counted& a, Counted b, int c) -> Result<int> {
    return a.value() + b.value() + c;
  };
  return VMSPACE_TRY(plus(Counted(1), Counted(2), VMSPACE_TRY(half(value))));
}

inline Result<int> locals_before_it(int value) {
  const Counted first(1);
  const std::vector<Counted> others(3);
  const int halved = VMSPACE_TRY(half(value));
  return halved + first.value();
}

inline Result<int> move_only(int value) {
  const std::unique_ptr<int> owner = VMSPACE_TRY(owned_half(value));
  auto result = owned_half(value);
  const std::unique_ptr<int> other = VMSPACE_TRY(std::move(result));
  return *owner + *other;
}

inline Result<std::pair<int, int>> references(Result<Counted>& variable,
                                              const Result<Counted>& constant) {
  const Counted copy = VMSPACE_TRY(variable);
  const Counted& reference = VMSPACE_TRY(constant);  // extends the life of a copy
  return std::pair(copy.value(), reference.value());
}

constexpr Result<int> commas(int value) {
  struct Options {
    int first, second;
  };
  const auto add = [](Options options, int third) -> Result<int> {
    return options.first + options.second + third;
  };
  const std::array<int, 2> array = {1, 2};
  const auto [one, two] = VMSPACE_TRY(Result<std::pair<int, int>>(std::pair{array[0], array[1]}));
  return VMSPACE_TRY(add({.first = one, .second = two}, value));
}

inline Result<int> lambda(int value) {
  const auto inner = [&]() -> Result<int> {
    const int halved = VMSPACE_TRY(half(value));
    return halved + 1;
  };
  return VMSPACE_TRY(sum(VMSPACE_TRY(inner()), VMSPACE_TRY([&]() -> Result<int> {
                           VMSPACE_TRY(check_even(value));
                           return 1;
                         }())));
}

constexpr Result<int> relabelled(int value) {
  return VMSPACE_TRY_IN("outer", sum(VMSPACE_TRY_IN("inner", half(value)), 0));
}

inline Result<bool> false_is_a_value() {
  return VMSPACE_TRY(Result<bool>(false));
}

}  // namespace vmspace::try_cases
