// SPDX-License-Identifier: Apache-2.0
//
// Guest memory as plain pointers: one span, or a list of iovecs for readv(2) and writev(2).
//
// A pointer into guest memory is only good while the memory stays mapped, and a region may be
// unplugged at any time. So a view holds the map that it was taken from, and with it the regions:
// whatever is unplugged meanwhile, the pointers stay valid until the view ends. Mutable views
// record their whole range as written when they end, because writes through them can't be
// seen.
//
// The guest sees and changes these bytes while they are looked at. What is parsed from a view has
// to be copied out first; GuestMemory::read and GuestPtr do that.

#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "vmspace/memory/detail/guest_pieces.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"

namespace vmspace {

/// Bytes of guest memory to read. A handle: copies share the map. Threads: used by one thread at a
/// time; its bytes may be read from any.
class GuestView {
 public:
  GuestView(const GuestView&) noexcept = default;
  GuestView& operator=(const GuestView&) noexcept = default;
  /// Takes over the bytes of `other`, which is then empty.
  GuestView(GuestView&& other) noexcept
      : map_(std::move(other.map_)), bytes_(std::exchange(other.bytes_, {})) {}
  /// As moving; what was here is let go.
  GuestView& operator=(GuestView&& other) noexcept {
    map_ = std::move(other.map_);
    bytes_ = std::exchange(other.bytes_, {});
    return *this;
  }
  ~GuestView() = default;

  /// The first byte; all size() bytes are contiguous and stay mapped while the view lives. Null
  /// when empty.
  [[nodiscard]] const std::byte* data() const noexcept { return bytes_.data(); }
  /// How many bytes it has.
  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }
  /// All of them.
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return bytes_; }

 private:
  friend class GuestMemory;
  GuestView(std::shared_ptr<const void> map, std::span<const std::byte> bytes) noexcept
      : map_(std::move(map)), bytes_(bytes) {}

  std::shared_ptr<const void> map_;
  std::span<const std::byte> bytes_;
};

/// Bytes of guest memory to write, marked dirty when the view ends (or earlier, by mark()). Moves,
/// never copies. Threads: used by one thread at a time.
class MutableGuestView {
 public:
  /// Takes over the bytes of `other`, which is then empty and marks nothing.
  MutableGuestView(MutableGuestView&& other) noexcept
      : map_(std::move(other.map_)),
        bytes_(std::exchange(other.bytes_, {})),
        part_(std::exchange(other.part_, {})) {}
  /// Swaps: what was here is marked, and its map let go, when `other` ends.
  MutableGuestView& operator=(MutableGuestView&& other) noexcept {
    std::swap(map_, other.map_);
    std::swap(bytes_, other.bytes_);
    std::swap(part_, other.part_);
    return *this;
  }
  ~MutableGuestView() { mark(); }

  /// The first byte; all size() bytes are contiguous and stay mapped while the view lives. Null
  /// when empty.
  [[nodiscard]] std::byte* data() const noexcept { return bytes_.data(); }
  /// How many bytes it has.
  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }
  /// All of them.
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }

  /// Records all of it as written, now: for a view that lives long.
  void mark() const noexcept {
    if (part_.bitmap != nullptr) part_.bitmap->mark(part_.offset, part_.size);
  }

 private:
  friend class GuestMemory;
  MutableGuestView(std::shared_ptr<const void> map, std::span<std::byte> bytes,
                   detail::DirtyPart part) noexcept
      : map_(std::move(map)), bytes_(bytes), part_(part) {}

  std::shared_ptr<const void> map_;
  std::span<std::byte> bytes_;
  detail::DirtyPart part_;
};

/// Ranges of guest memory as iovecs, one for each region that a range crosses; neighbours that are
/// contiguous on the host are one. Those for writing are marked dirty when the object ends. Up to 16
/// lie in the object, which therefore allocates nothing. Moves, never copies. Threads: used by one
/// thread at a time.
class GuestIovecs {
 public:
  GuestIovecs(GuestIovecs&&) noexcept = default;
  /// What was here is marked, and its map let go, first; nothing for an object assigned to itself.
  GuestIovecs& operator=(GuestIovecs&& other) noexcept {
    if (this == &other) return *this;
    mark();
    map_ = std::move(other.map_);
    iovecs_ = std::move(other.iovecs_);
    parts_ = std::move(other.parts_);
    return *this;
  }
  ~GuestIovecs() { mark(); }

  /// Empty for empty ranges. Bytes of an object made for reading must not be written.
  [[nodiscard]] std::span<const iovec> iovecs() const noexcept { return iovecs_.values(); }
  /// The first of them, as readv(2) takes it.
  [[nodiscard]] const iovec* data() const noexcept { return iovecs().data(); }
  /// How many iovecs there are, as readv(2) counts: an int.
  [[nodiscard]] int count() const noexcept { return static_cast<int>(iovecs_.size()); }

  /// Records all of it as written, now; nothing for an object made for reading.
  void mark() const noexcept {
    for (const detail::DirtyPart& part : parts_.values())
      part.bitmap->mark(part.offset, part.size);
  }

 private:
  friend class GuestMemory;
  explicit GuestIovecs(std::shared_ptr<const void> map) noexcept : map_(std::move(map)) {}

  std::shared_ptr<const void> map_;
  detail::Iovecs iovecs_;
  detail::DirtyParts parts_;
};

}  // namespace vmspace
