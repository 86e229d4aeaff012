// SPDX-License-Identifier: Apache-2.0
//
// Every system call of a lazy restore and of a working set, failing: with each errno, at each place,
// once. Starting gives an error and leaves the memory as it was; while it runs, what is lost is
// reported, what is not is right, and nobody waits for ever.

#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <future>
#include <memory>
#include <semaphore>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "vmspace/snapshot/lazy_restore.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/userfault.hpp"
#include "memory/guest_support.hpp"
#include "snapshot/lazy_support.hpp"

namespace vmspace::lazy_restore_calls_test {
namespace {

using namespace test;
using test::guest;
using test::page;

constexpr int errnos[] = {ENOMEM, EMFILE, EINTR, EAGAIN, EIO, EPERM, EINVAL, ENOSYS};
constexpr std::uint64_t base = 0x10000;

class LazyRestoreCalls : public ::testing::TestWithParam<MemorySource> {
 protected:
  [[nodiscard]] static GuestMemory ram() {
    return guest({{base, 8 * page, Protection::read_write, GetParam()}});
  }
};

TEST_P(LazyRestoreCalls, EachCallOfStarting) {
  const auto source = std::make_shared<WordSource>();
  { START_RESTORE_OR_SKIP(works, ram(), source, {.threads = 2}); }
  bool has_more = true;
  for (std::size_t index = 0; has_more; ++index) {
    for (const int error : errnos) {
      SCOPED_TRACE("call " + std::to_string(index) + ": " + std::strerror(error));
      const GuestMemory memory = ram();
      Injector injector;
      injector.fail_call(index, error);
      // Nothing comes by itself, so that all calls are those of starting.
      auto restore = LazyRestore::start(memory, source, {.threads = 2, .background = false});
      has_more = injector.has_failed();
      injector.fail_none();
      if (!restore) {
        EXPECT_NE(restore.error().code, Errc{});
        EXPECT_EQ(*memory.read<std::uint64_t>(GuestAddress(base)), 0U) << "as it was";
        // Whatever failed, it can be started then.
        const GuestMemory again = ram();
        EXPECT_TRUE(LazyRestore::start(again, source));
      } else {
        restore->resume_background();
        VMSPACE_ASSERT_OK(restore->wait(long_enough));
        expect_restored(memory, *source);
      }
    }
  }
}

TEST_P(LazyRestoreCalls, EachCallWhileItRuns) {
  const auto source = std::make_shared<WordSource>();
  { START_RESTORE_OR_SKIP(works, ram(), source); }
  for (const char* const name : {"ioctl", "read", "write", "poll", "madvise", "munmap"}) {
    for (const int error : errnos) {
      for (const bool always : {false, true}) {
        // Without any of these there is nothing to restore by.
        if (always && (error == EINTR || std::string(name) != "madvise")) continue;
        SCOPED_TRACE(std::string(name) + ": " + std::strerror(error));
        const GuestMemory memory = ram();
        Injector injector;
        std::uint64_t lost = 0;
        {
          START_RESTORE_OR_SKIP(
              restore, memory, source,
              {.threads = 1, .background = false, .on_error = [&](GuestRange range, const Error&) {
                 lost += range.size;
               }});
          if (always) {
            injector.fail_always(name, error);
          } else {
            injector.fail_next(name, error);
          }
          restore.resume_background();
          const auto done = restore.wait(long_enough);
          injector.fail_none();
          ASSERT_TRUE(restore.is_done());
          EXPECT_EQ(restore.statistics().lost, lost);
          EXPECT_EQ(settled(restore.statistics()), 8 * page);
          EXPECT_EQ(done.has_value(), lost == 0);
        }
        if (lost == 0) expect_restored(memory, *source);
      }
    }
  }
}

std::counting_semaphore<>* waiting = nullptr;  ///< released when a thread begins to poll

TEST_P(LazyRestoreCalls, AThreadThatCantBeWokenGoesOnByItself) {
  const auto source = std::make_shared<WordSource>();
  const GuestMemory memory = ram();
  std::counting_semaphore<> polls{0};
  waiting = &polls;
  Injector injector;
  injector.table().poll = [](pollfd* polled, nfds_t count, int timeout) {
    waiting->release();
    return detail::real_system_calls.poll(polled, count, timeout);
  };
  START_RESTORE_OR_SKIP(restore, memory, source, {.threads = 1, .background = false});
  polls.acquire();
  // Until it sleeps, most likely: awake it would see by itself that there is work.
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  injector.fail_next("write", EIO);
  restore.resume_background();
  ASSERT_TRUE(injector.has_failed());
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
  expect_restored(memory, *source);
}

// What is zeros stays absent, and a page fault of memory that stays registered has no one to answer it.
TEST_P(LazyRestoreCalls, NobodyWaitsInMemoryThatCouldNotBeUnregistered) {
  const auto source = std::make_shared<WordSource>();
  source->is_zero = [](std::uint64_t at) { return at / page % 2 == 0; };
  const GuestMemory memory = ram();
  Injector injector;
  injector.table().ioctl = [](int fd, unsigned long request, void* argument) {
    if (request == UFFDIO_UNREGISTER) {
      errno = ENOMEM;
      return -1;
    }
    return detail::real_system_calls.ioctl(fd, request, argument);
  };
  std::future<void> reads;
  START_RESTORE_OR_SKIP(restore, memory, source);
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  reads = std::async(std::launch::async, [&] { expect_restored(memory, *source); });
  EXPECT_EQ(reads.wait_for(long_enough), std::future_status::ready);
}

TEST_P(LazyRestoreCalls, AThreadThatCannotPollLosesNothing) {
  const auto source = std::make_shared<WordSource>();
  const GuestMemory memory = ram();
  std::counting_semaphore<> polls{0};
  waiting = &polls;
  Injector injector;
  injector.table().poll = [](pollfd*, nfds_t, int) {
    waiting->release();
    errno = ENOMEM;
    return -1;
  };
  START_RESTORE_OR_SKIP(restore, memory, source, {.threads = 1, .background = false});
  for (int i = 0; i < 200; ++i)
    ASSERT_TRUE(polls.try_acquire_for(long_enough));
  ASSERT_EQ(restore.statistics().lost, 0U);
  EXPECT_TRUE(holds_words(memory.regions()[0]->host_base() + page, base + page));
  restore.resume_background();
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
  expect_restored(memory, *source);
}

/// Who discards the last pages is held up before it says that there are no more, while a thread can't
/// read faults.
struct LastDiscard {
  static constexpr int given_up_after = 100;
  std::atomic<int> failed{0};
  std::atomic<bool> is_held{false};
};
LastDiscard* last_discard = nullptr;

TEST_P(LazyRestoreCalls, AThreadThatFailsToReadFaultsStillEndsWhatIsComplete) {
  const auto source = std::make_shared<WordSource>();
  const GuestMemory memory = ram();
  LastDiscard here;
  last_discard = &here;
  Injector injector;
  injector.table().poll = [](pollfd* polled, nfds_t count, int) {
    return detail::real_system_calls.poll(polled, count, 1);
  };
  injector.table().read = [](int fd, void* to, std::size_t size) -> ssize_t {
    if (!last_discard->is_held) return detail::real_system_calls.read(fd, to, size);
    ++last_discard->failed;
    errno = EIO;
    return -1;
  };
  injector.table().ioctl = [](int fd, unsigned long request, void* argument) {
    if (request == UFFDIO_WAKE && !last_discard->is_held.exchange(true)) {
      while (last_discard->failed < LastDiscard::given_up_after)
        std::this_thread::yield();
    }
    return detail::real_system_calls.ioctl(fd, request, argument);
  };
  START_RESTORE_OR_SKIP(restore, memory, source, {.threads = 1, .background = false});
  VMSPACE_EXPECT_OK(memory.regions()[0]->mapping().discard(0, 8 * page));
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
}

TEST_P(LazyRestoreCalls, AnAnswerThatFailsIsGivenAgainOrReported) {
  const auto source = std::make_shared<WordSource>();
  { START_RESTORE_OR_SKIP(works, ram(), source); }
  for (const char* const name : {"read", "poll"}) {
    for (const int error : {EINTR, EAGAIN, EIO, ENOMEM}) {
      const GuestMemory memory = ram();
      Injector injector;
      START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
      injector.fail_next(name, error);
      EXPECT_TRUE(holds_words(memory.regions()[0]->host_base() + page, base + page));
      injector.fail_none();
    }
  }
}

TEST_P(LazyRestoreCalls, WithoutPagemapAndSys) {
  const auto source = std::make_shared<WordSource>();
  { START_RESTORE_OR_SKIP(works, ram(), source); }
  const GuestMemory memory = ram();
  Injector injector;
  injector.hide_proc_and_sys();
  const auto restore = LazyRestore::start(memory, source);
  if (!restore) {
    // Where the kernel does not tell what is absent, memory counts as touched.
    EXPECT_THAT(restore, HasError(Errc::bad_state));
    return;
  }
  VMSPACE_ASSERT_OK(restore->wait(long_enough));
  expect_restored(memory, *source);
}

TEST_P(LazyRestoreCalls, WhereSharedMemoryCantBeFilledItIsUnsupportedAndNothingIsLost) {
  const auto source = std::make_shared<WordSource>();
  { START_RESTORE_OR_SKIP(works, ram(), source); }
  const GuestMemory memory = ram();
  {
    Injector injector;
    injector.forget_populating();
    const auto restore = LazyRestore::start(memory, source);
    if (!memory.regions()[0]->backing().is_shared()) {
      ASSERT_THAT(restore, IsOk());
      VMSPACE_ASSERT_OK(restore->wait(long_enough));
      return;
    }
    ASSERT_THAT(restore, HasError(Errc::unsupported));
    EXPECT_THAT(restore.error().message(), ::testing::HasSubstr("5.14"));
  }
  START_RESTORE_OR_SKIP(restore, memory, source);
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  expect_restored(memory, *source);
}

INSTANTIATE_TEST_SUITE_P(Memory, LazyRestoreCalls,
                         ::testing::Values(MemorySource::anon, MemorySource::shmem),
                         [](const auto& kind) {
                           return kind.param == MemorySource::anon ? "anonymous" : "memfd";
                         });

TEST(WorkingSetCalls, ReadAndWrite) {
  const auto set = WorkingSet::make({}, {{GuestAddress(base), page}});
  ASSERT_THAT(set, IsOk());
  const int file = memfd_create("set", MFD_CLOEXEC);
  Injector injector;
  for (const int error : errnos) {
    if (error == EINTR || error == EAGAIN) continue;  // made again
    ASSERT_EQ(lseek(file, 0, SEEK_SET), 0);
    injector.fail_next("write", error);
    EXPECT_FALSE(set->save(file));
    injector.fail_next("write", EINTR);
    VMSPACE_EXPECT_OK(set->save(file));
    ASSERT_EQ(lseek(file, 0, SEEK_SET), 0);
    injector.fail_next("read", error);
    EXPECT_FALSE(WorkingSet::load(file));
    injector.fail_next("read", EINTR);
    EXPECT_THAT(WorkingSet::load(file), IsOkAndHolds(*set));
  }
  injector.fail_none();
  close(file);
}

}  // namespace
}  // namespace vmspace::lazy_restore_calls_test
