// SPDX-License-Identifier: Apache-2.0
//
// The interface through which other components insert regions into an address space.
//
// Any component that assigns guest addresses (a resource manager, a hotplug controller) records them in
// one ledger, whatever implements it: a plain AddressSpace, or a layer above it that also maps memory
// and programs the hypervisor.

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

/// A list of regions; a list because splicing its nodes never allocates.
using RegionList = std::list<AddressSpaceRegionPtr>;

/// A guest physical address space that changes transactionally.
///
/// A change allocates, may wait for another one, and may fail. A destructor must do none of these,
/// so it *retires* its regions: they stay in the space, and their addresses stay taken, until the
/// next change of the ledger by any caller, which removes them first.
///
/// Threads: every call is safe from any thread.
class VMSPACE_EXPORT RegionLedger {
 public:
  /// Edits a draft of the space; an error discards the draft.
  using Edit = std::function<Result<void>(AddressSpaceBase&)>;

  virtual ~RegionLedger() = default;

  /// Runs `edit` on a draft of the space and publishes it atomically, or changes nothing. The draft
  /// no longer contains retired regions. `edit` is called at most once. Errors: `invalid_argument` for
  /// an empty `edit`; those of `edit`; `would_deadlock` from inside an edit of this ledger; those of the
  /// implementation.
  [[nodiscard]] virtual Result<void> transact(const Edit& edit) const = 0;

  /// The current space, including retired regions. It does not change while the pointer is held.
  [[nodiscard]] virtual std::shared_ptr<const AddressSpaceBase> snapshot() const = 0;

  /// Queues regions, mapped or parked, for removal by the next change; regions that are no longer
  /// in the space are skipped. Splices the list: never allocates, fails or waits for a change.
  virtual void retire(RegionList&& regions) const noexcept = 0;

  /// The regions queued for removal, except those that a running change is removing. O(n) in them;
  /// allocates.
  [[nodiscard]] virtual std::vector<AddressSpaceRegionPtr> retired() const = 0;

  /// Removes the retired regions now; does nothing if there are none. Errors: those of transact().
  [[nodiscard]] virtual Result<void> collect() const = 0;

 protected:
  RegionLedger() = default;
  RegionLedger(const RegionLedger&) = default;
  RegionLedger& operator=(const RegionLedger&) = default;
};

}  // namespace vmspace
