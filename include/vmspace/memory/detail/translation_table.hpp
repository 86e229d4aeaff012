// SPDX-License-Identifier: Apache-2.0
//
// From a guest physical address to the region that holds it, for the price of three dependent
// loads.
//
// The space from 0 to the last region is cut into slots of a power of two bytes. A hint names for
// each slot the last region that begins at or below the slot's start, so that one shift and one
// load leave to choose only between that region and those that begin inside the slot. A binary
// search without branches picks among them. It takes the same number of steps for every slot,
// because steps that vary from address to address cost more in mispredicted branches than they
// save. Slots are as large as they can be without adding a step, and at most 8192 (16 KiB of
// hints): two regions need two slots. Regions laid out as VMMs do it need the one step that is
// always made; clusters of tiny regions far apart, which fall into one slot, need up to as many as
// a plain binary search.
//
// Hints and entries share one block of memory, and a Translator has three words. An accessor that
// stores to guest memory has to load those words anew each time, since for all the compiler knows
// the store went there; on an AMD Zen 3 each such load after a store was measured to cost a
// nanosecond.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
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
/// Invariant: every address up to `limit` has a hint. The entry that a search ends on is the last
/// that begins at or below the address, or, below all regions, the first.
struct Translator {
  std::uint64_t limit;     ///< the last address of the last region
  const std::byte* block;  ///< the hints, then the entries, in units of an entry
  /// The low six bits: a slot is 2^n bytes. Above: search steps besides the one that is always
  /// made.
  std::uint64_t shape;

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

  /// The same for any size, and null for size 0. One comparison more.
  [[nodiscard, gnu::always_inline]] const TranslationEntry* find_any(
      std::uint64_t gpa, std::uint64_t size) const noexcept {
    const TranslationEntry* entry = find(gpa, 1);
    // Less one, so that no size of 0 passes: it wraps to the largest.
    if (entry == nullptr || size - 1 >= entry->size - (gpa - entry->first)) [[unlikely]] {
      return nullptr;
    }
    return entry;
  }

 private:
  /// The entry that holds `gpa` if any does; null above all regions.
  [[gnu::always_inline]] const TranslationEntry* nearest(std::uint64_t gpa) const noexcept {
    if (gpa > limit) [[unlikely]]
      return nullptr;
    const std::size_t hint = reinterpret_cast<const std::uint16_t*>(block)[gpa >> (shape % 64)];
    const TranslationEntry* entry = reinterpret_cast<const TranslationEntry*>(block) + hint;
    // With a probability that makes the compiler move the loop out of the way; [[unlikely]] does
    // not.
    if (__builtin_expect_with_probability(shape >= 64, 0, 0.9999)) {
      for (std::uint64_t step = shape / 64; step != 0; --step) {
        entry += unpredictable(entry[std::size_t{1} << step].first <= gpa) << step;
      }
    }
    return entry + unpredictable(entry[1].first <= gpa);
  }

  /// 0 or 1, as a number and never a branch. Which it is, is as good as random, so that a branch
  /// would be guessed wrong half of the time; the empty assembly keeps compilers from making one.
  [[gnu::always_inline]] static std::size_t unpredictable(bool condition) noexcept {
    std::size_t number = condition ? 1 : 0;
    asm("" : "+r"(number));
    return number;
  }
};

/// The memory that a Translator points into. Immutable once built, so safe to read from any thread.
class TranslationTable {
 public:
  static constexpr std::size_t max_slots = 8192;
  /// 16-bit hints can name a few more; callers set lower limits of their own.
  static constexpr std::size_t max_entries = 32768;

  /// Builds the table. The entries are sorted by address, do not overlap, and are at most
  /// max_entries. O(64 n + max_slots).
  explicit TranslationTable(std::span<const TranslationEntry> entries);

  [[nodiscard]] const Translator& translator() const noexcept { return translator_; }
  [[nodiscard]] std::span<const TranslationEntry> entries() const noexcept { return entries_; }

  /// The translator of no regions at all: finds nothing, and lives for ever.
  [[nodiscard]] static const Translator& empty() noexcept;

 private:
  /// Entries do not cross cache lines.
  struct Block {
    static constexpr std::align_val_t align{64};
    void operator()(std::byte* bytes) const noexcept { ::operator delete(bytes, align); }
  };

  std::unique_ptr<std::byte, Block> block_;
  std::span<const TranslationEntry> entries_;
  Translator translator_;
};

}  // namespace detail
}  // namespace vmspace
