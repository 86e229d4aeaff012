// SPDX-License-Identifier: Apache-2.0
//
// The head of a snapshot file as bytes. The format is described in vmspace/snapshot/snapshot.hpp.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "vmspace/base/result.hpp"
#include "vmspace/memory/endian.hpp"
#include "vmspace/snapshot/snapshot.hpp"

namespace vmspace::detail {

inline constexpr std::array<char, 8> snapshot_magic{'v', 'm', 's', 'p', 'S', 'N', 'A', 'P'};
inline constexpr std::uint32_t snapshot_version = 1;
/// What everything in a file is aligned to: the smallest page of the supported machines.
inline constexpr std::uint64_t snapshot_page = 4096;
/// What save_snapshot() aligns the bytes of a region to: a huge page of x86-64 and aarch64.
inline constexpr std::uint64_t snapshot_align = std::uint64_t{2} << 20;

struct SnapshotHeader {
  std::array<char, 8> magic;
  Le32 version;
  Le32 regions;
  Le64 file_size;
  Le64 checksum;
  std::array<std::uint8_t, 32> reserved;
};
static_assert(sizeof(SnapshotHeader) == 64);

struct SnapshotEntry {
  Le64 base;
  Le64 size;
  Le64 offset;
  Le32 protection;
  Le32 reserved;
};
static_assert(sizeof(SnapshotEntry) == 32);

/// The contents of a head that passed all checks.
struct SnapshotHead {
  std::vector<SnapshotRegion> regions;
  std::uint64_t file_size;

  /// The sizes of all regions together.
  [[nodiscard]] std::uint64_t memory_size() const noexcept {
    std::uint64_t size = 0;
    for (const SnapshotRegion& region : regions)
      size += region.size;
    return size;
  }
};

/// The head as bytes, with its checksum.
[[nodiscard]] std::vector<std::byte> encode_head(const SnapshotHead& head);

/// Checks the header alone, and gives how many bytes header and table have together.
[[nodiscard]] Result<std::size_t> head_size(std::span<const std::byte> header);

/// Reads a head of exactly head_size() bytes, of a file of `file_size` bytes. `corrupt` for
/// whatever is not consistent.
[[nodiscard]] Result<SnapshotHead> decode_head(std::span<const std::byte> bytes,
                                               std::uint64_t file_size);

}  // namespace vmspace::detail
