// SPDX-License-Identifier: Apache-2.0
//
// Copies of pages on their way to a writer that may be slow: a ring of bounded size.

#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace vmspace::detail {

/// Pages go in from several threads and out on one, in the order in which they were reserved.
///
/// Threads: as described; nothing is allocated after construction.
class PageBuffer {
 public:
  struct Slot {
    std::size_t region;    ///< whose page it is, as the users count regions
    std::uint64_t offset;  ///< of the page in it
    std::uint64_t size;
    std::byte* bytes;

   private:
    friend PageBuffer;
    std::uint64_t taken_ = 0;  ///< of the ring, with what was skipped at its end
    bool is_filled_ = false;
  };

  /// Room for so many bytes, of pages of at least `smallest`. Touches all of it.
  PageBuffer(std::uint64_t bytes, std::uint64_t smallest);

  /// Room for a page, no larger than the buffer; waits for it. Null after close().
  [[nodiscard]] Slot* reserve(std::size_t region, std::uint64_t offset, std::uint64_t size);
  /// What reserve() gave has its bytes.
  void fill(Slot& slot);

  /// The oldest page, if it has its bytes; else null.
  [[nodiscard]] const Slot* front();
  /// Waits for it; null after close(), and after end() when all are out.
  [[nodiscard]] const Slot* wait_front();
  /// The oldest page is out.
  void pop();

  /// No more pages will be reserved.
  void end();
  /// Ends all waiting for ever.
  void close();

 private:
  [[nodiscard]] const Slot* oldest() const noexcept {
    return count_ != 0 && slots_[first_].is_filled_ ? &slots_[first_] : nullptr;
  }

  std::mutex mutex_;
  std::condition_variable room_;
  std::condition_variable filled_;
  std::vector<std::byte> ring_;
  std::uint64_t next_ = 0;  ///< where the next page goes
  std::uint64_t used_ = 0;
  std::vector<Slot> slots_;  ///< a ring as well
  std::size_t first_ = 0;
  std::size_t count_ = 0;
  bool ended_ = false;
  bool closed_ = false;
};

}  // namespace vmspace::detail
