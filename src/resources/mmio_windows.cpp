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

/// The parts of the address space to search, in order. The last one is everything, so that a range
/// may straddle 4 GiB.
std::vector<Range> choices(const MmioPlace& wanted) {
  if (wanted.prefetchable && wanted.reach != MmioReach::below_4g) {
    return {above_4g, Range::whole_domain()};
  }
  switch (wanted.reach) {
    case MmioReach::below_4g: return {below_4g};
    case MmioReach::high: return {above_4g};
    case MmioReach::any: break;
  }
  return {below_4g, Range::whole_domain()};
}

/// The size of the largest free piece, minus one.
std::uint64_t piece_size(const Error& no_space) noexcept {
  const Operand& piece = no_space.available;
  return piece.kind == Operand::Kind::range ? piece.second - piece.first : 0;
}

/// The parts of `piece` outside the obstacles, which are sorted.
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

const DeviceRecord* MmioWindows::bridge_of(std::string_view name) const noexcept {
  if (name.empty()) return nullptr;
  const DeviceRecord* const owner = owners_.find(name);
  return owner == nullptr || owner->windows.empty() ? nullptr : owner;
}

std::vector<const DeviceRecord*> MmioWindows::bridges_around(std::string_view bridge) const {
  std::vector<const DeviceRecord*> around;
  while (const DeviceRecord* const owner = bridge_of(bridge)) {
    around.push_back(owner);
    bridge = owner->windows.front().bridge;
  }
  std::ranges::sort(around, std::less<>());
  return around;
}

std::optional<std::size_t> MmioWindows::depth_below(std::string_view bridge,
                                                    const DeviceRecord& other) const noexcept {
  std::size_t depth = 0;
  while (bridge != other.owner) {
    const DeviceRecord* const owner = bridge_of(bridge);
    if (owner == nullptr) return std::nullopt;
    ++depth;
    bridge = owner->windows.front().bridge;
  }
  return depth;
}

bool MmioWindows::is_left(std::string_view bridge) const noexcept {
  while (!bridge.empty()) {
    const DeviceRecord* const owner = bridge_of(bridge);
    if (owner == nullptr) return true;
    bridge = owner->windows.front().bridge;
  }
  return false;
}

bool MmioWindows::has_window(std::string_view bridge) const noexcept {
  const DeviceRecord* const owner = bridge_of(bridge);
  return owner != nullptr && std::ranges::any_of(windows_, [&](const WindowOf& entry) {
           const HeldWindow& window = *entry.window;
           return entry.bridge == owner &&
                  (!window.parked || (window.leaving && !is_settled(window)));
         });
}

std::optional<Range> MmioWindows::taken_by(const HeldWindow& window, Range place) noexcept {
  if (window.leaving && window.leaving->overlaps(place)) return window.leaving;
  if (!window.parked && window.range.overlaps(place)) return window.range;
  return std::nullopt;
}

std::optional<Range> MmioWindows::offered(const HeldWindow& window) const noexcept {
  if (window.parked) return std::nullopt;
  if (is_settled(window)) return window.range;
  return window.leaving ? window.range.intersection(*window.leaving) : std::nullopt;
}

Error MmioWindows::no_container(const MmioPlace& wanted) noexcept {
  Error error{.code = Errc::not_found};
  if (!wanted.bridge.empty()) {
    error.reason = "no bridge with this owner name has a mapped window for such a range";
    error.text = {{}, wanted.bridge};
  } else if (!wanted.aperture.empty()) {
    error.reason = "the layout has no aperture with this name that accepts this type of region";
    error.text = {{}, wanted.aperture};
  } else {
    error.reason = "the layout has no aperture that accepts this type of region";
  }
  return error;
}

const Aperture* MmioWindows::aperture_around(Range place) const noexcept {
  const auto apertures = layout_.apertures();
  const auto around = std::ranges::find_if(
      apertures, [&](const Aperture& aperture) { return aperture.range.contains(place); });
  return around == apertures.end() ? nullptr : &*around;
}

std::vector<MmioWindows::Piece> MmioWindows::containers(const MmioPlace& wanted) const {
  std::vector<Piece> pieces;
  if (wanted.bridge.empty()) {
    for (const Aperture& aperture : layout_.apertures()) {
      const bool is_meant = wanted.aperture.empty() ? aperture.use != ApertureUse::platform
                                                    : aperture.name == wanted.aperture;
      if (is_meant && aperture.takes(wanted.type)) pieces.push_back({aperture.range, &aperture});
    }
    return pieces;
  }
  const DeviceRecord* const owner = bridge_of(wanted.bridge);
  for (const bool prefetchable : {true, false}) {
    if (prefetchable && !wanted.prefetchable) continue;
    for (const auto& [window, bridge] : windows_) {
      if (bridge != owner || window->prefetchable != prefetchable) continue;
      const std::optional<Range> range = offered(*window);
      const Aperture* const around = range ? aperture_around(*range) : nullptr;
      const bool is_meant =
          around != nullptr && (wanted.aperture.empty() || around->name == wanted.aperture);
      if (is_meant) pieces.push_back({*range, around, prefetchable});
    }
  }
  return pieces;
}

Result<Range> MmioWindows::choose_place(AddressSpaceBase& space, const MmioPlace& wanted) const {
  const std::vector<Piece> pieces = containers(wanted);
  if (pieces.empty()) return fail(no_container(wanted));

  // No range is placed in another bridge's window, nor in the old place of a window whose move may
  // still be undone.
  std::vector<Range> obstacles;
  const bool may_meet_windows = std::ranges::any_of(
      pieces, [](const Piece& piece) { return piece.aperture->use != ApertureUse::ram; });
  if (may_meet_windows) {
    const std::vector<const DeviceRecord*> around = bridges_around(wanted.bridge);
    for (const auto& [window, bridge] : windows_) {
      if (std::ranges::binary_search(around, bridge, std::less<>())) continue;
      if (!window->parked) obstacles.push_back(window->range);
      if (window->leaving) obstacles.push_back(*window->leaving);
    }
    std::sort(obstacles.begin(), obstacles.end());
  }

  // A prefetchable range tries prefetchable windows first.
  std::vector<Piece> reachable;
  for (const bool prefetchable : {true, false}) {
    for (const Range& choice : choices(wanted)) {
      for (const Piece& piece : pieces) {
        const std::optional<Range> part = piece.range.intersection(choice);
        if (part && piece.prefetchable == prefetchable)
          reachable.push_back({*part, piece.aperture});
      }
    }
  }

  std::optional<Error> failure;
  for (const Piece& piece : reachable) {
    for (const Range& part : without(piece.range, obstacles)) {
      const auto place = space.choose_place(
          wanted.type,
          {.size = wanted.size, .min = part.min(), .max = part.max(), .align = wanted.align},
          piece.aperture->name);
      if (place || place.error().code != Errc::no_space) return place;
      if (!failure || piece_size(place.error()) > piece_size(*failure)) failure = place.error();
    }
  }
  return fail(failure.value_or(
      Error{.code = Errc::no_space,
            .first = Operand::size(wanted.size),
            .available = Operand::size(0),
            .reason = "no free space within the requested part of the address space"}));
}

Result<void> MmioWindows::check_within(const MmioPlace& wanted, Range place) const {
  const auto outside = [&](const Range& bounds, const char* reason) {
    return fail({.code = Errc::out_of_bounds,
                 .first = operand(place),
                 .second = operand(bounds),
                 .reason = reason});
  };
  if (wanted.reach == MmioReach::below_4g && !below_4g.contains(place)) {
    return outside(below_4g, "the range must be below 4 GiB");
  }
  if (wanted.reach == MmioReach::high && !wanted.prefetchable && !above_4g.contains(place)) {
    return outside(above_4g, "the range must be at or above 4 GiB");
  }
  if (!wanted.bridge.empty()) {
    const std::vector<Piece> pieces = containers(wanted);
    if (pieces.empty()) return fail(no_container(wanted));
    const bool in_one = std::ranges::any_of(
        pieces, [&](const Piece& piece) { return piece.range.contains(place); });
    if (!in_one) {
      return fail({.code = Errc::out_of_bounds,
                   .first = operand(place),
                   .second = operand(pieces.front().range),
                   .reason = "the range must be within a window of its bridge",
                   .text = {{}, wanted.bridge}});
    }
  } else if (wanted.type != RegionType::default_memory || !wanted.aperture.empty()) {
    // RAM without an aperture lies wherever the layout has RAM, also beside apertures.
    const Aperture* const around = aperture_around(place);
    const bool in_one = around != nullptr && around->takes(wanted.type) &&
                        (wanted.aperture.empty() || around->name == wanted.aperture);
    if (!in_one && !wanted.aperture.empty() && containers(wanted).empty()) {
      return fail(no_container(wanted));
    }
    if (!in_one) {
      return fail(
          {.code = Errc::out_of_bounds,
           .first = operand(place),
           .reason = "the range must be within a single aperture that accepts this type of region",
           .text = {{}, wanted.aperture}});
    }
  }
  VMSPACE_TRY(layout_.check_place(wanted.type, place));
  return {};
}

Result<void> MmioWindows::check_place(const MmioPlace& wanted, Range place) const {
  VMSPACE_TRY(check_within(wanted, place));
  return check_clear(wanted.bridge, place);
}

Result<void> MmioWindows::check_stay_within(const MmioPlace& wanted, Range place) const {
  MmioPlace held = wanted;
  if (!has_window(wanted.bridge)) held.bridge = {};
  return check_within(held, place);
}

Result<void> MmioWindows::check_stay(const MmioPlace& wanted, Range place) const {
  VMSPACE_TRY(check_stay_within(wanted, place));
  if (is_left(wanted.bridge)) return {};
  return check_clear(wanted.bridge, place);
}

Result<void> MmioWindows::check_clear(std::string_view bridge, Range place) const {
  const std::vector<const DeviceRecord*> around = bridges_around(bridge);
  return check_clear_but(place, [&](const WindowOf& it) {
    return std::ranges::binary_search(around, it.bridge, std::less<>());
  });
}

namespace {

Error about(std::string_view owner, Error error) noexcept {
  error.text = error.text.with_subject(owner);
  return error;
}

/// Whether `windows` contains this one.
bool is_among(std::span<const HeldWindow* const> windows, const HeldWindow* window) noexcept {
  return std::ranges::find(windows, window) != windows.end();
}

/// Whether windows lie in the windows of their bridges, as those are offered when the windows move, and
/// meet no others.
Result<void> check_nesting(const MmioWindows& every, const MmioWindows& offered,
                           std::span<const WindowOf> all,
                           std::span<const HeldWindow* const> moved) {
  struct Standing {
    std::size_t depth;
    bool is_moved;
    bool is_left;
  };
  std::vector<Standing> standings;
  standings.reserve(all.size());
  for (const WindowOf& it : all) {
    standings.push_back({every.bridges_around(it.window->bridge).size(), is_among(moved, it.window),
                         every.is_left(it.window->bridge)});
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    const HeldWindow* const window = all[i].window;
    const DeviceRecord* const bridge = all[i].bridge;
    if (window->parked) continue;
    const Standing& own = standings[i];
    const MmioPlace wanted = place_of(*window);
    auto checked = (own.is_moved ? offered : every).check_stay_within(wanted, window->range);
    if (!checked) return fail(about(bridge->owner, checked.error()));

    const std::vector<const DeviceRecord*> around = every.bridges_around(window->bridge);
    const auto may_meet = [&](const WindowOf& it) {
      const auto other = static_cast<std::size_t>(&it - all.data());
      const Standing& its = standings[other];
      if (other == i) return true;
      // A window whose parent bridge is gone may stay, but moves only where no other window is.
      if (!own.is_moved && !its.is_moved && (own.is_left || its.is_left)) return true;
      if (its.depth > own.depth) {
        // It finds this one around it, or else in its way, but where it may have to go back to.
        return !it.window->leaving || every.is_behind(it.window->bridge, *bridge);
      }
      return std::ranges::binary_search(around, it.bridge, std::less<>());
    };
    checked = every.check_clear_but(window->range, may_meet);
    if (!checked) return fail(about(bridge->owner, checked.error()));
  }
  return {};
}

}  // namespace

Result<void> check_arrangement(const AddressSpaceBase& space, const OwnerTable& owners,
                               std::span<const WindowOf> all, std::vector<PlacedRegion> held,
                               std::span<const HeldWindow* const> moved) {
  const MmioWindows windows(owners, all, space.layout());
  const MmioWindows offered(owners, all, space.layout(), nullptr);
  VMSPACE_TRY(check_nesting(windows, offered, all, moved));
  std::sort(held.begin(), held.end(),
            [](const auto& a, const auto& b) { return std::less<>()(a.region, b.region); });
  for (const AddressSpaceRegionPtr& region : space) {
    const auto entry = std::lower_bound(
        held.begin(), held.end(), region.get(),
        [](const auto& it, const auto* wanted) { return std::less<>()(it.region, wanted); });
    const bool is_held = entry != held.end() && entry->region == region.get();
    const std::string_view bridge = is_held ? std::string_view(entry->held->bridge) : "";
    if (is_held) {
      const auto checked = windows.check_stay(place_of(*entry->held), region->range());
      if (!checked) return fail(about(entry->record->owner, checked.error()));
      if (!windows.is_left(bridge)) continue;
    }
    const auto meets = [&](const WindowOf& it) {
      return !it.window->parked && it.window->range.overlaps(region->range()) &&
             is_among(moved, it.window) && !windows.is_behind(bridge, *it.bridge);
    };
    const auto window = std::ranges::find_if(all, meets);
    if (window == all.end()) continue;
    return fail({.code = Errc::overlap,
                 .first = operand(window->window->range),
                 .second = operand(region->range()),
                 .reason = "the bridge window would cover a region that is not behind the bridge",
                 .text = {window->bridge->owner, region->name()}});
  }
  return {};
}

}  // namespace vmspace::detail
