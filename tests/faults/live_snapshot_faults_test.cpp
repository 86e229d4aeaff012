// SPDX-License-Identifier: Apache-2.0
//
// Every system call of a live snapshot failing once: the guest goes on, no page stays protected, no
// descriptor stays open, and a snapshot that claims to be complete is.

#include <poll.h>
#include <sys/types.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <semaphore>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/try.hpp"
#include "vmspace/snapshot/live_snapshot.hpp"
#include "vmspace/testing.hpp"

#include "faults/failing_new.hpp"
#include "faults/injector.hpp"
#include "host/userfault.hpp"
#include "snapshot/live_support.hpp"

namespace vmspace::live_snapshot_faults_test {
namespace {

using namespace test;

constexpr std::uint64_t pages = 32;

/// Memory of twice as many pages as a test writes to.
GuestMemory guest_in(MemorySource source) {
  return guest_of({.name = "", .backing = {.source = source}}, 2 * pages * page);
}

/// A live snapshot, while all of the memory is written to.
Result<void> save_live(const GuestMemory& memory, int fd) {
  auto snapshot = VMSPACE_TRY(prepare_live(memory, fd));
  VMSPACE_TRY(snapshot.take());
  VMSPACE_TRY(memory.fill({base_of(memory), pages * page}, std::byte{0xff}));
  VMSPACE_TRY(snapshot.wait());
  return {};
}

class LiveSnapshotFaults : public ::testing::TestWithParam<MemorySource> {};

TEST_P(LiveSnapshotFaults, EverySystemCallMayFail) {
  const GuestMemory memory = guest_in(GetParam());
  const auto before = pattern(pages * page);
  {
    const TempFile file;
    ASSERT_TRUE(memory.write_slice(base_of(memory), before));
    const auto saved = save_live(memory, file.fd());
    // Neither every kernel nor every user can protect pages from writes.
    if (!saved) GTEST_SKIP() << saved.error().message();
  }
  for (const int error : {ENOMEM, EIO, EINTR, EAGAIN, ENOSPC}) {
    bool failed = true;
    for (std::size_t index = 0; failed; ++index) {
      ASSERT_LT(index, 10'000U);
      const TempFile file;
      ASSERT_TRUE(memory.write_slice(base_of(memory), before));
      const auto descriptors = open_descriptors();
      Result<void> saved;
      std::string call;
      {
        Injector injector;
        injector.fail_call(index, error);
        saved = save_live(memory, file.fd());
        failed = injector.has_failed();
        if (failed) call = injector.calls()[index];
      }
      SCOPED_TRACE(call + " (call " + std::to_string(index) + "): " + std::strerror(error));
      EXPECT_EQ(open_descriptors(), descriptors);
      // Nobody would resolve a fault now.
      ASSERT_TRUE(memory.write_slice(base_of(memory), pattern(pages * page, 2)));
      if (saved) {
        EXPECT_EQ(contents(restored(memory, file.fd()), base_of(memory).value(), pages * page),
                  before);
      } else {
        EXPECT_FALSE(inspect_snapshot(file.fd())) << saved.error().message();
      }
    }
  }
}

/// What a thread that waits for faults and one that completes the file tell each other.
struct Meeting {
  std::binary_semaphore completing{0};
  std::binary_semaphore failed{0};
};
Meeting* meeting = nullptr;

// Nobody waits for a fault any more, so that not being able to wait for one loses nothing.
TEST(LiveSnapshotCompletion, AnErrorWhileTheFileIsCompletedDoesNotMatter) {
  const GuestMemory memory = guest_in(MemorySource::anon);
  const auto before = pattern(pages * page);
  const TempFile file;
  ASSERT_TRUE(memory.write_slice(base_of(memory), before));
  Meeting here;
  meeting = &here;
  {
    Injector injector;
    // Until the last page is out, the thread that waits for faults is kept waiting, which nobody
    // notices: the pages are saved in their turn.
    injector.table().poll = [](pollfd*, nfds_t, int) {
      (void)meeting->completing.try_acquire_for(std::chrono::minutes(1));
      meeting->failed.release();
      errno = EIO;
      return -1;
    };
    // The head of a file makes it a snapshot: it is written last, at the file's beginning.
    injector.table().pwrite = [](int fd, const void* bytes, size_t size, off_t at) {
      if (at == 0) {
        meeting->completing.release();
        (void)meeting->failed.try_acquire_for(std::chrono::seconds(10));
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
      return detail::real_system_calls.pwrite(fd, bytes, size, at);
    };
    PREPARE_OR_SKIP(snapshot, memory, file.fd());
    VMSPACE_ASSERT_OK(snapshot.take());
    VMSPACE_EXPECT_OK(snapshot.wait());
  }
  EXPECT_EQ(contents(restored(memory, file.fd()), base_of(memory).value(), pages * page), before);
}

/// What take() and the thread that waits for faults tell each other.
struct Taking {
  std::binary_semaphore has_begun{0};
  std::binary_semaphore is_over{0};
};
Taking* taking = nullptr;

// Protecting pages fails because the snapshot was given up: that is not what went wrong.
TEST(LiveSnapshotTaking, TellsOfTheErrorThatCameFirst) {
  const GuestMemory memory = guest_in(MemorySource::anon);
  ASSERT_TRUE(memory.write_slice(base_of(memory), pattern(pages * page)));
  const TempFile file;
  Taking here;
  taking = &here;
  Injector injector;
  injector.table().poll = [](pollfd*, nfds_t, int) {
    taking->has_begun.acquire();
    errno = EIO;
    return -1;
  };
  injector.table().ioctl = [](int fd, unsigned long request, void* argument) {
    if (request == UFFDIO_WRITEPROTECT) {
      taking->has_begun.release();
      taking->is_over.acquire();
    }
    const int result = detail::real_system_calls.ioctl(fd, request, argument);
    if (request == UFFDIO_UNREGISTER) taking->is_over.release();
    return result;
  };
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  const auto taken = snapshot.take();
  ASSERT_THAT(taken, HasError(Errc::os));
  EXPECT_EQ(taken.error().os_errno, EIO) << taken.error().message();
  EXPECT_STREQ(taken.error().operation, "LiveSnapshot::take");
  const auto ended = snapshot.wait();
  ASSERT_THAT(ended, HasError(Errc::os));
  EXPECT_EQ(ended.error().os_errno, EIO) << ended.error().message();
  EXPECT_STREQ(ended.error().operation, "LiveSnapshot::wait");
}

/// A page that was absent, and a disk that waits until somebody has written to it.
struct Hole {
  std::uintptr_t page = 0;
  std::atomic<bool> has_failed{false};
  std::atomic<bool> has_waited{false};
  std::atomic<bool> was_in_time{false};
  std::binary_semaphore written{0};
};
Hole* hole = nullptr;

TEST(LiveSnapshotWriters, WhoCouldNotBeLetGoOnAsksAgain) {
  const GuestMemory memory = guest_in(MemorySource::anon);
  const std::uint64_t base = base_of(memory).value();
  // What is absent in between is protected with what is around it.
  VMSPACE_ASSERT_OK(memory.write(GuestAddress(base), std::uint64_t{1}));
  VMSPACE_ASSERT_OK(memory.write(GuestAddress(base + 2 * page), std::uint64_t{2}));
  const TempFile file;
  Hole here;
  here.page = reinterpret_cast<std::uintptr_t>(memory.regions().front()->host_base()) + page;
  hole = &here;
  Injector injector;
  injector.table().ioctl = [](int fd, unsigned long request, void* argument) {
    if (request == UFFDIO_WRITEPROTECT) {
      const auto& range = static_cast<const uffdio_writeprotect*>(argument)->range;
      if (range.start == hole->page && range.len == page && !hole->has_failed.exchange(true)) {
        errno = ENOMEM;
        return -1;
      }
    }
    return detail::real_system_calls.ioctl(fd, request, argument);
  };
  injector.table().pwrite = [](int fd, const void* bytes, size_t size, off_t at) {
    if (!hole->has_waited.exchange(true))
      hole->was_in_time = hole->written.try_acquire_for(std::chrono::seconds(30));
    return detail::real_system_calls.pwrite(fd, bytes, size, at);
  };
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  VMSPACE_ASSERT_OK(snapshot.take());
  VMSPACE_ASSERT_OK(memory.write(GuestAddress(base + page), std::uint64_t{3}));
  here.written.release();
  VMSPACE_EXPECT_OK(snapshot.wait());
  // Only where it can is the page waited for.
  if (!here.has_failed) GTEST_SKIP() << "this kernel can't protect what is absent";
  EXPECT_TRUE(here.was_in_time) << "it waited until the snapshot was complete";
  const GuestMemory again = restored(memory, file.fd());
  EXPECT_THAT(again.read<std::uint64_t>(GuestAddress(base + page)), IsOkAndHolds(0U));
}

INSTANTIATE_TEST_SUITE_P(KindsOfMemory, LiveSnapshotFaults,
                         ::testing::Values(MemorySource::anon, MemorySource::shmem),
                         [](const auto& tested) { return std::string(name_of(tested.param)); });

TEST(LiveSnapshotAllocations, MayFail) {
  const GuestMemory memory = guest_in(MemorySource::anon);
  const auto before = pattern(pages * page);
  const TempFile file;
  ASSERT_TRUE(memory.write_slice(base_of(memory), before));
  const auto saved = save_live(memory, file.fd());
  // As above.
  if (!saved) GTEST_SKIP() << saved.error().message();
  const auto descriptors = open_descriptors();
  const auto written = pattern(pages * page, 2);
  fail_each_allocation([&] { (void)save_live(memory, file.fd()); },
                       [&] {
                         EXPECT_EQ(open_descriptors(), descriptors);
                         EXPECT_TRUE(memory.write_slice(base_of(memory), written));
                       });
}

}  // namespace
}  // namespace vmspace::live_snapshot_faults_test
