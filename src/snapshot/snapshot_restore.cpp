// SPDX-License-Identifier: Apache-2.0
//
// Guest memory from a file.

#include <algorithm>
#include <utility>
#include <vector>

#include "vmspace/base/try.hpp"
#include "vmspace/snapshot/snapshot.hpp"

#include "memory/present_parts.hpp"
#include "os/system_calls.hpp"
#include "snapshot/snapshot_file.hpp"
#include "snapshot/snapshot_io.hpp"
#include "snapshot/snapshot_stream.hpp"
#include "snapshot/snapshot_target.hpp"

namespace vmspace {

namespace {

using detail::Progress;
using detail::RestoreTarget;
using detail::restoring;

/// What a snapshot has of one region.
class SavedPages {
 public:
  SavedPages(SnapshotReader& snapshot, const SnapshotRegion& region)
      : snapshot_(snapshot), region_(region) {}

  /// Calls `data(part)` and `hole(part)` for the parts of the region, data in chunks.
  template <typename Data, typename Hole>
  [[nodiscard]] Result<void> for_each_part(Data data, Hole hole) const {
    for (std::uint64_t at = 0; at < region_.size;) {
      const GuestRange found =
          VMSPACE_TRY_IN(restoring, snapshot_.next_data({address(at), region_.size - at}));
      const std::uint64_t begin = found.base.value() - region_.base.value();
      if (begin > at) VMSPACE_TRY(hole(Extent{at, begin - at}));
      for (at = begin; at < begin + found.size;) {
        const Extent part{at, std::min(detail::snapshot_chunk, begin + found.size - at)};
        VMSPACE_TRY(data(part));
        at += part.size;
      }
    }
    return {};
  }

  [[nodiscard]] Result<void> read(std::uint64_t offset, std::span<std::byte> to) const {
    VMSPACE_TRY_IN(restoring, snapshot_.read(address(offset), to));
    return {};
  }
  /// Calls `use(offset, pages)` for a part, which need not fit in memory at once.
  template <typename Use>
  Result<void> read_pieces(Extent part, std::vector<std::byte>& buffer, Use use) const {
    buffer.resize(
        std::min(detail::restore_buffer, std::max<std::uint64_t>(part.size, buffer.size())));
    for (std::uint64_t at = part.offset; at < part.end();) {
      const auto pages =
          std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), part.end() - at));
      VMSPACE_TRY(read(at, pages));
      VMSPACE_TRY(use(at, pages));
      at += pages.size();
    }
    return {};
  }

 private:
  [[nodiscard]] GuestAddress address(std::uint64_t offset) const {
    return GuestAddress(region_.base.value() + offset);
  }

  SnapshotReader& snapshot_;
  const SnapshotRegion& region_;
};

/// Finds what can't be restored before the first byte is written.
Result<void> check(RestoreTarget& target, const SavedPages& saved) {
  if (target.is_writable() && target.region().is_whole()) return {};
  std::vector<std::byte> buffer;
  return saved.for_each_part(
      [&](Extent part) {
        return saved.read_pieces(part, buffer, [&](std::uint64_t at, auto pages) {
          return target.is_writable() ? target.check_absent(at, pages) : target.compare(at, pages);
        });
      },
      [&](Extent part) { return target.is_writable() ? Result<void>() : target.clear(part); });
}

Result<void> restore(RestoreTarget& target, const SavedPages& saved, Progress& progress) {
  const MemoryRegion& region = target.region();
  std::vector<std::byte> buffer;
  const auto restore_present = [&](std::uint64_t offset, std::uint64_t size) -> Result<void> {
    if (!target.is_direct()) {
      return saved.read_pieces({offset, size}, buffer,
                               [&](std::uint64_t at, auto pages) { return target.put(at, pages); });
    }
    auto done = saved.read(offset, {region.host_base() + offset, size});
    region.dirty().mark(offset, size);  // also when part of it was read
    return done;
  };
  return saved.for_each_part(
      [&](Extent part) {
        Result<void> done;
        detail::for_each_present_part(region, part.offset, part.size,
                                      [&](std::uint64_t offset, std::uint64_t size) {
                                        if (done) done = restore_present(offset, size);
                                      });
        progress.done(part.size);
        return done;
      },
      [&](Extent part) {
        auto done = target.clear(part);
        progress.done(part.size);
        return done;
      });
}

}  // namespace

Result<std::vector<SnapshotRegion>> inspect_snapshot(int fd) {
  constexpr const char* operation = "inspect_snapshot";
  const detail::SnapshotFile file = VMSPACE_TRY(detail::SnapshotFile::open(operation, fd));
  if (!file.is_image()) {
    VMSPACE_TRY(file.read_index(operation));
  }
  return file.head().regions;
}

Result<void> restore_snapshot(const GuestMemory& memory, SnapshotReader snapshot,
                              const SnapshotProgress& report) {
  const auto regions = snapshot.regions();
  VMSPACE_TRY(detail::check_layout(memory, regions));
  for (std::size_t i = 0; i < regions.size(); ++i) {
    RestoreTarget target(*memory.regions()[i]);
    VMSPACE_TRY(check(target, {snapshot, regions[i]}));
  }
  Progress progress(report, detail::whole_size(memory));
  for (std::size_t i = 0; i < regions.size(); ++i) {
    RestoreTarget target(*memory.regions()[i]);
    if (target.is_writable()) {
      VMSPACE_TRY(restore(target, {snapshot, regions[i]}, progress));
    } else {
      progress.done(regions[i].size);
    }
  }
  return {};
}

Result<void> restore_snapshot(const GuestMemory& memory, int fd, const SnapshotProgress& report) {
  struct stat file {};
  if (detail::kernel().fstat(fd, &file) != 0) return detail::fail_os(restoring, {}, "fstat");
  if (detail::is_stream(file)) return detail::restore_stream(memory, fd, report);
  const SnapshotReader snapshot = VMSPACE_TRY_IN(restoring, SnapshotReader::open(fd));
  return restore_snapshot(memory, snapshot, report);
}

Result<GuestMemory> map_snapshot(int fd) {
  constexpr const char* operation = "map_snapshot";
  const detail::SnapshotFile file = VMSPACE_TRY(detail::SnapshotFile::open(operation, fd));
  const detail::SnapshotHead& head = file.head();
  if (!file.is_image()) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .reason = "a file with records can't be mapped: restore it, or merge it to an "
                           "image"});
  }
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
