// SPDX-License-Identifier: Apache-2.0
//
// MemoryRegion::with_size: the memory of a region, mapped again.

#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/memory_region.hpp"

#include "host/fault_owner.hpp"
#include "memory/region_error.hpp"

namespace vmspace {

namespace {

constexpr const char* resize_operation = "MemoryRegion::with_size";

bool are_alike_but_for_size(const AddressSpaceRegion& a, const AddressSpaceRegion& b) {
  RegionOptions resized = a.options();
  resized.size = b.size();
  return resized == b.options();
}

/// Whether `region` may get the size of `resized`; the error names it.
Result<void> check(const MemoryRegion& region, const AddressSpaceRegion& resized,
                   const MoveOptions& options) {
  const auto refuse = [&](Errc code, Operand second, const char* reason) {
    return fail(detail::name_region({.code = code,
                                     .operation = resize_operation,
                                     .first = detail::operand(resized.guest_range()),
                                     .second = second,
                                     .reason = reason},
                                    resized));
  };
  if (!are_alike_but_for_size(resized, region.description())) {
    return refuse(Errc::invalid_argument, {},
                  "the description may differ from the region's only in its size");
  }
  if (region.blocks() != nullptr) {
    return refuse(Errc::unsupported, {},
                  "a region in blocks keeps its size: plug and unplug blocks of it");
  }
  const Backing& backing = region.backing();
  if (!backing.is_shared() || backing.is_anonymous()) {
    return refuse(
        Errc::unsupported, {},
        "private or anonymous memory can't be mapped again with another size: use a shared "
        "memfd or file, or plug another region beside it");
  }
  if (region.mapping().is_in_arena() && !options.leave_arena_order) {
    return refuse(Errc::unsupported, {},
                  "a region in an arena is mapped there until its last user has gone, so it has no "
                  "place for another size: MoveOptions::leave_arena_order maps it outside");
  }
  const std::uint64_t left = backing.size() - (region.mapping().file_offset() - backing.offset());
  if (resized.size() > left) {
    return refuse(
        Errc::out_of_bounds, Operand::size(left),
        "the region would pass the end of its backing: map it from one of its largest size "
        "(MapOptions::backing), of which pages that nobody touches take no memory");
  }
  const Operand range = detail::operand(resized.guest_range());
  const auto unwatched = detail::require_unwatched(
      resize_operation, region.mapping(), range,
      "a region keeps its size while its page faults are handled, which another mapping would "
      "bypass");
  if (unwatched) return {};
  Error held = unwatched.error();
  held.text = {resized.name(), held.text.subject()};  // who handles them
  return fail(held);
}

}  // namespace

Result<MemoryRegionPtr> MemoryRegion::with_size(AddressSpaceRegionPtr resized,
                                                const MapOptions& options) const {
  if (resized == nullptr) {
    return fail({.code = Errc::invalid_argument,
                 .operation = resize_operation,
                 .reason = "the description is a null pointer"});
  }
  VMSPACE_TRY(check(*this, *resized, options.move));
  MapOptions again = options;
  again.unsealed = may_fault() ? Unsealed::guard : Unsealed::accept;
  again.backing = backing();
  again.backing_offset = mapping().file_offset() - backing().offset();
  if (mapping().is_in_arena()) again.arena.reset();
  auto region = VMSPACE_TRY_IN(resize_operation, map(std::move(resized), again));
  if (dirty().is_enabled()) {
    VMSPACE_TRY_IN(resize_operation, region->dirty().enable());
    region->dirty().mark(0, region->size());
  }
  return region;
}

}  // namespace vmspace
