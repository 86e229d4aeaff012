// SPDX-License-Identifier: Apache-2.0
//
// Which pages of a region a live snapshot still has to copy, and whose turn it is.

#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace vmspace::detail {

/// Whole pages of a region, in bytes from its beginning.
struct RegionPages {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;  ///< 0: none

  [[nodiscard]] std::uint64_t end() const noexcept { return offset + size; }
};

/// Each page is waiting, being copied by the one thread that took it, or done with.
///
/// Threads: all calls may be made at the same time. The lock is never held while guest memory is
/// touched.
class LivePages {
 public:
  /// All of a region of `size` bytes in pages of `page` is done with. Runs end where `host`, the
  /// address of its beginning, and their offset make a multiple of a huge page.
  LivePages(const std::byte* host, std::uint64_t size, std::uint64_t page);

  /// Lets pages wait; whole pages.
  void add(RegionPages run);

  enum class Turn {
    mine,    ///< it was waiting, and is being copied by the caller now
    others,  ///< another copies it, and has not called finish() yet
    done,    ///< there is nothing to copy
  };
  /// Takes the page that has this byte, unless it is another's or done with.
  [[nodiscard]] Turn take(std::uint64_t offset);
  /// Takes the first waiting pages of [from, end), up to the next multiple of a huge page. O(pages
  /// skipped / 64).
  [[nodiscard]] RegionPages take_next(std::uint64_t from, std::uint64_t end);
  /// What take() or take_next() gave has been copied.
  void finish(RegionPages run);
  /// Waits until nobody copies any of [from, end), or close().
  void wait_finished(std::uint64_t from, std::uint64_t end);
  /// Ends all waiting for ever.
  void close();

  [[nodiscard]] std::uint64_t page() const noexcept { return page_; }
  /// The pages that have any of these bytes.
  [[nodiscard]] RegionPages whole_pages(std::uint64_t from, std::uint64_t end) const noexcept {
    const std::uint64_t first = from / page_ * page_;
    return {first, (end + page_ - 1) / page_ * page_ - first};
  }

 private:
  using Bits = std::vector<std::uint64_t>;

  /// The first set bit from `first` on, `end` if there is none below it.
  [[nodiscard]] static std::uint64_t find(const Bits& bits, std::uint64_t first,
                                          std::uint64_t end) noexcept;
  static void set(Bits& bits, std::uint64_t first, std::uint64_t end, bool value) noexcept;

  std::uint64_t host_;
  std::uint64_t page_;
  std::mutex mutex_;
  std::condition_variable finished_;
  bool closed_ = false;
  Bits waiting_;
  Bits copying_;
};

}  // namespace vmspace::detail
