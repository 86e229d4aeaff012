// SPDX-License-Identifier: Apache-2.0
//
// The recovery point of a thread.
//
// An access notes the range that it is about to touch, and where to go on if that faults. The handler
// changes the interrupted context so that, when it returns, the thread continues in resume(), which
// jumps to that place. Jumping out of the handler itself would be shorter. But then the signal mask
// and the alternate stack (which the kernel disarms under SS_AUTODISARM) would have to be put back by
// hand, the sanitizers would see a jump from one stack to another, and ThreadSanitizer would take the
// thread to be in the handler for ever. Returning from it, the kernel restores everything, and the jump
// is an ordinary one up an ordinary stack. sigsetjmp saves no mask, so an access makes no system call.

#include "host/guarded_access.hpp"

#include <signal.h>

#include <atomic>
#include <cstdint>

#include <setjmp.h>
#include <ucontext.h>

#include "vmspace/host/fault_guard.hpp"

namespace vmspace {

namespace detail {

namespace {

struct RecoveryPoint {
  std::uintptr_t begin;
  std::size_t size;
  RecoveryPoint* outer;       ///< of the access that a signal has interrupted, or null
  std::byte* volatile fault;  ///< written by the handler
  sigjmp_buf place;
};

// initial-exec: a handler must not be the first to use a thread's variables of a shared library, which
// may allocate them.
[[gnu::tls_model("initial-exec")]] constinit thread_local RecoveryPoint* volatile innermost =
    nullptr;

/// Where the thread goes on after the handler.
[[noreturn]] void resume(RecoveryPoint* point) {
  siglongjmp(point->place, 1);
}

/// Lets the interrupted context call resume(point).
void redirect(ucontext_t& context, RecoveryPoint* point) noexcept {
  mcontext_t& machine = context.uc_mcontext;
#if defined(__x86_64__)
  auto* const registers = machine.gregs;
  constexpr greg_t red_zone = 128;
  constexpr greg_t direction_flag = 0x400;  // clear in every call; `rep movs` may have set it
  // As after a call, which has pushed the return address onto a stack aligned to 16 bytes.
  registers[REG_RSP] = ((registers[REG_RSP] - red_zone) & ~greg_t{15}) - 8;
  registers[REG_RIP] = reinterpret_cast<greg_t>(&resume);
  registers[REG_RDI] = reinterpret_cast<greg_t>(point);
  registers[REG_EFL] &= ~direction_flag;
#elif defined(__aarch64__)
  // The stack is always aligned, and nothing is kept below it.
  machine.pc = reinterpret_cast<std::uintptr_t>(&resume);
  machine.regs[0] = reinterpret_cast<std::uintptr_t>(point);
#else
#error "FaultGuard knows the contexts of x86-64 and aarch64"
#endif
}

}  // namespace

std::byte* run_guarded(std::byte* begin, std::size_t size, void (*access)(void*),
                       void* argument) noexcept {
  RecoveryPoint point;
  point.begin = reinterpret_cast<std::uintptr_t>(begin);
  point.size = size;
  point.outer = innermost;
  point.fault = nullptr;
  if (sigsetjmp(point.place, 0) == 0) {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    innermost = &point;
    std::atomic_signal_fence(std::memory_order_seq_cst);
    access(argument);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  innermost = point.outer;
  return point.fault;
}

}  // namespace detail

bool FaultGuard::handle(int signal, const siginfo_t* info, void* context) noexcept {
  if (signal != SIGBUS || info == nullptr || context == nullptr) return false;
  if (info->si_code != BUS_ADRERR) return false;
  // Only the innermost: an outer one belongs to what this thread's other handlers have interrupted.
  detail::RecoveryPoint* const point = detail::innermost;
  if (point == nullptr) return false;
  if (reinterpret_cast<std::uintptr_t>(info->si_addr) - point->begin >= point->size) return false;
  point->fault = static_cast<std::byte*>(info->si_addr);
  detail::redirect(*static_cast<ucontext_t*>(context), point);
  return true;
}

}  // namespace vmspace
