// SPDX-License-Identifier: Apache-2.0
//
// From a guest physical address to the region that holds it, for the price of three dependent
// loads.
//
// The space from 0 to the last region is split into slots of a power of two bytes. A hint names for
// each slot the last region that begins at or below the slot's start, so that one shift and one
// load leave to choose only between that region and those that begin inside the slot. A binary
// search without branches picks among them. It takes the same number of steps for every slot,
// because steps that vary from address to address cost more in mispredicted branches than they
// save. Slots are as large as they can be without adding a step, so that few are in use: two
// regions need two. Regions laid out as VMMs do it need the one step that is always made; clusters
// of tiny regions far apart, which fall into one slot, need up to as many as a plain binary search.
//
// There are always 8192 hints, 16 KiB, of which the memory in use takes a few cache lines. An
// address above all slots is taken modulo their number: it lands on a hint of another address, and
// is refused by the comparison with the region that ends every search. That is one instruction,
// where a comparison with the number of slots is a load and a branch, and it holds a guest's number
// within the hints even while the processor speculates.
//
// All that is in one block of memory, and a Translator has two words. An accessor that stores to
// guest memory has to load those words anew each time, since for all the compiler knows the store
// went there; and a load that overtakes a store whose address is still being translated was measured
// to cost up to a nanosecond on an AMD Zen 3. One word, with the rest in the bits that the block's
// alignment leaves free, made writes faster and reads slower.

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "vmspace/base/cxx20.hpp"
#include "vmspace/base/export.hpp"

namespace vmspace {

class DirtyBitmap;

namespace detail {

/// `first <= address ? yes : no` without a branch. In a search either is as likely, so a branch
/// would be mispredicted half of the time; but in a loop compilers make a branch of whatever is
/// written. A look-up in 64 regions in clusters then takes 2.4 (g++ 12) or 2.9 times as long (clang
/// 14), on Intel and AMD alike; with a mask instead of the choice, 1.3 and 2.9 times.
template <typename T>
[[nodiscard, gnu::always_inline]] inline T* select_at_most(const std::uint64_t& first,
                                                           std::uint64_t address, T* yes,
                                                           T* no) noexcept {
#if defined(__x86_64__)
  asm("cmpq %[address], %[first]\n\tcmovbeq %[yes], %[no]"
      : [no] "+r"(no)
      : [first] "m"(first), [address] "r"(address), [yes] "r"(yes)
      : "cc");
  return no;
#else
  return first <= address ? yes : no;
#endif
}

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

/// What a look-up reads. The entries follow.
///
/// Invariant: for an address up to the end of the last region, a search ends on the last entry that
/// begins at or below it, or, below all regions, on the first; for any other, on any.
struct alignas(64) TranslationBlock {
  static constexpr std::size_t slots = 8192;

  /// Where an entry is, in words from the start of this block: an index of entries would take the
  /// search two instructions more, one to multiply by their size and one to add where they begin.
  std::uint16_t hints[slots];

  [[nodiscard]] const TranslationEntry* entry_at(std::uint16_t hint) const noexcept {
    return reinterpret_cast<const TranslationEntry*>(reinterpret_cast<const std::uint64_t*>(this) +
                                                     hint);
  }
  /// The hint that names an entry.
  [[nodiscard]] static constexpr std::uint16_t hint_of(std::size_t index) noexcept {
    constexpr std::size_t word = sizeof(std::uint64_t);
    return static_cast<std::uint16_t>(
        (sizeof(TranslationBlock) + index * sizeof(TranslationEntry)) / word);
  }
};
static_assert(sizeof(TranslationBlock) % alignof(TranslationEntry) == 0);

/// Finds entries. Trivially copyable: whoever looks up often keeps a copy at hand, and alive the
/// TranslationTable that it was taken from.
struct Translator {
  const TranslationBlock* block;
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

 private:
  /// The entry that holds `gpa` if any does.
  [[nodiscard, gnu::always_inline]] const TranslationEntry* nearest(
      std::uint64_t gpa) const noexcept {
    const std::uint64_t slot = (gpa >> (shape % 64)) % TranslationBlock::slots;
    const TranslationEntry* entry = block->entry_at(block->hints[slot]);
    // With a probability that makes the compiler move the loop out of the way; [[unlikely]] does
    // not.
    if (__builtin_expect_with_probability(shape >= 64, 0, 0.9999)) {
      for (std::uint64_t step = shape / 64; step != 0; --step) {
        const TranslationEntry* further = entry + (std::size_t{1} << step);
        entry = select_at_most(further->first, gpa, further, entry);
      }
    }
    return select_at_most(entry[1].first, gpa, entry + 1, entry);
  }
};

/// The memory that a Translator points into. Immutable once built, so safe to read from any thread.
class TranslationTable {
 public:
  /// 16-bit hints can name a few more; callers set lower limits of their own.
  static constexpr std::size_t max_entries = 15'000;

  /// Builds the table. The entries are sorted by address, do not overlap, and are at most
  /// max_entries. O(64 n + slots).
  explicit TranslationTable(std::span<const TranslationEntry> entries);

  [[nodiscard]] const Translator& translator() const noexcept { return translator_; }
  [[nodiscard]] std::span<const TranslationEntry> entries() const noexcept { return entries_; }

  /// The translator of no regions at all: finds nothing, and lives for ever.
  [[nodiscard]] static VMSPACE_EXPORT Translator empty() noexcept;

 private:
  struct Free {
    void operator()(TranslationBlock* block) const noexcept;
  };

  std::unique_ptr<TranslationBlock, Free> block_;
  std::span<const TranslationEntry> entries_;
  Translator translator_;
};

}  // namespace detail
}  // namespace vmspace
