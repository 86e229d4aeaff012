// SPDX-License-Identifier: Apache-2.0

#include "snapshot/snapshot_target.hpp"

#include <cstring>

#include "vmspace/base/try.hpp"

#include "memory/guarded_touch.hpp"
#include "memory/present_parts.hpp"
#include "snapshot/snapshot_format.hpp"

namespace vmspace::detail {

namespace {

tl::unexpected<Error> other_layout(Operand first, Operand second, const char* reason) {
  return fail({.code = Errc::invalid_argument,
               .operation = restoring,
               .first = first,
               .second = second,
               .reason = reason});
}

tl::unexpected<Error> differs(const MemoryRegion& region) {
  return fail({.code = Errc::access_denied,
               .operation = restoring,
               .first = operand(region.guest_range()),
               .reason = "a read-only region must already hold what the snapshot does"});
}

}  // namespace

Result<void> check_layout(const GuestMemory& memory, std::span<const SnapshotRegion> regions) {
  if (regions.size() != memory.regions().size()) {
    return other_layout(Operand::number(regions.size()), Operand::number(memory.regions().size()),
                        "snapshot and memory must have the same number of regions");
  }
  for (std::size_t i = 0; i < regions.size(); ++i) {
    const MemoryRegion& region = *memory.regions()[i];
    const SnapshotRegion& saved = regions[i];
    if (saved.base != region.base() || saved.size != region.size()) {
      return other_layout(
          Operand::span(saved.base.value(), saved.size), operand(region.guest_range()),
          "each region of the snapshot must match one of the memory in base and size");
    }
    if (!allows(region.protection(), Protection::read)) {
      return fail({.code = Errc::access_denied,
                   .operation = restoring,
                   .first = operand(region.guest_range()),
                   .reason = "the region must be readable"});
    }
  }
  return {};
}

/// Writing needs no page of a hugetlb pool that could be empty: a private mapping has reserved the
/// pages that it may copy to.
Result<void> RestoreTarget::clear_present(Extent part) {
  for (std::uint64_t at = part.offset; at < part.end();) {
    const Extent used = VMSPACE_TRY(scan_.next(at, part.end()));
    for (at = used.offset; at < used.end(); at += snapshot_page) {
      std::byte* const page = region_.host_base() + at;
      bool was_zero = false;
      VMSPACE_TRY(touch_region(restoring, region_, at, snapshot_page, [&] {
        was_zero = is_zero(page, snapshot_page);
        if (!was_zero && is_writable()) std::memset(page, 0, snapshot_page);
      }));
      if (was_zero) continue;
      if (!is_writable()) return differs(region_);
      region_.dirty().mark(at, snapshot_page);
    }
  }
  return {};
}

Result<void> RestoreTarget::clear(Extent part) {
  Result<void> done;
  for_each_present_part(region_, part.offset, part.size,
                        [&](std::uint64_t offset, std::uint64_t size) {
                          if (done) done = clear_present({offset, size});
                        });
  return done;
}

Result<void> RestoreTarget::put(std::uint64_t offset, std::span<const std::byte> pages) const {
  if (!is_writable()) return compare(offset, pages);
  VMSPACE_TRY(check_absent(offset, pages));
  Result<void> done;
  for_each_present_part(region_, offset, pages.size(), [&](std::uint64_t at, std::uint64_t size) {
    if (!done) return;
    done = touch_region(restoring, region_, at, size, [&] {
      std::memcpy(region_.host_base() + at, pages.data() + (at - offset), size);
    });
    region_.dirty().mark(at, size);  // also when part of it was written
  });
  return done;
}

Result<void> RestoreTarget::compare(std::uint64_t offset, std::span<const std::byte> pages) const {
  PageScan scan(region_.mapping(), restoring);
  const std::uint64_t end = offset + pages.size();
  for (std::uint64_t at = offset; at < end;) {
    const Extent used = VMSPACE_TRY(scan.next(at, end));
    const std::uint64_t hole = used.offset - at;
    bool is_equal = hole == 0 || is_zero(pages.data() + (at - offset), hole);
    VMSPACE_TRY(touch_region(restoring, region_, used.offset, used.size, [&] {
      is_equal = is_equal && std::memcmp(pages.data() + (used.offset - offset),
                                         region_.host_base() + used.offset, used.size) == 0;
    }));
    if (!is_equal) return differs(region_);
    at = used.end();
  }
  return {};
}

Result<void> RestoreTarget::check_absent(std::uint64_t offset,
                                         std::span<const std::byte> pages) const {
  const std::uint64_t end = offset + pages.size();
  for (std::uint64_t at = offset; at < end;) {
    const std::uint64_t absent = absent_after(region_, at, end - at);
    if (absent != 0 && !is_zero(pages.data() + (at - offset), absent)) {
      return fail({.code = Errc::bad_state,
                   .operation = restoring,
                   .first = Operand::span(region_.base().value() + at, absent),
                   .second = operand(region_.guest_range()),
                   .reason = "the snapshot has contents for blocks that are not plugged: plug what "
                             "was plugged when it was saved"});
    }
    at += absent;
    at += present_after(region_, at, end - at);
  }
  return {};
}

}  // namespace vmspace::detail
