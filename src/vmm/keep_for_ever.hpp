// SPDX-License-Identifier: Apache-2.0
//
// Memory that a table still has when nobody is left who could take it out: what is unmapped then would be
// used later, as whatever else this process maps there.

#pragma once

#include <atomic>
#include <memory>

namespace vmspace::detail {

/// Never destroys what it is given, which holds the memory. Allocates nothing: `before` links it to what
/// was kept earlier, so that all of it is known, and no leak.
template <typename T>
void keep_for_ever(std::unique_ptr<T> kept) noexcept {
  static std::atomic<T*> all{nullptr};
  kept->before = all.load();
  while (!all.compare_exchange_weak(kept->before, kept.get())) {
  }
  static_cast<void>(kept.release());
}

}  // namespace vmspace::detail
