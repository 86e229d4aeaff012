// SPDX-License-Identifier: Apache-2.0
//
// What a region's memory shall come from, as data. Nothing here opens or maps anything: the memory
// layer does, when it is asked to.

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
  file,       ///< an existing regular file, or a descriptor handed in
};

/// Whether writes reach the backing and whoever else maps it (mmap(2): MAP_SHARED, MAP_PRIVATE).
enum class Sharing : std::uint8_t {
  by_source,    ///< private for anon and hugeanon, shared for the others
  map_shared,   ///< writes go to the backing
  map_private,  ///< writes stay in this mapping (copy on write)
};

/// A backing as a VMM's configuration describes it; an aggregate for designated initialisers:
/// `{.source = MemorySource::shmem}`.
struct VMSPACE_EXPORT BackingSpec {
  MemorySource source = MemorySource::none;
  /// file: the file; hugetlbfs: the directory where it is mounted. Else empty.
  std::string path = {};
  /// file: an open descriptor instead of a path. The caller keeps it; opening duplicates it.
  std::optional<int> descriptor = {};
  /// file: where in the file the region begins, in bytes; a multiple of the page size.
  std::uint64_t offset = 0;
  /// The size in bytes of the pages it is made of. 0 is the default: 2 MiB for hugeanon, hugeshmem
  /// and hugetlbfs, the machine's base page for the others.
  std::uint64_t page_size = 0;
  Sharing sharing = Sharing::by_source;
  /// file: its contents may be thrown away (holes punched) when pages are given back.
  bool discardable = false;

  /// The page size that holds after the default: every base, size and offset is a multiple of it.
  [[nodiscard]] std::uint64_t effective_page_size() const noexcept;
  /// Whether a mapping of it is MAP_SHARED, after the default.
  [[nodiscard]] bool is_shared() const noexcept;
  /// Whether its pages come from the hugetlb pool.
  [[nodiscard]] bool is_hugetlb() const noexcept;

  friend bool operator==(const BackingSpec&, const BackingSpec&) = default;
};

/// The source with this name (`shmem`, `hugeshmem`, `anon`, `hugeanon`, `hugetlbfs`, `file`,
/// `none`); `invalid_argument` for any other text.
[[nodiscard]] VMSPACE_EXPORT Result<MemorySource> parse_memory_source(std::string_view name);

/// The name that parse_memory_source reads.
[[nodiscard]] VMSPACE_EXPORT std::string_view name_of(MemorySource source) noexcept;

}  // namespace vmspace
