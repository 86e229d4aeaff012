// SPDX-License-Identifier: Apache-2.0
//
// Everything that one device holds, given back when it goes.

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

/// Where a device is on PCI: segment, bus and device, as in `0000:00:1f`.
struct PciAddress {
  std::uint16_t segment = 0;
  std::uint8_t bus = 0;
  std::uint8_t device = 0;

  friend bool operator==(const PciAddress&, const PciAddress&) = default;
};

/// What a ResourceManager has given to one owner, by kind and in the order asked.
///
/// Destroying it gives everything back, the last acquired first, on any thread, also when the
/// manager's handles are gone. That never allocates, fails or waits. Numbers are free for every later
/// call of the manager; memory slots, whose pool others use too, at the latest when the next call of
/// the manager unlocks it. Regions can't leave the address space without a change of it, so they are
/// *retired* (RegionLedger::retire): they stay visible, their addresses taken, until the next change
/// takes them out; ResourceManager::acquire() is one, ResourceManager::collect() does only that. To
/// have everything free at once, and to learn of errors, call release() first.
///
/// An accessor's `index` counts what was asked of its kind, from 0, and must be below count(kind).
/// One that was moved from or released holds nothing; it may be assigned to.
///
/// Threads: const calls may run at the same time; any other call excludes all others on this
/// object, and so does a relocation that names it.
class VMSPACE_EXPORT DeviceResources {
 public:
  /// `other` holds nothing afterwards.
  DeviceResources(DeviceResources&& other) noexcept;
  /// Gives back what it holds, and takes over what `other` holds.
  DeviceResources& operator=(DeviceResources&& other) noexcept;
  ~DeviceResources();

  /// Gives everything back, regions by one change of the address space; all of it is free when this
  /// returns. Waits for other calls of the manager and the ledger. Errors: `bad_state` when it holds
  /// nothing; `not_found`, naming the region, when somebody else has removed one; those of
  /// RegionLedger::transact. After an error it holds everything as before.
  [[nodiscard]] Result<void> release();

  /// Whether it holds anything.
  [[nodiscard]] bool is_held() const noexcept { return record_ != nullptr; }

  /// Who it was acquired for; empty when it holds nothing.
  [[nodiscard]] const std::string& owner() const noexcept;

  /// How many of this kind it has. O(n) in what it holds, as all that follow.
  [[nodiscard]] std::size_t count(ResourceKind kind) const noexcept;

  /// Ports.
  [[nodiscard]] Range pio(std::size_t index = 0) const noexcept;
  /// A region that the device answers. A parked one says in base() where it has been.
  [[nodiscard]] const AddressSpaceRegionPtr& mmio(std::size_t index = 0) const noexcept;
  /// Whether a region that the device answers is at no address.
  [[nodiscard]] bool is_parked(std::size_t mmio_index = 0) const noexcept;
  /// A region of memory.
  [[nodiscard]] const AddressSpaceRegionPtr& memory(std::size_t index = 0) const noexcept;
  /// A bridge's window; where it has been, when it is parked.
  [[nodiscard]] Range bridge_window(std::size_t index = 0) const noexcept;
  /// The number of an interrupt line.
  [[nodiscard]] std::uint32_t legacy_irq(std::size_t index = 0) const noexcept;
  /// Interrupt numbers.
  [[nodiscard]] Range generic_irq(std::size_t index = 0) const noexcept;
  /// A block of MSI vectors.
  [[nodiscard]] Range msi(std::size_t index = 0) const noexcept;
  /// MSI-X vectors.
  [[nodiscard]] Range msix(std::size_t index = 0) const noexcept;
  /// Numbers of memory slots.
  [[nodiscard]] Range kvm_slot(std::size_t index = 0) const noexcept;
  /// Where the device is on PCI.
  [[nodiscard]] PciAddress pci_device(std::size_t index = 0) const noexcept;
  /// A MAC address, the byte that is sent first at the front.
  [[nodiscard]] std::array<std::uint8_t, 6> mac_address(std::size_t index = 0) const noexcept;

 private:
  friend class ResourceManager;

  DeviceResources(std::shared_ptr<detail::ResourceState> state,
                  std::unique_ptr<detail::DeviceRecord> record) noexcept;

  void give_back() noexcept;
  /// The range of a number of this kind.
  [[nodiscard]] Range number(ResourceKind kind, std::size_t index) const noexcept;

  std::shared_ptr<detail::ResourceState> state_;  ///< null exactly when record_ is
  std::unique_ptr<detail::DeviceRecord> record_;  ///< null when it holds nothing
};

}  // namespace vmspace
