// SPDX-License-Identifier: Apache-2.0
//
// Guest memory from a file.

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "vmspace/snapshot/snapshot.hpp"

#include "host/page_scan.hpp"
#include "snapshot/snapshot_format.hpp"
#include "snapshot/snapshot_io.hpp"

namespace vmspace {

namespace {

using detail::Extent;
using detail::is_zero;
using detail::operand;
using detail::PageScan;
using detail::Progress;
using detail::read_all;
using detail::snapshot_page;

Result<detail::SnapshotHead> read_head(int fd) {
  constexpr const char* operation = "Snapshot::inspect";
  const auto file = detail::check_snapshot_file(operation, fd);
  if (!file) return fail(file.error());
  const auto file_size = static_cast<std::uint64_t>(file->st_size);
  std::vector<std::byte> bytes(sizeof(detail::SnapshotHeader));
  if (file_size < bytes.size()) {
    return fail({.code = Errc::corrupt,
                 .operation = operation,
                 .first = Operand::size(file_size),
                 .reason = "too short for a snapshot"});
  }
  if (auto ok = read_all(operation, fd, bytes.data(), bytes.size(), 0); !ok) {
    return fail(ok.error());
  }
  const auto size = detail::head_size(bytes);
  if (!size) return fail(size.error());
  bytes.resize(*size);
  constexpr std::size_t known = sizeof(detail::SnapshotHeader);
  if (auto ok = read_all(operation, fd, bytes.data() + known, *size - known, known); !ok) {
    return fail(ok.error());
  }
  return detail::decode_head(bytes, file_size);
}

constexpr const char* restoring = "Snapshot::restore";

/// Makes a part of a region 0, without touching what is not there. Writing takes no page from a
/// hugetlb pool that could be empty: a private mapping has reserved those that it may copy to.
Result<void> clear_part(const MemoryRegion& region, PageScan& scan, Extent part) {
  for (std::uint64_t at = part.offset; at < part.end();) {
    const auto used = scan.next(at, part.end());
    if (!used) return fail(used.error());
    for (at = used->offset; at < used->end(); at += snapshot_page) {
      std::byte* const page = region.host_base() + at;
      if (is_zero(page, snapshot_page)) continue;
      std::memset(page, 0, snapshot_page);
      region.dirty().mark(at, snapshot_page);
    }
  }
  return {};
}

/// Calls `data(offset, size)` and `hole(offset, size)` for the parts of a region's bytes in the
/// file, in chunks of whole pages; stops at an error. `corrupt` where the file has no more bytes.
template <typename Data, typename Hole>
Result<void> for_each_part(int fd, const SnapshotRegion& region, Data data, Hole hole) {
  const auto page_up = [](std::uint64_t offset) {
    return (offset + snapshot_page - 1) / snapshot_page * snapshot_page;
  };
  for (std::uint64_t at = 0; at < region.size;) {
    const auto extent = detail::next_file_data(restoring, Errc::corrupt, fd, region.offset + at,
                                               region.offset + region.size);
    if (!extent) return fail(extent.error());
    const std::uint64_t begin =
        std::max(at, (extent->offset - region.offset) / snapshot_page * snapshot_page);
    const std::uint64_t end = std::min(region.size, page_up(extent->end() - region.offset));
    if (begin > at) {
      if (auto ok = hole(at, begin - at); !ok) return ok;
    }
    for (at = begin; at < end;) {
      const std::uint64_t size = std::min(detail::snapshot_chunk, end - at);
      if (auto ok = data(at, size); !ok) return ok;
      at += size;
    }
    at = std::max(at, end);
  }
  return {};
}

/// A region that may not be written must be what it was.
Result<void> compare(const MemoryRegion& region, const SnapshotRegion& saved, int fd) {
  PageScan scan(region.mapping(), restoring);
  std::vector<std::byte> buffer(std::min(detail::snapshot_chunk, region.size()));
  for (std::uint64_t begin = 0; begin < region.size(); begin += buffer.size()) {
    const std::uint64_t end = std::min(region.size(), begin + buffer.size());
    const std::byte* const bytes = buffer.data();
    if (auto ok = read_all(restoring, fd, buffer.data(), end - begin, saved.offset + begin); !ok) {
      return ok;
    }
    for (std::uint64_t at = begin; at < end;) {
      const auto used = scan.next(at, end);
      if (!used) return fail(used.error());
      const std::uint64_t hole = used->offset - at;
      const std::byte* const memory = region.host_base() + used->offset;
      if ((hole != 0 && !is_zero(bytes + (at - begin), hole)) ||
          std::memcmp(bytes + (used->offset - begin), memory, used->size) != 0) {
        return fail({.code = Errc::access_denied,
                     .operation = restoring,
                     .first = operand(region),
                     .reason = "may not be written, and differs from the snapshot"});
      }
      at = used->end();
    }
  }
  return {};
}

/// Everything that can be wrong before the first byte is written.
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
                        Operand::number(memory.regions().size()), "the numbers of regions differ");
  }
  for (std::size_t i = 0; i < head.regions.size(); ++i) {
    const MemoryRegion& region = *memory.regions()[i];
    const SnapshotRegion& saved = head.regions[i];
    if (saved.base != region.base() || saved.size != region.size()) {
      return other_layout(Operand::span(saved.base.value(), saved.size), operand(region),
                          "the layout differs");
    }
    if (!allows(region.protection(), Protection::read)) {
      return fail({.code = Errc::access_denied,
                   .operation = restoring,
                   .first = operand(region),
                   .reason = "may not be read"});
    }
    if (allows(region.protection(), Protection::write)) continue;
    if (auto ok = compare(region, saved, fd); !ok) return ok;
  }
  return {};
}

}  // namespace

Result<std::vector<SnapshotRegion>> Snapshot::inspect(int fd) {
  auto head = read_head(fd);
  if (!head) return fail(head.error());
  return std::move(head->regions);
}

Result<void> Snapshot::restore(const GuestMemory& memory, int fd, const SnapshotProgress& report) {
  const auto head = read_head(fd);
  if (!head) return fail(head.error());
  if (auto ok = check_target(memory, *head, fd); !ok) return ok;
  Progress progress(report, memory.total_size());
  for (std::size_t i = 0; i < head->regions.size(); ++i) {
    const MemoryRegion& region = *memory.regions()[i];
    const SnapshotRegion& saved = head->regions[i];
    if (!allows(region.protection(), Protection::write)) {
      progress.done(region.size());
      continue;
    }
    PageScan scan(region.mapping(), restoring);
    const auto ok = for_each_part(
        fd, saved,
        [&](std::uint64_t offset, std::uint64_t size) {
          auto read =
              read_all(restoring, fd, region.host_base() + offset, size, saved.offset + offset);
          region.dirty().mark(offset, size);  // also when part of it was read
          progress.done(size);
          return read;
        },
        [&](std::uint64_t offset, std::uint64_t size) {
          auto cleared = clear_part(region, scan, {offset, size});
          progress.done(size);
          return cleared;
        });
    if (!ok) return ok;
  }
  return {};
}

Result<GuestMemory> Snapshot::map(int fd) {
  const auto head = read_head(fd);
  if (!head) return fail(head.error());
  if (head->regions.empty()) return GuestMemory();
  const BackingSpec spec{
      .source = MemorySource::file, .descriptor = fd, .sharing = Sharing::map_private};
  // One open file for all regions.
  const auto backing = Backing::open(spec, head->file_size, Protection::read);
  if (!backing) return fail(backing.error());
  std::vector<MemoryRegionPtr> regions;
  regions.reserve(head->regions.size());
  for (const SnapshotRegion& saved : head->regions) {
    BackingSpec own = spec;
    own.offset = saved.offset;
    auto description = AddressSpaceRegion::make({.name = "snapshot",
                                                 .base = saved.base,
                                                 .size = saved.size,
                                                 .backing = own,
                                                 .protection = saved.protection});
    if (!description) return fail(description.error());
    auto region =
        MemoryRegion::map(*description, {.backing = *backing, .backing_offset = saved.offset});
    if (!region) return fail(region.error());
    regions.push_back(std::move(*region));
  }
  return GuestMemory::from_regions(std::move(regions));
}

}  // namespace vmspace
