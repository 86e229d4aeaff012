// SPDX-License-Identifier: Apache-2.0
//
// From a number to the range that holds it, for the price of three dependent loads: what DecodeMap and
// the translation of guest addresses are made of.
//
// The space from 0 to the last range is split into slots of a power of two. A hint names for each slot
// the last range that begins at or below the slot's start, so that one shift and one load leave to
// choose only between that range and those that begin inside the slot. A binary search without
// branches picks among them. It takes the same number of steps for every slot, because steps that vary
// from number to number cost more in mispredicted branches than they save. Slots are as large as they
// can be without adding a step, so that few are in use: two ranges need two. Ranges laid out as VMMs
// do it need the one step that is always made; clusters of tiny ranges far apart, which fall into one
// slot, need up to as many as a plain binary search.
//
// There are always 8192 hints, 16 KiB, of which the ranges in use take a few cache lines. A number
// above all slots is taken modulo their number: it lands on a hint of another one, and is refused by
// the comparison with the range that ends every search. That is one instruction, where a comparison
// with the number of slots is a load and a branch, and it holds a guest's number within the hints even
// while the processor speculates.
//
// All that is in one block of memory, and a Decoder has two words. An accessor that stores to guest
// memory has to load those words anew each time, since for all the compiler knows the store went
// there; and a load that overtakes a store whose address is still being translated was measured to
// cost up to a nanosecond on an AMD Zen 3. One word, with the rest in the bits that the block's
// alignment leaves free, made writes faster and reads slower.

#pragma once

#include <bit>
#include <cassert>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "vmspace/base/cxx20.hpp"
#include "vmspace/base/detail/min_max.hpp"

namespace vmspace::detail {

/// `first <= number ? yes : no` without a branch. In a search either is as likely, so a branch
/// would be mispredicted half of the time; but in a loop compilers make a branch of whatever is
/// written. A look-up in 64 ranges in clusters then takes 2.4 (g++ 12) or 2.9 times as long (clang
/// 14), on Intel and AMD alike; with a mask instead of the choice, 1.3 and 2.9 times.
template <typename T>
[[nodiscard, gnu::always_inline]] inline T* select_at_most(const std::uint64_t& first,
                                                           std::uint64_t number, T* yes,
                                                           T* no) noexcept {
#if defined(__x86_64__)
  asm("cmpq %[number], %[first]\n\tcmovbeq %[yes], %[no]"
      : [no] "+r"(no)
      : [first] "m"(first), [number] "r"(number), [yes] "r"(yes)
      : "cc");
  return no;
#else
  return first <= number ? yes : no;
#endif
}

/// One range as a search sees it: where it begins, and whatever its user needs. `smallest(first)` is a
/// range of one or few members.
template <typename Entry>
concept DecodeEntry = std::is_trivially_copyable_v<Entry> && sizeof(Entry) %
                              sizeof(std::uint64_t) ==
                          0 &&
                      requires(const Entry& entry) {
  { entry.first } -> std::convertible_to<std::uint64_t>;
  { Entry::smallest(std::uint64_t{}) } -> std::same_as<Entry>;
};

/// What a search reads. The entries follow.
///
/// Invariant: for a number up to the end of the last range, a search ends on the last entry that
/// begins at or below it, or, below all ranges, on the first; for any other, on any.
template <DecodeEntry Entry>
struct alignas(64) DecodeBlock {
  static constexpr std::size_t slots = 8192;

  /// Where an entry is, in words from the start of this block: an index of entries would take the
  /// search two instructions more, one to multiply by their size and one to add where they begin.
  std::uint16_t hints[slots];

  [[nodiscard]] const Entry* entry_at(std::uint16_t hint) const noexcept {
    return reinterpret_cast<const Entry*>(reinterpret_cast<const std::uint64_t*>(this) + hint);
  }
  /// The hint that names an entry.
  [[nodiscard]] static constexpr std::uint16_t hint_of(std::size_t index) noexcept {
    return static_cast<std::uint16_t>((slots * sizeof(std::uint16_t) + index * sizeof(Entry)) /
                                      sizeof(std::uint64_t));
  }
};

/// Searches. Trivially copyable: whoever searches often keeps a copy at hand, and alive the DecodeTable
/// that it was taken from.
template <DecodeEntry Entry>
struct Decoder {
  const DecodeBlock<Entry>* block;
  /// The low six bits: a slot has 2^n members. Above: search steps besides the one that is always
  /// made.
  std::uint64_t shape;

  /// The entry of the range that holds `number` if any does; see DecodeBlock.
  [[nodiscard, gnu::always_inline]] const Entry* nearest(std::uint64_t number) const noexcept {
    const std::uint64_t slot = (number >> (shape % 64)) % DecodeBlock<Entry>::slots;
    const Entry* entry = block->entry_at(block->hints[slot]);
    // With a probability that makes the compiler move the loop out of the way; [[unlikely]] does
    // not.
    if (__builtin_expect_with_probability(shape >= 64, 0, 0.9999)) {
      for (std::uint64_t step = shape / 64; step != 0; --step) {
        const Entry* further = entry + (std::size_t{1} << step);
        entry = select_at_most(further->first, number, further, entry);
      }
    }
    return select_at_most(entry[1].first, number, entry + 1, entry);
  }
};

/// The table without ranges, of two slots: numbers of the lower half end on an entry in the upper
/// half, and the other way round. Each entry twice, for the step that is always made.
template <DecodeEntry Entry>
struct EmptyDecodeTable {
  static constexpr Entry low = Entry::smallest(0);
  static constexpr Entry high = Entry::smallest(std::uint64_t{1} << 63);

  DecodeBlock<Entry> block{
      .hints = {DecodeBlock<Entry>::hint_of(0), DecodeBlock<Entry>::hint_of(2)}};
  Entry entries[4] = {high, high, low, low};
};
template <DecodeEntry Entry>
inline constexpr EmptyDecodeTable<Entry> empty_decode_table;

/// The memory that a Decoder points into. Immutable once built, so safe to read from any thread.
template <DecodeEntry Entry>
class DecodeTable {
 public:
  /// As many as 16-bit hints can name.
  static constexpr std::size_t max_entries =
      (std::size_t{0xffff} * sizeof(std::uint64_t) - sizeof(DecodeBlock<Entry>)) / sizeof(Entry);

  /// No ranges. Allocates nothing.
  DecodeTable() noexcept : decoder_(empty_decoder()) {}
  /// Builds the table. The entries are sorted, at least one and at most max_entries, and their ranges
  /// do not overlap; the last one ends with `last`. O(n + slots).
  DecodeTable(std::span<const Entry> entries, std::uint64_t last);

  /// `other` has no ranges afterwards.
  DecodeTable(DecodeTable&& other) noexcept
      : block_(std::exchange(other.block_, nullptr)),
        entries_(std::exchange(other.entries_, {})),
        decoder_(std::exchange(other.decoder_, empty_decoder())) {}
  DecodeTable& operator=(DecodeTable&& other) noexcept {
    DecodeTable moved(std::move(other));
    std::swap(block_, moved.block_);
    std::swap(entries_, moved.entries_);
    std::swap(decoder_, moved.decoder_);
    return *this;
  }
  ~DecodeTable() {
    if (block_ != nullptr) ::operator delete (block_, std::align_val_t{alignof(Block)});
  }

  [[nodiscard]] const Decoder<Entry>& decoder() const noexcept { return decoder_; }
  [[nodiscard]] std::span<const Entry> entries() const noexcept { return entries_; }
  /// Where an entry that a search ended on is among entries(). A copy of the last one is the last one.
  [[nodiscard]] std::size_t index_of(const Entry& entry) const noexcept {
    const auto index = static_cast<std::size_t>(&entry - entries_.data());
    return min_of(index, entries_.size() - 1);
  }

  /// The decoder of no ranges at all: finds nothing, and lives for ever.
  [[nodiscard]] static Decoder<Entry> empty_decoder() noexcept {
    return {.block = &empty_decode_table<Entry>.block, .shape = 63};
  }

 private:
  using Block = DecodeBlock<Entry>;

  /// Between how many entries a number may leave the choice, at most over all slots of 2^shift
  /// members: those that begin inside the slot, and the one before.
  [[nodiscard]] static std::size_t most_candidates(std::span<const Entry> entries,
                                                   unsigned shift) noexcept;

  Block* block_ = nullptr;  ///< ours, the entries behind it; null without ranges
  std::span<const Entry> entries_;
  Decoder<Entry> decoder_;
};

template <DecodeEntry Entry>
std::size_t DecodeTable<Entry>::most_candidates(std::span<const Entry> entries,
                                                unsigned shift) noexcept {
  std::size_t most = 1;
  std::size_t beginning = 0;
  std::uint64_t slot = ~std::uint64_t{0};
  for (const Entry& entry : entries.subspan(1)) {
    const std::uint64_t here = entry.first >> shift;
    beginning = here == slot ? beginning + 1 : 1;
    slot = here;
    most = max_of(most, beginning + 1);
  }
  return most;
}

template <DecodeEntry Entry>
DecodeTable<Entry>::DecodeTable(std::span<const Entry> entries, std::uint64_t last)
    : DecodeTable() {
  static_assert(sizeof(Block) == Block::slots * sizeof(std::uint16_t) &&
                sizeof(Block) % alignof(Entry) == 0);
  assert(!entries.empty() && entries.size() <= max_entries);

  // The finest slots that there is room for give the fewest steps; the coarsest with as few steps
  // leave the most of the cache to others.
  const auto steps_with = [&](unsigned shift) {
    const auto steps = std::bit_width(most_candidates(entries, shift) - 1);
    return max_of(1U, static_cast<unsigned>(steps));
  };
  const auto bits = static_cast<unsigned>(std::bit_width(last));
  constexpr auto slot_bits = static_cast<unsigned>(std::countr_zero(Block::slots));
  unsigned shift = bits > slot_bits ? bits - slot_bits : 0;
  const unsigned steps = steps_with(shift);
  // Steps never become fewer as slots grow, up to one slot that has everything.
  for (unsigned coarsest = min_of(63U, bits); shift < coarsest;) {
    const unsigned middle = shift + (coarsest - shift + 1) / 2;
    if (steps_with(middle) == steps)
      shift = middle;
    else
      coarsest = middle - 1;
  }

  // A search reads up to 2^steps entries from its hint. A hint near the end is moved back so that
  // they exist; when all entries are fewer, copies of the last fill up: stepping onto a copy gives
  // the same answer.
  const std::size_t reach = std::size_t{1} << steps;
  const std::size_t padded = max_of(entries.size(), reach);
  const std::size_t bytes = sizeof(Block) + padded * sizeof(Entry);
  void* const memory = ::operator new (bytes, std::align_val_t{alignof(Block)});
  block_ = new (memory) Block;

  auto* const table = reinterpret_cast<Entry*>(block_ + 1);
  for (std::size_t i = 0; i < padded; ++i)
    new (table + i) Entry(entries[min_of(i, entries.size() - 1)]);
  entries_ = {table, entries.size()};

  // A slot's hint is the last entry that begins at or below the slot's first member. Filled in runs,
  // an entry at a time: slot by slot, this takes longer than the system calls that map a region.
  const std::uint64_t last_slot = last >> shift;  // no slot past it is looked up for a range
  std::uint64_t slot = 0;
  const auto fill_below = [&](std::uint64_t end, std::size_t index) {
    const std::uint16_t hint = Block::hint_of(min_of(index, padded - reach));
    for (; slot < end; ++slot)
      block_->hints[slot] = hint;
  };
  std::size_t index = 0;
  for (; index + 1 < entries.size(); ++index) {
    const std::uint64_t begin = ((entries[index + 1].first - 1) >> shift) + 1;  // rounded up
    if (begin > last_slot) break;
    fill_below(begin, index);
  }
  fill_below(Block::slots, index);
  decoder_ = {.block = block_, .shape = shift | (static_cast<std::uint64_t>(steps - 1) << 6)};
}

}  // namespace vmspace::detail
