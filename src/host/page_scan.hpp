// SPDX-License-Identifier: Apache-2.0
//
// Which pages of a mapping may hold anything but zeros, without touching any that is absent.
//
// Reading an absent page to find out that it is zero is not free: it allocates a page of a memfd or
// of shared memory, reads a file in, and raises SIGBUS where a hugetlb pool is empty. So the kernel
// is asked. No single call knows everything, and what each one can't see decides which ones are
// asked:
//
//   page tables (PAGEMAP_SCAN since Linux 6.7, else /proc/self/pagemap): what this process has
//     mapped, and its private pages that were swapped out. Not what is in a file or in shared
//     memory and was never touched here.
//   mincore(2): what is in the page cache, or mapped here. Not what was swapped out.
//   SEEK_DATA (lseek(2)): what a file holds, for tmpfs and memfd also what was swapped out. Not
//     what was written through a mapping of a regular file and has not reached its file system yet
//     (a server behind it may be the one that answers); the page cache has that.
//   pread(2) of hugetlbfs: gives zeros for a hole, and allocates no page. It has no SEEK_DATA,
//     and mincore sees only its pages that are mapped here.
//
//                     shared, a file      private, a file                no file, shared   private
//   anonymous pages                                                                        tables
//   shmem             SEEK_DATA           tables, SEEK_DATA              mincore
//   regular file      mincore, SEEK_DATA  tables, mincore, SEEK_DATA
//   hugetlb           pread               tables, pread                  populated         tables
//
// A page is reported if any of them reports it. Where /proc is missing, mincore stands in for the
// tables, and where it can't tell either (the machine has swap, or a sandbox forbids the call) all
// pages are reported: what can't be ruled out is read. hugetlb memory is populated for reading
// first, so that an empty pool is an error and not a signal. Shared hugetlb memory without a file,
// which only forked children can have filled, is always read in this way.

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

/// The first part of [from, end) of a file that is not a hole, as SEEK_DATA sees it; empty, at
/// `end`, when there is none. A file system that does not know of holes says that all is data.
/// Where the kernel can't tell even that, or answers nonsense (a file system may be anybody's
/// program), all counts as data too: a caller that goes from extent to extent always reaches the
/// end. A hole is believed only where the file still has bytes: `if_cut_off` is the error for a
/// file that no longer reaches `end`. Errors: that one; `os`. Two or three system calls.
[[nodiscard]] Result<Extent> next_file_data(const char* operation, Errc if_cut_off, int fd,
                                            std::uint64_t from, std::uint64_t end);

/// Pages that the kernel says are present, asked for window by window.
class PresentPages {
 public:
  enum class Source : std::uint8_t {
    scan,     ///< PAGEMAP_SCAN
    entries,  ///< /proc/self/pagemap, read
    incore,   ///< mincore(2)
    nothing,  ///< unknown: report all of it
  };

  /// Begins with `source`, and moves on to the next one where that can't tell. For pages that can
  /// be swapped out, mincore(2) is believed only while the machine has no swap.
  PresentPages(const std::byte* data, Source source, bool swappable) noexcept
      : data_(data), source_(source), swappable_(swappable) {}

  /// The first of them in [from, end), at multiples of the page size; empty at `end` when there
  /// is none.
  [[nodiscard]] Extent next(std::uint64_t from, std::uint64_t end);
  /// Whether the last answer is knowledge, not caution.
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

/// One pass through a mapping, which must outlive it. What is written meanwhile may or may not be
/// seen.
class PageScan {
 public:
  /// `operation` is what the errors name.
  PageScan(const MemoryMapping& mapping, const char* operation);

  /// The first part of [from, end), multiples of the page size, that may hold anything but zeros;
  /// empty, at `end`, when there is none. Everything before it reads as zeros and need not be
  /// touched; reading the part allocates no page, except as described above. `from` must ascend
  /// from call to call. Errors: `out_of_bounds` for a file that was truncated; `os`: EFAULT or
  /// ENOMEM for a hugetlb page that could only be examined by touching it, while the pool is empty;
  /// EIO for one that is broken. A few system calls for every few thousand pages and for every
  /// extent.
  [[nodiscard]] Result<Extent> next(std::uint64_t from, std::uint64_t end);

 private:
  [[nodiscard]] Result<Extent> next_in_hugetlbfs(std::uint64_t from, std::uint64_t end);
  [[nodiscard]] Result<Extent> populate(Extent part) const;

  const MemoryMapping& mapping_;
  const char* operation_;
  std::optional<PresentPages> tables_;
  std::optional<PresentPages> cache_;
  bool in_file_ = false;  ///< there is a file, whose data need not be mapped here
  std::vector<std::byte> buffer_;
};

}  // namespace vmspace::detail
