// SPDX-License-Identifier: Apache-2.0
//
// Processes requests one by one in a way that can be undone.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/resources/resource_request.hpp"

#include "resources/device_record.hpp"
#include "resources/mmio_windows.hpp"
#include "resources/resource_state.hpp"

namespace vmspace::detail {

/// Adds requested resources to records that reserve() has prepared. Numbers are taken from the
/// state, whose mutex the caller holds; regions are inserted into the draft. A call that fails or
/// throws takes nothing.
class Acquisition {
 public:
  /// `draft` may be null if no request is for addresses. With `adopts`, a range may also be where a
  /// bridge that is gone, or whose windows are all parked, left it. Windows stay unsettled until
  /// `caller` settles them.
  Acquisition(ResourceState& state, AddressSpaceBase* draft, bool adopts,
              const void* caller) noexcept
      : state_(state), draft_(draft), adopts_(adopts), caller_(caller) {}

  /// Takes the region that a claim describes out of the draft, so that its place is free for take() to
  /// check and to fill with this very region. Null when the draft does not have it, or when it is one of
  /// `retired`, which is sorted: the next change would take it out.
  [[nodiscard]] AddressSpaceRegionPtr lift(
      const ResourceRequest& claim, const DeviceRecord& record,
      std::span<const AddressSpaceRegion* const> retired) const;

  /// Meets a request; with the region that lift() gave for it, if any. Errors: those of
  /// ResourceManager::acquire, without operation and request.
  [[nodiscard]] Result<void> take(const ResourceRequest& request, DeviceRecord& record,
                                  AddressSpaceRegionPtr lifted = nullptr);

 private:
  [[nodiscard]] Result<void> take(const PioRange& request, DeviceRecord& record);
  [[nodiscard]] Result<void> take(const MmioRange& request, DeviceRecord& record);
  [[nodiscard]] Result<void> take(const MemoryRange& request, DeviceRecord& record);
  [[nodiscard]] Result<void> take(const BridgeWindow& request, DeviceRecord& record);
  [[nodiscard]] Result<void> take(const LegacyIrq& request, DeviceRecord& record);
  [[nodiscard]] Result<void> take(const GenericIrq& request, DeviceRecord& record);
  [[nodiscard]] Result<void> take(const MsiVectors& request, DeviceRecord& record);
  [[nodiscard]] Result<void> take(const MsixVectors& request, DeviceRecord& record);
  [[nodiscard]] Result<void> take(const KvmSlots& request, DeviceRecord& record);
  [[nodiscard]] Result<void> take(const PciDevice& request, DeviceRecord& record);
  [[nodiscard]] Result<void> take(const MacAddress& request, DeviceRecord& record);

  /// A request for numbers.
  struct Numbers {
    ResourceKind kind;
    std::uint64_t size;
    std::uint64_t align = 1;
    std::optional<Range> window = {};
    std::optional<std::uint64_t> fixed = {};
  };
  [[nodiscard]] Result<void> take_numbers(const Numbers& wanted, DeviceRecord& record);
  /// Takes exactly these; on conflict the error names the holder.
  [[nodiscard]] Result<void> take_at(ResourceKind kind, Range range);
  /// Takes a line exclusively.
  [[nodiscard]] Result<Range> take_line(std::optional<std::uint32_t> fixed);
  /// The shared line with the fewest holders; null when no line is shared.
  [[nodiscard]] SharedLine* least_shared() noexcept;

  /// Finds a place for a range: its fixed one, checked, or a free one.
  [[nodiscard]] Result<Range> place(const MmioPlace& wanted,
                                    std::optional<GuestAddress> fixed) const;
  /// Inserts a region into the draft and the record: the one that was lifted, or a new one.
  [[nodiscard]] Result<void> enter(RegionOptions options, HeldRegion held, DeviceRecord& record);

  /// Checks what does not depend on where the window goes: its parent bridge and leftovers of
  /// earlier bridges.
  [[nodiscard]] Result<void> check_bridge(const BridgeWindow& request,
                                          const DeviceRecord& record) const;

  ResourceState& state_;
  AddressSpaceBase* draft_;
  bool adopts_;
  const void* caller_;
  AddressSpaceRegionPtr lifted_ = nullptr;  ///< for the request that is being met
};

/// Whether a request asks for guest physical addresses.
constexpr bool needs_addresses(ResourceKind kind) noexcept {
  return kind == ResourceKind::mmio || kind == ResourceKind::memory ||
         kind == ResourceKind::bridge_window;
}

/// The capacity that a record needs.
struct RecordSize {
  std::size_t numbers = 0;
  std::size_t slots = 0;  ///< of the numbers
  std::size_t regions = 0;
  std::size_t windows = 0;

  /// Counts a request.
  void add(ResourceKind kind) noexcept {
    if (kind == ResourceKind::bridge_window) {
      ++windows;
    } else if (needs_addresses(kind)) {
      ++regions;
    } else {
      ++numbers;
      slots += kind == ResourceKind::kvm_slot;
    }
  }
  [[nodiscard]] bool has_addresses() const noexcept { return regions + windows != 0; }
};

/// Reserves this capacity, so that adding to the record does not allocate.
void reserve(DeviceRecord& record, const RecordSize& size);

/// Whether a request names one exact resource.
[[nodiscard]] bool is_fixed(const ResourceRequest& request);

/// `bad_alignment` unless the alignment is a power of two, or 0, which stands for the default.
[[nodiscard]] Result<void> check_alignment(std::uint64_t align);
/// `misaligned` unless an address or a size is a multiple of the unit.
[[nodiscard]] Result<void> check_multiple(Operand value, std::uint64_t unit);

/// The placement constraints of a range.
[[nodiscard]] MmioPlace place_of(const HeldRegion& held) noexcept;
[[nodiscard]] MmioPlace place_of(const HeldWindow& held) noexcept;

}  // namespace vmspace::detail
