// SPDX-License-Identifier: Apache-2.0
//
// LazyRestore when the source fails, is wrong, or never answers, and when it is cancelled: what is lost
// is reported and raises a signal, nobody waits for ever, and all else is what the source has.

#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include <setjmp.h>

#include "vmspace/host/fault_guard.hpp"

#include "faults/injector.hpp"
#include "host/host_support.hpp"
#include "host/userfault.hpp"
#include "snapshot/lazy_support.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::lazy_failure_test {
namespace {

using namespace test;
using ::testing::ElementsAre;

constexpr std::uint64_t base = high;

thread_local sigjmp_buf on_fault;
void jump(int signal) {
  siglongjmp(on_fault, signal);
}

/// The signal that reading the byte raises in this thread, or 0.
int signal_of(const std::byte* at) {
  struct sigaction action = {};
  action.sa_handler = jump;
  action.sa_flags = SA_NODEFER;
  struct sigaction bus {
  }, segv{};
  sigaction(SIGBUS, &action, &bus);
  sigaction(SIGSEGV, &action, &segv);
  const int signal = sigsetjmp(on_fault, 1);
  if (signal == 0) static_cast<void>(*static_cast<const volatile std::byte*>(at));
  sigaction(SIGBUS, &bus, nullptr);
  sigaction(SIGSEGV, &segv, nullptr);
  return signal;
}

/// The errors that a restore reports.
class Reports {
 public:
  [[nodiscard]] auto callback() {
    return [this](GuestRange range, const Error& error) {
      const std::lock_guard lock(mutex_);
      ranges_.push_back(range);
      codes_.push_back(error.code);
    };
  }
  [[nodiscard]] std::vector<GuestRange> ranges() const {
    const std::lock_guard lock(mutex_);
    return ranges_;
  }
  [[nodiscard]] std::uint64_t bytes() const {
    std::uint64_t sum = 0;
    for (const GuestRange& range : ranges())
      sum += range.size;
    return sum;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<GuestRange> ranges_;
  std::vector<Errc> codes_;
};

/// Makes poisoning pages fail, as it does before Linux 6.6.
class WithoutPoison : public Injector {
 public:
  WithoutPoison() {
    table().ioctl = [](int fd, unsigned long request, void* argument) {
      const int result = detail::real_system_calls.ioctl(fd, request, argument);
      if (request == UFFDIO_API) {
        auto& features = static_cast<uffdio_api*>(argument)->features;
        features &= ~detail::userfault_feature::poison;
      }
      return result;
    };
  }
};

class LazyRestoreFailures : public ::testing::TestWithParam<MemorySource> {
 protected:
  [[nodiscard]] static GuestMemory ram(std::uint64_t size = 64 * page) {
    return guest({{base, size, Protection::read_write, GetParam()}});
  }
  std::shared_ptr<WordSource> source = std::make_shared<WordSource>();
  Reports reports;
};

TEST_P(LazyRestoreFailures, APageThatCanNotBeReadIsReportedAndRaisesASignal) {
  const GuestMemory memory = ram();
  const std::byte* const data = memory.regions()[0]->host_base();
  source->fails = [](std::uint64_t at) { return at == base + 5 * page || at == base + 9 * page; };
  START_RESTORE_OR_SKIP(restore, memory, source,
                        {.background = false, .on_error = reports.callback()});
  EXPECT_EQ(signal_of(data + 5 * page + 8), SIGBUS);
  EXPECT_THAT(reports.ranges(), ElementsAre(GuestRange{GuestAddress(base + 5 * page), page}));
  EXPECT_TRUE(holds_words(data + 6 * page, base + 6 * page));
  // A system call gives an error instead.
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  EXPECT_EQ(write(pipe[1], data + 5 * page, 1), -1);
  EXPECT_EQ(errno, EFAULT);
  close(pipe[0]);
  close(pipe[1]);
  // Discarding heals it.
  VMSPACE_ASSERT_OK(memory.regions()[0]->mapping().discard(5 * page, page));
  ASSERT_EQ(signal_of(data + 5 * page), 0);
  EXPECT_TRUE(holds_words(data + 5 * page, 0, true));
  // The background leaves out the other one alone.
  restore.resume_background();
  EXPECT_THAT(restore.wait(long_enough), HasError(Errc::corrupt));
  EXPECT_TRUE(restore.is_done());
  EXPECT_EQ(restore.statistics().lost, 2 * page);
  EXPECT_GE(restore.statistics().errors, 2U);
  EXPECT_EQ(reports.bytes(), 2 * page);
  EXPECT_EQ(signal_of(data + 9 * page), SIGBUS);
  for (std::uint64_t i = 0; i < 64; ++i) {
    if (i != 5 && i != 9) {
      EXPECT_TRUE(holds_words(data + i * page, base + i * page)) << i;
    }
  }
}

TEST_P(LazyRestoreFailures, ASourceThatThrowsHasFailed) {
  const GuestMemory memory = ram();
  const std::byte* const data = memory.regions()[0]->host_base();
  source->before_read = [](GuestAddress at, std::size_t bytes) {
    const GuestRange read{at, bytes};
    if (read.contains(GuestAddress(base + 5 * page))) throw std::bad_alloc();
    if (read.contains(GuestAddress(base + 9 * page))) throw 9;
  };
  START_RESTORE_OR_SKIP(restore, memory, source, {.on_error = reports.callback()});
  EXPECT_FALSE(restore.wait(long_enough));
  EXPECT_TRUE(restore.is_done());
  EXPECT_EQ(reports.bytes(), 2 * memory.regions()[0]->mapping().page_size());
  EXPECT_TRUE(holds_words(data + 6 * page, base + 6 * page));
}

TEST_P(LazyRestoreFailures, BeforeLinux66ThePageIsInaccessible) {
  const WithoutPoison kernel;
  const GuestMemory memory = ram();
  const std::byte* const data = memory.regions()[0]->host_base();
  source->fails = [](std::uint64_t at) { return at == base + 5 * page; };
  START_RESTORE_OR_SKIP(restore, memory, source, {.on_error = reports.callback()});
  EXPECT_EQ(signal_of(data + 5 * page), SIGSEGV);
  EXPECT_THAT(restore.wait(long_enough), HasError(Errc::corrupt));
  EXPECT_TRUE(holds_words(data + 4 * page, base + 4 * page));
  EXPECT_TRUE(holds_words(data + 6 * page, base + 6 * page));
}

TEST_P(LazyRestoreFailures, CancellingWakesAllAndLosesTheRest) {
  for (const bool has_poison : {true, false}) {
    std::optional<WithoutPoison> kernel;
    if (!has_poison) kernel.emplace();
    const GuestMemory memory = ram();
    const std::byte* const data = memory.regions()[0]->host_base();
    Reports told;
    Gate gate;
    source->before_read = [&](GuestAddress at, std::size_t) {
      if (at.value() == base + 8 * page) gate.pass();
    };
    {
      START_RESTORE_OR_SKIP(restore, memory, source,
                            {.background = false, .on_error = told.callback()});
      ASSERT_TRUE(holds_words(data, base));
      std::atomic<int> raised{0};
      std::thread waits([&] { raised = signal_of(data + 8 * page); });
      gate.wait_for(1);
      // The source hangs, and another thread is behind it.
      restore.cancel();
      waits.join();
      EXPECT_EQ(raised, has_poison ? SIGBUS : SIGSEGV);
      EXPECT_TRUE(restore.is_done());
      EXPECT_THAT(restore.wait(std::chrono::seconds(0)), HasError(Errc::bad_state));
      EXPECT_EQ(restore.statistics().lost, 63 * page);
      EXPECT_EQ(restore.statistics().remaining, 0U);
      EXPECT_EQ(told.bytes(), 63 * page);
      EXPECT_TRUE(holds_words(data, base));
      EXPECT_EQ(signal_of(data + page), has_poison ? SIGBUS : SIGSEGV);
      restore.cancel();  // again
      gate.open();
    }
    source->before_read = nullptr;
    EXPECT_EQ(signal_of(data + 8 * page), has_poison ? SIGBUS : SIGSEGV) << "came too late";
  }
}

TEST_P(LazyRestoreFailures, DestructionCancels) {
  const GuestMemory memory = ram();
  const std::byte* const data = memory.regions()[0]->host_base();
  {
    START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
    ASSERT_TRUE(holds_words(data + page, base + page));
    LazyRestore moved = std::move(restore);
    ASSERT_TRUE(holds_words(data + 2 * page, base + 2 * page));
  }
  EXPECT_TRUE(holds_words(data + page, base + page));
  EXPECT_EQ(signal_of(data), SIGBUS);
}

TEST_P(LazyRestoreFailures, ASourceThatFailsTooOftenIsGivenUp) {
  const GuestMemory memory = ram();
  source->fails = [](std::uint64_t) { return true; };
  START_RESTORE_OR_SKIP(restore, memory, source,
                        {.error_limit = 5, .on_error = reports.callback()});
  EXPECT_THAT(restore.wait(long_enough), HasError(Errc::corrupt));
  EXPECT_EQ(restore.statistics().lost, 64 * page);
  EXPECT_EQ(restore.statistics().errors, 5U);
  EXPECT_EQ(reports.bytes(), 64 * page);
}

TEST_P(LazyRestoreFailures, TheReportMayCancel) {
  const GuestMemory memory = ram();
  const std::byte* const data = memory.regions()[0]->host_base();
  source->fails = [](std::uint64_t at) { return at == base + 5 * page; };
  std::atomic<LazyRestore*> running{nullptr};
  std::atomic<int> told{0};
  const auto on_error = [&](GuestRange, const Error&) {
    ++told;
    running.load()->cancel();
  };
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false, .on_error = on_error});
  running = &restore;
  EXPECT_EQ(signal_of(data + 5 * page), SIGBUS);
  EXPECT_THAT(restore.wait(long_enough), HasError(Errc::corrupt)) << "what came first";
  EXPECT_EQ(restore.statistics().lost, 64 * page);
  EXPECT_GE(told, 2);
}

TEST_P(LazyRestoreFailures, ASourceThatNamesDataElsewhereIsNotBelieved) {
  class Liar : public WordSource {
   public:
    Result<GuestRange> next_data(GuestRange range) override {
      const std::uint64_t at = range.base.value();
      switch (calls_++ % 6) {
        case 0: return GuestRange{GuestAddress(at - page), page};
        case 1: return GuestRange{GuestAddress(at + range.size), page};
        case 2: return GuestRange{GuestAddress(at + 1), page};
        case 3: return GuestRange{GuestAddress(at), page + 1};
        case 4: return GuestRange{GuestAddress(at), test::top / page * page};
        default: break;
      }
      return fail({.code = Errc::os, .operation = "Liar", .os_errno = EIO});
    }

   private:
    unsigned calls_ = 0;
  };
  for (std::size_t i = 0; i < 6; ++i) {
    const auto liar = std::make_shared<Liar>();
    for (std::size_t lie = 0; lie < i; ++lie)
      static_cast<void>(liar->next_data({GuestAddress(base), page}));
    const GuestMemory memory = ram();
    START_RESTORE_OR_SKIP(restore, memory, liar);
    VMSPACE_EXPECT_OK(restore.wait(long_enough));
    expect_restored(memory, *liar);
  }
}

TEST_P(LazyRestoreFailures, ADiscardDoesNotWaitForASourceThatHangs) {
  const GuestMemory memory = ram();
  const MemoryMapping& mapping = memory.regions()[0]->mapping();
  Gate gate;
  source->before_read = [&](GuestAddress at, std::size_t) {
    if (at.value() == base + 8 * page) gate.pass();
  };
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  std::thread waits([&] {
    // What it waits for is discarded meanwhile.
    EXPECT_TRUE(holds_words(mapping.data() + 8 * page, base + 8 * page, true));
  });
  gate.wait_for(1);
  VMSPACE_EXPECT_OK(mapping.discard(8 * page, page));
  gate.open();
  waits.join();
  EXPECT_EQ(restore.statistics().discarded, page);
  EXPECT_TRUE(holds_words(mapping.data() + 8 * page, base + 8 * page, true)) << "came too late";
  restore.resume_background();
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
}

TEST_P(LazyRestoreFailures, ADiscardThatFailsChangesNothing) {
  const GuestMemory memory = ram();
  const MemoryMapping& mapping = memory.regions()[0]->mapping();
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  {
    Injector injector;
    injector.fail_always(GetParam() == MemorySource::anon ? "madvise" : "fallocate", EIO);
    EXPECT_FALSE(mapping.discard(0, 4 * page));
    EXPECT_EQ(restore.statistics().discarded, 0U);
  }
  ASSERT_TRUE(holds_words(mapping.data(), base));
  restore.resume_background();
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
  expect_restored(memory, *source);
}

TEST_P(LazyRestoreFailures, ADiscardOfTheLastPagesCompletesIt) {
  const GuestMemory memory = ram();
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  VMSPACE_EXPECT_OK(memory.regions()[0]->mapping().discard(0, 64 * page));
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
  EXPECT_EQ(restore.statistics().discarded, 64 * page);
}

TEST_P(LazyRestoreFailures, ADiscardOfTheLastPagesCompletesItWhileTheSourceHangs) {
  const GuestMemory memory = ram();
  Gate gate;
  source->before_read = [&](GuestAddress, std::size_t) { gate.pass(); };
  START_RESTORE_OR_SKIP(restore, memory, source, {.threads = 1});
  gate.wait_for(1);
  VMSPACE_EXPECT_OK(memory.regions()[0]->mapping().discard(0, 64 * page));
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
  EXPECT_TRUE(restore.is_done());
  gate.open();
  EXPECT_EQ(restore.statistics().discarded, 64 * page);
  EXPECT_TRUE(holds_words(memory.regions()[0]->host_base(), base, true)) << "came too late";
}

INSTANTIATE_TEST_SUITE_P(Memory, LazyRestoreFailures,
                         ::testing::Values(MemorySource::anon, MemorySource::shmem),
                         [](const auto& kind) {
                           return kind.param == MemorySource::anon ? "anonymous" : "memfd";
                         });

TEST(LazyRestoreUnderAFaultGuard, ALostPageIsAnError) {
  const auto guard = FaultGuard::install();
  ASSERT_THAT(guard, IsOk());
  const TempFile file;
  ASSERT_EQ(ftruncate(file.fd(), 16 * page), 0);
  const auto region = MemoryRegion::map(
      {.name = "shared",
       .base = GuestAddress(base),
       .size = 16 * page,
       .backing = {.source = MemorySource::file, .fd = file.fd(), .sharing = Sharing::map_shared}},
      {.unsealed = Unsealed::guard});
  ASSERT_THAT(region, IsOk());
  ASSERT_TRUE((*region)->may_fault());
  const GuestMemory memory = *GuestMemory::from_regions({*region});
  const auto source = std::make_shared<WordSource>();
  source->fails = [](std::uint64_t at) { return at == base + 5 * page; };
  START_RESTORE_OR_SKIP(restore, memory, source);
  const auto lost = memory.read<std::uint64_t>(GuestAddress(base + 5 * page));
  EXPECT_THAT(lost, HasError(Errc::fault));
  EXPECT_THAT(memory.read<std::uint64_t>(GuestAddress(base + 6 * page)),
              IsOkAndHolds(word_at(base + 6 * page)));
}

TEST(LazyRestoreWithoutRights, SaysWhatWouldAllowIt) {
  Injector injector;
  injector.fail_always("userfaultfd", EPERM);
  injector.table().open = [](const char*, int, mode_t) {
    errno = EACCES;
    return -1;
  };
  const GuestMemory memory = guest({{base, page}});
  const auto refused = LazyRestore::start(memory, std::make_shared<WordSource>());
  ASSERT_THAT(refused, HasError(Errc::access_denied));
  EXPECT_NE(refused.error().message().find("vm.unprivileged_userfaultfd"), std::string::npos);
}

}  // namespace
}  // namespace vmspace::lazy_failure_test
