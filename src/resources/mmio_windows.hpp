// SPDX-License-Identifier: Apache-2.0
//
// Where MMIO may lie: the layout's apertures, less the windows of bridges; or the windows of one
// bridge, less those of the bridges behind it.

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

#include "resources/resource_state.hpp"

namespace vmspace::detail {

/// What is asked of a place.
struct MmioPlace {
  RegionType type = RegionType::device_memory;
  std::uint64_t size = 0;
  std::uint64_t align = 1;
  MmioReach reach = MmioReach::any;
  bool prefetchable = false;
  std::string_view bridge = {};
  std::string_view aperture = {};  ///< of the layout, by name; empty: any that is for MMIO
};

/// The windows of all bridges.
///
/// A change of a window may still fail after the state's mutex was unlocked, and is undone then. Until
/// it is settled, others are offered only those addresses of the window that are in it either way.
class MmioWindows {
 public:
  /// As they are in the records, settled or not. All arguments must stay as they are for as long as
  /// this object lives.
  MmioWindows(std::span<const WindowOf> windows, const AddressSpaceLayout& layout) noexcept
      : windows_(windows), layout_(layout), takes_all_as_settled_(true) {}
  /// As they are offered to a call, which takes what it has changed itself as settled.
  MmioWindows(std::span<const WindowOf> windows, const AddressSpaceLayout& layout,
              const void* caller) noexcept
      : windows_(windows), layout_(layout), caller_(caller) {}

  /// The first free place, in the order that reach and prefetchable ask for. `not_found` without a
  /// window of the bridge, or such an aperture; `no_space`, with the largest free piece of all that
  /// were tried.
  [[nodiscard]] Result<Range> find_place(const AddressSpaceBase& space,
                                         const MmioPlace& wanted) const;

  /// Whether what is asked may lie exactly there, whatever else does: `out_of_bounds` when it is out
  /// of reach, or in no one aperture or window of its bridge; the layout's error for the place;
  /// `overlap` when it meets the window of another bridge, with that bridge's owner as the detail.
  [[nodiscard]] Result<void> check_place(const MmioPlace& wanted, Range place) const;

  /// Whether what is held may stay there: check_place(), but that a bridge without a window at an
  /// address holds nothing in place, and what a bridge has left may be anywhere.
  [[nodiscard]] Result<void> check_stay(const MmioPlace& wanted, Range place) const;

  /// Whether the place meets no window but those that the bridge is behind, itself included: the last
  /// part of check_place().
  [[nodiscard]] Result<void> check_clear(std::string_view bridge, Range place) const;

  /// Whether a bridge is the other one, or behind it.
  [[nodiscard]] bool is_behind(std::string_view bridge, const DeviceRecord& other) const noexcept;

  /// Whether the bridge has gone, or one that it is behind: what was behind it stays where it is.
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
  /// The first window of a bridge, parked or not; null when the bridge has none.
  [[nodiscard]] const HeldWindow* window_of(std::string_view bridge) const noexcept;
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

  std::span<const WindowOf> windows_;
  const AddressSpaceLayout& layout_;
  const void* caller_ = nullptr;
  bool takes_all_as_settled_ = false;
};

/// Whether all windows and regions go together: windows lie in windows of their bridges and meet no
/// others, regions likewise; and what is in the space besides, or was left by a bridge that has gone,
/// meets none of the windows in `moved`. A bridge without a window at an address holds nothing in
/// place. The error names the owner.
/// O(n log n + n w) in regions and windows.
[[nodiscard]] Result<void> check_arrangement(const AddressSpaceBase& space,
                                             std::span<const WindowOf> windows,
                                             std::vector<PlacedRegion> held,
                                             std::span<const HeldWindow* const> moved);

}  // namespace vmspace::detail
