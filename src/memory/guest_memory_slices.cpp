// SPDX-License-Identifier: Apache-2.0
//
// GuestMemory: accesses that may cross regions, and views.

#include <algorithm>
#include <array>
#include <cassert>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/guest_memory.hpp"

#include "memory/guest_memory_impl.hpp"

namespace vmspace {

using detail::Piece;
using detail::Touched;

namespace {

Result<void> whole_or_fault(const char* operation, GuestRange range, const Touched& touched) {
  if (!touched.fault) [[likely]]
    return {};
  return fail(detail::fault_error(operation, range, *touched.fault));
}

/// As many bytes as were reached, if any were.
Result<std::size_t> some_or_fault(const char* operation, GuestRange range, const Touched& touched) {
  if (touched.done == 0) VMSPACE_TRY(whole_or_fault(operation, range, touched));
  return static_cast<std::size_t>(touched.done);
}

}  // namespace

detail::Touched GuestMemory::read_pieces(GuestRange range, void* to) const {
  auto* const out = static_cast<std::byte*>(to);
  // Objects up to this size are promised whole integers.
  const auto copy =
      range.size <= detail::inline_copy_limit ? detail::load_words : detail::copy_from_shared;
  return Pieces(*this).touch(range, Access::read,
                             [&](const std::byte* host, std::uint64_t size, std::uint64_t done) {
                               copy(out + done, host, size);
                             });
}

detail::Touched GuestMemory::write_pieces(GuestRange range, const void* from) const {
  const auto* const in = static_cast<const std::byte*>(from);
  const auto copy =
      range.size <= detail::inline_copy_limit ? detail::store_words : detail::copy_to_shared;
  return Pieces(*this).touch(range, Access::write,
                             [&](std::byte* host, std::uint64_t size, std::uint64_t done) {
                               copy(host, in + done, size);
                             });
}

Result<void> GuestMemory::read_across(const char* operation, GuestAddress address, void* to,
                                      std::size_t size) const {
  const GuestRange range{.base = address, .size = size};
  VMSPACE_TRY(check(operation, range, Access::read));
  return whole_or_fault(operation, range, read_pieces(range, to));
}

Result<void> GuestMemory::write_across(const char* operation, GuestAddress address,
                                       const void* from, std::size_t size) const {
  const GuestRange range{.base = address, .size = size};
  VMSPACE_TRY(check(operation, range, Access::write));
  return whole_or_fault(operation, range, write_pieces(range, from));
}

Result<std::size_t> GuestMemory::read_some(GuestAddress address, std::span<std::byte> to) const {
  constexpr const char* operation = "GuestMemory::read_some";
  const GuestRange range{.base = address,
                         .size = reachable({.base = address, .size = to.size()}, Access::read)};
  if (range.empty() && !to.empty()) {
    return fail(range_error(operation, {.base = address, .size = 1}, Access::read));
  }
  return some_or_fault(operation, range, read_pieces(range, to.data()));
}

Result<std::size_t> GuestMemory::write_some(GuestAddress address,
                                            std::span<const std::byte> from) const {
  constexpr const char* operation = "GuestMemory::write_some";
  const GuestRange range{.base = address,
                         .size = reachable({.base = address, .size = from.size()}, Access::write)};
  if (range.empty() && !from.empty()) {
    return fail(range_error(operation, {.base = address, .size = 1}, Access::write));
  }
  return some_or_fault(operation, range, write_pieces(range, from.data()));
}

Result<void> GuestMemory::fill(GuestRange range, std::byte value) const {
  constexpr const char* operation = "GuestMemory::fill";
  VMSPACE_TRY(check(operation, range, Access::write));
  return whole_or_fault(
      operation, range,
      Pieces(*this).touch(range, Access::write,
                          [&](std::byte* host, std::uint64_t size, std::uint64_t) {
                            detail::fill_shared(host, value, size);
                          }));
}

Result<void> GuestMemory::copy(GuestAddress to, GuestRange from) const {
  constexpr const char* operation = "GuestMemory::copy";
  const std::uint64_t size = from.size;
  VMSPACE_TRY(check(operation, from, Access::read));
  VMSPACE_TRY(check(operation, {.base = to, .size = size}, Access::write));
  const Pieces pieces(*this);
  const bool downwards = to > from.base;  // so that an overlap is read before it is overwritten
  for (std::uint64_t left = size; left != 0;) {
    Piece source;
    Piece target;
    if (downwards) {
      source = pieces.below(from.base.value() + (left - 1), left);
      target = pieces.below(to.value() + (left - 1), source.size);
      source.host += source.size - target.size;
    } else {
      source = pieces.at(from.base.value() + (size - left), left);
      target = pieces.at(to.value() + (size - left), source.size);
    }
    assert(target.size != 0);  // both ranges were checked
    if (source.may_fault || target.may_fault) {
      // Through a buffer, so that an access is about one range: from page to page.
      std::array<std::byte, 4096> buffer;
      const std::uint64_t moved = std::min<std::uint64_t>(target.size, buffer.size());
      const std::uint64_t at = downwards ? left - moved : size - left;
      left -= moved;
      const GuestRange source_range{GuestAddress(from.base.value() + at), moved};
      const GuestRange target_range{GuestAddress(to.value() + at), moved};
      VMSPACE_TRY(
          whole_or_fault(operation, source_range, read_pieces(source_range, buffer.data())));
      VMSPACE_TRY(
          whole_or_fault(operation, target_range, write_pieces(target_range, buffer.data())));
      continue;
    }
    detail::move_shared(target.host, source.host, target.size);
    target.mark();
    left -= target.size;
  }
  return {};
}

Result<std::string> GuestMemory::read_string(GuestAddress address, std::size_t limit) const {
  constexpr const char* operation = "GuestMemory::read_string";
  std::string text;
  std::array<std::byte, 256> chunk;
  while (text.size() < limit) {
    // The address wraps only where the memory ends with 2^64-1; text that long has no 0.
    const auto at = address.checked_add(text.size());
    if (!at) return fail(range_error(operation, {address, text.size() + 1}, Access::read));
    const std::size_t size = std::min(chunk.size(), limit - text.size());
    const auto read = read_some(*at, std::span(chunk).first(size));
    if (!read && read.error().code == Errc::fault) return fail(read.error().in(operation));
    if (!read) return fail(range_error(operation, {address, text.size() + 1}, Access::read));
    const auto got = std::span(chunk).first(*read);
    const auto end = std::ranges::find(got, std::byte{0});
    text.append(reinterpret_cast<const char*>(got.data()),
                static_cast<std::size_t>(end - got.begin()));
    if (end != got.end()) return text;
  }
  return fail({.code = Errc::limit_exceeded,
               .operation = operation,
               .first = Operand::address(address.value()),
               .second = Operand::size(limit),
               .reason = "no terminating 0 within the limit"});
}

Result<GuestView> GuestMemory::view(GuestRange range) const {
  if (range.empty()) return GuestView(map_, {});
  const std::byte* const host = VMSPACE_TRY_IN("GuestMemory::view", const_host_address(range));
  return GuestView(map_, {host, static_cast<std::size_t>(range.size)});
}

Result<MutableGuestView> GuestMemory::mutable_view(GuestRange range) const {
  if (range.empty()) return MutableGuestView(map_, {}, {});
  std::byte* const host = VMSPACE_TRY_IN("GuestMemory::mutable_view", host_address(range));
  const Piece piece = Pieces(*this).at(range.base.value(), range.size);
  if (piece.size != range.size) {  // contiguous, but what is written must be marked in two bitmaps
    return fail({.code = Errc::out_of_bounds,
                 .operation = "GuestMemory::mutable_view",
                 .first = detail::operand(range),
                 .second = detail::operand(region_at(range.base)->guest_range()),
                 .reason = "the range must lie within one region"});
  }
  return MutableGuestView(map_, {host, static_cast<std::size_t>(range.size)},
                          {.bitmap = piece.dirty, .offset = piece.offset, .size = piece.size});
}

Result<GuestIovecs> GuestMemory::iovecs(std::span<const GuestRange> ranges, Access access) const {
  GuestIovecs result(map_);
  VMSPACE_TRY(detail::GuestPieces::append("GuestMemory::iovecs", *this, ranges, access,
                                          result.iovecs_,
                                          access == Access::write ? &result.parts_ : nullptr));
  return result;
}

Result<void> GuestMemory::mark_dirty(GuestRange range) const {
  VMSPACE_TRY(check("GuestMemory::mark_dirty", range, Access::write));
  Pieces(*this).for_each(range, [](const Piece& piece, std::uint64_t) { piece.mark(); });
  return {};
}

}  // namespace vmspace
