// SPDX-License-Identifier: Apache-2.0
//
// What the memory of a region is to be made of, as data. Nothing is opened or mapped here: that is
// the host layer's (Backing, MemoryMapping).

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// Where the pages of a region come from. The names are what a VMM's configuration calls them.
enum class MemorySource : std::uint8_t {
  none,       ///< nothing on the host: emulated, or reserved
  anon,       ///< anonymous pages (MAP_ANONYMOUS)
  shmem,      ///< a memfd: can be handed to other processes
  hugeanon,   ///< anonymous hugetlb pages (MAP_HUGETLB)
  hugeshmem,  ///< a memfd on hugetlb pages (MFD_HUGETLB)
  hugetlbfs,  ///< an unlinked file made in a mounted hugetlbfs
  file,       ///< an existing regular file, by path or by descriptor
  device,     ///< what a device's file maps, such as a VFIO BAR or a dma-buf, by path or descriptor
  external,   ///< memory that something else has mapped (ExternalMemory)
};

/// Whether writes reach the backing and everybody else who maps it (mmap(2): MAP_SHARED,
/// MAP_PRIVATE).
enum class Sharing : std::uint8_t {
  by_source,    ///< private for anon and hugeanon, shared for the others
  map_shared,   ///< writes go to the backing
  map_private,  ///< writes stay in this mapping (copy on write)
};

/// A backing as a VMM's configuration describes it; an aggregate for designated initialisers:
/// `{.source = MemorySource::shmem}`.
struct VMSPACE_EXPORT BackingSpec {
  MemorySource source = MemorySource::none;  ///< where the pages come from; none: nothing is mapped
  /// file, device: the path of the file; hugetlbfs: a directory of a mounted one; otherwise empty.
  std::string path = {};
  /// file, device: an open descriptor instead of a path. It stays the caller's: opening duplicates it.
  std::optional<int> fd = {};
  /// file, device: where in the file the region begins, in bytes; a multiple of the page size. Of a
  /// VFIO device it is the offset that VFIO_DEVICE_GET_REGION_INFO tells.
  std::uint64_t offset = 0;
  /// The size in bytes of the pages that it is made of. 0 means the default: 2 MiB for hugeanon,
  /// hugeshmem and hugetlbfs, the machine's base page size for the others.
  std::uint64_t page_size = 0;
  /// Whether writes reach the backing.
  Sharing sharing = Sharing::by_source;
  /// file: discarding memory may punch holes in it, which lose its contents.
  bool discardable = false;

  /// The page size with the default applied: bases, sizes and offsets are multiples of it.
  [[nodiscard]] std::uint64_t effective_page_size() const noexcept;
  /// Whether a mapping of it is MAP_SHARED, with the default applied.
  [[nodiscard]] bool is_shared() const noexcept;
  /// Whether its pages come from the hugetlb pool.
  [[nodiscard]] bool is_hugetlb() const noexcept;

  friend bool operator==(const BackingSpec&, const BackingSpec&) = default;
};

/// The source with this name (`shmem`, `hugeshmem`, `anon`, `hugeanon`, `hugetlbfs`, `file`,
/// `device`, `external`, `none`). Errors: `invalid_argument` for any other text, which the error quotes. O(1).
[[nodiscard]] VMSPACE_EXPORT Result<MemorySource> parse_memory_source(std::string_view name);

/// The name of a source, as parse_memory_source() reads it; `unknown` for any other value.
[[nodiscard]] VMSPACE_EXPORT std::string_view name_of(MemorySource source) noexcept;

}  // namespace vmspace
