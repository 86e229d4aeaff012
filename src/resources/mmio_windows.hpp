// SPDX-License-Identifier: Apache-2.0
//
// Where MMIO ranges may be placed: in the layout's apertures outside all bridge windows, or in the
// windows of one bridge outside those of the bridges behind it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/address_space/layout.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/resources/resource_request.hpp"

#include "resources/owner_table.hpp"
#include "resources/resource_state.hpp"

namespace vmspace::detail {

/// How many bridges lie within each other at most. PCI has 256 buses in a segment; and a limit keeps
/// what a hostile file can cost within bounds.
inline constexpr std::size_t max_bridge_depth = 256;

/// The constraints on a place.
struct MmioPlace {
  RegionType type = RegionType::device_memory;
  std::uint64_t size = 0;
  std::uint64_t align = 1;
  MmioReach reach = MmioReach::any;
  bool prefetchable = false;
  std::string_view bridge = {};
  std::string_view aperture =
      {};  ///< of the layout, by name; empty: any that is not for the platform
};

/// All bridge windows.
///
/// A change of a window may still fail after the state's mutex was unlocked, and is undone then. Until
/// it is settled, others are offered only those addresses of the window that are in it either way.
class MmioWindows {
 public:
  /// As they are in the records, settled or not. All arguments must stay as they are for as long as
  /// this object lives.
  MmioWindows(const OwnerTable& owners, std::span<const WindowOf> windows,
              const AddressSpaceLayout& layout) noexcept
      : owners_(owners), windows_(windows), layout_(layout), takes_all_as_settled_(true) {}
  /// As they are offered to a call, which takes what it has changed itself as settled.
  MmioWindows(const OwnerTable& owners, std::span<const WindowOf> windows,
              const AddressSpaceLayout& layout, const void* caller) noexcept
      : owners_(owners), windows_(windows), layout_(layout), caller_(caller) {}

  /// The first free place, in the order that reach and prefetchable ask for; the space learns from the
  /// search. `not_found` without a window of the bridge, or such an aperture; `no_space`, with the
  /// largest free piece of all that were tried.
  [[nodiscard]] Result<Range> choose_place(AddressSpaceBase& space, const MmioPlace& wanted) const;

  /// Whether what is asked may lie exactly there, whatever else does: `out_of_bounds` when it is out
  /// of reach, or in no one aperture or window of its bridge; the layout's error for the place;
  /// `overlap` when it meets the window of another bridge, with that bridge's owner as the detail.
  [[nodiscard]] Result<void> check_place(const MmioPlace& wanted, Range place) const;

  /// Whether a range that is already held may stay: like check_place(), but a bridge whose windows
  /// are all parked imposes no limits, and a range whose bridge is gone may be anywhere.
  [[nodiscard]] Result<void> check_stay(const MmioPlace& wanted, Range place) const;
  /// The first part of check_stay(): without what the place may meet.
  [[nodiscard]] Result<void> check_stay_within(const MmioPlace& wanted, Range place) const;

  /// Whether the place overlaps no window except those of the bridge and its ancestors: the last
  /// part of check_place().
  [[nodiscard]] Result<void> check_clear(std::string_view bridge, Range place) const;
  /// Whether `may_meet(WindowOf)`, an element of the windows, holds for all windows that the place
  /// meets; the error is check_clear()'s.
  template <typename MayMeet>
  [[nodiscard]] Result<void> check_clear_but(Range place, MayMeet may_meet) const {
    for (const WindowOf& entry : windows_) {
      const std::optional<Range> there = taken_by(*entry.window, place);
      if (!there || may_meet(entry)) continue;
      return fail({.code = Errc::overlap,
                   .first = operand(place),
                   .second = operand(*there),
                   .reason = "that is a bridge window of",
                   .text = {{}, entry.bridge->owner}});
    }
    return {};
  }

  /// The bridge, and those that it is behind, as far as they have windows; in the order of std::less.
  /// O(n log n) in them; allocates.
  [[nodiscard]] std::vector<const DeviceRecord*> bridges_around(std::string_view bridge) const;
  /// How many bridges there are between them: 0 when the bridge is the other one, 1 when it is behind
  /// the other one. Empty when it is neither, nor behind such a one. O(n) in them.
  [[nodiscard]] std::optional<std::size_t> depth_below(std::string_view bridge,
                                                       const DeviceRecord& other) const noexcept;
  /// Whether a bridge is the other one, or behind it.
  [[nodiscard]] bool is_behind(std::string_view bridge, const DeviceRecord& other) const noexcept {
    return depth_below(bridge, other).has_value();
  }

  /// Whether the bridge, or one of its ancestors, no longer exists.
  [[nodiscard]] bool is_left(std::string_view bridge) const noexcept;

  /// Whether the bridge has a window at an address, or may come to have one.
  [[nodiscard]] bool has_window(std::string_view bridge) const noexcept;

 private:
  /// Pieces of the address space that may be searched, in one aperture.
  struct Piece {
    Range range;
    const Aperture* aperture;
    bool prefetchable = false;  ///< of a bridge's window
  };

  /// Whether the place is within reach, in one aperture or window of its bridge, and allowed by the
  /// layout: the first part of check_place().
  [[nodiscard]] Result<void> check_within(const MmioPlace& wanted, Range place) const;
  /// The owner of this name, if it has windows; null otherwise. O(1).
  [[nodiscard]] const DeviceRecord* bridge_of(std::string_view name) const noexcept;
  /// What the window has, or may have, of the place; empty when it has nothing.
  [[nodiscard]] static std::optional<Range> taken_by(const HeldWindow& window,
                                                     Range place) noexcept;
  /// The aperture that contains the place; null when none does.
  [[nodiscard]] const Aperture* aperture_around(Range place) const noexcept;
  [[nodiscard]] std::vector<Piece> containers(const MmioPlace& wanted) const;
  [[nodiscard]] bool is_settled(const HeldWindow& window) const noexcept {
    return takes_all_as_settled_ || window.unsettled_by == nullptr ||
           window.unsettled_by == caller_;
  }
  /// The addresses of a window that are in it whether or not its change is undone.
  [[nodiscard]] std::optional<Range> offered(const HeldWindow& window) const noexcept;
  /// The error of a bridge or an aperture that is not there.
  [[nodiscard]] static Error no_container(const MmioPlace& wanted) noexcept;

  const OwnerTable& owners_;
  std::span<const WindowOf> windows_;
  const AddressSpaceLayout& layout_;
  const void* caller_ = nullptr;
  bool takes_all_as_settled_ = false;
};

/// Checks a complete arrangement: every window and region behind a bridge is within one of its windows,
/// no other range overlaps them, and regions that are not behind any bridge, or whose bridge is gone,
/// overlap none of the windows in `moved`. A bridge whose windows are all parked imposes no limits. The
/// error names the owner. O(n log n + n w) in regions and windows.
[[nodiscard]] Result<void> check_arrangement(const AddressSpaceBase& space,
                                             const OwnerTable& owners,
                                             std::span<const WindowOf> windows,
                                             std::vector<PlacedRegion> held,
                                             std::span<const HeldWindow* const> moved);

}  // namespace vmspace::detail
