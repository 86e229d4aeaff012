// SPDX-License-Identifier: Apache-2.0
//
// What the tests of live snapshots share: guests of every kind of memory, and writers that stamp their
// pages.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <ostream>
#include <shared_mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/live_snapshot.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/host_support.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::test {

/// A kind of memory.
struct Kind {
  const char* name;
  BackingSpec backing;
  bool hugepages = false;
  std::uint64_t hugetlb_pages = 0;  ///< of 2 MiB that it takes, restored and all

  friend std::ostream& operator<<(std::ostream& out, const Kind& kind) { return out << kind.name; }
};

inline GuestMemory guest_of(const Kind& kind, std::uint64_t size) {
  auto description = AddressSpaceRegion::make({.name = "ram",
                                               .base = GuestAddress(0x1'0000'0000),
                                               .size = size,
                                               .backing = kind.backing,
                                               .protection = Protection::read_write,
                                               .huge_pages = kind.hugepages});
  VMSPACE_EXPECT_OK(description);
  auto mapped = MemoryRegion::map(*description);
  VMSPACE_EXPECT_OK(mapped);
  auto memory = GuestMemory::from_regions({*mapped});
  VMSPACE_EXPECT_OK(memory);
  return *memory;
}

inline GuestAddress base_of(const GuestMemory& memory) {
  return memory.regions().front()->base();
}

/// Threads that write numbers to all pages of a region as fast as they can, each in its own place of a
/// page and each number larger than the one before, until they are destroyed.
class Stampers {
 public:
  static constexpr std::size_t threads = 3;
  using Stamps = std::array<std::vector<std::uint64_t>, threads>;

  /// They write to the first `pages` pages until widen().
  Stampers(const GuestMemory& memory, std::uint64_t pages) : memory_(memory), pages_(pages) {
    const std::uint64_t all = memory.regions().front()->size() / page;
    for (std::size_t i = 0; i < threads; ++i) {
      last_[i].resize(all);
      threads_.emplace_back([this, i] { run(i); });
    }
  }
  Stampers(const Stampers&) = delete;
  Stampers& operator=(const Stampers&) = delete;
  ~Stampers() {
    stop_ = true;
    for (std::thread& thread : threads_)
      thread.join();
  }

  /// All pages from now on.
  void widen() { pages_ = last_[0].size(); }
  /// Waits until so many more stamps have been written.
  void wait_for(std::uint64_t stamps) const {
    const std::uint64_t until = written_ + stamps;
    while (written_ < until)
      std::this_thread::yield();
  }
  /// Nobody writes until the result is destroyed.
  [[nodiscard]] auto pause() {
    paused_ = true;
    std::unique_lock lock(gate_);
    paused_ = false;
    return lock;
  }
  /// What has been written to each page; while paused.
  [[nodiscard]] const Stamps& stamps() const { return last_; }

 private:
  void run(std::size_t self) {
    std::uint64_t random = self + 1;
    for (std::uint64_t stamp = 1; !stop_; ++stamp) {
      while (paused_)
        std::this_thread::yield();
      const std::shared_lock lock(gate_);
      random = random * 6364136223846793005U + 1442695040888963407U;
      const std::uint64_t index = (random >> 33) % pages_;
      const auto address = base_of(memory_).value() + index * page + (self * 1024 + 8);
      if (!memory_.write(GuestAddress(address), stamp)) std::abort();
      last_[self][index] = stamp;
      written_.fetch_add(1, std::memory_order_relaxed);
    }
  }

  const GuestMemory& memory_;
  std::atomic<std::uint64_t> pages_;
  std::atomic<bool> stop_ = false;
  std::atomic<bool> paused_ = false;
  std::atomic<std::uint64_t> written_ = 0;
  std::shared_mutex gate_;
  Stamps last_;
  std::vector<std::thread> threads_;
};

/// The stamps that memory holds.
inline Stampers::Stamps stamps_in(const GuestMemory& memory) {
  Stampers::Stamps stamps;
  const std::uint64_t pages = memory.regions().front()->size() / page;
  for (std::size_t thread = 0; thread < Stampers::threads; ++thread) {
    for (std::uint64_t i = 0; i < pages; ++i) {
      const auto address = base_of(memory).value() + i * page + (thread * 1024 + 8);
      const auto stamp = memory.read<std::uint64_t>(GuestAddress(address));
      VMSPACE_EXPECT_OK(stamp);
      stamps[thread].push_back(*stamp);
    }
  }
  return stamps;
}

/// How many pages are newer than the instant, and how many older than what was written before it.
inline std::pair<int, int> newer_and_older(const Stampers::Stamps& snapshot,
                                           const Stampers::Stamps& instant) {
  std::pair<int, int> count{0, 0};
  for (std::size_t thread = 0; thread < Stampers::threads; ++thread) {
    for (std::size_t i = 0; i < instant[thread].size(); ++i) {
      count.first += snapshot[thread][i] > instant[thread][i];
      count.second += snapshot[thread][i] < instant[thread][i];
    }
  }
  return count;
}

inline Result<LiveSnapshot> prepare_live(const GuestMemory& memory, int fd,
                                         LiveSnapshotOptions options = {.peers_stopped = true},
                                         const SnapshotWriterOptions& how = {}) {
  auto writer = SnapshotWriter::create(fd, memory, how);
  if (!writer) return fail(writer.error());
  return LiveSnapshot::prepare(memory, *std::move(writer), options);
}

/// A disk that writes nothing until it is told to, and then takes its time for each call.
class SlowDisk {
 public:
  SlowDisk() {
    held() = true;
    pause() = std::chrono::microseconds(0);
    injector_.table().pwrite = [](int fd, const void* from, std::size_t size, off_t offset) {
      while (held())
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      std::this_thread::sleep_for(pause().load());
      return detail::real_system_calls.pwrite(fd, from, size, offset);
    };
  }
  static void go_on(std::chrono::microseconds each = {}) {
    pause() = each;
    held() = false;
  }
  SlowDisk(const SlowDisk&) = delete;
  SlowDisk& operator=(const SlowDisk&) = delete;
  ~SlowDisk() { go_on(); }

 private:
  static std::atomic<bool>& held() {
    static std::atomic<bool> held;
    return held;
  }
  static std::atomic<std::chrono::microseconds>& pause() {
    static std::atomic<std::chrono::microseconds> pause;
    return pause;
  }

  Injector injector_;
};

/// A live snapshot; skips the test where this kernel or user can't have one.
#define PREPARE_OR_SKIP(name, ...)                                                 \
  auto prepared_##name = prepare_live(__VA_ARGS__);                                \
  if (!prepared_##name && (prepared_##name.error().code == Errc::unsupported ||    \
                           prepared_##name.error().code == Errc::access_denied)) { \
    GTEST_SKIP() << prepared_##name.error().message();                             \
  }                                                                                \
  ASSERT_THAT(prepared_##name, IsOk());                                            \
  LiveSnapshot name = *std::move(prepared_##name)

/// What a snapshot of one region holds, in memory of another kind.
inline GuestMemory restored(const GuestMemory& like, int fd) {
  const MemoryRegion& region = *like.regions().front();
  GuestMemory memory = guest({{region.base().value(), region.size()}});
  VMSPACE_EXPECT_OK(restore_snapshot(memory, fd));
  return memory;
}

}  // namespace vmspace::test
