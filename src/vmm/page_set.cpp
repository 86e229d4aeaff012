// SPDX-License-Identifier: Apache-2.0

#include "vmm/page_set.hpp"

#include <algorithm>
#include <bit>
#include <iterator>
#include <limits>

namespace vmspace::detail {

/// `first` and `last` are numbers of pages.
template <typename Use>
void PageSet::for_each_word(std::uint64_t index, Block& block, std::uint64_t first,
                            std::uint64_t last, Use use) {
  const std::uint64_t begin = std::max(first, index * block_pages) - index * block_pages;
  const std::uint64_t end = std::min(last - index * block_pages, block_pages - 1);
  for (std::uint64_t word = begin / 64; word <= end / 64; ++word) {
    std::uint64_t mask = std::numeric_limits<std::uint64_t>::max();
    if (word == begin / 64) mask <<= begin % 64;
    if (word == end / 64) mask &= std::numeric_limits<std::uint64_t>::max() >> (63 - end % 64);
    use(block[word], mask);
  }
}

void PageSet::reserve(std::span<const GuestRange> ranges) {
  for (const GuestRange& range : ranges) {
    for (std::uint64_t index = first_of(range) / block_bytes; index <= last_of(range) / block_bytes;
         ++index) {
      blocks_.try_emplace(index);
    }
  }
}

void PageSet::add(std::span<const GuestRange> ranges) noexcept {
  for (const GuestRange& range : ranges) {
    const std::uint64_t last = last_of(range);
    for (auto block = blocks_.find(first_of(range) / block_bytes);
         block != blocks_.end() && block->first <= last / block_bytes; ++block) {
      for_each_word(block->first, block->second, first_of(range) / page_size, last / page_size,
                    [](std::uint64_t& word, std::uint64_t mask) { word |= mask; });
    }
  }
}

RangeList PageSet::ranges_in(std::uint64_t first, std::uint64_t last) const {
  RangeList found;
  const auto add = [&](std::uint64_t from, std::uint64_t to) {
    from = std::max(from, first);
    to = std::min(to, last);
    if (from > to) return;
    if (!found.empty() && last_of(found.back()) == from - 1) {
      found.back().size += to - from + 1;
    } else {
      found.push_back({.base = GuestAddress(from), .size = to - from + 1});
    }
  };
  for (auto block = blocks_.lower_bound(first / block_bytes);
       block != blocks_.end() && block->first <= last / block_bytes; ++block) {
    std::uint64_t page = block->first * block_pages;
    for (const std::uint64_t word : block->second) {
      for (std::uint64_t bits = word; bits != 0;) {
        const auto at = static_cast<unsigned>(std::countr_zero(bits));
        const auto end = at + static_cast<unsigned>(std::countr_one(bits >> at));
        // The end of the last page wraps to 0, and the byte before it is the last address.
        add((page + at) * page_size, (page + end) * page_size - 1);
        bits &= end == 64 ? 0 : std::numeric_limits<std::uint64_t>::max() << end;
      }
      page += 64;
    }
  }
  return found;
}

void PageSet::remove(std::uint64_t first, std::uint64_t last) noexcept {
  // Of the pages that both ends lie in, those that are not whole stay.
  const std::uint64_t begin = first / page_size + (first % page_size != 0 ? 1 : 0);
  const std::uint64_t end = last / page_size + (last % page_size == page_size - 1 ? 1 : 0);
  if (begin >= end) return;
  for (auto block = blocks_.lower_bound(begin / block_pages);
       block != blocks_.end() && block->first <= (end - 1) / block_pages;) {
    for_each_word(block->first, block->second, begin, end - 1,
                  [](std::uint64_t& word, std::uint64_t mask) { word &= ~mask; });
    const bool is_empty =
        std::ranges::all_of(block->second, [](std::uint64_t word) { return word == 0; });
    block = is_empty ? blocks_.erase(block) : std::next(block);
  }
}

}  // namespace vmspace::detail
