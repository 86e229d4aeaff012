// SPDX-License-Identifier: Apache-2.0
//
// What each part of a machine's guest physical space may be used for, before anything is there.
//
// A machine dictates a frame: how far its addresses reach, where RAM may lie, which windows belong
// to devices, which addresses nobody may use. An AddressSpaceLayout is that frame, checked once;
// an AddressSpaceBase then refuses every region that does not fit it. It also plans where RAM goes,
// because RAM is what has to be laid around everything else:
//
//   auto layout = AddressSpaceLayout::x86_64({.phys_bits = 46});
//   auto plan = layout->plan_ram({6_GiB});  // [0, 3 GiB) and [4 GiB, 7 GiB)

#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// Which regions an aperture takes. Firmware may lie in every one.
enum class ApertureUse : std::uint8_t {
  ram,       ///< RAM
  mmio,      ///< device and DAX regions; where device regions are placed
  platform,  ///< devices at fixed addresses (APIC, HPET, ECAM); boot tables say reserved
};

/// The name that the memory map shows: `ram window`, `mmio window`, `platform window`.
[[nodiscard]] VMSPACE_EXPORT std::string_view name_of(ApertureUse use) noexcept;

/// A window of the guest physical space with one purpose.
struct VMSPACE_EXPORT Aperture {
  std::string name;  ///< unique in a layout, not empty
  Range range;       ///< its addresses, both ends inclusive
  ApertureUse use;   ///< what it is for

  /// Whether regions of this type may lie inside.
  [[nodiscard]] bool takes(RegionType type) const noexcept;

  friend bool operator==(const Aperture&, const Aperture&) = default;
};

/// What a boot table says of a hole.
enum class HoleKind : std::uint8_t {
  unused,    ///< nothing answers there: in no boot table
  reserved,  ///< the machine uses it itself: listed as reserved, so that a guest keeps off
};

/// Addresses where no region may lie.
struct Hole {
  std::string name;                    ///< for messages and the memory map
  Range range;                         ///< its addresses, both ends inclusive
  HoleKind kind = HoleKind::reserved;  ///< what a boot table says of it

  friend bool operator==(const Hole&, const Hole&) = default;
};

/// The parts of a layout; an aggregate for designated initialisers.
struct LayoutOptions {
  std::uint64_t phys_max;         ///< the last guest physical address (inclusive: up to 2^64-1)
  std::optional<Range> ram = {};  ///< where RAM may lie; unset: nowhere
  std::vector<Aperture> apertures = {};  ///< in any order; none overlap
  std::vector<Hole> holes = {};          ///< none overlap; each inside one aperture, or in none
};

/// The parameters of a PC; an aggregate for designated initialisers.
struct X86LayoutOptions {
  /// Bits of a guest physical address, 36 to 52: the lower of what the host has
  /// (CPUID.80000008H:EAX[7:0]) and what the VMM tells its guest.
  unsigned phys_bits;
  /// Buses of PCI configuration space (ECAM), 1 MiB each, from 0xC000'0000; at most 256; 0: none.
  unsigned ecam_buses = 0;
  /// Leave out [0xFD'0000'0000, 0xFF'FFFF'FFFF], which AMD processors use for HyperTransport.
  bool amd_hole = true;
  /// Where RAM must end, exclusive; at least 4 GiB. Unset: half of the space; the rest is for
  /// devices.
  std::optional<std::uint64_t> mem_end = {};
};

/// The parameters of an Arm machine; an aggregate for designated initialisers.
struct Aarch64LayoutOptions {
  /// Bits of an intermediate physical address, 32 to 52 (KVM_VM_TYPE_ARM_IPA_SIZE).
  unsigned ipa_bits;
  /// Buses of PCI configuration space (ECAM), 1 MiB each, from 0x1000'0000; at most 256; 0: none.
  unsigned ecam_buses = 0;
  /// Where RAM must end, exclusive; at least a page above 1 GiB. Unset: half of the space; the rest
  /// is for devices.
  std::optional<std::uint64_t> mem_end = {};
};

/// A run of RAM that a plan places.
struct RamPiece {
  GuestAddress base;   ///< the first address
  std::uint64_t size;  ///< bytes
  std::uint32_t node;  ///< the guest's NUMA node: the index into the sizes that were planned

  friend bool operator==(const RamPiece&, const RamPiece&) = default;
};

/// The frame of a guest physical address space.
///
/// Invariant: the range for RAM, apertures and holes end at phys_max or before. Apertures and holes
/// are sorted by address; no two apertures overlap, no two holes do, and a hole lies inside one
/// aperture or outside all. Apertures for RAM lie within the range for RAM. Aperture names are
/// unique and not empty.
///
/// A value, immutable once made: safe to read from any thread. One that was moved from may only be
/// assigned to or destroyed.
class VMSPACE_EXPORT AddressSpaceLayout {
 public:
  /// A layout from its parts. Errors, which name the aperture or hole: `out_of_bounds` when the
  /// range for RAM, an aperture or a hole reaches past phys_max, or an aperture for RAM out of the
  /// range for RAM; `overlap` when two apertures or two holes overlap, or a hole crosses the edge
  /// of an aperture; `invalid_argument` when an aperture's name is empty or taken, or a use or a
  /// kind is not a named value. O((apertures + holes)^2).
  [[nodiscard]] static Result<AddressSpaceLayout> make(LayoutOptions options);

  /// A PC: RAM from 0 to 3 GiB (`ram_low`) and from 4 GiB to mem_end (`ram_high`); between them the
  /// MMIO hole: `ecam` if asked for, `mmio_low`, and from 0xFC00'0000 `platform` (I/O APIC, HPET,
  /// local APIC, TSS, firmware); `mmio_high` from mem_end on; the hole `hypertransport`, unless it
  /// is switched off or the space ends below it. Errors: `invalid_argument` for bits, buses or a
  /// mem_end outside of what the options allow; `misaligned` when mem_end is not a multiple of 4
  /// KiB; `overlap` when mem_end lies inside the hypertransport hole. O(1).
  ///
  /// Sources: Intel SDM vol. 3, chapter "Advanced Programmable Interrupt Controller" (0xFEE0'0000);
  /// AMD I/O Virtualization Technology (IOMMU) Specification, 2.1.2, table "Special Address
  /// Controls (GPA)" (HyperTransport).
  [[nodiscard]] static Result<AddressSpaceLayout> x86_64(const X86LayoutOptions& options);

  /// An Arm machine with its devices below RAM: `platform` from 0 to 256 MiB (flash, GIC, UART),
  /// then `ecam` if asked for, `mmio_low` up to 1 GiB, `ram` to mem_end, and `mmio_high` from
  /// there. Errors: `invalid_argument` for bits, buses or a mem_end outside of what the options
  /// allow; `misaligned` when mem_end is not a multiple of 4 KiB. O(1).
  [[nodiscard]] static Result<AddressSpaceLayout> aarch64(const Aarch64LayoutOptions& options);

  /// Copies are independent; when assigning finds no memory, the layout is as it was.
  AddressSpaceLayout(const AddressSpaceLayout&) = default;
  AddressSpaceLayout(AddressSpaceLayout&&) noexcept = default;
  /// As copying; when it finds no memory, the layout is as it was.
  AddressSpaceLayout& operator=(const AddressSpaceLayout& other) {
    return *this = AddressSpaceLayout(other);
  }
  AddressSpaceLayout& operator=(AddressSpaceLayout&&) noexcept = default;
  ~AddressSpaceLayout() = default;

  /// The last guest physical address, inclusive.
  [[nodiscard]] std::uint64_t phys_max() const noexcept { return phys_max_; }
  /// Where RAM may lie; nothing when it may lie nowhere.
  [[nodiscard]] std::optional<Range> ram_range() const noexcept { return ram_; }
  /// The apertures, in address order.
  [[nodiscard]] std::span<const Aperture> apertures() const noexcept { return apertures_; }
  /// The holes, in address order.
  [[nodiscard]] std::span<const Hole> holes() const noexcept { return holes_; }
  /// The aperture of this name; null when there is none. Lives as long as the layout.
  [[nodiscard]] const Aperture* find_aperture(std::string_view name) const noexcept;

  /// Whether a region of this type may lie at `range`. RAM lies within ram_range() and meets no
  /// aperture for anything else. Others lie inside one aperture that takes them or meet none, and
  /// then device and DAX regions lie above ram_range(). Errors: `out_of_bounds` when it lies
  /// outside of that, or crosses the edge of an aperture; `overlap` when it meets a hole, or an
  /// aperture for something else. Both name the other range, and the aperture or hole.
  /// `invalid_argument` when `type` is not a named value. O(apertures + holes).
  [[nodiscard]] Result<void> check_place(RegionType type, const Range& range) const;

  /// Where the RAM of a machine goes whose NUMA nodes have these sizes: pieces in address order,
  /// of whole pages of 4 KiB, filling what of ram_range() is neither hole nor aperture for anything
  /// else from the bottom up, node by node. A node that does not fit below a hole is split there,
  /// unless less than 128 MiB is left: then it begins above, because a sliver would cost a region,
  /// and a KVM memory slot, for little. Where the RAM would not fit so, no sliver is left out.
  /// Errors, each naming the node: `invalid_argument` without one; `zero_size`; `misaligned` when a
  /// size is not a multiple of 4 KiB; `no_space` when the node does not fit.
  [[nodiscard]] Result<std::vector<RamPiece>> plan_ram(std::span<const std::uint64_t> sizes) const;
  /// As above, for sizes that are written in braces.
  [[nodiscard]] Result<std::vector<RamPiece>> plan_ram(
      std::initializer_list<std::uint64_t> sizes) const {
    return plan_ram(std::span(sizes.begin(), sizes.size()));
  }

  friend bool operator==(const AddressSpaceLayout&, const AddressSpaceLayout&) = default;

 private:
  explicit AddressSpaceLayout(LayoutOptions options) noexcept
      : phys_max_(options.phys_max),
        ram_(options.ram),
        apertures_(std::move(options.apertures)),
        holes_(std::move(options.holes)) {}

  std::uint64_t phys_max_;
  std::optional<Range> ram_;
  std::vector<Aperture> apertures_;
  std::vector<Hole> holes_;
};

}  // namespace vmspace
