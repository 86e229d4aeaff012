// SPDX-License-Identifier: Apache-2.0
//
// Who holds which of the numbered resources of a VM: everything that a device needs in one call, or
// nothing.
//
//   const auto manager = VMSPACE_TRY(ResourceManager::create(space));
//   auto nic = VMSPACE_TRY(manager.acquire(
//       {PciDevice{}, MmioRange{.size = 16_KiB}, LegacyIrq{.shared = true}, MsixVectors{.count = 3}},
//       "nic0"));
//   route(nic.legacy_irq(), nic.mmio()->guest_range());
//
//   // The guest swaps two BARs, register by register: judged at the end.
//   VMSPACE_TRY(manager.relocate({{&nic, 0, gpu_base}, {&gpu, 0, nic_base}}));
//
// Numbers (ports, interrupts, slots, ids) are the manager's own. Guest physical addresses are
// regions in a RegionLedger, so that there is one record of them, whoever enters regions besides.
//
// Saving a VM keeps claims(); restoring it asks for the same things again, with every check that
// asking has. No allocator's state is taken from a file.

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

/// The numbers that exist of a kind.
struct NumberWindow {
  std::vector<Range> ranges;  ///< in any order, apart from each other
  /// Where a request that is not fixed takes them from; unset: anywhere.
  std::optional<Range> any = {};

  friend bool operator==(const NumberWindow&, const NumberWindow&) = default;
};

/// The device numbers that exist on a PCI bus.
struct PciBus {
  std::uint16_t segment = 0;
  std::uint8_t bus = 0;
  std::uint8_t first_device = 1;  ///< 0 is the host bridge's
  std::uint8_t last_device = 31;  ///< inclusive; at most 31

  friend bool operator==(const PciBus&, const PciBus&) = default;
};

/// What a VM has to hand out besides guest physical addresses; an aggregate for designated
/// initialisers. The defaults are a PC's.
struct ResourceLimits {
  /// Ports, all below 2^16. By default all but those that address PCI configuration space (0xcf8 to
  /// 0xcff); what is not fixed goes above the devices that every PC has.
  NumberWindow pio = {.ranges = {Range::of(0, 0xcf7), Range::of(0xd00, 0xffff)},
                      .any = Range::of(0x1000, 0xffff)};
  /// Interrupt lines. By default those of a PC's two 8259A but timer (0), cascade (2), clock (8) and
  /// coprocessor (13); what is not fixed stays clear of keyboard and serial ports.
  NumberWindow legacy_irqs = {
      .ranges = {Range::of(1, 1), Range::of(3, 7), Range::of(9, 12), Range::of(14, 15)},
      .any = Range::of(5, 15)};
  /// In one space of numbers with the legacy ones; from the I/O APIC's 24 pins on.
  NumberWindow generic_irqs = {.ranges = {Range::of(24, 1023)}};
  /// For MSI and MSI-X alike. By default numbers that are also free as GSIs, up to the 4096 routes
  /// that KVM has (KVM_MAX_IRQ_ROUTES).
  NumberWindow msi = {.ranges = {Range::of(1024, 4095)}};
  std::vector<PciBus> pci_buses = {PciBus{}};
  /// The pool of slot numbers, shared with whoever else takes some, such as KvmMemslots. Of its
  /// numbers, those up to 2^32-1 are handed out.
  std::optional<RangePool> kvm_slots = {};
  std::optional<Range> mac_addresses = {};  ///< below 2^48; unset: the VM hands out none
};

/// One of a set of moves: where a device's range goes.
struct ResourceMove {
  DeviceResources* device = nullptr;
  std::size_t index = 0;                   ///< which of the device's ranges of this kind
  std::optional<GuestAddress> to = {};     ///< the new base; unset: it is parked
  ResourceKind kind = ResourceKind::mmio;  ///< or `bridge_window`
};

/// That somebody holds a range. Addresses of regions are ranges too.
struct ResourceHolder {
  ResourceKind kind;
  Range range;  ///< where it has been, when it is parked
  std::string owner;
  bool shared = false;  ///< others may hold the same interrupt line
  bool parked = false;  ///< at no address

  friend bool operator==(const ResourceHolder&, const ResourceHolder&) = default;
};

/// How much of a kind there is and is left, in members. Amounts that pass 2^64-1 are that.
struct ResourceUsage {
  std::string name;  ///< the kind; for addresses the layout's aperture
  std::uint64_t total = 0;
  std::uint64_t free = 0;
  std::uint64_t largest_free = 0;  ///< the longest run
  bool is_aperture = false;        ///< and then in bytes

  friend bool operator==(const ResourceUsage&, const ResourceUsage&) = default;
};

/// Hands out the numbered resources of a virtual machine to its devices.
///
/// A handle: copies are the same manager, and moving copies. A call that returns an error, or throws
/// std::bad_alloc, leaves all numbers, all owners and the address space as they were.
///
/// Invariant: every number is free or held by one owner, but for shared interrupt lines, which have
/// one or more; each device's regions are in the ledger, placed or parked; bridge windows overlap
/// only where one lies in the other; ranges behind a bridge lie in a window of it, and no others meet
/// one. A bridge whose windows are all parked holds nothing in place; what a bridge leaves behind when
/// it goes stays where it is, until it is parked or goes too. See check_invariants(). Regions that
/// others enter into the ledger are respected; that they keep out of bridge windows is up to them.
///
/// Threads: all calls may run at the same time, except that a DeviceResources is used by one thread
/// at a time. From inside a change of the ledger, calls that change addresses are refused:
/// `would_deadlock`.
///
/// Until a call returns, the ledger may yet refuse its change, and others are given only what is right
/// either way. While a bridge's window moves, both its places are taken (`overlap`) for what is not
/// behind the bridge, and only what they have in common is there for what is (`out_of_bounds`, or
/// `not_found` when that is nothing, as for a window that is being acquired or placed).
class VMSPACE_EXPORT ResourceManager {
 public:
  /// Creates a manager with everything free. Errors, each naming the limit: `invalid_argument` for a
  /// null ledger; `out_of_bounds` when ports pass 0xffff, interrupt and MSI numbers 2^32-1, MAC
  /// addresses 2^48-1, or device numbers 31; `overlap` when a number is in two ranges of a kind,
  /// or is both a legacy and a generic interrupt; `invalid_range` when a bus's first device is above
  /// its last.
  [[nodiscard]] static Result<ResourceManager> create(std::shared_ptr<const RegionLedger> ledger,
                                                      const ResourceLimits& limits = {});
  /// A manager whose regions are entered in `space`.
  [[nodiscard]] static Result<ResourceManager> create(const AddressSpace& space,
                                                      const ResourceLimits& limits = {});

  ResourceManager(const ResourceManager&) noexcept = default;
  ResourceManager& operator=(const ResourceManager&) noexcept = default;
  ~ResourceManager() = default;

  /// Acquires everything in the list for one owner, or nothing; requests are met in the order given.
  ///
  /// Errors of the list: `invalid_argument` when the owner's name is empty; `bad_state` when the
  /// owner holds something already. Errors of a request name its index, its kind and the owner:
  /// `zero_size`; `bad_alignment`; `invalid_argument` for anything else that can't be met on any
  /// machine, such as three MSI vectors, a device number without a bus, or a bridge that is behind
  /// itself, behind two others, or nested more than 256 deep; `not_found` when there is no such
  /// window, aperture, bridge, bus or pool; `out_of_bounds` when a fixed range lies outside of all
  /// windows, or of its bridge's; `misaligned` when it is not a multiple of its alignment; `overlap`
  /// when a part of it is held, naming the holder; `bad_state` for a bridge when an earlier one of its
  /// name has left something at an address, naming whose it is; `no_space`, with the largest free
  /// piece as what is available; those of AddressSpaceRegion::make. And those of
  /// RegionLedger::transact.
  ///
  /// A list without addresses costs O(log n) a request; one with addresses also a change of the
  /// ledger, whatever their number.
  [[nodiscard]] Result<DeviceResources> acquire(std::span<const ResourceRequest> requests,
                                                std::string_view owner) const;
  [[nodiscard]] Result<DeviceResources> acquire(std::initializer_list<ResourceRequest> requests,
                                                std::string_view owner) const {
    return acquire(std::span(requests.begin(), requests.size()), owner);
  }

  /// Acquires what claims() listed, for all owners or for none, and gives each owner's in the order
  /// of their first claims. A claim is a fixed request: errors are those of acquire(), naming the
  /// index of the claim; a claim that clashes names both owners; `invalid_argument` for one that is
  /// not fixed. Windows of bridges are adopted before what lies in them, wherever they are in the list;
  /// what a bridge has left may lie in any other window. Costs one change of the ledger.
  [[nodiscard]] Result<std::vector<DeviceResources>> adopt(
      std::span<const ResourceClaim> claims) const;

  /// Moves, parks and places ranges of devices, wholly or not at all; only the end counts, so that
  /// ranges may swap, or go where another of the set has been. Errors, naming the owner:
  /// `invalid_argument` when a device is null, a kind can't move, or a range is named twice;
  /// `bad_state` when a device holds nothing or is another manager's, or when a bridge's window moves
  /// while another call moves what is behind that bridge; `out_of_bounds` when the device has no such
  /// range, or when the new place is outside of every window, out of its reach (MmioReach), or not in
  /// a window of its bridge; `not_found` when its bridge has no window at an address; `misaligned`
  /// when the place is not a multiple of the range's alignment; `overlap` when it meets a region that
  /// stays or another new place, naming both regions, or a bridge's window; those of
  /// RegionLedger::transact. Costs one change of the ledger; O(n) in all ranges for each window when
  /// bridges' windows move.
  [[nodiscard]] Result<void> relocate(std::span<const ResourceMove> moves) const;
  [[nodiscard]] Result<void> relocate(std::initializer_list<ResourceMove> moves) const {
    return relocate(std::span(moves.begin(), moves.size()));
  }

  /// What all owners hold, as requests for exactly that, in the order in which owners came: what to
  /// save of a VM. To be called while nothing changes the manager: what a call that has not returned
  /// has got so far, and may have to give back, is listed too. O(n); allocates.
  [[nodiscard]] std::vector<ResourceClaim> claims() const;

  /// Who holds what, by kind, then in ascending order. O(n log n); allocates.
  [[nodiscard]] std::vector<ResourceHolder> holders() const;

  /// How much there is of each kind that the VM has, and of each aperture of the layout. O(n).
  [[nodiscard]] std::vector<ResourceUsage> usage() const;

  /// The regions that destroyed DeviceResources have left for the next change of the ledger.
  [[nodiscard]] std::vector<AddressSpaceRegionPtr> retired() const { return ledger().retired(); }
  /// Takes them out of the ledger now. Errors: those of RegionLedger::collect.
  [[nodiscard]] Result<void> collect() const;

  /// Where regions are entered; lives as long as any handle.
  [[nodiscard]] const RegionLedger& ledger() const noexcept;

  /// Checks the invariant, in release builds too: `corrupt`, with the first broken rule as the
  /// reason, which means a defect of this library or a stray write. While others change the manager
  /// it may report what is only under way. O(n log n).
  [[nodiscard]] Result<void> check_invariants() const;

  /// Whether both are handles of one manager.
  friend bool operator==(const ResourceManager&, const ResourceManager&) noexcept = default;

 private:
  explicit ResourceManager(std::shared_ptr<detail::ResourceState> state) noexcept;

  std::shared_ptr<detail::ResourceState> state_;  ///< never null
};

}  // namespace vmspace
