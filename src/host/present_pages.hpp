// SPDX-License-Identifier: Apache-2.0
//
// Pages that are present, as the kernel says, and what files hold.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "vmspace/base/error.hpp"
#include "vmspace/base/result.hpp"
#include "vmspace/host/page_scan.hpp"

#include "os/descriptor.hpp"

namespace vmspace::detail {

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

  /// Begins with `source`, and moves on to the next one where that can't tell. Pages that were swapped
  /// out count if `swapped`; then mincore(2) is believed only while the machine has no swap.
  PresentPages(const std::byte* data, Source source, bool swapped) noexcept
      : data_(data), source_(source), swapped_(swapped) {}

  /// The first of them in [from, end), at multiples of the page size; empty at `end` when there
  /// is none.
  [[nodiscard]] Extent next(std::uint64_t from, std::uint64_t end);
  /// Whether the last answer is knowledge, not caution.
  [[nodiscard]] bool is_certain() const noexcept { return source_ != Source::nothing; }
  /// Why mincore(2), the last that is asked, could not tell: an errno.
  [[nodiscard]] int error() const noexcept { return error_; }

 private:
  void look(Extent part);
  bool scan_tables(Extent part);
  bool read_tables(Extent part);
  bool ask_incore(Extent part);
  void add(std::uint64_t offset, std::uint64_t size);

  const std::byte* data_;
  Source source_;
  bool swapped_;
  int error_ = 0;
  Descriptor pagemap_;
  Extent window_;  ///< what `found_` is about
  std::vector<Extent> found_;
  std::size_t at_ = 0;
  Extent passed_;  ///< what ends with the window, or where it begins, and has none of them
};

}  // namespace vmspace::detail
