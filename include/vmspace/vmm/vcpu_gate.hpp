// SPDX-License-Identifier: Apache-2.0
//
// The gate of a VMM whose vCPUs are threads that call KVM_RUN.
//
//   const auto gate = std::make_shared<VcpuGate>();
//   VMSPACE_TRY(memory.set_gate(gate));
//
//   // A vCPU's thread:
//   const auto vcpu = gate->add_vcpu([run, thread = pthread_self()] {
//     __atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);  // if KVM_RUN is yet to come
//     pthread_kill(thread, kick_signal);                            // if it has begun
//   });
//   for (;;) {
//     reader.park();
//     {
//       const auto inside = vcpu.enter();  // waits while the vCPUs are paused
//       result = ioctl(fd, KVM_RUN, 0);
//     }
//     __atomic_store_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);
//     // handle the exit, or EINTR; check whether to stop
//   }
//
// Between enter() and KVM_RUN a signal alone would be lost, which is what immediate_exit is for: it
// ends the next KVM_RUN before the guest runs. Cleared outside of the gate it can't take a kick
// away, because only a vCPU that is inside is kicked.

#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <utility>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/vmm/memory_listener.hpp"
#include "vmspace/vmm/vm_gate.hpp"

namespace vmspace {

/// Keeps vCPUs out of the guest while any pause lasts.
///
/// A vCPU is inside from enter() until what that gave is destroyed, and only then waited for. Its
/// thread is outside while it handles an exit, waits in a VmMemory, or makes the change itself.
///
/// A pause is one of a VmMemory's, for a disruptive change, or one of the VMM's own, from
/// pause_vcpus(). They nest: the gate opens when the last one has ended.
///
/// It stops vCPUs only. A VMM whose devices access guest memory by DMA has a VmGate of its own, which
/// stops those as well and calls this one.
///
/// Threads: every call is safe from any thread, but those of a Vcpu, which belong to its thread.
class VMSPACE_EXPORT VcpuGate final : public VmGate {
 public:
  class Inside;
  class Paused;
  class Vcpu;

  /// Takes the vCPU out of KVM_RUN, also where it is only about to call it. Called by the thread that
  /// pauses, once a pause at most, with a lock held: must neither block nor call the gate. What it
  /// throws ends the pause, and is thrown on. An empty one kicks nobody: the vCPU is only waited for.
  using Kick = std::function<void()>;

  /// An open gate without vCPUs. A pause waits for so long until all have left.
  explicit VcpuGate(std::chrono::nanoseconds timeout = std::chrono::seconds(10));
  ~VcpuGate() override;

  /// Registers the calling thread as a vCPU, until the result is destroyed. Allocates, takes a lock
  /// briefly.
  [[nodiscard]] Vcpu add_vcpu(Kick kick) const;

  /// Pauses every vCPU until the result is destroyed. Errors: `timed_out`, with how many vCPUs have
  /// not left in time; `would_deadlock` from a thread that is inside. After an error this pause has
  /// ended.
  [[nodiscard]] Result<Paused> pause_vcpus() const;

  /// What VmMemory calls, with the errors of pause_vcpus().
  [[nodiscard]] Result<void> pause(const MemoryChange& change) override;
  void resume() noexcept override;

 private:
  struct Seat;
  struct State;

  std::shared_ptr<State>
      state_;  ///< shared with every Vcpu and Paused, so that they may outlive this
};

/// A registered vCPU; used and destroyed by the thread that registered it.
class VMSPACE_EXPORT VcpuGate::Vcpu {
 public:
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;
  /// Afterwards no kick is being made, and none will be. Must not be inside.
  ~Vcpu();

  /// Enters the guest: waits until no pause lasts, and is inside until the result is destroyed. Park
  /// the thread's Reader first, or a change may wait for the old map that it holds. Two uncontended
  /// atomic operations while the gate is open.
  [[nodiscard]] Inside enter() const;

 private:
  friend VcpuGate;
  Vcpu(std::shared_ptr<State> state, Kick kick);

  std::shared_ptr<State> state_;
  std::unique_ptr<Seat> seat_;
};

/// That a vCPU is in the guest, or about to be. Its destruction never waits for a pause to end.
class VMSPACE_EXPORT VcpuGate::Inside {
 public:
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  ~Inside();

 private:
  friend Vcpu;
  Inside(State& state, Seat& seat) noexcept : state_(state), seat_(seat) {}

  State& state_;
  Seat& seat_;
};

/// A pause of the VMM's own.
class VMSPACE_EXPORT VcpuGate::Paused {
 public:
  Paused(Paused&&) noexcept = default;
  /// The pause held before ends.
  Paused& operator=(Paused&& other) noexcept;
  ~Paused();

 private:
  friend VcpuGate;
  explicit Paused(std::shared_ptr<State> state) noexcept : state_(std::move(state)) {}

  std::shared_ptr<State> state_;  ///< null after a move
};

}  // namespace vmspace
