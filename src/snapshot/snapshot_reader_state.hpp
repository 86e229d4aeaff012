// SPDX-License-Identifier: Apache-2.0
//
// A chain of snapshots that has been opened.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/base/result.hpp"
#include "vmspace/host/page_scan.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"

#include "snapshot/snapshot_file.hpp"

namespace vmspace::detail {

/// A part of guest memory that is in one place of one file: in a record, or in a region of an
/// image.
struct SnapshotPiece {
  std::uint64_t base;
  std::uint64_t size;
  std::uint64_t record;  ///< where the record is in the file; the number of an image's region
  std::uint64_t pages;   ///< how many pages the record has; not used for an image
  std::uint64_t offset;  ///< where the piece begins in the data of the record or of the region
  std::uint32_t file;
  bool is_zeros;

  [[nodiscard]] std::uint64_t last() const noexcept { return base + (size - 1); }
  /// The piece from `first` to `last`, which are addresses within it.
  [[nodiscard]] SnapshotPiece part(std::uint64_t first, std::uint64_t last_one) const noexcept {
    SnapshotPiece result = *this;
    result.base = first;
    result.size = last_one - first + 1;
    result.offset += first - base;
    return result;
  }
};

}  // namespace vmspace::detail

namespace vmspace {

/// Invariant: the first file is the snapshot, each one behind it is the parent of the one before,
/// and the last is full. What no piece has is zeros.
struct SnapshotReader::State {
  std::vector<detail::SnapshotFile> files;
  std::vector<detail::SnapshotPiece> pieces;  ///< sorted; they do not overlap

  /// Reads from a piece, from this address on.
  [[nodiscard]] Result<void> read(const detail::SnapshotPiece& piece, std::uint64_t from,
                                  std::span<std::byte> to) const;
  /// The first part of a piece in the `size` bytes from this address on that may hold anything but
  /// zeros; empty when there is none.
  [[nodiscard]] Result<Extent> next_data(const detail::SnapshotPiece& piece, std::uint64_t from,
                                         std::uint64_t size) const;

  /// Calls `part(piece, from, size)` for each part of a range within one region, in address order,
  /// until it returns false or fails. What no piece has is given as a piece of zeros.
  template <typename Part>
  [[nodiscard]] Result<void> walk(GuestRange range, Part part) const;
};

}  // namespace vmspace
