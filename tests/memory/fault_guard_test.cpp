// SPDX-License-Identifier: Apache-2.0
//
// The signal: whose it is, what its handlers get, and how long the guard's own one stays. Accesses are
// in guarded_memory_test.cpp.

#include "vmspace/host/fault_guard.hpp"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "host/guarded_access.hpp"
#include "memory/guarded_support.hpp"

namespace vmspace::fault_guard_test {
namespace {

using test::at;
using test::expect_fault;
using test::page;
using test::UnsealedFile;

/// The process's action for a signal, put back at the end.
class ActionFor {
 public:
  explicit ActionFor(int signal) : signal_(signal) { sigaction(signal, nullptr, &before_); }
  ActionFor(const ActionFor&) = delete;
  ActionFor& operator=(const ActionFor&) = delete;
  ~ActionFor() { sigaction(signal_, &before_, nullptr); }

  void set(void (*handler)(int), int flags = 0, std::optional<int> masked = {}) const {
    struct sigaction action = {};
    action.sa_handler = handler;
    action.sa_flags = flags;
    sigemptyset(&action.sa_mask);
    if (masked) sigaddset(&action.sa_mask, *masked);
    ASSERT_EQ(sigaction(signal_, &action, nullptr), 0);
  }
  void set(void (*handler)(int, siginfo_t*, void*), int flags = 0) const {
    struct sigaction action = {};
    action.sa_sigaction = handler;
    action.sa_flags = flags | SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    ASSERT_EQ(sigaction(signal_, &action, nullptr), 0);
  }
  [[nodiscard]] struct sigaction now() const {
    struct sigaction action = {};
    sigaction(signal_, nullptr, &action);
    return action;
  }

 private:
  int signal_;
  struct sigaction before_ = {};
};

// What handlers have seen. Of one test at a time.
std::atomic<int> calls{0};
std::atomic<bool> was_masked{false};
std::atomic<const void*> seen{nullptr};
std::atomic<int> to_mend{-1};  // a file that a handler gives its pages back
struct sigaction replaced = {};

void mend() {
  ++calls;
  const int fd = to_mend;
  if (fd >= 0 && ftruncate(fd, 4 * page) != 0) _exit(77);
}

void mend_plainly(int) {
  sigset_t mask;
  pthread_sigmask(SIG_BLOCK, nullptr, &mask);
  was_masked = sigismember(&mask, SIGUSR1) == 1;
  mend();
}

void mend_with_info(int, siginfo_t* info, void*) {
  seen = info->si_addr;
  mend();
}

void count_and_chain(int signal, siginfo_t* info, void* context) {
  ++calls;
  replaced.sa_sigaction(signal, info, context);
}

void handle_or_count(int signal, siginfo_t* info, void* context) {
  if (!FaultGuard::handle(signal, info, context)) ++calls;
}

class FaultGuardTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t base = 0x10000;

  void SetUp() override {
    calls = 0;
    seen = nullptr;
    to_mend = file.fd();
  }

  [[nodiscard]] Result<GuestMemory> map(Unsealed unsealed = Unsealed::guard) const {
    const std::vector<RegionDescriptor> regions{{.range = {at(base), 4 * page}, .fd = file.fd()}};
    return map_regions(regions, unsealed);
  }
  /// Memory whose pages from the second on are gone.
  [[nodiscard]] GuestMemory map_broken() const {
    file.resize(4 * page);
    auto memory = map();
    VMSPACE_EXPECT_OK(memory);
    file.resize(page);
    return *memory;
  }
  static void expect_guarded(const GuestMemory& memory) {
    expect_fault(memory.read<std::uint64_t>(at(base + page)), base + page, "GuestMemory::read");
  }
  /// Touches a page as the library doesn't: through a pointer.
  static void touch(const GuestMemory& memory) {
    auto host = memory.host_address({at(base + page), 8});
    VMSPACE_EXPECT_OK(host);
    *static_cast<volatile std::byte*>(*host) = std::byte{1};
  }

  ActionFor bus{SIGBUS};
  ActionFor usr{SIGUSR1};
  UnsealedFile file{4 * page};
};

TEST_F(FaultGuardTest, WithoutAGuardMemoryThatMayFaultIsRefused) {
  const auto refused = map();
  ASSERT_THAT(refused, HasError(Errc::access_denied));
  EXPECT_EQ(refused.error().message(),
            "map_regions: \"[0x10000, 0x13fff]\": access denied (the file's owner could truncate "
            "it, which would raise SIGBUS here: install a FaultGuard (see Unsealed::guard), or "
            "seal the file with F_SEAL_SHRINK)");
  EXPECT_THAT(map(Unsealed::refuse), HasError(Errc::access_denied));
}

TEST_F(FaultGuardTest, OnlyWhatAsksForItIsGuarded) {
  const auto guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  EXPECT_THAT(map(Unsealed::refuse), HasError(Errc::access_denied));
  const GuestMemory accepted = VMSPACE_ASSERT_OK(map(Unsealed::accept));
  EXPECT_FALSE(accepted.regions().front()->may_fault());
  const GuestMemory guarded = VMSPACE_ASSERT_OK(map());
  EXPECT_TRUE(guarded.regions().front()->may_fault());
  const auto sealed = test::region({.base = 0, .size = page, .source = MemorySource::shmem});
  EXPECT_FALSE(sealed->may_fault());
  EXPECT_THAT(map(static_cast<Unsealed>(3)), HasError(Errc::invalid_argument));
}

TEST_F(FaultGuardTest, TheLastGuardPutsTheHandlerBack) {
  bus.set(mend_plainly, SA_RESTART);
  std::optional<FaultGuard> first = VMSPACE_ASSERT_OK(FaultGuard::install());
  std::optional<FaultGuard> copy = *first;
  const FaultGuard& same = *copy;
  *first = same;
  std::optional<FaultGuard> second = VMSPACE_ASSERT_OK(FaultGuard::install());
  first.reset();
  second.reset();
  EXPECT_NE(bus.now().sa_flags & SA_SIGINFO, 0);
  EXPECT_TRUE(FaultGuard::installed().has_value());
  copy.reset();
  EXPECT_EQ(bus.now().sa_handler, &mend_plainly);
  EXPECT_EQ(bus.now().sa_flags & SA_RESTART, SA_RESTART);
  EXPECT_FALSE(FaultGuard::installed().has_value());
}

TEST_F(FaultGuardTest, MemoryKeepsTheHandlerForAsLongAsItIsMapped) {
  bus.set(mend_plainly);
  {
    std::optional<FaultGuard> guard = VMSPACE_ASSERT_OK(FaultGuard::install());
    const GuestMemory memory = map_broken();
    guard.reset();
    expect_guarded(memory);
  }
  EXPECT_EQ(bus.now().sa_handler, &mend_plainly);
  file.resize(4 * page);
  EXPECT_THAT(map(), HasError(Errc::access_denied));
}

TEST_F(FaultGuardTest, OtherFaultsGoToTheHandlerFromBefore) {
  bus.set(mend_with_info);
  const auto guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  const GuestMemory memory = map_broken();
  touch(memory);
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(seen, memory.regions().front()->host_base() + page);
  file.resize(page);
  expect_guarded(memory);
  EXPECT_EQ(calls, 1);
}

TEST_F(FaultGuardTest, AFaultElsewhereInAGuardedAccessIsNotItsOwn) {
  bus.set(mend_with_info);
  const auto guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  const GuestMemory memory = map_broken();
  std::byte* const host = memory.regions().front()->host_base() + 2 * page;
  EXPECT_EQ(detail::run_guarded(host, 8, [&] { touch(memory); }), nullptr);
  EXPECT_EQ(calls, 1);
}

TEST_F(FaultGuardTest, APlainHandlerGetsItsMask) {
  bus.set(mend_plainly, 0, SIGUSR1);
  const auto guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  const GuestMemory memory = map_broken();
  touch(memory);
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(was_masked);
  raise(SIGBUS);
  EXPECT_EQ(calls, 2);
}

TEST_F(FaultGuardTest, ASignalThatWasSentIsNoFault) {
  bus.set(mend_with_info);
  const auto guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  const GuestMemory memory = map_broken();
  std::byte* const host = memory.regions().front()->host_base();
  EXPECT_EQ(detail::run_guarded(host, page, [] { raise(SIGBUS); }), nullptr);
  EXPECT_EQ(calls, 1);
}

TEST_F(FaultGuardTest, ASignalThatWasIgnoredStaysIgnored) {
  bus.set(SIG_IGN);
  const auto guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  raise(SIGBUS);
  expect_guarded(map_broken());
}

using FaultGuardDeathTest = FaultGuardTest;

TEST_F(FaultGuardDeathTest, OtherFaultsStillKill) {
  for (const auto action : {SIG_DFL, SIG_IGN}) {
    EXPECT_EXIT(
        {
          bus.set(action);
          const auto guard = FaultGuard::install();
          touch(map_broken());
        },
        ::testing::KilledBySignal(SIGBUS), "");
  }
}

TEST_F(FaultGuardDeathTest, ASignalThatWasSentStillKills) {
  EXPECT_EXIT(
      {
        bus.set(SIG_DFL);
        const auto guard = FaultGuard::install();
        raise(SIGBUS);
      },
      ::testing::KilledBySignal(SIGBUS), "");
}

TEST_F(FaultGuardDeathTest, AHandlerThatIsResetIsCalledOnce) {
  EXPECT_EXIT(
      {
        bus.set(mend_plainly, static_cast<int>(SA_RESETHAND));
        const auto guard = FaultGuard::install();
        raise(SIGBUS);
        if (calls != 1) _exit(1);
        raise(SIGBUS);
      },
      ::testing::KilledBySignal(SIGBUS), "");
  bus.set(mend_plainly, static_cast<int>(SA_RESETHAND));
  {
    const auto guard = FaultGuard::install();
    raise(SIGBUS);
    EXPECT_EQ(calls, 1);
  }
  EXPECT_EQ(bus.now().sa_handler, SIG_DFL);
}

TEST_F(FaultGuardTest, AHandlerInstalledLaterChains) {
  bus.set(mend_with_info);
  std::optional<FaultGuard> guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  replaced = bus.now();
  bus.set(count_and_chain);
  {
    const GuestMemory memory = map_broken();
    expect_guarded(memory);
    EXPECT_EQ(calls, 1);
    touch(memory);  // through three handlers
    EXPECT_EQ(calls, 3);
  }
  // It is not taken away, nor put on top of itself.
  guard.reset();
  EXPECT_EQ(bus.now().sa_sigaction, &count_and_chain);
  raise(SIGBUS);
  EXPECT_EQ(calls, 5);
  guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  EXPECT_EQ(bus.now().sa_sigaction, &count_and_chain);
  expect_guarded(map_broken());
  EXPECT_EQ(calls, 6);
  guard.reset();
  // Where it was dropped without a word, the next guard begins anew.
  bus.set(SIG_DFL);
  guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  expect_guarded(map_broken());
  guard.reset();
  EXPECT_EQ(bus.now().sa_handler, SIG_DFL);
}

TEST_F(FaultGuardTest, AHandlerOfTheProgramsOwnAsksHandle) {
  bus.set(SIG_DFL);
  std::optional<FaultGuard> guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  const auto ours = bus.now();
  bus.set(handle_or_count);
  {
    const GuestMemory memory = map_broken();
    for (int i = 0; i < 100; ++i)
      expect_guarded(memory);
    EXPECT_EQ(calls, 0);
    raise(SIGBUS);
    EXPECT_EQ(calls, 1);
  }
  // In the order of a stack, so that the guard finds its own again.
  sigaction(SIGBUS, &ours, nullptr);
  guard.reset();
  EXPECT_EQ(bus.now().sa_handler, SIG_DFL);
}

TEST_F(FaultGuardTest, HandleTakesNothingElse) {
  siginfo_t info = {};
  info.si_code = BUS_ADRERR;
  ucontext_t context = {};
  std::byte byte{};
  info.si_addr = &byte;
  EXPECT_FALSE(FaultGuard::handle(SIGBUS, &info, &context));  // nothing is accessed
  const auto inside = [&](int signal, const siginfo_t* which, void* where) {
    bool taken = true;
    (void)detail::run_guarded(&byte, 1, [&] { taken = FaultGuard::handle(signal, which, where); });
    return taken;
  };
  EXPECT_FALSE(inside(SIGSEGV, &info, &context));
  EXPECT_FALSE(inside(SIGBUS, nullptr, &context));
  EXPECT_FALSE(inside(SIGBUS, &info, nullptr));
  for (const int code : std::initializer_list<int>{SI_USER, SI_TKILL, BUS_ADRALN, BUS_OBJERR,
                                                   BUS_MCEERR_AR, BUS_MCEERR_AO}) {
    info.si_code = code;
    EXPECT_FALSE(inside(SIGBUS, &info, &context)) << code;
  }
  info.si_code = BUS_ADRERR;
  info.si_addr = &byte + 1;
  EXPECT_FALSE(inside(SIGBUS, &info, &context));
}

TEST_F(FaultGuardTest, TheSignalMaskIsThatOfTheAccess) {
  const auto guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  const GuestMemory memory = map_broken();
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
  for (int i = 0; i < 100; ++i)
    expect_guarded(memory);
  sigset_t mask;
  pthread_sigmask(SIG_UNBLOCK, &blocked, &mask);
  EXPECT_EQ(sigismember(&mask, SIGBUS), 0);
  EXPECT_EQ(sigismember(&mask, SIGUSR1), 0);
  EXPECT_EQ(sigismember(&mask, SIGUSR2), 1);
}

// Handlers that interrupt an access.
const GuestMemory* interrupting = nullptr;
std::atomic<int> inner_faults{0};

void access_in_handler(int) {
  const auto inner = interrupting->read<std::uint64_t>(at(0x10000 + 2 * page));
  if (!inner && inner.error().code == Errc::fault) ++inner_faults;
}

TEST_F(FaultGuardTest, AHandlerThatInterruptsAnAccessHasItsOwn) {
  VMSPACE_SKIP_WHERE_HANDLERS_CANT_FAULT();
  const auto guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  const GuestMemory memory = map_broken();
  interrupting = &memory;
  usr.set(access_in_handler);
  std::byte* const host = memory.regions().front()->host_base();
  // The inner one faults, the outer one goes on,
  inner_faults = 0;
  bool went_on = false;
  EXPECT_EQ(detail::run_guarded(host, page,
                                [&] {
                                  raise(SIGUSR1);
                                  went_on = true;
                                }),
            nullptr);
  EXPECT_TRUE(went_on);
  EXPECT_EQ(inner_faults, 1);
  // or faults as well, and the mask is that of the outer one.
  EXPECT_EQ(detail::run_guarded(host, 4 * page,
                                [&] {
                                  raise(SIGUSR1);
                                  touch(memory);
                                }),
            host + page);
  EXPECT_EQ(inner_faults, 2);
  sigset_t mask;
  pthread_sigmask(SIG_BLOCK, nullptr, &mask);
  EXPECT_EQ(sigismember(&mask, SIGUSR1), 0);
  EXPECT_EQ(sigismember(&mask, SIGBUS), 0);
}

TEST_F(FaultGuardTest, HandlersRunOnTheAlternateStack) {
  VMSPACE_SKIP_WHERE_HANDLERS_CANT_FAULT();
  const auto guard = VMSPACE_ASSERT_OK(FaultGuard::install());
  const GuestMemory memory = map_broken();
  interrupting = &memory;
  usr.set(access_in_handler, SA_ONSTACK);
  constexpr int autodisarm = static_cast<int>(1U << 31);  // SS_AUTODISARM, linux/signal.h
  for (const int flags : {0, autodisarm}) {
    // In a thread of its own: the sanitizers have an alternate stack in the others.
    std::thread([&] {
      std::vector<std::byte> stack(std::size_t{1} << 18);
      stack_t alternate = {};
      alternate.ss_sp = stack.data();
      alternate.ss_size = stack.size();
      alternate.ss_flags = flags;
      stack_t before = {};
      ASSERT_EQ(sigaltstack(&alternate, &before), 0);
      inner_faults = 0;
      for (int i = 0; i < 100; ++i) {
        expect_guarded(memory);
        raise(SIGUSR1);  // an access on the alternate stack
      }
      EXPECT_EQ(inner_faults, 100);
      stack_t now = {};
      ASSERT_EQ(sigaltstack(&before, &now), 0);
      EXPECT_EQ(now.ss_sp, stack.data());
      EXPECT_EQ(now.ss_flags, flags);
    }).join();
  }
}

}  // namespace
}  // namespace vmspace::fault_guard_test
