// SPDX-License-Identifier: Apache-2.0
//
// What the handles of a VmMemory share.

#pragma once

#include <memory>
#include <span>
#include <vector>

#include "vmspace/address_space/detail/retired_regions.hpp"
#include "vmspace/vmm/vm_dirty_log.hpp"
#include "vmspace/vmm/vm_memory.hpp"

#include "os/forked_child.hpp"
#include "vmm/listener_table.hpp"
#include "vmm/page_set.hpp"
#include "vmm/range_list.hpp"
#include "vmm/vm_change.hpp"

namespace vmspace {

/// What was written since this log was harvested, of memory that there was.
struct VMSPACE_HIDDEN VmDirtyLog::Pending {
  detail::PageSet pages;
};

/// Where memory was mapped before it was resized: threads with an old map still write there, and mark
/// it in a bitmap that no published region has.
struct VMSPACE_HIDDEN OutgrownMemory {
  std::weak_ptr<DirtyBitmap> dirty;
  std::weak_ptr<DirtyBitmap> now;          ///< that of the region which has the memory
  std::shared_ptr<DirtyBitmap> kept = {};  ///< while there are logs, so that no mark is lost
  bool is_unused = false;                  ///< nobody can mark anything any more
};

/// Everything but `map`, `options` and `retired` belongs to who has the turn of `map` (its Writer).
///
/// Invariant: `taken` has what the published space has, and the holds of changes that have not
/// finished and of retired ranges. `changing` are the regions of `taken` that such changes remove,
/// and all holds.
struct VMSPACE_HIDDEN VmMemory::State {
  using Turn = Published<VmMap>::Writer;

  State(VmMap first, const MapOptions& map_options)
      : map(std::move(first)), options(map_options), taken(map.snapshot()->space) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State();

  const detail::Maker maker;

  /// Changes all, or nothing; says what was changed.
  /// `resized`, if any, is where the edit puts the region that has the memory of the one it replaces.
  [[nodiscard]] Result<detail::VmChange> change(const Edit& edit, const MapOptions& how,
                                                const char* operation,
                                                const AddressSpaceRegionPtr* resized = nullptr);
  /// Takes retired regions out, and has listeners told what they have refused before.
  [[nodiscard]] Result<void> settle(Turn& turn, const char* operation);
  [[nodiscard]] Result<void> take_out(Turn& turn, std::span<const AddressSpaceRegionPtr> regions,
                                      const char* operation);
  /// Lets others have the places of what every listener has let go of by now.
  void release_retired_holds() noexcept;
  /// Begins to track all writes, or nothing and an error.
  [[nodiscard]] Result<void> start_log(const GuestMemory& memory, const char* operation);
  /// Has every region track its writes. What has joined counts as written, also a region that was
  /// tracked before it was parked.
  [[nodiscard]] static Result<void> track(const GuestMemory& memory,
                                          std::span<const MemoryRegionPtr> joined);
  /// Has outgrown mappings track what is still written through them.
  [[nodiscard]] Result<void> track_outgrown();
  /// Undoes that.
  void let_go_of_outgrown() noexcept;
  /// Takes what was written through outgrown mappings, and finds those that nobody uses any more.
  [[nodiscard]] detail::RangeList take_outgrown(const GuestMemory& memory, DirtyHarvest& harvest);
  /// Hands what was written to every log.
  [[nodiscard]] Result<void> fan_out(const GuestMemory& memory, const char* operation);
  /// Forgets logs that nobody has any more; without any, tracking ends.
  [[nodiscard]] Result<void> drop_stopped_logs(const GuestMemory& memory,
                                               const char* operation) noexcept;
  /// The first broken rule, or null.
  [[nodiscard]] const char* broken_rule(const VmMap& now) const;

  Published<VmMap> map;
  const MapOptions options;
  detail::RetiredRegions retired;

  AddressSpaceBase taken;
  std::vector<AddressSpaceRegionPtr> changing;
  std::vector<AddressSpaceRegionPtr> retired_holds;  ///< in the place of retired ranges
  std::vector<MemoryRegionPtr> parked;               ///< memory of parked regions
  detail::ListenerTable listeners;
  std::shared_ptr<VmGate> gate;
  std::vector<OutgrownMemory> outgrown;
  std::vector<std::weak_ptr<VmDirtyLog::Pending>> logs;  ///< tracking is on while there are any

 private:
  /// The places that a change has taken, for as long as it runs.
  class Reservation;

  /// Memory that a listener did not let go when the rest of this was destroyed.
  struct Kept {
    GuestMemory memory;
    detail::UnsettledTasks tasks;
    Kept* before = nullptr;  ///< what another one has kept
  };

  [[nodiscard]] Result<void> check_not_changing(const detail::RegionChange& change,
                                                const char* operation) const;
  /// Steps 3 to 7.
  [[nodiscard]] Result<void> commit(Turn& turn, detail::VmChange& change, Reservation& reservation,
                                    const char* operation);
  /// Regions of no memory that take the parts of `range` which are free in `space`, and are in it.
  [[nodiscard]] static Result<void> hold(AddressSpaceBase& space, const AddressSpaceRegion& region,
                                         std::vector<AddressSpaceRegionPtr>& holds);
  void outgrow(const MemoryRegion& from, const MemoryRegionPtr& to) noexcept;

  std::unique_ptr<Kept> kept_ = std::make_unique<Kept>();
};

}  // namespace vmspace
