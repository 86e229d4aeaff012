// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_ref.hpp"

#include <span>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/detail/guest_pieces.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace::detail {

Error index_error(const char* operation, std::uint64_t index, std::uint64_t count) noexcept {
  return {.code = Errc::out_of_bounds,
          .operation = operation,
          .first = Operand::number(index),
          .second = count == 0 ? Operand{} : Operand::range(0, count - 1)};
}

Result<PinnedPlace> pin_object(const char* operation, const GuestMemory& memory, GuestRange range,
                               std::size_t align, bool is_written) {
  if (!range.base.is_aligned(align)) {
    return fail({.code = Errc::misaligned,
                 .operation = operation,
                 .first = Operand::address(range.base.value()),
                 .second = Operand::size(align)});
  }
  Iovecs pieces;
  DirtyParts written;
  VMSPACE_TRY(GuestPieces::append(operation, memory, std::span(&range, 1),
                                  is_written ? Access::write : Access::read, pieces,
                                  is_written ? &written : nullptr));
  // Regions that touch, also in this process, give one piece.
  if (pieces.size() != 1 || memory.region_at(range.base) != memory.region_at(*range.last())) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = operand(range),
                 .reason = "the object must lie in one region"});
  }
  PinnedPlace place{
      .host = static_cast<std::byte*>(pieces[0].iov_base), .dirty = nullptr, .offset = 0};
  if (is_written) {
    place.dirty = written[0].bitmap;
    place.offset = written[0].offset;
  }
  return place;
}

}  // namespace vmspace::detail
