// SPDX-License-Identifier: Apache-2.0
//
// Threads of the library's own.

#pragma once

#include <pthread.h>

namespace vmspace::detail {

/// Starts a thread on which the program's signal handlers do not run; but SIGBUS is left to whoever
/// handles it, since FaultGuard does. Gives an errno, or 0.
[[nodiscard]] int start_thread(pthread_t& thread, void* (*body)(void*), void* argument) noexcept;

/// What debuggers and `top -H` call the thread that calls this: pthread_setname_np(3), of at most 15
/// characters. Without it that is the name of the thread that started it, often a vCPU's.
void name_this_thread(const char* name) noexcept;

}  // namespace vmspace::detail
