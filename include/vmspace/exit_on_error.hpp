// SPDX-License-Identifier: Apache-2.0
//
// For examples, tools and tests' helpers, whose only answer to an error is to say so and end:
//
//   IntervalTree<std::string> ids;
//   value_or_exit(ids.insert(Range::of(0, 255)));
//   const Range id = value_or_exit(ids.allocate({.size = 1}, "nic0"));
//   exit_unless(id.min() == 0, "the first id is 0");
//
// Functions and no macros: unlike VMSPACE_TRY they never return early, so they may stand anywhere.
// A VMM passes errors on instead; see try.hpp.

#pragma once

#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <utility>

#include "vmspace/base/result.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace {

/// The value of a result, moved out of a temporary; of a Result<void>, nothing. When it has none,
/// prints `error: ` and the error's message() to stderr as one line, and ends the program by
/// std::exit(EXIT_FAILURE).
template <typename R>
requires(std::is_same_v<typename std::remove_cvref_t<R>::error_type, Error>)  //
    typename std::remove_cvref_t<R>::value_type value_or_exit(R&& result) {
  if (!result.has_value()) [[unlikely]] {
    (void)std::fprintf(stderr, "error: %s\n", result.error().message().c_str());
    std::exit(EXIT_FAILURE);
  }
  return detail::take_value(std::forward<R>(result));
}

/// Goes on only when `holds`: otherwise prints `error: ` and `expectation`, a sentence that is not
/// true, to stderr, and ends the program by std::exit(EXIT_FAILURE).
inline void exit_unless(bool holds, const char* expectation) {
  if (holds) [[likely]]
    return;
  (void)std::fprintf(stderr, "error: expectation failed: %s\n", expectation);
  std::exit(EXIT_FAILURE);
}

}  // namespace vmspace
