// SPDX-License-Identifier: Apache-2.0

#include "vmspace/resources/device_resources.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "vmspace/base/try.hpp"

#include "resources/device_record.hpp"
#include "resources/resource_state.hpp"

namespace vmspace {

namespace {

/// Ends the process: any range that a caller got instead would be mapped, routed or programmed.
[[noreturn]] void no_such_index() noexcept {
  static_cast<void>(std::fputs("DeviceResources: the index must be below count(kind)\n", stderr));
  std::abort();
}

/// The element with this index among those of a kind.
template <typename Held>
const Held& nth(const detail::DeviceRecord* record, std::vector<Held> detail::DeviceRecord::*list,
                ResourceKind kind, std::size_t index) noexcept {
  if (record == nullptr) no_such_index();
  for (const Held& entry : record->*list) {
    if (entry.kind == kind && index-- == 0) return entry;
  }
  no_such_index();
}

const detail::HeldRegion& region(const detail::DeviceRecord* record, ResourceKind kind,
                                 std::size_t index) noexcept {
  return nth(record, &detail::DeviceRecord::regions, kind, index);
}

const detail::HeldWindow& held_window(const detail::DeviceRecord* record,
                                      std::size_t index) noexcept {
  if (record == nullptr || index >= record->windows.size()) no_such_index();
  return record->windows[index];
}

}  // namespace

DeviceResources::DeviceResources(std::shared_ptr<detail::ResourceState> state,
                                 std::unique_ptr<detail::DeviceRecord> record) noexcept
    : state_(std::move(state)), record_(std::move(record)) {}

DeviceResources::DeviceResources(DeviceResources&& other) noexcept = default;

DeviceResources& DeviceResources::operator=(DeviceResources&& other) noexcept {
  DeviceResources moved(std::move(other));
  std::swap(state_, moved.state_);
  std::swap(record_, moved.record_);
  return *this;
}

DeviceResources::~DeviceResources() {
  if (is_held()) give_back();
}

void DeviceResources::give_back() noexcept {
  if (!record_->regions.empty()) {
    auto held = record_->regions.rbegin();
    for (AddressSpaceRegionPtr& region : record_->retirement)
      region = (held++)->region;
    state_->ledger->retire(std::move(record_->retirement));
  }
  state_->give_back(std::move(record_));
  state_.reset();
}

Result<void> DeviceResources::release() {
  constexpr const char* operation = "DeviceResources::release";
  if (!is_held()) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .reason = "the resources were already released or moved from"});
  }
  if (!record_->regions.empty()) {
    const RegionLedger::Edit remove = [this](AddressSpaceBase& draft) -> Result<void> {
      for (auto held = record_->regions.rbegin(); held != record_->regions.rend(); ++held) {
        VMSPACE_TRY(draft.remove_region(held->region));
      }
      return {};
    };
    if (const auto removed = state_->ledger->transact(remove); !removed) {
      return fail(removed.error().in(operation));
    }
  }
  {
    const detail::ResourceState::Lock lock(*state_);
    state_->leave(*record_);
  }
  record_.reset();
  state_.reset();
  return {};
}

const std::string& DeviceResources::owner() const noexcept {
  static const std::string nobody;
  if (record_ == nullptr) return nobody;
  return record_->owner;
}

std::size_t DeviceResources::count(ResourceKind kind) const noexcept {
  if (!is_held()) return 0;
  if (kind == ResourceKind::bridge_window) return record_->windows.size();
  const auto is_kind = [kind](const auto& held) { return held.kind == kind; };
  const auto numbers = std::count_if(record_->numbers.begin(), record_->numbers.end(), is_kind);
  const auto regions = std::count_if(record_->regions.begin(), record_->regions.end(), is_kind);
  return static_cast<std::size_t>(numbers + regions);
}

Range DeviceResources::number(ResourceKind kind, std::size_t index) const noexcept {
  return nth(record_.get(), &detail::DeviceRecord::numbers, kind, index).range;
}

Range DeviceResources::pio(std::size_t index) const noexcept {
  return number(ResourceKind::pio, index);
}

AddressSpaceRegionPtr DeviceResources::mmio(std::size_t index) const noexcept {
  return region(record_.get(), ResourceKind::mmio, index).region;
}

bool DeviceResources::is_parked(ResourceKind kind, std::size_t index) const noexcept {
  if (index >= count(kind)) no_such_index();
  if (kind == ResourceKind::bridge_window) return held_window(record_.get(), index).parked;
  if (kind == ResourceKind::pio)
    return nth(record_.get(), &detail::DeviceRecord::numbers, kind, index).parked;
  return kind == ResourceKind::mmio && region(record_.get(), kind, index).parked;
}

AddressSpaceRegionPtr DeviceResources::memory(std::size_t index) const noexcept {
  return region(record_.get(), ResourceKind::memory, index).region;
}

Range DeviceResources::bridge_window(std::size_t index) const noexcept {
  return held_window(record_.get(), index).range;
}

std::uint32_t DeviceResources::legacy_irq(std::size_t index) const noexcept {
  return static_cast<std::uint32_t>(number(ResourceKind::legacy_irq, index).min());
}

Range DeviceResources::generic_irq(std::size_t index) const noexcept {
  return number(ResourceKind::generic_irq, index);
}

Range DeviceResources::msi(std::size_t index) const noexcept {
  return number(ResourceKind::msi, index);
}

Range DeviceResources::msix(std::size_t index) const noexcept {
  return number(ResourceKind::msix, index);
}

Range DeviceResources::kvm_slot(std::size_t index) const noexcept {
  return number(ResourceKind::kvm_slot, index);
}

PciSlot DeviceResources::pci_device(std::size_t index) const noexcept {
  return detail::pci_slot(number(ResourceKind::pci_device, index).min());
}

std::array<std::uint8_t, 6> DeviceResources::mac_address(std::size_t index) const noexcept {
  const std::uint64_t address = number(ResourceKind::mac_address, index).min();
  std::array<std::uint8_t, 6> bytes{};
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::uint8_t>(address >> (8 * (bytes.size() - 1 - i)));
  return bytes;
}

}  // namespace vmspace
