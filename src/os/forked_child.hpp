// SPDX-License-Identifier: Apache-2.0
//
// What a child that has forked must not destroy: an object with threads, which only the parent has, or
// with a descriptor by which the child would change what the parent has: a userfaultfd, a container of
// VFIO, a device's connection.

#pragma once

#include <unistd.h>

#include <memory>

namespace vmspace::detail {

/// The process in which an object was made.
class Maker {
 public:
  [[nodiscard]] bool is_this_process() const noexcept { return process_ == ::getpid(); }

 private:
  pid_t process_ = ::getpid();
};

/// In a destructor: in a child that has forked, leaves the state as it is; it goes with the child.
template <typename State>
void leave_to_maker(std::unique_ptr<State>& state) noexcept {
  if (state != nullptr && !state->maker.is_this_process()) static_cast<void>(state.release());
}

}  // namespace vmspace::detail
