// SPDX-License-Identifier: Apache-2.0
//
// ResourceManager: relocation of sets of ranges.

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "vmspace/base/try.hpp"
#include "vmspace/resources/resource_manager.hpp"

#include "resources/acquisition.hpp"
#include "resources/device_record.hpp"
#include "resources/mmio_windows.hpp"
#include "resources/resource_state.hpp"

namespace vmspace {

namespace {

using detail::DeviceRecord;
using detail::HeldNumber;
using detail::HeldRegion;
using detail::HeldWindow;
using detail::MmioPlace;
using detail::MmioWindows;
using detail::NumberSpace;
using detail::ResourceState;
using detail::WindowOf;

constexpr const char* relocating = "ResourceManager::relocate";

Error about(const DeviceRecord& record, const Error& error) noexcept {
  Error named = error.in(relocating);
  named.text = named.text.with_subject(record.owner);
  return named;
}

/// A region's move.
struct PendingRegionMove {
  DeviceRecord* record;
  HeldRegion* held;
  std::optional<GuestAddress> to;
};

/// A pending move of ports.
struct PendingPortMove {
  DeviceRecord* record;
  HeldNumber* held;
  HeldNumber after;
};

/// A pending move of a window.
struct PendingWindowMove {
  DeviceRecord* record;
  HeldWindow* held;
  HeldWindow after;
};

/// A set of moves: collected by add(), checked and made by apply(), and undone by the destructor unless
/// keep() is called.
class Relocation {
 public:
  explicit Relocation(ResourceState& state) noexcept : state_(state) {}
  Relocation(const Relocation&) = delete;
  Relocation& operator=(const Relocation&) = delete;
  ~Relocation();

  [[nodiscard]] Result<void> add(DeviceRecord& record, const ResourceMove& move);

  /// Whether no address changes, so that the ledger need not.
  [[nodiscard]] bool is_of_ports_alone() const noexcept {
    return !ports_.empty() && regions_.empty() && windows_.empty();
  }

  /// Makes the moves in the draft, which only ports alone can do without, and in the records, with the
  /// state's mutex held. If it fails or throws, no record has changed.
  [[nodiscard]] Result<void> apply(AddressSpaceBase* draft);

  /// The moves are final: what they change of the ledger is published.
  void keep() noexcept { kept_ = true; }

 private:
  [[nodiscard]] Result<void> move_addresses(AddressSpaceBase& draft);
  [[nodiscard]] Result<void> check_ports() const;
  /// Takes the new ports, beside the old ones.
  [[nodiscard]] Result<void> take_ports();
  /// All windows as they will be afterwards.
  [[nodiscard]] std::vector<WindowOf> windows_after();
  [[nodiscard]] Result<void> check_windows();
  [[nodiscard]] Result<void> check_regions(const AddressSpaceBase& draft);
  /// `bad_state` while another call moves what is behind a bridge of the set: it may have to go back.
  [[nodiscard]] Result<void> check_settled(const AddressSpaceBase& draft);
  /// Checks the arrangement that results, including ranges and windows that do not move.
  [[nodiscard]] Result<void> check_arrangement(const AddressSpaceBase& draft);
  void swap_records() noexcept;

  ResourceState& state_;
  std::vector<PendingRegionMove> regions_;
  std::vector<PendingWindowMove> windows_;
  std::vector<PendingPortMove> ports_;
  NumberSpace::Move port_move_;
  /// In the order of regions_. The new regions until apply() has swapped them in; the old ones
  /// afterwards.
  std::vector<AddressSpaceRegionPtr> moved_;
  bool applied_ = false;
  bool kept_ = false;
};

/// The index-th of a kind; null when there are fewer.
template <typename Held>
Held* nth(std::vector<Held>& list, ResourceKind kind, std::size_t index) noexcept {
  for (Held& held : list) {
    if (held.kind == kind && index-- == 0) return &held;
  }
  return nullptr;
}

Result<void> Relocation::add(DeviceRecord& record, const ResourceMove& move) {
  const auto refuse = [&](Errc code, const char* reason) {
    return fail(
        about(record, {.code = code, .first = Operand::number(move.index), .reason = reason}));
  };
  const auto is_in = [](const auto& moves, const auto* held) {
    return std::ranges::any_of(moves, [&](const auto& other) { return other.held == held; });
  };
  // Numbers and windows: `held` as it will be.
  const auto moved = [&](auto held) -> Result<decltype(held)> {
    held.parked = !move.to;
    if (!move.to) return held;
    const auto range = Range::from_base_size(move.to->value(), held.range.size());
    if (!range) return fail(about(record, range.error()));
    held.range = *range;
    return held;
  };
  switch (move.kind) {
    case ResourceKind::mmio: {
      HeldRegion* const held = nth(record.regions, move.kind, move.index);
      if (held == nullptr)
        return refuse(Errc::out_of_bounds, "the device has no MMIO range with this index");
      if (is_in(regions_, held))
        return refuse(Errc::invalid_argument, "the set moves this range twice");
      regions_.push_back({&record, held, move.to});
      return {};
    }
    case ResourceKind::bridge_window: {
      if (move.index >= record.windows.size())
        return refuse(Errc::out_of_bounds, "the device has no bridge window with this index");
      HeldWindow& held = record.windows[move.index];
      if (is_in(windows_, &held))
        return refuse(Errc::invalid_argument, "the set moves this window twice");
      auto after = VMSPACE_TRY(moved(held));
      windows_.push_back({&record, &held, std::move(after)});
      return {};
    }
    case ResourceKind::pio: {
      HeldNumber* const held = nth(record.numbers, move.kind, move.index);
      if (held == nullptr)
        return refuse(Errc::out_of_bounds, "the device has no range of ports with this index");
      if (is_in(ports_, held))
        return refuse(Errc::invalid_argument, "the set moves these ports twice");
      const auto after = VMSPACE_TRY(moved(*held));
      ports_.push_back({&record, held, after});
      return {};
    }
    default: break;
  }
  return refuse(Errc::invalid_argument, "only ports, MMIO ranges and bridge windows can be moved");
}

Result<void> Relocation::check_ports() const {
  for (const PendingPortMove& move : ports_) {
    const HeldNumber& after = move.after;
    if (after.parked) continue;
    const std::uint64_t align =
        after.unaligned ? 1 : detail::port_alignment(after.range.size(), after.align);
    const auto checked = detail::check_multiple(Operand::address(after.range.min()), align);
    if (!checked) return fail(about(*move.record, checked.error()));
    for (const PendingPortMove& other : ports_) {
      if (&other == &move) break;
      if (other.after.parked || !other.after.range.overlaps(after.range)) continue;
      return fail(about(*move.record, {.code = Errc::overlap,
                                       .first = detail::operand(after.range),
                                       .second = detail::operand(other.after.range),
                                       .reason = "in the same set, to be moved there for",
                                       .text = {{}, other.record->owner}}));
    }
  }
  return {};
}

Result<void> Relocation::take_ports() {
  std::vector<Range> from;
  std::vector<Range> to;
  for (const PendingPortMove& move : ports_) {
    if (!move.held->parked) from.push_back(move.held->range);
    if (!move.after.parked) to.push_back(move.after.range);
  }
  auto begun = state_.pio.begin_move(from, to);
  if (begun) {
    port_move_ = *std::move(begun);
    return {};
  }
  Error error = begun.error();
  const Range part = detail::unchecked_range(error.first.first, error.first.second);
  const auto move = std::ranges::find_if(ports_, [&](const PendingPortMove& it) {
    return !it.after.parked && it.after.range.overlaps(part);
  });
  error.first = detail::operand(move->after.range);
  if (const auto holding = state_.holding(ResourceKind::pio, part)) {
    error.second = detail::operand(holding->range);
    error.text = {{}, holding->record->owner};
  }
  return fail(about(*move->record, error));
}

std::vector<WindowOf> Relocation::windows_after() {
  std::vector<WindowOf> windows;
  windows.reserve(state_.windows.size());
  for (const WindowOf& entry : state_.windows) {
    const auto move =
        std::find_if(windows_.begin(), windows_.end(),
                     [&](const PendingWindowMove& it) { return it.held == entry.window; });
    windows.push_back(move == windows_.end() ? entry : WindowOf{&move->after, entry.bridge});
  }
  return windows;
}

Result<void> Relocation::check_windows() {
  for (const PendingWindowMove& move : windows_) {
    if (move.after.parked) continue;
    const auto checked = detail::check_multiple(Operand::address(move.after.range.min()),
                                                place_of(move.after).align);
    if (!checked) return fail(about(*move.record, checked.error()));
  }
  return {};
}

Result<void> Relocation::check_regions(const AddressSpaceBase& draft) {
  const std::vector<WindowOf> after = windows_after();
  const MmioWindows windows(state_.owners(), after, draft.layout(), this);
  for (const PendingRegionMove& move : regions_) {
    if (!move.to) continue;
    const MmioPlace wanted = place_of(*move.held);
    auto checked = detail::check_multiple(Operand::address(move.to->value()), wanted.align);
    if (!checked) return fail(about(*move.record, checked.error()));
    const auto range = Range::from_base_size(move.to->value(), wanted.size);
    if (!range) return fail(about(*move.record, range.error()));
    checked = windows.check_place(wanted, *range);
    if (!checked) return fail(about(*move.record, checked.error()));
  }
  return {};
}

Result<void> Relocation::check_settled(const AddressSpaceBase& draft) {
  const MmioWindows windows(state_.owners(), state_.windows, draft.layout());
  for (const PendingWindowMove& move : windows_) {
    const auto is_moving = [&](const auto& held) {
      return held.leaving && windows.is_behind(held.bridge, *move.record);
    };
    for (const DeviceRecord* other : state_.owners()) {
      if (!std::ranges::any_of(other->regions, is_moving) &&
          !std::ranges::any_of(other->windows, is_moving)) {
        continue;
      }
      Error error{.code = Errc::bad_state,
                  .reason = "another call is moving a range behind the bridge; its owner is",
                  .text = {{}, other->owner}};
      return fail(about(*move.record, error));
    }
  }
  return {};
}

Result<void> Relocation::check_arrangement(const AddressSpaceBase& draft) {
  std::vector<detail::PlacedRegion> held = state_.placed_regions();
  std::vector<const HeldRegion*> moving;
  for (const PendingRegionMove& move : regions_)
    moving.push_back(move.held);
  std::ranges::sort(moving, std::less<>());
  std::erase_if(held, [&](const detail::PlacedRegion& entry) {
    return std::ranges::binary_search(moving, entry.held, std::less<>());
  });
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    if (regions_[i].to) held.push_back({moved_[i].get(), regions_[i].held, regions_[i].record});
  }
  const std::vector<WindowOf> after = windows_after();
  std::vector<const HeldWindow*> moved;
  for (const PendingWindowMove& move : windows_)
    moved.push_back(&move.after);
  VMSPACE_TRY_IN(relocating,
                 detail::check_arrangement(draft, state_.owners(), after, std::move(held), moved));
  return {};
}

Result<void> Relocation::move_addresses(AddressSpaceBase& draft) {
  VMSPACE_TRY(check_windows());
  VMSPACE_TRY(check_regions(draft));
  std::vector<RegionMove> moves;
  moves.reserve(regions_.size());
  for (const PendingRegionMove& move : regions_)
    moves.push_back({.region = move.held->region, .to = move.to});
  moved_ = VMSPACE_TRY_IN(relocating, draft.move_regions(moves));
  if (!windows_.empty()) {
    VMSPACE_TRY(check_settled(draft));
    VMSPACE_TRY(check_arrangement(draft));
  }
  return {};
}

Result<void> Relocation::apply(AddressSpaceBase* draft) {
  VMSPACE_TRY(check_ports());
  if (draft != nullptr) VMSPACE_TRY(move_addresses(*draft));
  VMSPACE_TRY(take_ports());
  // Nothing fails from here on.
  swap_records();
  for (const PendingPortMove& move : ports_) {
    if (!move.after.parked) move.held->leaving = move.after.range;
  }
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    if (regions_[i].to) regions_[i].held->leaving = moved_[i]->range();
  }
  for (const PendingWindowMove& move : windows_) {
    if (!move.after.parked) move.held->leaving = move.after.range;
    move.held->unsettled_by = this;
  }
  applied_ = true;
  return {};
}

void Relocation::swap_records() noexcept {
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    HeldRegion& held = *regions_[i].held;
    std::swap(held.region, moved_[i]);
    const bool was_parked = std::exchange(held.parked, !regions_[i].to);
    regions_[i].to = was_parked ? std::nullopt : std::optional(moved_[i]->base());
  }
  for (PendingWindowMove& move : windows_)
    std::swap(*move.held, move.after);
  for (PendingPortMove& move : ports_)
    std::swap(*move.held, move.after);
}

Relocation::~Relocation() {
  if (!applied_) return;
  const ResourceState::Lock lock(state_);
  if (!kept_) swap_records();
  state_.pio.end_move(port_move_, !kept_);
  for (const PendingPortMove& move : ports_)
    move.held->leaving.reset();
  for (const PendingRegionMove& move : regions_)
    move.held->leaving.reset();
  for (const PendingWindowMove& move : windows_) {
    move.held->leaving.reset();
    move.held->unsettled_by = nullptr;
  }
}

}  // namespace

Result<void> ResourceManager::relocate(std::span<const ResourceMove> moves) const {
  ResourceState& state = *state_;
  Relocation relocation(state);
  for (const ResourceMove& move : moves) {
    if (move.device == nullptr) {
      return fail({.code = Errc::invalid_argument,
                   .operation = relocating,
                   .reason = "the device must not be null"});
    }
    if (move.device->state_ != state_) {
      return fail({.code = Errc::bad_state,
                   .operation = relocating,
                   .reason = move.device->is_held() ? "the device was acquired from another manager"
                                                    : "the device holds nothing",
                   .text = move.device->owner()});
    }
    VMSPACE_TRY(relocation.add(*move.device->record_, move));
  }
  if (relocation.is_of_ports_alone()) {
    const ResourceState::Lock lock(state);
    VMSPACE_TRY(relocation.apply(nullptr));
    relocation.keep();
    return {};
  }
  const RegionLedger::Edit edit = [&](AddressSpaceBase& draft) {
    const ResourceState::Lock lock(state);
    return relocation.apply(&draft);
  };
  if (const auto changed = state.ledger->transact(edit); !changed) {
    return fail(changed.error().in(relocating));
  }
  relocation.keep();
  return {};
}

}  // namespace vmspace
