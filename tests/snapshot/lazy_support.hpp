// SPDX-License-Identifier: Apache-2.0
//
// What the tests of LazyRestore share: a source whose contents follow from the address, and which
// fails, or waits, where a test says so.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/snapshot/lazy_restore.hpp"
#include "vmspace/snapshot/page_source.hpp"

namespace vmspace::test {

inline constexpr std::uint64_t source_page = 4096;

/// What the guest had at an address that is a multiple of 8, in a page that is not zeros.
inline std::uint64_t word_at(std::uint64_t address) {
  return (address + 1) * 0x9e37'79b9'7f4a'7c15;
}

/// Has word_at() everywhere, but for pages that `is_zero` names.
class WordSource : public PageSource {
 public:
  Result<void> read(GuestAddress at, std::span<std::byte> to) override {
    ++reads;
    bytes_read += to.size();
    EXPECT_TRUE(at.is_aligned(source_page));
    EXPECT_EQ(to.size() % source_page, 0U);
    if (before_read) before_read(at, to.size());
    for (std::uint64_t i = 0; i < to.size(); i += source_page) {
      const std::uint64_t address = at.value() + i;
      if (fails && fails(address)) {
        return fail({.code = Errc::corrupt,
                     .operation = "WordSource::read",
                     .first = Operand::address(address),
                     .reason = "this page can't be read"});
      }
      fill(address, to.subspan(i, source_page));
    }
    return {};
  }
  Result<GuestRange> next_data(GuestRange range) override {
    if (!finds_holes) return range;
    std::uint64_t at = range.base.value();
    const std::uint64_t end = at + range.size;
    while (at < end && is_zero(at))
      at += source_page;
    const std::uint64_t begin = at;
    while (at < end && !is_zero(at))
      at += source_page;
    return GuestRange{GuestAddress(begin), at - begin};
  }

  std::function<bool(std::uint64_t page)> is_zero = [](std::uint64_t) { return false; };
  std::function<bool(std::uint64_t page)> fails;
  std::function<void(GuestAddress at, std::size_t size)> before_read;
  bool finds_holes = false;
  std::atomic<std::uint64_t> reads{0};
  std::atomic<std::uint64_t> bytes_read{0};

 private:
  void fill(std::uint64_t address, std::span<std::byte> to) const {
    if (is_zero(address)) {
      std::memset(to.data(), 0, to.size());
      return;
    }
    for (std::uint64_t i = 0; i < to.size(); i += 8) {
      const std::uint64_t word = word_at(address + i);
      std::memcpy(to.data() + i, &word, 8);
    }
  }
};

/// Holds calls up until it is opened.
class Gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return is_open_; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }
  /// Waits until so many calls have come.
  void wait_for(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  bool is_open_ = false;
};

/// Whether the page holds what the source has. Plain loads, one word after another.
inline bool holds_words(const std::byte* bytes, std::uint64_t address, bool zero = false) {
  const auto* const words = reinterpret_cast<const volatile std::uint64_t*>(bytes);
  for (std::uint64_t i = 0; i < source_page / 8; ++i) {
    if (words[i] != (zero ? 0 : word_at(address + 8 * i))) return false;
  }
  return true;
}

/// All of the memory is what the source has.
inline void expect_restored(const GuestMemory& memory, const WordSource& source) {
  for (const auto& region : memory.regions()) {
    for (std::uint64_t at = 0; at < region->size(); at += source_page) {
      const std::uint64_t address = region->base().value() + at;
      ASSERT_TRUE(holds_words(region->host_base() + at, address, source.is_zero(address)))
          << std::hex << address;
    }
  }
}

inline std::uint64_t settled(const LazyRestoreStatistics& s) {
  return s.demand + s.working_set + s.background + s.zero + s.discarded + s.lost;
}

/// A restore that has to start; skips the test where this machine can't.
#define START_RESTORE_OR_SKIP(name, ...)                                         \
  auto started_##name = LazyRestore::start(__VA_ARGS__);                         \
  if (!started_##name && (started_##name.error().code == Errc::unsupported ||    \
                          started_##name.error().code == Errc::access_denied)) { \
    GTEST_SKIP() << started_##name.error().message();                            \
  }                                                                              \
  ASSERT_TRUE(started_##name.has_value()) << started_##name.error().message();   \
  LazyRestore name = *std::move(started_##name)

inline constexpr std::chrono::seconds long_enough{60};

}  // namespace vmspace::test
