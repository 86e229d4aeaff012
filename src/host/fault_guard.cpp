// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/fault_guard.hpp"

#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <mutex>

#include "os/system_calls.hpp"

namespace vmspace {

namespace {

constexpr const char* install_operation = "FaultGuard::install";

void on_signal(int signal, siginfo_t* info, void* context);

/// The one handler. `mutex` guards the counts; `before` is written before the handler is there.
// Constant-initialised and never destroyed: guards may outlive all other static objects.
struct Installation {
  std::mutex mutex;
  std::size_t guards = 0;
  bool is_in_chain = false;  ///< the handler is installed, or somebody's later one calls it
  struct sigaction before = {};
  std::atomic<bool> was_reset{false};  ///< `before` is SA_RESETHAND and was called
};
constinit Installation installation;

bool is_ours(const struct sigaction& action) noexcept {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == &on_signal;
}

bool has_no_handler(const struct sigaction& action) noexcept {
  return (action.sa_flags & SA_SIGINFO) == 0 &&
         (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN);
}

/// What the kernel does by default: kills the process.
void take_default(int signal, bool is_repeated) noexcept {
  struct sigaction action = {};
  action.sa_handler = SIG_DFL;
  ::sigemptyset(&action.sa_mask);
  detail::kernel().sigaction(signal, &action, nullptr);
  // A faulting instruction is executed again, and the core dump shows where. A signal that somebody
  // has sent, or one that tells of a fault elsewhere, is sent again; it is blocked until we return.
  if (!is_repeated) ::pthread_kill(::pthread_self(), signal);
}

/// As if the handler from before had got the signal. Its mask and the flags that are the kernel's
/// business are those of our own handler.
void pass_on(int signal, siginfo_t* info, void* context) noexcept {
  const struct sigaction& before = installation.before;
  const bool is_fault = info->si_code == BUS_ADRERR || info->si_code == BUS_ADRALN ||
                        info->si_code == BUS_OBJERR || info->si_code == BUS_MCEERR_AR;
  const bool has_handler =
      !has_no_handler(before) && ((before.sa_flags & static_cast<int>(SA_RESETHAND)) == 0 ||
                                  !installation.was_reset.exchange(true));
  if (has_handler) {
    if ((before.sa_flags & SA_SIGINFO) != 0) {
      before.sa_sigaction(signal, info, context);
    } else {
      before.sa_handler(signal);
    }
    return;
  }
  // The kernel ignores no fault: the instruction could not go on.
  const bool is_ignored = (before.sa_flags & SA_SIGINFO) == 0 && before.sa_handler == SIG_IGN;
  if (is_ignored && !is_fault) return;
  take_default(signal, is_fault);
}

void on_signal(int signal, siginfo_t* info, void* context) {
  if (FaultGuard::handle(signal, info, context)) return;
  const int error = errno;
  pass_on(signal, info, context);
  errno = error;
}

Result<void> put_in_chain() {
  Installation& us = installation;
  const auto& calls = detail::kernel();
  struct sigaction now = {};
  if (calls.sigaction(SIGBUS, nullptr, &now) != 0)
    return detail::fail_os(install_operation, {}, "sigaction");
  // Somebody's later handler calls ours, or handle(); on top of it, ours would be called by itself.
  us.is_in_chain = is_ours(now) || (us.is_in_chain && !has_no_handler(now));
  if (us.is_in_chain) return {};
  us.before = now;
  us.was_reset = false;
  struct sigaction action = {};
  action.sa_sigaction = &on_signal;
  action.sa_mask = now.sa_mask;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | (now.sa_flags & (SA_NODEFER | SA_RESTART));
  if (calls.sigaction(SIGBUS, &action, nullptr) != 0) {
    return detail::fail_os(install_operation, {}, "sigaction");
  }
  us.is_in_chain = true;
  return {};
}

}  // namespace

// A guard is returned without the mutex: it is copied into the result.

Result<FaultGuard> FaultGuard::install() {
  {
    const std::lock_guard lock(installation.mutex);
    const auto ok = put_in_chain();
    if (!ok) return fail(ok.error());
    ++installation.guards;
  }
  return FaultGuard();
}

std::optional<FaultGuard> FaultGuard::installed() noexcept {
  {
    const std::lock_guard lock(installation.mutex);
    if (installation.guards == 0) return std::nullopt;
    ++installation.guards;
  }
  return FaultGuard();
}

FaultGuard::FaultGuard(const FaultGuard&) noexcept {
  const std::lock_guard lock(installation.mutex);
  ++installation.guards;
}

FaultGuard::~FaultGuard() {
  const std::lock_guard lock(installation.mutex);
  if (--installation.guards != 0) return;
  const auto& calls = detail::kernel();
  struct sigaction now = {};
  if (calls.sigaction(SIGBUS, nullptr, &now) != 0 || !is_ours(now)) return;
  struct sigaction before = installation.before;
  if (installation.was_reset) before.sa_handler = SIG_DFL;
  if (installation.was_reset) before.sa_flags = 0;
  if (calls.sigaction(SIGBUS, &before, nullptr) == 0) installation.is_in_chain = false;
}

}  // namespace vmspace
