// SPDX-License-Identifier: Apache-2.0
//
// The steps of a change; see vm_memory.hpp.

#include <algorithm>
#include <optional>
#include <utility>

#include "vmspace/base/try.hpp"

#include "memory/map_descriptions.hpp"
#include "vmm/vm_memory_state.hpp"

namespace vmspace {

namespace {

void erase(std::vector<AddressSpaceRegionPtr>& from, const AddressSpaceRegionPtr& region) noexcept {
  const auto at = std::ranges::find(from, region);
  if (at != from.end()) from.erase(at);
}

}  // namespace

/// Step 1. What the change adds has its place in `taken`, and what it removes keeps its own until that
/// has gone from every table: nobody else gets at either.
class VmMemory::State::Reservation {
 public:
  explicit Reservation(State& state) noexcept : state_(state) {}
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;
  /// Gives up what is still held, in a turn of its own.
  ~Reservation() {
    if (holds_.empty() && leaving_.empty()) return;
    const auto turn = state_.map.writer();  // fails when this thread has it already
    end();
  }

  [[nodiscard]] Result<void> take(const detail::RegionChange& change) {
    for (const auto* regions : {&change.removed, &change.unparked})
      leaving_.insert(leaving_.end(), regions->begin(), regions->end());
    is_in_place_ = change.parked.empty() && change.unparked.empty();
    for (const AddressSpaceRegionPtr& region : change.added) {
      holds_.reserve(holds_.size() + 1);
      if (state_.taken.insert_region(region)) {
        holds_.push_back(region);
      } else {  // something that leaves lies in the place, or the region itself is parked
        is_in_place_ = false;
        VMSPACE_TRY(hold(state_.taken, *region, holds_));
      }
    }
    state_.changing.reserve(state_.changing.size() + leaving_.size() + holds_.size());
    for (const auto* regions : {&leaving_, &holds_})
      state_.changing.insert(state_.changing.end(), regions->begin(), regions->end());
    return {};
  }

  /// What has a place in `taken`: the added regions themselves where all of theirs was free.
  [[nodiscard]] const std::vector<AddressSpaceRegionPtr>& holds() const noexcept { return holds_; }
  /// Whether `taken` needs nothing but the removal of what leaves, once the change is made.
  [[nodiscard]] bool is_in_place() const noexcept { return is_in_place_; }

  /// The change is made, in place: what leaves goes at the end.
  void make_in_place() noexcept {
    forget_changing();
    holds_.swap(leaving_);
    leaving_.clear();
  }
  /// The change is made: `taken` has it, and these holds instead.
  void replace_holds(std::vector<AddressSpaceRegionPtr>&& holds) noexcept {
    forget_changing();
    leaving_.clear();
    holds_ = std::move(holds);
  }

  /// In a turn. Holds where a listener has not let go stay, as those of retired ranges; memory for
  /// that was reserved.
  void end() noexcept {
    forget_changing();
    leaving_.clear();
    for (AddressSpaceRegionPtr& hold : holds_) {
      if (state_.listeners.has_retired(hold->guest_range())) {
        state_.retired_holds.push_back(std::move(hold));
      } else {
        static_cast<void>(state_.taken.remove_region(hold));
      }
    }
    holds_.clear();
  }

 private:
  void forget_changing() noexcept {
    for (const auto* regions : {&leaving_, &holds_}) {
      for (const AddressSpaceRegionPtr& region : *regions)
        erase(state_.changing, region);
    }
  }

  State& state_;
  std::vector<AddressSpaceRegionPtr> holds_;
  std::vector<AddressSpaceRegionPtr> leaving_;
  bool is_in_place_ = true;
};

Result<void> VmMemory::State::hold(AddressSpaceBase& space, const AddressSpaceRegion& region,
                                   std::vector<AddressSpaceRegionPtr>& holds) {
  const auto take = [&](std::uint64_t first, std::uint64_t last) -> Result<void> {
    auto made = VMSPACE_TRY(AddressSpaceRegion::make({.name = region.name(),
                                                      .type = region.type(),
                                                      .base = GuestAddress(first),
                                                      .size = last - first + 1,
                                                      .owner = region.owner()}));
    holds.reserve(holds.size() + 1);
    auto held = VMSPACE_TRY(space.insert_region(std::move(made)));
    holds.push_back(std::move(held));
    return {};
  };
  std::uint64_t first = region.base().value();
  const std::uint64_t last = region.last_addr().value();
  if (take(first, last)) return {};  // as nearly always

  // What the change itself removes lies in the place, and keeps others out there already.
  std::vector<Range> gaps;
  for (const AddressSpaceRegionPtr& there : space) {
    if (!there->guest_range().overlaps(region.guest_range())) continue;
    if (there->base().value() > first)
      gaps.push_back(detail::unchecked_range(first, there->base().value() - 1));
    if (there->last_addr().value() >= last) {
      first = 0;
      break;
    }
    first = there->last_addr().value() + 1;
  }
  if (first != 0) gaps.push_back(detail::unchecked_range(first, last));
  for (const Range& gap : gaps)
    VMSPACE_TRY(take(gap.min(), gap.max()));
  return {};
}

Result<void> VmMemory::State::check_not_changing(const detail::RegionChange& change,
                                                 const char* operation) const {
  for (const auto* regions : {&change.removed, &change.unparked}) {
    for (const AddressSpaceRegionPtr& region : *regions) {
      const bool is_changing = std::ranges::find(changing, region) != changing.end();
      if (!is_changing && std::ranges::find(retired_holds, region) == retired_holds.end()) continue;
      return fail({.code = Errc::bad_state,
                   .operation = operation,
                   .first = detail::operand(region->guest_range()),
                   .reason = is_changing ? "another change of this region has not finished"
                                         : "the range is retired: collect() may free it",
                   .text = region->name()});
    }
  }
  return {};
}

Result<detail::VmChange> VmMemory::State::change(const Edit& edit, const MapOptions& how,
                                                 const char* operation,
                                                 const AddressSpaceRegionPtr* resized) {
  detail::VmChange change;  // so that memory that goes is unmapped after the turn
  auto turn = VMSPACE_TRY(map.writer(operation));
  // unsettled() and collect() say what could not be.
  static_cast<void>(settle(turn, operation));

  AddressSpaceBase draft = taken;
  VMSPACE_TRY(edit(draft));
  auto regions = detail::RegionChange::between(taken, draft);
  VMSPACE_TRY(check_not_changing(regions, operation));
  if (regions.empty()) return change;
  change = VMSPACE_TRY_IN(
      operation, detail::VmChange::make(std::move(regions), turn.current().memory, parked, how.move,
                                        resized != nullptr ? *resized : nullptr));
  if (!change.has_memory()) {
    VMSPACE_TRY_IN(operation, change.regions.apply_to(turn.draft().space));
    turn.publish();
    taken = std::move(draft);
    return change;
  }

  Reservation reservation(*this);
  VMSPACE_TRY_IN(operation, reservation.take(change.regions));
  if (change.has_to_map()) {
    VMSPACE_TRY_IN(operation, change.check_parts(how, turn.current().memory, parked));
    const auto kept = turn.current().memory.regions();
    std::vector<MemoryRegionPtr> all(kept.begin(), kept.end());
    const std::size_t count = all.size();
    { const Turn given_up = std::move(turn); }  // others need not wait for what may take long
    const auto staged = change.map(how, all);
    turn = VMSPACE_TRY(map.writer(operation));
    if (!staged) {
      reservation.end();
      return fail(staged.error().in(operation));
    }
    change.mapped.insert(change.mapped.end(), all.begin() + static_cast<std::ptrdiff_t>(count),
                         all.end());
    // Others have had their turns meanwhile, and may have mapped the same memory,
    VMSPACE_TRY_IN(operation, change.check_parts(how, turn.current().memory, parked));
    // or stopped the last log: a region that tracks would make all others do so.
    if (change.resized_from != nullptr && !change.resized_from->dirty().is_enabled())
      change.mapped.back()->dirty().disable();
  }
  const auto done = commit(turn, change, reservation, operation);
  reservation.end();
  if (!done) return fail(done.error());
  return change;
}

Result<void> VmMemory::State::commit(Turn& turn, detail::VmChange& change, Reservation& reservation,
                                     const char* operation) {
  // All that can fail for want of memory comes first.
  VmMap& next = turn.draft();
  VMSPACE_TRY_IN(operation, change.regions.apply_to(next.space));
  next.memory = VMSPACE_TRY_IN(operation, change.apply_to(next.memory));
  if (!logs.empty()) VMSPACE_TRY_IN(operation, track(next.memory, change.mapped));
  std::vector<MemoryRegionPtr> parked_after = change.parked_after(parked);
  detail::TableChange tables = change.table_change();

  std::optional<AddressSpaceBase> taken_after;
  std::vector<AddressSpaceRegionPtr> holds_after;
  if (!reservation.is_in_place()) {
    taken_after = taken;
    for (const AddressSpaceRegionPtr& each : reservation.holds())
      VMSPACE_TRY_IN(operation, taken_after->remove_region(each));
    VMSPACE_TRY_IN(operation, change.regions.apply_to(*taken_after));
    // Where memory goes once the change is published, nobody may come before it has gone.
    const MemoryRegion* held = nullptr;
    for (const MemorySection& section : tables.removed_last.in(SectionUnit::slot)) {
      if (section.region().get() == held) continue;
      held = section.region().get();
      VMSPACE_TRY_IN(operation, hold(*taken_after, held->description(), holds_after));
    }
  }
  if (change.resized_from != nullptr) outgrown.reserve(outgrown.size() + 1);
  retired_holds.reserve(retired_holds.size() + reservation.holds().size() +
                        change.regions.removed.size() + holds_after.size());

  VMSPACE_TRY(listeners.apply(tables, gate.get(), operation));
  turn.publish();
  if (change.resized_from != nullptr) outgrow(*change.resized_from, change.mapped.back());
  parked = std::move(parked_after);
  if (taken_after) {
    taken = *std::move(taken_after);
    reservation.replace_holds(std::move(holds_after));
  } else {
    reservation.make_in_place();
  }
  listeners.finish(tables);
  return {};
}

/// What was written through the old mapping, or will be, is the new region's.
void VmMemory::State::outgrow(const MemoryRegion& from, const MemoryRegionPtr& to) noexcept {
  std::erase_if(outgrown, [](const OutgrownMemory& each) { return each.dirty.expired(); });
  for (OutgrownMemory& each : outgrown) {
    if (each.now.lock() == from.shared_dirty()) each.now = to->shared_dirty();
  }
  outgrown.push_back({.dirty = from.shared_dirty(), .now = to->shared_dirty()});  // there is room
  if (!logs.empty()) outgrown.back().kept = from.shared_dirty();
}

Result<void> VmMemory::State::settle(Turn& turn, const char* operation) {
  Result<void> settled = drop_stopped_logs(turn.current().memory, operation);
  if (!listeners.unsettled().empty()) {
    const auto told = listeners.settle(operation);
    if (settled) settled = told;
    release_retired_holds();
  }
  if (retired.empty()) return settled;
  detail::RetiredRegions::Removal removal(retired);
  const std::vector<AddressSpaceRegionPtr> all(removal.regions().begin(), removal.regions().end());
  Result<void> taken_out = take_out(turn, all, operation);
  if (taken_out) {
    removal.done();
  } else if (all.size() > 1) {  // one that can't go does not keep the others
    taken_out = {};
    for (const AddressSpaceRegionPtr& region : all) {
      const auto one = take_out(turn, {&region, 1}, operation);
      if (one) {
        removal.done(region);
      } else if (taken_out) {
        taken_out = one;
      }
    }
  }
  return settled ? taken_out : settled;
}

/// Removes regions, but for those that somebody else has removed meanwhile: all, or an error and none.
Result<void> VmMemory::State::take_out(Turn& turn, std::span<const AddressSpaceRegionPtr> regions,
                                       const char* operation) {
  AddressSpaceBase draft = taken;
  for (const AddressSpaceRegionPtr& region : regions)
    static_cast<void>(draft.remove_region(region));
  auto removed = detail::RegionChange::between(taken, draft);
  VMSPACE_TRY(check_not_changing(removed, operation));
  if (removed.empty()) return {};
  auto change = VMSPACE_TRY_IN(
      operation, detail::VmChange::make(std::move(removed), turn.current().memory, parked, {}));
  Reservation reservation(*this);
  VMSPACE_TRY_IN(operation, reservation.take(change.regions));
  const auto done = commit(turn, change, reservation, operation);
  reservation.end();
  if (!done) turn.roll_back();
  return done;
}

void VmMemory::State::release_retired_holds() noexcept {
  std::erase_if(retired_holds, [&](const AddressSpaceRegionPtr& hold) {
    if (listeners.has_retired(hold->guest_range())) return false;
    static_cast<void>(taken.remove_region(hold));
    return true;
  });
}

}  // namespace vmspace
