// SPDX-License-Identifier: Apache-2.0
//
// ResourceManager: lists of what is held and what is free, and the invariants.

#include <algorithm>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "vmspace/resources/resource_manager.hpp"

#include "resources/device_record.hpp"
#include "resources/mmio_windows.hpp"
#include "resources/number_space.hpp"
#include "resources/resource_state.hpp"

namespace vmspace {

namespace {

using detail::DeviceRecord;
using detail::HeldNumber;
using detail::HeldRegion;
using detail::HeldWindow;
using detail::ResourceState;

constexpr ResourceKind number_kinds[] = {ResourceKind::pio,         ResourceKind::legacy_irq,
                                         ResourceKind::generic_irq, ResourceKind::msi,
                                         ResourceKind::pci_device,  ResourceKind::mac_address};

/// The alignment that a claim names. What may be anywhere, but is where a BAR can be, has to say so.
std::uint64_t align_of_claim(const Range& range, std::uint64_t align, bool unaligned,
                             std::uint64_t bar_alignment) {
  return unaligned && range.min() % bar_alignment == 0 ? 1 : align;
}

ResourceRequest request_of(const HeldNumber& held) {
  const std::uint64_t first = held.range.min();
  const auto number = static_cast<std::uint32_t>(first);
  const auto count = static_cast<std::uint32_t>(held.range.size());
  switch (held.kind) {
    case ResourceKind::pio: break;
    case ResourceKind::legacy_irq: return LegacyIrq{.fixed = number, .shared = held.shared};
    case ResourceKind::generic_irq: return GenericIrq{.count = count, .fixed = number};
    case ResourceKind::msi: return MsiVectors{.count = count, .fixed = number};
    case ResourceKind::msix: return MsixVectors{.count = count, .fixed = number};
    case ResourceKind::kvm_slot: return KvmSlots{.count = count, .fixed = number};
    case ResourceKind::pci_device: {
      const PciSlot slot = detail::pci_slot(first);
      return PciDevice{.segment = slot.segment, .bus = slot.bus, .device = slot.device};
    }
    case ResourceKind::mac_address: return MacAddress{.fixed = first};
    case ResourceKind::mmio:
    case ResourceKind::memory:
    case ResourceKind::bridge_window: break;  // not numbers
  }
  return PioRange{.size = held.range.size(),
                  .align = align_of_claim(held.range, held.align, held.unaligned,
                                          detail::port_alignment(held.range.size(), 0)),
                  .fixed = first,
                  .parked = held.parked};
}

ResourceRequest request_of(const HeldRegion& held, const std::string& owner) {
  const AddressSpaceRegion& region = *held.region;
  if (held.kind == ResourceKind::memory) {
    MemoryRange memory{.region = region.options(),
                       .align = held.align,
                       .aperture = held.aperture,
                       .fixed = region.base()};
    memory.region.base = {};
    memory.region.owner.clear();
    if (memory.region.name == owner) memory.region.name.clear();
    return memory;
  }
  return MmioRange{.size = region.size(),
                   .align = align_of_claim(region.range(), held.align, held.unaligned,
                                           detail::mmio_alignment(region.size(), 0)),
                   .reach = held.reach,
                   .prefetchable = held.prefetchable,
                   .bridge = held.bridge,
                   .aperture = held.aperture,
                   .fixed = region.base(),
                   .parked = held.parked,
                   .name = region.name() == owner ? std::string() : region.name()};
}

ResourceRequest request_of(const HeldWindow& held) {
  return BridgeWindow{.size = held.range.size(),
                      .align = held.align,
                      .reach = held.reach,
                      .prefetchable = held.prefetchable,
                      .bridge = held.bridge,
                      .aperture = held.aperture,
                      .fixed = GuestAddress{held.range.min()},
                      .parked = held.parked};
}

/// Saturates at 2^64 - 1: the whole domain has one member more.
std::uint64_t saturated_sum(std::uint64_t a, std::uint64_t b) noexcept {
  constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
  return a > most - b ? most : a + b;
}

ResourceUsage usage_of(std::string_view name, const IntervalTreeStats& stats) {
  return {.name = std::string(name),
          .total = saturated_sum(stats.free_amount, stats.taken_amount),
          .free = stats.free_amount,
          .largest_free = stats.largest_free};
}

/// The use of an aperture by regions and holes.
ResourceUsage usage_of(const Aperture& aperture, const AddressSpaceBase& space) {
  IntervalTree<> addresses;
  static_cast<void>(addresses.insert(aperture.range));
  const auto take = [&](const Range& range) {
    if (const auto part = range.intersection(aperture.range)) {
      static_cast<void>(addresses.allocate_at(*part));
    }
  };
  for (const AddressSpaceRegionPtr& region : space)
    take(region->range());
  for (const Hole& hole : space.layout().holes())
    take(hole.range);
  ResourceUsage usage = usage_of(aperture.name, addresses.stats());
  usage.is_aperture = true;
  return usage;
}

}  // namespace

PciSlot pci_slot_of(const ResourceHolder& holder) noexcept {
  return detail::pci_slot(holder.range.min());
}

std::vector<ResourceClaim> ResourceManager::claims() const {
  std::vector<ResourceClaim> claims;
  const ResourceState::Lock lock(*state_);
  for (const DeviceRecord* record : state_->owners()) {
    for (const HeldNumber& held : record->numbers)
      claims.push_back({record->owner, request_of(held)});
    for (const HeldWindow& held : record->windows)
      claims.push_back({record->owner, request_of(held)});
    for (const HeldRegion& held : record->regions)
      claims.push_back({record->owner, request_of(held, record->owner)});
  }
  return claims;
}

std::vector<ResourceHolder> ResourceManager::holders() const {
  std::vector<ResourceHolder> holders;
  {
    const ResourceState::Lock lock(*state_);
    for (const DeviceRecord* record : state_->owners()) {
      for (const HeldNumber& held : record->numbers)
        holders.push_back({held.kind, held.range, record->owner, held.shared, held.parked});
      for (const HeldWindow& held : record->windows) {
        holders.push_back({.kind = ResourceKind::bridge_window,
                           .range = held.range,
                           .owner = record->owner,
                           .parked = held.parked});
      }
      for (const HeldRegion& held : record->regions) {
        holders.push_back({.kind = held.kind,
                           .range = held.region->range(),
                           .owner = record->owner,
                           .parked = held.parked,
                           .name = held.region->name()});
      }
    }
  }
  // Holders of a shared line stay in the order in which they acquired it.
  std::stable_sort(holders.begin(), holders.end(), [](const auto& a, const auto& b) {
    return std::tie(a.kind, a.parked, a.range) < std::tie(b.kind, b.parked, b.range);
  });
  return holders;
}

std::vector<ResourceUsage> ResourceManager::usage() const {
  std::vector<ResourceUsage> usage;
  {
    const ResourceState::Lock lock(*state_);
    for (const ResourceKind kind : number_kinds) {
      const detail::NumberSpace& numbers = *state_->numbers(kind);
      if (numbers.windows().empty()) continue;
      const IntervalTreeStats stats = numbers.free().stats();
      usage.push_back({.name = std::string(name_of(kind)),
                       .total = numbers.total(),
                       .free = stats.free_amount,
                       .largest_free = stats.largest_free});
    }
  }
  if (state_->slots) {
    usage.push_back(usage_of(name_of(ResourceKind::kvm_slot), state_->slots->snapshot().stats()));
  }
  const auto space = state_->ledger->snapshot();
  for (const Aperture& aperture : space->layout().apertures()) {
    usage.push_back(usage_of(aperture, *space));
  }
  return usage;
}

Result<void> ResourceManager::check_invariants() const {
  const auto broken = [](const char* rule, std::string_view owner = {}) {
    return fail({.code = Errc::corrupt,
                 .operation = "ResourceManager::check_invariants",
                 .reason = rule,
                 .text = owner});
  };
  const auto space = state_->ledger->snapshot();
  const auto parked = space->parked();
  const ResourceState::Lock lock(*state_);

  // Held and free numbers together are exactly the numbers of the kind, without overlap.
  for (const ResourceKind kind : number_kinds) {
    const detail::NumberSpace& numbers = *state_->numbers(kind);
    std::vector<Range> held_ranges;
    for (const DeviceRecord* record : state_->owners()) {
      for (const HeldNumber& held : record->numbers) {
        if (state_->numbers(held.kind) == &numbers && !held.parked)
          held_ranges.push_back(held.range);
      }
    }
    std::sort(held_ranges.begin(), held_ranges.end());
    if (kind == ResourceKind::legacy_irq) {
      held_ranges.erase(std::unique(held_ranges.begin(), held_ranges.end()), held_ranges.end());
    }
    std::uint64_t amount = numbers.free().stats().free_amount;
    for (auto held = held_ranges.begin(); held != held_ranges.end(); ++held) {
      amount += held->size();
      if (held != held_ranges.begin() && std::prev(held)->overlaps(*held)) {
        return broken("a number must not be held twice");
      }
      if (!numbers.free().overlapping(*held).empty()) {
        return broken("a held number must not be free");
      }
    }
    if (amount != numbers.total()) return broken("every number must be either held or free");
    if (!numbers.free().check_invariants()) return broken("the free numbers of a kind are corrupt");
  }

  std::size_t windows = 0;
  for (const DeviceRecord* record : state_->owners()) {
    windows += record->windows.size();
    for (const HeldRegion& held : record->regions) {
      const AddressSpaceRegion* placed = space->find_region(held.region->base());
      const bool is_there =
          held.parked ? std::find(parked.begin(), parked.end(), held.region) != parked.end()
                      : placed == held.region.get();
      if (!is_there) return broken("a held region must be in the ledger", record->owner);
    }
    for (const HeldNumber& held : record->numbers) {
      if (held.shared && state_->find_line(held.range.min()) == nullptr) {
        return broken("an interrupt line held as shared must be listed as shared", record->owner);
      }
    }
  }
  for (const detail::SharedLine& line : state_->shared_lines) {
    std::uint32_t holders = 0;
    for (const DeviceRecord* record : state_->owners()) {
      for (const HeldNumber& held : record->numbers)
        holders += held.shared && held.range.contains(line.number);
    }
    if (holders != line.holders)
      return broken("a shared line's count must equal its number of holders");
  }
  if (windows != state_->windows.size())
    return broken("every bridge window must be indexed exactly once");
  if (!detail::check_arrangement(*space, state_->owners(), state_->windows,
                                 state_->placed_regions(), {})) {
    return broken(
        "every range behind a bridge must be within one of its windows, and no other range may be");
  }
  return {};
}

}  // namespace vmspace
