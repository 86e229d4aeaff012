// SPDX-License-Identifier: Apache-2.0
//
// Where everything that a machine is configured with goes in its guest physical space.
//
// Guest physical addresses are an ABI: a snapshot, a migration peer and a guest's own tables hold
// them for years. So a plan is a function of the frame and of the requests alone, never of the host,
// and its rule does not change:
//
//   auto plan = plan_layout(frame, {{.name = "rom", .kind = PlacementKind::fixed, .size = 2_MiB,
//                                    .base = GuestAddress(0xffe0'0000)},
//                                   {.name = "ram", .kind = PlacementKind::ram, .size = 6_GiB},
//                                   {.name = "bars", .kind = PlacementKind::mmio64, .size = 64_GiB}});
//
// The rule:
//
//  1. `reserve` and `fixed` are where they say.
//  2. RAM fills what is left of where the frame allows RAM from the bottom up, in the order asked,
//     each request above the one before. A piece begins at a multiple of the request's alignment,
//     and every piece but the last is a multiple of it in size. Where a request does not end below an
//     obstacle and less than 128 MiB is left there, it begins above: a sliver would cost a region, and
//     a KVM memory slot, for little. Should the RAM not fit so, no sliver is left out.
//  3. MMIO is placed by alignment, the largest first, then by size, the largest first, then in the
//     order asked; each at the lowest place of its windows that is left. `mmio32` lies below 4 GiB,
//     `mmio64` at 4 GiB or above. The windows are the frame's apertures for MMIO and whatever is
//     neither in an aperture nor below the end of the range for RAM; nothing crosses an edge.
//
// RAM and MMIO never compete for an address, because the frame tells them apart. So MMIO requests
// never move RAM, and more RAM never moves MMIO. Among MMIO, a new request may move those that are
// placed after it: smaller alignment, or as much and no larger. Devices that come and go belong in
// a window that is planned once, and get their addresses there from AddressSpace::place_region.
//
// How others lay out the same machines:
//
// | rule                | vmspace           | OpenVMM           | QEMU q35          | Cloud Hypervisor  |
// |---------------------|-------------------|-------------------|-------------------|-------------------|
// | fixed ranges        | first             | first             | constants         | constants         |
// | then                | RAM               | 32-bit MMIO       | RAM               | RAM               |
// | RAM below 4 GiB     | to 3 GiB (frame)  | what MMIO leaves  | 2 GiB, or less    | to 3 GiB          |
// |                     |                   |                   | than 2.75 GiB     |                   |
// | RAM goes on at      | 4 GiB             | next free place   | 4 GiB             | 4 GiB             |
// | a new device moves  | no RAM            | RAM, if 32-bit    | no RAM            | no RAM            |
// | order of MMIO       | alignment, size   | alignment, size   | firmware's        | first come        |
// | 32-bit MMIO         | from the bottom   | from the top      | firmware's        | from the bottom   |
// | 64-bit MMIO begins  | at a fixed end of | at the end of RAM | after RAM and     | after RAM and     |
// |                     | RAM (the frame's) |                   | hotplugged RAM    | hotplugged RAM    |
//
// Where ours differs: OpenVMM packs 32-bit MMIO before RAM, which uses every address below 4 GiB but
// lets a new device move RAM. QEMU keeps 2 GiB below 4 GiB so that the rest begins at a gigabyte,
// which 3 GiB does as well; a frame with an MMIO aperture from 2 GiB gives QEMU's addresses. All three
// begin 64-bit MMIO where RAM ends, which needs fewer physical address bits, but moves every device
// when RAM grows; a frame's mem_end does the same for whoever wants it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/address_space/layout.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// How a request is placed.
enum class PlacementKind : std::uint8_t {
  reserve,  ///< keeps everything off the addresses it names; may cover holes and edges of apertures
  fixed,    ///< lies where it says: firmware, ECAM, an interrupt controller
  ram,      ///< where the frame allows RAM; may be split
  mmio32,   ///< below 4 GiB, in one piece
  mmio64,   ///< at 4 GiB or above, in one piece
};

/// The enumerator's name: `mmio32`.
[[nodiscard]] VMSPACE_EXPORT std::string_view name_of(PlacementKind kind) noexcept;

/// One thing to be placed; an aggregate for designated initialisers.
struct PlacementRequest {
  std::string name;  ///< unique among the requests, not empty
  PlacementKind kind;
  std::uint64_t size;  ///< bytes; for RAM a multiple of 4 KiB
  /// A power of two that every piece begins at a multiple of; at least 4 KiB for RAM. 0: the rule's,
  /// which is 1 GiB for RAM of 1 GiB or more and 2 MiB for less, so that it can be mapped by pages
  /// of that size; 4 KiB for MMIO, so that no two share a page of the guest's; 1 for the others.
  std::uint64_t align = 0;
  GuestAddress base = {};  ///< for `reserve` and `fixed`; others leave it 0
  std::uint32_t node = 0;  ///< the guest's NUMA node, for RAM; others leave it 0

  friend bool operator==(const PlacementRequest&, const PlacementRequest&) = default;
};

/// Where a request went.
struct Placement {
  std::string name;
  PlacementKind kind;
  std::vector<GuestRange> pieces;  ///< in address order; one, unless RAM was split
  std::uint32_t node = 0;

  friend bool operator==(const Placement&, const Placement&) = default;
};

/// A piece of a plan, and the index of its placement.
struct PlannedPiece {
  GuestRange range;
  std::size_t placement;

  friend bool operator==(const PlannedPiece&, const PlannedPiece&) = default;
};

/// What plan_layout() gives.
struct LayoutPlan {
  std::vector<Placement> placements;  ///< one a request, in the order asked
  std::vector<PlannedPiece> pieces;   ///< of all placements, in address order; none overlap

  friend bool operator==(const LayoutPlan&, const LayoutPlan&) = default;
};

/// Places all requests in the frame by the rule above, or none. Errors name the request, its kind and
/// its index. Of a request by itself: `invalid_argument` when its name is empty or taken, its kind is
/// none of the enumerators, or it has a base or a node that its kind does not take; `zero_size`;
/// `bad_alignment` for an alignment that is not a power of two; `misaligned` when RAM's size or
/// alignment is not a multiple of 4 KiB, or the base is not a multiple of the alignment. Of `reserve`
/// and `fixed`: `overflow` when it passes 2^64; `out_of_bounds` past the end of the frame;
/// `overlap` with another one, which is named as well; and for `fixed`, `overlap` with a hole, and
/// `out_of_bounds` across the edge of an aperture. `no_space` when RAM or MMIO does not fit, with
/// the largest piece that is left as what is available.
///
/// A pure function; may be called from any thread. O(n log n) in requests, apertures and holes, where
/// MMIO requests are aligned to their size.
[[nodiscard]] VMSPACE_EXPORT Result<LayoutPlan> plan_layout(
    const AddressSpaceLayout& frame, std::span<const PlacementRequest> requests);
[[nodiscard]] inline Result<LayoutPlan> plan_layout(
    const AddressSpaceLayout& frame, std::initializer_list<PlacementRequest> requests) {
  return plan_layout(frame, std::span(requests.begin(), requests.size()));
}

}  // namespace vmspace
