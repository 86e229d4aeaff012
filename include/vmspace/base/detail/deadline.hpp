// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <chrono>

namespace vmspace::detail {

/// When to give up.
using Deadline = std::chrono::steady_clock::time_point;

/// `timeout` from now; a timeout that is too large is never over, one that is negative is over now.
[[nodiscard]] inline Deadline deadline_after(std::chrono::nanoseconds timeout) noexcept {
  const auto now = std::chrono::steady_clock::now();
  // Not long before: what is left until then would be too much for a number.
  if (timeout <= std::chrono::nanoseconds::zero()) return now;
  return timeout < Deadline::max() - now ? now + timeout : Deadline::max();
}

}  // namespace vmspace::detail
