// SPDX-License-Identifier: Apache-2.0
//
// Guest memory for a device in the kernel: vhost-net, vhost-vsock and their like.
//
// The VMM opens the device and makes itself its owner (VHOST_SET_OWNER), features and rings are its
// business too; VhostKernelMemory tells the device which memory the guest has. The device reaches it
// through this process's page tables, so any memory will do, anonymous or not.
//
// Source: linux/vhost.h and the kernel's drivers/vhost/vhost.c.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/vmm/memory_listener.hpp"

namespace vmspace {

/// The listener that keeps a vhost device's table of memory (VHOST_SET_MEM_TABLE).
///
/// The device is told of RAM and DAX memory that the guest may write; firmware, read-only memory and
/// devices' memory are passed over. commit() hands over the table as a whole, and the kernel takes
/// all of it or nothing; when it has taken one, none of its threads uses the old one any more.
///
/// Errors name the device by its name. Threads: one at a time; the device may run.
class VMSPACE_EXPORT VhostKernelMemory final : public MemoryListener {
 public:
  /// Takes a descriptor of /dev/vhost-net or another vhost device that this process owns
  /// (VHOST_SET_OWNER). It is duplicated; the caller keeps its own. `name` is for errors.
  ///
  /// Errors: `os` when it can't be duplicated or is not of a vhost device (VHOST_GET_FEATURES). A few
  /// system calls.
  [[nodiscard]] static Result<std::unique_ptr<VhostKernelMemory>> create(
      int vhost_fd, std::string name = "vhost");

  // Listeners are known by their addresses: they stay where they are.
  VhostKernelMemory(const VhostKernelMemory&) = delete;
  VhostKernelMemory& operator=(const VhostKernelMemory&) = delete;
  /// Closes its descriptor and leaves the device the table that it has. A device that may still run
  /// must not outlive the memory: stop it first.
  ~VhostKernelMemory() override;

  [[nodiscard]] std::string_view name() const noexcept override;
  /// Errors: `misaligned` unless base, size and host address are multiples of 4096;
  /// `limit_exceeded` for more regions than the kernel takes at any moment of the change. O(s log s) in
  /// the sections.
  [[nodiscard]] Result<void> prepare(const MemoryChange& change) override;
  /// Adds a section with the next commit(). Errors: those of prepare(); `overlap`. O(n).
  [[nodiscard]] Result<void> add(const MemorySection& section) override;
  /// Removes a section with the next commit(). Errors: `not_found`. O(n).
  [[nodiscard]] Result<void> remove(const MemorySection& section) override;
  /// Hands the table over, if it has changed. Errors: `os` when the kernel refuses it, and the
  /// device has the table that it had. One system call; does not allocate.
  [[nodiscard]] Result<void> commit() override;

  /// How many regions the kernel takes (its module's parameter max_mem_regions; 64 where that can't
  /// be read).
  [[nodiscard]] std::uint64_t limit() const noexcept;
  /// How many the device has, or gets with the next commit(). O(n).
  [[nodiscard]] std::uint64_t used() const noexcept;

 private:
  struct State;
  explicit VhostKernelMemory(std::unique_ptr<State> state) noexcept;

  const std::unique_ptr<State> state_;
};

}  // namespace vmspace
