// SPDX-License-Identifier: Apache-2.0
//
// The state shared by the handles of a ResourceManager and the resources acquired from it.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "vmspace/address_space/region_ledger.hpp"
#include "vmspace/allocator/range_pool.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/resources/device_resources.hpp"
#include "vmspace/resources/resource_request.hpp"

#include "resources/device_record.hpp"
#include "resources/number_space.hpp"
#include "resources/owner_table.hpp"

namespace vmspace {

struct ResourceLimits;

namespace detail {

/// A shared interrupt line.
struct SharedLine {
  std::uint64_t number;
  std::uint32_t holders;
};

/// A held range and its holder.
struct Holding {
  const DeviceRecord* record;
  Range range;
};

/// A bridge window and its owner.
struct WindowOf {
  HeldWindow* window;
  const DeviceRecord* bridge;
};

/// A mapped region and its owner.
struct PlacedRegion {
  const AddressSpaceRegion* region;
  const HeldRegion* held;
  const DeviceRecord* record;
};

/// All numbers and all owners.
///
/// One mutex guards all of it but the ledger. It is held while one list of requests is processed, never
/// while the ledger waits or publishes. Lock order: it may be locked inside a change of the ledger, and
/// no change may begin while it is held.
///
/// Destructors must not wait for it: if another thread holds it, the record is queued, and every thread
/// that locks or has just unlocked drains the queue.
class VMSPACE_HIDDEN ResourceState {
 public:
  /// Holds the mutex; returned records have been drained.
  class Lock {
   public:
    explicit Lock(ResourceState& state) noexcept;
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    ~Lock();

   private:
    ResourceState& state_;
    DeviceRecord* gone_;  ///< to be destroyed without the lock
  };

  ~ResourceState();
  ResourceState(const ResourceState&) = delete;
  ResourceState& operator=(const ResourceState&) = delete;

  [[nodiscard]] static Result<std::shared_ptr<ResourceState>> create(
      std::shared_ptr<const RegionLedger> ledger, const ResourceLimits& limits);

  /// Enters an owner. `invalid_argument` when it has no name, `bad_state` when its name is taken.
  [[nodiscard]] Result<void> enter(DeviceRecord& record);
  /// Gives back all numbers and windows of an owner, the last first, and its name. Its regions are
  /// the caller's to take out. Never allocates.
  void leave(DeviceRecord& record) noexcept;
  /// Has an owner leave, at once or as soon as another thread unlocks. Without the lock; never waits
  /// and never allocates.
  void give_back(std::unique_ptr<DeviceRecord> record) noexcept;

  /// The numbers of a kind; null for kinds that are addresses, and for memory slots.
  [[nodiscard]] NumberSpace* numbers(ResourceKind kind) noexcept;
  /// The holding with the lowest of these numbers; empty when all of them are free. O(all holdings).
  [[nodiscard]] std::optional<Holding> holding(ResourceKind kind, Range range) noexcept;
  /// The shared line of this number; null when there is none.
  [[nodiscard]] SharedLine* find_line(std::uint64_t number) noexcept;
  /// All regions at addresses. Allocates.
  [[nodiscard]] std::vector<PlacedRegion> placed_regions() const;
  /// All owners, in the order in which they came.
  [[nodiscard]] const OwnerTable& owners() const noexcept { return owners_; }

  const std::shared_ptr<const RegionLedger> ledger;
  const std::optional<RangePool> slots;
  const bool has_mac_addresses;

  // Under the mutex.
  NumberSpace pio;
  NumberSpace legacy_irqs;
  NumberSpace generic_irqs;
  NumberSpace msi;
  NumberSpace pci_devices;  ///< numbered by pci_number()
  NumberSpace mac_addresses;
  std::vector<SharedLine> shared_lines;  ///< in no order
  std::vector<WindowOf> windows;         ///< of all bridges

 private:
  ResourceState(std::shared_ptr<const RegionLedger> ledger, const ResourceLimits& limits);

  /// With the mutex: those that were left have left. They are to be destroyed without it.
  [[nodiscard]] DeviceRecord* admit_returned() noexcept;
  /// After unlocking: looks for what was left meanwhile.
  void look_for_returned() noexcept;

  std::mutex mutex_;
  OwnerTable owners_;
  std::atomic<DeviceRecord*> returned_ = nullptr;  ///< linked by next_returned
};

/// A device's place among the numbers of all buses.
constexpr std::uint64_t pci_number(std::uint64_t segment, std::uint64_t bus,
                                   std::uint64_t device) noexcept {
  return segment << 13U | bus << 5U | device;
}

/// The device of a place among the numbers of all buses.
constexpr PciSlot pci_slot(std::uint64_t number) noexcept {
  return {.segment = static_cast<std::uint16_t>(number >> 13U),
          .bus = static_cast<std::uint8_t>(number >> 5U),
          .device = static_cast<std::uint8_t>(number & 31U)};
}

}  // namespace detail

}  // namespace vmspace
