// SPDX-License-Identifier: Apache-2.0
//
// One front-end, from its first message to its last: what QEMU's docs/interop/vhost-user.rst asks of a
// block device's back-end. Memory is the library's to serve, and requests are BlkDevice's; here are the
// ring and the features.

#pragma once

#include <cstdint>

#include "vmspace/base/result.hpp"
#include "vmspace/vmm/vhost_user_backend.hpp"

#include "descriptor.hpp"
#include "ring.hpp"
#include "virtio_blk.hpp"

namespace vhost_user_blk {

/// A file that is the disk.
struct Disk {
  Descriptor file;
  std::uint64_t sectors;

  /// Opens an image for reading and writing.
  static vmspace::Result<Disk> open(const char* path);
};

class Session {
 public:
  static vmspace::Result<Session> create(Descriptor socket, const Disk& disk);

  /// Serves messages and requests until the front-end has closed the connection. Errors: a message
  /// that makes no sense, after which the connection is of no more use.
  vmspace::Result<void> run();

 private:
  Session(Descriptor socket, vmspace::VhostUserBackendMemory memory, const Disk& disk)
      : socket_(std::move(socket)),
        memory_(std::move(memory)),
        sectors_(disk.sectors),
        device_(disk.file.get(), disk.sectors) {}

  vmspace::Result<void> serve_message(vmspace::VhostUserMessage& message);
  vmspace::Result<void> serve_device_message(vmspace::VhostUserMessage& message);
  vmspace::Result<void> send_config(const vmspace::VhostUserMessage& message);
  void say_memory() const;
  vmspace::Result<void> restart_ring();
  void serve_ring();

  Descriptor socket_;
  vmspace::VhostUserBackendMemory memory_;
  std::uint64_t sectors_;
  example::BlkDevice device_;
  Ring ring_;
  std::uint64_t features_ = 0;
};

}  // namespace vhost_user_blk
