// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/detail/translation_table.hpp"

#include <algorithm>
#include <bit>
#include <cassert>
#include <memory>
#include <new>

namespace vmspace::detail {

namespace {

// Two slots: the addresses of the lower half end on an entry in the upper half, and the other way
// round. Each entry twice, for the step that is always made.
struct EmptyTable {
  static constexpr TranslationEntry low{
      .first = 0, .size = min_region_size, .host = nullptr, .dirty = nullptr};
  static constexpr TranslationEntry high{
      .first = std::uint64_t{1} << 63, .size = min_region_size, .host = nullptr, .dirty = nullptr};

  TranslationBlock block{.hints = {TranslationBlock::hint_of(0), TranslationBlock::hint_of(2)}};
  TranslationEntry entries[4] = {high, high, low, low};
};
constexpr EmptyTable empty_table;

/// Between how many entries an address may leave the choice, at most over all slots of 2^shift
/// bytes: those that begin inside the slot, and the one before.
std::size_t most_candidates(std::span<const TranslationEntry> entries, unsigned shift) {
  std::size_t most = 1;
  std::size_t beginning = 0;
  std::uint64_t slot = ~std::uint64_t{0};
  for (const TranslationEntry& entry : entries.subspan(1)) {
    const std::uint64_t here = entry.first >> shift;
    beginning = here == slot ? beginning + 1 : 1;
    slot = here;
    most = std::max(most, beginning + 1);
  }
  return most;
}

}  // namespace

Translator TranslationTable::empty() noexcept {
  return {.block = &empty_table.block, .shape = 63};
}

void TranslationTable::Free::operator()(TranslationBlock* block) const noexcept {
  ::operator delete (block, std::align_val_t{alignof(TranslationBlock)});
}

TranslationTable::TranslationTable(std::span<const TranslationEntry> entries)
    : translator_(empty()) {
  if (entries.empty()) return;
  assert(entries.size() <= max_entries);
  const std::uint64_t limit = entries.back().first + (entries.back().size - 1);

  // The finest slots that there is room for give the fewest steps; the coarsest with as few steps
  // leave the most of the cache to others.
  const auto steps_with = [&](unsigned shift) {
    const auto steps = std::bit_width(most_candidates(entries, shift) - 1);
    return std::max(1U, static_cast<unsigned>(steps));
  };
  unsigned shift = 0;
  while ((limit >> shift) >= TranslationBlock::slots)
    ++shift;
  const unsigned steps = steps_with(shift);
  while (shift < 63 && (limit >> shift) != 0 && steps_with(shift + 1) == steps)
    ++shift;

  // A search reads up to 2^steps entries from its hint. A hint near the end is moved back so that
  // they exist; when all entries are fewer, copies of the last fill up: stepping onto a copy gives
  // the same answer.
  const std::size_t reach = std::size_t{1} << steps;
  const std::size_t padded = std::max(entries.size(), reach);
  const std::size_t bytes = sizeof(TranslationBlock) + padded * sizeof(TranslationEntry);
  void* const memory = ::operator new (bytes, std::align_val_t{alignof(TranslationBlock)});
  block_.reset(new (memory) TranslationBlock);

  auto* const table = reinterpret_cast<TranslationEntry*>(block_.get() + 1);
  std::uninitialized_copy(entries.begin(), entries.end(), table);
  std::uninitialized_fill(table + entries.size(), table + padded, entries.back());
  entries_ = {table, entries.size()};

  // A slot's hint is the last entry that begins at or below the slot's first address. Filled in runs,
  // an entry at a time: slot by slot, this takes longer than the system calls that map a region.
  const std::uint64_t last_slot = limit >> shift;  // no slot past it is looked up for a region
  std::uint64_t slot = 0;
  const auto fill_below = [&](std::uint64_t end, std::size_t index) {
    const std::uint16_t hint = TranslationBlock::hint_of(std::min(index, padded - reach));
    std::fill(block_->hints + slot, block_->hints + end, hint);
    slot = end;
  };
  std::size_t index = 0;
  for (; index + 1 < entries.size(); ++index) {
    const std::uint64_t begin = ((entries[index + 1].first - 1) >> shift) + 1;  // rounded up
    if (begin > last_slot) break;
    fill_below(begin, index);
  }
  fill_below(TranslationBlock::slots, index);
  translator_ = {.block = block_.get(),
                 .shape = shift | (static_cast<std::uint64_t>(steps - 1) << 6)};
}

}  // namespace vmspace::detail
