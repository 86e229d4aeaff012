// SPDX-License-Identifier: Apache-2.0
//
// What a child that has forked must not destroy: an object with threads, which only the parent has, or
// with a descriptor by which the child would change what the parent has: a userfaultfd, a container of
// VFIO, a device's connection.

#pragma once

#include <unistd.h>

#include <memory>
#include <utility>

namespace vmspace::detail {

/// The process in which an object was made.
class Maker {
 public:
  [[nodiscard]] bool is_this_process() const noexcept { return process_ == ::getpid(); }

 private:
  pid_t process_ = ::getpid();
};

/// Before a state is destroyed: in a child that has forked, leaves it as it is, to go with the child.
template <typename State>
void leave_to_maker(std::unique_ptr<State>& state) noexcept {
  if (state != nullptr && !state->maker.is_this_process()) static_cast<void>(state.release());
}

/// Moves a state; what was in its place is left as it is in a child that has forked.
template <typename State>
void move_or_leave(std::unique_ptr<State>& to, std::unique_ptr<State>&& from) noexcept {
  if (&to == &from) return;
  leave_to_maker(to);
  to = std::move(from);
}

}  // namespace vmspace::detail
