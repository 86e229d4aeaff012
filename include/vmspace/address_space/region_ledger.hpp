// SPDX-License-Identifier: Apache-2.0
//
// Where others enter regions: the one record of what each guest physical range is.
//
// Whoever hands out guest addresses (a resource manager, a hotplug controller) needs one ledger to
// enter them in, whatever stands behind it: an AddressSpace alone, or something above it that maps
// memory and programs a hypervisor with each change.

#pragma once

#include <functional>
#include <list>
#include <memory>
#include <vector>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// Regions in a container that moves its elements to another one without allocating.
using RegionList = std::list<AddressSpaceRegionPtr>;

/// A guest physical address space that others may change, wholly or not at all.
///
/// A change allocates, may wait for another one, and may fail. A destructor can do none of that, so
/// it *retires* its regions: they stay in the space, with their addresses taken, until the next
/// change of the ledger, by anybody, which takes them out first.
///
/// Threads: every call is safe from any thread.
class VMSPACE_EXPORT RegionLedger {
 public:
  /// Changes a draft of the space. Gives an error to have nothing changed.
  using Edit = std::function<Result<void>(AddressSpaceBase&)>;

  virtual ~RegionLedger() = default;

  /// Changes the space by what `edit` does to a draft of it, at once or not at all; retired regions
  /// are not in the draft any more. `edit` is called once at most. Errors: those of `edit`;
  /// `would_deadlock` from inside an edit of this ledger; those of what stands behind it.
  [[nodiscard]] virtual Result<void> transact(const Edit& edit) const = 0;

  /// The space now, retired regions included, which stays as it is as long as the pointer lives.
  [[nodiscard]] virtual std::shared_ptr<const AddressSpaceBase> snapshot() const = 0;

  /// Has the next change take these regions out, placed or parked; one that the space does not have
  /// any more is skipped. Moves the list's elements: never allocates, fails, or waits for a change.
  virtual void retire(RegionList&& regions) const noexcept = 0;

  /// The regions that wait to be taken out. While a change runs, those that it takes out are not
  /// among them. O(n) in them; allocates.
  [[nodiscard]] virtual std::vector<AddressSpaceRegionPtr> retired() const = 0;

  /// Takes the retired regions out now. Changes nothing when there are none. Errors: those of
  /// transact().
  [[nodiscard]] virtual Result<void> collect() const = 0;

 protected:
  RegionLedger() = default;
  RegionLedger(const RegionLedger&) = default;
  RegionLedger& operator=(const RegionLedger&) = default;
};

}  // namespace vmspace
