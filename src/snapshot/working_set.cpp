// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/working_set.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/endian.hpp"

#include "base/corrupt.hpp"
#include "os/argument_checks.hpp"
#include "os/system_calls.hpp"
#include "snapshot/fnv1a.hpp"
#include "snapshot/snapshot_format.hpp"
#include "snapshot/snapshot_io.hpp"

namespace vmspace {

namespace {

using detail::corrupt;
using detail::fail_os;
using detail::kernel;
using detail::retry;
using detail::snapshot_page;

constexpr std::array<char, 8> magic{'v', 'm', 's', 'p', 'W', 'S', 'E', 'T'};
constexpr std::uint32_t known_version = 1;

struct Header {
  std::array<char, 8> magic;
  Le32 version;
  Le32 ranges;
  SnapshotId snapshot;
  Le64 checksum;
};
static_assert(sizeof(Header) == 40);

struct Entry {
  Le64 base;
  Le64 size;
};
static_assert(sizeof(Entry) == 16);

constexpr const char* loading = "WorkingSet::load";
constexpr const char* saving = "WorkingSet::save";
/// How many ranges are read at a time.
constexpr std::size_t entries_at_once = 4096;

std::uint64_t checksum(Header header, std::span<const Entry> entries) {
  header.checksum = 0;
  return detail::fnv1a(std::as_bytes(entries), detail::fnv1a(std::as_bytes(std::span(&header, 1))));
}

/// The end of a range that does not pass 2^64; 0 stands for 2^64 itself.
std::uint64_t end_of(const GuestRange& range) {
  return range.base.value() + range.size;
}

Result<void> check(const char* operation, const GuestRange& range) {
  VMSPACE_TRY(detail::require_nonzero(operation, range.size, Operand::address(range.base.value())));
  for (const Operand& value : {Operand::address(range.base.value()), Operand::size(range.size)}) {
    VMSPACE_TRY(detail::require_multiple(operation, value, snapshot_page,
                                         "a working set consists of whole pages of 4096 bytes"));
  }
  if (range.size - 1 > std::numeric_limits<std::uint64_t>::max() - range.base.value()) {
    return fail({.code = Errc::overflow,
                 .operation = operation,
                 .first = Operand::address(range.base.value()),
                 .second = Operand::size(range.size)});
  }
  return {};
}

}  // namespace

Result<WorkingSet> WorkingSet::make(SnapshotId snapshot, std::vector<GuestRange> ranges) {
  constexpr const char* operation = "WorkingSet::make";
  for (const GuestRange& range : ranges)
    VMSPACE_TRY(check(operation, range));
  std::ranges::sort(ranges, {}, &GuestRange::base);
  std::size_t kept = 0;
  for (const GuestRange& range : ranges) {
    if (kept != 0) {
      GuestRange& last = ranges[kept - 1];
      const std::uint64_t distance = range.base.value() - last.base.value();
      if (distance <= last.size) {
        // Both end at 2^64 at most, so that the sum passes it only where it is all of 2^64.
        if (distance + range.size == 0) {
          return fail({.code = Errc::overflow,
                       .operation = operation,
                       .first = Operand::address(last.base.value()),
                       .reason = "a working set can't have all 2^64 bytes"});
        }
        last.size = std::max(last.size, distance + range.size);
        continue;
      }
    }
    ranges[kept++] = range;
  }
  ranges.resize(kept);
  VMSPACE_TRY(detail::require_at_most(operation, kept, max_ranges,
                                      "a working set has so many ranges at most"));
  WorkingSet set;
  set.snapshot_ = snapshot;
  set.ranges_ = std::move(ranges);
  return set;
}

Result<WorkingSet> WorkingSet::load(int fd) {
  Header header{};
  VMSPACE_TRY(detail::receive_all(loading, fd, std::as_writable_bytes(std::span(&header, 1))));
  if (header.magic != magic) return corrupt(loading, "the file is not a working set");
  if (header.version == 0) return corrupt(loading, "version 0 does not exist");
  if (header.version > known_version) {
    return fail({.code = Errc::unsupported,
                 .operation = loading,
                 .first = Operand::number(header.version),
                 .reason = "the file was written by a later version of the library"});
  }
  const std::uint32_t count = header.ranges;
  if (count > max_ranges) {
    return corrupt(loading, "the file names more ranges than a working set has",
                   Operand::number(count));
  }
  std::vector<Entry> entries;
  while (entries.size() < count) {
    const std::size_t known = entries.size();
    entries.resize(std::min<std::size_t>(count, known + entries_at_once));
    VMSPACE_TRY(detail::receive_all(loading, fd,
                                    std::as_writable_bytes(std::span(entries).subspan(known))));
  }
  if (header.checksum != checksum(header, entries)) {
    return corrupt(loading, "the checksum of the working set does not match");
  }
  WorkingSet set;
  set.snapshot_ = header.snapshot;
  set.ranges_.reserve(count);
  for (const Entry& entry : entries) {
    const GuestRange range{GuestAddress(entry.base), entry.size};
    if (!check(loading, range)) {
      return corrupt(loading, "the ranges of a working set are whole pages",
                     Operand::span(entry.base, entry.size));
    }
    if (!set.ranges_.empty()) {
      const std::uint64_t end = end_of(set.ranges_.back());
      if (end == 0 || range.base.value() <= end) {
        return corrupt(loading, "the ranges of a working set ascend, with gaps between them",
                       Operand::span(entry.base, entry.size));
      }
    }
    set.ranges_.push_back(range);
  }
  return set;
}

Result<void> WorkingSet::save(int fd) const {
  std::vector<Entry> entries;
  entries.reserve(ranges_.size());
  for (const GuestRange& range : ranges_)
    entries.push_back({range.base.value(), range.size});
  Header header{.magic = magic,
                .version = known_version,
                .ranges = static_cast<std::uint32_t>(entries.size()),
                .snapshot = snapshot_,
                .checksum = 0};
  header.checksum = checksum(header, entries);
  struct stat file {};
  if (retry([&] { return kernel().fstat(fd, &file); }) != 0) return fail_os(saving, {}, "fstat");
  const bool is_socket = S_ISSOCK(file.st_mode);
  VMSPACE_TRY(detail::send_all(saving, fd, is_socket, std::as_bytes(std::span(&header, 1))));
  return detail::send_all(saving, fd, is_socket, std::as_bytes(std::span(entries)));
}

std::uint64_t WorkingSet::total_size() const noexcept {
  std::uint64_t size = 0;
  for (const GuestRange& range : ranges_)
    size += range.size;
  return size;
}

Result<WorkingSet> WorkingSet::merged_with(const WorkingSet& other) const {
  constexpr const char* operation = "WorkingSet::merged_with";
  if (snapshot_ != other.snapshot_) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "the working sets belong to different snapshots"});
  }
  std::vector<GuestRange> both = ranges_;
  both.insert(both.end(), other.ranges_.begin(), other.ranges_.end());
  return VMSPACE_TRY_IN(operation, make(snapshot_, std::move(both)));
}

}  // namespace vmspace
