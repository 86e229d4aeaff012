// SPDX-License-Identifier: Apache-2.0
//
// Which pages of a mapping may hold something else than zeros, without touching any that is absent.
//
// Reading an absent page to find out that it is zero is not free: it makes a page of a memfd or of
// shared memory, reads a file in, and is SIGBUS where a hugetlb pool is empty. So the kernel is
// asked. No single call knows everything, and what each one can't see decides who is asked:
//
//   page tables (PAGEMAP_SCAN since Linux 6.7, else /proc/self/pagemap): what this process has
//     mapped, and its private pages that were swapped out. Not what is in a file or in shared
//     memory and was never touched here.
//   mincore(2): what is in the page cache, or mapped here. Not what was swapped out.
//   SEEK_DATA (lseek(2)): what a file holds, for tmpfs and memfd also what was swapped out. Not
//     what was written through a mapping of a regular file and its file system has not seen yet (a
//     server behind it may be the one that answers); the page cache has that.
//   pread(2) of hugetlbfs: gives zeros for a hole and makes no page. hugetlbfs has no SEEK_DATA,
//     and mincore sees only its pages that are mapped here.
//
//                     shared, a file      private, a file                no file, shared   private
//   anonymous pages                                                                        tables
//   shmem             SEEK_DATA           tables, SEEK_DATA              mincore
//   regular file      mincore, SEEK_DATA  tables, mincore, SEEK_DATA
//   hugetlb           pread               tables, pread                  populated         tables
//
// A page is reported if any of them reports it. Where /proc is missing mincore stands in for the
// tables, and where it can't tell (the machine has swap, or a sandbox forbids the call) all pages
// are reported: what can't be ruled out is read. Of hugetlb memory that is populated for reading
// first, so that an empty pool is an error and no signal. Shared hugetlb memory without a file,
// which only children that were forked can have filled, is always read in this way.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "vmspace/base/error.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/host/memory_mapping.hpp"

#include "os/descriptor.hpp"
#include "os/system_calls.hpp"

namespace vmspace::detail {

/// A part of a mapping or of a file, in bytes.
struct Extent {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;

  [[nodiscard]] std::uint64_t end() const noexcept { return offset + size; }
  friend bool operator==(const Extent&, const Extent&) = default;
};

/// The first part of [from, end) of a file that is no hole, as SEEK_DATA sees it; empty at `end`
/// when there is none. A file system that knows nothing of holes says that all is data; where the
/// kernel can't even tell that, or tells nonsense (a file system may be anybody's program), so do
/// we: a caller that goes from extent to extent always comes to the end. A hole is believed only
/// where the file still has bytes: `if_cut_off` is the error for one that no longer reaches `end`.
/// Errors: that one; `os`. Two or three system calls.
[[nodiscard]] Result<Extent> next_file_data(const char* operation, Errc if_cut_off, int fd,
                                            std::uint64_t from, std::uint64_t end);

/// Whether `size` bytes, a multiple of 8 and not 0, are all 0.
[[nodiscard]] bool is_zero(const std::byte* bytes, std::size_t size) noexcept;

/// Pages that a call of the kernel knows to be there, asked for window by window.
class PresentPages {
 public:
  enum class Source : std::uint8_t {
    scan,     ///< PAGEMAP_SCAN
    entries,  ///< /proc/self/pagemap, read
    incore,   ///< mincore(2)
    nothing,  ///< nobody knows: all of it
  };

  /// Begins with `source`, and goes on to the next one that can tell. mincore(2) is believed of
  /// pages that can be swapped out only while the machine has no swap.
  PresentPages(const std::byte* data, Source source, bool swappable) noexcept
      : data_(data), source_(source), swappable_(swappable) {}

  /// The first of them in [from, end), at multiples of the page size; empty at `end` when there
  /// is none.
  [[nodiscard]] Extent next(std::uint64_t from, std::uint64_t end);
  /// Whether the last answer came of knowing.
  [[nodiscard]] bool is_certain() const noexcept { return source_ != Source::nothing; }

 private:
  void look(Extent part);
  bool scan_tables(Extent part);
  bool read_tables(Extent part);
  bool ask_incore(Extent part);
  void add(std::uint64_t offset, std::uint64_t size);

  const std::byte* data_;
  Source source_;
  bool swappable_;
  Descriptor pagemap_;
  Extent window_;  ///< what `found_` is about
  std::vector<Extent> found_;
  std::size_t at_ = 0;
};

/// Goes once through a mapping, which outlives it. What is written meanwhile may be seen or not.
class PageScan {
 public:
  /// `operation` is whose errors they are.
  PageScan(const MemoryMapping& mapping, const char* operation);

  /// The first part of [from, end), multiples of the page size, that may hold something else than
  /// zeros; empty at `end` when there is none. Everything before it reads as zeros and need not be
  /// touched; reading the part makes no page that is not there, except as said above. Calls come
  /// with ascending `from`. Errors: `out_of_bounds` for a file that was cut off; `os`: EFAULT,
  /// ENOMEM for a hugetlb page that only touching could tell about while the pool is empty; EIO for
  /// one that is broken. A few system calls for every few thousand pages and every extent.
  [[nodiscard]] Result<Extent> next(std::uint64_t from, std::uint64_t end);

 private:
  [[nodiscard]] Result<Extent> next_in_hugetlbfs(std::uint64_t from, std::uint64_t end);
  [[nodiscard]] Result<Extent> populate(Extent part) const;

  const MemoryMapping& mapping_;
  const char* operation_;
  std::optional<PresentPages> tables_;
  std::optional<PresentPages> cache_;
  bool in_file_ = false;  ///< there is a file beneath, whose data may not be mapped here
  std::vector<std::byte> buffer_;
};

}  // namespace vmspace::detail
