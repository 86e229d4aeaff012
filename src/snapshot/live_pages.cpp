// SPDX-License-Identifier: Apache-2.0

#include "snapshot/live_pages.hpp"

#include <algorithm>
#include <bit>

namespace vmspace::detail {

namespace {

constexpr std::uint64_t huge_page = std::uint64_t{2} << 20;
constexpr std::uint64_t word_bits = 64;

}  // namespace

LivePages::LivePages(const std::byte* host, std::uint64_t size, std::uint64_t page)
    : host_(reinterpret_cast<std::uintptr_t>(host)),
      page_(page),
      waiting_((size / page + word_bits - 1) / word_bits),
      copying_(waiting_.size()) {}

std::uint64_t LivePages::find(const Bits& bits, std::uint64_t first, std::uint64_t end) noexcept {
  while (first < end) {
    const std::uint64_t rest = bits[first / word_bits] >> (first % word_bits);
    if (rest != 0) {
      return std::min(end, first + static_cast<std::uint64_t>(std::countr_zero(rest)));
    }
    first = (first / word_bits + 1) * word_bits;
  }
  return end;
}

void LivePages::set(Bits& bits, std::uint64_t first, std::uint64_t end, bool value) noexcept {
  while (first < end) {
    const std::uint64_t begin = first % word_bits;
    const std::uint64_t count = std::min(end - first, word_bits - begin);
    const std::uint64_t mask = (~std::uint64_t{0} >> (word_bits - count)) << begin;
    std::uint64_t& word = bits[first / word_bits];
    word = value ? word | mask : word & ~mask;
    first += count;
  }
}

void LivePages::add(RegionPages run) {
  const std::lock_guard lock(mutex_);
  set(waiting_, run.offset / page_, run.end() / page_, true);
}

LivePages::Turn LivePages::take(std::uint64_t offset) {
  const std::uint64_t page = offset / page_;
  const std::uint64_t bit = std::uint64_t{1} << (page % word_bits);
  const std::lock_guard lock(mutex_);
  if ((copying_[page / word_bits] & bit) != 0) return Turn::others;
  if ((waiting_[page / word_bits] & bit) == 0) return Turn::done;
  waiting_[page / word_bits] &= ~bit;
  copying_[page / word_bits] |= bit;
  return Turn::mine;
}

RegionPages LivePages::take_next(std::uint64_t from, std::uint64_t end) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t first = find(waiting_, from / page_, end / page_);
  if (first * page_ >= end) return {end, 0};
  const std::uint64_t step = std::max(page_, huge_page);
  const std::uint64_t to_boundary = step - ((host_ + first * page_) & (step - 1));
  const std::uint64_t most = std::min(end / page_, first + to_boundary / page_);
  std::uint64_t last = first;
  while (last < most && (waiting_[last / word_bits] >> (last % word_bits) & 1) != 0)
    ++last;
  set(waiting_, first, last, false);
  set(copying_, first, last, true);
  return {first * page_, (last - first) * page_};
}

void LivePages::finish(RegionPages run) {
  {
    const std::lock_guard lock(mutex_);
    set(copying_, run.offset / page_, run.end() / page_, false);
  }
  finished_.notify_all();
}

void LivePages::wait_finished(std::uint64_t from, std::uint64_t end) {
  std::unique_lock lock(mutex_);
  finished_.wait(
      lock, [&] { return closed_ || find(copying_, from / page_, end / page_) * page_ >= end; });
}

void LivePages::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  finished_.notify_all();
}

}  // namespace vmspace::detail
