// SPDX-License-Identifier: Apache-2.0
//
// One snapshot in a regular file, opened and checked.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "vmspace/base/result.hpp"

#include "host/page_scan.hpp"
#include "os/descriptor.hpp"
#include "snapshot/snapshot_format.hpp"

namespace vmspace::detail {

/// What one record has, as the index of its file says.
struct StoredRecord {
  std::uint64_t base;
  std::uint64_t size;
  std::uint64_t offset;  ///< in the file, of its checksums and then its data
  bool is_zeros;
};

/// A part of a record.
struct RecordPart {
  std::uint64_t record;  ///< where the record is in the file
  std::uint64_t pages;   ///< how many pages the record has
  std::uint64_t offset;  ///< where the part begins, from the first byte of the record's data
};

/// Of a file that has changed since it was opened, what is read is an error or arbitrary.
class SnapshotFile {
 public:
  /// Duplicates the descriptor, and reads and checks the head. Errors: those of inspect_snapshot().
  [[nodiscard]] static Result<SnapshotFile> open(const char* operation, int fd);

  [[nodiscard]] int fd() const noexcept { return fd_.value(); }
  [[nodiscard]] const SnapshotHead& head() const noexcept { return head_; }
  [[nodiscard]] bool is_image() const noexcept { return head_.body == SnapshotBody::image; }

  /// The index of a file with records, sorted. Memory is taken only for what passes all checks, so
  /// that a file without contents can't ask for much. Errors: `corrupt`, `os`.
  [[nodiscard]] Result<std::vector<StoredRecord>> read_index(const char* operation) const;

  /// Reads from an image, from `offset` of the region on.
  [[nodiscard]] Result<void> read_image(const char* operation, std::size_t region,
                                        std::uint64_t offset, std::span<std::byte> to) const;
  /// The first part of [from, end) of a region of an image that may hold anything but zeros; empty,
  /// at `end`, when there is none.
  [[nodiscard]] Result<Extent> next_in_image(const char* operation, std::size_t region,
                                             std::uint64_t from, std::uint64_t end) const;
  /// Reads from a record of data.
  [[nodiscard]] Result<void> read_record(const char* operation, const RecordPart& part,
                                         std::span<std::byte> to) const;

 private:
  [[nodiscard]] Result<void> check_pages(const char* operation, std::uint64_t sums_at,
                                         std::span<const std::byte> pages) const;
  [[nodiscard]] Result<Extent> next_checksums(const char* operation, std::uint64_t from,
                                              std::uint64_t end) const;

  Descriptor fd_;
  SnapshotHead head_;
  std::vector<std::uint64_t> first_pages_;
};

}  // namespace vmspace::detail
