// SPDX-License-Identifier: Apache-2.0
//
// Which pages of a mapping are there, are zeros, or were written, as extents, without touching any that
// is absent.
//
//   vmspace::PageScan scan(mapping, vmspace::PageQuery::zero);
//   for (std::uint64_t at = 0; at < mapping.size();) {
//     const vmspace::Extent found = VMSPACE_TRY(scan.next(at, mapping.size()));
//     if (found.size != 0) VMSPACE_TRY(mapping.discard(found.offset, found.size));
//     at = found.end();
//   }
//
// Touching an absent page to find out that it is zero is not free: it allocates a page of a memfd or of
// shared memory, reads a file in, and raises SIGBUS where a hugetlb pool is empty. So the kernel is
// asked. No single call knows everything, and what each one can't see decides which ones are asked:
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
//   for PageQuery::data  shared, a file      private, a file             no file, shared   private
//   anonymous pages                                                                        tables
//   shmem                SEEK_DATA           tables, SEEK_DATA           mincore
//   regular file         mincore, SEEK_DATA  tables, mincore, SEEK_DATA
//   hugetlb              pread               tables, pread               populated         tables
//
// A page is reported if any of them reports it. Where /proc is missing, mincore stands in for the
// tables, and where it can't tell either (the machine has swap, or a sandbox forbids the call) all
// pages are reported: what can't be ruled out is read. hugetlb memory is populated for reading
// first, so that an empty pool is an error and not a signal. Shared hugetlb memory without a file,
// which only forked children can have filled, is always read in this way.

#pragma once

#include <cstdint>
#include <memory>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/host/memory_mapping.hpp"

namespace vmspace {

/// A part of a mapping or of a file, in bytes.
struct Extent {
  std::uint64_t offset = 0;  ///< where it begins, in bytes
  std::uint64_t size = 0;    ///< bytes

  /// The offset of the first byte behind it.
  [[nodiscard]] std::uint64_t end() const noexcept { return offset + size; }
  friend bool operator==(const Extent&, const Extent&) = default;
};

/// Which pages a scan looks for.
enum class PageQuery : std::uint8_t {
  /// That may hold anything but zeros, in RAM, swapped out, or in the file; all others read as zeros.
  /// A page of zeros that was written counts, unless telling it apart costs nothing.
  data,
  /// That are present in RAM: what MemoryMapping::residency() counts.
  present,
  /// That are present and hold nothing but zeros, so that discarding them loses nothing while nobody
  /// writes. Reads what is present.
  zero,
  /// That this process has written: through a private mapping, since it was mapped; where a DirtyScan
  /// runs, since its last harvest. Other pages may be reported too. Reports, and forgets nothing.
  written,
};

/// One pass through a mapping, which must outlive it. What changes meanwhile may or may not be seen.
///
/// Threads: one at a time uses an object; others may use the mapping as its const calls allow.
class VMSPACE_EXPORT PageScan {
 public:
  /// Asks the kernel nothing yet. Allocates.
  explicit PageScan(const MemoryMapping& mapping, PageQuery query = PageQuery::data);
  /// Moves leave a scan that may only be assigned to or destroyed.
  PageScan(PageScan&& other) noexcept;
  /// As moving; what this scan knew is dropped.
  PageScan& operator=(PageScan&& other) noexcept;
  ~PageScan();

  /// The first part of [from, end) that consists of such pages; empty, at `end`, when there is none.
  /// Pages are the mapping's; one that lies in the part only in part is reported cut. Neighbouring
  /// extents need not be joined. Calls that ascend are the cheapest. Nothing absent is touched or
  /// allocated, except as described above.
  ///
  /// Errors: `bad_state` of a mapping that was closed, and for PageQuery::written of shared memory that
  /// no DirtyScan watches; `out_of_bounds` past the end of the mapping, for from > end, and for a file
  /// that was truncated; `access_denied` for PageQuery::zero of memory that may not be read;
  /// `unsupported` for memory that something else has mapped, but for PageQuery::data, which then
  /// reports all of it, for PageQuery::written before Linux 6.7 or without /proc, and before 5.14 for
  /// a hugetlb page that could only be examined by touching it; `fault` where reading finds that a
  /// page is gone, under a FaultGuard; `invalid_argument` for an unknown query; `os`: EFAULT or ENOMEM
  /// for such a hugetlb page while the pool is empty; EIO for one that is broken. A few system calls
  /// for every few thousand pages and for every extent; for PageQuery::zero also reads what is present.
  [[nodiscard]] Result<Extent> next(std::uint64_t from, std::uint64_t end);

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace vmspace
