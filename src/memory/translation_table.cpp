// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/detail/translation_table.hpp"

#include <algorithm>
#include <bit>
#include <cassert>

namespace vmspace::detail {

namespace {

// The only address that is within the span, 0, lies below `first`. Twice, for the step that is
// always made.
constexpr TranslationEntry nothing[2] = {
    {.first = 1, .size = min_region_size, .host = nullptr, .dirty = nullptr},
    {.first = 1, .size = min_region_size, .host = nullptr, .dirty = nullptr}};
constexpr std::uint16_t no_hints[1] = {0};
constexpr Translator no_regions{
    .base = 0, .span = 0, .hints = no_hints, .entries = nothing, .shift = 0, .extra = 0};

/// Between how many entries an address may leave the choice, at most over all slots of 2^shift
/// bytes: those that begin inside the slot, and the one before.
std::size_t most_candidates(std::span<const TranslationEntry> entries, unsigned shift) {
  const std::uint64_t base = entries.front().first;
  std::size_t most = 1;
  std::size_t beginning = 0;
  std::uint64_t slot = ~std::uint64_t{0};
  for (const TranslationEntry& entry : entries.subspan(1)) {
    const std::uint64_t here = (entry.first - base) >> shift;
    beginning = here == slot ? beginning + 1 : 1;
    slot = here;
    most = std::max(most, beginning + 1);
  }
  return most;
}

}  // namespace

const Translator& TranslationTable::empty() noexcept {
  return no_regions;
}

TranslationTable::TranslationTable(std::span<const TranslationEntry> entries)
    : count_(entries.size()), translator_(no_regions) {
  if (entries.empty()) return;
  assert(entries.size() <= max_entries);
  const std::uint64_t base = entries.front().first;
  const std::uint64_t span = (entries.back().first - base) + (entries.back().size - 1);

  // The finest slots that there is room for give the fewest steps; the coarsest with as few steps
  // leave the most of the cache to others.
  const auto steps_with = [&](unsigned with) {
    const auto steps = std::bit_width(most_candidates(entries, with) - 1);
    return std::max(1U, static_cast<unsigned>(steps));
  };
  unsigned shift = 0;
  while ((span >> shift) >= max_slots)
    ++shift;
  const unsigned steps = steps_with(shift);
  while (shift < 63 && (span >> shift) != 0 && steps_with(shift + 1) == steps)
    ++shift;

  // A search reads up to 2^steps entries from its hint. A hint near the end is moved back so that
  // they exist; when all entries are fewer, copies of the last fill up: stepping onto a copy gives
  // the same answer.
  const std::size_t reach = std::size_t{1} << steps;
  const std::size_t padded = std::max(entries.size(), reach);
  entries_ = std::make_unique<TranslationEntry[]>(padded);
  std::ranges::copy(entries, entries_.get());
  std::fill(entries_.get() + entries.size(), entries_.get() + padded, entries.back());

  const std::size_t slots = static_cast<std::size_t>(span >> shift) + 1;
  hints_ = std::make_unique<std::uint16_t[]>(slots);
  std::size_t candidate = 0;
  for (std::size_t slot = 0; slot < slots; ++slot) {
    const std::uint64_t start = base + (static_cast<std::uint64_t>(slot) << shift);
    while (candidate + 1 < entries.size() && entries[candidate + 1].first <= start)
      ++candidate;
    hints_[slot] = static_cast<std::uint16_t>(std::min(candidate, padded - reach));
  }
  translator_ = {.base = base,
                 .span = span,
                 .hints = hints_.get(),
                 .entries = entries_.get(),
                 .shift = shift,
                 .extra = steps - 1};
}

}  // namespace vmspace::detail
