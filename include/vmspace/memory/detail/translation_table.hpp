// SPDX-License-Identifier: Apache-2.0
//
// From a guest physical address to the region that holds it: a DecodeTable whose entries have all that
// an access needs.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "vmspace/allocator/detail/decode_table.hpp"
#include "vmspace/base/export.hpp"

namespace vmspace {

class DirtyBitmap;

namespace detail {

/// No region is smaller: the smallest page of the machines we run on.
inline constexpr std::uint64_t min_region_size = 4096;

/// One region as the hot path sees it. 32 bytes, so that indexing is a shift.
struct TranslationEntry {
  std::uint64_t first;  ///< the lowest guest address
  std::uint64_t size;   ///< bytes, at least min_region_size
  std::byte* host;      ///< where `first` is mapped
  /// Where writes are recorded; null where the guest memory must not be written.
  DirtyBitmap* dirty;

  [[nodiscard]] static constexpr TranslationEntry smallest(std::uint64_t first) noexcept {
    return {.first = first, .size = min_region_size, .host = nullptr, .dirty = nullptr};
  }
};
static_assert(sizeof(TranslationEntry) == 32);

/// Finds entries; see Decoder.
struct Translator : Decoder<TranslationEntry> {
  /// The entry that holds all `size` bytes from `gpa`; null when no single one does. `size` is 1 to
  /// min_region_size: no region is smaller, which saves a comparison.
  [[nodiscard, gnu::always_inline]] const TranslationEntry* find(
      std::uint64_t gpa, std::uint64_t size) const noexcept {
    const TranslationEntry* entry = nearest(gpa);
    // Below the entry, the difference wraps to a number above every size. Nothing is added to a
    // guest's number, so nothing can wrap the other way.
    if (gpa - entry->first > entry->size - size) [[unlikely]]
      return nullptr;
    return entry;
  }

  /// As find(), for any size; null for size 0. One comparison more.
  [[nodiscard, gnu::always_inline]] const TranslationEntry* find_any(
      std::uint64_t gpa, std::uint64_t size) const noexcept {
    const TranslationEntry* entry = find(gpa, 1);
    // Less one, so that no size of 0 passes: it wraps to the largest.
    if (entry == nullptr || size - 1 >= entry->size - (gpa - entry->first)) [[unlikely]] {
      return nullptr;
    }
    return entry;
  }
};

/// The regions of a map that are found by address.
class TranslationTable : public DecodeTable<TranslationEntry> {
 public:
  TranslationTable() = default;
  /// The entries are sorted by address, do not overlap, and are at most max_entries. O(n + slots).
  explicit TranslationTable(std::span<const TranslationEntry> entries);

  [[nodiscard]] Translator translator() const noexcept { return {decoder()}; }

  /// The translator of no regions at all: finds nothing, and lives for ever.
  //
  // Not inline: the library and a program have a copy each of what is, and the invariant of a map
  // without regions is that it has this one.
  [[nodiscard]] static VMSPACE_EXPORT Translator empty() noexcept;
};

}  // namespace detail
}  // namespace vmspace
