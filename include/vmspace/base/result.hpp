// SPDX-License-Identifier: Apache-2.0
//
// A value or an Error.
//
// A result type and not exceptions: a bad size or a taken range comes from a guest or from a
// configuration and is no surprise; every caller sees in the signature that a call can fail; and a
// VMM may be built with exceptions off. Always tl::expected, also where std::expected exists, so
// that a compiled library and its users agree on the type in every language mode.

#pragma once

#include <tl/expected.hpp>

#include "vmspace/base/error.hpp"

namespace vmspace {

/// What a fallible call returns: a T or an Error. `VMSPACE_TRY(call)` takes the value or passes the
/// error on; `if (!result) log(result.error().message());` handles it here.
template <typename T = void>
using Result = tl::expected<T, Error>;

/// An Error on its way into a Result: `return fail({.code = Errc::zero_size, ...});`
[[nodiscard]] constexpr tl::unexpected<Error> fail(const Error& error) {
  return tl::unexpected<Error>(error);
}

}  // namespace vmspace
