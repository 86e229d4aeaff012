// SPDX-License-Identifier: Apache-2.0
//
// From a guest physical address to the region that holds it, for the price of three dependent
// loads.
//
// The span from the first region to the last is cut into slots of a power of two bytes. `hints`
// names for each slot the last region that begins at or below the slot's start, so that one shift
// and one load leave to choose only between that region and those that begin inside the slot. A
// binary search without branches picks among them. It takes the same number of steps for every
// slot, because steps that vary from address to address cost more in mispredicted branches than
// they save. Slots are as large as they can be without adding a step, and at most 8192 (16 KiB of
// hints): two regions need two slots. Regions laid out as VMMs do it need the one step that is
// always made; clusters of tiny regions far apart, which fall into one slot, need up to as many as
// a plain binary search.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace vmspace {

class DirtyBitmap;

namespace detail {

/// One region as the hot path sees it. 32 bytes, so that indexing is a shift.
struct TranslationEntry {
  std::uint64_t first;  ///< the lowest guest address
  std::uint64_t size;   ///< bytes, at least min_region_size
  std::byte* host;      ///< where `first` is mapped
  /// Where writes are recorded; null where the guest memory must not be written.
  DirtyBitmap* dirty;
};
static_assert(sizeof(TranslationEntry) == 32);

/// No region is smaller: the smallest page of the machines we run on.
inline constexpr std::uint64_t min_region_size = 4096;

/// What a look-up reads. Trivially copyable: whoever looks up often keeps a copy at hand, and alive
/// the TranslationTable that it was taken from.
///
/// Invariant: `base` is the first address of the first entry, so that every address in
/// [base, base + span] has an entry that begins at or below it.
struct Translator {
  std::uint64_t base;
  std::uint64_t span;  ///< from `base` to the last address of the last region
  const std::uint16_t* hints;
  const TranslationEntry* entries;
  std::uint32_t shift;  ///< a slot is 2^shift bytes
  std::uint32_t extra;  ///< search steps besides the one that is always made

  /// The entry that holds all `size` bytes from `gpa`; null when no single one does. `size` is 1 to
  /// min_region_size: no region is smaller, which saves a comparison.
  [[nodiscard, gnu::always_inline]] const TranslationEntry* find(
      std::uint64_t gpa, std::uint64_t size) const noexcept {
    const TranslationEntry* entry = nearest(gpa);
    // Below the entry, the difference wraps to a number above every size. Nothing is added to a
    // guest's number, so nothing can wrap the other way.
    if (entry == nullptr || gpa - entry->first > entry->size - size) [[unlikely]]
      return nullptr;
    return entry;
  }

  /// The same for any size. One comparison more.
  [[nodiscard, gnu::always_inline]] const TranslationEntry* find_any(
      std::uint64_t gpa, std::uint64_t size) const noexcept {
    const TranslationEntry* entry = find(gpa, 1);
    if (entry == nullptr || entry->size - (gpa - entry->first) < size) [[unlikely]]
      return nullptr;
    return entry;
  }

 private:
  /// The last entry that begins at or below `gpa`; null outside of [base, base + span].
  [[nodiscard, gnu::always_inline]] const TranslationEntry* nearest(
      std::uint64_t gpa) const noexcept {
    const std::uint64_t offset = gpa - base;
    if (offset > span) [[unlikely]]
      return nullptr;
    const TranslationEntry* entry = entries + hints[offset >> shift];
    if (extra != 0) [[unlikely]] {
      for (std::uint32_t step = extra; step != 0; --step) {
        entry += std::size_t{entry[std::size_t{1} << step].first <= gpa} << step;
      }
    }
    // Arithmetic and not `if`: which way it goes is as good as random, and a branch would guess.
    entry += std::size_t{entry[1].first <= gpa};
    return entry;
  }
};

/// The memory that a Translator points into. Immutable once built, so safe to read from any thread.
class TranslationTable {
 public:
  static constexpr std::size_t max_slots = 8192;
  /// As many as 16-bit hints can name; callers set lower limits of their own.
  static constexpr std::size_t max_entries = 32768;

  /// Builds the table. The entries are sorted by address, do not overlap, and are at most
  /// max_entries. O(64 n + max_slots).
  explicit TranslationTable(std::span<const TranslationEntry> entries);

  [[nodiscard]] const Translator& translator() const noexcept { return translator_; }
  [[nodiscard]] std::span<const TranslationEntry> entries() const noexcept {
    return {entries_.get(), count_};
  }

  /// The translator of no regions at all: finds nothing, and lives for ever.
  [[nodiscard]] static const Translator& empty() noexcept;

 private:
  std::unique_ptr<TranslationEntry[]> entries_;
  std::unique_ptr<std::uint16_t[]> hints_;
  std::size_t count_;
  Translator translator_;
};

}  // namespace detail
}  // namespace vmspace
