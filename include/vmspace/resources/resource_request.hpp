// SPDX-License-Identifier: Apache-2.0
//
// What a device may ask for, as data.
//
//   const ResourceRequest nic[] = {PioRange{.size = 32}, MmioRange{.size = 16_KiB},
//                                  LegacyIrq{.shared = true}, MsixVectors{.count = 3}};
//
// Each kind of request can be fixed to what it must get: a device at a place that the architecture
// dictates, a BAR that must be identity mapped, a device of a VM that is restored.

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

/// What is handed out; one for each type of request, in the order of ResourceRequest.
enum class ResourceKind : std::uint8_t {
  pio,            ///< port I/O addresses
  mmio,           ///< guest physical addresses that a device answers
  memory,         ///< guest physical addresses with memory behind them
  bridge_window,  ///< guest physical addresses that a PCI bridge forwards
  legacy_irq,     ///< an interrupt line (GSI) that devices may share
  generic_irq,    ///< interrupt numbers (GSIs)
  msi,            ///< message-signalled interrupts, as a block
  msix,           ///< message-signalled interrupts
  kvm_slot,       ///< memory slot numbers
  pci_device,     ///< a device number on a PCI bus
  mac_address,    ///< a MAC address
};

/// The name that errors, tables and claims show: `pio`, `legacy_irq`.
[[nodiscard]] VMSPACE_EXPORT std::string_view name_of(ResourceKind kind) noexcept;

/// Ports.
struct PioRange {
  std::uint64_t size;  ///< ports; at least 1
  /// A power of two. 0: the size rounded up to one, as PCI requires.
  std::uint64_t align = 0;
  std::optional<Range> window = {};         ///< all of it lies in here; unset: anywhere
  std::optional<std::uint64_t> fixed = {};  ///< the first port

  friend bool operator==(const PioRange&, const PioRange&) = default;
};

/// In which windows for MMIO a range may lie.
enum class MmioReach : std::uint8_t {
  any,       ///< first below 4 GiB, then above; prefetchable ones the other way round
  below_4g,  ///< what a 32-bit BAR can hold
  high,      ///< from 4 GiB on; where prefetchable, below as the last resort
};

/// The name that claims show: `any`, `below_4g`, `high`.
[[nodiscard]] VMSPACE_EXPORT std::string_view name_of(MmioReach reach) noexcept;

/// Addresses that a device answers, such as a BAR. Becomes a region of type device_memory.
struct MmioRange {
  std::uint64_t size;  ///< bytes; at least 1
  /// A power of two. 0: the size rounded up to one, as PCI requires, and at least 4 KiB, so that no
  /// two devices share a page; but 1 when `fixed` is not a multiple of that: it is no BAR, and may move
  /// anywhere.
  std::uint64_t align = 0;
  MmioReach reach = MmioReach::any;
  bool prefetchable = false;  ///< reading has no side effects; lies high if it can
  /// The owner of the bridge window that it lies in, when the device is behind a bridge. Empty: it
  /// lies outside of all bridge windows.
  std::string bridge = {};
  std::optional<GuestAddress> fixed = {};  ///< where it begins
  /// Known, with its size, but at no address until relocate() places it: a BAR whose decoding is
  /// off. `fixed` is then where it has been.
  bool parked = false;
  std::string name = {};  ///< of the region; empty: the owner's name

  friend bool operator==(const MmioRange&, const MmioRange&) = default;
};

/// Addresses with memory behind them: hotplug RAM, a DAX window, pmem.
struct MemoryRange {
  /// What it is. `base` must be 0; an empty `name` becomes the owner's. Its `owner` is set.
  RegionOptions region = {};
  /// A power of two; the backing's page size counts too. 0: that alone.
  std::uint64_t align = 0;
  /// The layout's aperture for it; empty: the lowest one that takes its type and has the space.
  std::string aperture = {};
  std::optional<GuestAddress> fixed = {};  ///< where it begins

  friend bool operator==(const MemoryRange&, const MemoryRange&) = default;
};

/// Addresses that a PCI bridge forwards: ranges whose `bridge` is this one's owner lie in it, and no
/// others do. It is no region: what is in no BAR is nobody's. A bridge has as many as it likes, such
/// as one that is prefetchable and one that is not.
struct BridgeWindow {
  std::uint64_t size;  ///< bytes; a multiple of 1 MiB (PCI-to-PCI Bridge Architecture, 3.2.5.8)
  std::uint64_t align = 0;  ///< a power of two, at least 1 MiB; 0: 1 MiB
  /// A window that is not prefetchable is always below 4 GiB: PCI has no upper base and limit
  /// registers for it (3.2.5.8, 3.2.5.9). `high` is an error for it.
  MmioReach reach = MmioReach::any;
  bool prefetchable = false;  ///< takes prefetchable ranges, and is tried first for them
  /// The owner of the window that it lies in, for a bridge behind one. Bridges nest 256 deep at most.
  std::string bridge = {};
  std::optional<GuestAddress> fixed = {};  ///< where it begins
  bool parked = false;  ///< at no address until relocate() places it, as MmioRange::parked

  friend bool operator==(const BridgeWindow&, const BridgeWindow&) = default;
};

/// One interrupt line.
struct LegacyIrq {
  std::optional<std::uint32_t> fixed = {};  ///< the number; unset: any
  /// Others that say so too may get the same line. An unset number takes a free line first; when
  /// there is none, the shared one with the fewest holders.
  bool shared = false;

  friend bool operator==(const LegacyIrq&, const LegacyIrq&) = default;
};

/// Consecutive interrupt numbers outside of the window for legacy ones.
struct GenericIrq {
  std::uint32_t count = 1;                  ///< at least 1
  std::optional<std::uint32_t> fixed = {};  ///< the first number

  friend bool operator==(const GenericIrq&, const GenericIrq&) = default;
};

/// A block of MSI vectors, whose first number is a multiple of the count, because the device puts
/// the vector into the low bits of the message (PCI Local Bus Specification 3.0, 6.8.1).
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

/// Consecutive numbers of memory slots.
struct KvmSlots {
  std::uint32_t count = 1;                  ///< at least 1
  std::optional<std::uint32_t> fixed = {};  ///< the first number

  friend bool operator==(const KvmSlots&, const KvmSlots&) = default;
};

/// A device number, with all its functions.
struct PciDevice {
  std::uint16_t segment = 0;
  std::optional<std::uint8_t> bus = {};     ///< unset: the lowest that has one
  std::optional<std::uint8_t> device = {};  ///< at most 31; needs a bus; unset: any

  friend bool operator==(const PciDevice&, const PciDevice&) = default;
};

/// A MAC address, as a number whose most significant of 48 bits are sent first.
struct MacAddress {
  std::optional<std::uint64_t> fixed = {};

  friend bool operator==(const MacAddress&, const MacAddress&) = default;
};

/// One thing that a device needs; its alternatives are in the order of ResourceKind.
using ResourceRequest =
    std::variant<PioRange, MmioRange, MemoryRange, BridgeWindow, LegacyIrq, GenericIrq, MsiVectors,
                 MsixVectors, KvmSlots, PciDevice, MacAddress>;

/// The kind of what a request asks for. O(1).
[[nodiscard]] inline ResourceKind kind_of(const ResourceRequest& request) noexcept {
  return static_cast<ResourceKind>(request.index());
}

}  // namespace vmspace
