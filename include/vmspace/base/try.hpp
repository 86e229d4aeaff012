// SPDX-License-Identifier: Apache-2.0
//
// The value of a fallible call, or its error returned from the calling function.
//
//   Result<Range> place_nic(IntervalTree<std::string>& mmio) {
//     const Range bar = VMSPACE_TRY(mmio.allocate({.size = 16_KiB, .align = 16_KiB}, "nic0"));
//     VMSPACE_TRY(program_bar(bar));                                  // a Result<void>
//     for (const RamPiece& piece : VMSPACE_TRY(layout.plan_ram({6_GiB}))) ...
//     return VMSPACE_TRY(mmio.allocate_at(next_to(bar), "nic1"));
//   }
//
// A macro, because only a macro can return from the function that it stands in, and a GNU statement
// expression, which g++ and clang both have, because only that has a value as well.
//
// It stands as a whole initialiser, right-hand side of an assignment, condition of an if or a while,
// or statement; as the operand of a return or the range of a for; and as a whole argument of a call
// inside another VMSPACE_TRY. Not inside the braces of an initialiser or the captures of a lambda:
//
//   Device nic = {.name = "nic0", .bar = VMSPACE_TRY(...)};  // leaks the name when it returns
//
// There g++ and clang forget to destroy the members made so far. Nor in the initialiser of a static
// variable, whose next initialisation would wait for the one that returned. Elsewhere in an
// expression nothing breaks, but a return in the middle of one is overlooked. Take the value first,
// then use its name. vmspace's own sources are checked for all of this by a test.
//
// In a lambda whose return type is not written it can't know which Result to make: write the type.

#pragma once

#include <type_traits>
#include <utility>

#include "vmspace/base/result.hpp"

namespace vmspace::detail {

/// The value of a result that has one: moved out of a temporary, copied from a variable.
template <typename R>
[[gnu::always_inline]] constexpr typename std::remove_cvref_t<R>::value_type take_value(
    R&& result) {
  if constexpr (!std::is_void_v<typename std::remove_cvref_t<R>::value_type>) {
    return *std::forward<R>(result);
  }
}

}  // namespace vmspace::detail

/// The value of an expression of type Result<T>; or its error, returned from the calling function,
/// which gives a Result of any type. For a Result<void> the expression is void. The value is a T,
/// never a reference, so that nothing dangles: moved out of a temporary or of `std::move(result)`,
/// copied from a variable. Works without exceptions and RTTI, and in constexpr functions: a value
/// is a constant expression, an error is not, because compilers refuse the early return there.
#define VMSPACE_TRY(...) \
  VMSPACE_DETAIL_TRY(VMSPACE_DETAIL_JOIN(vmspace_result_, __COUNTER__), , __VA_ARGS__)

/// VMSPACE_TRY, with the error's operation replaced (see Error::in):
/// `VMSPACE_TRY_IN("MemoryRegion::map", Backing::open(spec, size))`.
#define VMSPACE_TRY_IN(operation, ...) \
  VMSPACE_DETAIL_TRY(VMSPACE_DETAIL_JOIN(vmspace_result_, __COUNTER__), .in(operation), __VA_ARGS__)

#define VMSPACE_DETAIL_JOIN(a, b) VMSPACE_DETAIL_JOIN_EXPANDED(a, b)
#define VMSPACE_DETAIL_JOIN_EXPANDED(a, b) a##b

// Each use names its variable after a fresh number, so that one inside another shadows nothing.
// __extension__ keeps -Wpedantic quiet. The expression is the macro's last arguments, because the
// commas of `tree.allocate({.size = 1}, "nic0")` separate macro arguments.
#define VMSPACE_DETAIL_TRY(result, relabelled, ...)                          \
  __extension__({                                                            \
    auto&& result = (__VA_ARGS__);                                           \
    if (!result.has_value()) [[unlikely]]                                    \
      return ::vmspace::fail(result.error() relabelled);                     \
    ::vmspace::detail::take_value(::std::forward<decltype(result)>(result)); \
  })
