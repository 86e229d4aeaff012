// SPDX-License-Identifier: Apache-2.0
//
// The smaller and the larger of two numbers, for headers that need nothing else of <algorithm>: that
// one brings the range algorithms, 4,700 lines, into every file that includes it.

#pragma once

namespace vmspace::detail {

template <typename Number>
[[nodiscard]] constexpr Number min_of(Number a, Number b) noexcept {
  return b < a ? b : a;
}

template <typename Number>
[[nodiscard]] constexpr Number max_of(Number a, Number b) noexcept {
  return a < b ? b : a;
}

}  // namespace vmspace::detail
