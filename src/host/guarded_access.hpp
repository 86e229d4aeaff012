// SPDX-License-Identifier: Apache-2.0
//
// Touching memory that may fault; see vmspace/host/fault_guard.hpp.

#pragma once

#include <cstddef>
#include <memory>

namespace vmspace::detail {

/// Calls `access(argument)`, which touches [begin, begin + size) and no other memory that may fault.
/// Gives null, or, where a page of it was gone, the address at which the access ended. It ends there
/// as if by longjmp: nothing in it may have a destructor that matters. The thread must not block
/// SIGBUS. May be nested, by signal handlers. Async-signal-safe, if `access` is.
[[nodiscard]] std::byte* run_guarded(std::byte* begin, std::size_t size, void (*access)(void*),
                                     void* argument) noexcept;

template <typename Access>
[[nodiscard]] std::byte* run_guarded(std::byte* begin, std::size_t size, Access access) noexcept {
  return run_guarded(
      begin, size, [](void* argument) { (*static_cast<Access*>(argument))(); },
      std::addressof(access));
}

}  // namespace vmspace::detail
