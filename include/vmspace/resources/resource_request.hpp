// SPDX-License-Identifier: Apache-2.0
//
// The requests that a device makes, as plain data.
//
//   const ResourceRequest nic[] = {PioRange{.size = 32}, MmioRange{.size = 16_KiB},
//                                  LegacyIrq{.shared = true}, MsixVectors{.count = 3}};
//
// Every request can be pinned to an exact resource with `fixed`: for a device whose address the
// platform dictates, a BAR that must be identity-mapped, or a device of a VM that is being
// restored.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/export.hpp"

namespace vmspace {

/// The kinds of resource; the enumerators are in the order of ResourceRequest's alternatives.
enum class ResourceKind : std::uint8_t {
  pio,            ///< port I/O addresses
  mmio,           ///< a guest physical range that a device decodes
  memory,         ///< a guest physical range backed by memory
  bridge_window,  ///< a guest physical range that a PCI bridge forwards
  legacy_irq,     ///< an interrupt line (GSI) that devices may share
  generic_irq,    ///< interrupt numbers (GSIs)
  msi,            ///< a naturally aligned block of MSI vectors
  msix,           ///< MSI-X vectors
  kvm_slot,       ///< memory slot numbers
  pci_device,     ///< a device number on a PCI bus
  mac_address,    ///< a MAC address
};

/// The name used in errors, tables and claims, such as `legacy_irq`; `unknown` for an unnamed
/// value.
[[nodiscard]] VMSPACE_EXPORT std::string_view name_of(ResourceKind kind) noexcept;

/// A range of I/O ports.
struct PioRange {
  std::uint64_t size;  ///< the number of ports; at least 1
  /// A power of two. 0: the size rounded up to a power of two, as PCI requires of a BAR. If `fixed` is
  /// not a multiple of that, the range cannot be a BAR and has no alignment, now or when it moves.
  std::uint64_t align = 0;
  /// The range must be within it, until it moves; unset: ResourceLimits::pio.any, or anywhere with
  /// `fixed`.
  std::optional<Range> window = {};
  std::optional<std::uint64_t> fixed = {};  ///< the first port
  /// Acquired without any ports until relocate() places it, like a BAR whose decoding is disabled.
  /// `fixed` then records the first port that it had last.
  bool parked = false;

  friend bool operator==(const PioRange&, const PioRange&) = default;
};

/// Which part of the address space an MMIO range may be placed in.
enum class MmioReach : std::uint8_t {
  any,       ///< below 4 GiB if possible, else above; prefetchable ranges the other way round
  below_4g,  ///< below 4 GiB, for 32-bit BARs
  high,      ///< at or above 4 GiB; prefetchable ranges fall back to below 4 GiB
};

/// The name used in claims, such as `below_4g`; `unknown` for an unnamed value.
[[nodiscard]] VMSPACE_EXPORT std::string_view name_of(MmioReach reach) noexcept;

/// An MMIO range that a device decodes, such as a BAR. It becomes a region of type device_memory.
struct MmioRange {
  std::uint64_t size;  ///< in bytes; at least 1
  /// In bytes; a power of two. 0: the size rounded up to a power of two, as PCI requires of a BAR,
  /// but at least 4 KiB so that devices do not share a page. If `fixed` is not a multiple of that,
  /// the range cannot be a BAR and has no alignment, now or when it moves.
  std::uint64_t align = 0;
  MmioReach reach = MmioReach::any;  ///< which side of 4 GiB
  bool prefetchable = false;         ///< reads have no side effects; placed above 4 GiB if possible
  /// The owner of the PCI bridge that the device is behind: the range is placed in one of its
  /// windows. Empty: the range is placed outside all bridge windows.
  std::string bridge = {};
  /// The aperture of the layout that must hold it, such as a PCI segment's own or that of platform
  /// devices. Empty: any aperture for MMIO within reach.
  std::string aperture = {};
  std::optional<GuestAddress> fixed = {};  ///< the first address
  /// Acquired but not mapped at any address until relocate() places it, like a BAR whose decoding
  /// is disabled. `fixed` then records its last address.
  bool parked = false;
  std::string name = {};  ///< of the region; empty: the owner's name

  friend bool operator==(const MmioRange&, const MmioRange&) = default;
};

/// A range of guest memory: hotplugged RAM, a DAX window, pmem.
struct MemoryRange {
  /// The region to insert. `base` must be 0 and `owner` empty: acquire() sets them. An empty `name`
  /// becomes the owner's name.
  RegionOptions region = {};
  /// In bytes; a power of two, raised to the backing's page size. 0: the backing's page size.
  std::uint64_t align = 0;
  /// The aperture of the layout to place it in. Empty: the lowest one that accepts its type and has
  /// room.
  std::string aperture = {};
  std::optional<GuestAddress> fixed = {};  ///< the first address

  friend bool operator==(const MemoryRange&, const MemoryRange&) = default;
};

/// A memory window of a PCI bridge: it holds exactly the ranges whose `bridge` names its owner. A
/// window is not a region: addresses in it that belong to no BAR have no owner. A bridge may have
/// several, typically one prefetchable and one not. I/O windows are not modelled: confine the ports
/// behind a bridge with PioRange::window.
struct BridgeWindow {
  /// In bytes; a multiple of 1 MiB (PCI-to-PCI Bridge Architecture Specification 1.2, 3.2.5.8).
  std::uint64_t size;
  std::uint64_t align = 0;  ///< a power of two, at least 1 MiB; 0: 1 MiB
  /// A window that is not prefetchable is always below 4 GiB: PCI has no upper base and limit
  /// registers for it (3.2.5.8, 3.2.5.9). `high` is an error for it.
  MmioReach reach = MmioReach::any;
  bool prefetchable = false;  ///< holds prefetchable ranges only, and is tried first for them
  /// The owner of the parent bridge, if this bridge is behind another one; at most 256 deep.
  std::string bridge = {};
  std::string aperture = {};               ///< as MmioRange::aperture
  std::optional<GuestAddress> fixed = {};  ///< the first address
  bool parked = false;                     ///< as MmioRange::parked

  friend bool operator==(const BridgeWindow&, const BridgeWindow&) = default;
};

/// One interrupt line.
struct LegacyIrq {
  std::optional<std::uint32_t> fixed = {};  ///< the number; unset: any
  /// Whether the line may be shared with other requests that also set this. Without `fixed`, a free
  /// line is preferred; if there is none, the shared line with the fewest holders is used.
  bool shared = false;

  friend bool operator==(const LegacyIrq&, const LegacyIrq&) = default;
};

/// Consecutive interrupt numbers (GSIs) from ResourceLimits::generic_irqs.
struct GenericIrq {
  std::uint32_t count = 1;                  ///< at least 1
  std::optional<std::uint32_t> fixed = {};  ///< the first number

  friend bool operator==(const GenericIrq&, const GenericIrq&) = default;
};

/// A block of MSI vectors. The first number is a multiple of the count, because the device writes
/// the vector into the low bits of the message data (PCI Local Bus Specification 3.0, 6.8.1).
struct MsiVectors {
  std::uint32_t count;                      ///< a power of two, at most 32
  std::optional<std::uint32_t> fixed = {};  ///< the first number

  friend bool operator==(const MsiVectors&, const MsiVectors&) = default;
};

/// Consecutive MSI-X vectors.
struct MsixVectors {
  std::uint32_t count;                      ///< at least 1, at most 2048
  std::optional<std::uint32_t> fixed = {};  ///< the first number

  friend bool operator==(const MsixVectors&, const MsixVectors&) = default;
};

/// Consecutive KVM memory slot numbers.
struct KvmSlots {
  std::uint32_t count = 1;                  ///< at least 1
  std::optional<std::uint32_t> fixed = {};  ///< the first number

  friend bool operator==(const KvmSlots&, const KvmSlots&) = default;
};

/// A PCI device number, including all of its functions.
struct PciDevice {
  std::uint16_t segment = 0;                ///< the PCI domain
  std::optional<std::uint8_t> bus = {};     ///< unset: the lowest with a free device number
  std::optional<std::uint8_t> device = {};  ///< 0 to 31; requires `bus`; unset: the lowest free

  friend bool operator==(const PciDevice&, const PciDevice&) = default;
};

/// A MAC address as a 48-bit number: bits 47 to 40 are the first octet on the wire.
struct MacAddress {
  std::optional<std::uint64_t> fixed = {};  ///< unset: any that is free

  friend bool operator==(const MacAddress&, const MacAddress&) = default;
};

/// A request for one resource; the alternatives are in the order of ResourceKind.
using ResourceRequest =
    std::variant<PioRange, MmioRange, MemoryRange, BridgeWindow, LegacyIrq, GenericIrq, MsiVectors,
                 MsixVectors, KvmSlots, PciDevice, MacAddress>;

/// The kind of resource that a request is for. O(1).
[[nodiscard]] inline ResourceKind kind_of(const ResourceRequest& request) noexcept {
  return static_cast<ResourceKind>(request.index());
}

}  // namespace vmspace
