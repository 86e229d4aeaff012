// SPDX-License-Identifier: Apache-2.0
//
// vCPUs that enter and leave all the time, as a model of KVM_RUN with immediate_exit and a signal, and
// threads that pause them: no kick is lost, and nobody is in the guest during a pause.

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/vmm/vcpu_gate.hpp"

namespace vmspace::vcpu_gate_stress_test {
namespace {

using namespace std::chrono_literals;

/// KVM_RUN: returns at once when immediate_exit is set before, and otherwise not before it is.
class FakeRun {
 public:
  void kick() {
    immediate_exit = true;
    const std::lock_guard lock(mutex_);
    signal_.notify_one();
  }
  void run() {
    std::unique_lock lock(mutex_);
    signal_.wait(lock, [this] { return immediate_exit.load(); });
  }
  std::atomic<bool> immediate_exit{false};

 private:
  std::mutex mutex_;
  std::condition_variable signal_;
};

TEST(VcpuGateStress, NoKickIsLostAndNobodyRunsDuringAPause) {
  constexpr int rounds = 500;
  const VcpuGate gate(100s);
  std::atomic<int> running{0};
  std::atomic<bool> done{false};
  std::atomic<bool> sound{true};
  std::atomic<int> entries{0};
  int guest_memory = 0;  // not atomic: vCPUs read it inside, and who pauses writes it

  std::array<FakeRun, 3> runs;
  std::vector<std::thread> vcpus;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    vcpus.emplace_back([&, i] {
      FakeRun& run = runs[i];
      const auto vcpu = gate.add_vcpu([&run] { run.kick(); });
      for (unsigned turn = 0; !done; ++turn) {
        {
          const auto inside = vcpu.enter();
          ++running;
          ++entries;
          if (guest_memory < 0) sound = false;
          if (turn % 2 == 0) run.run();  // until a kick: a lost one would be waited for for ever
          --running;
        }
        run.immediate_exit = false;
      }
    });
  }
  std::mutex pausing;  // the two nest, but only one of them may write
  std::vector<std::thread> pausers;
  for (int i = 0; i < 2; ++i) {
    pausers.emplace_back([&] {
      for (int round = 0; round < rounds; ++round) {
        const int before = entries;
        {
          const auto paused = gate.pause_vcpus();
          if (!paused || running != 0) sound = false;
          const std::lock_guard lock(pausing);
          ++guest_memory;
        }
        while (entries == before)
          std::this_thread::yield();
      }
    });
  }
  for (std::thread& pauser : pausers)
    pauser.join();
  done = true;
  for (FakeRun& run : runs)
    run.kick();
  for (std::thread& vcpu : vcpus)
    vcpu.join();
  EXPECT_TRUE(sound);
  EXPECT_EQ(guest_memory, 2 * rounds);
}

}  // namespace
}  // namespace vmspace::vcpu_gate_stress_test
