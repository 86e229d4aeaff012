// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/detail/translation_table.hpp"

#include <algorithm>
#include <bit>
#include <cassert>

namespace vmspace::detail {

namespace {

constexpr std::size_t hints_per_unit = sizeof(TranslationEntry) / sizeof(std::uint16_t);

// Every address but 0 is above the limit, and 0 lies below the entry. Twice, for the step that is
// always made.
struct EmptyBlock {
  std::uint16_t hints[hints_per_unit] = {1};
  TranslationEntry entries[2] = {
      {.first = 1, .size = min_region_size, .host = nullptr, .dirty = nullptr},
      {.first = 1, .size = min_region_size, .host = nullptr, .dirty = nullptr}};
};
constexpr EmptyBlock empty_block;

/// Between how many entries an address may leave the choice, at most over all slots of 2^shift bytes:
/// those that begin inside the slot, and the one before.
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

const Translator& TranslationTable::empty() noexcept {
  static const Translator translator{
      .limit = 0, .block = reinterpret_cast<const std::byte*>(&empty_block), .shape = 0};
  return translator;
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
  while ((limit >> shift) >= max_slots)
    ++shift;
  const unsigned steps = steps_with(shift);
  while (shift < 63 && (limit >> shift) != 0 && steps_with(shift + 1) == steps)
    ++shift;

  // A search reads up to 2^steps entries from its hint. A hint near the end is moved back so that
  // they exist; when all entries are fewer, copies of the last fill up: stepping onto a copy gives
  // the same answer.
  const std::size_t reach = std::size_t{1} << steps;
  const std::size_t padded = std::max(entries.size(), reach);
  const std::size_t slots = static_cast<std::size_t>(limit >> shift) + 1;
  const std::size_t units = (slots + hints_per_unit - 1) / hints_per_unit;
  const std::size_t bytes = (units + padded) * sizeof(TranslationEntry);
  block_.reset(static_cast<std::byte*>(::operator new(bytes, Block::align)));

  auto* const table = reinterpret_cast<TranslationEntry*>(block_.get()) + units;
  std::uninitialized_copy(entries.begin(), entries.end(), table);
  std::uninitialized_fill(table + entries.size(), table + padded, entries.back());
  entries_ = {table, entries.size()};

  auto* const hints = reinterpret_cast<std::uint16_t*>(block_.get());
  std::size_t candidate = 0;
  for (std::size_t slot = 0; slot < slots; ++slot) {
    const std::uint64_t start = static_cast<std::uint64_t>(slot) << shift;
    while (candidate + 1 < entries.size() && entries[candidate + 1].first <= start)
      ++candidate;
    hints[slot] = static_cast<std::uint16_t>(units + std::min(candidate, padded - reach));
  }
  translator_ = {.limit = limit,
                 .block = block_.get(),
                 .shape = shift | (static_cast<std::uint64_t>(steps - 1) << 6)};
}

}  // namespace vmspace::detail
