// SPDX-License-Identifier: Apache-2.0
//
// A shared object that hides its symbols, as plug-ins and most libraries do, so that what is inline
// or a template in the headers is there once more. published_dso_test loads it.

#include "vmspace/base/published.hpp"

/// What update() and wait_released() of `number` give, called here.
extern "C" [[gnu::visibility("default")]] void vmspace_test_change(
    const vmspace::Published<int>* number, vmspace::Result<void>* updated,
    vmspace::Result<void>* released) {
  *updated = number->update([](int& draft) -> vmspace::Result<void> {
    ++draft;
    return {};
  });
  *released = number->wait_released(std::chrono::nanoseconds(0));
}
