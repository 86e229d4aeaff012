// SPDX-License-Identifier: Apache-2.0
//
// Plans where everything in a machine's configuration is placed in its guest physical address
// space.
//
// Guest physical addresses are an ABI: a snapshot, a migration peer and a guest's own tables hold
// them for years. So a plan is a function of the frame and of the requests alone, never of the
// host, and its rule does not change:
//
//   auto plan = plan_layout(
//       frame, {{.name = "rom", .kind = PlacementKind::fixed, .size = 2_MiB, .base = rom_base},
//               {.name = "ram", .kind = PlacementKind::ram, .size = 6_GiB},
//               {.name = "bars", .kind = PlacementKind::mmio64, .size = 64_GiB}});
//
// The rule:
//
//  1. `reserve` and `fixed` requests are placed at their `base`.
//  2. RAM fills the remaining space in which the frame allows RAM from the bottom up, in request order,
//     each request above the previous one. Every piece begins at a multiple of the request's alignment,
//     and every piece but the last is a multiple of it in size. If a split would leave a piece of less
//     than 128 MiB below a gap, the request starts above the gap instead: so small a piece is not worth
//     a region and a KVM memory slot. If the RAM does not fit otherwise, small pieces are used after all.
//  3. MMIO requests are placed in descending order of alignment, then of size, then in request order.
//     Each takes the lowest place left in the frame's apertures for MMIO: `mmio32` below 4 GiB, `mmio64`
//     at or above it. Nothing crosses the edge of an aperture.
//
// RAM and MMIO never compete for an address, because the frame tells them apart: adding a device
// never moves RAM, and adding RAM never moves a device. A new MMIO request may move those that are
// placed after it, by step 3. Hot-pluggable devices therefore belong in a window that is planned
// once; ResourceManager or AddressSpace::place_region assigns their addresses within it.
//
// The frame is configuration too: taking phys_bits from the host makes the host decide where the
// windows above RAM begin. README.md compares the rule with those of other VMMs.

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
  reserve,  ///< keeps a range free; may cover holes and span apertures
  fixed,    ///< placed at `base`: firmware, ECAM, an interrupt controller
  ram,      ///< where the frame allows RAM; may be split
  mmio32,   ///< below 4 GiB, in one piece
  mmio64,   ///< at 4 GiB or above, in one piece
};

/// The enumerator's name: `mmio32`.
[[nodiscard]] VMSPACE_EXPORT std::string_view name_of(PlacementKind kind) noexcept;

/// One thing to be placed; an aggregate for designated initialisers.
struct PlacementRequest {
  std::string name;    ///< unique among the requests, not empty
  PlacementKind kind;  ///< which rule places it
  std::uint64_t size;  ///< bytes; for RAM a multiple of 4 KiB
  /// A power of two, of which the base of every piece is a multiple; at least 4 KiB for RAM.
  /// 0: the rule's, which is 1 GiB for RAM of 1 GiB or more and 2 MiB for less, so that a host can
  /// map it with pages of that size; 4 KiB for MMIO, so that no two share a guest's page; else 1.
  std::uint64_t align = 0;
  GuestAddress base = {};  ///< for `reserve` and `fixed`; others leave it 0
  std::uint32_t node = 0;  ///< the guest's NUMA node, for RAM; others leave it 0

  friend bool operator==(const PlacementRequest&, const PlacementRequest&) = default;
};

/// Where a request went.
struct Placement {
  std::string name;                ///< the request's
  PlacementKind kind;              ///< the request's
  std::vector<GuestRange> pieces;  ///< in address order; one, unless RAM was split
  std::uint32_t node = 0;          ///< the request's

  friend bool operator==(const Placement&, const Placement&) = default;
};

/// One contiguous piece of a plan.
struct PlannedPiece {
  GuestRange range;       ///< its addresses
  std::size_t placement;  ///< index of its placement

  friend bool operator==(const PlannedPiece&, const PlannedPiece&) = default;
};

/// The result of plan_layout().
struct LayoutPlan {
  std::vector<Placement> placements;  ///< one for each request, in the order asked
  std::vector<PlannedPiece> pieces;   ///< of all placements, in address order; none overlap

  friend bool operator==(const LayoutPlan&, const LayoutPlan&) = default;
};

/// Places all requests in the frame by the rule above, or none.
///
/// Errors name the request by kind, name and index. For any request: `invalid_argument` when its
/// name is empty or not unique, its kind is not a named value, or it sets a base or node that its
/// kind does not take; `zero_size`; `bad_alignment` when the alignment is not a power of two. For
/// `reserve` and `fixed`: `misaligned` when the base is not a multiple of the alignment; `overflow`
/// when it passes 2^64; `out_of_bounds` when it passes the end of the frame; `overlap` when it
/// overlaps another request, which is named too. For `fixed` also `overlap` when it meets a hole,
/// and `out_of_bounds` when it crosses the edge of an aperture. For RAM: `misaligned` when its size
/// or alignment is not a multiple of 4 KiB. For RAM and MMIO: `no_space` when it does not fit, with
/// the largest piece that was left for it as what is available.
///
/// May be called from any thread. O(n log n) in requests, apertures and holes, but an MMIO request
/// may look at every piece that is free, see IntervalTree::allocate.
[[nodiscard]] VMSPACE_EXPORT Result<LayoutPlan> plan_layout(
    const AddressSpaceLayout& frame, std::span<const PlacementRequest> requests);
/// As above, for requests that are written in braces.
[[nodiscard]] inline Result<LayoutPlan> plan_layout(
    const AddressSpaceLayout& frame, std::initializer_list<PlacementRequest> requests) {
  return plan_layout(frame, std::span(requests.begin(), requests.size()));
}

}  // namespace vmspace
