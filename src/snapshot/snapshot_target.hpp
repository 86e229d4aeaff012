// SPDX-License-Identifier: Apache-2.0
//
// Guest memory that a snapshot is restored to.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vmspace/base/result.hpp"
#include "vmspace/host/page_scan.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/snapshot_region.hpp"

namespace vmspace::detail {

/// What these errors name as their operation.
inline constexpr const char* restoring = "restore_snapshot";
/// How much is read at once where it can't go to its place at once.
inline constexpr std::uint64_t restore_buffer = std::uint64_t{1} << 20;

/// Whether memory has the places and sizes of the snapshot's regions. Errors: `invalid_argument`;
/// `access_denied` for a region that may not be read.
[[nodiscard]] Result<void> check_layout(const GuestMemory& memory,
                                        std::span<const SnapshotRegion> regions);

/// The bytes of all regions, absent blocks included: GuestMemory::total_size() has what is present.
[[nodiscard]] inline std::uint64_t whole_size(const GuestMemory& memory) noexcept {
  std::uint64_t size = 0;
  for (const MemoryRegionPtr& region : memory.regions())
    size += region->size();
  return size;
}

/// One region that a snapshot is restored to. Parts of it are whole pages, given by their offset.
/// Errors: those of restore_snapshot().
class RestoreTarget {
 public:
  explicit RestoreTarget(const MemoryRegion& region) : region_(region), scan_(region.mapping()) {}

  [[nodiscard]] const MemoryRegion& region() const noexcept { return region_; }
  [[nodiscard]] bool is_writable() const noexcept {
    return allows(region_.protection(), Protection::write);
  }
  /// Whether contents can be read to their place at once. Not where a page may be gone: that is
  /// found out while copying.
  [[nodiscard]] bool is_direct() const noexcept { return is_writable() && !region_.may_fault(); }

  /// Makes all that is present of a part 0, and touches nothing that is absent. Of a region that may
  /// not be written it must be 0 already. Parts must ascend from call to call.
  [[nodiscard]] Result<void> clear(Extent part);
  /// Puts pages to their places; they must be there already where the region may not be written, and
  /// be zeros where it has a block that is not present.
  [[nodiscard]] Result<void> put(std::uint64_t offset, std::span<const std::byte> pages) const;
  /// Whether a region that may not be written has these pages.
  [[nodiscard]] Result<void> compare(std::uint64_t offset, std::span<const std::byte> pages) const;
  /// Whether what is not present of the part is zeros in `pages`.
  [[nodiscard]] Result<void> check_absent(std::uint64_t offset,
                                          std::span<const std::byte> pages) const;

 private:
  [[nodiscard]] Result<void> clear_present(Extent part);

  const MemoryRegion& region_;
  PageScan scan_;
};

}  // namespace vmspace::detail
