// SPDX-License-Identifier: Apache-2.0
//
// The memory of a running virtual machine: what each guest physical range is, where it is mapped,
// and who else has to know, changed together or not at all.
//
//   const auto memory = VMSPACE_TRY(VmMemory::create(planned_space));
//   VMSPACE_TRY(memory.add_listener(kvm_slots));               // sees what there is, then each change
//
//   auto reader = memory.reader();                             // a vCPU or device thread
//   VMSPACE_TRY(reader->memory.write(address, descriptor));
//
//   const auto dimm = VMSPACE_TRY(memory.plug({.name = "dimm0", ...}));   // a management thread
//   VMSPACE_TRY(memory.unplug(dimm->shared_description(), 1s));
//   VMSPACE_TRY(memory.resize(ram->shared_description(), 2_GiB));   // its contents stay
//
// The steps of a change:
//
//   1 reserve   the edit is made to a draft and checked; its places are taken     others wait
//   2 stage     new memory is opened, mapped, bound, populated                    others go on
//   3 prepare   each listener is asked whether it could                           -+
//   4 gate      vCPUs are paused, where a range changes what it is                 |
//   5 tables    what is in the way is taken out of the listeners' tables,          | others wait
//               what is new is added                                               |
//   6 publish   one store: readers see all of the change                           |
//   7 tables    what is gone is taken out; the vCPUs go on                        -+
//   8 release   who still uses the old map is waited for, and memory is unmapped   others go on
//
// Up to step 5 each can be refused; then all before it are undone, and the caller has the first
// error. Step 7 can't: where a listener fails there, the range is *retired*. Readers don't see it
// any more, but it stays mapped and its addresses stay taken, until collect() or any later change
// has been able to take it out. Memory that a listener may still use is never unmapped.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/address_space/region_ledger.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/published.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/vmm/memory_listener.hpp"
#include "vmspace/vmm/vm_gate.hpp"

namespace vmspace {

class MemoryBlocks;
class VmDirtyLog;

/// What readers see, as one value.
struct VmMap {
  AddressSpaceBase space;  ///< what each range is
  GuestMemory memory;      ///< the regions of it that have memory, mapped
};

/// How a listener takes part; an aggregate for designated initialisers.
struct ListenerOptions {
  /// Changes are refused when it has gone (MemoryListener::is_gone). Off, they go on without it.
  bool required = true;

  friend bool operator==(const ListenerOptions&, const ListenerOptions&) = default;
};

/// Where a listener's table is not what it should be.
enum class Unsettled : std::uint8_t {
  retired,   ///< it still has memory that is no longer published
  missing,   ///< it lacks memory that is published
  unlogged,  ///< it does not log what is written to memory, though the dirty log is on
};

/// A section that a listener should have been told of, and could not be.
struct UnsettledSection {
  std::string_view listener;  ///< its name; valid while the listener lives
  GuestRange range;           ///< where the guest sees it, or saw it
  Unsettled how;              ///< which of the two it is

  friend bool operator==(const UnsettledSection&, const UnsettledSection&) = default;
};

/// The address space, guest memory and listeners of a virtual machine.
///
/// A handle: copies are the same memory, and moving one copies it. A region of the space has memory
/// if it has a backing; while it is parked it keeps its memory, and nobody sees it.
///
/// Invariant: every placed region with a backing is mapped, and every listener has exactly these
/// sections, but for what unsettled() lists.
///
/// A child that forks and destroys its copies of this, of its dirty logs and of the library's
/// listeners, as std::exit() does when they are static, tells nobody: the devices are its parent's.
///
/// Threads: every call is safe from any thread, but for assigning to a handle that another thread
/// uses. Changes happen one after the other, except that many can be staged at the same time; a change
/// of a region that another one is just changing is `bad_state`. From inside an edit, and from inside a
/// call of a listener or the gate, every change is `would_deadlock`. See Published for readers, and park
/// a Reader before a change on its thread when that one is to be waited for.
class VMSPACE_EXPORT VmMemory final : public RegionLedger {
 public:
  /// One thread's view of space and memory, for threads that look at them often; see reader().
  using Reader = Published<VmMap>::Reader;

  /// Memory without regions. `options` apply to whatever a change maps, unless that says otherwise.
  [[nodiscard]] static Result<VmMemory> create(AddressSpaceLayout layout,
                                               const MapOptions& options = {});
  /// Memory for every region of a planned space that has a backing, mapped as by GuestMemory::map.
  /// `options` apply to these; those of later changes are the same but for the backing, of which each
  /// region here has its part. Errors: those of GuestMemory::map.
  [[nodiscard]] static Result<VmMemory> create(const AddressSpaceBase& space,
                                               const MapOptions& options = {});
  /// Memory that is mapped already, such as a Handover's. `options` are for later changes, as those of
  /// create() without regions. Errors: `invalid_argument`, naming the region, unless `map.memory` has
  /// exactly those regions of `map.space` that have an address and a backing, as they are described.
  /// One whose description equals the space's and is another object is replaced by one with the
  /// space's, of the same memory. O(n log n); maps nothing.
  [[nodiscard]] static Result<VmMemory> adopt(VmMap map, const MapOptions& options = {});

  // Copies are handles of one memory, and moving copies: every handle can be used at any time.
  VmMemory(const VmMemory&) = default;
  VmMemory& operator=(const VmMemory&) = default;
  /// The last handle takes everything out of the listeners' tables, in reverse order. Memory that a
  /// listener does not let go stays mapped for ever.
  ~VmMemory() override = default;

  /// A reader for one thread: current() is the map now, for one load and one compare. Allocates,
  /// takes a lock briefly.
  [[nodiscard]] Reader reader() const;
  /// The map now, which stays as it is as long as the pointer lives. For cold paths: allocates, takes
  /// a lock briefly.
  [[nodiscard]] std::shared_ptr<const VmMap> map() const;
  /// The space of map(). Regions that a change has reserved and not published yet are not in it.
  [[nodiscard]] std::shared_ptr<const AddressSpaceBase> snapshot() const override;
  /// How often a map was published: 1 in the beginning. One load.
  [[nodiscard]] std::uint64_t generation() const noexcept;

  /// Adds a region with a backing, and gives it mapped. Errors: `invalid_argument` without a backing
  /// (insert it by transact()); `overlap` also for a part of a backing that another region has, parked
  /// or not; those of AddressSpaceBase::insert_region, MemoryRegion::map and GuestMemory::from_regions;
  /// those of the listeners.
  [[nodiscard]] Result<MemoryRegionPtr> plug(RegionOptions region) const;
  /// As above, mapped as the options say.
  [[nodiscard]] Result<MemoryRegionPtr> plug(RegionOptions region, const MapOptions& options) const;

  /// Removes a region, then waits for who still uses the old map, so that the memory is unmapped when
  /// it returns, unless a view, or a copy of the map's memory, is left. Errors: those of
  /// AddressSpaceBase::remove_region; those of the listeners in prepare(). After these nothing has
  /// changed. `timed_out`: the region is gone, and its memory goes when the last user of the old map does.
  [[nodiscard]] Result<void> unplug(const AddressSpaceRegionPtr& region,
                                    std::chrono::nanoseconds timeout) const;

  /// Moves a region with its memory, as when a guest writes a BAR; gives it at its new place. A new
  /// place that overlaps the old one needs a gate. Errors: those of AddressSpaceBase::move_regions
  /// and MemoryRegion::at; those of the listeners.
  [[nodiscard]] Result<AddressSpaceRegionPtr> relocate(const AddressSpaceRegionPtr& region,
                                                       GuestAddress to) const;

  /// Shrinks or grows a region at its place; gives it with its memory mapped again, at another host
  /// address. What both sizes have in common keeps its contents without being copied: the memory must
  /// be shared, and come from a backing as large as the region will ever be (MapOptions::backing).
  /// What it loses stays in the backing, and is there when it grows again. While a dirty log runs,
  /// all of the region counts as written. Threads with an old map still write to the same memory, and
  /// the old mapping goes when nobody uses it any more: see wait_released().
  ///
  /// It is disruptive, since KVM must lose the region before it can have the other, and so it needs a
  /// gate. A region that has the size already is left alone, and given as it is. Errors:
  /// `invalid_argument` for a null pointer, and without a backing (replace it by transact());
  /// `bad_state` for a parked region; `overlap` also when it would grow into the part of a backing
  /// that another region has; those of AddressSpaceRegion::make, AddressSpaceBase::remove_region and
  /// insert_region, MemoryRegion::with_size, transact() and the listeners.
  [[nodiscard]] Result<MemoryRegionPtr> resize(const AddressSpaceRegionPtr& region,
                                               std::uint64_t size) const;
  /// `options` say how the memory is mapped again, but for its backing.
  [[nodiscard]] Result<MemoryRegionPtr> resize(const AddressSpaceRegionPtr& region,
                                               std::uint64_t size, const MapOptions& options) const;

  /// Several changes at once, wholly or not at all. Memory of regions that leave goes when nobody
  /// uses the old map any more: see wait_released().
  ///
  /// A region that differs in its base only has moved, and keeps its memory. Errors: `invalid_argument`
  /// for an empty `edit`; those of `edit`; `bad_state` when which region moved is ambiguous, since several
  /// differ in their base alone, when another change of one of the regions has not finished, and when a
  /// range that has memory changes what it is in one step (`disruptive`, see MemoryChange) and there is no
  /// gate; `would_deadlock`; those of mapping and of the listeners. What a listener throws is thrown on,
  /// after everything was undone. `inconsistent` when undoing failed as well: unsettled() then lists
  /// what is left, which collect() and every later change try to put right.
  [[nodiscard]] Result<void> transact(const Edit& edit) const override;
  /// As above; new regions are mapped as the options say.
  [[nodiscard]] Result<void> transact(const Edit& edit, const MapOptions& options) const;

  /// RegionLedger::retire.
  void retire(RegionList&& regions) const noexcept override;
  /// RegionLedger::retired.
  [[nodiscard]] std::vector<AddressSpaceRegionPtr> retired() const override;
  /// Takes the retired regions out now, and tries again what listeners have refused. Errors: the first
  /// that a listener still gives; those of transact().
  [[nodiscard]] Result<void> collect() const override;
  /// What listeners have still to be told, in the order in which it failed. Waits for a change that
  /// runs. `would_deadlock`.
  [[nodiscard]] Result<std::vector<UnsettledSection>> unsettled() const;

  /// Adds a listener, which is given all sections there are, and then every change, after those added
  /// before it. Errors: `invalid_argument` for a null pointer; `bad_state` when it is there already;
  /// `would_deadlock`; its own, and then it is not added.
  [[nodiscard]] Result<void> add_listener(std::shared_ptr<MemoryListener> listener,
                                          ListenerOptions options = {}) const;
  /// Takes all sections from a listener, also those that it has refused to let go before, and tells it
  /// nothing any more. Errors: `not_found`; `would_deadlock`; its own, and then it stays and has what it
  /// had.
  [[nodiscard]] Result<void> remove_listener(const MemoryListener& listener) const;
  /// The listeners in their order; those that have gone are not among them. Waits for a change that
  /// runs. `would_deadlock`.
  [[nodiscard]] Result<std::vector<std::shared_ptr<MemoryListener>>> listeners() const;

  /// Sets the gate for disruptive changes; null for none. `would_deadlock`.
  [[nodiscard]] Result<void> set_gate(std::shared_ptr<VmGate> gate) const;

  /// Starts a log of what is written to guest memory, by this process and through the tables of
  /// listeners: see VmDirtyLog. Copy all memory after it returns, then harvest. Errors: those of
  /// DirtyBitmap::enable; those of the listeners' log_start(), and then no log has started;
  /// `would_deadlock`. The first allocates a bit a page.
  [[nodiscard]] Result<VmDirtyLog> start_dirty_log() const;

  /// Waits until nobody uses a map from before the last change; see Published::wait_released().
  [[nodiscard]] Result<void> wait_released(std::chrono::nanoseconds timeout) const;

  /// Whether both are handles of one memory.
  [[nodiscard]] bool same_as(const VmMemory& other) const noexcept {
    return state_ == other.state_;
  }

  /// Checks the invariant, as far as it is this object's: `corrupt` with the first broken rule as the
  /// reason. O(n log n), and O(p^2) in the parked regions. Waits for a change that runs;
  /// `would_deadlock`.
  [[nodiscard]] Result<void> check_invariants() const;

 private:
  friend VmDirtyLog;
  friend MemoryBlocks;
  struct State;
  explicit VmMemory(std::shared_ptr<State> state) noexcept;

  std::shared_ptr<State> state_;  ///< never null; one for all handles
};

}  // namespace vmspace
