// SPDX-License-Identifier: Apache-2.0
//
// Assigns the numbered resources of a VM to its devices: everything that a device needs in one
// call, or nothing.
//
//   const auto manager = VMSPACE_TRY(ResourceManager::create(space));
//   auto nic = VMSPACE_TRY(manager.acquire(
//       {PciDevice{}, MmioRange{.size = 16_KiB}, LegacyIrq{.shared = true}, MsixVectors{.count = 3}},
//       "nic0"));
//   route(nic.legacy_irq(), nic.mmio()->guest_range());
//
//   // The guest swaps two BARs; only the final state has to be valid.
//   VMSPACE_TRY(manager.relocate(
//       {ResourceMove::place(nic, gpu_base), ResourceMove::place(gpu, nic_base)}));
//
// Numbers (ports, interrupts, slots, ids) are the manager's own. Guest physical ranges are regions
// in a RegionLedger, the single record that the rest of the VMM uses too.
//
// A VM is saved as its claims() and restored by requesting the same resources again, with all the
// usual checks. No allocator state is ever read from a file.

#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmspace/address_space/address_space.hpp"
#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/region_ledger.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/allocator/range_pool.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/resources/device_resources.hpp"
#include "vmspace/resources/resource_claim.hpp"
#include "vmspace/resources/resource_request.hpp"

namespace vmspace {

/// The numbers of one kind that a VM has.
struct NumberWindow {
  std::vector<Range> ranges;  ///< in any order; must not overlap
  /// Where requests without `fixed` are served from; unset: anywhere in `ranges`.
  std::optional<Range> any = {};

  friend bool operator==(const NumberWindow&, const NumberWindow&) = default;
};

/// The device numbers of one PCI bus.
struct PciBus {
  std::uint16_t segment = 0;  ///< the PCI domain
  std::uint8_t bus = 0;       ///< the bus within it
  /// Device 0 is the host bridge; on a bus behind a bridge, start at 0.
  std::uint8_t first_device = 1;
  std::uint8_t last_device = 31;  ///< inclusive; at most 31

  friend bool operator==(const PciBus&, const PciBus&) = default;
};

/// The numbers that a VM can assign, besides guest physical addresses; an aggregate for designated
/// initialisers. The defaults are those of an x86 PC; an Arm machine has neither ports nor 8259A
/// lines.
struct ResourceLimits {
  /// I/O ports, below 2^16. The default leaves out the PCI configuration ports 0xcf8 to 0xcff;
  /// requests without `fixed` are served from 0x1000 up, clear of the standard PC devices.
  NumberWindow pio = {.ranges = {Range::of(0, 0xcf7), Range::of(0xd00, 0xffff)},
                      .any = Range::of(0x1000, 0xffff)};
  /// Interrupt lines. The default is those of a PC's two 8259As, except the timer (0), the cascade
  /// (2), the RTC (8) and the coprocessor (13); requests without `fixed` also avoid the keyboard
  /// and the serial ports. A VMM with ACPI acquires line 9, its SCI, first. GSIs 16 to 23 are left
  /// to the VMM's routing of PCI interrupt pins.
  NumberWindow legacy_irqs = {
      .ranges = {Range::of(1, 1), Range::of(3, 7), Range::of(9, 12), Range::of(14, 15)},
      .any = Range::of(5, 15)};
  /// GSIs, in the same number space as the legacy lines. The default starts after the 24 pins of
  /// the I/O APIC.
  NumberWindow generic_irqs = {.ranges = {Range::of(24, 1023)}};
  /// Shared by MSI and MSI-X. The default numbers are disjoint from the GSIs above and within KVM's
  /// 4096 routes (KVM_MAX_IRQ_ROUTES).
  NumberWindow msi = {.ranges = {Range::of(1024, 4095)}};
  std::vector<PciBus> pci_buses = {PciBus{}};  ///< the buses that PciDevice requests are met from
  /// The pool of memory slot numbers, which KvmMemslots and others may share. Only numbers up to
  /// 2^32-1 are assigned. Unset: KvmSlots requests fail.
  std::optional<RangePool> kvm_slots = {};
  std::optional<Range> mac_addresses = {};  ///< below 2^48; unset: MacAddress requests fail
};

/// One move of a relocation. The factories make it say whether it places the range or parks it.
struct ResourceMove {
  DeviceResources* device = nullptr;       ///< whose range moves; not null
  std::size_t index = 0;                   ///< among the device's ranges of this kind
  std::optional<GuestAddress> to = {};     ///< the new base or first port; unset: park the range
  ResourceKind kind = ResourceKind::mmio;  ///< or `pio` or `bridge_window`

  /// Moves an MMIO range to this base, or maps it there if it is parked.
  [[nodiscard]] static ResourceMove place(DeviceResources& device, GuestAddress to,
                                          std::size_t index = 0) noexcept {
    return {&device, index, to, ResourceKind::mmio};
  }
  /// Unmaps an MMIO range, which keeps its size and its last address.
  [[nodiscard]] static ResourceMove park(DeviceResources& device, std::size_t index = 0) noexcept {
    return {&device, index, std::nullopt, ResourceKind::mmio};
  }
  /// Moves a range of ports to this first one, or gives it ports if it is parked.
  [[nodiscard]] static ResourceMove place_ports(DeviceResources& device, std::uint64_t first,
                                                std::size_t index = 0) noexcept {
    return {&device, index, GuestAddress(first), ResourceKind::pio};
  }
  /// Frees the ports of a range, which keeps its size.
  [[nodiscard]] static ResourceMove park_ports(DeviceResources& device,
                                               std::size_t index = 0) noexcept {
    return {&device, index, std::nullopt, ResourceKind::pio};
  }
  /// Moves a bridge window to this base, or opens it there if it is parked.
  [[nodiscard]] static ResourceMove place_window(DeviceResources& bridge, GuestAddress to,
                                                 std::size_t index = 0) noexcept {
    return {&bridge, index, to, ResourceKind::bridge_window};
  }
  /// Closes a bridge window.
  [[nodiscard]] static ResourceMove park_window(DeviceResources& bridge,
                                                std::size_t index = 0) noexcept {
    return {&bridge, index, std::nullopt, ResourceKind::bridge_window};
  }
};

/// What ResourceManager::adopt() does with a region that the ledger has where a claim needs it.
enum class FoundRegions : std::uint8_t {
  /// The claim fails with `overlap`. What is parked is in nobody's way: its claim is given a region of
  /// its own, beside those that the ledger has.
  refuse,
  /// It is taken over, with the memory behind it, if it says what the claim does: the owner, the
  /// place, the size, the name and so on, whatever it is mapped from, and is not retired. Otherwise as
  /// `refuse`: look at the ledger's parked regions afterwards if the claims may say something else than
  /// the map does. This is for a guest that was handed over: its devices' regions come with the map
  /// (receive_handover()).
  take_over,
};

/// One resource that is held, and its owner.
struct ResourceHolder {
  ResourceKind kind;  ///< what it is
  /// The numbers or addresses; the last ones if it is parked. For `pci_device` see pci_slot_of();
  /// for `mac_address` the 48-bit number.
  Range range;
  std::string owner;      ///< as it was given to acquire()
  bool shared = false;    ///< the interrupt line may have other holders
  bool parked = false;    ///< not mapped at any address
  std::string name = {};  ///< of the region, for `mmio` and `memory`

  friend bool operator==(const ResourceHolder&, const ResourceHolder&) = default;
};

/// The location that a holder of kind `pci_device` has. O(1).
[[nodiscard]] VMSPACE_EXPORT PciSlot pci_slot_of(const ResourceHolder& holder) noexcept;

/// The total and the free amount of a kind of number, or of an aperture in bytes. `msi` counts MSI
/// and MSI-X together. Amounts saturate at 2^64-1.
struct ResourceUsage {
  std::string name;                ///< of the kind, or of the aperture
  std::uint64_t total = 0;         ///< free and held
  std::uint64_t free = 0;          ///< not held
  std::uint64_t largest_free = 0;  ///< the longest contiguous run
  bool is_aperture = false;        ///< amounts are bytes of an aperture

  friend bool operator==(const ResourceUsage&, const ResourceUsage&) = default;
};

/// Assigns the numbered resources of a virtual machine to its devices.
///
/// A handle: copies refer to the same manager, and moving is copying. A call that returns an error,
/// or throws std::bad_alloc, leaves all numbers, all owners and the address space as they were.
///
/// Invariant: every number is either free or held by exactly one owner, except shared interrupt
/// lines, which may have several. The regions of every device are in the ledger, mapped or parked.
/// Bridge windows overlap only if one is nested in the other. A range behind a bridge is within one
/// of its windows, and no other range overlaps them. A bridge whose windows are all parked does not
/// constrain the ranges behind it; when a bridge is destroyed, the ranges behind it stay mapped
/// until they are parked or destroyed. See check_invariants(). Regions that other code inserts into
/// the ledger are respected, but keeping them out of bridge windows is up to that code.
///
/// Threads: all calls may run at the same time, but for assigning to a handle that another thread uses,
/// and relocate() counts as a non-const call on each DeviceResources that it names. Calls that change
/// addresses fail with `would_deadlock` from inside a change of the ledger.
///
/// Until a call returns, the ledger may still refuse its change, so other calls are given only what
/// is right in either case. While a bridge window moves, both of its places are taken (`overlap`)
/// for ranges that are not behind the bridge, and only their intersection is available to ranges
/// that are (`out_of_bounds`, or `not_found` if it is empty, as for a window that is being acquired
/// or placed).
class VMSPACE_EXPORT ResourceManager {
 public:
  /// Creates a manager in which everything is free.
  ///
  /// Errors: `invalid_argument` for a null ledger. All others name the limit: `out_of_bounds` when
  /// a port exceeds 0xffff, an interrupt or MSI number 2^32-1, a MAC address 2^48-1, or a device
  /// number 31, or when NumberWindow::any contains none of the numbers; `overlap` when a number
  /// appears in two ranges of a kind, or as both a legacy and a generic interrupt; `invalid_range`
  /// when a bus's first device is above its last. O(n log n) in the ranges; allocates.
  [[nodiscard]] static Result<ResourceManager> create(std::shared_ptr<const RegionLedger> ledger,
                                                      const ResourceLimits& limits = {});
  /// Creates a manager that inserts its regions into `space`. Errors: those of the other overload.
  [[nodiscard]] static Result<ResourceManager> create(const AddressSpace& space,
                                                      const ResourceLimits& limits = {});

  ResourceManager(const ResourceManager&) noexcept = default;
  ResourceManager& operator=(const ResourceManager&) noexcept = default;
  ~ResourceManager() = default;

  /// Acquires all of the requests for one owner, or none; they are processed in order.
  ///
  /// Errors of the list: `invalid_argument` when the owner's name is empty; `bad_state` when the
  /// owner already holds something. Errors of a request name its index, its kind and the owner:
  /// `zero_size`; `bad_alignment`; `invalid_argument` for any other request that no machine could
  /// satisfy, such as three MSI vectors, a device number without a bus, or a bridge that is behind
  /// itself, behind two others, or nested more than 256 deep; `not_found` when there is no such
  /// window, aperture, bridge, bus or pool; `out_of_bounds` when a fixed range is not within a
  /// window, or not in one of its bridge; `overflow` when it passes 2^64-1; `misaligned` when it is
  /// not a multiple of its alignment; `overlap` when a part of it is held, naming the holder, or is
  /// in a hole or in an aperture for something else, naming that; `bad_state` for a bridge while a
  /// range behind an earlier bridge with its name is still mapped, naming that range's owner;
  /// `no_space`, with the largest free piece as `available`; those of AddressSpaceRegion::make.
  /// Finally, those of RegionLedger::transact.
  ///
  /// Numbers cost O(log n) each, interrupt lines also O(l) in the lines that are shared; MMIO and
  /// memory O(log n + w log(n + w)) each with w bridge windows, where the space has learned their
  /// alignment (see IntervalTree::allocate); a bridge window O(n); and all addresses of a list together
  /// one change of the ledger. A request that is refused costs O(n).
  [[nodiscard]] Result<DeviceResources> acquire(std::span<const ResourceRequest> requests,
                                                std::string_view owner) const;
  /// As above, for requests that are written in braces.
  [[nodiscard]] Result<DeviceResources> acquire(std::initializer_list<ResourceRequest> requests,
                                                std::string_view owner) const {
    return acquire(std::span(requests.begin(), requests.size()), owner);
  }

  /// Restores a saved VM: acquires the resources of claims(), for all owners or for none, and
  /// returns one DeviceResources per owner, in the order of the owners' first claims.
  ///
  /// A claim is a fixed request. Errors are those of acquire(), naming the index of the claim; a
  /// claim that conflicts names both owners; `invalid_argument` for one that is not fixed, and for
  /// an unnamed value of `found`. Bridge windows are adopted before the ranges in them, whatever
  /// the order of the list. A range whose bridge no longer exists may be within any other window.
  ///
  /// `found` says what becomes of a region that the ledger has already. Of two managers with one
  /// ledger, one alone may take over an owner's.
  ///
  /// Costs what acquire() does for each claim, and one change of the ledger. To take over a
  /// region is also O(p) in the parked ones that there are by then, of the ledger and of the list.
  [[nodiscard]] Result<std::vector<DeviceResources>> adopt(
      std::span<const ResourceClaim> claims, FoundRegions found = FoundRegions::refuse) const;

  /// Moves, parks and places ranges of devices, all or none. Only the final state must be valid, so
  /// ranges may swap, or take a place that another move of the set vacates. Until the call returns, old
  /// and new ports are both taken.
  ///
  /// Errors, naming the owner: `invalid_argument` when a device is null, a kind cannot be moved, or
  /// the set moves a range twice; `bad_state` when a device holds nothing or belongs to another
  /// manager, or when a bridge window moves while another call moves a range behind that bridge;
  /// `out_of_bounds` when the device has no such range, when the machine has no such ports, or when the
  /// new place is outside every aperture, out of reach (MmioReach), not in its own aperture, or not in
  /// a window of its bridge;
  /// `overflow` when it passes 2^64-1; `not_found` when all windows of its bridge are parked;
  /// `misaligned` when it is not a multiple of the range's alignment; `overlap` when it overlaps a
  /// region that does not move or another new place, naming both, ports that are held, naming the
  /// holder, a bridge window, or a hole of the layout; those of RegionLedger::transact.
  ///
  /// Costs one change of the ledger, unless only ports move, and O(m (m + w)) in the moves and the bridge windows; when bridge
  /// windows move, also O(n) in all ranges for each window that there is.
  [[nodiscard]] Result<void> relocate(std::span<const ResourceMove> moves) const;
  /// As above, for moves that are written in braces.
  [[nodiscard]] Result<void> relocate(std::initializer_list<ResourceMove> moves) const {
    return relocate(std::span(moves.begin(), moves.size()));
  }

  /// Everything that is held, as fixed requests that reproduce it, in the order in which the owners
  /// acquired. This is the state to save with a VM. Call it while nothing changes the manager:
  /// resources of a call that is still running, and may yet have to return them, are listed too.
  /// O(n); allocates.
  [[nodiscard]] std::vector<ResourceClaim> claims() const;

  /// Everything that is held, with its owner, sorted by kind and then by range; what is parked comes
  /// last in its kind. O(n log n); allocates.
  [[nodiscard]] std::vector<ResourceHolder> holders() const;

  /// Totals and free amounts of each kind that the VM has and of each aperture of the layout.
  /// O(a n log n) for a apertures; allocates.
  [[nodiscard]] std::vector<ResourceUsage> usage() const;

  /// The regions of destroyed devices that await the next change of the ledger. This and collect()
  /// are those of the ledger, for code that is given the manager alone.
  [[nodiscard]] std::vector<AddressSpaceRegionPtr> retired() const { return ledger().retired(); }
  /// Removes the retired regions from the ledger now. Errors: those of RegionLedger::collect.
  [[nodiscard]] Result<void> collect() const;

  /// The ledger that holds the regions; it lives at least as long as any handle.
  [[nodiscard]] const RegionLedger& ledger() const noexcept;

  /// Checks the invariant, in release builds too: `corrupt`, with the first broken rule as the
  /// reason, which means a bug in this library or a stray write. It may report a transient state
  /// while other threads change the manager. O(l n + p n) with l shared lines and p parked regions,
  /// plus O(n log n) for each bridge window.
  [[nodiscard]] Result<void> check_invariants() const;

  /// Whether both are handles of one manager.
  [[nodiscard]] bool same_as(const ResourceManager& other) const noexcept {
    return state_ == other.state_;
  }

 private:
  explicit ResourceManager(std::shared_ptr<detail::ResourceState> state) noexcept;

  std::shared_ptr<detail::ResourceState> state_;  ///< never null
};

}  // namespace vmspace
