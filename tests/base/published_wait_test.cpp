// SPDX-License-Identifier: Apache-2.0
//
// Published::wait_released(), apart from the rest of the header for length.

#include <array>
#include <chrono>
#include <cstddef>
#include <future>
#include <memory>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "base/published_support.hpp"

namespace vmspace::published_wait_test {
namespace {

using namespace std::chrono_literals;
using test::elsewhere;
using test::Log;
using test::set;
using test::Thing;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(WaitReleased, ReturnsAtOnceWhenNobodyHoldsAnOldValue) {
  Published<int> number{10};
  auto reader = number.reader();
  EXPECT_EQ(reader.current(), 10);
  VMSPACE_EXPECT_OK(number.wait_released(0s));
  VMSPACE_EXPECT_OK(number.wait_released(-1s));
  VMSPACE_EXPECT_OK(number.wait_released(std::chrono::nanoseconds::max()));
  VMSPACE_EXPECT_OK(number.wait_released(std::chrono::nanoseconds::min()));
}

TEST(WaitReleased, TimesOutNamingTheGenerationThatIsStillHeld) {
  Log log;
  Published<Thing> thing{Thing(1, &log)};
  auto reader = thing.reader();
  elsewhere([&] { EXPECT_EQ(reader.current().number, 1); });
  ASSERT_TRUE(set(thing, 2));
  for (const auto timeout : {0ms, 5ms, -5ms}) {
    const auto waited = thing.wait_released(timeout);
    ASSERT_FALSE(waited);
    EXPECT_EQ(waited.error(),
              (Error{.code = Errc::timed_out,
                     .operation = "Published::wait_released",
                     .first = Operand::number(1),
                     .reason = "a Reader or a snapshot still holds this generation"}));
  }
  EXPECT_THAT(log.numbers(), IsEmpty());
  reader.park();
  VMSPACE_EXPECT_OK(thing.wait_released(0s));
  EXPECT_THAT(log.numbers(), ElementsAre(1));
}

TEST(WaitReleased, WakesWhenTheLastHolderLetsGoAndDestroysOnItsOwnThread) {
  Log log;
  Published<Thing> thing{Thing(1, &log)};
  std::promise<void> holds;
  std::promise<void> let_go;
  std::thread holder([&] {
    auto reader = thing.reader();
    EXPECT_EQ(reader.current().number, 1);
    holds.set_value();
    let_go.get_future().wait();
    reader.park();
  });
  holds.get_future().wait();
  ASSERT_TRUE(set(thing, 2));
  auto waiting = std::async(std::launch::async, [&] {
    VMSPACE_EXPECT_OK(thing.wait_released(10min));
    return std::this_thread::get_id();
  });
  EXPECT_THAT(thing.wait_released(1ms), HasError(Errc::timed_out));
  let_go.set_value();
  const auto waiter = waiting.get();
  holder.join();
  EXPECT_THAT(log.numbers(), ElementsAre(1));
  EXPECT_THAT(log.threads(), ElementsAre(waiter));
}

/// A value whose destruction says that it has begun, and goes on when told to.
struct SlowToDestroy {
  std::shared_ptr<std::promise<void>> begun;
  std::shared_future<void> go_on;

  SlowToDestroy() = default;
  SlowToDestroy(const SlowToDestroy&) {}  // only the first is slow
  SlowToDestroy(SlowToDestroy&&) = default;
  SlowToDestroy& operator=(const SlowToDestroy&) = delete;
  ~SlowToDestroy() {
    if (begun == nullptr) return;
    begun->set_value();
    go_on.wait();
  }
};

TEST(WaitReleased, WaitsForWhatAnotherWriterIsDestroying) {
  SlowToDestroy first;
  first.begun = std::make_shared<std::promise<void>>();
  auto begun = first.begun->get_future();
  std::promise<void> go_on;
  first.go_on = go_on.get_future().share();
  const Published<SlowToDestroy> value(std::move(first));
  auto writer = std::async(std::launch::async, [&] {
    return value.update([](SlowToDestroy&) -> Result<void> { return {}; });
  });
  begun.wait();
  const auto waited = value.wait_released(1ms);
  EXPECT_EQ(value.generation(), 2U);
  go_on.set_value();
  ASSERT_FALSE(waited);
  EXPECT_THAT(waited, HasError(Errc::timed_out));
  VMSPACE_EXPECT_OK(value.wait_released(10min));
  EXPECT_TRUE(writer.get());
}

TEST(WaitReleased, ByAThreadWhoseOwnReaderOrSnapshotHoldsAnOldValueTimesOut) {
  Published<int> number{10};
  auto first = number.reader();
  auto second = number.reader();
  auto snapshot = number.snapshot();
  EXPECT_EQ(first.current() + second.current(), 20);
  ASSERT_THAT(number.update([](int&) -> Result<void> { return {}; }), IsOk());
  const auto expect_timeout = [&] {
    EXPECT_EQ(number.wait_released(1ms).error(),
              (Error{.code = Errc::timed_out,
                     .operation = "Published::wait_released",
                     .first = Operand::number(1),
                     .reason = "a Reader or a snapshot still holds this generation"}));
  };
  expect_timeout();
  first.park();
  expect_timeout();
  EXPECT_EQ(second.current(), 10);  // now holds the new value
  expect_timeout();
  snapshot.reset();
  VMSPACE_EXPECT_OK(number.wait_released(0s));
}

// A thread that begins when another has ended may look like it: same stack, same identity.
TEST(WaitReleased, AThreadIsNotTakenForOneThatEnded) {
  for (int round = 0; round < 10; ++round) {
    Published<int> number{10};
    auto reader = number.reader();
    std::thread([&] { EXPECT_EQ(reader.current(), 10); }).join();
    std::thread([&] {
      ASSERT_THAT(number.update([](int&) -> Result<void> { return {}; }), IsOk());
      EXPECT_THAT(number.wait_released(1ms), HasError(Errc::timed_out));
    }).join();
    reader.park();
    VMSPACE_EXPECT_OK(number.wait_released(0s));
  }
}

/// A gate that a destructor stands at until it is told to go on.
struct Gate {
  std::promise<void> reached;
  std::promise<void> open;
};

/// A value whose destructor stops at the gate of its number, if there is one.
struct Gated {
  std::size_t number;
  std::array<std::unique_ptr<Gate>, 5>* gates;

  Gated(std::size_t n, std::array<std::unique_ptr<Gate>, 5>* g) : number(n), gates(g) {}
  Gated(const Gated&) = default;
  Gated(Gated&& other) noexcept
      : number(other.number), gates(std::exchange(other.gates, nullptr)) {}
  Gated& operator=(const Gated&) = delete;
  ~Gated() {
    if (gates == nullptr || (*gates)[number] == nullptr) return;
    (*gates)[number]->reached.set_value();
    (*gates)[number]->open.get_future().wait();
  }
};

TEST(WaitReleased, WaitsNeitherForValuesThatBecameOldMeanwhileNorForTheirDestruction) {
  std::array<std::unique_ptr<Gate>, 5> gates;
  gates[2] = std::make_unique<Gate>();
  gates[3] = std::make_unique<Gate>();
  const Published<Gated> value{Gated(1, &gates)};
  const auto publish = [&](std::size_t number) {
    return value.update([&](Gated& draft) -> Result<void> {
      draft.number = number;
      return {};
    });
  };
  auto first = value.reader();
  EXPECT_EQ(first->number, 1);
  ASSERT_TRUE(publish(2));
  auto second = value.reader();
  EXPECT_EQ(second->number, 2);
  ASSERT_TRUE(publish(3));
  second.park();
  auto waiting = std::async(std::launch::async, [&] { return value.wait_released(10min); });
  gates[2]->reached.get_future().wait();  // it destroys 2, and will wait for 1
  auto writing = std::async(std::launch::async, [&] { return publish(4); });
  gates[3]->reached.get_future().wait();  // 3 became old, and is being destroyed
  gates[2]->open.set_value();
  first.park();
  EXPECT_TRUE(waiting.get());
  gates[3]->open.set_value();
  EXPECT_TRUE(writing.get());
}

TEST(WaitReleased, ASnapshotOfAnotherThreadIsWaitedFor) {
  Published<int> number{10};
  auto snapshot = elsewhere([&] { return number.snapshot(); });
  ASSERT_THAT(number.update([](int&) -> Result<void> { return {}; }), IsOk());
  EXPECT_THAT(number.wait_released(1ms), HasError(Errc::timed_out));
  snapshot.reset();
  VMSPACE_EXPECT_OK(number.wait_released(0s));
}

TEST(WaitReleased, HoldingTheCurrentValueIsNoHindrance) {
  Published<int> number{10};
  ASSERT_THAT(number.update([](int&) -> Result<void> { return {}; }), IsOk());
  auto reader = number.reader();
  const auto snapshot = number.snapshot();
  EXPECT_EQ(reader.current(), 10);
  VMSPACE_EXPECT_OK(number.wait_released(0s));
}

}  // namespace
}  // namespace vmspace::published_wait_test
