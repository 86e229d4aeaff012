// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/vm_memory.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "vmspace/base/try.hpp"

#include "os/argument_checks.hpp"
#include "vmm/keep_for_ever.hpp"
#include "vmm/vm_memory_state.hpp"

namespace vmspace {

namespace {

Unsettled unsettled_as(detail::TableTask task) noexcept {
  switch (task) {
    case detail::TableTask::add: return Unsettled::missing;
    case detail::TableTask::remove: return Unsettled::retired;
    case detail::TableTask::log: break;
  }
  return Unsettled::unlogged;
}

}  // namespace

VmMemory::State::~State() {
  // A child's listeners have the devices of its parent.
  if (!maker.is_this_process()) return;
  // Nobody else has a handle, so this is nobody's turn.
  const auto turn = map.writer();
  const GuestMemory& memory = turn->current().memory;
  if (listeners.remove_all(memory)) return;
  // For ever: what is unmapped now might be used later.
  kept_->memory = memory;
  kept_->tasks = listeners.take_unsettled();
  detail::keep_for_ever(std::move(kept_));
}

const char* VmMemory::State::broken_rule(const VmMap& now) const {
  auto mapped = now.memory.regions().begin();
  for (const AddressSpaceRegionPtr& region : now.space) {
    if (!region->is_mapped()) continue;
    if (mapped == now.memory.regions().end() || (*mapped)->shared_description() != region)
      return "every placed region with a backing must be mapped";
    ++mapped;
  }
  if (mapped != now.memory.regions().end()) return "every mapped region must be in the space";
  for (const MemoryRegionPtr& region : parked) {
    if (std::ranges::find(now.space.parked(), region->shared_description()) ==
        now.space.parked().end())
      return "memory that is kept for a parked region must be that of one";
  }
  const auto is_taken = [&](const AddressSpaceRegionPtr& region) {
    const AddressSpaceRegion* found = taken.find_region(region->base());
    return found == region.get();
  };
  if (!std::all_of(now.space.begin(), now.space.end(), is_taken))
    return "the place of every published region must be taken";
  const auto is_known = [&](const AddressSpaceRegionPtr& region) {
    const AddressSpaceRegion* found = now.space.find_region(region->base());
    return found == region.get() || std::ranges::find(changing, region) != changing.end() ||
           std::ranges::find(retired_holds, region) != retired_holds.end();
  };
  if (!std::all_of(taken.begin(), taken.end(), is_known))
    return "every place that is taken must be that of a region, a change or a retired range";
  return nullptr;
}

VmMemory::VmMemory(std::shared_ptr<State> state) noexcept : state_(std::move(state)) {}

Result<VmMemory> VmMemory::create(AddressSpaceLayout layout, const MapOptions& options) {
  return VmMemory(std::make_shared<State>(
      VmMap{.space = AddressSpaceBase(std::move(layout)), .memory = {}}, options));
}

Result<VmMemory> VmMemory::create(const AddressSpaceBase& space, const MapOptions& options) {
  const auto memory = VMSPACE_TRY_IN("VmMemory::create", GuestMemory::map(space, options));
  MapOptions later = options;
  later.backing.reset();
  later.backing_offset = 0;
  return VmMemory(std::make_shared<State>(VmMap{.space = space, .memory = memory}, later));
}

Result<VmMemory> VmMemory::adopt(VmMap map, const MapOptions& options) {
  constexpr const char* operation = "VmMemory::adopt";
  const auto refuse = [](const AddressSpaceRegion& region, const char* reason) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = detail::operand(region.guest_range()),
                 .reason = reason,
                 .text = region.name()});
  };
  for (const AddressSpaceRegionPtr& described : map.space) {
    const MemoryRegion* const region = map.memory.region_at(described->base());
    if (described->is_mapped() && region == nullptr)
      return refuse(*described, "the region has a backing, and is not mapped");
  }
  for (const MemoryRegionPtr& region : map.memory.regions()) {
    const AddressSpaceRegion* const described = map.space.find_region(region->base());
    if (described == nullptr || *described != region->description())
      return refuse(region->description(), "the space does not have the mapped region as it is");
  }
  // A change knows a region by the object that describes it: where that is another one which says the
  // same, the region is made anew with the space's own.
  std::vector<MemoryRegionPtr> others;
  std::vector<MemoryRegionPtr> own;
  for (const AddressSpaceRegionPtr& described : map.space) {
    const MemoryRegionPtr region = map.memory.find_region(described->base());
    if (region == nullptr || region->shared_description() == described) continue;
    auto made = VMSPACE_TRY_IN(operation, region->at(described));
    others.push_back(region);
    own.push_back(std::move(made));
  }
  if (!own.empty())
    map.memory = VMSPACE_TRY_IN(operation, map.memory.with_changes(others, std::move(own)));
  return VmMemory(std::make_shared<State>(std::move(map), options));
}

VmMemory::Reader VmMemory::reader() const {
  return state_->map.reader();
}

std::shared_ptr<const VmMap> VmMemory::map() const {
  return state_->map.snapshot();
}

std::shared_ptr<const AddressSpaceBase> VmMemory::snapshot() const {
  auto now = state_->map.snapshot();
  const AddressSpaceBase* space = &now->space;
  return {std::move(now), space};
}

std::uint64_t VmMemory::generation() const noexcept {
  return state_->map.generation();
}

Result<MemoryRegionPtr> VmMemory::plug(RegionOptions region) const {
  return plug(std::move(region), state_->options);
}

Result<MemoryRegionPtr> VmMemory::plug(RegionOptions region, const MapOptions& options) const {
  constexpr const char* operation = "VmMemory::plug";
  const auto description = VMSPACE_TRY_IN(operation, AddressSpaceRegion::make(std::move(region)));
  if (!description->is_mapped()) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = detail::operand(description->guest_range()),
                 .reason = "the region has no backing: insert it by transact()",
                 .text = description->name()});
  }
  const auto insert = [&](AddressSpaceBase& draft) -> Result<void> {
    VMSPACE_TRY_IN(operation, draft.insert_region(description));
    return {};
  };
  const auto change = VMSPACE_TRY(state_->change(insert, options, operation));
  return change.mapped.front();
}

Result<void> VmMemory::unplug(const AddressSpaceRegionPtr& region,
                              std::chrono::nanoseconds timeout) const {
  constexpr const char* operation = "VmMemory::unplug";
  const auto remove = [&](AddressSpaceBase& draft) -> Result<void> {
    VMSPACE_TRY_IN(operation, draft.remove_region(region));
    return {};
  };
  VMSPACE_TRY(state_->change(remove, state_->options, operation));
  VMSPACE_TRY_IN(operation, state_->map.wait_released(timeout));
  return {};
}

Result<AddressSpaceRegionPtr> VmMemory::relocate(const AddressSpaceRegionPtr& region,
                                                 GuestAddress to) const {
  constexpr const char* operation = "VmMemory::relocate";
  AddressSpaceRegionPtr moved;
  const auto move = [&](AddressSpaceBase& draft) -> Result<void> {
    const auto all = VMSPACE_TRY_IN(operation, draft.move_regions({{.region = region, .to = to}}));
    moved = all.front();
    return {};
  };
  VMSPACE_TRY(state_->change(move, state_->options, operation));
  return moved;
}

Result<MemoryRegionPtr> VmMemory::resize(const AddressSpaceRegionPtr& region,
                                         std::uint64_t size) const {
  return resize(region, size, state_->options);
}

Result<MemoryRegionPtr> VmMemory::resize(const AddressSpaceRegionPtr& region, std::uint64_t size,
                                         const MapOptions& options) const {
  constexpr const char* operation = "VmMemory::resize";
  const auto refuse = [&](Errc code, const char* reason) {
    return fail({.code = code,
                 .operation = operation,
                 .first = detail::operand(region->guest_range()),
                 .reason = reason,
                 .text = region->name()});
  };
  AddressSpaceRegionPtr resized;
  const auto replace = [&](AddressSpaceBase& draft) -> Result<void> {
    const bool is_parked = std::ranges::find(draft.parked(), region) != draft.parked().end();
    VMSPACE_TRY_IN(operation, draft.remove_region(region));
    if (!region->is_mapped())
      return refuse(Errc::invalid_argument, "the region has no backing: replace it by transact()");
    if (is_parked)
      return refuse(Errc::bad_state, "a parked region can't be resized: place it first");
    resized = region;
    if (size != region->size()) {
      RegionOptions changed = region->options();
      changed.size = size;
      resized = VMSPACE_TRY_IN(operation, AddressSpaceRegion::make(std::move(changed)));
    }
    VMSPACE_TRY_IN(operation, draft.insert_region(resized));
    return {};
  };
  const auto change = VMSPACE_TRY(state_->change(replace, options, operation, &resized));
  return change.mapped.empty() ? map()->memory.find_region(region->base()) : change.mapped.front();
}

Result<void> VmMemory::transact(const Edit& edit) const {
  return transact(edit, state_->options);
}

Result<void> VmMemory::transact(const Edit& edit, const MapOptions& options) const {
  constexpr const char* operation = "VmMemory::transact";
  if (!edit) return detail::invalid(operation, "the edit must not be empty");
  VMSPACE_TRY(state_->change(edit, options, operation));
  return {};
}

void VmMemory::retire(RegionList&& regions) const noexcept {
  state_->retired.add(std::move(regions));
}

std::vector<AddressSpaceRegionPtr> VmMemory::retired() const {
  return state_->retired.list();
}

Result<void> VmMemory::collect() const {
  constexpr const char* operation = "VmMemory::collect";
  auto turn = VMSPACE_TRY(state_->map.writer(operation));
  return state_->settle(turn, operation);
}

Result<std::vector<UnsettledSection>> VmMemory::unsettled() const {
  const auto turn = VMSPACE_TRY(state_->map.writer("VmMemory::unsettled"));
  std::vector<UnsettledSection> all;
  for (const detail::UnsettledTask& task : state_->listeners.unsettled()) {
    all.push_back({.listener = task.listener->name(),
                   .range = task.section.guest_range(),
                   .how = unsettled_as(task.task)});
  }
  return all;
}

Result<void> VmMemory::add_listener(std::shared_ptr<MemoryListener> listener,
                                    ListenerOptions options) const {
  constexpr const char* operation = "VmMemory::add_listener";
  if (listener == nullptr) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "the listener is a null pointer"});
  }
  const auto turn = VMSPACE_TRY(state_->map.writer(operation));
  return state_->listeners.add(std::move(listener), options.required, turn.current().memory);
}

Result<void> VmMemory::remove_listener(const MemoryListener& listener) const {
  const auto turn = VMSPACE_TRY(state_->map.writer("VmMemory::remove_listener"));
  VMSPACE_TRY(state_->listeners.remove(listener, turn.current().memory));
  state_->release_retired_holds();
  return {};
}

Result<std::vector<std::shared_ptr<MemoryListener>>> VmMemory::listeners() const {
  const auto turn = VMSPACE_TRY(state_->map.writer("VmMemory::listeners"));
  return state_->listeners.list();
}

Result<void> VmMemory::set_gate(std::shared_ptr<VmGate> gate) const {
  const auto turn = VMSPACE_TRY(state_->map.writer("VmMemory::set_gate"));
  state_->gate = std::move(gate);
  return {};
}

Result<void> VmMemory::wait_released(std::chrono::nanoseconds timeout) const {
  VMSPACE_TRY_IN("VmMemory::wait_released", state_->map.wait_released(timeout));
  return {};
}

Result<void> VmMemory::check_invariants() const {
  constexpr const char* operation = "VmMemory::check_invariants";
  const auto turn = VMSPACE_TRY(state_->map.writer(operation));
  const VmMap& now = turn.current();
  VMSPACE_TRY_IN(operation, now.space.check_invariants());
  VMSPACE_TRY_IN(operation, state_->taken.check_invariants());
  VMSPACE_TRY_IN(operation, now.memory.check_invariants());
  if (const char* rule = state_->broken_rule(now))
    return fail({.code = Errc::corrupt, .operation = operation, .reason = rule});
  return {};
}

}  // namespace vmspace
