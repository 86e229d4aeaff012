// SPDX-License-Identifier: Apache-2.0
//
// What the copies of a GuestMemory share, and the walk over the pieces of a range.

#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "vmspace/memory/guest_memory.hpp"

#include "memory/guarded_touch.hpp"
#include "memory/present_parts.hpp"

namespace vmspace {

/// Immutable once built.
struct VMSPACE_HIDDEN GuestMemory::Map {
  std::vector<MemoryRegionPtr> regions;      ///< by guest address
  detail::TranslationTable table;            ///< the regions that can be read
  std::vector<std::uint16_t> region_of;      ///< the index of the region of each entry of the table
  std::vector<const MemoryRegion*> by_host;  ///< regions, by host address
  /// Those that can be read and are present in parts or may fault, by guest address. The table has no
  /// entry for them, so that an access which needs no further question pays for none.
  std::vector<const MemoryRegion*> flagged;

  [[nodiscard]] static bool is_flagged(const MemoryRegion& region) noexcept {
    return !region.is_whole() || region.may_fault();
  }
};

namespace detail {

/// A part of a range that lies within one region, and is present.
struct Piece {
  std::byte* host;
  std::uint64_t size;
  DirtyBitmap* dirty;
  std::uint64_t offset;  ///< of `host` in the region
  bool may_fault = false;

  void mark() const noexcept { mark(size); }
  /// Marks so many bytes from the first.
  void mark(std::uint64_t bytes) const noexcept {
    assert(dirty != nullptr);  // the range was checked for writing
    if (bytes != 0) dirty->mark(offset, bytes);
  }
};

/// How far an access to a range came.
struct Touched {
  std::uint64_t done = 0;                  ///< bytes from the first
  std::optional<GuestAddress> fault = {};  ///< where a page was gone
};

}  // namespace detail

/// Finds the pieces of ranges: in the table first, then in the regions that it has no entry for.
class VMSPACE_HIDDEN GuestMemory::Pieces {
 public:
  explicit Pieces(const GuestMemory& memory) noexcept
      : translator_(memory.translator_), map_(memory.map_.get()) {}

  /// The piece of at most `size` bytes from `gpa`, up to the end of its region, or of the blocks that
  /// are present. `size` 0 when there is none.
  [[nodiscard]] detail::Piece at(std::uint64_t gpa, std::uint64_t size) const noexcept {
    if (const auto* entry = translator_.find(gpa, 1)) {
      const std::uint64_t offset = gpa - entry->first;
      return {.host = entry->host + offset,
              .size = std::min(size, entry->size - offset),
              .dirty = entry->dirty,
              .offset = offset};
    }
    const MemoryRegion* const region = flagged(gpa);
    if (region == nullptr) return {};
    const std::uint64_t offset = gpa - region->base().value();
    return part_of(*region, offset,
                   detail::present_after(*region, offset, std::min(size, region->size() - offset)));
  }

  /// The piece of at most `size` bytes whose last byte is at `gpa`.
  [[nodiscard]] detail::Piece below(std::uint64_t gpa, std::uint64_t size) const noexcept {
    if (const auto* entry = translator_.find(gpa, 1)) {
      const std::uint64_t end = gpa - entry->first + 1;
      const std::uint64_t taken = std::min(size, end);
      return {.host = entry->host + (end - taken),
              .size = taken,
              .dirty = entry->dirty,
              .offset = end - taken};
    }
    const MemoryRegion* const region = flagged(gpa);
    if (region == nullptr) return {};
    const std::uint64_t end = gpa - region->base().value() + 1;
    const std::uint64_t taken = region->blocks() == nullptr
                                    ? std::min(size, end)
                                    : region->blocks()->present_before(end, size);
    return part_of(*region, end - taken, taken);
  }

  /// Calls `use(piece, done)` for the pieces of a range that was checked; `done` is the number of
  /// bytes before the piece.
  template <typename Use>
  void for_each(GuestRange range, Use use) const {
    for (std::uint64_t done = 0; done < range.size;) {
      const detail::Piece piece = at(range.base.value() + done, range.size - done);
      assert(piece.size != 0);  // the range was checked
      use(piece, done);
      done += piece.size;
    }
  }

  /// Calls `use(host, size, done)`, which touches so much memory, for the parts of a range that was
  /// checked, from the lowest to the highest, up to a page that is gone; then marks what was written.
  template <typename Use>
  [[nodiscard]] detail::Touched touch(GuestRange range, Access access, Use use) const {
    for (std::uint64_t done = 0; done < range.size;) {
      const std::uint64_t gpa = range.base.value() + done;
      const detail::Piece piece = at(gpa, range.size - done);
      assert(piece.size != 0);  // the range was checked
      if (!piece.may_fault) {
        use(piece.host, piece.size, done);
        if (access == Access::write) piece.mark();
        done += piece.size;
        continue;
      }
      const std::uint64_t touched = detail::touch_guarded(
          piece.host, piece.size, [&](std::uint64_t offset, std::uint64_t size) {
            use(piece.host + offset, size, done + offset);
          });
      if (access == Access::write) piece.mark(touched);
      done += touched;
      if (touched != piece.size) {
        return {.done = done, .fault = GuestAddress(gpa + touched)};
      }
    }
    return {.done = range.size};
  }

 private:
  [[nodiscard]] const MemoryRegion* flagged(std::uint64_t gpa) const noexcept {
    if (map_ == nullptr || map_->flagged.empty()) return nullptr;
    const auto above =
        std::ranges::upper_bound(map_->flagged, GuestAddress(gpa), {}, &MemoryRegion::base);
    if (above == map_->flagged.begin()) return nullptr;
    const MemoryRegion* const region = *std::prev(above);
    return GuestAddress(gpa) <= region->last_addr() ? region : nullptr;
  }
  [[nodiscard]] static detail::Piece part_of(const MemoryRegion& region, std::uint64_t offset,
                                             std::uint64_t size) noexcept {
    return {.host = region.host_base() + offset,
            .size = size,
            .dirty = allows(region.protection(), Protection::write) ? &region.dirty() : nullptr,
            .offset = offset,
            .may_fault = region.may_fault()};
  }

  detail::Translator translator_;
  const Map* map_;
};

}  // namespace vmspace
