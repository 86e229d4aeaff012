// SPDX-License-Identifier: Apache-2.0
//
// Guest memory from a file.

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "vmspace/base/try.hpp"
#include "vmspace/host/page_scan.hpp"
#include "vmspace/host/zero_test.hpp"
#include "vmspace/snapshot/snapshot.hpp"

#include "host/present_pages.hpp"
#include "memory/guarded_touch.hpp"
#include "memory/present_parts.hpp"
#include "snapshot/snapshot_format.hpp"
#include "snapshot/snapshot_io.hpp"

namespace vmspace {

namespace {

using detail::Progress;
using detail::read_all;
using detail::snapshot_page;

Result<detail::SnapshotHead> read_head(int fd) {
  constexpr const char* operation = "inspect_snapshot";
  const struct stat file = VMSPACE_TRY(detail::check_snapshot_file(operation, fd));
  const auto file_size = static_cast<std::uint64_t>(file.st_size);
  std::vector<std::byte> bytes(sizeof(detail::SnapshotHeader));
  if (file_size < bytes.size()) {
    return fail({.code = Errc::corrupt,
                 .operation = operation,
                 .first = Operand::size(file_size),
                 .reason = "the file is too short to be a snapshot"});
  }
  VMSPACE_TRY(read_all(operation, fd, bytes.data(), bytes.size(), 0));
  const std::size_t size = VMSPACE_TRY(detail::head_size(bytes));
  bytes.resize(size);
  constexpr std::size_t known = sizeof(detail::SnapshotHeader);
  VMSPACE_TRY(read_all(operation, fd, bytes.data() + known, size - known, known));
  return detail::decode_head(bytes, file_size);
}

constexpr const char* restoring = "restore_snapshot";

/// Clears a part of a region, without touching what is absent. Writing needs no page of a hugetlb
/// pool that could be empty: a private mapping has reserved the pages that it may copy to.
Result<void> clear_part(const MemoryRegion& region, PageScan& scan, Extent part) {
  for (std::uint64_t at = part.offset; at < part.end();) {
    const Extent used = VMSPACE_TRY_IN(restoring, scan.next(at, part.end()));
    for (at = used.offset; at < used.end(); at += snapshot_page) {
      std::byte* const page = region.host_base() + at;
      bool was_zero = false;
      VMSPACE_TRY(detail::touch_region(restoring, region, at, snapshot_page, [&] {
        was_zero = is_zero({page, snapshot_page});
        if (!was_zero) std::memset(page, 0, snapshot_page);
      }));
      if (!was_zero) region.dirty().mark(at, snapshot_page);
    }
  }
  return {};
}

/// Calls `use(part)` for what is present of a part of a region; stops at an error.
template <typename Use>
Result<void> for_each_present(const MemoryRegion& region, Extent part, Use use) {
  Result<void> done;
  detail::for_each_present_part(region, part.offset, part.size,
                                [&](std::uint64_t offset, std::uint64_t size) {
                                  if (done) done = use(Extent{offset, size});
                                });
  return done;
}

/// Calls `data(offset, size)` and `hole(offset, size)` for the parts of a region's bytes in the
/// file, in chunks of whole pages; stops at an error. `corrupt` where the file has no more bytes.
template <typename Data, typename Hole>
Result<void> for_each_part(int fd, const SnapshotRegion& region, Data data, Hole hole) {
  const auto page_up = [](std::uint64_t offset) {
    return (offset + snapshot_page - 1) / snapshot_page * snapshot_page;
  };
  for (std::uint64_t at = 0; at < region.size;) {
    const Extent extent = VMSPACE_TRY(detail::next_file_data(
        restoring, Errc::corrupt, fd, region.offset + at, region.offset + region.size));
    const std::uint64_t begin =
        std::max(at, (extent.offset - region.offset) / snapshot_page * snapshot_page);
    const std::uint64_t end = std::min(region.size, page_up(extent.end() - region.offset));
    if (begin > at) VMSPACE_TRY(hole(at, begin - at));
    for (at = begin; at < end;) {
      const std::uint64_t size = std::min(detail::snapshot_chunk, end - at);
      VMSPACE_TRY(data(at, size));
      at += size;
    }
    at = std::max(at, end);
  }
  return {};
}

/// A region that may not be written must hold what was saved.
Result<void> compare(const MemoryRegion& region, const SnapshotRegion& saved, int fd) {
  PageScan scan(region.mapping());
  std::vector<std::byte> buffer(std::min(detail::snapshot_chunk, region.size()));
  for (std::uint64_t begin = 0; begin < region.size(); begin += buffer.size()) {
    const std::uint64_t end = std::min(region.size(), begin + buffer.size());
    const std::byte* const bytes = buffer.data();
    VMSPACE_TRY(read_all(restoring, fd, buffer.data(), end - begin, saved.offset + begin));
    for (std::uint64_t at = begin; at < end;) {
      const Extent used = VMSPACE_TRY_IN(restoring, scan.next(at, end));
      const std::uint64_t hole = used.offset - at;
      const std::byte* const memory = region.host_base() + used.offset;
      bool is_equal = hole == 0 || is_zero({bytes + (at - begin), hole});
      VMSPACE_TRY(detail::touch_region(restoring, region, used.offset, used.size, [&] {
        is_equal = is_equal && std::memcmp(bytes + (used.offset - begin), memory, used.size) == 0;
      }));
      if (!is_equal) {
        return fail({.code = Errc::access_denied,
                     .operation = restoring,
                     .first = detail::operand(region.guest_range()),
                     .reason = "a read-only region must already hold what the snapshot does"});
      }
      at = used.end();
    }
  }
  return {};
}

/// What was saved must be zeros where the region has a block that is not plugged.
Result<void> check_absent(const MemoryRegion& region, const SnapshotRegion& saved, int fd) {
  std::vector<std::byte> buffer;
  const auto data = [&](std::uint64_t offset, std::uint64_t size) -> Result<void> {
    for (std::uint64_t at = offset; at < offset + size;) {
      const std::uint64_t absent = detail::absent_after(region, at, offset + size - at);
      buffer.resize(absent);
      VMSPACE_TRY(read_all(restoring, fd, buffer.data(), absent, saved.offset + at));
      if (absent != 0 && !is_zero({buffer.data(), absent})) {
        return fail({.code = Errc::bad_state,
                     .operation = restoring,
                     .first = Operand::span(region.base().value() + at, absent),
                     .second = detail::operand(region.guest_range()),
                     .reason =
                         "the snapshot has contents for blocks that are not plugged: plug what "
                         "was plugged when it was saved"});
      }
      at += absent;
      at += detail::present_after(region, at, offset + size - at);
    }
    return {};
  };
  const auto hole = [](std::uint64_t, std::uint64_t) -> Result<void> { return {}; };
  return for_each_part(fd, saved, data, hole);
}

/// Finds everything that is wrong before the first byte is written.
Result<void> check_target(const GuestMemory& memory, const detail::SnapshotHead& head, int fd) {
  const auto other_layout = [](Operand first, Operand second, const char* reason) {
    return fail({.code = Errc::invalid_argument,
                 .operation = restoring,
                 .first = first,
                 .second = second,
                 .reason = reason});
  };
  if (head.regions.size() != memory.regions().size()) {
    return other_layout(Operand::number(head.regions.size()),
                        Operand::number(memory.regions().size()),
                        "snapshot and memory must have the same number of regions");
  }
  for (std::size_t i = 0; i < head.regions.size(); ++i) {
    const MemoryRegion& region = *memory.regions()[i];
    const SnapshotRegion& saved = head.regions[i];
    if (saved.base != region.base() || saved.size != region.size()) {
      return other_layout(
          Operand::span(saved.base.value(), saved.size), detail::operand(region.guest_range()),
          "each region of the snapshot must match one of the memory in base and size");
    }
    if (!allows(region.protection(), Protection::read)) {
      return fail({.code = Errc::access_denied,
                   .operation = restoring,
                   .first = detail::operand(region.guest_range()),
                   .reason = "the region must be readable"});
    }
    if (!region.is_whole()) VMSPACE_TRY(check_absent(region, saved, fd));
    if (allows(region.protection(), Protection::write)) continue;
    VMSPACE_TRY(compare(region, saved, fd));
  }
  return {};
}

}  // namespace

Result<std::vector<SnapshotRegion>> inspect_snapshot(int fd) {
  detail::SnapshotHead head = VMSPACE_TRY(read_head(fd));
  return std::move(head.regions);
}

Result<void> restore_snapshot(const GuestMemory& memory, int fd, const SnapshotProgress& report) {
  const detail::SnapshotHead head = VMSPACE_TRY_IN(restoring, read_head(fd));
  VMSPACE_TRY(check_target(memory, head, fd));
  Progress progress(report, head.memory_size());
  for (std::size_t i = 0; i < head.regions.size(); ++i) {
    const MemoryRegion& region = *memory.regions()[i];
    const SnapshotRegion& saved = head.regions[i];
    if (!allows(region.protection(), Protection::write)) {
      progress.done(region.size());
      continue;
    }
    PageScan scan(region.mapping());
    VMSPACE_TRY(for_each_part(
        fd, saved,
        [&](std::uint64_t offset, std::uint64_t size) {
          auto read = for_each_present(region, {offset, size}, [&](Extent part) {
            auto done = read_all(restoring, fd, region.host_base() + part.offset, part.size,
                                 saved.offset + part.offset);
            if (!done && detail::is_fault(region, done.error().os_errno)) {
              const GuestRange lost{GuestAddress(region.base().value() + part.offset), part.size};
              done = fail(detail::fault_error(restoring, lost, lost.base));
            }
            region.dirty().mark(part.offset, part.size);  // also when part of it was read
            return done;
          });
          progress.done(size);
          return read;
        },
        [&](std::uint64_t offset, std::uint64_t size) {
          auto cleared = for_each_present(
              region, {offset, size}, [&](Extent part) { return clear_part(region, scan, part); });
          progress.done(size);
          return cleared;
        }));
  }
  return {};
}

Result<GuestMemory> map_snapshot(int fd) {
  constexpr const char* operation = "map_snapshot";
  const detail::SnapshotHead head = VMSPACE_TRY_IN(operation, read_head(fd));
  if (head.regions.empty()) return GuestMemory();
  const BackingSpec spec{.source = MemorySource::file, .fd = fd, .sharing = Sharing::map_private};
  // One open file for all regions.
  const Backing backing =
      VMSPACE_TRY_IN(operation, Backing::open(spec, head.file_size, Protection::read));
  std::vector<MemoryRegionPtr> regions;
  regions.reserve(head.regions.size());
  for (const SnapshotRegion& saved : head.regions) {
    BackingSpec own = spec;
    own.offset = saved.offset;
    const AddressSpaceRegionPtr description =
        VMSPACE_TRY_IN(operation, AddressSpaceRegion::make({.name = "snapshot",
                                                            .base = saved.base,
                                                            .size = saved.size,
                                                            .backing = own,
                                                            .protection = saved.protection}));
    const MapOptions options{.backing = backing, .backing_offset = saved.offset};
    MemoryRegionPtr region = VMSPACE_TRY_IN(operation, MemoryRegion::map(description, options));
    regions.push_back(std::move(region));
  }
  return VMSPACE_TRY_IN(operation, GuestMemory::from_regions(std::move(regions)));
}

}  // namespace vmspace
