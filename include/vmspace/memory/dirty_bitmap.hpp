// SPDX-License-Identifier: Apache-2.0
//
// Which pages of a region this process has written: one bit a page, for live migration and
// incremental snapshots. KVM keeps such a log of what the guest writes; this one is for what the
// VMM and its devices write.
//
// Why no write is ever missing. A writer stores its data, then loads the bitmap, tests the bit, and
// sets it if it was clear. A harvester clears the bit, then reads the data. Were the writer's test
// to overtake its store, it could see the bit of the last round still set, and the harvester could
// still read the old data. A full fence between the writer's store and test forbids that, and would
// cost more than the write. membarrier(2) makes all running threads of the process pass such a
// fence when the harvester asks: the writer keeps a compiler fence, which costs nothing, and the
// harvester one system call. Either the writer's test came before the barrier, then its data is
// visible after it; or after, then it sees the cleared bit and sets it. The same argument, with the
// pointer in place of the bit, holds for switching on: data whose writer saw tracking off is
// visible to whoever copies after enable() has returned. Where membarrier is missing (seccomp, old
// kernels) writers pay the fence.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "vmspace/base/export.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace {

/// A range of dirty bytes: whole pages, as an offset into a region.
struct DirtyRange {
  std::uint64_t offset;  ///< from the start of the region, in bytes
  std::uint64_t size;    ///< bytes

  friend bool operator==(const DirtyRange&, const DirtyRange&) = default;
};

/// The dirty pages of one region; off until enable().
///
/// Invariant: while tracking is on, a page that was written through marking accessors since the
/// last harvest has its bit set, once the writer's call has returned. A page may be reported
/// although it has not changed: what is marked may be too much, never too little. Any thread may call
/// anything at any time. The bitmap's memory is kept from the first enable() to the destructor,
/// because a writer may be about to set a bit when tracking ends; the caller keeps writers away
/// from the destructor.
class VMSPACE_EXPORT DirtyBitmap {
 public:
  /// Bytes that one bit stands for, on every machine: KVM's smallest page.
  static constexpr std::uint64_t page_size = 4096;

  /// For a region of `size` bytes; off. Asks the kernel for membarrier: the first of a process makes a
  /// system call.
  explicit DirtyBitmap(std::uint64_t size) noexcept;
  DirtyBitmap(const DirtyBitmap&) = delete;
  DirtyBitmap& operator=(const DirtyBitmap&) = delete;
  ~DirtyBitmap() = default;

  /// Bytes that are tracked.
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }
  /// How many pages these are, the last one counted whole; each has a bit. O(1).
  [[nodiscard]] std::uint64_t pages() const noexcept {
    return size_ / page_size + (size_ % page_size != 0 ? 1 : 0);
  }
  /// Whether writes are tracked at this moment. One load.
  [[nodiscard]] bool is_enabled() const noexcept {
    return (state_.load(std::memory_order_relaxed) & ~fence_first) != 0;
  }
  /// Whether writers must fence, because there is no membarrier.
  [[nodiscard]] bool writers_fence() const noexcept {
    return (state_.load(std::memory_order_relaxed) & fence_first) != 0;
  }

  /// Starts tracking with a clear bitmap. Copy the whole region after it returns, harvest after
  /// that. Does nothing when it is on already. Errors: `os` when membarrier fails, and then it
  /// stays off. Allocates one bit a page the first time; one system call.
  [[nodiscard]] Result<void> enable();

  /// Stops tracking; what was marked is forgotten. Does nothing when it is off.
  void disable() noexcept;

  /// Records that the `size` bytes from `offset` were written, after the write. The part outside of
  /// the region is ignored. While off, costs a load and a branch, and not more than that inline.
  [[gnu::always_inline]] void mark(std::uint64_t offset, std::uint64_t size) noexcept {
    // The data must be stored before the state is loaded: by the compiler here, by the processor
    // when the harvester's membarrier says so.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    // Acquire pairs with enable(): the words that a pointer leads to are zeroed.
    const std::uintptr_t state = state_.load(std::memory_order_acquire);
    if (state == 0) [[likely]]
      return;
    mark_in(state, offset, size);
  }

  /// The ranges written since the last harvest (or enable), coalesced and in order; their bits are
  /// clear afterwards. Read the data after this returns: whoever writes from then on marks again.
  /// Empty while off. Errors: `os` when membarrier fails; the bits are set again then.
  /// O(pages / 64 + ranges). One system call, and memory for the ranges; neither for a clean bitmap.
  [[nodiscard]] Result<std::vector<DirtyRange>> harvest();

  /// The ranges that harvest() would give; clears nothing, and promises nothing about concurrent
  /// writers: for displays. O(pages / 64 + ranges).
  [[nodiscard]] std::vector<DirtyRange> peek() const;

  /// Marks what a foreign bitmap says, such as the one of KVM_GET_DIRTY_LOG: bit n of word w stands
  /// for the `unit` bytes from `offset + (64 * w + n) * unit` on. The last unit may reach past the
  /// end. Ignored while off. Errors: `misaligned` when `offset` is not a multiple of page_size;
  /// `bad_alignment` when `unit` is not a power of two of at least page_size; `out_of_bounds` when
  /// the unit of a set bit begins past the end; nothing is marked then. O(words + bytes marked / 256
  /// KiB); allocates nothing.
  [[nodiscard]] Result<void> merge(std::uint64_t offset, std::span<const std::uint64_t> bits,
                                   std::uint64_t unit);

 private:
  friend class DirtyHarvest;

  using Word = std::atomic<std::uint64_t>;

  /// In `state_`: writers fence before they look. Set for good when the object is made; pointers to
  /// words leave the bit free.
  static constexpr std::uintptr_t fence_first = 1;

  static Word* words_in(std::uintptr_t state) noexcept {
    return reinterpret_cast<Word*>(state & ~fence_first);
  }

  [[gnu::always_inline]] void mark_in(std::uintptr_t state, std::uint64_t offset,
                                      std::uint64_t size) noexcept {
    // Compared with what is left of the page, because offset + size may wrap; a size of 0 does.
    const std::uint64_t left = page_size - offset % page_size;
    if ((state & fence_first) != 0 || size - 1 >= left || offset >= size_) [[unlikely]] {
      return mark_range(offset, size);
    }
    const std::uint64_t page = offset / page_size;
    // Test before setting: the line stays shared between the writers' caches while the bit is set.
    Word& word = words_in(state)[page / 64];
    const std::uint64_t bit = std::uint64_t{1} << (page % 64);
    if ((word.load(std::memory_order_relaxed) & bit) == 0) {
      word.fetch_or(bit, std::memory_order_relaxed);
    }
  }

  /// The general case of mark(): several pages, writers that fence, out-of-range arguments.
  void mark_range(std::uint64_t offset, std::uint64_t size) noexcept;

  std::atomic<std::uintptr_t> state_;  ///< 0 is off; else the words, and fence_first
  std::uint64_t size_;
  std::unique_ptr<Word[]> words_;  ///< set once, under the mutex
  std::mutex switching_;           ///< orders enable() and disable()
};

/// A harvest of several bitmaps for the price of one barrier: take() each, then finish() once, then
/// read the data. Until finish() has succeeded, the destructor marks again all that was taken, so
/// that a harvest that fails half-way, also for lack of memory, forgets nothing. One thread uses an
/// object at a time.
class VMSPACE_EXPORT DirtyHarvest {
 public:
  DirtyHarvest() = default;
  DirtyHarvest(const DirtyHarvest&) = delete;
  DirtyHarvest& operator=(const DirtyHarvest&) = delete;
  ~DirtyHarvest();

  /// Takes the bits out of a bitmap; gives its ranges, which are valid until finish(). None while it
  /// is off. O(pages / 64 + ranges); allocates for the ranges, and nothing for a clean bitmap.
  [[nodiscard]] std::span<const DirtyRange> take(DirtyBitmap& bitmap);

  /// Makes the data of every writer that found its bit set visible. Errors: `os`. One system call, or
  /// none when nothing was dirty: a writer that found a bit set which an earlier harvest then cleared
  /// was covered by the barrier of that harvest.
  [[nodiscard]] Result<void> finish();

 private:
  struct Taken {
    DirtyBitmap* bitmap;
    std::vector<DirtyRange> ranges;
  };
  std::vector<Taken> taken_;
};

}  // namespace vmspace
