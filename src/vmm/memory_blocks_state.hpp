// SPDX-License-Identifier: Apache-2.0
//
// What the handles of a MemoryBlocks share.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "vmspace/vmm/memory_blocks.hpp"

#include "vmm/block_difference.hpp"
#include "vmm/vm_memory_state.hpp"

namespace vmspace {

namespace detail {

/// How far the guest may choose, for a requested size: QEMU's virtio_mem_resize_usable_region().
inline std::uint64_t usable_for(std::uint64_t requested, const PresentBlocks& blocks) noexcept {
  if (requested == 0) return 0;
  const std::uint64_t room = blocks.region_size() - requested;
  // Twice, since two slots may be more than 2^64 bytes.
  const std::uint64_t one = std::min(room, blocks.slot_size());
  return requested + one + std::min(room - one, blocks.slot_size());
}

}  // namespace detail

/// Whether the region is being changed is known to the VmMemory (`changing`), so that it is not
/// unplugged or moved meanwhile.
struct VMSPACE_HIDDEN MemoryBlocks::State {
  State(const VmMemory& vm_memory, std::uint64_t size_of_block, std::uint64_t requested_size,
        std::uint64_t usable_size)
      : memory(vm_memory),
        block_size(size_of_block),
        requested(requested_size),
        usable(usable_size) {
    published_.reserve(1);
  }
  /// Belongs to this region from now on.
  void adopt(const MemoryRegion& region) noexcept {
    whole = region.without_blocks();
    published_.push_back(region.blocks());
  }

  const VmMemory memory;
  MemoryRegionPtr whole;  ///< set once, before anybody has a handle
  const std::uint64_t block_size;
  std::atomic<std::uint64_t> requested;  ///< written in a turn
  std::atomic<std::uint64_t> usable;     ///< written in a turn

  /// The turn to begin a change, and the region as it is.
  struct Begun {
    VmMemory::State::Turn turn;
    MemoryRegionPtr region;
  };
  [[nodiscard]] Result<Begun> begin(const char* operation);
  /// The region in a map. Errors: `not_found`.
  [[nodiscard]] Result<MemoryRegionPtr> find(const GuestMemory& in, const char* operation) const;
  /// The blocks of a range of guest addresses.
  [[nodiscard]] Result<PresentBlocks::Run> run_of(const MemoryRegion& region, GuestRange range,
                                                  const char* operation) const;

  [[nodiscard]] Result<void> plug(GuestRange range, const char* operation);
  /// Unplugs a range, or all.
  [[nodiscard]] Result<void> unplug(const std::optional<GuestRange>& range,
                                    std::chrono::nanoseconds timeout, const char* operation);

 private:
  class Claim;

  [[nodiscard]] VmMemory::State& vm() const noexcept { return *memory.state_; }

  // In a turn.
  [[nodiscard]] Result<void> check_plug(const MemoryRegion& region, const PresentBlocks::Run& run,
                                        const char* operation) const;
  [[nodiscard]] Result<void> check_not_retired(const MemoryRegion& region,
                                               const detail::BlockDifference& blocks) const;
  [[nodiscard]] Result<void> draft(VmMemory::State::Turn& turn, const MemoryRegionPtr& from,
                                   const MemoryRegionPtr& to);
  void publish(VmMemory::State::Turn& turn, const MemoryRegionPtr& region) noexcept;
  void publish_more(VmMemory::State::Turn& turn, const MemoryRegionPtr& region,
                    std::span<const PresentBlocks::Run> more) noexcept;
  [[nodiscard]] Result<void> add(VmMemory::State::Turn& turn, const MemoryRegionPtr& from,
                                 const MemoryRegionPtr& to, const detail::BlockDifference& blocks);
  [[nodiscard]] Result<void> give_back_to_readers(VmMemory::State::Turn& turn);

  // Between turns, under a claim.
  [[nodiscard]] Result<void> stage(const detail::BlockDifference& blocks) const;
  [[nodiscard]] Result<void> discard(const detail::BlockDifference& blocks) const noexcept;
  [[nodiscard]] Result<void> wait_unused(const detail::BlockDifference& blocks,
                                         std::chrono::nanoseconds timeout,
                                         const char* operation) const;

  // In a turn, or under a claim: sets of blocks that somebody may still use.
  std::vector<std::weak_ptr<const PresentBlocks>> published_;
  // In a turn: what tables have and readers have not, since memory ran out when an unplug was undone.
  PresentBlocksPtr lost_;
};

}  // namespace vmspace
