// SPDX-License-Identifier: Apache-2.0

#include "snapshot/snapshot_file.hpp"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/host/zero_test.hpp"

#include "base/corrupt.hpp"
#include "host/present_pages.hpp"
#include "os/system_calls.hpp"
#include "snapshot/content_checksum.hpp"
#include "snapshot/snapshot_io.hpp"

namespace vmspace::detail {

namespace {

/// A few checksums at a time: a page of them.
constexpr std::size_t sums_at_once = snapshot_page / sizeof(Le64);
using Sums = std::array<Le64, sums_at_once>;

}  // namespace

Result<SnapshotFile> SnapshotFile::open(const char* operation, int fd) {
  const struct stat status = VMSPACE_TRY(check_snapshot_file(operation, fd));
  const auto file_size = static_cast<std::uint64_t>(status.st_size);
  std::vector<std::byte> bytes(sizeof(SnapshotPrefix));
  if (file_size < bytes.size()) {
    return corrupt(operation, "the file is too short to be a snapshot", Operand::size(file_size));
  }
  VMSPACE_TRY(read_all(operation, fd, bytes.data(), bytes.size(), 0));
  const std::size_t size = VMSPACE_TRY_IN(operation, head_size(bytes));
  constexpr std::size_t known = sizeof(SnapshotPrefix);
  bytes.resize(size);
  VMSPACE_TRY(read_all(operation, fd, bytes.data() + known, size - known, known));
  SnapshotFile file;
  file.head_ = VMSPACE_TRY_IN(operation, decode_head(bytes, file_size));
  file.first_pages_ = first_pages(file.head_.regions);
  file.fd_ = Descriptor(retry([&] { return kernel().fcntl(fd, F_DUPFD_CLOEXEC, 0); }));
  if (file.fd() < 0) return fail_os(operation, {}, "fcntl(F_DUPFD_CLOEXEC)");
  return file;
}

Result<std::vector<StoredRecord>> SnapshotFile::read_index(const char* operation) const {
  const struct stat status = VMSPACE_TRY(check_snapshot_file(operation, fd()));
  const auto file_size = static_cast<std::uint64_t>(status.st_size);
  const std::uint64_t head = head_bytes(head_.regions.size());
  SnapshotTrailer trailer;
  if (file_size < head + sizeof(RecordHeader) + sizeof trailer)
    return corrupt(operation, "the file is truncated", Operand::size(file_size));
  const std::uint64_t end = file_size - sizeof trailer;
  VMSPACE_TRY(
      read_all(operation, fd(), reinterpret_cast<std::byte*>(&trailer), sizeof trailer, end));
  if (trailer.magic != trailer_magic || trailer.checksum != trailer_checksum(trailer) ||
      trailer.size != file_size) {
    return corrupt(operation, "the file must end with a trailer: it was truncated or extended",
                   Operand::size(file_size));
  }
  if (trailer.id != head_.id) return corrupt(operation, "the trailer belongs to another snapshot");
  if (trailer.index < head + sizeof(RecordHeader) || trailer.index > end ||
      (end - trailer.index) % sizeof(IndexEntry) != 0 ||
      (end - trailer.index) / sizeof(IndexEntry) != trailer.records) {
    return corrupt(operation, "the index must reach from the records to the trailer",
                   Operand::size(trailer.index));
  }
  std::vector<StoredRecord> records;
  std::array<IndexEntry, 512> chunk;
  std::uint64_t sum = first_index_checksum(head_.id);
  std::uint64_t free = 0;  // the address above the last record; 0 also at 2^64
  for (std::uint64_t at = trailer.index; at < end;) {
    const std::uint64_t count = std::min<std::uint64_t>(chunk.size(), (end - at) / sizeof chunk[0]);
    const std::uint64_t size = count * sizeof chunk[0];
    VMSPACE_TRY(read_all(operation, fd(), reinterpret_cast<std::byte*>(chunk.data()), size, at));
    at += size;
    for (const IndexEntry& entry : std::span(chunk).first(count)) {
      const auto kind = static_cast<RecordKind>(entry.kind.value());
      const Operand where = Operand::span(entry.base, entry.size);
      if (entry.reserved != 0 || !is_record_of(head_.regions, kind, entry.base, entry.size))
        return corrupt(operation, "a record must be whole pages of one region", where);
      if (!records.empty() && (free == 0 || entry.base < free))
        return corrupt(operation, "records must be sorted and must not overlap", where);
      free = entry.base + entry.size;
      const std::uint64_t pages = entry.size / snapshot_page;
      const std::uint64_t bytes = entry.size + (head_.has_checksums ? pages * sizeof(Le64) : 0);
      const bool is_data = kind == RecordKind::data;
      if (is_data ? entry.offset < head || entry.offset > trailer.index ||
                        bytes > trailer.index - entry.offset
                  : entry.offset != 0) {
        return corrupt(operation, "the bytes of a record must lie before the index", where,
                       Operand::size(entry.offset));
      }
      sum = index_checksum(entry, sum);
      records.push_back(
          {.base = entry.base, .size = entry.size, .offset = entry.offset, .is_zeros = !is_data});
    }
  }
  if (sum != trailer.index_checksum)
    return corrupt(operation, "the checksum of the index does not match");
  return records;
}

/// Compares pages with their checksums, which are at `sums_at` in the file.
Result<void> SnapshotFile::check_pages(const char* operation, std::uint64_t sums_at,
                                       std::span<const std::byte> pages) const {
  Sums sums;
  while (!pages.empty()) {
    const std::size_t count = std::min(sums.size(), pages.size() / snapshot_page);
    const auto bytes = std::as_writable_bytes(std::span(sums).first(count));
    VMSPACE_TRY(read_all(operation, fd(), bytes.data(), bytes.size(), sums_at));
    for (std::size_t i = 0; i < count; ++i) {
      const auto page = pages.subspan(i * snapshot_page, snapshot_page);
      const bool is_good = sums[i] == 0 ? is_zero(page) : sums[i] == page_checksum(page);
      if (!is_good) {
        return corrupt(operation, "the contents do not match their checksum",
                       Operand::size(sums_at + i * sizeof sums[0]));
      }
    }
    sums_at += bytes.size();
    pages = pages.subspan(count * snapshot_page);
  }
  return {};
}

Result<void> SnapshotFile::read_image(const char* operation, std::size_t region,
                                      std::uint64_t offset, std::span<std::byte> to) const {
  VMSPACE_TRY(
      read_all(operation, fd(), to.data(), to.size(), head_.regions[region].offset + offset));
  if (!head_.has_checksums) return {};
  const std::uint64_t page = first_pages_[region] + offset / snapshot_page;
  return check_pages(operation, head_.checksums + page * sizeof(Le64), to);
}

Result<void> SnapshotFile::read_record(const char* operation, const RecordPart& part,
                                       std::span<std::byte> to) const {
  const std::uint64_t sums = head_.has_checksums ? part.pages * sizeof(Le64) : 0;
  VMSPACE_TRY(read_all(operation, fd(), to.data(), to.size(), part.record + sums + part.offset));
  if (!head_.has_checksums) return {};
  return check_pages(operation, part.record + part.offset / snapshot_page * sizeof(Le64), to);
}

Result<Extent> SnapshotFile::next_in_image(const char* operation, std::size_t region,
                                           std::uint64_t from, std::uint64_t end) const {
  const std::uint64_t in_file = head_.regions[region].offset;
  if (head_.has_checksums) {
    const std::uint64_t first = first_pages_[region];
    const Extent pages = VMSPACE_TRY(
        next_checksums(operation, first + from / snapshot_page, first + end / snapshot_page));
    return Extent{(pages.offset - first) * snapshot_page, pages.size * snapshot_page};
  }
  const Extent data =
      VMSPACE_TRY(next_file_data(operation, Errc::corrupt, fd(), in_file + from, in_file + end));
  if (data.size == 0) return Extent{end, 0};
  // Holes are made of the file system's blocks.
  const std::uint64_t begin = (data.offset - in_file) / snapshot_page * snapshot_page;
  const std::uint64_t stop =
      (data.end() - in_file + snapshot_page - 1) / snapshot_page * snapshot_page;
  return Extent{std::max(from, begin), std::min(stop, end) - std::max(from, begin)};
}

/// The first run of pages in [from, end), counted in all pages, that have checksums: those that are
/// stored, whatever the file system takes for a hole.
Result<Extent> SnapshotFile::next_checksums(const char* operation, std::uint64_t from,
                                            std::uint64_t end) const {
  Sums sums;
  while (from < end) {
    const Extent data = VMSPACE_TRY(next_file_data(operation, Errc::corrupt, fd(),
                                                   head_.checksums + from * sizeof(Le64),
                                                   head_.checksums + end * sizeof(Le64)));
    if (data.size == 0) break;
    const std::uint64_t first = (data.offset - head_.checksums) / sizeof(Le64);
    const std::uint64_t last =
        std::min(end, (data.end() - head_.checksums + sizeof(Le64) - 1) / sizeof(Le64));
    for (from = first; from < last;) {
      const std::uint64_t count = std::min<std::uint64_t>(sums.size(), last - from);
      VMSPACE_TRY(read_all(operation, fd(), reinterpret_cast<std::byte*>(sums.data()),
                           count * sizeof(Le64), head_.checksums + from * sizeof(Le64)));
      const auto read = std::span(sums).first(count);
      const auto is_stored = [](const Le64& sum) { return sum != 0; };
      const auto begin = std::ranges::find_if(read, is_stored);
      const auto stop = std::find_if_not(begin, read.end(), is_stored);
      if (begin != read.end()) {
        return Extent{from + static_cast<std::uint64_t>(begin - read.begin()),
                      static_cast<std::uint64_t>(stop - begin)};
      }
      from += count;
    }
  }
  return Extent{end, 0};
}

}  // namespace vmspace::detail
