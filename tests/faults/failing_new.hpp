// SPDX-License-Identifier: Apache-2.0
//
// Makes memory run out at will, in programs that are linked to failing_new: it replaces operator new.

#pragma once

#include <cstddef>
#include <new>

namespace vmspace::test {

/// How many more allocations this thread is granted; below 0, all.
inline thread_local int granted = -1;
/// How many this thread has asked for.
inline thread_local int asked = 0;
/// The bytes of the largest that it has asked for.
inline thread_local std::size_t largest = 0;

/// Calls `attempt` with no allocation granted, then with one, and so on, until it gets through;
/// after each failure calls `check`. Returns how often it failed.
template <typename Attempt, typename Check>
int fail_each_allocation(Attempt attempt, Check check) {
  for (int n = 0;; ++n) {
    granted = n;
    try {
      attempt();
      granted = -1;
      return n;
    } catch (const std::bad_alloc&) {
      granted = -1;
      check();
    }
  }
}

}  // namespace vmspace::test
