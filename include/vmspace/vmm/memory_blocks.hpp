// SPDX-License-Identifier: Apache-2.0
//
// Memory that a guest is given and gives back in small blocks while it runs: the device side of
// virtio-mem.
//
//   const auto blocks = VMSPACE_TRY(MemoryBlocks::create(
//       memory, {.name = "mem0", .base = GuestAddress(8_GiB), .size = 64_GiB, .backing = ...},
//       {.requested_size = 4_GiB}));
//   VMSPACE_TRY(blocks.plug({GuestAddress(8_GiB), 4_MiB}));             // VIRTIO_MEM_REQ_PLUG
//   VMSPACE_TRY(blocks.unplug({GuestAddress(8_GiB), 2_MiB}, 100ms));    // VIRTIO_MEM_REQ_UNPLUG
//
// The region is mapped once, and only its presence changes. Of an absent block
//
//   - guest memory has nothing: every access is `not_found`, as in a gap;
//   - tables of listeners have nothing, or the slot that it lies in while another block of that is
//     plugged (MemoryListener::unit). KVM and vhost have slots, so that they need few; a guest that
//     uses what it was not given reaches memory of its own VM, which is neither saved nor reported
//     dirty;
//   - no dirty log, and no snapshot, has anything;
//   - the host has no page, but for what the backing held before, or such a guest has written: that is
//     gone when the block is plugged.
//
// Unplugging: readers lose the blocks first, and are waited for; then the tables lose them; then
// the pages are given back. Where a step fails, those before it are undone. Blocks that readers get, or
// get back, count as written in dirty logs.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/present_blocks.hpp"
#include "vmspace/vmm/vm_memory.hpp"

namespace vmspace {

/// What a region of blocks begins with; an aggregate for designated initialisers. Sizes in bytes.
struct BlockOptions {
  /// What is plugged and unplugged at the least: a power of two, and a multiple of the page size of
  /// the memory. At least the size of a huge page is advised, since smaller blocks split them.
  std::uint64_t block_size = std::uint64_t{2} << 20;
  /// What tables with few entries have as one section, a multiple of the block size. 0: 128 MiB, or
  /// the block size where that is larger.
  std::uint64_t slot_size = 0;
  /// How much the guest is asked to plug.
  std::uint64_t requested_size = 0;
  /// Below which offset the guest may plug; 0 for as much as requested_size() gives.
  std::uint64_t usable_size = 0;
  /// What is plugged from the beginning, as when a saved VM is restored, by guest addresses.
  std::vector<GuestRange> plugged = {};
};

/// Whether a range of blocks is plugged, as VIRTIO_MEM_REQ_STATE asks.
enum class BlockState : std::uint8_t { plugged, unplugged, mixed };

/// A region of VmMemory in blocks that come and go.
///
/// A handle: copies are the same blocks, and moving one copies it. Unplug the region itself by
/// VmMemory::unplug(); every call here is `not_found` afterwards, and while it is parked. Until the last
/// handle goes, the memory of the region stays mapped.
///
/// Invariant: what is plugged is what the published map has of the region, and what the tables of all
/// listeners have of it, in their units.
///
/// Threads: every call is safe from any thread, but for assigning to a handle that another thread uses.
/// Changes of one region come one after the other: a change while another one has not finished is
/// `bad_state`. A thread that changes blocks must not hold on to the map: park its Reader, end its views.
///
/// A device answers VIRTIO_MEM_RESP_ACK for success, NACK for `limit_exceeded`, BUSY for `timed_out`
/// and a change that has not finished, and ERROR for all others (virtio 1.2, section 5.15.6).
class VMSPACE_EXPORT MemoryBlocks {
 public:
  // No move operations: moving copies the handle, and both stay usable.
  MemoryBlocks(const MemoryBlocks&) noexcept = default;
  MemoryBlocks& operator=(const MemoryBlocks&) noexcept = default;
  ~MemoryBlocks() = default;

  /// Adds a region in which only `options.plugged` is present. It is marked hotplug, so that e820()
  /// leaves it out: the guest learns from the device what is there. Pages are populated as blocks are
  /// plugged, where the region asks for it. Errors: `misaligned` unless the base, and the requested
  /// and the usable size, are multiples of the block size; `access_denied` for a region that the guest
  /// may not read and write; `unsupported` for memory that can't be given back, a private file or one
  /// that is not declared discardable; `out_of_bounds` for a requested, usable or plugged size beyond
  /// the region; those of PresentBlocks::none() and with(), and of VmMemory::plug(). Nothing is left of
  /// the region then.
  [[nodiscard]] static Result<MemoryBlocks> create(const VmMemory& memory, RegionOptions region,
                                                   const BlockOptions& options = {});
  /// Maps it by these options, whose `blocks` are not used.
  [[nodiscard]] static Result<MemoryBlocks> create(const VmMemory& memory, RegionOptions region,
                                                   const BlockOptions& options,
                                                   const MapOptions& how);

  /// Plugs all blocks of a range, none of which is plugged: all of them, or an error and none. Their
  /// contents are zeros. Errors: `limit_exceeded` when more than requested_size() would be plugged;
  /// `out_of_bounds` above usable_size(), or outside of the region; `misaligned` for what is not whole
  /// blocks; `zero_size`; `bad_state` when a block is plugged already, when a listener has not let go
  /// of it yet, and while another change has not finished; `not_found`; `would_deadlock`; those of
  /// populating and of the listeners. O(blocks), a system call, one for each new slot, and those of the
  /// listeners.
  [[nodiscard]] Result<void> plug(GuestRange range) const;
  /// Unplugs all blocks of a range, all of which are plugged: all of them, or an error and none. Waits
  /// for who still uses a map, view or copy in which they are present; a LazyRestore, LiveSnapshot or
  /// DirtyScan of the memory goes on without them. Errors: `timed_out`, and they stay plugged; those of
  /// plug() but for `limit_exceeded`; `inconsistent` when undoing failed as well. When giving the pages
  /// back fails, they are plugged again, and what they held may be lost.
  [[nodiscard]] Result<void> unplug(GuestRange range, std::chrono::nanoseconds timeout) const;
  /// Unplugs all that is plugged, and shrinks the usable size to what requested_size() gives. Errors:
  /// those of unplug().
  [[nodiscard]] Result<void> unplug_all(std::chrono::nanoseconds timeout) const;
  /// Asks the guest for another size. Grows the usable size, so that the guest has room to choose
  /// from: to that size and two slots, as QEMU does. Errors: `misaligned` unless it is a multiple of
  /// the block size; `out_of_bounds` above the size of the region; `not_found`; `would_deadlock`. Waits
  /// for a change that runs. O(regions).
  [[nodiscard]] Result<void> resize(std::uint64_t requested_size) const;

  /// Whether a range is plugged. Errors: `misaligned`; `zero_size`; `out_of_bounds`; `not_found`.
  /// O(regions + blocks of the range / 64); this and the calls below take a lock briefly, and allocate.
  [[nodiscard]] Result<BlockState> state(GuestRange range) const;
  /// What is plugged, in address order, adjacent blocks joined: what BlockOptions::plugged takes.
  [[nodiscard]] std::vector<GuestRange> plugged() const;
  /// The bytes of all plugged blocks; 0 when the region is gone or parked.
  [[nodiscard]] std::uint64_t plugged_size() const;
  /// What the guest is asked to plug, in bytes. One load.
  [[nodiscard]] std::uint64_t requested_size() const noexcept;
  /// How far the guest may plug, from the start of the region, in bytes. One load.
  [[nodiscard]] std::uint64_t usable_size() const noexcept;
  /// What the guest plugs and unplugs, in bytes. One load.
  [[nodiscard]] std::uint64_t block_size() const noexcept;
  /// The region as it is published; null when it is gone or parked.
  [[nodiscard]] MemoryRegionPtr region() const;

 private:
  struct State;
  explicit MemoryBlocks(std::shared_ptr<State> state) noexcept;

  std::shared_ptr<State> state_;  ///< never null; one for all handles
};

}  // namespace vmspace
