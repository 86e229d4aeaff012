// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/dirty_bitmap.hpp"

#include <linux/membarrier.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "vmspace/base/try.hpp"

#include "os/full_fence.hpp"
#include "os/system_calls.hpp"

namespace vmspace {

namespace {

/// Makes every running thread of this process pass a full fence.
Result<void> fence_writers(const char* operation) {
  detail::full_fence();
  if (detail::kernel().membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0) != 0) {
    return detail::fail_os(operation, {}, "membarrier");
  }
  return {};
}

/// Appends the runs of set bits, as ranges of bytes that end at `size` at the latest.
class RangeBuilder {
 public:
  RangeBuilder(std::uint64_t size, std::vector<DirtyRange>& ranges)
      : size_(size), ranges_(ranges) {}

  /// So that the next add() does not allocate.
  void make_room() {
    constexpr std::size_t most = 32;  // every other bit of a word
    if (ranges_.capacity() - ranges_.size() < most) {
      ranges_.reserve(std::max(2 * ranges_.capacity(), ranges_.size() + most));
    }
  }

  void add(std::uint64_t word, std::uint64_t bits) {
    while (bits != 0) {
      const auto first = static_cast<unsigned>(std::countr_zero(bits));
      const auto count = static_cast<unsigned>(std::countr_one(bits >> first));
      add_pages(64 * word + first, count);
      if (first + count == 64) return;
      bits &= ~std::uint64_t{0} << (first + count);
    }
  }

 private:
  void add_pages(std::uint64_t page, std::uint64_t count) {
    const std::uint64_t offset = page * DirtyBitmap::page_size;
    const std::uint64_t size = std::min(count * DirtyBitmap::page_size, size_ - offset);
    if (!ranges_.empty() && ranges_.back().offset + ranges_.back().size == offset) {
      ranges_.back().size += size;
    } else {
      ranges_.push_back({.offset = offset, .size = size});
    }
  }

  std::uint64_t size_;
  std::vector<DirtyRange>& ranges_;
};

}  // namespace

DirtyBitmap::DirtyBitmap(std::uint64_t size) noexcept : state_(0), size_(size) {
  if (detail::kernel().membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0) != 0) {
    state_.store(fence_first, std::memory_order_relaxed);
  }
}

Result<void> DirtyBitmap::enable() {
  const std::lock_guard lock(switching_);
  if (is_enabled()) return {};
  const auto words = static_cast<std::size_t>((pages() + 63) / 64);
  if (!words_) {
    words_ = std::make_unique<Word[]>(words);
  } else {
    for (std::size_t i = 0; i < words; ++i)
      words_[i].store(0, std::memory_order_relaxed);
  }
  const std::uintptr_t off = state_.load(std::memory_order_relaxed);
  // Release: who sees the pointer sees the words constructed.
  state_.store(reinterpret_cast<std::uintptr_t>(words_.get()) | off, std::memory_order_release);
  if (off == fence_first) {
    detail::full_fence();
    return {};
  }
  if (auto ok = fence_writers("DirtyBitmap::enable"); !ok) {
    state_.store(off, std::memory_order_relaxed);
    return ok;
  }
  return {};
}

void DirtyBitmap::disable() noexcept {
  const std::lock_guard lock(switching_);
  state_.store(state_.load(std::memory_order_relaxed) & fence_first, std::memory_order_relaxed);
}

void DirtyBitmap::mark_range(std::uint64_t offset, std::uint64_t size) noexcept {
  std::uintptr_t state = state_.load(std::memory_order_acquire);
  if ((state & fence_first) != 0) {
    detail::full_fence();
    state = state_.load(std::memory_order_acquire);
  }
  Word* const words = words_in(state);
  if (words == nullptr || size == 0 || offset >= size_) return;
  const std::uint64_t first = offset / page_size;
  const std::uint64_t last = (offset + (std::min(size, size_ - offset) - 1)) / page_size;
  for (std::uint64_t page = first; page <= last;) {
    const std::uint64_t bit = page % 64;
    const std::uint64_t count = std::min(64 - bit, last - page + 1);
    const std::uint64_t bits = (~std::uint64_t{0} >> (64 - count)) << bit;
    Word& word = words[page / 64];
    if ((word.load(std::memory_order_relaxed) & bits) != bits) {
      word.fetch_or(bits, std::memory_order_relaxed);
    }
    page += count;
  }
}

Result<std::vector<DirtyRange>> DirtyBitmap::harvest() {
  DirtyHarvest harvest;
  const auto taken = harvest.take(*this);
  std::vector<DirtyRange> ranges(taken.begin(), taken.end());
  VMSPACE_TRY_IN("DirtyBitmap::harvest", harvest.finish());
  return ranges;
}

std::vector<DirtyRange> DirtyBitmap::peek() const {
  const Word* const words = words_in(state_.load(std::memory_order_acquire));
  if (words == nullptr) return {};
  std::vector<DirtyRange> ranges;
  RangeBuilder builder(size_, ranges);
  for (std::uint64_t i = 0; i < (pages() + 63) / 64; ++i) {
    builder.add(i, words[i].load(std::memory_order_relaxed));
  }
  return ranges;
}

Result<void> DirtyBitmap::merge(std::uint64_t offset, std::span<const std::uint64_t> bits,
                                std::uint64_t unit) {
  constexpr const char* operation = "DirtyBitmap::merge";
  if (offset % page_size != 0) {
    return fail({.code = Errc::misaligned,
                 .operation = operation,
                 .first = Operand::size(offset),
                 .second = Operand::size(page_size),
                 .reason = "the offset must be a multiple of 4096"});
  }
  if (!std::has_single_bit(unit) || unit < page_size) {
    return fail({.code = Errc::bad_alignment,
                 .operation = operation,
                 .first = Operand::size(unit),
                 .reason = "the unit must be a power of two and at least 4096"});
  }
  while (!bits.empty() && bits.back() == 0)
    bits = bits.first(bits.size() - 1);
  if (bits.empty()) return {};
  const std::uint64_t rest = offset < size_ ? size_ - offset : 0;
  const std::uint64_t units = rest / unit + (rest % unit != 0 ? 1 : 0);
  const std::uint64_t needed =
      64 * (bits.size() - 1) + static_cast<std::uint64_t>(std::bit_width(bits.back()));
  if (needed > units) {
    return fail({.code = Errc::out_of_bounds,
                 .operation = operation,
                 .first = Operand::number(needed),
                 .second = Operand::number(units),
                 .reason = "the log has a set bit past the end of the region"});
  }
  for (std::size_t i = 0; i < bits.size(); ++i) {
    for (std::uint64_t word = bits[i]; word != 0;) {
      const auto first = static_cast<unsigned>(std::countr_zero(word));
      const auto count = static_cast<unsigned>(std::countr_one(word >> first));
      const std::uint64_t begin = (64 * i + first) * unit;  // below `rest`, as all that follows
      const std::uint64_t whole_units = (rest - begin) / unit;
      mark_range(offset + begin, count > whole_units ? rest - begin : count * unit);
      word &= ~((~std::uint64_t{0} >> (64 - count)) << first);
    }
  }
  return {};
}

DirtyHarvest::~DirtyHarvest() {
  for (const Taken& taken : taken_) {
    for (const DirtyRange& range : taken.ranges)
      taken.bitmap->mark(range.offset, range.size);
  }
}

std::span<const DirtyRange> DirtyHarvest::take(DirtyBitmap& bitmap) {
  using Word = DirtyBitmap::Word;
  Word* const words = DirtyBitmap::words_in(bitmap.state_.load(std::memory_order_acquire));
  if (words == nullptr) return {};
  const auto is_clean = [](const Word& word) { return word.load(std::memory_order_relaxed) == 0; };
  const auto count = static_cast<std::size_t>((bitmap.pages() + 63) / 64);
  const Word* const first = std::find_if_not(words, words + count, is_clean);
  if (first == words + count) return {};  // allocates nothing and needs no barrier in finish()
  std::vector<DirtyRange>& ranges = taken_.emplace_back(Taken{&bitmap, {}}).ranges;
  RangeBuilder builder(bitmap.size(), ranges);
  for (auto i = static_cast<std::size_t>(first - words); i < count; ++i) {
    if (is_clean(words[i])) continue;
    builder.make_room();  // all allocation happens before a bit is cleared
    builder.add(i, words[i].exchange(0, std::memory_order_relaxed));
  }
  return ranges;
}

Result<void> DirtyHarvest::finish() {
  detail::full_fence();
  const bool needed = std::ranges::any_of(
      taken_, [](const Taken& taken) { return !taken.bitmap->writers_fence(); });
  if (needed) VMSPACE_TRY(fence_writers("DirtyHarvest::finish"));
  taken_.clear();
  return {};
}

}  // namespace vmspace
