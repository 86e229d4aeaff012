// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/detail/guest_pieces.hpp"

#include <limits>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/guest_memory.hpp"

#include "memory/guest_memory_impl.hpp"

namespace vmspace::detail {

namespace {

[[gnu::always_inline]] inline void push(Iovecs& iovecs, DirtyParts* written, const Piece& piece) {
  if (!iovecs.empty()) {
    iovec& last = iovecs.back();
    if (static_cast<std::byte*>(last.iov_base) + last.iov_len == piece.host) {
      last.iov_len += piece.size;
      if (written == nullptr) return;
      // Side by side in one region, or at the border of two.
      DirtyPart& part = written->back();
      if (part.bitmap == piece.dirty && part.offset + part.size == piece.offset) {
        part.size += piece.size;
      } else {
        written->push_back({.bitmap = piece.dirty, .offset = piece.offset, .size = piece.size});
      }
      return;
    }
  }
  iovecs.push_back({.iov_base = piece.host, .iov_len = piece.size});
  if (written != nullptr) {
    written->push_back({.bitmap = piece.dirty, .offset = piece.offset, .size = piece.size});
  }
}

}  // namespace

Result<std::uint64_t> GuestPieces::append(const char* operation, const GuestMemory& memory,
                                          std::span<const GuestRange> ranges, Access access,
                                          Iovecs& iovecs, DirtyParts* written, bool* may_fault,
                                          std::uint64_t total) {
  for (const GuestRange& range : ranges) {
    if (range.size > std::numeric_limits<std::uint64_t>::max() - total) [[unlikely]] {
      return fail({.code = Errc::overflow,
                   .operation = operation,
                   .first = Operand::size(total),
                   .second = Operand::size(range.size),
                   .reason = "the sizes of all ranges must sum to less than 2^64"});
    }
    total += range.size;
    const auto* entry = access == Access::read
                            ? GuestMemory::entry_of<Access::read>(memory.translator_, range)
                            : GuestMemory::entry_of<Access::write>(memory.translator_, range);
    if (entry != nullptr) [[likely]] {
      const std::uint64_t offset = range.base.value() - entry->first;
      push(iovecs, written,
           {.host = entry->host + offset,
            .size = range.size,
            .dirty = entry->dirty,
            .offset = offset});
    } else {
      VMSPACE_TRY_IN(operation, memory.check(range, access));
      GuestMemory::Pieces(memory).for_each(range, [&](const Piece& piece, std::uint64_t) {
        push(iovecs, written, piece);
        if (piece.may_fault && may_fault != nullptr) *may_fault = true;
      });
    }
    const std::size_t count = written == nullptr ? iovecs.size() : written->size();
    if (count > max_count) [[unlikely]] {
      return fail({.code = Errc::limit_exceeded,
                   .operation = operation,
                   .first = Operand::number(count),
                   .second = Operand::number(max_count),
                   .reason = "more pieces of memory than one request may have"});
    }
  }
  return total;
}

}  // namespace vmspace::detail
