// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_io.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "host/host_support.hpp"
#include "memory/guest_support.hpp"

namespace vmspace::guest_io_test {
namespace {

using test::at;
using test::contents;
using test::Guest;
using test::page;
using test::pattern;
using test::TrackedGuest;

TEST_F(Guest, DescriptorsFillAndDrainRangesAcrossRegions) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  const auto bytes = pattern(3 * page, 5);
  ASSERT_THAT(memory.write_slice(at(first), bytes), IsOk());
  EXPECT_THAT(write_from_guest(ends[1], memory, {at(first), 3 * page}), IsOkAndHolds(3 * page));
  ASSERT_THAT(memory.fill({at(first), 4 * page}, std::byte{0}), IsOk());
  EXPECT_THAT(read_into_guest(ends[0], memory, {at(first + 7), 3 * page}), IsOkAndHolds(3 * page));
  EXPECT_EQ(contents(memory, first + 7, 3 * page), bytes);
  ASSERT_EQ(write(ends[1], "abc", 3), 3);
  close(ends[1]);
  EXPECT_THAT(read_into_guest(ends[0], memory, {at(first), page}), IsOkAndHolds(3U));
  EXPECT_THAT(read_into_guest(ends[0], memory, {at(first), page}), IsOkAndHolds(0U));
  close(ends[0]);
  const auto bad = read_into_guest(ends[0], memory, {at(first), page});
  ASSERT_THAT(bad, HasError(Errc::os));
  EXPECT_EQ(bad.error().os_errno, EBADF);
  EXPECT_EQ(write_from_guest(-1, memory, {at(first), page}).error().os_errno, EBADF);
}

TEST_F(TrackedGuest, PollingADescriptorWithoutDataMarksNothing) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe2(ends.data(), O_NONBLOCK), 0);
  const GuestRange buffer{at(first), 3 * page};
  EXPECT_EQ(read_into_guest(ends[0], memory, buffer).error().os_errno, EAGAIN);
  EXPECT_TRUE(harvest().empty());
  // What came before the pipe was empty counts, and the read that found it empty does not.
  ASSERT_EQ(write(ends[1], "abc", 3), 3);
  EXPECT_THAT(read_into_guest(ends[0], memory, {at(first), 3}), IsOkAndHolds(3U));
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(first, 1)});
  close(ends[1]);
  EXPECT_THAT(read_into_guest(ends[0], memory, buffer), IsOkAndHolds(0U));  // the end of the file
  EXPECT_TRUE(harvest().empty());
  close(ends[0]);
}

/// A file that direct I/O is done on, with a block on the disk for each page.
class DirectFile {
 public:
  DirectFile() {
    ready_ = writer_.get() >= 0 && direct_.get() >= 0 &&
             posix_fallocate(writer_.get(), 0, 4 * page) == 0;
  }
  [[nodiscard]] bool is_ready() const { return ready_; }
  [[nodiscard]] int writer() const { return writer_.get(); }
  [[nodiscard]] int direct() const { return direct_.get(); }

 private:
  test::TemporaryDirectory directory_;
  std::string path_ = directory_.path() / "file";
  test::OwnedFd writer_{open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
  test::OwnedFd direct_{open(path_.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC)};
  bool ready_ = false;
};

TEST_F(TrackedGuest, WhatDirectIoWritesPastTheEndOfTheFileIsMarked) {
  const DirectFile file;
  if (!file.is_ready()) GTEST_SKIP() << "this file system has no direct I/O";
  ASSERT_EQ(ftruncate(file.writer(), 100), 0);
  ASSERT_EQ(fallocate(file.writer(), FALLOC_FL_KEEP_SIZE, 0, 4 * page), 0);
  ASSERT_THAT(memory.fill({at(first), 4 * page}, std::byte{0xee}), IsOk());
  const auto before = contents(memory, first, 4 * page);
  ASSERT_FALSE(harvest().empty());
  EXPECT_THAT(read_into_guest(file.direct(), memory, {at(first), 2 * page}), IsOkAndHolds(100U));
  const auto after = contents(memory, first, 4 * page);
  const auto dirty = harvest();
  for (std::uint64_t i = 0; i < 4 * page; ++i) {
    if (after[i] == before[i]) continue;
    ASSERT_TRUE(
        std::ranges::any_of(dirty, [&](const GuestRange& r) { return r.contains(at(first + i)); }))
        << "byte " << i;
  }
  EXPECT_EQ(dirty, std::vector<GuestRange>{pages(first, 2)});
}

TEST_F(TrackedGuest, WhatDirectIoWritesBeforeItFailsIsMarked) {
  const DirectFile file;
  if (!file.is_ready()) GTEST_SKIP() << "this file system has no direct I/O";
  // A hole and a page of data, of which a part is asked for.
  ASSERT_EQ(ftruncate(file.writer(), 0), 0);
  ASSERT_EQ(pwrite(file.writer(), pattern(page).data(), page, page), ssize_t{page});
  ASSERT_EQ(fsync(file.writer()), 0);
  ASSERT_THAT(memory.fill({at(first), 2 * page}, std::byte{0xee}), IsOk());
  ASSERT_FALSE(harvest().empty());
  const auto read = read_into_guest(file.direct(), memory, {at(first), page + 100});
  if (read) GTEST_SKIP() << "this file system reads parts of blocks";
  EXPECT_EQ(read.error().os_errno, EINVAL);
  if (memory.read<std::uint8_t>(at(first)) == 0xee) GTEST_SKIP() << "nothing was written";
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(first, 2)});
}

TEST_F(Guest, AnOffsetLeavesTheFilesPositionAlone) {
  const int file = memfd_create("data", MFD_CLOEXEC);
  const auto bytes = pattern(3 * page, 5);
  ASSERT_THAT(memory.write_slice(at(first), bytes), IsOk());
  EXPECT_THAT(write_from_guest(file, memory, {at(first), 3 * page}, {.offset = 100}),
              IsOkAndHolds(3 * page));
  EXPECT_EQ(lseek(file, 0, SEEK_CUR), 0);
  EXPECT_EQ(lseek(file, 0, SEEK_END), static_cast<off_t>(3 * page + 100));
  ASSERT_THAT(memory.fill({at(first), 4 * page}, std::byte{0}), IsOk());
  // Short at the end of the file.
  EXPECT_THAT(read_into_guest(file, memory, {at(first + 7), 3 * page}, {.offset = 200}),
              IsOkAndHolds(3 * page - 100));
  EXPECT_EQ(contents(memory, first + 7, 3 * page - 100),
            (std::vector<std::byte>(bytes.begin() + 100, bytes.end())));
  EXPECT_THAT(read_into_guest(file, memory, {at(first), page}, {.offset = 4 * page}),
              IsOkAndHolds(0U));
  // Linux counts in 63 bits.
  const std::uint64_t limit = std::numeric_limits<std::int64_t>::max();
  EXPECT_THAT(read_into_guest(file, memory, {at(first), page}, {.offset = limit - page + 1}),
              HasError(Errc::overflow));
  EXPECT_THAT(write_from_guest(file, memory, {at(first), 1}, {.offset = ~std::uint64_t{0}}),
              HasError(Errc::overflow));
  close(file);
}

TEST_F(Guest, AnExactTransferSaysHowMuchThereWas) {
  const int file = memfd_create("data", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(file, 2 * page), 0);
  const GuestRange range{at(first), 3 * page};
  const auto whole = read_into_guest(file, memory, {at(first), 2 * page}, {.exact = true});
  EXPECT_THAT(whole, IsOkAndHolds(2 * page));
  for (const auto offset : {std::uint64_t{0}, page, 2 * page}) {
    const auto part = read_into_guest(file, memory, range, {.offset = offset, .exact = true});
    ASSERT_THAT(part, HasError(Errc::os));
    EXPECT_EQ(part.error().os_errno, EIO);
    EXPECT_EQ(part.error().second.first, 2 * page - offset);
  }
  EXPECT_THAT(write_from_guest(file, memory, range, {.offset = 0, .exact = true}),
              IsOkAndHolds(3 * page));
  close(file);
}

/// Interrupts system calls of this thread, which go on waiting unless they are told not to.
class Interruption {
 public:
  Interruption() {
    struct sigaction action {};
    action.sa_handler = [](int) { count = 1; };  // without SA_RESTART
    sigaction(SIGUSR1, &action, &before_);
    count = 0;
  }
  ~Interruption() { sigaction(SIGUSR1, &before_, nullptr); }
  Interruption(const Interruption&) = delete;
  Interruption& operator=(const Interruption&) = delete;

  static inline volatile std::sig_atomic_t count = 0;

 private:
  struct sigaction before_ {};
};

TEST_F(Guest, ASignalEndsACancellableTransferAndNoOther) {
  const Interruption interruption;
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  for (const bool cancellable : {true, false}) {
    std::atomic<bool> done{false};
    const pthread_t waiting = pthread_self();
    std::thread signals([&] {
      // Until one has met the system call; the other transfer is ended by data.
      for (int sent = 0; !done; ++sent) {
        pthread_kill(waiting, SIGUSR1);
        std::this_thread::yield();
        if (!cancellable && sent == 100) {
          EXPECT_EQ(write(ends[1], "abcd", 4), 4);
        }
      }
    });
    const auto read =
        read_into_guest(ends[0], memory, {at(first), 4}, {.cancellable = cancellable});
    done = true;
    signals.join();
    if (cancellable) {
      ASSERT_THAT(read, HasError(Errc::os));
      EXPECT_EQ(read.error().os_errno, EINTR);
    } else {
      EXPECT_THAT(read, IsOkAndHolds(4U));
    }
    EXPECT_GT(Interruption::count, 0);
  }
  close(ends[0]);
  close(ends[1]);
}

TEST_F(TrackedGuest, ASourceFillsRangesPieceByPiece) {
  const auto bytes = pattern(3 * page, 5);
  std::size_t given = 0;
  const GuestSource source = [&](std::span<std::byte> to) -> Result<std::size_t> {
    const std::size_t count = std::min({to.size(), bytes.size() - given, std::size_t{1000}});
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(given), count, to.begin());
    given += count;
    return count;
  };
  EXPECT_THAT(read_into_guest(source, memory, {at(first), 2 * page + 5}),
              IsOkAndHolds(2 * page + 5));
  EXPECT_EQ(contents(memory, first, 2 * page + 5),
            (std::vector<std::byte>(bytes.begin(), bytes.begin() + 2 * page + 5)));
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(first, 3)});
  // It ends before the range does.
  EXPECT_THAT(read_into_guest(source, memory, {at(first), 3 * page}), IsOkAndHolds(page - 5));
}

TEST_F(TrackedGuest, ASourceThatFailsOrLiesEndsTheTransfer) {
  int calls = 0;
  const GuestSource failing = [&](std::span<std::byte>) -> Result<std::size_t> {
    if (++calls == 1) return 8;
    return fail({.code = Errc::corrupt, .operation = "inflate"});
  };
  const auto failed = read_into_guest(failing, memory, {at(first), page});
  ASSERT_THAT(failed, HasError(Errc::corrupt));
  EXPECT_STREQ(failed.error().operation, "inflate");
  // It may have written before.
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(first, 1)});
  const GuestSource lying = [](std::span<std::byte> to) -> Result<std::size_t> {
    return to.size() + 1;
  };
  EXPECT_THAT(read_into_guest(lying, memory, {at(first), page}), HasError(Errc::out_of_bounds));
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(first, 1)});
  const GuestSource throwing = [](std::span<std::byte>) -> Result<std::size_t> { throw 1; };
  EXPECT_THROW(static_cast<void>(read_into_guest(throwing, memory, {at(first), page})), int);
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(first, 1)});
  // No call for what is no memory, or empty.
  EXPECT_THAT(read_into_guest(throwing, memory, {at(0), page}), HasError(Errc::not_found));
  EXPECT_THAT(read_into_guest(throwing, memory, {at(first), 0}), IsOkAndHolds(0U));
}

TEST_F(TrackedGuest, ASinkTakesRangesPieceByPiece) {
  const auto bytes = pattern(3 * page, 6);
  ASSERT_THAT(memory.write_slice(at(first), bytes), IsOk());
  harvest();
  std::vector<std::byte> taken;
  const GuestSink sink = [&](std::span<const std::byte> from) -> Result<std::size_t> {
    const std::size_t count = std::min({from.size(), std::size_t{700}, 2 * page - taken.size()});
    taken.insert(taken.end(), from.begin(), from.begin() + static_cast<std::ptrdiff_t>(count));
    return count;
  };
  EXPECT_THAT(write_from_guest(sink, memory, {at(first), 3 * page}), IsOkAndHolds(2 * page));
  EXPECT_TRUE(std::equal(taken.begin(), taken.end(), bytes.begin()));
  EXPECT_TRUE(harvest().empty());
}

TEST_F(Guest, WithoutASourceOrASinkNothingIsTransferred) {
  EXPECT_THAT(read_into_guest(GuestSource(), memory, {at(first), page}),
              HasError(Errc::invalid_argument));
  EXPECT_THAT(write_from_guest(GuestSink(), memory, {at(first), page}),
              HasError(Errc::invalid_argument));
}

}  // namespace
}  // namespace vmspace::guest_io_test
