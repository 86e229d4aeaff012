// SPDX-License-Identifier: Apache-2.0
//
// A chain of snapshots made one.

#include <sys/stat.h>

#include <algorithm>
#include <vector>

#include "vmspace/base/try.hpp"
#include "vmspace/host/zero_test.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_writer.hpp"

#include "os/system_calls.hpp"
#include "snapshot/snapshot_format.hpp"
#include "snapshot/snapshot_io.hpp"
#include "snapshot/snapshot_reader_state.hpp"

namespace vmspace {

namespace {

using detail::snapshot_page;

constexpr const char* merge_operation = "merge_snapshots";

/// Writes runs of pages that are not zeros; all of them unless `sparse`.
Result<void> write_runs(SnapshotWriter& writer, GuestAddress base, std::span<const std::byte> pages,
                        bool sparse) {
  const auto is_zero_page = [&](std::size_t at) {
    return sparse && is_zero(pages.subspan(at, snapshot_page));
  };
  for (std::size_t at = 0; at < pages.size();) {
    while (at < pages.size() && is_zero_page(at))
      at += snapshot_page;
    std::size_t stop = at;
    while (stop < pages.size() && !is_zero_page(stop))
      stop += snapshot_page;
    if (stop == at) break;
    VMSPACE_TRY(writer.write(GuestAddress(base.value() + at), pages.subspan(at, stop - at)));
    at = stop;
  }
  return {};
}

}  // namespace

Result<SavedSnapshot> merge_snapshots(SnapshotReader snapshot, int fd, const SaveOptions& options) {
  if (options.changes) {
    return fail({.code = Errc::invalid_argument,
                 .operation = merge_operation,
                 .reason = "a merged snapshot is a full one"});
  }
  struct stat target {};
  if (detail::kernel().fstat(fd, &target) != 0)
    return detail::fail_os(merge_operation, {}, "fstat");
  for (const detail::SnapshotFile& source : snapshot.state_->files) {
    struct stat file {};
    if (detail::kernel().fstat(source.fd(), &file) != 0)
      return detail::fail_os(merge_operation, {}, "fstat");
    if (file.st_dev == target.st_dev && file.st_ino == target.st_ino) {
      return fail(
          {.code = Errc::invalid_argument,
           .operation = merge_operation,
           .reason = "the file is one of those that are merged and must not be overwritten"});
    }
  }
  const auto regions = snapshot.regions();
  SnapshotWriter writer = VMSPACE_TRY_IN(
      merge_operation, SnapshotWriter::create(fd, regions, {.checksums = options.checksums}));
  std::uint64_t total = 0;
  for (const SnapshotRegion& region : regions)
    total += region.size;
  detail::Progress progress(options.progress, total);
  std::vector<std::byte> buffer(std::uint64_t{1} << 20);
  for (const SnapshotRegion& region : regions) {
    const std::uint64_t base = region.base.value();
    for (std::uint64_t at = 0; at < region.size;) {
      GuestRange found{.base = GuestAddress(base + at), .size = region.size - at};
      if (options.sparse) found = VMSPACE_TRY_IN(merge_operation, snapshot.next_data(found));
      progress.done(found.base.value() - base - at);
      at = found.base.value() - base;
      for (const std::uint64_t end = at + found.size; at < end;) {
        const auto pages =
            std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), end - at));
        const GuestAddress address(base + at);
        VMSPACE_TRY_IN(merge_operation, snapshot.read(address, pages));
        VMSPACE_TRY_IN(merge_operation, write_runs(writer, address, pages, options.sparse));
        at += pages.size();
        progress.done(pages.size());
      }
    }
  }
  const SnapshotId id = VMSPACE_TRY_IN(merge_operation, writer.finish());
  return SavedSnapshot{.id = id, .stored = writer.stored()};
}

}  // namespace vmspace
