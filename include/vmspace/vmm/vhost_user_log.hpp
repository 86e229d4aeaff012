// SPDX-License-Identifier: Apache-2.0
//
// The log in which a vhost-user device notes the guest pages that it writes (mark), for a VMM that
// migrates the guest and takes them out (take): shared memory, with a bit for every 4096 bytes of guest addresses from 0 on.
//
// The VMM may look at any moment and clears what it has seen. So a bit is set after the data was
// written, by an atomic operation, and also where it seems to be set already: the other process may
// be just taking it out, and a write that is noted by nobody is lost.
//
// Source: QEMU's docs/interop/vhost-user.rst, Migration.

#pragma once

#include <bit>
#include <cstdint>
#include <memory>

#include "vmspace/address_space/guest_address.hpp"
#include "vmspace/address_space/guest_range.hpp"
#include "vmspace/base/detail/min_max.hpp"
#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/memory/region_descriptor.hpp"

namespace vmspace {

/// A part of a file in which a device notes the pages that it writes.
struct VhostUserLogArea {
  int fd = -1;               ///< of a memfd or another shared file; borrowed
  std::uint64_t size = 0;    ///< in bytes
  std::uint64_t offset = 0;  ///< in the file, in bytes; a multiple of the page size

  friend bool operator==(const VhostUserLogArea&, const VhostUserLogArea&) = default;
};

/// A mapped log, or none. A handle: copies are one log, which the last of them unmaps, and moving one
/// copies it.
///
/// Threads: any.
class VMSPACE_EXPORT VhostUserLog {
 public:
  /// How many bytes of the guest a bit stands for.
  static constexpr std::uint64_t page_size = 4096;

  /// No log: marking does nothing.
  VhostUserLog() noexcept = default;
  // No move operations: what was moved from would mark nothing, or what is unmapped.
  VhostUserLog(const VhostUserLog&) noexcept = default;
  VhostUserLog& operator=(const VhostUserLog&) noexcept = default;
  ~VhostUserLog() = default;

  /// Maps a log that another process has described, trusting none of it. The descriptor can be
  /// closed afterwards.
  ///
  /// Errors: `zero_size`; `misaligned` unless the offset is a multiple of the page size;
  /// `invalid_argument` for what is not a regular file (a memfd is one), and for an `unsealed` that
  /// is not a named value; `out_of_bounds` for a file that ends before the log does; `access_denied`
  /// for a file whose owner could remove pages of it, unless that is accepted (see Unsealed; a log
  /// can't be guarded, and `guard` refuses it); `os`.
  /// A few system calls.
  [[nodiscard]] static Result<VhostUserLog> map(const VhostUserLogArea& area,
                                                Unsealed unsealed = Unsealed::refuse);

  /// Whether there is a log.
  [[nodiscard]] bool is_on() const noexcept { return bytes_ != nullptr; }
  /// How many bytes of bits it has; 0 when there is no log.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  /// Whether it has a bit for every page of the range. An empty range has no page.
  [[nodiscard]] bool covers(GuestRange range) const noexcept {
    if (range.empty()) return true;
    const auto last = range.last();
    return last && last->value() / page_size / 8 < size_;
  }

  /// Notes that the range was written: call it after the write. Does nothing without a log.
  ///
  /// Errors, and nothing is marked: `overflow` for a range that passes 2^64; `out_of_bounds` for one
  /// that ends beyond the log. An atomic OR for every eight pages.
  [[nodiscard]] Result<void> mark(GuestRange range) const noexcept {
    if (!is_on() || range.empty()) return {};
    if (!covers(range)) [[unlikely]]
      return refuse(range);
    const std::uint64_t first = range.base.value() / page_size;
    const std::uint64_t last = (range.base.value() + (range.size - 1)) / page_size;
    for (std::uint64_t byte = first / 8; byte <= last / 8; ++byte) {
      unsigned bits = 0xff;
      if (byte == first / 8) bits &= 0xffU << first % 8;
      if (byte == last / 8) bits &= 0xffU >> (7 - last % 8);
      __atomic_fetch_or(bytes_ + byte, static_cast<unsigned char>(bits), __ATOMIC_RELEASE);
    }
    return {};
  }

  /// Takes out which pages of the range, which ends at 2^64 where it passes that, were written since
  /// the last call, and calls `written(GuestRange)` for each run of them within a word of 64 pages:
  /// read the pages after this returns. Neither pages beyond the log nor those of others in the same
  /// word are touched. An atomic exchange for every 64 pages of which any was written. Allocates
  /// nothing.
  template <typename Written>
  void take(GuestRange range, Written written) const {
    if (!is_on() || range.empty()) return;
    const std::uint64_t pages = size_ * 8;
    const std::uint64_t first = range.base.value() / page_size;
    if (first >= pages) return;
    const std::uint64_t last = detail::min_of(pages - 1, detail::last_within(range) / page_size);
    for (std::uint64_t word = first / 64; word <= last / 64; ++word) {
      std::uint64_t mask = ~std::uint64_t{0};
      if (word == first / 64) mask &= ~std::uint64_t{0} << first % 64;
      if (word == last / 64) mask &= ~std::uint64_t{0} >> (63 - last % 64);
      // The mapping is of whole pages, so the last word is there, though the log may end within it.
      auto* const bits = reinterpret_cast<std::uint64_t*>(bytes_) + word;
      if ((__atomic_load_n(bits, __ATOMIC_RELAXED) & mask) == 0) continue;
      // Acquire pairs with mark(): what was written is seen by who reads after this.
      std::uint64_t taken = mask & __atomic_fetch_and(bits, ~mask, __ATOMIC_ACQ_REL);
      while (taken != 0) {
        const auto begin = static_cast<unsigned>(std::countr_zero(taken));
        const auto count = static_cast<unsigned>(std::countr_one(taken >> begin));
        written(GuestRange{.base = GuestAddress((64 * word + begin) * page_size),
                           .size = count * page_size});
        taken &= ~((~std::uint64_t{0} >> (64 - count)) << begin);
      }
    }
  }

 private:
  friend class VhostUserBackendMemory;
  struct Mapping;

  [[gnu::cold]] static Result<void> refuse(GuestRange range) noexcept;

  std::shared_ptr<const Mapping> mapping_;
  unsigned char* bytes_ = nullptr;  // of mapping_
  std::uint64_t size_ = 0;
};

}  // namespace vmspace
