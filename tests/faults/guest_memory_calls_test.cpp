// SPDX-License-Identifier: Apache-2.0
//
// Every system call that snapshots, dirty tracking and descriptors of guest memory make, failing:
// with each errno, at each place, once.

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <functional>
#include <future>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/guest_io.hpp"
#include "vmspace/memory/load_file.hpp"
#include "vmspace/memory/region_descriptor.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/testing.hpp"

#include "faults/fail_each_call.hpp"
#include "faults/injector.hpp"
#include "memory/guest_support.hpp"

namespace vmspace::guest_memory_calls_test {
namespace {

using test::contents;
using test::fail_each_call;
using test::guest;
using test::Injector;
using test::page;
using test::pattern;
using ::testing::Not;

constexpr std::uint64_t base = 0x10000;

GuestMemory sample() {
  const GuestMemory memory =
      guest({{base, 4 * page, Protection::read_write, MemorySource::shmem}, {2 * base, page}});
  VMSPACE_EXPECT_OK(memory.write_slice(GuestAddress(base + page), pattern(page)));
  return memory;
}

TEST(SnapshotCalls, ASaveThatFailsSaysSoAndLeavesNoSnapshot) {
  const GuestMemory memory = sample();
  const auto before = contents(memory, base, 4 * page);
  const int file = memfd_create("snapshot", MFD_CLOEXEC);
  bool complete = false;
  fail_each_call(
      // Without SEEK_DATA everything is taken for data, and looked at; page tables and mincore(2)
      // stand in for each other.
      {"lseek", "open", "ioctl", "pread of pagemap"},
      [&]() -> Result<void> {
        EXPECT_EQ(ftruncate(file, 0), 0);
        const auto saved = save_snapshot(memory, file);
        complete = saved.has_value();
        if (!saved) {
          EXPECT_FALSE(inspect_snapshot(file));
          return fail(saved.error());
        }
        return {};
      },
      [&] { return complete && restore_snapshot(memory, file).has_value(); });
  EXPECT_EQ(contents(memory, base, 4 * page), before);
  close(file);
}

TEST(SnapshotCalls, ARestoreThatFailsSaysSo) {
  const GuestMemory saved = sample();
  const int file = memfd_create("snapshot", MFD_CLOEXEC);
  ASSERT_THAT(save_snapshot(saved, file), IsOk());
  const GuestMemory memory = sample();
  fail_each_call(
      {"lseek", "open", "ioctl", "pread of pagemap"},
      [&] { return restore_snapshot(memory, file); },
      [&] { return contents(memory, base, 4 * page) == contents(saved, base, 4 * page); },
      [&] {
        ASSERT_TRUE(memory.regions()[0]->mapping().discard(0, 4 * page));
        ASSERT_THAT(memory.fill({GuestAddress(base + 3 * page), page}, std::byte{1}), IsOk());
      });
  // Without huge pages, and with writers that fence.
  fail_each_call(
      {"madvise", "membarrier"},
      [&]() -> Result<void> {
        const auto mapped = map_snapshot(file);
        if (!mapped) return fail(mapped.error());
        return {};
      },
      [] { return true; });
  close(file);
}

/// Cuts a file off before the n-th of the calls that look for its data, by whatever descriptor.
struct Cut {
  static inline int fd = -1;
  static inline int before = 0;
  static inline off_t size = 0;

  static off_t lseek(int file, off_t offset, int whence) {
    struct stat asked {};
    struct stat cut {};
    EXPECT_EQ(fstat(file, &asked) | fstat(fd, &cut), 0);
    if (asked.st_ino == cut.st_ino && whence == SEEK_DATA && before-- == 0) {
      EXPECT_EQ(ftruncate(fd, size), 0);
    }
    return ::lseek(file, offset, whence);
  }
};

TEST(SnapshotCalls, AFileThatIsCutOffDuringARestoreIsCorruptAndNotAHole) {
  const GuestMemory memory = guest({{base, 4 * page}, {2 * base, 4 * page}});
  ASSERT_THAT(memory.write_slice(GuestAddress(base + page), pattern(page)), IsOk());
  const int file = memfd_create("snapshot", MFD_CLOEXEC);
  Cut::fd = file;
  // Looked for are the data of the first region, what follows it, and the second region, which is a
  // hole.
  for (const int before : {0, 1, 2}) {
    for (const std::uint64_t size :
         {std::uint64_t{0}, page, 0x20'0000 + page, 0x20'0000 + 2 * page, 0x40'0000 + 3 * page}) {
      SCOPED_TRACE(std::to_string(before) + ", " + std::to_string(size));
      ASSERT_THAT(save_snapshot(memory, file), IsOk());
      Cut::before = before;
      Cut::size = static_cast<off_t>(size);
      Injector injector;
      injector.table().lseek = Cut::lseek;
      const auto restored = restore_snapshot(memory, file);
      EXPECT_LT(Cut::before, 0) << "not cut off";
      ASSERT_THAT(restored, HasError(Errc::corrupt));
      ASSERT_THAT(memory.write_slice(GuestAddress(base + page), pattern(page)), IsOk());
    }
  }
  close(file);
}

TEST(SnapshotCalls, MemoryThatIsCutOffIsNotSavedAsZeros) {
  const int file = memfd_create("memory", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(file, 4 * page), 0);
  const int snapshot = memfd_create("snapshot", MFD_CLOEXEC);
  const RegionDescriptor described{.range = {GuestAddress(base), 4 * page}, .fd = file};
  const auto memory = map_regions({&described, 1}, Unsealed::accept);
  ASSERT_THAT(memory, IsOk());
  ASSERT_THAT(memory->write_slice(GuestAddress(base + page), pattern(page)), IsOk());
  ASSERT_EQ(ftruncate(file, page), 0);
  const auto saved = save_snapshot(*memory, snapshot);
  ASSERT_THAT(saved, HasError(Errc::out_of_bounds));
  EXPECT_FALSE(inspect_snapshot(snapshot));
  close(snapshot);
  close(file);
}

TEST(SnapshotCalls, AFileThatTakesNoMoreBytesIsAnErrorAndNotALoop) {
  const GuestMemory memory = sample();
  const int file = memfd_create("snapshot", MFD_CLOEXEC);
  Injector injector;
  injector.table().pwrite = [](int, const void*, std::size_t, off_t) -> ssize_t { return 0; };
  const auto saved = save_snapshot(memory, file);
  ASSERT_THAT(saved, HasError(Errc::os));
  EXPECT_EQ(saved.error().os_errno, EIO);
  close(file);
}

TEST(SnapshotCalls, PlacesOfDataThatMakeNoSenseAreNotBelieved) {
  const GuestMemory saved = sample();
  const GuestMemory memory = sample();
  const int file = memfd_create("snapshot", MFD_CLOEXEC);
  Injector injector;
  // Data that begins before where it is looked for, and ends where it begins.
  injector.table().lseek = [](int, off_t, int) -> off_t { return 0; };
  ASSERT_THAT(save_snapshot(saved, file), IsOk());
  ASSERT_THAT(memory.fill({GuestAddress(base), 4 * page}, std::byte{0xee}), IsOk());
  ASSERT_THAT(restore_snapshot(memory, file), IsOk());
  EXPECT_EQ(contents(memory, base, 4 * page), contents(saved, base, 4 * page));
  close(file);
}

TEST(SnapshotCalls, OfARegularFileTheMemoryIsAskedAndNotTheFileSystem) {
  const int file = memfd_create("memory", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(file, 4 * page), 0);
  const int snapshot = memfd_create("snapshot", MFD_CLOEXEC);
  {
    Injector injector;
    // A file system that calls a hole what was written through a mapping and not yet to the file.
    injector.table().fstatfs = [](int fd, struct statfs* out) {
      const int result = detail::real_system_calls.fstatfs(fd, out);
      out->f_type = 0xef53;  // ext4
      return result;
    };
    injector.table().lseek = [](int, off_t, int) -> off_t {
      errno = ENXIO;
      return -1;
    };
    const RegionDescriptor described{.range = {GuestAddress(base), 4 * page}, .fd = file};
    const auto memory = map_regions({&described, 1}, Unsealed::accept);
    ASSERT_THAT(memory, IsOk());
    ASSERT_THAT(memory->write_slice(GuestAddress(base + page), pattern(page)), IsOk());
    EXPECT_EQ(save_snapshot(*memory, snapshot)->stored, page);
  }
  const auto restored = map_snapshot(snapshot);
  ASSERT_THAT(restored, IsOk());
  EXPECT_EQ(contents(*restored, base + page, page), pattern(page));
  close(snapshot);
  close(file);
}

TEST(GuestMemoryCalls, DirtyPagesSurviveAHarvestThatFails) {
  const GuestMemory memory = sample();
  if (memory.regions()[0]->dirty().writers_fence())
    GTEST_SKIP() << "this kernel has no membarrier(2)";
  Injector injector;
  injector.fail_always("membarrier", EPERM);
  EXPECT_EQ(enable_dirty_tracking(memory).error().os_errno, EPERM);
  EXPECT_FALSE(memory.regions()[0]->dirty().is_enabled());
  injector.fail_none();
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  ASSERT_THAT(memory.write(GuestAddress(base), 1U), IsOk());
  ASSERT_THAT(memory.write(GuestAddress(2 * base), 1U), IsOk());
  injector.fail_next("membarrier", ENOMEM);
  EXPECT_EQ(harvest_dirty(memory).error().os_errno, ENOMEM);
  injector.fail_none();
  EXPECT_EQ(harvest_dirty(memory)->size(), 2U);
}

/// Called by the next membarrier, which then fails.
std::function<void()> before_barrier_fails;

TEST(GuestMemoryCalls, TrackingThatAnotherThreadIsStillStartingIsWaitedFor) {
  const GuestMemory memory = sample();
  if (memory.regions()[0]->dirty().writers_fence())
    GTEST_SKIP() << "this kernel has no membarrier(2)";
  Injector injector;
  injector.table().membarrier = [](int command, unsigned flags) {
    const auto body = std::exchange(before_barrier_fails, nullptr);
    if (body == nullptr) return detail::real_system_calls.membarrier(command, flags);
    body();
    errno = EPERM;
    return -1;
  };
  std::future<Result<void>> other;
  before_barrier_fails = [&] {
    other = std::async(std::launch::async, [&] { return enable_dirty_tracking(memory); });
    // Time to be told too early that all is tracked.
    static_cast<void>(other.wait_for(std::chrono::milliseconds(50)));
  };
  EXPECT_THAT(enable_dirty_tracking(memory), Not(IsOk()));
  EXPECT_THAT(other.get(), IsOk());
  for (const auto& region : memory.regions())
    EXPECT_TRUE(region->dirty().is_enabled()) << region->base().value();
}

TEST(GuestMemoryCalls, ARegionThatCantBeTrackedDoesNotJoin) {
  const GuestMemory memory = sample();
  if (memory.regions()[0]->dirty().writers_fence())
    GTEST_SKIP() << "this kernel has no membarrier(2)";
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  const auto more = test::region({8 * base, page});
  Injector injector;
  injector.fail_always("membarrier", EPERM);
  const auto joined = memory.with_region(more);
  ASSERT_THAT(joined, Not(IsOk()));
  EXPECT_EQ(joined.error().os_errno, EPERM);
  EXPECT_FALSE(more->dirty().is_enabled());
  injector.fail_none();
  EXPECT_THAT(harvest_dirty(memory), IsOkAndHolds(std::vector<GuestRange>{}));
}

TEST(GuestMemoryCalls, ReadsAndWritesOfDescriptorsAreRetriedAndReported) {
  const GuestMemory memory = sample();
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  const int file = memfd_create("data", MFD_CLOEXEC);
  Injector injector;
  injector.fail_next("write", EINTR);
  EXPECT_THAT(write_from_guest(file, memory, {GuestAddress(base), 2 * page}),
              IsOkAndHolds(2 * page));
  injector.fail_next("write", ENOSPC);
  EXPECT_EQ(write_from_guest(file, memory, {GuestAddress(base), page}).error().os_errno, ENOSPC);
  ASSERT_EQ(lseek(file, 0, SEEK_SET), 0);
  injector.fail_next("read", EINTR);
  EXPECT_THAT(read_into_guest(file, memory, {GuestAddress(base), page}), IsOkAndHolds(page));
  ASSERT_THAT(harvest_dirty(memory), IsOk());
  injector.fail_next("read", EIO);
  EXPECT_EQ(read_into_guest(file, memory, {GuestAddress(base), 3 * page}).error().os_errno, EIO);
  injector.fail_none();
  EXPECT_EQ(*harvest_dirty(memory), (std::vector<GuestRange>{{GuestAddress(base), 3 * page}}));
  close(file);
}

TEST(GuestMemoryCalls, AFileThatCantBeLoadedIsAnErrorThatNamesIt) {
  const int file = memfd_create("kernel", MFD_CLOEXEC);
  const auto bytes = pattern(2 * page);
  ASSERT_EQ(write(file, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  const std::string path = "/proc/self/fd/" + std::to_string(file);
  const GuestMemory memory = sample();
  fail_each_call(
      {},
      [&]() -> Result<void> {
        const auto loaded = load_file(path, memory, GuestAddress(base));
        if (loaded) return {};
        EXPECT_EQ(loaded.error().text.subject(), path);
        return fail(loaded.error());
      },
      [&] { return contents(memory, base, 2 * page) == bytes; });

  // Somebody truncates it between the look at its size and the reading.
  Injector injector;
  injector.table().read = [](int, void*, std::size_t) -> ssize_t { return 0; };
  const auto shorter = load_file(path, memory, GuestAddress(base));
  ASSERT_THAT(shorter, Not(IsOk()));
  EXPECT_EQ(shorter.error().os_errno, EIO);
  close(file);
}

TEST(GuestMemoryCalls, TransfersAtAnOffsetAndInterruptedOnesAreReported) {
  const GuestMemory memory = sample();
  const int file = memfd_create("data", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(file, 4 * page), 0);
  const GuestRange range{GuestAddress(base), 2 * page};
  Injector injector;
  for (const bool exact : {false, true}) {
    for (const int error : {EIO, EINTR}) {
      const bool cancellable = error == EINTR;
      for (const auto offset :
           {std::optional<std::uint64_t>{}, std::optional<std::uint64_t>{page}}) {
        const GuestIoOptions options{.offset = offset, .exact = exact, .cancellable = cancellable};
        injector.fail_next(offset ? "preadv2" : "read", error);
        const auto read = read_into_guest(file, memory, range, options);
        ASSERT_THAT(read, HasError(Errc::os));
        EXPECT_EQ(read.error().os_errno, error);
        injector.fail_next(offset ? "pwritev2" : "write", error);
        const auto written = write_from_guest(file, memory, range, options);
        ASSERT_THAT(written, HasError(Errc::os));
        EXPECT_EQ(written.error().os_errno, error);
      }
    }
  }
  // Repeated where nobody asked to be told.
  injector.fail_next("preadv2", EINTR);
  EXPECT_THAT(read_into_guest(file, memory, range, {.offset = page}), IsOkAndHolds(2 * page));
  injector.fail_next("pwritev2", EINTR);
  EXPECT_THAT(write_from_guest(file, memory, range, {.offset = page}), IsOkAndHolds(2 * page));
  injector.fail_none();
  close(file);
}

/// Fills all of the buffer, and then says what the test wants; 0 after that.
ssize_t answer = 0;
int answered_errno = 0;
ssize_t fill_and_answer(int, void* buffer, std::size_t size) {
  std::memset(buffer, 0xdd, size);
  errno = answered_errno;
  return std::exchange(answer, 0);
}

TEST(GuestMemoryCalls, WhateverAReadMayHaveWrittenIsMarked) {
  const GuestMemory memory = sample();
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  const std::vector<GuestRange> all{{GuestAddress(base), 3 * page}};
  Injector injector;
  injector.table().read = fill_and_answer;
  answer = 1;
  EXPECT_THAT(read_into_guest(0, memory, {GuestAddress(base), 2 * page + 1}), IsOkAndHolds(1U));
  EXPECT_THAT(harvest_dirty(memory), IsOkAndHolds(all));
  for (const int error : {EIO, EFAULT, EINVAL, ENOMEM, ETIMEDOUT, ENXIO}) {
    answer = -1;
    answered_errno = error;
    EXPECT_EQ(read_into_guest(0, memory, {GuestAddress(base), 3 * page}).error().os_errno, error);
    EXPECT_THAT(harvest_dirty(memory), IsOkAndHolds(all)) << std::strerror(error);
  }
}

TEST(GuestMemoryCalls, AReadThatWasOverBeforeAnyDataMarksNothing) {
  const GuestMemory memory = sample();
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  Injector injector;
  for (const int error : {EAGAIN, EBADF, EISDIR}) {
    injector.fail_next("read", error);
    EXPECT_EQ(read_into_guest(0, memory, {GuestAddress(base), 3 * page}).error().os_errno, error);
    EXPECT_THAT(harvest_dirty(memory), IsOkAndHolds(std::vector<GuestRange>{}))
        << std::strerror(error);
  }
  // The second read of the call finds nothing; the first one asked for a part only.
  static int calls;
  calls = 0;
  injector.table().read = [](int, void*, std::size_t) -> ssize_t {
    if (calls++ == 0) return 1 << 20;
    errno = EAGAIN;
    return -1;
  };
  const GuestMemory large = guest({{base, 512 * page}});
  ASSERT_THAT(enable_dirty_tracking(large), IsOk());
  EXPECT_THAT(read_into_guest(0, large, {GuestAddress(base), 512 * page}),
              IsOkAndHolds(std::uint64_t{1} << 20));
  EXPECT_THAT(harvest_dirty(large),
              IsOkAndHolds((std::vector<GuestRange>{{GuestAddress(base), 256 * page}})));
}

TEST(GuestMemoryCalls, DescriptorsOfOthersAreMappedWhollyOrNotAtAll) {
  const GuestMemory memory = guest({{base, page, Protection::read_write, MemorySource::shmem},
                                    {2 * base, page, Protection::read_write, MemorySource::shmem}});
  const auto described = describe_regions(memory);
  ASSERT_THAT(described, IsOk());
  std::size_t regions = 0;
  fail_each_call(
      {"madvise", "membarrier"},
      [&]() -> Result<void> {
        const auto mapped = map_regions(*described);
        if (!mapped) return fail(mapped.error());
        regions = mapped->regions().size();
        return {};
      },
      [&] { return regions == 2; });
}

}  // namespace
}  // namespace vmspace::guest_memory_calls_test
