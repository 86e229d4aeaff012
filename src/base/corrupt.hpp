// SPDX-License-Identifier: Apache-2.0
//
// The error about data that does not follow its format.

#pragma once

#include "vmspace/base/result.hpp"

namespace vmspace::detail {

/// `corrupt`: what was read or received, and `first` and `second` of it, breaks a rule.
[[nodiscard]] inline tl::unexpected<Error> corrupt(const char* operation, const char* reason,
                                                   Operand first = {}, Operand second = {}) {
  return fail({.code = Errc::corrupt,
               .operation = operation,
               .first = first,
               .second = second,
               .reason = reason});
}

}  // namespace vmspace::detail
