// SPDX-License-Identifier: Apache-2.0
//
// The metadata of a snapshot as bytes. include/vmspace/snapshot/FORMAT.md describes the format.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/endian.hpp"
#include "vmspace/snapshot/snapshot_id.hpp"
#include "vmspace/snapshot/snapshot_region.hpp"

namespace vmspace::detail {

inline constexpr std::array<char, 8> snapshot_magic{'v', 'm', 's', 'p', 'S', 'N', 'A', 'P'};
inline constexpr std::array<char, 8> trailer_magic{'v', 'm', 's', 'p', 'I', 'N', 'D', 'X'};
inline constexpr std::uint32_t snapshot_version = 2;
/// What everything in a file is aligned to: the smallest page of the supported machines.
inline constexpr std::uint64_t snapshot_page = 4096;
/// What the bytes of a region are aligned to in an image: a huge page of x86-64 and aarch64.
inline constexpr std::uint64_t snapshot_align = std::uint64_t{2} << 20;
/// The most bytes that one record of data has.
inline constexpr std::uint64_t largest_record = std::uint64_t{8} << 20;

/// What every version begins with; all of version 1's header.
struct SnapshotPrefix {
  std::array<char, 8> magic;
  Le32 version;
  Le32 regions;
  Le64 file_size;
  Le64 checksum;
  std::array<std::uint8_t, 32> reserved;
};
static_assert(sizeof(SnapshotPrefix) == 64);

struct SnapshotHeader {
  std::array<char, 8> magic;
  Le32 version;
  Le32 regions;
  Le64 file_size;
  Le64 checksum;
  SnapshotId id;
  SnapshotId parent;
  Le32 body;
  Le32 flags;
  Le64 checksums;
  std::array<std::uint8_t, 48> reserved;
};
static_assert(sizeof(SnapshotHeader) == 128);

struct SnapshotEntry {
  Le64 base;
  Le64 size;
  Le64 offset;
  Le32 protection;
  Le32 reserved;
};
static_assert(sizeof(SnapshotEntry) == 32);

enum class SnapshotBody : std::uint32_t { image = 1, records = 2 };
enum class RecordKind : std::uint32_t { data = 1, zeros = 2, end = 3 };

struct RecordHeader {
  Le32 kind;
  Le32 reserved;
  Le64 base;
  Le64 size;
  Le64 checksum;
};
static_assert(sizeof(RecordHeader) == 32);

struct IndexEntry {
  Le64 base;
  Le64 size;
  Le64 offset;
  Le32 kind;
  Le32 reserved;
};
static_assert(sizeof(IndexEntry) == 32);

struct SnapshotTrailer {
  std::array<char, 8> magic;
  Le64 index;
  Le64 records;
  Le64 index_checksum;
  SnapshotId id;
  Le64 size;
  Le64 checksum;
};
static_assert(sizeof(SnapshotTrailer) == 64);

/// The contents of a head that passed all checks.
struct SnapshotHead {
  std::vector<SnapshotRegion> regions;
  SnapshotBody body = SnapshotBody::image;
  bool has_checksums = false;
  SnapshotId id = {};
  SnapshotId parent = {};
  std::uint64_t file_size = 0;  ///< 0 for records
  std::uint64_t checksums = 0;  ///< where those of an image are
  std::uint64_t checksum = 0;   ///< of the head itself

  /// The sizes of all regions together.
  [[nodiscard]] std::uint64_t memory_size() const noexcept {
    std::uint64_t size = 0;
    for (const SnapshotRegion& region : regions)
      size += region.size;
    return size;
  }
};

/// An object as the bytes that are stored.
template <typename T>
[[nodiscard]] std::span<const std::byte> stored_bytes(const T& object) noexcept {
  return std::as_bytes(std::span(&object, 1));
}

/// How many bytes a head of this version has.
[[nodiscard]] constexpr std::size_t head_bytes(std::size_t regions) noexcept {
  return sizeof(SnapshotHeader) + regions * sizeof(SnapshotEntry);
}

/// Whether a snapshot can have these regions. Errors: `invalid_argument`.
[[nodiscard]] Result<void> check_regions(const char* operation,
                                         std::span<const SnapshotRegion> regions);

/// Puts the regions of an image where they belong in its file. `limit_exceeded` where no file is
/// large enough.
[[nodiscard]] Result<void> lay_out_image(const char* operation, SnapshotHead& head);

/// The head as bytes; sets its checksum.
[[nodiscard]] std::vector<std::byte> encode_head(SnapshotHead& head);

/// Checks the prefix of a head, and gives how many bytes header and table have together.
[[nodiscard]] Result<std::size_t> head_size(std::span<const std::byte> prefix);

/// Reads a head of exactly head_size() bytes, of a file of `file_size` bytes, which is nothing for a
/// stream. `corrupt` for whatever is not consistent.
[[nodiscard]] Result<SnapshotHead> decode_head(std::span<const std::byte> bytes,
                                               std::optional<std::uint64_t> file_size);

/// The checksum of a record's header, behind the record whose header has the checksum `before`, or
/// behind the head.
[[nodiscard]] std::uint64_t record_checksum(const RecordHeader& record,
                                            std::uint64_t before) noexcept;
/// What the checksum of an index begins with, and what it is when an entry has been added.
[[nodiscard]] std::uint64_t first_index_checksum(const SnapshotId& id) noexcept;
[[nodiscard]] std::uint64_t index_checksum(const IndexEntry& entry, std::uint64_t before) noexcept;
/// The checksum of a trailer, whose own is not looked at.
[[nodiscard]] std::uint64_t trailer_checksum(const SnapshotTrailer& trailer) noexcept;

/// Whether a record of these numbers, which may be anything, is whole pages of one of the regions.
[[nodiscard]] bool is_record_of(std::span<const SnapshotRegion> regions, RecordKind kind,
                                std::uint64_t base, std::uint64_t size) noexcept;

/// The region that holds all of `size` bytes from `base`; null when there is none.
[[nodiscard]] const SnapshotRegion* find_region(std::span<const SnapshotRegion> regions,
                                                std::uint64_t base, std::uint64_t size) noexcept;
/// find_region() for a call that is given pages. Errors: `misaligned`, `out_of_bounds`.
[[nodiscard]] Result<const SnapshotRegion*> region_of_pages(const char* operation,
                                                            std::span<const SnapshotRegion> regions,
                                                            GuestRange pages);

/// For each region, how many pages all those before it have: where its checksums begin.
[[nodiscard]] std::vector<std::uint64_t> first_pages(std::span<const SnapshotRegion> regions);

}  // namespace vmspace::detail
