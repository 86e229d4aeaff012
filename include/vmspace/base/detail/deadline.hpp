// SPDX-License-Identifier: Apache-2.0

#pragma once

#include <chrono>

namespace vmspace::detail {

/// When to give up.
using Deadline = std::chrono::steady_clock::time_point;

/// `timeout` from now; a timeout that is too large is never over.
[[nodiscard]] inline Deadline deadline_after(std::chrono::nanoseconds timeout) noexcept {
  const auto now = std::chrono::steady_clock::now();
  return timeout < Deadline::max() - now ? now + timeout : Deadline::max();
}

}  // namespace vmspace::detail
