// SPDX-License-Identifier: Apache-2.0
//
// Guest memory for a device in another process, over vhost-user: the VMM's side.
//
// The VMM connects, negotiates features, and hands the connection to VhostUserMemory, which from
// then on tells the device which memory the guest has. The VMM goes on with everything else (rings,
// configuration) on the same connection; the two take turns, as every reply follows its request.
//
//   auto memory = VMSPACE_TRY(VhostUserMemory::create(socket, {.protocol_features = negotiated}));
//   ... attach it as a MemoryListener ...
//   const auto ring = VMSPACE_TRY(memory->user_address(descriptors));  // for SET_VRING_ADDR
//
// For a migration the device notes what it writes in a log that it shares with this side, and the
// dirty log of the VM includes that:
//
//   VMSPACE_TRY(memory->share_log({.fd = memfd, .size = memory->log_size()}));  // LOG_SHMFD
//   ... the VMM sends SET_FEATURES with VHOST_F_LOG_ALL, SET_VRING_ADDR with VHOST_VRING_F_LOG ...
//   auto log = VMSPACE_TRY(vm_memory.start_dirty_log());
//
// A device gets the memory itself: descriptors that stay open in its process. So the memory must be
// shared and have a descriptor, and what the device has mapped it keeps, whatever this side does.
//
// Source: QEMU's docs/interop/vhost-user.rst.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/vmm/memory_listener.hpp"
#include "vmspace/vmm/vhost_user_log.hpp"

namespace vmspace {

/// Under which addresses, beside those of the guest, the device is told of memory. Rings are named
/// to it by these "user addresses".
enum class VhostUserAddresses : std::uint8_t {
  host,   ///< where this process has mapped it, as other front-ends do; memory can't be relocated
  guest,  ///< the guest's own addresses: the device learns nothing of this process
};

/// How a device is talked to; an aggregate for designated initialisers.
struct VhostUserMemoryOptions {
  std::string name = "vhost-user";  ///< what it is called in errors, such as "net0"
  /// What both sides have agreed on (SET_PROTOCOL_FEATURES); of these bits, those of
  /// VhostUserFeature matter here.
  std::uint64_t protocol_features = 0;
  /// How long one request may take, its reply included.
  std::chrono::nanoseconds timeout = std::chrono::seconds(5);
  /// Under which addresses the device is told of memory.
  VhostUserAddresses addresses = VhostUserAddresses::host;
};

/// The listener that keeps a vhost-user device's table of memory.
///
/// The device is told of RAM and DAX memory that the guest may write; firmware, read-only memory and
/// devices' memory are none of its business and are passed over. With `configure_mem_slots`
/// negotiated, regions come and go one by one, as many as the device has slots; otherwise commit()
/// sends the whole table, of up to 8. Either way a call returns when the device has done it: where
/// `reply_ack` is negotiated it says so, and otherwise the reply to a GET_FEATURES behind the
/// request shows that it has come so far.
///
/// When a device refuses a region, its table is as it was, and so is this object. After anything
/// else that fails on the connection (no answer in time, an answer that makes no sense, a whole
/// table refused) the device's table is unknown. The connection is then shut down, for the VMM's
/// own descriptor as well; the error says so, is_gone() is true, and every further call that would
/// talk to the device is `bad_state`.
///
/// Errors name the device by its name. Threads: one at a time, and while a call runs nobody else
/// may use the connection.
class VMSPACE_EXPORT VhostUserMemory final : public MemoryListener {
 public:
  /// Takes a Unix stream socket that is connected to a back-end and on which features have been
  /// negotiated. The descriptor is duplicated; the caller keeps its own. Asks the device for its
  /// number of slots where `configure_mem_slots` is negotiated.
  ///
  /// Errors: `invalid_argument` for a descriptor that is not a socket, and for `addresses` that are
  /// not a named value; `os`; and as explained above: `timed_out`, `corrupt`. A few system calls.
  [[nodiscard]] static Result<std::unique_ptr<VhostUserMemory>> create(
      int socket_fd, VhostUserMemoryOptions options = {});

  // Listeners are known by their addresses: they stay where they are.
  VhostUserMemory(const VhostUserMemory&) = delete;
  VhostUserMemory& operator=(const VhostUserMemory&) = delete;
  /// Closes its descriptor and tells the device nothing.
  ~VhostUserMemory() override;

  [[nodiscard]] std::string_view name() const noexcept override;
  /// Errors: `unsupported` for memory that can't be shared, anonymous or private; `limit_exceeded`
  /// for more regions than the device can have at any moment of the change; `out_of_bounds` for
  /// memory beyond the end of the log that the device has; `bad_state` when it is gone,
  /// and for memory that is restored lazily, or saved while it runs. O(s log s) in the sections.
  [[nodiscard]] Result<void> prepare(const MemoryChange& change) override;
  /// Errors: those of prepare(); `overlap`, also of host addresses, under which the device can't have
  /// memory at two guest addresses while it moves (VhostUserAddresses::guest); `bad_state` also when the device refuses; and as
  /// explained above. A round trip with `configure_mem_slots`.
  [[nodiscard]] Result<void> add(const MemorySection& section) override;
  /// Errors: `not_found`; `bad_state` when the device refuses, or is gone; and as explained above. A
  /// round trip with `configure_mem_slots`. Does not allocate.
  [[nodiscard]] Result<void> remove(const MemorySection& section) override;
  /// Sends the table, where regions do not go one by one and something has changed. Errors: as
  /// explained above. A round trip. Does not allocate.
  [[nodiscard]] Result<void> commit() override;
  [[nodiscard]] bool is_gone() const noexcept override;

  /// Checks that the device has a log with a bit for every page of the section, from which log_sync()
  /// takes what it writes; that it writes there is the VMM's to arrange (see share_log()). Errors:
  /// `bad_state` without a log, or when it is gone; `out_of_bounds` for a log that ends before the
  /// section does.
  [[nodiscard]] Result<void> log_start(const MemorySection& section) override;
  /// Takes the pages that the device has written out of the log, and marks them in the region; never
  /// fails. Also of a device that is gone: what it wrote before was taken when that was found out, and
  /// of what it may still write, nothing is known. O(pages / 64); does not allocate.
  [[nodiscard]] Result<void> log_sync(const MemorySection& section) override;
  /// log_sync(), once more: the device goes on marking until the VMM sends SET_FEATURES.
  [[nodiscard]] Result<void> log_stop(const MemorySection& section) override;

  /// What the device calls this memory: the address to give it in SET_VRING_ADDR. Errors:
  /// `not_found` unless one region of its table holds all of the range, which is not empty; O(n).
  [[nodiscard]] Result<std::uint64_t> user_address(GuestRange range) const;

  /// Gives the device a log of the pages that it writes (SET_LOG_BASE), and maps it here. The device
  /// writes there from when the VMM sends SET_FEATURES with VHOST_F_LOG_ALL (bit 26, which the device
  /// must have offered), and SET_VRING_ADDR with VHOST_VRING_F_LOG for each ring that runs; and to the
  /// log that it had before no more once this returns, so that what was in that is taken. The log is
  /// changed by two processes at once: log_sync() takes bits out of it, atomically, wherever a region
  /// tracks what is written, and nobody else need. From now on prepare() refuses memory beyond its
  /// end: share a larger log first, also while a dirty log runs. Not while a change of the VmMemory
  /// runs. A memfd that allows it (MFD_ALLOW_SEALING) is sealed against shrinking, since a device that
  /// removes pages of the log raises SIGBUS here: of any other file it is trusted not to.
  ///
  /// Errors: `unsupported` unless `log_shmfd` is negotiated; `zero_size`; `misaligned`;
  /// `out_of_bounds` when the file ends before the log does, or the log before the device's memory;
  /// `invalid_argument` unless it is a regular file, such as a memfd; `os`; `bad_state` when it is
  /// gone; and as explained above. A round trip.
  [[nodiscard]] Result<void> share_log(const VhostUserLogArea& log);
  /// Forgets the log, after the VMM has sent SET_FEATURES without VHOST_F_LOG_ALL; what was in it is
  /// taken.
  void forget_log() noexcept;
  /// How large a log must be for the memory that the device has, in bytes: a multiple of 8. O(n).
  [[nodiscard]] std::uint64_t log_size() const noexcept;

  /// How many regions the device can have.
  [[nodiscard]] std::uint64_t limit() const noexcept;
  /// How many it has, or gets with the next commit(). O(n).
  [[nodiscard]] std::uint64_t used() const noexcept;

 private:
  struct State;
  explicit VhostUserMemory(std::unique_ptr<State> state) noexcept;

  const std::unique_ptr<State> state_;
};

}  // namespace vmspace
