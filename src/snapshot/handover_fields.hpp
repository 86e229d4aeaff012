// SPDX-License-Identifier: Apache-2.0
//
// What writing and reading the map of a handover have in common.

#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "vmspace/base/error_text.hpp"
#include "vmspace/base/result.hpp"

#include "snapshot/handover_format.hpp"

namespace vmspace::detail {

/// Flags of a region.
namespace handover_flag {
inline constexpr std::uint32_t has_node = 1;
inline constexpr std::uint32_t huge_pages = 2;
inline constexpr std::uint32_t hotplug = 4;
inline constexpr std::uint32_t populate = 8;
inline constexpr std::uint32_t discardable = 16;
inline constexpr std::uint32_t by_descriptor = 32;
inline constexpr std::uint32_t parked = 64;
inline constexpr std::uint32_t mapped = 128;
inline constexpr std::uint32_t guarded = 256;
inline constexpr std::uint32_t all_flags = 511;
}  // namespace handover_flag

inline constexpr const char* too_many_regions = "a handover has at most 65,536 regions";
inline constexpr const char* too_many_parked = "a handover has at most 1,024 parked regions";
inline constexpr const char* too_many_windows = "a handover has at most 256 apertures and holes";
inline constexpr const char* too_many_runs = "a region has at most 4,096 runs of present blocks";
inline constexpr const char* too_many_blocks =
    "regions in blocks have at most 2^35 blocks times runs of present ones";

/// Names are printed: in them are printable characters only, in UTF-8.
inline bool is_printable(std::string_view text) {
  while (!text.empty()) {
    // A quotation mark is escaped only because messages put names in quotes.
    const TextUnit unit = next_unit(text);
    if (unit.is_escaped() && text.front() != '"') return false;
    text.remove_prefix(unit.read);
  }
  return true;
}

inline tl::unexpected<Error> exceeds(const char* operation, std::uint64_t count,
                                     std::uint64_t limit, const char* reason,
                                     std::string_view name = {}) {
  return fail({.code = Errc::limit_exceeded,
               .operation = operation,
               .first = Operand::number(count),
               .second = Operand::number(limit),
               .reason = reason,
               .text = name});
}

/// What the blocks of all regions may cost.
struct BlockBudget {
  std::uint64_t work = handover_max_block_work;
  std::uint64_t slots = handover_max_slots;

  /// Takes what a region's blocks cost; false when that is more than is left.
  bool take(const HandoverRegion& region) noexcept {
    if (!region.place || region.place->block_size == 0) return true;
    const std::uint64_t blocks = region.options.size / region.place->block_size;
    const std::uint64_t runs = region.place->present.size() + 1;
    // No slot is smaller than a block, which is checked later.
    const std::uint64_t slots_here =
        region.options.size / std::max(region.place->slot_size, region.place->block_size);
    if (blocks > work / runs || slots_here > slots) return false;
    work -= blocks * runs;
    slots -= slots_here;
    return true;
  }
};

}  // namespace vmspace::detail
