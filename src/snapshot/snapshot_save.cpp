// SPDX-License-Identifier: Apache-2.0
//
// Guest memory to a file.

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <vector>

#include "vmspace/base/try.hpp"
#include "vmspace/host/page_scan.hpp"
#include "vmspace/host/zero_test.hpp"
#include "vmspace/snapshot/snapshot.hpp"

#include "host/live_files.hpp"
#include "memory/guarded_touch.hpp"
#include "memory/present_parts.hpp"
#include "os/system_calls.hpp"
#include "snapshot/snapshot_format.hpp"
#include "snapshot/snapshot_io.hpp"

namespace vmspace {

namespace {

using detail::fail_os;
using detail::kernel;
using detail::Progress;
using detail::retry;
using detail::snapshot_page;

constexpr const char* operation = "save_snapshot";
constexpr std::uint64_t largest_file = std::numeric_limits<std::int64_t>::max();

Result<void> write_all(int fd, const std::byte* from, std::uint64_t size, std::uint64_t offset) {
  while (size != 0) {
    const auto count =
        retry([&] { return kernel().pwrite(fd, from, size, static_cast<off_t>(offset)); });
    if (count <= 0) {
      // A file system that writes nothing without an error would go on like that for ever.
      return fail_os(operation, Operand::span(offset, size), "pwrite", count == 0 ? EIO : errno);
    }
    from += count;
    size -= static_cast<std::uint64_t>(count);
    offset += static_cast<std::uint64_t>(count);
  }
  return {};
}

/// Where save_snapshot() puts the regions.
Result<detail::SnapshotHead> lay_out(const GuestMemory& memory) {
  detail::SnapshotHead head{.regions = {}, .file_size = 0};
  head.regions.reserve(memory.regions().size());
  std::uint64_t end =
      sizeof(detail::SnapshotHeader) + memory.regions().size() * sizeof(detail::SnapshotEntry);
  for (const auto& region : memory.regions()) {
    if (!allows(region->protection(), Protection::read)) {
      return fail({.code = Errc::access_denied,
                   .operation = operation,
                   .first = detail::operand(region->guest_range()),
                   .reason = "the region must be readable"});
    }
    if (region->backing().source() == MemorySource::device) {
      return fail({.code = Errc::unsupported,
                   .operation = operation,
                   .first = detail::operand(region->guest_range()),
                   .reason = "memory of a device is for the device to save: save a GuestMemory "
                             "without this region",
                   .text = region->description().name()});
    }
    const std::uint64_t offset = (end + detail::snapshot_align - 1) & ~(detail::snapshot_align - 1);
    if (region->size() > largest_file - offset - detail::snapshot_align) {
      return fail({.code = Errc::limit_exceeded,
                   .operation = operation,
                   .first = detail::operand(region->guest_range()),
                   .reason = "the snapshot would exceed 2^63 - 1 bytes, the largest file size"});
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

/// Writes the part [offset, offset + size) of a region, without its pages of zeros if `sparse`;
/// gives the bytes written.
Result<std::uint64_t> save_part(const MemoryRegion& region, Extent part, int fd,
                                std::uint64_t file_offset, bool sparse) {
  const std::byte* const memory = region.host_base();
  const std::uint64_t end = part.offset + part.size;
  std::uint64_t written = 0;
  for (std::uint64_t at = part.offset; at < end;) {
    std::uint64_t stop = end;
    if (sparse) {
      VMSPACE_TRY(detail::touch_region(operation, region, at, end - at, [&] {
        while (at < end && is_zero({memory + at, snapshot_page}))
          at += snapshot_page;
        stop = at;
        while (stop < end && !is_zero({memory + stop, snapshot_page}))
          stop += snapshot_page;
      }));
    }
    const auto saved = write_all(fd, memory + at, stop - at, file_offset + at);
    if (!saved && detail::is_fault(region, saved.error().os_errno)) {
      const std::uint64_t from = saved.error().first.first - file_offset;  // what is left to write
      const GuestRange lost{GuestAddress(region.base().value() + from), stop - from};
      return fail(detail::fault_error(operation, lost, lost.base));
    }
    VMSPACE_TRY(saved);
    written += stop - at;
    at = stop;
  }
  return written;
}

/// Writes zeros, in place of memory that is absent.
Result<void> write_zeros(int fd, std::uint64_t size, std::uint64_t offset) {
  const std::vector<std::byte> zeros(std::min(size, std::uint64_t{1} << 20));
  while (size != 0) {
    const std::uint64_t piece = std::min<std::uint64_t>(size, zeros.size());
    VMSPACE_TRY(write_all(fd, zeros.data(), piece, offset));
    size -= piece;
    offset += piece;
  }
  return {};
}

/// Writes a region; gives the bytes written.
Result<std::uint64_t> save_region(const MemoryRegion& region, int fd, std::uint64_t file_offset,
                                  bool sparse, Progress& progress) {
  PageScan scan(region.mapping());
  std::uint64_t written = 0;
  for (std::uint64_t at = 0; at < region.size();) {
    // What is not present is not looked at: it may not even be accessible.
    const std::uint64_t begin = at + detail::absent_after(region, at, region.size() - at);
    const std::uint64_t end = begin + detail::present_after(region, begin, region.size() - begin);
    const Extent used = VMSPACE_TRY_IN(operation, scan.next(begin, end));
    const std::uint64_t hole = used.offset - at;
    if (!sparse && hole != 0) {
      VMSPACE_TRY(write_zeros(fd, hole, file_offset + at));
      written += hole;
    }
    progress.done(hole);
    for (at = used.offset; at < used.end();) {
      const Extent part{at, std::min(detail::snapshot_chunk, used.end() - at)};
      const std::uint64_t stored = VMSPACE_TRY(save_part(region, part, fd, file_offset, sparse));
      written += stored;
      progress.done(part.size);
      at += part.size;
    }
  }
  return written;
}

}  // namespace

Result<std::uint64_t> save_snapshot(const GuestMemory& memory, int fd, const SaveOptions& options) {
  const struct stat file = VMSPACE_TRY(detail::check_snapshot_file(operation, fd));
  const bool is_memory = VMSPACE_TRY(detail::is_live_file(operation, file));
  if (is_memory) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "the file backs memory of this process and must not be overwritten"});
  }
  const int flags = retry([&] { return kernel().fcntl(fd, F_GETFL, 0); });
  if (flags < 0) return fail_os(operation, {}, "fcntl(F_GETFL)");
  // pwrite(2), "BUGS": Linux then appends, whatever the offset.
  if ((flags & O_APPEND) != 0) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "the fd must not be open with O_APPEND"});
  }
  const detail::SnapshotHead head = VMSPACE_TRY(lay_out(memory));
  const std::vector<std::byte> bytes = detail::encode_head(head);

  // Truncated and extended again, the file is one hole, without its old contents.
  for (const std::uint64_t size : {std::uint64_t{0}, head.file_size}) {
    if (retry([&] { return kernel().ftruncate(fd, static_cast<off_t>(size)); }) != 0) {
      return fail_os(operation, Operand::size(size), "ftruncate");
    }
  }
  Progress progress(options.progress, head.memory_size());
  std::uint64_t written = 0;
  for (std::size_t i = 0; i < head.regions.size(); ++i) {
    written += VMSPACE_TRY(
        save_region(*memory.regions()[i], fd, head.regions[i].offset, options.sparse, progress));
  }
  VMSPACE_TRY(write_all(fd, bytes.data(), bytes.size(), 0));
  return written;
}

}  // namespace vmspace
