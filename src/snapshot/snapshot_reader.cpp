// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/snapshot_reader.hpp"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "vmspace/base/try.hpp"

#include "snapshot/snapshot_file.hpp"
#include "snapshot/snapshot_format.hpp"
#include "snapshot/snapshot_io.hpp"
#include "snapshot/snapshot_reader_state.hpp"

namespace vmspace {

namespace {

using detail::SnapshotFile;
using detail::SnapshotPiece;
using detail::StoredRecord;

constexpr const char* opening = "SnapshotReader::open";
constexpr const char* reading = "SnapshotReader::read";
constexpr const char* looking = "SnapshotReader::next_data";

/// What a full image has: each of its regions.
std::vector<SnapshotPiece> pieces_of_image(std::span<const SnapshotRegion> regions,
                                           std::uint32_t file) {
  std::vector<SnapshotPiece> pieces;
  pieces.reserve(regions.size());
  for (const SnapshotRegion& region : regions) {
    pieces.push_back({.base = region.base.value(),
                      .size = region.size,
                      .record = pieces.size(),
                      .pages = 0,
                      .offset = 0,
                      .file = file,
                      .is_zeros = false});
  }
  return pieces;
}

/// What of the pieces is in these regions: memory that was unplugged does not come back with memory
/// that is plugged in its place later. Linear.
std::vector<SnapshotPiece> within(std::span<const SnapshotRegion> regions,
                                  const std::vector<SnapshotPiece>& pieces) {
  std::vector<SnapshotPiece> parts;
  parts.reserve(pieces.size());
  auto piece = pieces.begin();
  for (const SnapshotRegion& region : regions) {
    const std::uint64_t first = region.base.value();
    const std::uint64_t last = first + (region.size - 1);
    while (piece != pieces.end() && piece->last() < first)
      ++piece;
    for (; piece != pieces.end() && piece->base <= last; ++piece) {
      parts.push_back(piece->part(std::max(piece->base, first), std::min(piece->last(), last)));
      if (piece->last() > last) break;  // the next region may have more of it
    }
  }
  return parts;
}

/// Lays the records of file number `file` over what the files below it have. Linear.
std::vector<SnapshotPiece> lay_over(const std::vector<SnapshotPiece>& below,
                                    const std::vector<StoredRecord>& above, std::uint32_t file) {
  std::vector<SnapshotPiece> pieces;
  pieces.reserve(above.size());
  std::size_t next = 0;
  std::uint64_t from = 0;  // what lies below it is done
  // The parts of the pieces below that end at or before `last`, which is inclusive.
  const auto copy_to = [&](std::uint64_t last) {
    for (; next < below.size(); ++next) {
      const SnapshotPiece& piece = below[next];
      const std::uint64_t begin = std::max(piece.base, from);
      if (begin > last) return;
      const std::uint64_t end = std::min(piece.last(), last);
      if (begin <= end) pieces.push_back(piece.part(begin, end));
      if (piece.last() > last) return;
    }
  };
  for (const StoredRecord& record : above) {
    if (record.base != 0) copy_to(record.base - 1);
    const std::uint64_t last = record.base + (record.size - 1);
    while (next < below.size() && below[next].last() <= last)
      ++next;
    pieces.push_back({.base = record.base,
                      .size = record.size,
                      .record = record.offset,
                      .pages = record.size / detail::snapshot_page,
                      .offset = 0,
                      .file = file,
                      .is_zeros = record.is_zeros});
    if (last == UINT64_MAX) return pieces;
    from = last + 1;
  }
  copy_to(UINT64_MAX);
  return pieces;
}

}  // namespace

SnapshotReader::SnapshotReader(std::shared_ptr<const State> state) noexcept
    : state_(std::move(state)) {}

Result<SnapshotReader> SnapshotReader::open(int fd, std::span<const int> parents) {
  auto state = std::make_shared<State>();
  std::vector<SnapshotFile>& files = state->files;
  SnapshotFile top = VMSPACE_TRY(SnapshotFile::open(opening, fd));
  files.push_back(std::move(top));
  std::vector<SnapshotFile> candidates;
  if (files.back().head().parent) {
    for (const int parent : parents) {
      SnapshotFile candidate = VMSPACE_TRY(SnapshotFile::open(opening, parent));
      candidates.push_back(std::move(candidate));
    }
  }
  while (files.back().head().parent) {
    const SnapshotId& wanted = files.back().head().parent;
    const auto is_wanted = [&](const SnapshotFile& file) { return file.head().id == wanted; };
    if (std::ranges::any_of(files, is_wanted)) {
      return fail({.code = Errc::corrupt,
                   .operation = opening,
                   .reason = "the chain of parents leads back to the snapshot",
                   .text = {{}, detail::hex(wanted)}});
    }
    const auto found = std::ranges::find_if(candidates, is_wanted);
    if (found == candidates.end()) {
      return fail({.code = Errc::not_found,
                   .operation = opening,
                   .reason = "the snapshot's parent must be among those given; its id is",
                   .text = {{}, detail::hex(wanted)}});
    }
    files.push_back(std::move(*found));
    candidates.erase(found);
  }
  // From the full one up.
  for (std::size_t i = files.size(); i-- != 0;) {
    const std::span<const SnapshotRegion> regions = files[i].head().regions;
    const auto file = static_cast<std::uint32_t>(i);
    if (files[i].is_image()) {
      state->pieces = pieces_of_image(regions, file);
      continue;
    }
    const std::vector<StoredRecord> records = VMSPACE_TRY(files[i].read_index(opening));
    state->pieces = lay_over(within(regions, state->pieces), records, file);
  }
  return SnapshotReader(std::move(state));
}

const SnapshotId& SnapshotReader::id() const noexcept {
  return state_->files.front().head().id;
}
const SnapshotId& SnapshotReader::parent() const noexcept {
  return state_->files.front().head().parent;
}
std::span<const SnapshotRegion> SnapshotReader::regions() const noexcept {
  return state_->files.front().head().regions;
}
bool SnapshotReader::has_checksums() const noexcept {
  return std::ranges::all_of(state_->files,
                             [](const SnapshotFile& file) { return file.head().has_checksums; });
}

template <typename Part>
Result<void> SnapshotReader::State::walk(GuestRange range, Part part) const {
  std::uint64_t at = range.base.value();
  std::uint64_t left = range.size;
  auto next = std::ranges::lower_bound(pieces, at, {}, &SnapshotPiece::last);
  while (left != 0) {
    const bool in_piece = next != pieces.end() && next->base <= at;
    std::uint64_t size = left;
    if (in_piece) {
      size = std::min(left, next->last() - at + 1);
    } else if (next != pieces.end()) {
      size = std::min(left, next->base - at);
    }
    const SnapshotPiece zeros{.base = at,
                              .size = size,
                              .record = 0,
                              .pages = 0,
                              .offset = 0,
                              .file = 0,
                              .is_zeros = true};
    const bool goes_on = VMSPACE_TRY(part(in_piece ? *next : zeros, at, size));
    if (!goes_on) break;
    if (in_piece) ++next;
    at += size;
    left -= size;
  }
  return {};
}

Result<void> SnapshotReader::State::read(const SnapshotPiece& piece, std::uint64_t from,
                                         std::span<std::byte> to) const {
  if (piece.is_zeros) {
    std::memset(to.data(), 0, to.size());
    return {};
  }
  const SnapshotFile& file = files[piece.file];
  const std::uint64_t offset = piece.offset + (from - piece.base);
  if (file.is_image()) return file.read_image(reading, piece.record, offset, to);
  return file.read_record(reading, {.record = piece.record, .pages = piece.pages, .offset = offset},
                          to);
}

Result<Extent> SnapshotReader::State::next_data(const SnapshotPiece& piece, std::uint64_t from,
                                                std::uint64_t size) const {
  if (piece.is_zeros) return Extent{from, 0};
  const SnapshotFile& file = files[piece.file];
  if (!file.is_image()) return Extent{from, size};
  const std::uint64_t offset = piece.offset + (from - piece.base);
  const Extent data = VMSPACE_TRY(file.next_in_image(looking, piece.record, offset, offset + size));
  return Extent{from + (data.offset - offset), data.size};
}

Result<void> SnapshotReader::read(GuestAddress at, std::span<std::byte> to) {
  const GuestRange range{.base = at, .size = to.size()};
  VMSPACE_TRY(detail::region_of_pages(reading, regions(), range));
  return state_->walk(
      range,
      [&](const SnapshotPiece& piece, std::uint64_t from, std::uint64_t size) -> Result<bool> {
        VMSPACE_TRY(state_->read(piece, from, to.subspan(from - at.value(), size)));
        return true;
      });
}

Result<GuestRange> SnapshotReader::next_data(GuestRange range) {
  VMSPACE_TRY(detail::region_of_pages(looking, regions(), range));
  GuestRange found{.base = GuestAddress(range.base.value() + range.size), .size = 0};
  VMSPACE_TRY(state_->walk(
      range,
      [&](const SnapshotPiece& piece, std::uint64_t from, std::uint64_t size) -> Result<bool> {
        const Extent data = VMSPACE_TRY(state_->next_data(piece, from, size));
        if (data.size == 0) return found.size == 0;
        // Data next to data found before belong to it, up to what is worth reading at once: a caller
        // that comes again for the rest does not look twice at what lies far ahead.
        if (found.size != 0 && data.offset != from) return false;
        if (found.size == 0) found.base = GuestAddress(data.offset);
        found.size += data.size;
        return found.size < detail::snapshot_chunk && data.end() == from + size;
      }));
  return found;
}

}  // namespace vmspace
