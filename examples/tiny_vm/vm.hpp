// SPDX-License-Identifier: Apache-2.0
//
// A virtual machine under /dev/kvm, as plain as it can be: no interrupt
// controller, no timer, no firmware, and no memory of its own. Source: the kernel's
// Documentation/virt/kvm/api.rst.

#pragma once

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/vmm/vcpu_gate.hpp"

struct kvm_run;

namespace tiny_vm {

/// An open descriptor, closed on destruction.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor();

  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

/// A virtual machine without memory and without processors.
class Vm {
 public:
  /// Fails if KVM is missing, inaccessible or too old; the message says which.
  static vmspace::Result<Vm> create();

  [[nodiscard]] int fd() const { return vm_.get(); }
  /// The size in bytes of a processor's shared struct kvm_run.
  [[nodiscard]] std::size_t run_size() const { return run_size_; }

 private:
  Vm(Descriptor vm, std::size_t run_size) : vm_(std::move(vm)), run_size_(run_size) {}

  Descriptor vm_;
  std::size_t run_size_;
};

/// Where a processor starts: 64-bit code, its page tables, and what it finds in %rdi.
struct Start {
  vmspace::GuestAddress code;
  vmspace::GuestAddress page_tables;
  vmspace::GuestAddress argument;
  /// Without privileges, but for I/O ports: HLT is not allowed then. A KVM without help from the
  /// hardware runs such code natively, and emulates all other.
  bool user_mode = false;
  unsigned id = 0;  ///< of the processor; each has one of its own
};

/// What the guest did that the host has to look at.
struct Event {
  enum class Kind : std::uint8_t {
    port_write,      ///< `value` to the I/O port `address`
    unmapped_read,   ///< of the address `address`, which no memory slot covers; it read all ones
    unmapped_write,  ///< `value` to `address`, which no memory slot covers
    halted,          ///< the processor has stopped, as it should
  };
  Kind kind;
  std::uint64_t address = 0;
  std::uint64_t value = 0;
};

/// A processor that runs on a thread of its own from construction until it halts, fails or is
/// destroyed, and stays out of the guest while the gate is closed.
class Vcpu {
 public:
  static vmspace::Result<std::unique_ptr<Vcpu>> start(
      const Vm& vm, const Start& start, std::shared_ptr<const vmspace::VcpuGate> gate);
  /// Goes on where processor 0 of another machine was, perhaps in another process: `registers` are what
  /// its registers() gave.
  static vmspace::Result<std::unique_ptr<Vcpu>> resume(
      const Vm& vm, std::span<const std::byte> registers,
      std::shared_ptr<const vmspace::VcpuGate> gate);
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;
  /// Forces the processor out of the guest and joins its thread. Not during a pause, which the thread
  /// may be waiting for.
  ~Vcpu();

  /// Waits for the next event. `timed_out` if none arrives within `limit`; an error that names the
  /// exit if the processor could not continue.
  vmspace::Result<Event> next_event(std::chrono::seconds limit);

  /// Keeps the processor from the guest from now on. During a pause, it has run for the last time.
  void stop();

  /// All that this guest uses of a processor, while the gate is closed.
  [[nodiscard]] vmspace::Result<std::vector<std::byte>> registers() const;

 private:
  struct Registers;
  static vmspace::Result<std::unique_ptr<Vcpu>> launch(
      const Vm& vm, Descriptor vcpu, const Registers& registers,
      std::shared_ptr<const vmspace::VcpuGate> gate);
  Vcpu(Descriptor vcpu, kvm_run* run, std::size_t run_size,
       std::shared_ptr<const vmspace::VcpuGate> gate);
  void run_loop();
  int run(const vmspace::VcpuGate::Vcpu& vcpu);
  void kick(pthread_t thread);
  vmspace::Result<Event> handle_exit();
  void post(vmspace::Result<Event> event);

  Descriptor vcpu_;
  kvm_run* run_;
  std::size_t run_size_;
  std::shared_ptr<const vmspace::VcpuGate> gate_;
  std::atomic<bool> is_to_stop_{false};
  std::mutex mutex_;
  std::condition_variable posted_;
  std::deque<vmspace::Result<Event>> events_;
  std::thread thread_;
};

}  // namespace tiny_vm
