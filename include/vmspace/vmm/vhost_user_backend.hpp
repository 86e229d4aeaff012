// SPDX-License-Identifier: Apache-2.0
//
// Guest memory that a VMM in another process shares over vhost-user: the device's side.
//
// A device process reads its messages (VhostUserMessage::receive) and shows each to its
// VhostUserBackendMemory, which serves those about memory and leaves the others to the device:
//
//   auto memory = VMSPACE_TRY(VhostUserBackendMemory::create());
//   for (;;) {
//     auto message = VMSPACE_TRY(VhostUserMessage::receive(socket, 1h));
//     const bool served = VMSPACE_TRY(memory.serve(socket, message));
//     if (served) continue;
//     switch (message.request()) ...  // features, rings
//   }
//
// The threads of the device read and write the memory as it is published:
//
//   auto reader = memory.map().reader();
//   const VhostUserMap& now = reader.current();  // for each request of the guest
//   VMSPACE_TRY(now.memory.write_slice(address, data));
//   VMSPACE_TRY(now.log.mark({address, data.size()}));
//   reader.park();                               // before it sleeps
//
// Nothing that a message says is trusted. What can't be checked is whether the VMM truncates the
// files of its memory later: install a FaultGuard before, or see Unsealed.
//
// Source: QEMU's docs/interop/vhost-user.rst.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/published.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/memory/region_descriptor.hpp"
#include "vmspace/vmm/vhost_user_log.hpp"
#include "vmspace/vmm/vhost_user_message.hpp"

namespace vmspace {

/// What the front-end has shared, at one moment.
struct VhostUserMap {
  GuestMemory memory = {};  ///< the memory of all regions that are shared now
  /// Where to note what the device writes to `memory`, after the write; off while nobody asks.
  VhostUserLog log = {};
};

/// How memory is taken from a front-end; an aggregate for designated initialisers.
struct VhostUserBackendOptions {
  /// What to do with files that their owner can truncate, or punch huge pages out of. A log must be
  /// sealed unless that is accepted: it can't be guarded.
  Unsealed unsealed = Unsealed::guard;
  /// How many regions the front-end is told that it may add; at most GuestMemory::max_regions.
  std::size_t max_regions = GuestMemory::max_regions;
  /// How long a removal waits for threads that use the memory.
  std::chrono::nanoseconds release_timeout = std::chrono::seconds(1);
  /// How long a front-end may take to read a reply.
  std::chrono::nanoseconds reply_timeout = std::chrono::seconds(1);
};

/// The memory that one front-end shares with this process.
///
/// A removal, a new table and a new log are acknowledged when nobody uses the old ones any more:
/// Readers have moved on or are parked, and views, iovecs and copies of GuestMemory are gone. Until
/// then serve() waits, so a device keeps none of them longer than a request of the guest takes.
///
/// Memory is mapped as it is described and never populated: a table of many GiB takes a few system
/// calls. A region that a new table describes as the old one did, of the same file, stays mapped.
///
/// Invariant: the published memory is exactly the regions that were added and not removed; their
/// guest addresses do not overlap, nor do their user addresses; and a log that is published has a
/// bit for every page of them.
///
/// Threads: map() may be called by any thread, all else by one at a time.
class VMSPACE_EXPORT VhostUserBackendMemory {
 public:
  /// The protocol features that it provides; a device adds its own and tells the front-end.
  static constexpr std::uint64_t protocol_features = VhostUserFeature::log_shmfd |
                                                     VhostUserFeature::reply_ack |
                                                     VhostUserFeature::configure_mem_slots;

  /// No memory yet. Errors: `invalid_argument` for an option that is not a named value, or above its
  /// limit. Allocates.
  [[nodiscard]] static Result<VhostUserBackendMemory> create(
      const VhostUserBackendOptions& options = {});

  /// Moves leave an object that may only be assigned to or destroyed.
  VhostUserBackendMemory(VhostUserBackendMemory&&) noexcept;
  /// As moving; what was shared with this one is let go.
  VhostUserBackendMemory& operator=(VhostUserBackendMemory&&) noexcept;
  ~VhostUserBackendMemory();

  /// Serves a message about memory and sends its reply, where one is due; false when it is about
  /// something else, and the device's to serve. These are served: SET_MEM_TABLE, SET_LOG_BASE,
  /// GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG. Of SET_FEATURES it only takes note: without
  /// VHOST_F_LOG_ALL there is no log from then on.
  ///
  /// When a message is refused, everything is as it was, also where a removal was published and
  /// `timed_out`. A front-end that asked for a reply has been told, and the connection can go on;
  /// close it where the message does not need a reply (VhostUserMessage::needs_reply) or is
  /// SET_LOG_BASE, whose reply has no way to refuse.
  ///
  /// Errors: `corrupt` for a message that is not what its number implies, in size, padding or
  /// descriptors, and for a reply; `zero_size`; `misaligned` unless the addresses, size and offset of
  /// a region are multiples of its page size; `overflow` for addresses that pass 2^64; `overlap`;
  /// `limit_exceeded` for too many regions; `not_found` for the removal of what is not exactly a
  /// region; `out_of_bounds` for memory beyond the end of its file, or of the log; `access_denied`
  /// for a file that may not be written, or could lose pages; `timed_out` while somebody uses
  /// what should go; those of map_regions() and VhostUserLog::map(); and those of
  /// VhostUserMessage::reply(), after which the connection is to be closed.
  ///
  /// O(n^2) in the regions, of which there are VhostUserBackendOptions::max_regions at most; a few system
  /// calls for each new one, and the wait.
  [[nodiscard]] Result<bool> serve(int socket_fd, const VhostUserMessage& message);

  /// What is shared now, for the threads of the device.
  [[nodiscard]] const Published<VhostUserMap>& map() const noexcept;

  /// The guest address of `size` bytes that the front-end calls `user_address`, as it does for rings
  /// (SET_VRING_ADDR): the bytes are in one region and contiguous. Ask again when memory has changed.
  /// Errors: `zero_size`; `overflow`; `not_found`; `out_of_bounds` past the end of the region. O(n).
  [[nodiscard]] Result<GuestAddress> guest_address(std::uint64_t user_address,
                                                   std::uint64_t size) const;

  /// Lets go of all memory and of the log, as when the front-end has gone; the next one starts anew.
  /// Errors: `timed_out` while somebody uses it, and nothing has changed. Waits as a removal does.
  [[nodiscard]] Result<void> clear();

  /// Checks the invariant: `corrupt`, with the first broken rule as the reason. For tests; O(n^2).
  [[nodiscard]] Result<void> check_invariants() const;

 private:
  struct State;
  explicit VhostUserBackendMemory(std::unique_ptr<State> state) noexcept;

  std::unique_ptr<State> state_;  // null only after a move
};

}  // namespace vmspace
