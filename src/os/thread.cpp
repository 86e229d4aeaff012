// SPDX-License-Identifier: Apache-2.0

#include "os/thread.hpp"

#include <signal.h>

#include "os/system_calls.hpp"

namespace vmspace::detail {

int start_thread(pthread_t& thread, void* (*body)(void*), void* argument) noexcept {
  // A new thread inherits the mask of the one that starts it.
  sigset_t blocked;
  sigset_t before;
  sigfillset(&blocked);
  sigdelset(&blocked, SIGBUS);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  const int error = kernel().pthread_create(&thread, nullptr, body, argument);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return error;
}

void name_this_thread(const char* name) noexcept {
  // Where that is not allowed, the thread is merely harder to find. Not by kernel(): what it does is
  // counted by tests, and when a thread comes to its first line is anybody's guess.
  pthread_setname_np(pthread_self(), name);
}

}  // namespace vmspace::detail
