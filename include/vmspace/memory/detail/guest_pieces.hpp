// SPDX-License-Identifier: Apache-2.0
//
// Ranges of guest memory, such as the buffers of a request, as pieces of this process's memory.
//
// Each range is translated once; what then runs over the pieces adds to a pointer. There are two
// lists, because a piece for readv(2) may reach over several regions that lie side by side on the
// host, and each of those has a bitmap of its own.

#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/detail/inline_vector.hpp"
#include "vmspace/memory/dirty_bitmap.hpp"

namespace vmspace {

class GuestMemory;
enum class Access : std::uint8_t;

namespace detail {

/// Some bytes of a region, to be marked as written later.
struct DirtyPart {
  DirtyBitmap* bitmap;
  std::uint64_t offset;
  std::uint64_t size;
};

/// So many pieces need no memory of their own: more than requests have that drivers make.
inline constexpr std::size_t inline_pieces = 16;

using Iovecs = InlineVector<iovec, inline_pieces>;
using DirtyParts = InlineVector<DirtyPart, inline_pieces>;

struct GuestPieces {
  /// The most pieces of one list: twice as many as the longest chain of a virtqueue has descriptors.
  /// Without it, a guest could make a VMM hold 512 pieces, as many as there are regions, for each of
  /// 2^15 descriptors.
  static constexpr std::size_t max_count = 65536;

  /// Appends the pieces of `ranges`, in order, and, when they are to be written, what to mark; gives
  /// the bytes of all. Neighbours that are contiguous on the host are one piece. Sets `may_fault`, if
  /// given, when one of them lies in memory that may fault, else leaves it. Errors, named after
  /// `operation`: those of every access (see guest_memory.hpp); `overflow` when the sizes sum to 2^64
  /// or more; `limit_exceeded` above max_count pieces. The lists are unspecified then. O(ranges +
  /// regions crossed); allocates above inline_pieces.
  ///
  /// The lists may hold pieces already; `total` is their bytes, which are counted with the others.
  [[nodiscard]] static Result<std::uint64_t> append(const char* operation,
                                                    const GuestMemory& memory,
                                                    std::span<const GuestRange> ranges,
                                                    Access access, Iovecs& iovecs,
                                                    DirtyParts* written, bool* may_fault = nullptr,
                                                    std::uint64_t total = 0);
};

}  // namespace detail
}  // namespace vmspace
