// SPDX-License-Identifier: Apache-2.0

#include "resources/mmio_windows.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <optional>
#include <string>

#include "vmspace/base/error.hpp"
#include "vmspace/base/try.hpp"

#include "resources/acquisition.hpp"

namespace vmspace::detail {

namespace {

const Range below_4g = Range::of(0, 0xffff'ffff);
const Range above_4g = Range::of(0x1'0000'0000, std::numeric_limits<std::uint64_t>::max());

/// The parts of the address space that may be searched, the first choice first.
std::vector<Range> choices(const MmioPlace& wanted) {
  switch (wanted.reach) {
    case MmioReach::below_4g: return {below_4g};
    case MmioReach::high:
      if (!wanted.prefetchable) return {above_4g};
      return {above_4g, below_4g};
    case MmioReach::any: break;
  }
  if (wanted.prefetchable) return {above_4g, below_4g};
  return {below_4g, above_4g};
}

/// How large the largest free piece was, less one.
std::uint64_t piece_size(const Error& no_space) noexcept {
  const Operand& piece = no_space.available;
  return piece.kind == Operand::Kind::range ? piece.second - piece.first : 0;
}

/// What of `piece` is outside of the obstacles, which are in ascending order.
std::vector<Range> without(Range piece, const std::vector<Range>& obstacles) {
  std::vector<Range> rest;
  std::uint64_t from = piece.min();
  for (const Range& obstacle : obstacles) {
    if (obstacle.max() < from) continue;
    if (obstacle.min() > piece.max()) break;
    if (obstacle.min() > from) rest.push_back(unchecked_range(from, obstacle.min() - 1));
    if (obstacle.max() >= piece.max()) return rest;
    from = obstacle.max() + 1;
  }
  rest.push_back(unchecked_range(from, piece.max()));
  return rest;
}

}  // namespace

bool MmioWindows::is_behind(std::string_view bridge, const DeviceRecord& other) const noexcept {
  // Every step goes to another bridge, unless one that came back is behind itself now.
  for (std::size_t steps = 0; !bridge.empty() && steps <= windows_.size(); ++steps) {
    if (bridge == other.owner) return true;
    const auto window = std::find_if(windows_.begin(), windows_.end(), [&](const WindowOf& entry) {
      return entry.bridge->owner == bridge;
    });
    if (window == windows_.end()) return false;
    bridge = window->window->bridge;
  }
  return false;
}

bool MmioWindows::has_window(std::string_view bridge) const noexcept {
  return std::any_of(windows_.begin(), windows_.end(), [&](const WindowOf& entry) {
    return entry.bridge->owner == bridge && !entry.window->parked;
  });
}

Error MmioWindows::no_container(const MmioPlace& wanted) noexcept {
  Error error{.code = Errc::not_found};
  if (!wanted.bridge.empty()) {
    error.reason = "no bridge of this name has a window for it";
    error.text = {{}, wanted.bridge};
  } else if (!wanted.aperture.empty()) {
    error.reason = "the layout has no aperture of this name that takes it";
    error.text = {{}, wanted.aperture};
  } else {
    error.reason = "the layout has no aperture that takes it";
  }
  return error;
}

std::vector<MmioWindows::Piece> MmioWindows::containers(const MmioPlace& wanted) const {
  std::vector<Piece> pieces;
  const auto apertures = layout_.apertures();
  if (wanted.bridge.empty()) {
    for (const Aperture& aperture : apertures) {
      const bool is_meant = wanted.aperture.empty() ? aperture.takes(wanted.type) &&
                                                          aperture.use != ApertureUse::platform
                                                    : aperture.name == wanted.aperture;
      if (is_meant) pieces.push_back({aperture.range, &aperture});
    }
    return pieces;
  }
  for (const bool prefetchable : {true, false}) {
    if (prefetchable && !wanted.prefetchable) continue;
    for (const auto& [window, bridge] : windows_) {
      if (bridge->owner != wanted.bridge || window->prefetchable != prefetchable) continue;
      if (window->parked) continue;
      const auto around = std::find_if(apertures.begin(), apertures.end(),
                                       [&range = window->range](const Aperture& aperture) {
                                         return aperture.range.contains(range);
                                       });
      if (around != apertures.end()) pieces.push_back({window->range, &*around});
    }
  }
  return pieces;
}

Result<Range> MmioWindows::find_place(const AddressSpaceBase& space,
                                      const MmioPlace& wanted) const {
  const std::vector<Piece> pieces = containers(wanted);
  if (pieces.empty()) return fail(no_container(wanted));

  // Nothing lies in another bridge's window, also while one that moves away may yet come back.
  std::vector<Range> obstacles;
  if (pieces.front().aperture->use != ApertureUse::ram) {
    for (const auto& [window, bridge] : windows_) {
      if (is_behind(wanted.bridge, *bridge)) continue;
      if (!window->parked) obstacles.push_back(window->range);
      if (window->leaving) obstacles.push_back(*window->leaving);
    }
    std::sort(obstacles.begin(), obstacles.end());
  }

  std::optional<Error> failure;
  for (const Range& choice : choices(wanted)) {
    for (const Piece& piece : pieces) {
      const std::optional<Range> reachable = piece.range.intersection(choice);
      if (!reachable) continue;
      for (const Range& part : without(*reachable, obstacles)) {
        const auto place = space.find_place(
            wanted.type,
            {.size = wanted.size, .min = part.min(), .max = part.max(), .align = wanted.align},
            piece.aperture->name);
        if (place || place.error().code != Errc::no_space) return place;
        if (!failure || piece_size(place.error()) > piece_size(*failure)) failure = place.error();
      }
    }
  }
  return fail(failure.value_or(Error{.code = Errc::no_space,
                                     .first = Operand::size(wanted.size),
                                     .available = Operand::size(0),
                                     .reason = "nothing within its reach is left"}));
}

Result<void> MmioWindows::check_place(const MmioPlace& wanted, Range place) const {
  const auto outside = [&](const Range& bounds, const char* reason) {
    return fail({.code = Errc::out_of_bounds,
                 .first = operand(place),
                 .second = operand(bounds),
                 .reason = reason});
  };
  if (wanted.reach == MmioReach::below_4g && !below_4g.contains(place)) {
    return outside(below_4g, "it must lie below 4 GiB");
  }
  if (wanted.reach == MmioReach::high && !wanted.prefetchable && !above_4g.contains(place)) {
    return outside(above_4g, "it must lie at 4 GiB or above");
  }
  if (wanted.bridge.empty()) {
    const auto apertures = layout_.apertures();
    const bool in_one = std::any_of(apertures.begin(), apertures.end(), [&](const Aperture& it) {
      return it.takes(wanted.type) && it.range.contains(place);
    });
    if (!in_one) {
      return fail({.code = Errc::out_of_bounds,
                   .first = operand(place),
                   .reason = "it must lie in one aperture that takes it"});
    }
  } else {
    const std::vector<Piece> pieces = containers(wanted);
    if (pieces.empty()) return fail(no_container(wanted));
    const bool in_one = std::any_of(pieces.begin(), pieces.end(), [&](const Piece& piece) {
      return piece.range.contains(place);
    });
    if (!in_one) {
      return fail({.code = Errc::out_of_bounds,
                   .first = operand(place),
                   .second = operand(pieces.front().range),
                   .reason = "it must lie in a window of its bridge",
                   .text = {{}, wanted.bridge}});
    }
  }
  return check_clear(wanted.bridge, place);
}

Result<void> MmioWindows::check_clear(std::string_view bridge, Range place) const {
  for (const auto& [window, owner] : windows_) {
    if (window->parked || !window->range.overlaps(place)) continue;
    if (is_behind(bridge, *owner)) continue;
    return fail({.code = Errc::overlap,
                 .first = operand(place),
                 .second = operand(window->range),
                 .reason = "that is the window of a bridge",
                 .text = {{}, owner->owner}});
  }
  return {};
}

namespace {

Error about(std::string_view owner, Error error) noexcept {
  error.text = error.text.with_subject(owner);
  return error;
}

Result<void> check_nesting(std::span<const WindowOf> all, const AddressSpaceLayout& layout) {
  const MmioWindows every(all, layout);
  for (const auto& [window, owner] : all) {
    if (window->parked) continue;
    std::vector<WindowOf> others;  // less what is behind it, which may overlap it
    for (const WindowOf& other : all) {
      const bool is_behind = every.is_behind(other.window->bridge, *owner);
      if (other.window != window && !is_behind) others.push_back(other);
    }
    const MmioWindows windows(others, layout);
    const bool is_held_in_place = window->bridge.empty() || windows.has_window(window->bridge);
    const auto checked = is_held_in_place ? windows.check_place(place_of(*window), window->range)
                                          : windows.check_clear(window->bridge, window->range);
    if (!checked) return fail(about(owner->owner, checked.error()));
  }
  return {};
}

}  // namespace

Result<void> check_arrangement(const AddressSpaceBase& space, std::span<const WindowOf> all,
                               std::vector<PlacedRegion> held,
                               std::span<const HeldWindow* const> moved) {
  VMSPACE_TRY(check_nesting(all, space.layout()));
  const MmioWindows windows(all, space.layout());
  std::sort(held.begin(), held.end(),
            [](const auto& a, const auto& b) { return std::less<>()(a.region, b.region); });
  for (const AddressSpaceRegionPtr& region : space) {
    const auto entry = std::lower_bound(
        held.begin(), held.end(), region.get(),
        [](const auto& it, const auto* wanted) { return std::less<>()(it.region, wanted); });
    if (entry == held.end() || entry->region != region.get()) {
      const auto meets = [&](const HeldWindow* window) {
        return !window->parked && window->range.overlaps(region->range());
      };
      const auto window = std::find_if(moved.begin(), moved.end(), meets);
      if (window == moved.end()) continue;
      return fail({.code = Errc::overlap,
                   .first = operand((*window)->range),
                   .second = operand(region->range()),
                   .reason = "a bridge's window must not meet the region",
                   .text = {{}, region->name()}});
    }
    const std::string& bridge = entry->held->bridge;
    const auto checked = windows.has_window(bridge)
                             ? windows.check_place(place_of(*entry->held), region->range())
                             : windows.check_clear(bridge, region->range());
    if (!checked) return fail(about(entry->record->owner, checked.error()));
  }
  return {};
}

}  // namespace vmspace::detail
