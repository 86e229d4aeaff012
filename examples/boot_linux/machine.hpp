// SPDX-License-Identifier: Apache-2.0
//
// A PC under /dev/kvm with one processor: the kernel's interrupt controllers and timer, and a serial
// port here. Source: the kernel's Documentation/virt/kvm/api.rst.

#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/result.hpp"

#include "load_linux.hpp"

namespace boot_linux {

/// Why run() returned.
enum class Stopped : std::uint8_t {
  by_print,  ///< the callback had seen enough
  by_time,   ///< the time was up
  by_guest,  ///< the guest shut itself down
};

/// What a device does with an access to its registers: `offset`, the bytes to fill or to take, and
/// whether it is a write.
using MmioAccess =
    std::function<void(std::uint64_t offset, std::span<std::byte> bytes, bool is_write)>;

/// A machine without memory, which a listener of VmMemory gives it through vm_fd().
class Machine {
 public:
  /// Errors: `unsupported` without /dev/kvm, or what of KVM is needed; `os`.
  static vmspace::Result<Machine> create();
  Machine(Machine&&) noexcept;
  ~Machine();

  [[nodiscard]] int vm_fd() const;
  /// Sets the level of an interrupt line of the I/O APIC.
  void set_interrupt(unsigned line, bool level) const;
  /// Gives accesses to [base, base + size) to a device, while the machine runs.
  void attach(vmspace::GuestRange registers, MmioAccess access);
  /// Runs from `entry` on and calls `print(character)` for what the guest sends to its serial port,
  /// until that returns false, for at most so long. Errors: `bad_state` for what the processor could
  /// not do, with where it was; `os`.
  vmspace::Result<Stopped> run(const Entry& entry, std::function<bool(char)> print,
                               std::chrono::seconds limit);

 private:
  struct State;
  explicit Machine(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

}  // namespace boot_linux
