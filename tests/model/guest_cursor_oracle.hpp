// SPDX-License-Identifier: Apache-2.0
//
// Cursors beside what they stand for: a list of the addresses of all bytes, one after the other, and a
// copy of the memory. Driven by bytes, from a random generator or a fuzzer.

#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/guest_cursor.hpp"

namespace vmspace::test {

/// Takes numbers from a list of bytes; zeros when it has ended.
class Bytes {
 public:
  explicit Bytes(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  [[nodiscard]] bool empty() const { return bytes_.empty(); }
  std::uint64_t take(std::size_t count) {
    std::uint64_t value = 0;
    for (; count != 0 && !bytes_.empty(); --count, bytes_ = bytes_.subspan(1))
      value = value << 8 | bytes_.front();
    return value;
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

/// Memory of two adjacent regions in an arena, a gap, and a third; and a file.
class CursorSideBySide {
 public:
  static constexpr std::uint64_t page = 4096;
  static constexpr std::uint64_t base = 0x10000;
  static constexpr std::uint64_t border = base + 2 * page;
  static constexpr std::uint64_t gap = border + 2 * page;
  static constexpr std::uint64_t third = gap + page;
  static constexpr std::uint64_t end = third + page;

  CursorSideBySide() : file_(::memfd_create("bytes", MFD_CLOEXEC)) {
    const HostArena arena = HostArena::reserve({.size = end - base, .guest_base = base}).value();
    std::vector<MemoryRegionPtr> regions;
    for (const auto& [from, to] : {std::pair{base, border}, {border, gap}, {third, end}}) {
      regions.push_back(MemoryRegion::map({.name = "test",
                                           .base = GuestAddress(from),
                                           .size = to - from,
                                           .backing = {.source = MemorySource::anon}},
                                          {.arena = arena})
                            .value());
    }
    memory_ = GuestMemory::from_regions(std::move(regions)).value();
    copy_.resize(end - base);
    for (std::uint64_t i = 0; i < copy_.size(); ++i)
      copy_[i] = static_cast<std::uint8_t>(i * 7 + i / 251);
    for (const auto& [from, to] : {std::pair{base, gap}, {third, end}}) {
      const auto bytes = std::as_bytes(std::span(copy_)).subspan(from - base, to - from);
      expect(memory_.write_slice(GuestAddress(from), bytes).has_value(), "filling the memory");
    }
    expect(enable_dirty_tracking(memory_).has_value(), "tracking the memory");
  }
  ~CursorSideBySide() { ::close(file_); }
  CursorSideBySide(const CursorSideBySide&) = delete;
  CursorSideBySide& operator=(const CursorSideBySide&) = delete;

  /// Makes a cursor of some ranges and moves it; what differs from the list, or nothing.
  std::optional<std::string> run(Bytes& bytes) {
    difference_.reset();
    const std::uint64_t flags = bytes.take(1);
    std::vector<GuestRange> ranges;
    for (std::uint64_t count = flags % 32; count != 0; --count) {
      const std::uint64_t kind = bytes.take(1);
      const std::uint64_t address = base - 16 + bytes.take(2) % (end - base + 32);
      std::uint64_t size = bytes.take(1) % 48;
      if (kind == 255) size = ~std::uint64_t{0} - bytes.take(1);
      if (kind == 254) size = bytes.take(2);
      ranges.push_back({GuestAddress(address), size});
    }
    std::vector<std::uint64_t> addresses;
    bool valid = true;
    for (const GuestRange& range : ranges) {
      if (!is_mapped(range)) {
        valid = false;
        break;
      }
      for (std::uint64_t i = 0; i < range.size; ++i)
        addresses.push_back(range.base.value() + i);
    }
    if ((flags & 0x80) != 0) {
      auto reader = GuestReader::make(memory_, ranges);
      expect(reader.has_value() == valid, "whether a reader is made");
      if (reader && valid) read(*reader, {addresses}, bytes);
    } else {
      auto writer = GuestWriter::make(memory_, ranges);
      expect(writer.has_value() == valid, "whether a writer is made");
      if (writer && valid) write(*writer, {addresses}, bytes);
    }
    return difference_;
  }

  /// Whether all of the memory, and what is dirty, is as it should be.
  std::optional<std::string> finish() {
    for (const auto& [from, to] : {std::pair{base, gap}, {third, end}}) {
      std::vector<std::uint8_t> now(to - from);
      expect(memory_.read_slice(GuestAddress(from), std::as_writable_bytes(std::span(now)))
                 .has_value(),
             "reading the memory");
      expect(std::equal(now.begin(), now.end(),
                        copy_.begin() + static_cast<std::ptrdiff_t>(from - base)),
             "the contents at the end");
    }
    std::set<std::uint64_t> pages;
    const auto harvested = harvest_dirty(memory_);
    for (const GuestRange& range : *harvested) {
      for (std::uint64_t at = 0; at < range.size; at += page)
        pages.insert(range.base.value() + at);
    }
    expect(pages == dirty_, "the pages that are dirty");
    return difference_;
  }

 private:
  using Addresses = std::span<const std::uint64_t>;

  void expect(bool holds, const char* what) {
    if (!holds && !difference_) difference_ = what;
  }

  static bool is_mapped(GuestRange range) {
    if (range.empty()) return true;
    const std::uint64_t at = range.base.value();
    const auto within = [&](std::uint64_t from, std::uint64_t to) {
      return at >= from && at < to && range.size <= to - at;
    };
    return within(base, gap) || within(third, end);
  }

  [[nodiscard]] std::vector<std::uint8_t> bytes_at(Addresses addresses) const {
    std::vector<std::uint8_t> bytes;
    for (const std::uint64_t address : addresses)
      bytes.push_back(copy_[address - base]);
    return bytes;
  }
  void set(Addresses addresses, std::span<const std::uint8_t> bytes) {
    for (std::size_t i = 0; i < addresses.size(); ++i) {
      copy_[addresses[i] - base] = bytes[i];
      dirty_.insert(addresses[i] / page * page);
    }
  }
  static std::vector<std::uint8_t> some(std::size_t size, std::uint64_t seed) {
    std::vector<std::uint8_t> bytes(size);
    for (std::size_t i = 0; i < size; ++i)
      bytes[i] = static_cast<std::uint8_t>(seed + i * 5);
    return bytes;
  }
  void check_place(GuestCursor& cursor, Addresses left, std::size_t all) {
    expect(cursor.remaining() == left.size(), "remaining");
    expect(cursor.position() == all - left.size(), "position");
    std::size_t sum = 0;
    for (const iovec& piece : cursor.iovecs()) {
      expect(piece.iov_len != 0, "a piece is not empty");
      sum += piece.iov_len;
    }
    expect(sum == left.size(), "the bytes of all iovecs");
  }

  template <typename T>
  void read_object(GuestReader& reader, Addresses& left) {
    const auto got = reader.read<T>();
    expect(got.has_value() == (sizeof(T) <= left.size()), "whether an object is read");
    if (!got || difference_) return;
    const auto* const bytes = reinterpret_cast<const std::uint8_t*>(&*got);
    expect(std::ranges::equal(std::span(bytes, sizeof(T)), bytes_at(left.first(sizeof(T)))),
           "an object that was read");
    left = left.subspan(sizeof(T));
  }
  template <typename T>
  void write_object(GuestWriter& writer, Addresses& left, std::uint64_t seed) {
    const auto bytes = some(sizeof(T), seed);
    T object;
    std::ranges::copy(bytes, reinterpret_cast<std::uint8_t*>(&object));
    const bool done = writer.write(object).has_value();
    expect(done == (sizeof(T) <= left.size()), "whether an object is written");
    if (!done || difference_) return;
    set(left.first(sizeof(T)), bytes);
    left = left.subspan(sizeof(T));
  }

  // NOLINTNEXTLINE(misc-no-recursion): a part of a reader is a reader.
  void read(GuestReader& reader, Addresses left, Bytes& bytes) {
    const std::size_t all = left.size();
    while (!bytes.empty() && !difference_) {
      const std::uint64_t kind = bytes.take(1) % 9;
      const std::size_t size = bytes.take(1);
      switch (kind) {
        case 0: read_object<std::uint8_t>(reader, left); break;
        case 1: read_object<std::uint32_t>(reader, left); break;
        case 2: read_object<std::array<std::uint64_t, 3>>(reader, left); break;
        case 3: read_object<std::array<std::uint64_t, 12>>(reader, left); break;
        case 4: {
          std::vector<std::uint8_t> to(size);
          const bool done = reader.read_exact(std::as_writable_bytes(std::span(to))).has_value();
          expect(done == (size <= left.size()), "whether bytes are read");
          if (!done || difference_) break;
          expect(to == bytes_at(left.first(size)), "bytes that were read");
          left = left.subspan(size);
          break;
        }
        case 5: {
          const bool done = reader.skip(size).has_value();
          expect(done == (size <= left.size()), "whether bytes are skipped");
          if (done && !difference_) left = left.subspan(size);
          break;
        }
        case 6: {
          auto second = reader.split_at(size);
          expect(second.has_value() == (size <= left.size()), "whether a reader is split");
          if (!second || difference_) break;
          read(*second, left.subspan(size), bytes);
          left = left.first(size);
          check_place(reader, left, reader.position() + left.size());
          return;
        }
        case 7: {
          expect(::lseek(file_, 0, SEEK_SET) == 0, "lseek");
          const auto sent = reader.read_to(file_, size);
          expect(sent.has_value() == (size <= left.size()), "whether bytes are sent");
          if (!sent || difference_) break;
          check_file(0, bytes_at(left.first(*sent)));
          left = left.subspan(*sent);
          break;
        }
        default: {
          const bool done = reader.read_exact_to(file_, size, 3).has_value();
          expect(done == (size <= left.size()), "whether all bytes are sent");
          if (!done || difference_) break;
          check_file(3, bytes_at(left.first(size)));
          left = left.subspan(size);
        }
      }
      check_place(reader, left, all);
    }
  }

  // NOLINTNEXTLINE(misc-no-recursion): a part of a writer is a writer.
  void write(GuestWriter& writer, Addresses left, Bytes& bytes) {
    const std::size_t all = left.size();
    while (!bytes.empty() && !difference_) {
      const std::uint64_t kind = bytes.take(1) % 9;
      const std::size_t size = bytes.take(1);
      switch (kind) {
        case 0: write_object<std::uint8_t>(writer, left, size); break;
        case 1: write_object<std::uint32_t>(writer, left, size); break;
        case 2: write_object<std::array<std::uint64_t, 3>>(writer, left, size); break;
        case 3: write_object<std::array<std::uint64_t, 12>>(writer, left, size); break;
        case 4: {
          const auto from = some(size, size);
          const bool done = writer.write_exact(std::as_bytes(std::span(from))).has_value();
          expect(done == (size <= left.size()), "whether bytes are written");
          if (!done || difference_) break;
          set(left.first(size), from);
          left = left.subspan(size);
          break;
        }
        case 5: {
          const bool done = writer.skip(size).has_value();
          expect(done == (size <= left.size()), "whether bytes are skipped");
          if (done && !difference_) left = left.subspan(size);
          break;
        }
        case 6: {
          auto second = writer.split_at(size);
          expect(second.has_value() == (size <= left.size()), "whether a writer is split");
          if (!second || difference_) break;
          write(*second, left.subspan(size), bytes);
          left = left.first(size);
          check_place(writer, left, writer.position() + left.size());
          return;
        }
        case 7: {
          const auto from = some(size, size + 1);
          expect(::pwrite(file_, from.data(), size, 0) == static_cast<ssize_t>(size), "pwrite");
          expect(::lseek(file_, 0, SEEK_SET) == 0, "lseek");
          const bool done = writer.write_exact_from(file_, size).has_value();
          expect(done == (size <= left.size()), "whether bytes are received");
          if (!done || difference_) break;
          set(left.first(size), from);
          left = left.subspan(size);
          break;
        }
        default: {
          const auto from = some(size, size + 2);
          expect(::pwrite(file_, from.data(), size, 5) == static_cast<ssize_t>(size), "pwrite");
          const auto got = writer.write_from(file_, size, 5);
          expect(got.has_value() == (size <= left.size()), "whether bytes are received");
          if (!got || difference_) break;
          set(left.first(*got), from);
          left = left.subspan(*got);
        }
      }
      check_place(writer, left, all);
    }
  }

  void check_file(off_t offset, const std::vector<std::uint8_t>& expected) {
    std::vector<std::uint8_t> now(expected.size());
    const ssize_t count = ::pread(file_, now.data(), now.size(), offset);
    expect(count == static_cast<ssize_t>(now.size()) && now == expected, "bytes that were sent");
  }

  GuestMemory memory_;
  std::vector<std::uint8_t> copy_;  ///< from base on
  std::set<std::uint64_t> dirty_;
  int file_;
  std::optional<std::string> difference_;
};

}  // namespace vmspace::test
