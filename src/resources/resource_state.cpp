// SPDX-License-Identifier: Apache-2.0

#include "resources/resource_state.hpp"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <limits>
#include <string>
#include <thread>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/resources/resource_manager.hpp"

#include "os/full_fence.hpp"

namespace vmspace::detail {

namespace {

constexpr const char* creating = "ResourceManager::create";

Result<NumberSpace> make_space(const NumberWindow& window, std::uint64_t max, const char* name) {
  for (const Range& range : window.ranges) {
    if (range.max() <= max) continue;
    return fail({.code = Errc::out_of_bounds,
                 .operation = creating,
                 .first = operand(range),
                 .second = Operand::range(0, max),
                 .text = name});
  }
  const auto is_in_any = [&](const Range& range) { return range.overlaps(*window.any); };
  if (window.any && std::ranges::none_of(window.ranges, is_in_any)) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = creating,
                 .first = operand(*window.any),
                 .reason = "`any` must contain at least one of the numbers",
                 .text = name});
  }
  auto space = NumberSpace::create(window.ranges, window.any);
  if (space) return space;
  Error error = space.error().in(creating);
  error.reason = "the ranges must not overlap";
  error.text = name;
  return fail(error);
}

/// `overlap` when an interrupt is both a legacy and a generic one.
Result<void> check_apart(const NumberSpace& legacy, const NumberSpace& generic) {
  for (const Range& lines : legacy.windows()) {
    const auto both = std::find_if(generic.windows().begin(), generic.windows().end(),
                                   [&](const Range& numbers) { return numbers.overlaps(lines); });
    if (both == generic.windows().end()) continue;
    return fail(
        {.code = Errc::overlap,
         .operation = creating,
         .first = operand(lines),
         .second = operand(*both),
         .reason =
             "legacy and generic interrupts share one number space: their ranges must not overlap",
         .text = name_of(ResourceKind::legacy_irq)});
  }
  return {};
}

Result<NumberWindow> pci_window(const std::vector<PciBus>& buses) {
  constexpr std::uint8_t last_device = 31;
  NumberWindow window;
  for (const PciBus& bus : buses) {
    const Operand devices = Operand::range(bus.first_device, bus.last_device);
    if (bus.first_device > bus.last_device) {
      return fail({.code = Errc::invalid_range,
                   .operation = creating,
                   .first = devices,
                   .text = name_of(ResourceKind::pci_device)});
    }
    if (bus.last_device > last_device) {
      return fail({.code = Errc::out_of_bounds,
                   .operation = creating,
                   .first = devices,
                   .second = Operand::range(0, last_device),
                   .text = name_of(ResourceKind::pci_device)});
    }
    window.ranges.push_back(unchecked_range(pci_number(bus.segment, bus.bus, bus.first_device),
                                            pci_number(bus.segment, bus.bus, bus.last_device)));
  }
  return window;
}

}  // namespace

ResourceState::ResourceState(std::shared_ptr<const RegionLedger> region_ledger,
                             const ResourceLimits& limits)
    : ledger(std::move(region_ledger)),
      slots(limits.kvm_slots),
      has_mac_addresses(limits.mac_addresses.has_value()) {}

Result<std::shared_ptr<ResourceState>> ResourceState::create(
    std::shared_ptr<const RegionLedger> ledger, const ResourceLimits& limits) {
  constexpr std::uint64_t max_port = 0xffff;
  constexpr std::uint64_t max_number = std::numeric_limits<std::uint32_t>::max();
  constexpr std::uint64_t max_mac_address = (std::uint64_t{1} << 48U) - 1;
  if (ledger == nullptr) {
    return fail({.code = Errc::invalid_argument,
                 .operation = creating,
                 .reason = "the ledger must not be null"});
  }
  const std::shared_ptr<ResourceState> state(new ResourceState(std::move(ledger), limits));
  state->pio = VMSPACE_TRY(make_space(limits.pio, max_port, "pio"));
  state->legacy_irqs = VMSPACE_TRY(make_space(limits.legacy_irqs, max_number, "legacy_irq"));
  state->generic_irqs = VMSPACE_TRY(make_space(limits.generic_irqs, max_number, "generic_irq"));
  VMSPACE_TRY(check_apart(state->legacy_irqs, state->generic_irqs));
  state->msi = VMSPACE_TRY(make_space(limits.msi, max_number, "msi"));
  const NumberWindow devices = VMSPACE_TRY(pci_window(limits.pci_buses));
  state->pci_devices =
      VMSPACE_TRY(make_space(devices, std::numeric_limits<std::uint64_t>::max(), "pci_device"));
  if (limits.mac_addresses) {
    const NumberWindow addresses{.ranges = {*limits.mac_addresses}};
    state->mac_addresses = VMSPACE_TRY(make_space(addresses, max_mac_address, "mac_address"));
  }
  return state;
}

Result<void> ResourceState::enter(DeviceRecord& record) {
  if (record.owner.empty()) {
    return fail({.code = Errc::invalid_argument, .reason = "the owner's name must not be empty"});
  }
  if (!owners_.insert(record)) {
    return fail({.code = Errc::bad_state,
                 .reason = "the owner already holds resources: request everything in one call, or "
                           "use another name",
                 .text = record.owner});
  }
  return {};
}

void ResourceState::leave(DeviceRecord& record) noexcept {
  if (!record.windows.empty()) {
    std::erase_if(windows, [&](const WindowOf& entry) { return entry.bridge == &record; });
    record.windows.clear();
  }
  for (; !record.numbers.empty(); record.numbers.pop_back()) {
    const HeldNumber& held = record.numbers.back();
    if (held.parked) continue;
    if (held.shared) {
      SharedLine* const line = find_line(held.range.min());
      assert(line != nullptr);
      if (--line->holders != 0) continue;
      *line = shared_lines.back();
      shared_lines.pop_back();
    }
    if (held.kind == ResourceKind::kvm_slot) {
      state_of(*slots).give_back(record.slots.back());
      record.slots.pop_back();
    } else {
      numbers(held.kind)->give_back(held.range);
    }
  }
  owners_.erase(record);
}

namespace {

/// Destroys records that are linked by next_returned.
void destroy_all(DeviceRecord* record) noexcept {
  while (record != nullptr) {
    const std::unique_ptr<DeviceRecord> first(record);
    record = first->next_returned;
  }
}

}  // namespace

ResourceState::Lock::Lock(ResourceState& state) noexcept : state_(state) {
  // The guarded data spans many cache lines, which move between cores whenever the lock changes
  // hands. A thread that finds it taken therefore backs off briefly, so that the holder can make
  // many calls in a row; alternating call by call makes two threads nearly twice as slow.
  constexpr int tries = 20;
  constexpr std::chrono::microseconds moment{1};  // plus the kernel's timer slack, 50 us by default
  bool is_locked = state_.mutex_.try_lock();
  for (int i = 0; i < tries && !is_locked; ++i) {
    std::this_thread::sleep_for(moment);
    is_locked = state_.mutex_.try_lock();
  }
  if (!is_locked) state_.mutex_.lock();
  gone_ = state_.admit_returned();
}

ResourceState::Lock::~Lock() {
  state_.mutex_.unlock();
  destroy_all(gone_);
  state_.look_for_returned();
}

ResourceState::~ResourceState() {
  destroy_all(admit_returned());
}

DeviceRecord* ResourceState::admit_returned() noexcept {
  if (returned_.load(std::memory_order_relaxed) == nullptr) return nullptr;
  DeviceRecord* const all = returned_.exchange(nullptr, std::memory_order_acquire);
  for (DeviceRecord* record = all; record != nullptr; record = record->next_returned)
    leave(*record);
  return all;
}

void ResourceState::look_for_returned() noexcept {
  for (;;) {
    // Who queues a record and then finds the mutex locked, and who unlocks it and then looks at the
    // queue: without a fence, both may miss what the other did, and the record stays where it is.
    full_fence();
    if (returned_.load(std::memory_order_relaxed) == nullptr || !mutex_.try_lock()) return;
    DeviceRecord* const gone = admit_returned();
    mutex_.unlock();
    destroy_all(gone);
  }
}

void ResourceState::give_back(std::unique_ptr<DeviceRecord> record) noexcept {
  if (mutex_.try_lock()) {
    DeviceRecord* const gone = admit_returned();
    leave(*record);
    mutex_.unlock();
    destroy_all(gone);
  } else {
    DeviceRecord* const mine = record.release();
    mine->next_returned = returned_.load(std::memory_order_relaxed);
    while (!returned_.compare_exchange_weak(mine->next_returned, mine, std::memory_order_release,
                                            std::memory_order_relaxed)) {
    }
  }
  look_for_returned();
}

NumberSpace* ResourceState::numbers(ResourceKind kind) noexcept {
  switch (kind) {
    case ResourceKind::pio: return &pio;
    case ResourceKind::legacy_irq: return &legacy_irqs;
    case ResourceKind::generic_irq: return &generic_irqs;
    case ResourceKind::msi:
    case ResourceKind::msix: return &msi;
    case ResourceKind::pci_device: return &pci_devices;
    case ResourceKind::mac_address: return &mac_addresses;
    case ResourceKind::mmio:
    case ResourceKind::memory:
    case ResourceKind::bridge_window:
    case ResourceKind::kvm_slot: break;
  }
  return nullptr;
}

std::optional<Holding> ResourceState::holding(ResourceKind kind, Range range) noexcept {
  std::optional<Holding> lowest;
  for (const DeviceRecord* record : owners_) {
    for (const HeldNumber& held : record->numbers) {
      if (numbers(held.kind) != numbers(kind)) continue;
      const auto consider = [&](const Range& own) {
        if (!own.overlaps(range)) return;
        // Of those who share a line, the first to come.
        if (!lowest || own.min() < lowest->range.min()) lowest = {record, own};
      };
      if (!held.parked) consider(held.range);
      if (held.leaving) consider(*held.leaving);
    }
  }
  return lowest;
}

SharedLine* ResourceState::find_line(std::uint64_t number) noexcept {
  const auto line = std::find_if(shared_lines.begin(), shared_lines.end(),
                                 [&](const SharedLine& shared) { return shared.number == number; });
  return line == shared_lines.end() ? nullptr : &*line;
}

std::vector<PlacedRegion> ResourceState::placed_regions() const {
  std::vector<PlacedRegion> placed;
  for (const DeviceRecord* record : owners_) {
    for (const HeldRegion& held : record->regions) {
      if (!held.parked) placed.push_back({held.region.get(), &held, record});
    }
  }
  return placed;
}

}  // namespace vmspace::detail
