// SPDX-License-Identifier: Apache-2.0
//
// Ends the poll(2) of another thread.

#pragma once

#include <poll.h>
#include <sys/eventfd.h>

#include <chrono>
#include <span>
#include <thread>

#include "vmspace/base/result.hpp"

#include "os/descriptor.hpp"
#include "os/system_calls.hpp"

namespace vmspace::detail {

/// An eventfd(2) that a thread polls beside what it waits for. All calls but open() may run at the
/// same time.
class WakeEvent {
 public:
  /// Before anything else. Errors: `os`.
  [[nodiscard]] Result<void> open(const char* caller) {
    event_ = Descriptor(retry([] { return kernel().eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }));
    if (event_.value() < 0) return fail_os(caller, {}, "eventfd");
    return {};
  }

  /// What to poll.
  [[nodiscard]] pollfd polled() const noexcept {
    return {.fd = event_.value(), .events = POLLIN, .revents = 0};
  }
  /// For how many milliseconds a poll may wait: should wake() fail, it ends by itself.
  static constexpr int longest_poll = 1000;

  /// Ends all polls, those to come too, until reset().
  void wake() const noexcept {
    const eventfd_t one = 1;
    static_cast<void>(kernel().write(event_.value(), &one, sizeof one));
  }
  void reset() const noexcept {
    eventfd_t count = 0;
    static_cast<void>(kernel().read(event_.value(), &count, sizeof count));
  }

  /// Waits until one of `polled` is ready, of which this event's polled() is the first, and resets the
  /// event. Where poll(2) fails it pauses instead. So a thread asks everything that it waits for after each
  /// return, whatever was ready; then nothing is lost.
  void wait(std::span<pollfd> polled) const noexcept {
    if (kernel().poll(polled.data(), polled.size(), longest_poll) < 0) return pause();
    if (polled.front().revents != 0) reset();
  }
  /// Between tries of what has failed: too short for a guest to notice, and too long to cost a core.
  static void pause() noexcept { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }

 private:
  Descriptor event_;
};

}  // namespace vmspace::detail
