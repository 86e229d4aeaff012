// SPDX-License-Identifier: Apache-2.0
//
// Programs in which any allocation can fail: compile failing_allocations.cpp into them.

#pragma once

#include <new>

namespace vmspace::test {

/// Counts down with each allocation of the program while it is not negative; the one that finds 0
/// throws std::bad_alloc.
extern int allocations_until_failure;

/// Makes the first allocation of `call` fail, then the second, and so on until it goes through;
/// `check` looks at what each failure has left. Gives the number of failures.
template <typename Call, typename Check>
int fail_each_allocation(Call call, Check check) {
  for (int k = 0;; ++k) {
    allocations_until_failure = k;
    try {
      call();
      allocations_until_failure = -1;
      return k;
    } catch (const std::bad_alloc&) {
      allocations_until_failure = -1;
      check();
    }
  }
}

}  // namespace vmspace::test
