// SPDX-License-Identifier: Apache-2.0

#include "host/written_pages.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <span>
#include <utility>

#include "os/pagemap.hpp"

namespace vmspace::detail {

namespace {

/// Of private memory without a file, and of hugetlb; but not the shared page of zeros. An absent page
/// that has a page table but no mark counts as written, where it is not asked to be there.
constexpr TableQuery present_pages{.inverted = page_is_zero_page,
                                   .all_of = page_is_written | page_is_zero_page,
                                   .any_of = page_is_present | page_is_swapped,
                                   .reported = page_is_written};
/// Of a private mapping of a file, its own copies. Telling them costs 15 times as much.
constexpr TableQuery copied_pages{.inverted = page_is_file | page_is_zero_page,
                                  .all_of = page_is_written | page_is_file | page_is_zero_page,
                                  .any_of = page_is_present | page_is_swapped,
                                  .reported = page_is_written};
/// Asked for in just this way, the kernel takes a shorter path.
constexpr TableQuery shared_pages{.all_of = page_is_written, .reported = page_is_written};
/// Without a page table.
constexpr TableQuery absent_pages{.inverted = page_is_present | page_is_swapped,
                                  .all_of = page_is_present | page_is_swapped,
                                  .reported = page_is_written};

tl::unexpected<Error> scan_error(const char* operation, Extent part) {
  const Operand where = Operand::span(part.offset, part.size);
  switch (errno) {
    case EPERM:
      return fail({.code = Errc::bad_state,
                   .operation = operation,
                   .first = where,
                   .reason = "nobody watches who writes this shared memory: start a DirtyScan",
                   .os_errno = EPERM});
    case ENOTTY:
    case EINVAL:
      return fail({.code = Errc::unsupported,
                   .operation = operation,
                   .first = where,
                   .reason = "telling which pages were written needs PAGEMAP_SCAN (Linux 6.7)",
                   .os_errno = errno});
    default: return fail_os(operation, where, "ioctl(PAGEMAP_SCAN)");
  }
}

}  // namespace

Result<WrittenPages> WrittenPages::open(const char* operation, const MemoryMapping& mapping) {
  Descriptor pagemap = open_pagemap();
  if (pagemap.value() >= 0) return WrittenPages(mapping, std::move(pagemap));
  if (errno != ENOENT) return fail_os(operation, {}, "opening /proc/self/pagemap");
  return fail({.code = Errc::unsupported,
               .operation = operation,
               .reason = "telling which pages were written needs /proc/self/pagemap",
               .os_errno = ENOENT});
}

Result<void> WrittenPages::find(const char* operation, Extent part, Mode mode,
                                std::vector<Extent>& found) const {
  const Backing& backing = mapping_->backing();
  const bool may_vanish = backing.is_shared() && !backing.is_hugetlb();
  const auto base = reinterpret_cast<std::uintptr_t>(mapping_->data());
  const std::size_t before = found.size();
  std::array<PageRegion, 256> regions;
  const auto ask = [&](TableQuery query) -> Result<void> {
    query.flags = mode == Mode::protect ? scan_protects | scan_requires_async
                  : backing.is_shared() ? scan_requires_async
                                        : 0;
    for (std::uint64_t at = part.offset; at < part.end();) {
      // What is protected must be known: room for it first.
      if (found.capacity() - found.size() < regions.size()) {
        found.reserve(std::max(2 * found.capacity(), found.size() + regions.size()));
      }
      const auto scanned = scan_pages(pagemap_, base + at, base + part.end(), query, regions);
      if (!scanned) return scan_error(operation, {at, part.end() - at});
      for (const PageRegion& region : std::span(regions).first(scanned->count))
        found.push_back({region.start - base, region.end - region.start});
      at = scanned->end - base;
    }
    return {};
  };
  const bool is_copy = !backing.is_shared() && !backing.is_anonymous();
  Result<void> done = ask(may_vanish ? shared_pages : is_copy ? copied_pages : present_pages);
  if (done && may_vanish) done = ask(absent_pages);
  join_extents(found, before);
  return done;
}

void join_extents(std::vector<Extent>& extents, std::size_t first) {
  const auto rest = std::span(extents).subspan(first);
  if (rest.empty()) return;
  const auto by_offset = [](const Extent& a, const Extent& b) { return a.offset < b.offset; };
  if (!std::ranges::is_sorted(rest, by_offset)) std::ranges::sort(rest, by_offset);
  std::size_t last = 0;
  for (const Extent& extent : rest.subspan(1)) {
    if (extent.offset <= rest[last].end()) {
      rest[last].size = std::max(rest[last].end(), extent.end()) - rest[last].offset;
    } else {
      rest[++last] = extent;
    }
  }
  extents.resize(first + last + 1);
}

}  // namespace vmspace::detail
