// SPDX-License-Identifier: Apache-2.0
//
// What the copies of a GuestMemory share, and the walk over the regions of a range.

#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "vmspace/memory/guest_memory.hpp"

namespace vmspace {

/// Immutable once built.
struct VMSPACE_HIDDEN GuestMemory::Map {
  std::vector<MemoryRegionPtr> regions;      ///< by guest address
  detail::TranslationTable table{{}};        ///< the regions that can be read
  std::vector<const MemoryRegion*> by_host;  ///< regions, by host address
};

namespace detail {

/// A part of a range that lies within one region.
struct Piece {
  std::byte* host;
  std::uint64_t size;
  DirtyBitmap* dirty;
  std::uint64_t offset;  ///< of `host` in the region

  void mark() const noexcept {
    assert(dirty != nullptr);  // the range was checked for writing
    dirty->mark(offset, size);
  }
};

/// The piece of at most `size` bytes from `gpa`, up to the end of its region. `size` 0 when there
/// is none.
inline Piece piece_at(const Translator& translator, std::uint64_t gpa,
                      std::uint64_t size) noexcept {
  const TranslationEntry* entry = translator.find(gpa, 1);
  if (entry == nullptr) return {};
  const std::uint64_t offset = gpa - entry->first;
  return {.host = entry->host + offset,
          .size = std::min(size, entry->size - offset),
          .dirty = entry->dirty,
          .offset = offset};
}

/// The piece of at most `size` bytes whose last byte is at `gpa`.
inline Piece piece_below(const Translator& translator, std::uint64_t gpa,
                         std::uint64_t size) noexcept {
  const TranslationEntry* entry = translator.find(gpa, 1);
  if (entry == nullptr) return {};
  const std::uint64_t end = gpa - entry->first + 1;
  const std::uint64_t taken = std::min(size, end);
  return {.host = entry->host + (end - taken),
          .size = taken,
          .dirty = entry->dirty,
          .offset = end - taken};
}

/// Calls `use(piece, done)` for the pieces of a range that was checked; `done` is the number of
/// bytes before the piece.
template <typename Use>
void for_each_piece(const Translator& translator, GuestRange range, Use use) {
  for (std::uint64_t done = 0; done < range.size;) {
    const Piece piece = piece_at(translator, range.base.value() + done, range.size - done);
    assert(piece.size != 0);  // the range was checked
    use(piece, done);
    done += piece.size;
  }
}

}  // namespace detail
}  // namespace vmspace
