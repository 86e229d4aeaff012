// SPDX-License-Identifier: Apache-2.0
//
// Everything that one device holds, returned when the object is destroyed.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/resources/resource_request.hpp"

namespace vmspace {

namespace detail {
struct DeviceRecord;
class ResourceState;
}  // namespace detail

/// The location of a PCI device, with all eight of its functions: segment, bus and device number,
/// as in `0000:00:1f` (the notation of `/sys/bus/pci/slots/*/address`).
struct PciSlot {
  std::uint16_t segment = 0;  ///< the PCI domain
  std::uint8_t bus = 0;       ///< the bus within it
  std::uint8_t device = 0;    ///< the device on it; 0 to 31

  friend bool operator==(const PciSlot&, const PciSlot&) = default;
};

/// The resources that a ResourceManager has assigned to one owner, by kind and in the order
/// requested.
///
/// The destructor returns everything, last acquired first; it may run on any thread, and after the
/// last handle of the manager is gone. It never allocates or fails, and waits only for a call that
/// is running on the pool of memory slots. Numbers are free for every call of the manager that
/// begins afterwards; memory slots, whose pool has other users, at the latest when a running call
/// of the manager returns. Regions cannot leave the address space without changing it, so they are
/// *retired* (RegionLedger::retire): they stay visible, and their addresses stay taken, until the
/// next change of the space: an acquire() that asks for addresses, a relocate(), or
/// ResourceManager::collect(), which does nothing else. To remove them immediately, and to see
/// errors, call release() first.
///
/// An accessor's `index` counts the requests of its kind, from 0. An index that is not below
/// count(kind) ends the process by std::abort(), in release builds too. A released or moved-from
/// object holds nothing, so every count is 0; it may be assigned to.
///
/// Threads: const calls may run at the same time; any other call excludes all others on this
/// object, and so does a relocation that names it.
class VMSPACE_EXPORT DeviceResources {
 public:
  /// Takes over the resources of `other`, which holds nothing afterwards.
  DeviceResources(DeviceResources&& other) noexcept;
  /// Returns the resources held so far, then takes over those of `other`.
  DeviceResources& operator=(DeviceResources&& other) noexcept;
  ~DeviceResources();

  /// Returns everything now, removing its regions in one change of the address space; all of it is
  /// free afterwards. Waits for other calls of the manager and the ledger. Errors: `bad_state` if
  /// it holds nothing; `not_found`, naming the region, if other code has removed one; those of
  /// RegionLedger::transact. On error everything is still held.
  [[nodiscard]] Result<void> release();

  /// Whether it holds anything.
  [[nodiscard]] bool is_held() const noexcept { return record_ != nullptr; }

  /// The owner that it was acquired for; empty if it holds nothing.
  [[nodiscard]] const std::string& owner() const noexcept;

  /// The number of resources of this kind. O(n) in the resources held, like every accessor below.
  [[nodiscard]] std::size_t count(ResourceKind kind) const noexcept;

  /// The I/O ports of a PioRange request; its last ones if it is parked.
  [[nodiscard]] Range pio(std::size_t index = 0) const noexcept;
  /// The region of an MmioRange request; if it is parked, base() is its last address. A later
  /// relocation gives the device another region, and leaves this one as it is.
  [[nodiscard]] AddressSpaceRegionPtr mmio(std::size_t index = 0) const noexcept;
  /// Whether a range is parked. `kind` is `pio`, `mmio` or `bridge_window`; false for every other.
  [[nodiscard]] bool is_parked(ResourceKind kind, std::size_t index = 0) const noexcept;
  /// The region of a MemoryRange request.
  [[nodiscard]] AddressSpaceRegionPtr memory(std::size_t index = 0) const noexcept;
  /// The range of a bridge window; its last range if it is parked.
  [[nodiscard]] Range bridge_window(std::size_t index = 0) const noexcept;
  /// The interrupt line (GSI) of a LegacyIrq request.
  [[nodiscard]] std::uint32_t legacy_irq(std::size_t index = 0) const noexcept;
  /// The GSIs of a GenericIrq request.
  [[nodiscard]] Range generic_irq(std::size_t index = 0) const noexcept;
  /// The vectors of an MsiVectors request.
  [[nodiscard]] Range msi(std::size_t index = 0) const noexcept;
  /// The vectors of an MsixVectors request.
  [[nodiscard]] Range msix(std::size_t index = 0) const noexcept;
  /// The slot numbers of a KvmSlots request.
  [[nodiscard]] Range kvm_slot(std::size_t index = 0) const noexcept;
  /// The location of a PciDevice request.
  [[nodiscard]] PciSlot pci_device(std::size_t index = 0) const noexcept;
  /// The address of a MacAddress request, in transmission order.
  [[nodiscard]] std::array<std::uint8_t, 6> mac_address(std::size_t index = 0) const noexcept;

 private:
  friend class ResourceManager;

  DeviceResources(std::shared_ptr<detail::ResourceState> state,
                  std::unique_ptr<detail::DeviceRecord> record) noexcept;

  void give_back() noexcept;
  /// The numbers of the index-th request of this kind.
  [[nodiscard]] Range number(ResourceKind kind, std::size_t index) const noexcept;

  std::shared_ptr<detail::ResourceState> state_;  ///< null exactly when record_ is
  std::unique_ptr<detail::DeviceRecord> record_;  ///< null when it holds nothing
};

}  // namespace vmspace
