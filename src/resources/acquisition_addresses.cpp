// SPDX-License-Identifier: Apache-2.0
//
// Acquisition of guest physical addresses.

#include <algorithm>
#include <cassert>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"

#include "address_space/known_values.hpp"
#include "resources/acquisition.hpp"

namespace vmspace::detail {

using namespace literals;

namespace {

constexpr std::uint64_t window_granule = 1_MiB;

Result<void> check_request(std::uint64_t size, std::uint64_t align, std::string_view bridge,
                           const DeviceRecord& record) {
  if (size == 0) return fail({.code = Errc::zero_size});
  VMSPACE_TRY(check_alignment(align));
  if (!bridge.empty() && bridge == record.owner) {
    return fail({.code = Errc::invalid_argument,
                 .reason = "a bridge's own ranges cannot be behind that bridge",
                 .text = {{}, bridge}});
  }
  return {};
}

Result<void> check_reach(MmioReach reach) {
  switch (reach) {
    case MmioReach::any:
    case MmioReach::below_4g:
    case MmioReach::high: return {};
  }
  return fail({.code = Errc::invalid_argument,
               .first = Operand::number(static_cast<std::uint64_t>(reach)),
               .reason = "not a value of MmioReach"});
}

/// `not_found` unless the layout has the aperture that a request names.
Result<void> check_aperture(const AddressSpaceLayout& layout, std::string_view name) {
  if (name.empty()) return {};
  const Aperture* const aperture = layout.find_aperture(name);
  if (aperture != nullptr && aperture->takes(RegionType::device_memory)) return {};
  return fail({.code = Errc::not_found,
               .reason = "the layout has no aperture with this name that accepts MMIO",
               .text = {{}, name}});
}

/// The options with what every region of an owner has.
RegionOptions of_owner(RegionOptions options, const std::string& owner) {
  if (options.name.empty()) options.name = owner;
  options.owner = owner;
  return options;
}

/// The region that a claim is for; empty for a claim of another kind.
std::optional<RegionOptions> region_of(const ResourceRequest& claim, const std::string& owner) {
  RegionOptions options;
  if (const auto* const mmio = std::get_if<MmioRange>(&claim)) {
    options = {.name = mmio->name,
               .type = RegionType::device_memory,
               .base = mmio->fixed.value_or(GuestAddress{}),
               .size = mmio->size};
  } else if (const auto* const memory = std::get_if<MemoryRange>(&claim)) {
    options = memory->region;
    options.base = memory->fixed.value_or(GuestAddress{});
  } else {
    return {};
  }
  return of_owner(std::move(options), owner);
}

bool is_parked(const ResourceRequest& claim) {
  const auto* const mmio = std::get_if<MmioRange>(&claim);
  return mmio != nullptr && mmio->parked;
}

/// Adds the owner of the conflicting region to an error of the ledger.
Error with_holder(Error error, const AddressSpaceBase& space) {
  if (error.code == Errc::overlap && error.second.kind == Operand::Kind::range) {
    const AddressSpaceRegion* other = space.find_region(GuestAddress{error.second.first});
    // Otherwise it is an aperture or a hole, which the error already names.
    if (other != nullptr && operand(other->range()) == error.second) {
      error.reason = "held by";
      error.text = {{}, other->owner().empty() ? other->name() : other->owner()};
    }
  }
  return error;
}

}  // namespace

MmioPlace place_of(const HeldRegion& held) noexcept {
  const std::uint64_t size = held.region->size();
  return {.type = held.region->type(),
          .size = size,
          .align = held.unaligned ? 1 : mmio_alignment(size, held.align),
          .reach = held.reach,
          .prefetchable = held.prefetchable,
          .bridge = held.bridge,
          .aperture = held.aperture};
}

MmioPlace place_of(const HeldWindow& held) noexcept {
  return {.size = held.range.size(),
          .align = std::max(window_granule, held.align),
          .reach = held.prefetchable ? held.reach : MmioReach::below_4g,
          .prefetchable = held.prefetchable,
          .bridge = held.bridge,
          .aperture = held.aperture};
}

Result<Range> Acquisition::place(const MmioPlace& wanted, std::optional<GuestAddress> fixed) const {
  assert(draft_ != nullptr && "requests for addresses are met in a change of the ledger");
  const MmioWindows windows(state_.owners(), state_.windows, draft_->layout(), caller_);
  if (!fixed) return windows.choose_place(*draft_, wanted);
  const Range range = VMSPACE_TRY(Range::from_base_size(fixed->value(), wanted.size));
  VMSPACE_TRY(check_multiple(Operand::address(range.min()), wanted.align));
  VMSPACE_TRY(adopts_ ? windows.check_stay(wanted, range) : windows.check_place(wanted, range));
  return range;
}

AddressSpaceRegionPtr Acquisition::lift(const ResourceRequest& claim, const DeviceRecord& record,
                                        std::span<const AddressSpaceRegion* const> retired) const {
  std::optional<RegionOptions> claimed = region_of(claim, record.owner);
  if (!claimed) return nullptr;
  // What memory is mapped from is the VMM's business: a claim that was text has nothing to say of it.
  const auto is_claimed = [&](const AddressSpaceRegion& region) {
    if (region.owner() != record.owner) return false;
    claimed->backing = region.backing();
    return region.options() == *claimed &&
           !std::ranges::binary_search(retired, &region, std::less<>());
  };
  if (!is_parked(claim)) {
    const AddressSpaceRegion* const region = draft_->find_region(claimed->base);
    if (region == nullptr || !is_claimed(*region)) return nullptr;
    return draft_->remove_region(region->base()).value();
  }
  for (const AddressSpaceRegionPtr& region : draft_->parked()) {
    // A copy: taking it out moves the others.
    if (is_claimed(*region)) return draft_->remove_region(AddressSpaceRegionPtr(region)).value();
  }
  return nullptr;
}

Result<void> Acquisition::enter(RegionOptions options, HeldRegion held, DeviceRecord& record) {
  AddressSpaceRegionPtr region = std::move(lifted_);
  if (region == nullptr)
    region = VMSPACE_TRY(AddressSpaceRegion::make(of_owner(std::move(options), record.owner)));
  // Moved, so that the draft need not look whether it has the region already.
  auto entered = held.parked ? draft_->insert_parked_region(std::move(region))
                             : draft_->insert_region(std::move(region));
  if (!entered) return fail(with_holder(entered.error(), *draft_));
  held.region = *std::move(entered);
  record.regions.push_back(std::move(held));
  return {};
}

Result<void> Acquisition::take(const MmioRange& request, DeviceRecord& record) {
  VMSPACE_TRY(check_request(request.size, request.align, request.bridge, record));
  VMSPACE_TRY(check_reach(request.reach));
  VMSPACE_TRY(check_aperture(draft_->layout(), request.aperture));
  RegionOptions options{
      .name = request.name, .type = RegionType::device_memory, .size = request.size};
  HeldRegion held{.kind = ResourceKind::mmio,
                  .region = {},
                  .parked = request.parked,
                  .align = request.align,
                  .reach = request.reach,
                  .prefetchable = request.prefetchable,
                  .bridge = request.bridge,
                  .aperture = request.aperture};
  const std::uint64_t align = mmio_alignment(request.size, request.align);
  held.unaligned = request.align == 0 && request.fixed && request.fixed->value() % align != 0;
  if (request.parked) {
    options.base = request.fixed.value_or(GuestAddress{});
  } else {
    const MmioPlace wanted{.size = request.size,
                           .align = held.unaligned ? 1 : align,
                           .reach = request.reach,
                           .prefetchable = request.prefetchable,
                           .bridge = request.bridge,
                           .aperture = request.aperture};
    const Range found = VMSPACE_TRY(place(wanted, request.fixed));
    options.base = GuestAddress{found.min()};
  }
  return enter(std::move(options), std::move(held), record);
}

Result<void> Acquisition::take(const MemoryRange& request, DeviceRecord& record) {
  RegionOptions options = request.region;
  VMSPACE_TRY(check_request(options.size, request.align, {}, record));
  if (options.base != GuestAddress{}) {
    return fail({.code = Errc::invalid_argument,
                 .first = Operand::address(options.base.value()),
                 .reason = "the region's base must be 0: set MemoryRange::fixed instead"});
  }
  if (!options.owner.empty()) {
    return fail({.code = Errc::invalid_argument,
                 .reason = "the region's owner must be empty: acquire() sets it",
                 .text = {{}, options.owner}});
  }
  if (!is_known(options.type)) {
    return fail({.code = Errc::invalid_argument,
                 .first = Operand::number(static_cast<std::uint64_t>(options.type)),
                 .reason = "not a value of RegionType"});
  }
  const std::uint64_t page =
      options.backing.source == MemorySource::none ? 1 : options.backing.effective_page_size();
  const MmioPlace wanted{.type = options.type,
                         .size = options.size,
                         .align = std::max({request.align, page, std::uint64_t{1}}),
                         .aperture = request.aperture};
  const Range found = VMSPACE_TRY(place(wanted, request.fixed));
  options.base = GuestAddress{found.min()};
  return enter(std::move(options),
               {.kind = ResourceKind::memory,
                .region = {},
                .align = request.align,
                .aperture = request.aperture},
               record);
}

Result<void> Acquisition::check_bridge(const BridgeWindow& request,
                                       const DeviceRecord& record) const {
  const auto refuse = [](Errc code, const char* reason, std::string_view whose) {
    return fail({.code = code, .reason = reason, .text = {{}, whose}});
  };
  const MmioWindows windows(state_.owners(), state_.windows, draft_->layout());
  if (windows.is_behind(request.bridge, record)) {
    return refuse(Errc::invalid_argument,
                  "a bridge cannot be behind itself, even through other bridges", request.bridge);
  }
  if (!record.windows.empty()) {
    if (record.windows.front().bridge == request.bridge) return {};
    return refuse(Errc::invalid_argument,
                  "all windows of a bridge must be behind the same parent bridge", request.bridge);
  }
  // Ranges left by an earlier bridge with this name would be outside the new window.
  std::size_t deepest_behind = 0;
  const auto names_it = [&](const auto& held) { return held.bridge == record.owner; };
  const bool is_named = std::ranges::any_of(state_.owners(), [&](const DeviceRecord* other) {
    return std::ranges::any_of(other->regions, names_it) ||
           std::ranges::any_of(other->windows, names_it);
  });
  for (const DeviceRecord* other : state_.owners()) {
    if (!is_named) break;  // then nothing is behind it, directly or not
    const auto is_behind = [&](const auto& held) {
      return (!held.parked || held.leaving) && windows.is_behind(held.bridge, record);
    };
    if (std::ranges::any_of(other->regions, is_behind) ||
        std::ranges::any_of(other->windows, is_behind)) {
      return refuse(Errc::bad_state,
                    "a range behind an earlier bridge with this name is still mapped; its owner is",
                    other->owner);
    }
    if (other->windows.empty()) continue;
    if (const auto depth = windows.depth_below(other->windows.front().bridge, record)) {
      deepest_behind = std::max(deepest_behind, *depth + 1);
    }
  }
  if (windows.bridges_around(request.bridge).size() + 1 + deepest_behind > max_bridge_depth) {
    return refuse(Errc::invalid_argument, "bridges can be nested at most 256 deep", request.bridge);
  }
  return {};
}

Result<void> Acquisition::take(const BridgeWindow& request, DeviceRecord& record) {
  VMSPACE_TRY(check_request(request.size, request.align, request.bridge, record));
  VMSPACE_TRY(check_reach(request.reach));
  VMSPACE_TRY(check_aperture(draft_->layout(), request.aperture));
  VMSPACE_TRY(check_bridge(request, record));
  if (request.reach == MmioReach::high && !request.prefetchable) {
    return fail({.code = Errc::invalid_argument,
                 .reason = "a bridge window that is not prefetchable must be below 4 GiB"});
  }
  VMSPACE_TRY(check_multiple(Operand::size(request.size), window_granule));
  HeldWindow held{.range = unchecked_range(0, request.size - 1),
                  .parked = request.parked,
                  .leaving = {},
                  .unsettled_by = caller_,
                  .align = request.align,
                  .reach = request.reach,
                  .prefetchable = request.prefetchable,
                  .bridge = request.bridge,
                  .aperture = request.aperture};
  if (request.parked) {
    const GuestAddress base = request.fixed.value_or(GuestAddress{});
    held.range = VMSPACE_TRY(Range::from_base_size(base.value(), request.size));
  } else {
    const MmioPlace wanted = place_of(held);
    held.range = VMSPACE_TRY(place(wanted, request.fixed));
    // A window must be empty when it is acquired, even a fixed one.
    const auto other = std::find_if(
        draft_->begin(), draft_->end(),
        [&](const AddressSpaceRegionPtr& region) { return region->range().overlaps(held.range); });
    if (other != draft_->end()) {
      return fail({.code = Errc::overlap,
                   .first = operand(held.range),
                   .second = operand((*other)->range()),
                   .reason = "a bridge window must be empty when it is acquired; it contains",
                   .text = {{}, (*other)->name()}});
    }
  }
  // The state keeps pointers to these elements: reserve() guarantees that they are not reallocated.
  assert(record.windows.size() < record.windows.capacity());
  state_.windows.push_back({record.windows.data() + record.windows.size(), &record});
  record.windows.push_back(std::move(held));
  return {};
}

}  // namespace vmspace::detail
