// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/dirty_bitmap.hpp"

#include <linux/membarrier.h>

#include <algorithm>
#include <array>
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

/// Appends the runs of set bits, as ranges of bytes. finish() cuts the last one off where the region
/// ends.
class RangeBuilder {
 public:
  RangeBuilder(std::uint64_t size, std::vector<DirtyRange>& ranges)
      : size_(size), ranges_(ranges) {}

  /// So that adding `words` words does not allocate. Of `total` words, `seen` were added or clean:
  /// grows to what all would take if the rest were like them, so that ranges are seldom copied.
  void make_room(std::size_t words, std::size_t seen, std::size_t total) {
    const std::size_t most = 32 * words;  // every other bit of a word
    const std::size_t size = ranges_.size();
    const std::size_t capacity = ranges_.capacity();
    if (capacity - size >= most) return;
    const std::size_t expected = (size + size / 8) * total / (seen + 1);
    // For two, so that a range which grows from word to word needs no more.
    ranges_.reserve(std::max(size + 2 * most, std::clamp(expected, 2 * capacity, 16 * capacity)));
  }

  void add(std::uint64_t word, std::uint64_t bits) {
    const std::uint64_t base = 64 * word * DirtyBitmap::page_size;
    if ((bits & 1) != 0 && !ranges_.empty() &&
        ranges_.back().offset + ranges_.back().size == base) {
      const auto count = static_cast<unsigned>(std::countr_one(bits));
      ranges_.back().size += count * DirtyBitmap::page_size;
      bits = clear_below(bits, count);
    }
    while (bits != 0) {
      const auto first = static_cast<unsigned>(std::countr_zero(bits));
      const auto count = static_cast<unsigned>(std::countr_one(bits >> first));
      ranges_.push_back({.offset = base + first * DirtyBitmap::page_size,
                         .size = count * DirtyBitmap::page_size});
      bits = clear_below(bits, first + count);
    }
  }

  void finish() {
    if (ranges_.empty()) return;
    DirtyRange& last = ranges_.back();
    last.size = std::min(last.size, size_ - last.offset);
  }

 private:
  static std::uint64_t clear_below(std::uint64_t bits, unsigned bit) {
    return bit == 64 ? 0 : bits & (~std::uint64_t{0} << bit);
  }

  std::uint64_t size_;
  std::vector<DirtyRange>& ranges_;
};

/// Words that are looked at, and then taken, together: a line of the cache.
constexpr std::size_t words_per_block = 8;

/// The first of [from, end), blocks apart from `from`, whose block has a bit set; `end` when there is
/// none. One test a block, which is predicted where most are clean.
std::size_t next_dirty(const std::atomic<std::uint64_t>* words, std::size_t from, std::size_t end) {
  const auto load = [&](std::size_t i) { return words[i].load(std::memory_order_relaxed); };
  // Written out, because compilers don't unroll loops over atomics.
  const auto four = [&](std::size_t i) {
    return (load(i) | load(i + 1)) | (load(i + 2) | load(i + 3));
  };
  while (end - from >= words_per_block && (four(from) | four(from + 4)) == 0)
    from += words_per_block;
  if (end - from >= words_per_block) return from;
  return std::all_of(words + from, words + end, [](const auto& word) { return word == 0; }) ? end
                                                                                            : from;
}

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
  builder.finish();
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
  const auto count = static_cast<std::size_t>((bitmap.pages() + 63) / 64);
  std::size_t at = next_dirty(words, 0, count);
  if (at == count) return {};  // allocates nothing and needs no barrier in finish()
  std::vector<DirtyRange>& ranges = taken_.emplace_back(Taken{&bitmap, {}}).ranges;
  RangeBuilder builder(bitmap.size(), ranges);
  for (; at < count; at = next_dirty(words, std::min(at + words_per_block, count), count)) {
    // All allocation happens before a bit is cleared.
    builder.make_room(words_per_block, at, count);
    // In three loops: which words are dirty is for no branch to predict, and an exchange waits for
    // all stores before it, those of ranges too.
    std::array<std::size_t, words_per_block> dirty;
    std::array<std::uint64_t, words_per_block> bits;
    std::size_t found = 0;
    for (std::size_t i = at; i < std::min(at + words_per_block, count); ++i) {
      dirty[found] = i;
      found += words[i].load(std::memory_order_relaxed) != 0 ? 1 : 0;
    }
    for (std::size_t i = 0; i < found; ++i)
      bits[i] = words[dirty[i]].exchange(0, std::memory_order_relaxed);
    for (std::size_t i = 0; i < found; ++i)
      builder.add(dirty[i], bits[i]);
  }
  builder.finish();
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
