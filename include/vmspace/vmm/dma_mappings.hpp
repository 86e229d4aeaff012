// SPDX-License-Identifier: Apache-2.0
//
// Guest memory that is mapped for devices' DMA, so that a device which is passed through to the
// guest, or driven from this process, finds all of it at the guest's addresses.
//
//   auto dma = VMSPACE_TRY(DmaMappings::create(VMSPACE_TRY(VfioContainer::open(container_fd))));
//
// DMA changes two things for everyone else. Memory that is mapped is pinned: the kernel keeps its
// pages, and devices keep writing to them, whatever this process does to its own mapping. Discarding
// it (a balloon, a hole in its file) would free nothing and give the guest new pages that devices
// don't see, so MemoryMapping::discard() refuses it: see memory_pin.hpp. And what devices write is in no dirty
// log: neither in KVM's nor in a DirtyBitmap. Whoever copies the memory of a running guest stops
// such devices first, or copies all that is mapped once more after they have stopped.

#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/error.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/vmm/dma_target.hpp"
#include "vmspace/vmm/memory_listener.hpp"

namespace vmspace {

/// A section of device memory that devices can't access by DMA, and why.
struct UnmappedWindow {
  MemorySection section;  ///< what is not mapped
  Error why;              ///< what the target said

  friend bool operator==(const UnmappedWindow&, const UnmappedWindow&) = default;
};

/// Maps the sections that it is told of for DMA, and unmaps them.
///
/// RAM and firmware must be mapped, since a guest may use any of it for DMA: where that fails, the
/// change is refused. The memory of other devices (RegionType::device_memory and dax_memory) is a
/// window: a device accesses another's memory only in peer-to-peer transfers, and often can't.
/// Where a window can't be mapped, the change goes on, and unmapped_windows() tells.
///
/// Memory that the guest may not write is mapped so that devices can't write it either.
///
/// Invariant: the target has a mapping for exactly those sections that add() was given and remove()
/// was not, but for unmapped windows. These sections stay mapped in this process, and pinned.
///
/// A moved-from object holds nothing: its calls are `bad_state`, but for check_invariants(), and it
/// can be assigned to.
///
/// Threads: is_mapped() and unmapped_windows() may be called from any thread at any time, but while
/// the object is moved or destroyed; all else one at a time.
class VMSPACE_EXPORT DmaMappings final : public MemoryListener {
 public:
  /// Takes over a target, which has no mappings of guest memory yet. Errors: `invalid_argument` for
  /// a null pointer; those of DmaTarget::limits().
  [[nodiscard]] static Result<DmaMappings> create(std::unique_ptr<DmaTarget> target);

  /// Moves leave an object that may only be assigned to or destroyed.
  DmaMappings(DmaMappings&&) noexcept;
  /// What was mapped before is unmapped, as on destruction.
  DmaMappings& operator=(DmaMappings&&) noexcept;
  /// Unmaps every section. Where the target refuses, devices keep their access: the section stays mapped
  /// in this process, and pinned, for good.
  ~DmaMappings() override;

  /// The target's name; "dma" after a move.
  [[nodiscard]] std::string_view name() const noexcept override;
  /// Every block by itself, since what is mapped is pinned, and is unmapped as it was mapped.
  [[nodiscard]] SectionUnit unit() const noexcept override { return SectionUnit::block; }

  /// Asks the target what it can map now, and checks all that is added but windows. Errors, each
  /// naming the section: `access_denied` for memory that the guest may not read; `misaligned`
  /// unless guest address, host address and size are multiples of the target's page size;
  /// `out_of_bounds` when it does not lie within one of the target's IOVA ranges; `limit_exceeded`
  /// when the target has not enough mappings left (those of removed sections count as left where an
  /// added one lies over them, because those are removed first); those of DmaTarget::limits().
  /// O(s (log s + r)) in the sections and the IOVA ranges.
  [[nodiscard]] Result<void> prepare(const MemoryChange& change) override;

  /// Maps a section. Errors, each naming the section, and none for a window: those of prepare() but
  /// `limit_exceeded`, and of DmaTarget::map(). Also `overlap` with a section that is mapped, for a
  /// window as well. With VFIO the kernel pins every page, which populates memory that was not yet.
  /// Discarding the section is `bad_state` from now on. O(log n) without what the target does.
  [[nodiscard]] Result<void> add(const MemorySection& section) override;

  /// Unmaps what add() has mapped, and forgets a window. Errors, each naming the section:
  /// `not_found` unless add() was given it; those of DmaTarget::unmap(): then it stays mapped.
  [[nodiscard]] Result<void> remove(const MemorySection& section) override;

  /// Whether any byte of the range, which ends at 2^64 where it passes that, is mapped for DMA, or
  /// may be; false for no memory at all. O(log n) and the windows in the range.
  [[nodiscard]] bool is_mapped(const GuestRange& range) const noexcept;

  /// The windows that could not be mapped, in address order. They are not tried again unless they
  /// are removed and added. O(sections).
  [[nodiscard]] std::vector<UnmappedWindow> unmapped_windows() const;

  /// Checks the invariant, without asking the target: `corrupt`, with the first broken rule as the
  /// reason, which means a defect of this library or a stray write. O(sections).
  [[nodiscard]] Result<void> check_invariants() const;

 private:
  struct State;
  explicit DmaMappings(std::unique_ptr<State> state) noexcept;

  [[nodiscard]] Result<void> check_not_moved_from(const char* operation) const;
  void unmap_all() noexcept;

  std::unique_ptr<State> state_;  // null only after a move
};

}  // namespace vmspace
