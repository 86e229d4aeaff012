// SPDX-License-Identifier: Apache-2.0
//
// A chain of snapshots that has been opened.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vmspace/base/result.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"

#include "snapshot/snapshot_file.hpp"

namespace vmspace::detail {

/// A part of guest memory that one record of one file has.
struct RecordPiece {
  std::uint64_t base;
  std::uint64_t size;
  std::uint64_t record;  ///< where the record is in the file
  std::uint64_t pages;   ///< how many pages the record has
  std::uint64_t offset;  ///< where the piece begins in the record's data
  std::uint32_t file;
  bool is_zeros;

  [[nodiscard]] std::uint64_t last() const noexcept { return base + (size - 1); }
  /// The piece from `first` to `last`, which are addresses within it.
  [[nodiscard]] RecordPiece part(std::uint64_t first, std::uint64_t last_one) const noexcept {
    RecordPiece result = *this;
    result.base = first;
    result.size = last_one - first + 1;
    result.offset += first - base;
    return result;
  }
};

}  // namespace vmspace::detail

namespace vmspace {

/// Invariant: the first file is the snapshot, each one behind it is the parent of the one before,
/// and the last is full; all have the same regions. What no piece has is in the last file, where
/// that is an image, and zeros otherwise.
struct SnapshotReader::State {
  std::vector<detail::SnapshotFile> files;
  std::vector<detail::RecordPiece> pieces;  ///< sorted; they do not overlap

  /// Its number in every file.
  [[nodiscard]] std::size_t number_of(const SnapshotRegion* region) const noexcept {
    return static_cast<std::size_t>(region - files.front().head().regions.data());
  }

  template <typename OnPiece, typename OnGap>
  [[nodiscard]] Result<void> walk(GuestRange range, OnPiece on_piece, OnGap on_gap) const;
};

}  // namespace vmspace
