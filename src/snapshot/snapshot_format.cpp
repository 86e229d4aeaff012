// SPDX-License-Identifier: Apache-2.0

#include "snapshot/snapshot_format.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "vmspace/base/try.hpp"
#include "vmspace/memory/guest_memory.hpp"

#include "base/corrupt.hpp"
#include "snapshot/content_checksum.hpp"
#include "snapshot/fnv1a.hpp"

namespace vmspace::detail {

namespace {

constexpr const char* inspecting = "inspect_snapshot";
constexpr std::uint64_t largest_file = std::numeric_limits<std::int64_t>::max();

/// The head of version 1: FNV-1a, with the field `checksum` of the header taken as 0.
std::uint64_t checksum_of_version_1(std::span<const std::byte> bytes) {
  constexpr std::size_t field = offsetof(SnapshotPrefix, checksum);
  constexpr std::array<std::byte, sizeof(Le64)> zeros{};
  return fnv1a(bytes.subspan(field + zeros.size()), fnv1a(zeros, fnv1a(bytes.first(field))));
}

/// The head of version 2: that of its bytes before and behind the field `checksum`.
std::uint64_t checksum_of_head(std::span<const std::byte> bytes) {
  constexpr std::size_t field = offsetof(SnapshotHeader, checksum);
  return checksum(bytes.subspan(field + sizeof(Le64)), checksum(bytes.first(field)));
}

constexpr bool is_page_multiple(std::uint64_t value) {
  return value % snapshot_page == 0;
}

/// Whether `size` bytes from `base` are pages that end at or below 2^64, and at least one.
constexpr bool is_pages(std::uint64_t base, std::uint64_t size) {
  return size != 0 && is_page_multiple(size) && is_page_multiple(base) &&
         size - 1 <= std::numeric_limits<std::uint64_t>::max() - base;
}

/// One entry of the table, after the one before it.
Result<void> check_region(const SnapshotRegion& region, const SnapshotRegion* before) {
  const Operand where = Operand::span(region.base.value(), region.size);
  if (region.size == 0 || !is_page_multiple(region.size) ||
      !is_page_multiple(region.base.value()) || !is_page_multiple(region.offset)) {
    return corrupt(
        inspecting,
        "base, size and offset of a region must be multiples of 4096, and the size not 0", where);
  }
  if (!region.base.checked_add(region.size - 1))
    return corrupt(inspecting, "a region must not end above 2^64", where);
  if (before != nullptr &&
      (region.base <= before->base || region.base.value() - before->base.value() < before->size)) {
    return corrupt(inspecting, "regions must be sorted and must not overlap", where);
  }
  return {};
}

/// Where the file of an image has everything; `head` is how many bytes its head has.
Result<void> check_image(const SnapshotHead& head, std::size_t head_bytes,
                         std::optional<std::uint64_t> file_size) {
  if (head.file_size > largest_file || head.file_size < head_bytes ||
      !is_page_multiple(head.file_size)) {
    return corrupt(inspecting, "the recorded file size is impossible",
                   Operand::size(head.file_size));
  }
  if (file_size && *file_size < head.file_size) {
    return corrupt(inspecting, "the file is shorter than its header says",
                   Operand::size(*file_size), Operand::size(head.file_size));
  }
  std::uint64_t end = head_bytes;
  for (const SnapshotRegion& region : head.regions) {
    const Operand where = Operand::span(region.base.value(), region.size);
    if (region.offset > head.file_size || region.size > head.file_size - region.offset)
      return corrupt(inspecting, "a region's bytes extend past the end of the file", where);
    if (region.offset < end)
      return corrupt(inspecting, "the bytes of regions must not overlap", where);
    end = region.offset + region.size;
  }
  // Of pages that are in the file already, so that their number times 8 can't be too large.
  const std::uint64_t size = head.memory_size() / snapshot_page * sizeof(Le64);
  if (!head.has_checksums) {
    if (head.checksums != 0)
      return corrupt(inspecting, "a snapshot without checksums has no place for them");
  } else if (!is_page_multiple(head.checksums) || head.checksums < end ||
             head.checksums > head.file_size || size > head.file_size - head.checksums) {
    return corrupt(inspecting, "the checksums must lie behind the regions and within the file",
                   Operand::span(head.checksums, size), Operand::size(head.file_size));
  }
  if (head.parent) return corrupt(inspecting, "an image has no parent");
  return {};
}

Result<void> check_records(const SnapshotHead& head) {
  if (head.file_size != 0 || head.checksums != 0)
    return corrupt(inspecting,
                   "records have neither a recorded file size nor a place of checksums");
  if (std::ranges::any_of(head.regions, [](const auto& region) { return region.offset != 0; }))
    return corrupt(inspecting, "the regions of records have no place in the file");
  return {};
}

Result<void> decode_table(std::span<const std::byte> table, SnapshotHead& head) {
  head.regions.reserve(table.size() / sizeof(SnapshotEntry));
  for (std::size_t at = 0; at != table.size(); at += sizeof(SnapshotEntry)) {
    SnapshotEntry entry;
    std::memcpy(&entry, table.data() + at, sizeof entry);
    constexpr auto all = Protection::read_write | Protection::execute;
    if (entry.protection > static_cast<std::uint32_t>(all) || entry.reserved != 0) {
      return corrupt(inspecting, "protection has unknown bits, or reserved bytes are not 0",
                     Operand::address(entry.base));
    }
    const SnapshotRegion region{.base = GuestAddress(entry.base),
                                .size = entry.size,
                                .offset = entry.offset,
                                .protection = static_cast<Protection>(entry.protection.value())};
    VMSPACE_TRY(check_region(region, head.regions.empty() ? nullptr : &head.regions.back()));
    head.regions.push_back(region);
  }
  return {};
}

Result<SnapshotHead> decode_version_1(std::span<const std::byte> bytes,
                                      std::optional<std::uint64_t> file_size) {
  SnapshotPrefix header;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.checksum != checksum_of_version_1(bytes))
    return corrupt(inspecting, "the checksum of header and table does not match");
  if (std::ranges::any_of(header.reserved, [](std::uint8_t byte) { return byte != 0; }))
    return corrupt(inspecting, "reserved bytes must be 0");
  SnapshotHead head{.regions = {}, .file_size = header.file_size, .checksum = header.checksum};
  VMSPACE_TRY(decode_table(bytes.subspan(sizeof header), head));
  VMSPACE_TRY(check_image(head, bytes.size(), file_size));
  return head;
}

}  // namespace

Result<void> check_regions(const char* named, std::span<const SnapshotRegion> regions) {
  const auto invalid = [&](Operand first, const char* reason) {
    return fail(
        {.code = Errc::invalid_argument, .operation = named, .first = first, .reason = reason});
  };
  if (regions.size() > GuestMemory::max_regions)
    return invalid(Operand::number(regions.size()), "a snapshot has at most 512 regions");
  std::uint64_t free = 0;
  bool has_more = true;
  for (const SnapshotRegion& region : regions) {
    const std::uint64_t base = region.base.value();
    const Operand where = Operand::span(base, region.size);
    if (!is_pages(base, region.size))
      return invalid(where, "regions must be pages of 4096 bytes, at least one, below 2^64");
    if (!has_more || base < free)
      return invalid(where, "regions must be sorted and must not overlap");
    free = base + region.size;
    has_more = free != 0;
  }
  return {};
}

Result<void> lay_out_image(const char* named, SnapshotHead& head) {
  const auto too_large = [&](const SnapshotRegion& region) {
    return fail({.code = Errc::limit_exceeded,
                 .operation = named,
                 .first = Operand::span(region.base.value(), region.size),
                 .reason = "the snapshot would exceed 2^63 - 1 bytes, the largest file size"});
  };
  std::uint64_t end = head_bytes(head.regions.size());
  for (SnapshotRegion& region : head.regions) {
    region.offset = (end + snapshot_align - 1) & ~(snapshot_align - 1);
    if (region.offset > largest_file - snapshot_align ||
        region.size > largest_file - snapshot_align - region.offset) {
      return too_large(region);
    }
    end = region.offset + region.size;
  }
  head.file_size = (end + snapshot_page - 1) & ~(snapshot_page - 1);
  if (!head.has_checksums) return {};
  head.checksums = head.file_size;
  const std::uint64_t size = head.memory_size() / snapshot_page * sizeof(Le64);
  if (size > largest_file - head.checksums - snapshot_page) return too_large(head.regions.back());
  head.file_size = (head.checksums + size + snapshot_page - 1) & ~(snapshot_page - 1);
  return {};
}

std::vector<std::byte> encode_head(SnapshotHead& head) {
  std::vector<std::byte> bytes(head_bytes(head.regions.size()));
  SnapshotHeader header{.magic = snapshot_magic,
                        .version = snapshot_version,
                        .regions = static_cast<std::uint32_t>(head.regions.size()),
                        .file_size = head.file_size,
                        .checksum = 0,
                        .id = head.id,
                        .parent = head.parent,
                        .body = static_cast<std::uint32_t>(head.body),
                        .flags = head.has_checksums ? 1U : 0U,
                        .checksums = head.checksums,
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
  head.checksum = checksum_of_head(bytes);
  header.checksum = head.checksum;
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

Result<std::size_t> head_size(std::span<const std::byte> bytes) {
  SnapshotPrefix header;
  if (bytes.size() < sizeof header)
    return corrupt(inspecting, "the file is too short to be a snapshot");
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != snapshot_magic)
    return corrupt(inspecting, "not a snapshot, or its saving was interrupted");
  if (header.version > snapshot_version) {
    return fail({.code = Errc::unsupported,
                 .operation = inspecting,
                 .first = Operand::number(header.version),
                 .second = Operand::number(snapshot_version),
                 .reason = "the format is newer than this library"});
  }
  if (header.version == 0) return corrupt(inspecting, "version 0 does not exist");
  if (header.regions > GuestMemory::max_regions) {
    static_assert(GuestMemory::max_regions == 512, "as the text says");
    return corrupt(inspecting, "a snapshot has at most 512 regions",
                   Operand::number(header.regions));
  }
  const std::size_t before_table =
      header.version == 1 ? sizeof(SnapshotPrefix) : sizeof(SnapshotHeader);
  return before_table + std::size_t{header.regions} * sizeof(SnapshotEntry);
}

Result<SnapshotHead> decode_head(std::span<const std::byte> bytes,
                                 std::optional<std::uint64_t> file_size) {
  const std::size_t size = VMSPACE_TRY(head_size(bytes));
  if (bytes.size() != size) return corrupt(inspecting, "the table is truncated");
  SnapshotPrefix prefix;
  std::memcpy(&prefix, bytes.data(), sizeof prefix);
  if (prefix.version == 1) return decode_version_1(bytes, file_size);
  SnapshotHeader header;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.checksum != checksum_of_head(bytes))
    return corrupt(inspecting, "the checksum of header and table does not match");
  const auto body = static_cast<SnapshotBody>(header.body.value());
  if (body != SnapshotBody::image && body != SnapshotBody::records)
    return corrupt(inspecting, "there is no such body", Operand::number(header.body));
  if (header.flags > 1 ||
      std::ranges::any_of(header.reserved, [](std::uint8_t byte) { return byte != 0; })) {
    return corrupt(inspecting, "reserved bytes and unknown flags must be 0");
  }
  if (!header.id) return corrupt(inspecting, "a snapshot must have an id");
  if (header.id == header.parent)
    return corrupt(inspecting, "a snapshot must not be its own parent");
  SnapshotHead head{.regions = {},
                    .body = body,
                    .has_checksums = header.flags != 0,
                    .id = header.id,
                    .parent = header.parent,
                    .file_size = header.file_size,
                    .checksums = header.checksums,
                    .checksum = header.checksum};
  VMSPACE_TRY(decode_table(bytes.subspan(sizeof header), head));
  if (body == SnapshotBody::image) {
    VMSPACE_TRY(check_image(head, bytes.size(), file_size));
  } else {
    VMSPACE_TRY(check_records(head));
  }
  return head;
}

std::uint64_t record_checksum(const RecordHeader& record, std::uint64_t before) noexcept {
  return checksum(stored_bytes(record).first(offsetof(RecordHeader, checksum)), before);
}

std::uint64_t first_index_checksum(const SnapshotId& id) noexcept {
  return checksum(stored_bytes(id));
}

std::uint64_t index_checksum(const IndexEntry& entry, std::uint64_t before) noexcept {
  return checksum(stored_bytes(entry), before);
}

std::uint64_t trailer_checksum(const SnapshotTrailer& trailer) noexcept {
  return checksum(stored_bytes(trailer).first(offsetof(SnapshotTrailer, checksum)));
}

bool is_record_of(std::span<const SnapshotRegion> regions, RecordKind kind, std::uint64_t base,
                  std::uint64_t size) noexcept {
  if (kind != RecordKind::data && kind != RecordKind::zeros) return false;
  if (kind == RecordKind::data && size > largest_record) return false;
  return is_pages(base, size) && find_region(regions, base, size) != nullptr;
}

const SnapshotRegion* find_region(std::span<const SnapshotRegion> regions, std::uint64_t base,
                                  std::uint64_t size) noexcept {
  const auto after =
      std::ranges::upper_bound(regions, GuestAddress(base), {}, &SnapshotRegion::base);
  if (after == regions.begin()) return nullptr;
  const SnapshotRegion& region = *(after - 1);
  const std::uint64_t offset = base - region.base.value();
  return offset <= region.size && size <= region.size - offset ? &region : nullptr;
}

Result<const SnapshotRegion*> region_of_pages(const char* named,
                                              std::span<const SnapshotRegion> regions,
                                              GuestRange pages) {
  if (!is_page_multiple(pages.base.value()) || !is_page_multiple(pages.size)) {
    return fail(
        {.code = Errc::misaligned,
         .operation = named,
         .first = Operand::address(is_page_multiple(pages.size) ? pages.base.value() : pages.size),
         .second = Operand::size(snapshot_page)});
  }
  const SnapshotRegion* const region = find_region(regions, pages.base.value(), pages.size);
  if (region == nullptr) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = named,
                 .first = operand(pages),
                 .reason = "the pages must lie within one region of the snapshot"});
  }
  return region;
}

std::vector<std::uint64_t> first_pages(std::span<const SnapshotRegion> regions) {
  std::vector<std::uint64_t> pages;
  pages.reserve(regions.size());
  std::uint64_t before = 0;
  for (const SnapshotRegion& region : regions) {
    pages.push_back(before);
    before += region.size / snapshot_page;
  }
  return pages;
}

}  // namespace vmspace::detail
