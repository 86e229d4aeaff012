// SPDX-License-Identifier: Apache-2.0
//
// A table of translations beside a std::map with an entry for each byte. Driven by bytes, from a random
// generator or a fuzzer.

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "vmspace/memory/iommu_view.hpp"

#include "model/guest_cursor_oracle.hpp"  // Bytes

namespace vmspace::test {

/// IOVAs lie at both ends of the space; some of what they refer to is memory.
class IoTlbSideBySide {
 public:
  IoTlbSideBySide() {
    const GuestRange all[] = {{GuestAddress(ram), page}};
    memory_ = GuestMemory::create(all).value();
    for (std::uint64_t i = 0; i < page; ++i)
      (void)memory_.write(GuestAddress(ram + i), static_cast<std::uint8_t>(i * 7 + i / 251));
    tlb_ = IoTlb::make({.max_entries = 4096,
                        .on_miss = [this](GuestAddress iova, Access) -> Result<IoTlbEntry> {
                          if (!answers_)
                            return fail({.code = Errc::timed_out, .operation = "miss"});
                          return IoTlbEntry{.iova = iova, .guest = {answer(iova.value()), 1}};
                        }})
               .value();
    reader_ = tlb_->reader();
  }

  /// One operation; what differs, or nothing.
  std::optional<std::string> run(Bytes& bytes) {
    difference_.reset();
    const std::uint64_t kind = bytes.take(1);
    answers_ = (kind & 0x80) != 0;
    const std::uint64_t iova = take_iova(bytes);
    std::uint64_t size = bytes.take(1) % 48;
    switch (kind % 8) {
      case 0:
      case 1:
      case 2: update(iova, size, bytes); break;
      case 3: invalidate(iova, (kind & 0x40) != 0 ? size + top : size); break;
      case 4:
        if ((kind & 0x70) == 0) invalidate_all();
        break;
      case 5: translate(iova, (kind & 0x40) != 0 ? top - size : size, Access::write); break;
      case 6: translate(iova, size, Access::read); break;
      default: read(iova, size); break;
    }
    expect(tlb_->check_invariants().has_value(), "the invariant");
    return difference_;
  }

  /// Compares all entries.
  std::optional<std::string> finish() {
    std::map<std::uint64_t, Place> found;
    for (const IoTlbEntry& entry : tlb_->entries()) {
      for (std::uint64_t i = 0; i < entry.guest.size; ++i)
        found[entry.iova.value() + i] = {entry.guest.base.value() + i, entry.access};
    }
    expect(found == places_, "the entries");
    return difference_;
  }

 private:
  static constexpr std::uint64_t ram = 0x10000;
  static constexpr std::uint64_t page = 4096;
  static constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();
  using Place = std::pair<std::uint64_t, Protection>;

  void expect(bool holds, const char* what) {
    if (!holds && !difference_) difference_ = what;
  }
  static std::uint64_t take_iova(Bytes& bytes) { return bytes.take(1) - 128; }  // wraps
  static GuestAddress answer(std::uint64_t iova) { return GuestAddress(ram + 2 * iova % page); }

  void update(std::uint64_t iova, std::uint64_t size, Bytes& bytes) {
    const auto access = static_cast<Protection>(bytes.take(1) % 5);
    const std::uint64_t guest = ram - 32 + bytes.take(2) % (page + 64);
    const bool valid = size != 0 && iova <= top - (size - 1) && access != Protection::none &&
                       access != Protection::execute;
    const IoTlbEntry entry{
        .iova = GuestAddress(iova), .guest = {GuestAddress(guest), size}, .access = access};
    expect(tlb_->update(entry).has_value() == valid, "whether an entry is taken");
    for (std::uint64_t i = 0; valid && i < size; ++i)
      places_[iova + i] = {guest + i, access};
  }

  void invalidate(std::uint64_t iova, std::uint64_t size) {
    expect(tlb_->invalidate({GuestAddress(iova), size}, {}).has_value(), "invalidate");
    if (size == 0) return;
    const std::uint64_t last = size - 1 > top - iova ? top : iova + (size - 1);
    places_.erase(places_.lower_bound(iova), places_.upper_bound(last));
  }

  void invalidate_all() {
    expect(tlb_->invalidate_all({}).has_value(), "invalidate_all");
    places_.clear();
  }

  /// What translating gives, with what is missed added; the error at the first byte that has one.
  Result<std::vector<GuestRange>> expected(std::uint64_t iova, std::uint64_t size, Access access) {
    const auto fails = [](Errc code) { return fail({.code = code, .operation = "oracle"}); };
    std::vector<GuestRange> ranges;
    if (size == 0) return ranges;
    if (size - 1 > top - iova) return fails(Errc::overflow);
    const Protection wanted = access == Access::read ? Protection::read : Protection::write;
    for (std::uint64_t i = 0; i < size; ++i) {
      auto place = places_.find(iova + i);
      if (place == places_.end()) {
        if (!answers_) return fails(Errc::timed_out);
        place =
            places_.insert({iova + i, {answer(iova + i).value(), Protection::read_write}}).first;
      }
      if (!allows(place->second.second, wanted)) return fails(Errc::access_denied);
      const GuestAddress guest(place->second.first);
      if (!ranges.empty() && ranges.back().end() == guest) {
        ++ranges.back().size;
      } else {
        ranges.push_back({guest, 1});
      }
    }
    return ranges;
  }

  void translate(std::uint64_t iova, std::uint64_t size, Access access) {
    if (answers_ && size > 512) return;  // the oracle counts bytes
    const auto right = expected(iova, size, access);
    IommuView view(*reader_, memory_);
    const auto given = view.translate({GuestAddress(iova), size}, access);
    expect(given.has_value() == right.has_value(), "whether a range is translated");
    if (!right && !given) expect(given.error().code == right.error().code, "the error");
    if (right && given) expect(*given == *right, "the translation");
  }

  void read(std::uint64_t iova, std::uint64_t size) {
    const auto right = expected(iova, size, Access::read);
    std::vector<std::byte> wanted;
    bool valid = right.has_value();
    for (const GuestRange& range : valid ? *right : std::vector<GuestRange>{}) {
      for (std::uint64_t i = 0; i < range.size; ++i) {
        const auto byte = memory_.read<std::byte>(GuestAddress(range.base.value() + i));
        valid = valid && byte.has_value();
        if (byte) wanted.push_back(*byte);
      }
    }
    std::vector<std::byte> given(size);
    IommuView view(*reader_, memory_);
    const auto done = view.read_slice(GuestAddress(iova), given);
    expect(done.has_value() == valid, "whether bytes are read");
    if (done && valid) expect(given == wanted, "the bytes");
  }

  GuestMemory memory_;
  bool answers_ = false;
  std::optional<IoTlb> tlb_;
  std::optional<IoTlbReader> reader_;
  std::map<std::uint64_t, Place> places_;
  std::optional<std::string> difference_;
};

}  // namespace vmspace::test
