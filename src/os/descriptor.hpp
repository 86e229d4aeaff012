// SPDX-License-Identifier: Apache-2.0
//
// A file descriptor that is closed by its owner.

#pragma once

#include <utility>

#include "os/system_calls.hpp"

namespace vmspace::detail {

/// Owns a file descriptor, and closes it; negative means none.
class Descriptor {
 public:
  Descriptor() noexcept = default;
  explicit Descriptor(int fd) noexcept : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  /// Closes what it had, at once.
  Descriptor& operator=(Descriptor&& other) noexcept {
    Descriptor moved(std::move(other));
    std::swap(fd_, moved.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) kernel().close(fd_);
  }

  [[nodiscard]] int value() const noexcept { return fd_; }
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

 private:
  int fd_ = -1;
};

}  // namespace vmspace::detail
