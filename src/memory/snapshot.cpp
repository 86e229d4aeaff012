// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/snapshot.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <utility>

#include "memory/guest_map.hpp"
#include "memory/live_files.hpp"
#include "memory/page_scan.hpp"
#include "memory/snapshot_format.hpp"
#include "memory/system_calls.hpp"

namespace vmspace {

namespace {

using detail::Extent;
using detail::fail_os;
using detail::kernel;
using detail::retry;
using detail::snapshot_page;

constexpr std::uint64_t largest_file = std::numeric_limits<std::int64_t>::max();

/// What one system call moves at most: large enough to cost nothing, small enough for a progress
/// bar.
constexpr std::uint64_t chunk = std::uint64_t{8} << 20;

Operand operand(const MemoryRegion& region) {
  return Operand::range(region.base().value(), region.last_addr().value());
}

/// The first part of [from, end) of a file that is no hole, as SEEK_DATA sees it; empty at `end`
/// when there is none. A file system that knows nothing of holes says that all is data; where the
/// kernel can't even tell that, or tells nonsense (a file system may be anybody's program), so do
/// we: a caller that goes from extent to extent always comes to the end.
Extent next_data(int fd, std::uint64_t from, std::uint64_t end) {
  const auto data = kernel().lseek(fd, static_cast<off_t>(from), SEEK_DATA);
  if (data < 0) return errno == ENXIO ? Extent{end, 0} : Extent{from, end - from};
  const auto begin = static_cast<std::uint64_t>(data);
  if (begin < from) return {from, end - from};
  if (begin >= end) return {end, 0};
  const auto hole = kernel().lseek(fd, data, SEEK_HOLE);
  if (hole <= data) return {begin, end - begin};
  return {begin, std::min(end, static_cast<std::uint64_t>(hole)) - begin};
}

/// The file whose holes are the region's holes: a memfd, or a file of tmpfs, of which the pages are
/// all there is. A private mapping has pages that the file knows nothing of, and so has a shared
/// one of a regular file for as long as its file system, or a server behind it, has not seen them.
std::optional<int> shared_file(const MemoryRegion& region) {
  const Backing& backing = region.backing();
  if (backing.is_anonymous() || !backing.is_shared()) return std::nullopt;
  if (backing.page_kind() != PageKind::shmem) return std::nullopt;
  return backing.descriptor();
}

/// The next part of a region, from `offset` on, that may hold something else than zeros.
Extent next_used(const MemoryRegion& region, std::uint64_t offset) {
  const auto file = shared_file(region);
  if (!file) return {offset, region.size() - offset};
  const std::uint64_t begin = region.mapping().file_offset();
  Extent extent = next_data(*file, begin + offset, begin + region.size());
  extent.offset -= begin;
  // Holes are made of the file system's blocks; pages are what is looked at here.
  const std::uint64_t slack = extent.offset % snapshot_page;
  extent.offset -= slack;
  extent.size = std::min((extent.size + slack + snapshot_page - 1) / snapshot_page * snapshot_page,
                         region.size() - extent.offset);
  return extent;
}

bool is_zero(const std::byte* page) {
  // Equal to itself moved by eight bytes, which are 0: compares at the speed of memcmp.
  std::uint64_t first;
  std::memcpy(&first, page, sizeof first);
  return first == 0 && std::memcmp(page, page + sizeof first, snapshot_page - sizeof first) == 0;
}

Result<void> write_all(int fd, const std::byte* from, std::uint64_t size, std::uint64_t offset) {
  while (size != 0) {
    const auto count =
        retry([&] { return kernel().pwrite(fd, from, size, static_cast<off_t>(offset)); });
    if (count <= 0) {
      // A file system that takes nothing and calls it no error would do so for ever.
      return fail_os("Snapshot::save", Operand::span(offset, size), "pwrite",
                     count == 0 ? EIO : errno);
    }
    from += count;
    size -= static_cast<std::uint64_t>(count);
    offset += static_cast<std::uint64_t>(count);
  }
  return {};
}

Result<void> read_all(const char* operation, int fd, std::byte* to, std::uint64_t size,
                      std::uint64_t offset) {
  while (size != 0) {
    const auto count =
        retry([&] { return kernel().pread(fd, to, size, static_cast<off_t>(offset)); });
    if (count < 0) return fail_os(operation, Operand::span(offset, size), "pread");
    if (count == 0) {
      return fail({.code = Errc::corrupt,
                   .operation = operation,
                   .first = Operand::span(offset, size),
                   .reason = "the file is cut off"});
    }
    to += count;
    size -= static_cast<std::uint64_t>(count);
    offset += static_cast<std::uint64_t>(count);
  }
  return {};
}

class Progress {
 public:
  Progress(const SnapshotProgress& report, std::uint64_t total) : report_(report), total_(total) {}
  void done(std::uint64_t bytes) {
    done_ += bytes;
    if (report_) report_(done_, total_);
  }

 private:
  const SnapshotProgress& report_;
  std::uint64_t done_ = 0;
  std::uint64_t total_;
};

/// Where save() puts the regions.
Result<detail::SnapshotHead> lay_out(const GuestMemory& memory) {
  detail::SnapshotHead head{.regions = {}, .file_size = 0};
  head.regions.reserve(memory.regions().size());
  std::uint64_t end =
      sizeof(detail::SnapshotHeader) + memory.regions().size() * sizeof(detail::SnapshotEntry);
  for (const auto& region : memory.regions()) {
    constexpr const char* operation = "Snapshot::save";
    if (!allows(region->protection(), Protection::read)) {
      return fail({.code = Errc::access_denied,
                   .operation = operation,
                   .first = operand(*region),
                   .reason = "may not be read"});
    }
    const std::uint64_t offset = (end + detail::snapshot_align - 1) & ~(detail::snapshot_align - 1);
    if (region->size() > largest_file - offset - detail::snapshot_align) {
      return fail({.code = Errc::limit_exceeded,
                   .operation = operation,
                   .first = operand(*region),
                   .reason = "the file would be larger than a file can be"});
    }
    head.regions.push_back({.base = region->base(),
                            .size = region->size(),
                            .offset = offset,
                            .protection = region->protection()});
    end = offset + region->size();
  }
  head.file_size = (end + snapshot_page - 1) & ~(snapshot_page - 1);
  return head;
}

Result<struct stat> check_file(const char* operation, int fd) {
  struct stat file {};
  if (kernel().fstat(fd, &file) != 0) return fail_os(operation, {}, "fstat");
  if (!S_ISREG(file.st_mode)) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "the descriptor is not of a regular file"});
  }
  return file;
}

Result<detail::SnapshotHead> read_head(int fd) {
  constexpr const char* operation = "Snapshot::inspect";
  const auto file = check_file(operation, fd);
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

/// Writes the part [offset, offset + size) of a region, without its pages of zeros if `sparse`;
/// gives the bytes written.
Result<std::uint64_t> save_part(const MemoryRegion& region, Extent part, int fd,
                                std::uint64_t file_offset, bool sparse) {
  const std::byte* const memory = region.host_base();
  const std::uint64_t end = part.offset + part.size;
  std::uint64_t written = 0;
  for (std::uint64_t at = part.offset; at < end;) {
    while (sparse && at < end && is_zero(memory + at))
      at += snapshot_page;
    std::uint64_t stop = sparse ? at : end;
    while (stop < end && !is_zero(memory + stop))
      stop += snapshot_page;
    if (auto ok = write_all(fd, memory + at, stop - at, file_offset + at); !ok) {
      return fail(ok.error());
    }
    written += stop - at;
    at = stop;
  }
  return written;
}

/// Makes the part [offset, offset + size) of a region 0, without touching what is 0 already: a page
/// that is only read stays a hole.
void clear_part(const MemoryRegion& region, std::uint64_t offset, std::uint64_t size) {
  const std::uint64_t end = offset + size;
  while (offset < end) {
    const Extent used = next_used(region, offset);
    if (used.offset >= end) return;
    const std::uint64_t stop = std::min(end, used.offset + used.size);
    for (offset = std::max(offset, used.offset); offset < stop; offset += snapshot_page) {
      std::byte* const page = region.host_base() + offset;
      if (is_zero(page)) continue;
      std::memset(page, 0, snapshot_page);
      region.dirty().mark(offset, snapshot_page);
    }
  }
}

constexpr const char* restoring = "Snapshot::restore";

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
    if (begin > at) hole(at, begin - at);
    for (at = begin; at < end;) {
      const std::uint64_t size = std::min(chunk, end - at);
      if (auto ok = data(at, size); !ok) return ok;
      at += size;
    }
    at = std::max(at, end);
  }
  return {};
}

/// A region that may not be written must be what it was.
Result<void> compare(const MemoryRegion& region, const SnapshotRegion& saved, int fd) {
  std::vector<std::byte> buffer(std::min(chunk, region.size()));
  for (std::uint64_t at = 0; at < region.size();) {
    const std::uint64_t size = std::min<std::uint64_t>(buffer.size(), region.size() - at);
    if (auto ok = read_all(restoring, fd, buffer.data(), size, saved.offset + at); !ok) return ok;
    if (std::memcmp(buffer.data(), region.host_base() + at, size) != 0) {
      return fail({.code = Errc::access_denied,
                   .operation = restoring,
                   .first = operand(region),
                   .reason = "may not be written, and differs from the snapshot"});
    }
    at += size;
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

Result<std::uint64_t> Snapshot::save(const GuestMemory& memory, int fd,
                                     const SaveOptions& options) {
  constexpr const char* operation = "Snapshot::save";
  const auto file = check_file(operation, fd);
  if (!file) return fail(file.error());
  const auto is_memory = detail::is_live_file(operation, *file);
  if (!is_memory) return fail(is_memory.error());
  if (*is_memory) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "the file is memory of a guest of this process"});
  }
  const int flags = retry([&] { return kernel().fcntl(fd, F_GETFL, 0); });
  if (flags < 0) return fail_os(operation, {}, "fcntl(F_GETFL)");
  // pwrite(2), "BUGS": Linux appends then, whatever the offset.
  if ((flags & O_APPEND) != 0) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "the descriptor appends (O_APPEND)"});
  }
  const auto head = lay_out(memory);
  if (!head) return fail(head.error());
  const std::vector<std::byte> bytes = detail::encode_head(*head);

  // Cut off and grown again, the file is one hole, without what it held before.
  for (const std::uint64_t size : {std::uint64_t{0}, head->file_size}) {
    if (retry([&] { return kernel().ftruncate(fd, static_cast<off_t>(size)); }) != 0) {
      return fail_os(operation, Operand::size(size), "ftruncate");
    }
  }
  Progress progress(options.progress, memory.total_size());
  std::uint64_t written = 0;
  for (std::size_t i = 0; i < head->regions.size(); ++i) {
    const MemoryRegion& region = *memory.regions()[i];
    for (std::uint64_t at = 0; at < region.size();) {
      Extent part = options.sparse ? next_used(region, at) : Extent{at, region.size() - at};
      part.size = std::min(part.size, chunk);
      const auto stored = save_part(region, part, fd, head->regions[i].offset, options.sparse);
      if (!stored) return fail(stored.error());
      written += *stored;
      progress.done(part.offset + part.size - at);
      at = part.offset + part.size;
    }
  }
  if (auto ok = write_all(fd, bytes.data(), bytes.size(), 0); !ok) return fail(ok.error());
  return written;
}

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
          clear_part(region, offset, size);
          progress.done(size);
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
  std::vector<GuestMemory::RegionPtr> regions;
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
