// SPDX-License-Identifier: Apache-2.0

#include "host/present_pages.hpp"

#include <algorithm>
#include <span>

#include "os/descriptor.hpp"
#include "os/kernel_values.hpp"
#include "os/page_size.hpp"
#include "os/pagemap.hpp"

namespace vmspace::detail {

namespace {

/// Bits of an entry of /proc/self/pagemap.
constexpr std::uint64_t entry_is_swapped = std::uint64_t{1} << 62;
constexpr std::uint64_t entry_is_present = std::uint64_t{1} << 63;

/// What one call is asked about at most.
constexpr std::size_t window_pages = 4096;

bool has_swap() {
  struct sysinfo info {};
  return kernel().sysinfo(&info) != 0 || info.totalswap != 0;
}

}  // namespace

Result<Extent> next_file_data(const char* operation, Errc if_cut_off, int fd, std::uint64_t from,
                              std::uint64_t end) {
  const auto find = [&]() -> Extent {
    const auto data = kernel().lseek(fd, static_cast<off_t>(from), SEEK_DATA);
    if (data < 0) return errno == ENXIO ? Extent{end, 0} : Extent{from, end - from};
    const auto begin = static_cast<std::uint64_t>(data);
    if (begin < from) return {from, end - from};
    if (begin >= end) return {end, 0};
    const auto hole = kernel().lseek(fd, data, SEEK_HOLE);
    if (hole <= data) return {begin, end - begin};
    return {begin, std::min(end, static_cast<std::uint64_t>(hole)) - begin};
  };
  const Extent found = find();
  if (found.offset == from) return found;
  // Checked last: lseek(2) gives ENXIO both for a hole at the end of a file and for anything past
  // it.
  struct stat file {};
  if (retry([&] { return kernel().fstat(fd, &file); }) != 0) {
    return fail_os(operation, Operand::span(from, end - from), "fstat");
  }
  if (static_cast<std::uint64_t>(file.st_size) < end) {
    return fail({.code = if_cut_off,
                 .operation = operation,
                 .first = Operand::span(from, end - from),
                 .second = Operand::size(static_cast<std::uint64_t>(file.st_size)),
                 .reason = "the file is shorter than the memory mapped from it"});
  }
  return found;
}

void PresentPages::add(std::uint64_t offset, std::uint64_t size) {
  if (!found_.empty() && found_.back().end() == offset) {
    found_.back().size += size;
  } else {
    found_.push_back({offset, size});
  }
}

bool PresentPages::scan_tables(Extent part) {
  std::array<PageRegion, 256> regions;
  const auto base = reinterpret_cast<std::uintptr_t>(data_);
  const auto scanned = scan_pages(pagemap_, base + part.offset, base + part.end(),
                                  {.inverted = page_is_zero_page,
                                   .all_of = page_is_zero_page,
                                   .any_of = page_is_present | (swapped_ ? page_is_swapped : 0),
                                   .reported = page_is_present},
                                  regions);
  if (!scanned) return false;
  for (const PageRegion& region : std::span(regions).first(scanned->count))
    add(region.start - base, region.end - region.start);
  window_ = {part.offset, scanned->end - (base + part.offset)};
  return true;
}

bool PresentPages::read_tables(Extent part) {
  const std::uint64_t page = base_page_size();
  std::vector<std::uint64_t> entries(std::min<std::uint64_t>(part.size / page, window_pages));
  const std::uint64_t first = (reinterpret_cast<std::uintptr_t>(data_) + part.offset) / page;
  const ssize_t got = retry([&] {
    return kernel().pread(pagemap_.value(), entries.data(), entries.size() * sizeof(entries[0]),
                          static_cast<off_t>(first * sizeof(entries[0])));
  });
  if (got < static_cast<ssize_t>(sizeof(entries[0]))) return false;
  entries.resize(static_cast<std::size_t>(got) / sizeof(entries[0]));
  const std::uint64_t wanted = entry_is_present | (swapped_ ? entry_is_swapped : 0);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if ((entries[i] & wanted) != 0) add(part.offset + i * page, page);
  }
  window_ = {part.offset, entries.size() * page};
  return true;
}

bool PresentPages::ask_incore(Extent part) {
  // Checked each time, and first: swap may be switched on meanwhile.
  if (swapped_ && has_swap()) return false;
  const std::uint64_t page = base_page_size();
  std::array<unsigned char, window_pages> pages;
  const std::uint64_t size = std::min<std::uint64_t>(part.size, pages.size() * page);
  // mincore(2) only looks, but is not declared so.
  auto* const first = const_cast<std::byte*>(data_ + part.offset);
  if (retry([&] { return kernel().mincore(first, size, pages.data()); }) != 0) {
    error_ = errno;
    return false;
  }
  for (std::size_t i = 0; i < size / page; ++i) {
    // The other bits are undefined (mincore(2)).
    if ((pages[i] & 1) != 0) add(part.offset + i * page, page);
  }
  window_ = {part.offset, size};
  return true;
}

/// Looks at the beginning of a part that is not empty.
void PresentPages::look(Extent part) {
  found_.clear();
  at_ = 0;
  if (source_ <= Source::entries && pagemap_.value() < 0) {
    pagemap_ = open_pagemap();
    if (pagemap_.value() < 0) source_ = Source::incore;
  }
  if (source_ == Source::scan) {
    if (scan_tables(part)) return;
    source_ = Source::entries;
  }
  if (source_ == Source::entries) {
    if (read_tables(part)) return;
    source_ = Source::incore;
  }
  if (source_ == Source::incore) {
    if (ask_incore(part)) return;
    source_ = Source::nothing;
  }
  found_.assign(1, part);
  window_ = part;
}

Extent PresentPages::next(std::uint64_t from, std::uint64_t end) {
  while (from < end) {
    // Another source may have found a part that was passed, and the caller goes on from there.
    if (from >= passed_.offset && from < passed_.end()) from = passed_.end();
    if (from >= end) break;
    if (from < window_.offset || from >= window_.end()) {
      if (from != passed_.end()) passed_ = {from, 0};
      look({from, end - from});
    }
    if (at_ > 0 && found_[at_ - 1].end() > from) at_ = 0;  // the caller went back
    while (at_ < found_.size() && found_[at_].end() <= from)
      ++at_;
    if (at_ < found_.size()) {
      const std::uint64_t begin = std::max(from, found_[at_].offset);
      if (begin >= end) break;
      return {begin, std::min(end, found_[at_].end()) - begin};
    }
    // Nothing lies behind `from` in this window, nor before it in those that were passed up to here.
    const std::uint64_t begin = passed_.end() == from ? passed_.offset : from;
    passed_ = {begin, window_.end() - begin};
    from = window_.end();
  }
  return {end, 0};
}

}  // namespace vmspace::detail
