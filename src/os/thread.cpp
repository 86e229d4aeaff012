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

}  // namespace vmspace::detail
