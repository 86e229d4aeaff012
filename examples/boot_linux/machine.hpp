// SPDX-License-Identifier: Apache-2.0
//
// A PC under /dev/kvm with one processor: the kernel's interrupt controllers and timer, and a serial
// port here. Source: the kernel's Documentation/virt/kvm/api.rst.

#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>

#include "vmspace/base/result.hpp"

#include "load_linux.hpp"

namespace boot_linux {

/// Why run() returned.
enum class Stopped : std::uint8_t {
  by_print,  ///< the callback had seen enough
  by_time,   ///< the time was up
  by_guest,  ///< the guest shut itself down
};

/// A machine without memory, which a listener of VmMemory gives it through vm_fd().
class Machine {
 public:
  /// Errors: `unsupported` without /dev/kvm, or what of KVM is needed; `os`.
  static vmspace::Result<Machine> create();
  Machine(Machine&&) noexcept;
  ~Machine();

  [[nodiscard]] int vm_fd() const;
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
