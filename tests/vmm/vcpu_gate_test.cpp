// SPDX-License-Identifier: Apache-2.0
//
// The gate with threads that play vCPUs: the guest is a wait for a kick.

#include "vmspace/vmm/vcpu_gate.hpp"

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <thread>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/memory_recorder.hpp"
#include "vmspace/vmm/vm_memory.hpp"

namespace vmspace::vcpu_gate_test {
namespace {

using namespace literals;
using namespace std::chrono_literals;

constexpr auto long_enough = 60s;  // for what must happen

/// A flag that threads wait for.
class Flag {
 public:
  void set() {
    const std::lock_guard lock(mutex_);
    is_set_ = true;
    changed_.notify_all();
  }
  [[nodiscard]] bool wait(std::chrono::nanoseconds limit = long_enough) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, limit, [this] { return is_set_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_set_ = false;
};

/// A vCPU that enters the guest once, and stays there until it is kicked or told to leave.
class FakeVcpu {
 public:
  explicit FakeVcpu(const VcpuGate& gate, bool heeds_kicks = true)
      : thread_([this, &gate, heeds_kicks] {
          const auto vcpu = gate.add_vcpu([this, heeds_kicks] {
            ++kicks;
            if (heeds_kicks) leave_.set();
          });
          {
            const auto inside = vcpu.enter();
            entered.set();
            EXPECT_TRUE(leave_.wait());
          }
          left.set();
          EXPECT_TRUE(finish_.wait());
        }) {}
  ~FakeVcpu() {
    leave();
    finish_.set();
    thread_.join();
  }
  void leave() { leave_.set(); }

  Flag entered;
  Flag left;
  int kicks = 0;  // written under the gate's lock

 private:
  Flag leave_;
  Flag finish_;
  std::thread thread_;
};

TEST(VcpuGate, WithoutVcpusAPauseSucceedsAtOnce) {
  const VcpuGate gate(0ns);
  EXPECT_THAT(gate.pause_vcpus(), IsOk());
}

TEST(VcpuGate, APauseKicksWhoIsInsideAndWaitsUntilItHasLeft) {
  const VcpuGate gate(long_enough);
  FakeVcpu first(gate);
  FakeVcpu second(gate);
  ASSERT_TRUE(first.entered.wait());
  ASSERT_TRUE(second.entered.wait());
  const auto paused = gate.pause_vcpus();
  ASSERT_THAT(paused, IsOk());
  EXPECT_TRUE(first.left.wait());
  EXPECT_TRUE(second.left.wait());
  EXPECT_EQ(first.kicks, 1);
  EXPECT_EQ(second.kicks, 1);
}

TEST(VcpuGate, WhoIsOutsideIsNeitherKickedNorWaitedFor) {
  const VcpuGate gate(0ns);
  FakeVcpu vcpu(gate);
  ASSERT_TRUE(vcpu.entered.wait());
  vcpu.leave();
  ASSERT_TRUE(vcpu.left.wait());  // it handles an exit
  EXPECT_THAT(gate.pause_vcpus(), IsOk());
  EXPECT_EQ(vcpu.kicks, 0);
}

TEST(VcpuGate, NobodyEntersUntilTheLastPauseHasEnded) {
  VcpuGate gate(long_enough);
  auto outer = gate.pause_vcpus();
  ASSERT_THAT(outer, IsOk());
  VMSPACE_ASSERT_OK(gate.pause({}));  // that of a change
  std::optional inner(gate.pause_vcpus());
  ASSERT_THAT(*inner, IsOk());
  FakeVcpu vcpu(gate);
  EXPECT_FALSE(vcpu.entered.wait(20ms));
  inner.reset();
  EXPECT_FALSE(vcpu.entered.wait(20ms));
  gate.resume();
  EXPECT_FALSE(vcpu.entered.wait(20ms));
  { const auto last = *std::move(outer); }
  EXPECT_TRUE(vcpu.entered.wait());
}

TEST(VcpuGate, APauseThatIsReplacedEnds) {
  const VcpuGate gate(long_enough);
  auto first = gate.pause_vcpus();
  auto second = gate.pause_vcpus();
  ASSERT_THAT(first, IsOk());
  ASSERT_THAT(second, IsOk());
  *first = *std::move(second);
  FakeVcpu vcpu(gate);
  EXPECT_FALSE(vcpu.entered.wait(20ms));
  first = fail({.code = Errc::bad_state, .operation = "test", .reason = "ends the pause"});
  EXPECT_TRUE(vcpu.entered.wait());
}

TEST(VcpuGate, AVcpuThatDoesNotLeaveMakesThePauseTimeOutAndTheGateOpensAgain) {
  const VcpuGate gate(20ms);
  FakeVcpu obedient(gate);
  FakeVcpu stubborn(gate, false);
  FakeVcpu another(gate, false);
  ASSERT_TRUE(obedient.entered.wait());
  ASSERT_TRUE(stubborn.entered.wait());
  ASSERT_TRUE(another.entered.wait());
  EXPECT_THAT(gate.pause_vcpus(), HasError(Errc::timed_out));
  // It was kicked; that it had the time to leave is certain only now.
  ASSERT_TRUE(obedient.left.wait());
  const auto paused = gate.pause_vcpus();
  ASSERT_THAT(paused, HasError(Errc::timed_out));
  EXPECT_EQ(paused.error().first, Operand::number(2)) << paused.error().message();
  EXPECT_STREQ(paused.error().operation, "VcpuGate::pause_vcpus");
  FakeVcpu later(gate);
  EXPECT_TRUE(later.entered.wait());
}

TEST(VcpuGate, ATimeoutLeavesAnotherPauseAsItIs) {
  VcpuGate gate(20ms);
  FakeVcpu stubborn(gate, false);
  ASSERT_TRUE(stubborn.entered.wait());
  EXPECT_THAT(gate.pause_vcpus(), HasError(Errc::timed_out));
  stubborn.leave();
  ASSERT_TRUE(stubborn.left.wait());
  VMSPACE_ASSERT_OK(gate.pause({}));
  FakeVcpu waiting(gate);
  EXPECT_FALSE(waiting.entered.wait(20ms));
  gate.resume();
  EXPECT_TRUE(waiting.entered.wait());
}

TEST(VcpuGate, AThreadThatIsInsideCantPause) {
  const VcpuGate gate(long_enough);
  const auto vcpu = gate.add_vcpu([] {});
  {
    const auto inside = vcpu.enter();
    EXPECT_THAT(gate.pause_vcpus(), HasError(Errc::would_deadlock));
  }
  const auto paused = gate.pause_vcpus();
  EXPECT_THAT(paused, IsOk());
}

TEST(VcpuGate, WithoutAKickAVcpuIsOnlyWaitedFor) {
  const VcpuGate gate(20ms);
  const auto vcpu = gate.add_vcpu({});
  const auto pause = [&] {
    Result<void> done;
    std::thread([&] {
      if (const auto paused = gate.pause_vcpus(); !paused) done = fail(paused.error());
    }).join();
    return done;
  };
  {
    const auto inside = vcpu.enter();
    EXPECT_THAT(pause(), HasError(Errc::timed_out));
  }
  EXPECT_THAT(pause(), IsOk());
}

TEST(VcpuGate, AKickThatThrowsEndsThePause) {
  const VcpuGate gate(long_enough);
  const auto vcpu = gate.add_vcpu([] { throw std::bad_alloc(); });
  {
    const auto inside = vcpu.enter();
    std::thread([&] {
      EXPECT_THROW(static_cast<void>(gate.pause_vcpus()), std::bad_alloc);
    }).join();
  }
  FakeVcpu later(gate);
  EXPECT_TRUE(later.entered.wait(1s)) << "the gate is open";
}

TEST(VcpuGate, WhoIsNoVcpuAnyMoreIsNotKicked) {
  const VcpuGate gate(0ns);
  {
    const auto gone = gate.add_vcpu([] { ADD_FAILURE() << "kicked"; });
    const auto inside = gone.enter();
  }
  EXPECT_THAT(gate.pause_vcpus(), IsOk());
}

TEST(VcpuGate, MayBeDestroyedBeforeItsVcpusAndPauses) {
  std::optional<VcpuGate> gate(long_enough);
  const auto vcpu = gate->add_vcpu([] {});
  std::optional paused(gate->pause_vcpus());
  ASSERT_THAT(*paused, IsOk());
  gate.reset();
  paused.reset();
  const auto inside = vcpu.enter();
}

/// A region that moves onto a part of itself, which takes the gate.
class VcpuGateAndVmMemory : public testing::Test {
 protected:
  void SetUp() override {
    VMSPACE_ASSERT_OK(memory.set_gate(gate));
    const auto plugged = memory.plug({.name = "bar",
                                      .type = RegionType::device_memory,
                                      .base = GuestAddress(3_GiB),
                                      .size = 64_KiB,
                                      .backing = {.source = MemorySource::shmem}});
    ASSERT_THAT(plugged, IsOk());
    bar = (*plugged)->shared_description();
  }
  Result<AddressSpaceRegionPtr> move_bar() const {
    return memory.relocate(bar, GuestAddress(3_GiB + 32_KiB));
  }

  const std::shared_ptr<VcpuGate> gate = std::make_shared<VcpuGate>(long_enough);
  const VmMemory memory = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
  AddressSpaceRegionPtr bar;
};

TEST_F(VcpuGateAndVmMemory, AVcpusThreadMovesABarWhileAnotherWaitsForItsTurn) {
  // What the other one does while it waits: it plugs memory, and gets its turn when the move is done.
  std::thread other;
  Flag other_is_outside;
  const auto listener = std::make_shared<MemoryRecorder>();
  VMSPACE_ASSERT_OK(memory.add_listener(listener));
  listener->on_call([&](std::string_view line) -> Result<void> {
    if (!line.starts_with("prepare -bar")) return {};
    other = std::thread([&] {
      const auto vcpu = gate->add_vcpu([] {});
      { const auto inside = vcpu.enter(); }
      other_is_outside.set();
      EXPECT_THAT(memory.plug({.name = "dimm",
                               .base = GuestAddress(16_GiB),
                               .size = 64_KiB,
                               .backing = {.source = MemorySource::shmem}}),
                  IsOk());
      const auto inside = vcpu.enter();
    });
    EXPECT_TRUE(other_is_outside.wait());
    return {};
  });
  std::thread mover([&] {
    const auto vcpu = gate->add_vcpu([] {});
    { const auto inside = vcpu.enter(); }
    EXPECT_THAT(move_bar(), IsOk());
    const auto inside = vcpu.enter();
  });
  mover.join();
  ASSERT_TRUE(other.joinable());
  other.join();
  listener->on_call({});
  EXPECT_EQ(memory.map()->memory.regions().size(), 2u);
}

TEST_F(VcpuGateAndVmMemory, AVcpuThatDoesNotLeaveRefusesTheChange) {
  const auto impatient = std::make_shared<VcpuGate>(20ms);
  VMSPACE_ASSERT_OK(memory.set_gate(impatient));
  FakeVcpu stubborn(*impatient, false);
  ASSERT_TRUE(stubborn.entered.wait());
  const auto before = memory.generation();
  EXPECT_THAT(move_bar(), HasError(Errc::timed_out));
  EXPECT_EQ(memory.generation(), before);
  stubborn.leave();
  ASSERT_TRUE(stubborn.left.wait());
  EXPECT_THAT(move_bar(), IsOk());
}

TEST_F(VcpuGateAndVmMemory, TheVmmMayChangeMemoryInsideItsOwnPause) {
  std::optional paused(gate->pause_vcpus());
  ASSERT_THAT(*paused, IsOk());
  EXPECT_THAT(move_bar(), IsOk());
  FakeVcpu vcpu(*gate);
  EXPECT_FALSE(vcpu.entered.wait(20ms));
  paused.reset();
  EXPECT_TRUE(vcpu.entered.wait());
}

}  // namespace
}  // namespace vmspace::vcpu_gate_test
