// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vcpu_gate.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "vmspace/base/detail/deadline.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace {

/// One vCPU, on cache lines of its own, because its thread writes to it at every entry and exit.
struct VMSPACE_HIDDEN VcpuGate::Seat {
  alignas(64) std::atomic<bool> is_inside{false};
  std::thread::id thread = std::this_thread::get_id();
  Kick kick;
};

/// Who enters stores is_inside and then loads is_closed; who pauses stores is_closed and then loads
/// is_inside. All four are sequentially consistent, so that one of the two sees the other: the vCPU
/// turns back, or it is kicked and waited for.
///
/// It also follows that a vCPU which is being kicked sees is_closed when it leaves, and waits for the
/// lock: no kick comes after that.
struct VMSPACE_HIDDEN VcpuGate::State {
  explicit State(std::chrono::nanoseconds time) : timeout(time) {}

  void enter(Seat& seat);
  void leave(Seat& seat) noexcept;
  [[nodiscard]] Result<void> pause();
  void resume() noexcept {
    const std::lock_guard lock(mutex);
    end_pause();
  }

  [[nodiscard]] std::ptrdiff_t count_inside() const noexcept {
    return std::ranges::count_if(seats, [](const Seat* seat) { return seat->is_inside.load(); });
  }
  /// With the lock held.
  void end_pause() noexcept {
    if (--pauses > 0) return;
    is_closed = false;
    opened.notify_all();
  }

  const std::chrono::nanoseconds timeout;
  std::atomic<bool> is_closed{false};  ///< written with the lock held; whether there are pauses

  std::mutex mutex;
  std::condition_variable opened;
  std::condition_variable left;
  std::size_t pauses = 0;
  std::vector<Seat*> seats;
};

void VcpuGate::State::enter(Seat& seat) {
  seat.is_inside = true;
  if (!is_closed) return;
  leave(seat);
  std::unique_lock lock(mutex);
  opened.wait(lock, [&] { return pauses == 0; });
  seat.is_inside = true;  // nobody closes it while the lock is held
}

void VcpuGate::State::leave(Seat& seat) noexcept {
  seat.is_inside = false;
  if (!is_closed) return;
  const std::lock_guard lock(mutex);
  left.notify_all();
}

Result<void> VcpuGate::State::pause() {
  constexpr const char* operation = "VcpuGate::pause";
  const auto deadline = detail::deadline_after(timeout);
  std::unique_lock lock(mutex);
  const auto is_this_thread = [](const Seat* seat) {
    return seat->is_inside && seat->thread == std::this_thread::get_id();
  };
  if (std::ranges::any_of(seats, is_this_thread)) {
    return fail({.code = Errc::would_deadlock,
                 .operation = operation,
                 .reason = "must not be called by a vCPU's thread between enter() and leaving"});
  }
  struct Pause {
    State& state;
    bool lasts = false;
    ~Pause() {
      if (!lasts) state.end_pause();
    }
  };
  ++pauses;
  is_closed = true;
  Pause pause{.state = *this};  // which ends also where a kick throws
  for (const Seat* seat : seats) {
    if (seat->is_inside && seat->kick) seat->kick();
  }
  pause.lasts = left.wait_until(lock, deadline, [&] { return count_inside() == 0; });
  if (pause.lasts) return {};
  const auto count = static_cast<std::uint64_t>(count_inside());
  return fail({.code = Errc::timed_out,
               .operation = operation,
               .first = Operand::number(count),
               .reason = "this many vCPUs have not left the guest after being kicked"});
}

VcpuGate::VcpuGate(std::chrono::nanoseconds timeout) : state_(std::make_shared<State>(timeout)) {}

VcpuGate::~VcpuGate() = default;

VcpuGate::Vcpu VcpuGate::add_vcpu(Kick kick) const {
  return {state_, std::move(kick)};
}

Result<VcpuGate::Paused> VcpuGate::pause_vcpus() const {
  VMSPACE_TRY_IN("VcpuGate::pause_vcpus", state_->pause());
  return Paused(state_);
}

Result<void> VcpuGate::pause(const MemoryChange&) {
  return state_->pause();
}

void VcpuGate::resume() noexcept {
  state_->resume();
}

VcpuGate::Vcpu::Vcpu(std::shared_ptr<State> state, Kick kick)
    : state_(std::move(state)), seat_(std::make_unique<Seat>()) {
  seat_->kick = std::move(kick);
  const std::lock_guard lock(state_->mutex);
  state_->seats.push_back(seat_.get());
}

VcpuGate::Vcpu::~Vcpu() {
  const std::lock_guard lock(state_->mutex);
  std::erase(state_->seats, seat_.get());
}

VcpuGate::Inside VcpuGate::Vcpu::enter() const {
  state_->enter(*seat_);
  return {*state_, *seat_};
}

VcpuGate::Inside::~Inside() {
  state_.leave(seat_);
}

VcpuGate::Paused& VcpuGate::Paused::operator=(Paused&& other) noexcept {
  if (this == &other) return *this;
  if (state_ != nullptr) state_->resume();
  state_ = std::move(other.state_);
  return *this;
}

VcpuGate::Paused::~Paused() {
  if (state_ != nullptr) state_->resume();
}

}  // namespace vmspace
