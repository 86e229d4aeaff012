// SPDX-License-Identifier: Apache-2.0
//
// Errors instead of signals where memory's pages can go away.
//
// A file that another process owns can be truncated, and holes can be punched in its huge pages
// (Backing::can_lose_pages). A load or store there then raises SIGBUS in this process, which kills it:
// whoever shares memory with a device could kill the device. While a FaultGuard is installed, such
// memory can be mapped as memory that may fault (Unsealed::guard), and an access to it by GuestMemory or
// by a cursor that finds a page gone returns `Errc::fault`. Memory that can't fault is accessed by the
// same instructions with and without a guard.
//
//   const auto guard = VMSPACE_TRY(FaultGuard::install());  // once, before threads block signals
//   auto memory = VMSPACE_TRY(map_regions(described));      // of a front-end with unsealed files
//   const auto value = memory.read<std::uint32_t>(address); // Errc::fault if the page is gone
//
// Not covered are pointers into guest memory: views, iovecs and host addresses. What touches memory
// through those, other than a system call (which gives EFAULT), gets the signal.
//
// Only SIGBUS with the code BUS_ADRERR is an error then, at an address that the interrupted access is
// about. SIGSEGV says that there is no mapping, or one that is protected: this process's own mistake,
// which an error would hide. BUS_MCEERR_AR says that the machine has lost a page; a VMM has to pass that
// on to its guest. Both go where they went before.

#pragma once

#include <signal.h>

#include <optional>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// The process's handler of SIGBUS, for as long as any FaultGuard exists.
///
/// All guards are one: the first installs the handler, copies and further ones count, and the last one
/// puts back the handler that was there before. Memory that may fault holds a guard of its own, so the
/// handler stays for as long as it is mapped. Destroying a guard allocates nothing.
///
/// A handler that is installed later, while a guard exists, must pass on what isn't its own: by
/// handle(), or, as is usual, by calling the handler that it has replaced. The last guard then finds
/// another handler than its own and leaves it in place; the guard's, behind it, passes everything on to
/// the handler before. The next guard goes by that chain, unless the handler is back at SIG_DFL or
/// SIG_IGN, which has no chain.
///
/// Signals that are not the guard's get what they would have got without it: the handler that was there
/// before, with its signal mask and its flags SA_SIGINFO, SA_NODEFER, SA_RESTART and SA_RESETHAND, on
/// the alternate stack if the thread has one; or, for SIG_DFL, the end of the process with the fault's
/// own address in the core dump. A thread must not block SIGBUS while it accesses guarded memory: the
/// kernel kills a process that faults while the signal is blocked. Nor may a handler that interrupts a
/// guarded access leave it by longjmp. Under ThreadSanitizer, which blocks signals in handlers, and
/// holds a lock of its own during ordered atomic accesses, those must not fault.
///
/// Threads: any call from any thread; an access may fault in any thread, and in signal handlers.
class VMSPACE_EXPORT FaultGuard {
 public:
  /// Installs the handler, or takes a share in it. Errors: `os` when sigaction(2) fails. Two system
  /// calls for the first guard.
  [[nodiscard]] static Result<FaultGuard> install();

  /// A share in the guard that is installed; nothing when none is.
  [[nodiscard]] static std::optional<FaultGuard> installed() noexcept;

  /// Another share in the guard, which stays installed until the last one is gone.
  FaultGuard(const FaultGuard& other) noexcept;
  // All guards are one, so that there is nothing to assign.
  FaultGuard& operator=(const FaultGuard&) noexcept = default;
  ~FaultGuard();

  /// For a handler of the program's own: whether the signal was a fault of a guarded access. The handler
  /// then must return at once: the access goes on with an error where it was interrupted. `context` is
  /// the handler's third argument. Needs no installed guard. Async-signal-safe.
  [[nodiscard]] static bool handle(int signal, const siginfo_t* info, void* context) noexcept;

 private:
  FaultGuard() noexcept = default;
};

}  // namespace vmspace
