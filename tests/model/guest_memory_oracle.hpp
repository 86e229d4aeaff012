// SPDX-License-Identifier: Apache-2.0
//
// Guest memory and one flat array of bytes with holes, driven together.
//
//   page  0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15
//         .. rw rw rw|rw rw ..|ro ro|rw ..|xx|rw|.. rw rw       | between regions, x no access

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/guest_memory.hpp"

namespace vmspace::test {

/// One call; every combination of numbers means something.
struct GuestStep {
  std::uint8_t kind = 0;
  std::uint8_t value = 0;
  std::uint16_t a = 0;  ///< where, in the window; some reach past its end
  std::uint16_t b = 0;  ///< how much, or where else
};

class GuestSideBySide {
 public:
  static constexpr std::uint64_t page = 4096;
  static constexpr std::uint64_t pages = 16;
  static constexpr std::uint64_t window = pages * page;
  /// The lowest place of the window, and the highest: it ends with the address space.
  static constexpr std::uint64_t lowest = 0;
  static constexpr std::uint64_t highest = std::uint64_t{0} - window;

  explicit GuestSideBySide(std::uint64_t origin) : origin_(origin), bytes_(window) {
    add(1, 3, Protection::read_write);
    add(4, 2, Protection::read_write);
    add(7, 2, Protection::read);
    add(9, 1, Protection::read_write);
    add(11, 1, Protection::none);
    add(12, 1, Protection::read_write);
    add(14, 2, Protection::read_write);
    auto made = GuestMemory::from_regions(std::move(regions_));
    if (!made || !enable_dirty_tracking(*made)) broken_ = "no memory to test with";
    if (made) memory_ = *made;
  }

  /// Makes the call on both; what differs, as a text, or nothing.
  std::optional<std::string> apply(const GuestStep& step) {
    if (!broken_.empty()) return broken_;
    difference_.clear();
    const std::uint64_t offset = step.a;
    const std::uint64_t size = step.b % 9000;
    switch (step.kind % 16) {
      case 0: object<std::uint64_t>(offset, step.value); break;
      case 1: object<std::uint8_t>(offset, step.value); break;
      case 2: object<std::array<std::uint8_t, 31>>(offset, step.value); break;
      case 3: object<std::array<std::uint8_t, 5000>>(offset, step.value); break;
      case 4: read_slice(offset, size); break;
      case 5: write_slice(offset, size, step.value); break;
      case 6: read_some(offset, size); break;
      case 7: write_some(offset, size, step.value); break;
      case 8: fill(offset, size, step.value); break;
      case 9: copy(offset, step.b, 1 + 37u * step.value); break;
      case 10: integer<std::uint32_t>(offset, step.value); break;
      case 11: integer<std::uint16_t>(offset, step.value); break;
      case 12: ranges(offset, size, Access::read); break;
      case 13: ranges(offset, size, Access::write); break;
      case 14: huge(offset, step.b); break;
      case 15: harvest(); break;
    }
    if (difference_.empty()) return std::nullopt;
    return difference_;
  }

  /// Compares every byte and the dirty pages.
  std::optional<std::string> finish() {
    difference_.clear();
    for (std::uint64_t at = 0; at < pages; ++at) {
      if (!readable(at)) continue;
      std::vector<std::byte> now(page);
      expect(memory_.read_slice(address(at * page), now).has_value(), "a page can't be read");
      expect(std::equal(now.begin(), now.end(), from(at * page)), "the bytes differ");
    }
    harvest();
    if (difference_.empty()) return std::nullopt;
    return difference_;
  }

 private:
  enum class Kind : std::uint8_t { hole, none, read_only, read_write };

  void add(std::uint64_t first, std::uint64_t count, Protection protection) {
    const auto description = AddressSpaceRegion::make({.name = "model",
                                                       .base = address(first * page),
                                                       .size = count * page,
                                                       .backing = {.source = MemorySource::anon},
                                                       .protection = protection});
    if (!description) return;
    if (auto region = MemoryRegion::map(*description)) regions_.push_back(std::move(*region));
    const Kind kind = protection == Protection::read_write ? Kind::read_write
                      : protection == Protection::read     ? Kind::read_only
                                                           : Kind::none;
    for (std::uint64_t at = first; at < first + count; ++at)
      kinds_[at] = kind;
  }

  [[nodiscard]] GuestAddress address(std::uint64_t offset) const {
    return GuestAddress(origin_ + offset);
  }
  [[nodiscard]] std::vector<std::byte>::iterator from(std::uint64_t offset) {
    return bytes_.begin() + static_cast<std::ptrdiff_t>(offset);
  }
  [[nodiscard]] Kind kind(std::uint64_t at) const { return at < pages ? kinds_[at] : Kind::hole; }
  [[nodiscard]] bool readable(std::uint64_t at) const { return kind(at) >= Kind::read_only; }
  [[nodiscard]] bool allowed(std::uint64_t at, Access access) const {
    return access == Access::read ? readable(at) : kind(at) == Kind::read_write;
  }

  /// Bytes up to the first that can't be accessed, one page after the other.
  [[nodiscard]] std::uint64_t reach(std::uint64_t offset, std::uint64_t size, Access access) const {
    std::uint64_t end = offset;
    while (end - offset < size && allowed(end / page, access))
      end = (end / page + 1) * page;
    return std::min(end - offset, size);
  }

  /// What an access of the range gives: nothing when it is good.
  [[nodiscard]] std::optional<Errc> verdict(std::uint64_t offset, std::uint64_t size,
                                            Access access) const {
    if (size == 0) return std::nullopt;
    if (size - 1 > ~std::uint64_t{0} - (origin_ + offset)) return Errc::overflow;
    const std::uint64_t good = reach(offset, size, access);
    if (good == size) return std::nullopt;
    if (kind((offset + good) / page) != Kind::hole) return Errc::access_denied;
    return good == 0 ? Errc::not_found : Errc::out_of_bounds;
  }

  void expect(bool condition, const char* what) {
    if (!condition && difference_.empty()) difference_ = what;
  }
  template <typename T>
  bool expect_verdict(const Result<T>& result, std::optional<Errc> wanted) {
    expect(result.has_value() == !wanted, wanted ? "succeeds" : "fails");
    if (!result && wanted) expect(result.error().code == *wanted, "another error");
    return result.has_value() && !wanted;
  }

  static std::vector<std::byte> pattern(std::uint64_t size, std::uint8_t value) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<std::byte>(value + i);
    return bytes;
  }

  void wrote(std::uint64_t offset, std::span<const std::byte> bytes) {
    if (bytes.empty()) return;
    std::ranges::copy(bytes, from(offset));
    for (std::uint64_t at = offset / page; at <= (offset + bytes.size() - 1) / page; ++at) {
      dirty_.insert(at);
    }
  }

  template <typename T>
  void object(std::uint64_t offset, std::uint8_t value) {
    const auto bytes = pattern(sizeof(T), value);
    T object;
    std::memcpy(&object, bytes.data(), sizeof object);
    if (expect_verdict(memory_.write(address(offset), object),
                       verdict(offset, sizeof(T), Access::write))) {
      wrote(offset, bytes);
    }
    const auto read = memory_.read<T>(address(offset));
    if (expect_verdict(read, verdict(offset, sizeof(T), Access::read))) {
      expect(std::memcmp(&*read, &*from(offset), sizeof(T)) == 0, "another object");
    }
  }

  template <typename T>
  void integer(std::uint64_t offset, std::uint8_t value) {
    const bool aligned = offset % sizeof(T) == 0;
    const auto wanted = aligned ? verdict(offset, sizeof(T), Access::write) : Errc::misaligned;
    const T bits = static_cast<T>(value * 0x0101U);
    const auto was = memory_.fetch_or(address(offset), bits);
    if (!expect_verdict(was, wanted)) return;
    T expected;
    std::memcpy(&expected, &*from(offset), sizeof expected);
    expect(*was == expected, "another integer");
    const T now = static_cast<T>(expected | bits);
    wrote(offset, std::as_bytes(std::span(&now, 1)));
    const auto loaded = memory_.load<T>(address(offset), std::memory_order_acquire);
    expect(loaded.has_value() && *loaded == now, "another integer after or");
    const T other = static_cast<T>(now + 1);
    const auto seen = memory_.compare_exchange(address(offset), other, T{0});
    expect(seen.has_value() && *seen == now, "exchanged what was not equal");
    const auto ok = memory_.store(address(offset), other, std::memory_order_release);
    if (expect_verdict(ok, std::nullopt)) wrote(offset, std::as_bytes(std::span(&other, 1)));
  }

  void read_slice(std::uint64_t offset, std::uint64_t size) {
    std::vector<std::byte> to(static_cast<std::size_t>(size));
    if (expect_verdict(memory_.read_slice(address(offset), to),
                       verdict(offset, size, Access::read))) {
      expect(size == 0 || std::equal(to.begin(), to.end(), from(offset)), "another slice");
    }
  }

  void write_slice(std::uint64_t offset, std::uint64_t size, std::uint8_t value) {
    const auto bytes = pattern(size, value);
    if (expect_verdict(memory_.write_slice(address(offset), bytes),
                       verdict(offset, size, Access::write))) {
      wrote(offset, bytes);
    }
  }

  /// The verdict on a partial access: that on its first byte.
  [[nodiscard]] std::optional<Errc> first_verdict(std::uint64_t offset, std::uint64_t size,
                                                  Access access) const {
    return verdict(offset, std::min<std::uint64_t>(size, 1), access);
  }

  void read_some(std::uint64_t offset, std::uint64_t size) {
    std::vector<std::byte> to(static_cast<std::size_t>(size));
    const auto count = memory_.read_some(address(offset), to);
    if (!expect_verdict(count, first_verdict(offset, size, Access::read))) return;
    expect(*count == reach(offset, size, Access::read), "another number of bytes read");
    expect(size == 0 || std::equal(to.begin(), to.begin() + static_cast<std::ptrdiff_t>(*count),
                                   from(offset)),
           "another partial slice");
  }

  void write_some(std::uint64_t offset, std::uint64_t size, std::uint8_t value) {
    const auto bytes = pattern(size, value);
    const auto count = memory_.write_some(address(offset), bytes);
    if (!expect_verdict(count, first_verdict(offset, size, Access::write))) return;
    expect(*count == reach(offset, size, Access::write), "another number of bytes written");
    wrote(offset, std::span(bytes).first(std::min<std::size_t>(*count, bytes.size())));
  }

  void fill(std::uint64_t offset, std::uint64_t size, std::uint8_t value) {
    const std::byte byte{value};
    if (expect_verdict(memory_.fill({address(offset), size}, byte),
                       verdict(offset, size, Access::write))) {
      wrote(offset, std::vector<std::byte>(static_cast<std::size_t>(size), byte));
    }
  }

  void copy(std::uint64_t to, std::uint64_t source, std::uint64_t size) {
    auto wanted = verdict(source, size, Access::read);
    if (!wanted) wanted = verdict(to, size, Access::write);
    if (!expect_verdict(memory_.copy(address(to), {address(source), size}), wanted)) return;
    const std::vector<std::byte> bytes(from(source),
                                       from(source) + static_cast<std::ptrdiff_t>(size));
    wrote(to, bytes);
  }

  void ranges(std::uint64_t offset, std::uint64_t size, Access access) {
    const auto wanted = verdict(offset, size, access);
    expect(memory_.contains({address(offset), size}, access) == !wanted, "contains");
    const auto list = memory_.iovecs({address(offset), size}, access);
    if (!expect_verdict(list, wanted)) return;
    std::uint64_t total = 0;
    for (const iovec& piece : list->iovecs()) {
      expect(memory_.guest_address(piece.iov_base) == address(offset + total), "a wrong piece");
      total += piece.iov_len;
    }
    expect(total == size, "pieces of another size");
    if (access != Access::write || size == 0) return;
    for (std::uint64_t at = offset / page; at <= (offset + size - 1) / page; ++at) {
      dirty_.insert(at);
    }
  }

  /// Sizes that no memory has, and that wrap.
  void huge(std::uint64_t offset, std::uint64_t less) {
    const GuestRange range{address(offset), ~std::uint64_t{0} - less};
    expect(!memory_.contains(range), "contains nearly everything");
    expect(!memory_.fill(range, std::byte{1}), "filled nearly everything");
    expect(!memory_.host_address(range), "a pointer to nearly everything");
    expect(!memory_.copy(address(page), range), "copied nearly everything");
    expect(!memory_.iovecs(range, Access::read), "pieces of nearly everything");
  }

  void harvest() {
    const auto harvested = harvest_dirty(memory_);
    if (!expect_verdict(harvested, std::nullopt)) return;
    std::set<std::uint64_t> seen;
    for (const GuestRange& range : *harvested) {
      const std::uint64_t first = (range.base.value() - origin_) / page;
      for (std::uint64_t i = 0; i < range.size / page; ++i)
        seen.insert(first + i);
    }
    expect(seen == dirty_, "other pages are dirty");
    dirty_.clear();
  }

  std::uint64_t origin_;
  std::vector<std::byte> bytes_;
  std::array<Kind, pages> kinds_{};
  std::vector<MemoryRegionPtr> regions_;
  std::set<std::uint64_t> dirty_;
  GuestMemory memory_;
  std::string broken_;
  std::string difference_;
};

}  // namespace vmspace::test
