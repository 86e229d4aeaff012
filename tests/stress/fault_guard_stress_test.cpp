// SPDX-License-Identifier: Apache-2.0
//
// A file that its owner truncates and extends while threads access it as guest memory, and guards that
// come and go meanwhile.

#include <pthread.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/guest_cursor.hpp"
#include "vmspace/testing.hpp"

#include "memory/guarded_support.hpp"

namespace vmspace::fault_guard_stress_test {
namespace {

using test::at;
using test::Guarded;
using test::page;

const GuestMemory* interrupted = nullptr;
std::atomic<std::uint64_t> in_handlers{0};

void access_in_handler(int) {
  const auto value = interrupted->read<std::uint64_t>(at(0x10000 + 6 * page));
  if (value || value.error().code == Errc::fault) in_handlers.fetch_add(1);
}

class GuardedStress : public Guarded {
 protected:
  /// Runs `access(thread, round)`, which gives a result, in threads of its own while the file shrinks
  /// and grows; gives how many were `fault`, and expects the others to be ok.
  template <typename Access>
  std::uint64_t run(Access access) {
    // ThreadSanitizer takes a hundred times as long for a signal.
    constexpr std::uint64_t rounds = VMSPACE_DETAIL_TSAN ? 1'000 : 20'000;
    std::atomic<std::uint64_t> faults{0};
    std::atomic<std::uint64_t> others{0};
    std::atomic<bool> done{false};
    std::thread owner([&] {
      for (std::uint64_t i = 0; !done; ++i)
        keep(1 + i % 8);
    });
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < 3; ++thread) {
      threads.emplace_back([&, thread] {
        // On a busy machine the owner may not have run by then.
        for (std::uint64_t i = 0; i < rounds || faults == 0; ++i) {
          const auto result = access(thread, i);
          if (result) continue;
          (result.error().code == Errc::fault ? faults : others).fetch_add(1);
        }
      });
    }
    for (std::thread& thread : threads)
      thread.join();
    done = true;
    owner.join();
    EXPECT_EQ(others, 0U);
    return faults;
  }
};

TEST_F(GuardedStress, EveryAccessIsWholeOrAFault) {
  const std::uint64_t faults = run([&](unsigned thread, std::uint64_t i) -> Result<void> {
    const GuestAddress where = at(base + (i * 1001 + thread * 64) % (size - 512) / 8 * 8);
    std::array<std::byte, 500> buffer{};
    const auto drop = [](const auto& result) -> Result<void> {
      if (!result) return fail(result.error());
      return {};
    };
    switch (i % 8) {
      case 0: return drop(memory.read<std::uint64_t>(where));
      case 1: return memory.write(where, i);
      case 2: return memory.read_slice(where, buffer);
      case 3: return memory.write_slice(where, buffer);
      case 4:
        // ThreadSanitizer holds a lock during an ordered access, which a fault leaves locked.
        if (VMSPACE_DETAIL_TSAN) return {};
        return drop(memory.fetch_or<std::uint64_t>(where, i));
      case 5: return memory.fill({where, 300}, std::byte{1});
      case 6: return memory.copy(at(base + 100), {where, 300});
      default: {
        const GuestRange ranges[] = {{where, 100}, {at(base + 5 * page), 200}};
        auto writer = GuestWriter::make(memory, ranges);
        if (!writer) return fail(writer.error());
        return writer->write_exact(std::span(buffer).first(300));
      }
    }
  });
  EXPECT_GT(faults, 0U);
}

TEST_F(GuardedStress, SignalHandlersAccessItToo) {
  VMSPACE_SKIP_WHERE_HANDLERS_CANT_FAULT();
  interrupted = &memory;
  struct sigaction action = {};
  struct sigaction before = {};
  action.sa_handler = access_in_handler;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  ASSERT_EQ(sigaction(SIGUSR1, &action, &before), 0);
  const std::uint64_t faults = run([&](unsigned, std::uint64_t i) {
    if (i % 16 == 0) pthread_kill(pthread_self(), SIGUSR1);
    return memory.read<std::uint64_t>(at(base + i % 8 * page));
  });
  EXPECT_GT(faults, 0U);
  EXPECT_GT(in_handlers, 0U);
  sigaction(SIGUSR1, &before, nullptr);
}

TEST_F(GuardedStress, GuardsComeAndGoMeanwhile) {
  const std::uint64_t faults = run([&](unsigned, std::uint64_t i) -> Result<std::uint64_t> {
    const auto guard = FaultGuard::install();
    if (!guard) return fail(guard.error());
    const FaultGuard copy = *guard;  // NOLINT(performance-unnecessary-copy-initialization)
    return memory.load<std::uint64_t>(at(base + i % 8 * page), std::memory_order_acquire);
  });
  EXPECT_GT(faults, 0U);
}

}  // namespace
}  // namespace vmspace::fault_guard_stress_test
