// SPDX-License-Identifier: Apache-2.0
//
// A file descriptor that is closed by its owner, for the examples that are processes.

#pragma once

#include <unistd.h>

#include <utility>

namespace example {

/// An open descriptor, closed on destruction; negative means none.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace example
