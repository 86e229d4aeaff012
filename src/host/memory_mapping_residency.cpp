// SPDX-License-Identifier: Apache-2.0
//
// MemoryMapping: how much of it is in RAM.

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "vmspace/base/try.hpp"
#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/host/page_scan.hpp"

#include "os/descriptor.hpp"
#include "os/pagemap.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

using detail::Descriptor;
using detail::kernel;
using detail::PageRegion;
using detail::retry;

namespace {

constexpr const char* residency_operation = "MemoryMapping::residency";

/// A part of the address space, [start, end).
struct Part {
  std::uint64_t start;
  std::uint64_t end;
};

/// What page tables map; nothing where they can't be scanned: before Linux 6.7, without /proc, or
/// where this process may not. mincore(2) then tells enough.
std::optional<Residency> scan_page_tables(Part part) {
  const Descriptor pagemap = detail::open_pagemap();
  if (pagemap.value() < 0) return std::nullopt;
  constexpr detail::TableQuery query{.inverted = detail::page_is_zero_page,
                                     .all_of = detail::page_is_present | detail::page_is_zero_page,
                                     .reported = detail::page_is_huge};
  Residency found{.huge = 0};
  std::array<PageRegion, 256> regions;
  while (part.start < part.end) {
    const auto scanned = detail::scan_pages(pagemap, part.start, part.end, query, regions);
    if (!scanned) return std::nullopt;
    for (const PageRegion& region : std::span(regions).first(scanned->count)) {
      const std::uint64_t bytes = region.end - region.start;
      found.resident += bytes;
      if ((region.categories & detail::page_is_huge) != 0) *found.huge += bytes;
    }
    part.start = scanned->end;
  }
  return found;
}

/// Reads a file of /proc line by line, through a small buffer.
class FileLines {
 public:
  explicit FileLines(const char* path)
      : file_(retry([&] { return kernel().open(path, O_RDONLY | O_CLOEXEC, 0); })) {}

  [[nodiscard]] bool failed() const { return file_.value() < 0 || failed_; }

  /// The next line without its end; it lives until the next call. Of a line longer than the buffer
  /// (the path of a mapped file may make it so) the beginning: anyone chooses how a path goes on.
  std::optional<std::string_view> next() {
    for (;;) {
      const std::string_view rest(buffer_.data() + begin_, end_ - begin_);
      const std::size_t length = rest.find('\n');
      if (length != rest.npos) {
        begin_ += length + 1;
        if (std::exchange(has_begun_, false)) continue;
        return rest.substr(0, length);
      }
      if (rest.size() == buffer_.size()) {
        begin_ = end_;
        if (std::exchange(has_begun_, true)) continue;
        return rest;
      }
      std::memmove(buffer_.data(), rest.data(), rest.size());
      begin_ = 0;
      end_ = rest.size();
      const ssize_t got = retry([&] {
        return kernel().read(file_.value(), buffer_.data() + end_, buffer_.size() - end_);
      });
      failed_ = got < 0;
      if (got <= 0) return std::nullopt;
      end_ += static_cast<std::size_t>(got);
    }
  }

 private:
  Descriptor file_;
  std::array<char, 4096> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  bool has_begun_ = false;  ///< what comes next is the rest of a line
  bool failed_ = false;
};

/// Takes a number off the front of `text`; nothing when there is none.
std::optional<std::uint64_t> take_number(std::string_view& text, int base) {
  text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
  if (error != std::errc{}) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return number;
}

/// What /proc/self/smaps says of the kernel's areas inside `part`. It has sums of whole areas only:
/// nothing when an area with huge pages is only partly inside.
std::optional<std::uint64_t> huge_bytes_from_smaps(Part part) {
  FileLines lines("/proc/self/smaps");
  std::uint64_t huge = 0;
  Part area{};
  if (lines.failed()) return std::nullopt;
  while (const auto line = lines.next()) {
    std::string_view text = *line;
    // An area begins with a line like `7f0000000000-7f0000200000 rw-p ...`.
    if (const auto start = take_number(text, 16); start && text.starts_with('-')) {
      text.remove_prefix(1);
      area = {*start, take_number(text, 16).value_or(*start)};
      continue;
    }
    if (area.end <= part.start || area.start >= part.end) continue;
    for (const std::string_view name : {"AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:"}) {
      if (!line->starts_with(name)) continue;
      std::string_view value = line->substr(name.size());
      const std::uint64_t bytes = 1024 * take_number(value, 10).value_or(0);
      if (bytes != 0 && (area.start < part.start || area.end > part.end)) return std::nullopt;
      huge += bytes;
    }
  }
  if (lines.failed()) return std::nullopt;
  return huge;
}

}  // namespace

Result<Residency> MemoryMapping::residency(std::uint64_t offset, std::uint64_t size) const {
  VMSPACE_TRY_IN(residency_operation, check_part(offset, size));
  VMSPACE_TRY(require_own_pages(residency_operation));
  const std::uint64_t start = reinterpret_cast<std::uintptr_t>(data_) + offset;
  const Part part{start, start + size};
  const auto tables = scan_page_tables(part);
  // All anonymous memory is in page tables, which also tell the page of zeros from others.
  if (tables && backing_.page_kind() == PageKind::anonymous) return *tables;
  Residency result;
  PageScan present(*this, PageQuery::present);
  for (std::uint64_t at = offset; at < offset + size;) {
    const Extent found = VMSPACE_TRY_IN(residency_operation, present.next(at, offset + size));
    result.resident += found.size;
    at = found.end();
  }
  if (tables) {
    result.huge = tables->huge;
  } else if (backing_.is_hugetlb()) {
    result.huge = result.resident;
  } else {
    result.huge = huge_bytes_from_smaps(part);
  }
  return result;
}

}  // namespace vmspace
