// SPDX-License-Identifier: Apache-2.0
//
// A set of pages of guest memory, a bit each: what stays in it costs nothing while more is added, in
// whatever pieces it came.

#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>

#include "vmspace/address_space/guest_range.hpp"

#include "vmm/range_list.hpp"

namespace vmspace::detail {

/// Bounds are addresses and inclusive, so that they may be all there are. Memory: 4 KiB for each 128 MiB
/// that have a page in it.
class PageSet {
 public:
  /// Makes room, so that add() can't fail. Allocates; O(ranges + blocks).
  void reserve(std::span<const GuestRange> ranges);
  /// Adds all pages of ranges that room was made for.
  void add(std::span<const GuestRange> ranges) noexcept;
  /// What of [first, last] is in the set, coalesced. O(bits / 64 of its blocks + ranges).
  [[nodiscard]] RangeList ranges_in(std::uint64_t first, std::uint64_t last) const;
  /// Takes out the pages that lie in [first, last] wholly.
  void remove(std::uint64_t first, std::uint64_t last) noexcept;

 private:
  static constexpr std::uint64_t page_size = 4096;
  static constexpr std::uint64_t block_pages = 32768;
  static constexpr std::uint64_t block_bytes = block_pages * page_size;
  using Block = std::array<std::uint64_t, block_pages / 64>;

  /// Calls use(word, mask) for the words that have pages of [first, last], of this block.
  template <typename Use>
  static void for_each_word(std::uint64_t index, Block& block, std::uint64_t first,
                            std::uint64_t last, Use use);

  std::map<std::uint64_t, Block> blocks_;  // by address / block_bytes
};

}  // namespace vmspace::detail
