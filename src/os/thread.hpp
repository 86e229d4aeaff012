// SPDX-License-Identifier: Apache-2.0
//
// Threads of the library's own.

#pragma once

#include <pthread.h>

namespace vmspace::detail {

/// Starts a thread on which the program's signal handlers do not run; but SIGBUS is left to whoever
/// handles it, since FaultGuard does. Gives an errno, or 0.
[[nodiscard]] int start_thread(pthread_t& thread, void* (*body)(void*), void* argument) noexcept;

}  // namespace vmspace::detail
