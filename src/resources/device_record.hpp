// SPDX-License-Identifier: Apache-2.0
//
// What one owner holds, with all the memory that returning it needs.

#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmspace/address_space/address_space_region.hpp"
#include "vmspace/address_space/region_ledger.hpp"
#include "vmspace/allocator/detail/range_pool_state.hpp"
#include "vmspace/allocator/range.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/resources/resource_request.hpp"

namespace vmspace::detail {

/// Numbers of a kind.
struct HeldNumber {
  ResourceKind kind;
  Range range;
  bool shared = false;  ///< an interrupt line that others may hold too
  // Of ports:
  bool parked = false;     ///< `range` is where they have been
  bool unaligned = false;  ///< they were fixed where no BAR can be, and may move anywhere
  std::optional<Range> leaving = {};  ///< while a change that moves them away may still fail
  std::uint64_t align = 0;            ///< as requested; 0: default
};

/// A region in the ledger and the constraints it was requested with.
struct HeldRegion {
  ResourceKind kind;  ///< mmio or memory
  AddressSpaceRegionPtr region;
  bool parked = false;
  bool unaligned = false;  ///< MMIO that was fixed where no BAR can be: it may move anywhere
  std::optional<Range> leaving = {};  ///< while a change that moves it away may still fail
  std::uint64_t align = 0;            ///< as requested; 0: default
  MmioReach reach = MmioReach::any;
  bool prefetchable = false;
  std::string bridge = {};    ///< of MMIO
  std::string aperture = {};  ///< as it was asked
};

/// A bridge window, which only ranges behind the bridge may overlap.
struct HeldWindow {
  Range range;  ///< where it has been, when it is parked
  bool parked = false;
  std::optional<Range> leaving = {};  ///< while a change that moves it away may still fail
  /// The call that has acquired or moved it, and may still fail; null once that is settled.
  const void* unsettled_by = nullptr;
  std::uint64_t align = 0;  ///< as it was asked
  MmioReach reach = MmioReach::any;
  bool prefetchable = false;
  std::string bridge = {};    ///< the bridge that this one is behind
  std::string aperture = {};  ///< as it was asked
};

struct VMSPACE_HIDDEN DeviceRecord {
  explicit DeviceRecord(std::string_view owner_name)
      : owner(owner_name), hash(std::hash<std::string_view>()(owner_name)) {}

  const std::string owner;
  const std::size_t hash;  ///< of the owner
  std::vector<HeldNumber> numbers = {};
  std::vector<PoolHolding> slots = {};  ///< of those numbers that are memory slots; never moved
  std::vector<HeldRegion> regions = {};
  std::vector<HeldWindow> windows = {};
  RegionList retirement = {};  ///< one spare list node per region, filled in by give_back()

  DeviceRecord* next_returned = nullptr;  ///< for ResourceState

  // For OwnerTable.
  DeviceRecord* next_in_bucket = nullptr;
  DeviceRecord* before = nullptr;  ///< the owner that acquired before this one
  DeviceRecord* after = nullptr;
};

/// The effective alignment of a request for ports.
constexpr std::uint64_t port_alignment(std::uint64_t size, std::uint64_t align) noexcept {
  constexpr std::uint64_t all_ports = 0x1'0000;
  return align != 0 ? align : std::bit_ceil(std::min(size, all_ports));
}

/// The effective alignment of an MMIO request.
constexpr std::uint64_t mmio_alignment(std::uint64_t size, std::uint64_t align) noexcept {
  constexpr std::uint64_t page = 4096;
  constexpr std::uint64_t most = std::uint64_t{1} << 63U;
  if (align != 0) return align;
  return size > most ? most : std::max(page, std::bit_ceil(size));
}

}  // namespace vmspace::detail
