// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_io.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "host/host_support.hpp"
#include "memory/guest_support.hpp"

namespace vmspace {
namespace {

using testing::at;
using testing::contents;
using testing::Guest;
using testing::page;
using testing::pattern;
using testing::TrackedGuest;

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

}  // namespace
}  // namespace vmspace
