// SPDX-License-Identifier: Apache-2.0

#include "snapshot/snapshot_format.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "vmspace/base/try.hpp"

namespace vmspace::detail {

namespace {

constexpr const char* operation = "inspect_snapshot";

tl::unexpected<Error> corrupt(const char* reason, Operand first = {}, Operand second = {}) {
  return fail({.code = Errc::corrupt,
               .operation = operation,
               .first = first,
               .second = second,
               .reason = reason});
}

/// FNV-1a, with the field `checksum` of the header taken as 0. Every step is a bijection of the
/// sum, so that changing any single byte changes it.
std::uint64_t checksum(std::span<const std::byte> bytes) {
  std::uint64_t sum = 0xcbf2'9ce4'8422'2325;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    constexpr std::size_t field = offsetof(SnapshotHeader, checksum);
    const bool own = i >= field && i < field + sizeof(Le64);
    sum ^= own ? 0 : std::to_integer<std::uint64_t>(bytes[i]);
    sum *= 0x0000'0100'0000'01b3;
  }
  return sum;
}

bool is_page_multiple(std::uint64_t value) {
  return value % snapshot_page == 0;
}

/// One entry of the table, after the one before it.
Result<void> check_entry(const SnapshotRegion& region, const SnapshotRegion* before,
                         std::uint64_t data_begin, std::uint64_t file_size) {
  const Operand where = Operand::span(region.base.value(), region.size);
  if (region.size == 0 || !is_page_multiple(region.size) ||
      !is_page_multiple(region.base.value()) || !is_page_multiple(region.offset)) {
    return corrupt(
        "base, size and offset of a region must be multiples of 4096, and the size not 0", where);
  }
  if (!region.base.checked_add(region.size - 1))
    return corrupt("a region must not end above 2^64", where);
  if (region.offset > file_size || region.size > file_size - region.offset) {
    return corrupt("a region's bytes extend past the end of the file", where);
  }
  if (before != nullptr) {
    if (region.base <= before->base || region.base.value() - before->base.value() < before->size) {
      return corrupt("regions must be sorted and must not overlap", where);
    }
    data_begin = before->offset + before->size;
  }
  if (region.offset < data_begin) return corrupt("the bytes of regions must not overlap", where);
  return {};
}

}  // namespace

std::vector<std::byte> encode_head(const SnapshotHead& head) {
  std::vector<std::byte> bytes(sizeof(SnapshotHeader) +
                               head.regions.size() * sizeof(SnapshotEntry));
  SnapshotHeader header{.magic = snapshot_magic,
                        .version = snapshot_version,
                        .regions = static_cast<std::uint32_t>(head.regions.size()),
                        .file_size = head.file_size,
                        .checksum = 0,
                        .reserved = {}};
  std::size_t at = sizeof header;
  for (const SnapshotRegion& region : head.regions) {
    const SnapshotEntry entry{.base = region.base.value(),
                              .size = region.size,
                              .offset = region.offset,
                              .protection = static_cast<std::uint32_t>(region.protection),
                              .reserved = 0};
    std::memcpy(bytes.data() + at, &entry, sizeof entry);
    at += sizeof entry;
  }
  std::memcpy(bytes.data(), &header, sizeof header);
  header.checksum = checksum(bytes);
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

Result<std::size_t> head_size(std::span<const std::byte> bytes) {
  SnapshotHeader header;
  if (bytes.size() < sizeof header) return corrupt("the file is too short to be a snapshot");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != snapshot_magic)
    return corrupt("not a snapshot, or its saving was interrupted");
  if (header.version > snapshot_version) {
    return fail({.code = Errc::unsupported,
                 .operation = operation,
                 .first = Operand::number(header.version),
                 .second = Operand::number(snapshot_version),
                 .reason = "the format is newer than this library"});
  }
  if (header.version == 0) return corrupt("version 0 does not exist");
  if (header.regions > GuestMemory::max_regions) {
    static_assert(GuestMemory::max_regions == 512, "as the text says");
    return corrupt("a snapshot has at most 512 regions", Operand::number(header.regions));
  }
  return sizeof header + std::size_t{header.regions} * sizeof(SnapshotEntry);
}

Result<SnapshotHead> decode_head(std::span<const std::byte> bytes, std::uint64_t file_size) {
  const std::size_t size = VMSPACE_TRY(head_size(bytes));
  if (bytes.size() != size) return corrupt("the table is truncated");
  SnapshotHeader header;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.checksum != checksum(bytes))
    return corrupt("the checksum of header and table does not match");
  if (std::ranges::any_of(header.reserved, [](std::uint8_t byte) { return byte != 0; })) {
    return corrupt("reserved bytes must be 0");
  }
  if (header.file_size > std::numeric_limits<std::int64_t>::max() ||
      header.file_size < bytes.size() || !is_page_multiple(header.file_size)) {
    return corrupt("the recorded file size is impossible", Operand::size(header.file_size));
  }
  if (file_size < header.file_size) {
    return corrupt("the file is shorter than its header says", Operand::size(file_size),
                   Operand::size(header.file_size));
  }
  SnapshotHead head{.regions = {}, .file_size = header.file_size};
  head.regions.reserve(header.regions);
  for (std::size_t at = sizeof header; at != bytes.size(); at += sizeof(SnapshotEntry)) {
    SnapshotEntry entry;
    std::memcpy(&entry, bytes.data() + at, sizeof entry);
    constexpr auto all = Protection::read_write | Protection::execute;
    if (entry.protection > static_cast<std::uint32_t>(all) || entry.reserved != 0) {
      return corrupt("protection has unknown bits, or reserved bytes are not 0",
                     Operand::address(entry.base));
    }
    const SnapshotRegion region{.base = GuestAddress(entry.base),
                                .size = entry.size,
                                .offset = entry.offset,
                                .protection = static_cast<Protection>(entry.protection.value())};
    const SnapshotRegion* before = head.regions.empty() ? nullptr : &head.regions.back();
    VMSPACE_TRY(check_entry(region, before, bytes.size(), header.file_size));
    head.regions.push_back(region);
  }
  return head;
}

}  // namespace vmspace::detail
