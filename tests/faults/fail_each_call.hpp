// SPDX-License-Identifier: Apache-2.0
//
// Every system call of something, failing: with each errno, at each place, once.

#pragma once

#include <cerrno>
#include <cstring>
#include <functional>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include "vmspace/base/result.hpp"

#include "faults/injector.hpp"

namespace vmspace::test {

/// Runs `body` once for each of its calls and each errno. It gives an error that tells the errno;
/// or succeeds, where the call was made again or can be done without, and then everything is as it
/// is after a run without failures, which `good` checks. `prepare` makes every run begin alike, so
/// that it makes the same calls.
inline void fail_each_call(
    const std::set<std::string>& dispensable, const std::function<Result<void>()>& body,
    const std::function<bool()>& good, const std::function<void()>& prepare = [] {}) {
  constexpr int errnos[] = {ENOMEM, EMFILE, EINTR, EIO, ENOSPC, EPERM, EINVAL, ENOSYS};
  Injector injector;
  prepare();
  ASSERT_TRUE(body());
  prepare();
  injector.fail_none();
  ASSERT_TRUE(body());
  const auto calls = injector.calls();
  ASSERT_FALSE(calls.empty());
  for (std::size_t index = 0; index < calls.size(); ++index) {
    if (calls[index] == "close" || calls[index] == "munmap") continue;  // of destructors
    for (const int error : errnos) {
      SCOPED_TRACE(calls[index] + " (call " + std::to_string(index) + "): " + std::strerror(error));
      prepare();
      injector.fail_call(index, error);
      const Result<void> done = body();
      const bool failed = injector.has_failed();
      injector.fail_none();
      ASSERT_TRUE(failed);
      if (!done) {
        EXPECT_FALSE(dispensable.contains(calls[index])) << done.error().message();
        EXPECT_NE(done.error().code, Errc{});
        if (done.error().os_errno != 0) {
          EXPECT_EQ(done.error().os_errno, error);
        }
      } else {
        // EINVAL of fcntl(F_GET_SEALS): a file that can't have seals.
        const bool no_seals = calls[index] == "fcntl" && error == EINVAL;
        EXPECT_TRUE(error == EINTR || no_seals || dispensable.contains(calls[index]));
        EXPECT_TRUE(good());
      }
    }
  }
}

}  // namespace vmspace::test
