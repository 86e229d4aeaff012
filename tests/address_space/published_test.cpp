// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/published.hpp"

#include <array>
#include <future>
#include <memory>
#include <optional>
#include <thread>
#include <type_traits>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vmspace {
namespace {

using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

/// Remembers which numbers were destroyed, and on which thread.
class Log {
 public:
  void destroyed(int number) {
    numbers_.push_back(number);
    threads_.push_back(std::this_thread::get_id());
  }
  const std::vector<int>& numbers() const { return numbers_; }
  const std::vector<std::thread::id>& threads() const { return threads_; }

 private:
  std::vector<int> numbers_;
  std::vector<std::thread::id> threads_;
};

/// A published value: its number, and a copy is told apart from what it was copied from by
/// `number`.
struct Thing {
  Thing(int n, Log* l) : number(n), log(l) {}
  Thing(const Thing& other) = default;
  Thing(Thing&& other) noexcept : number(other.number), log(std::exchange(other.log, nullptr)) {}
  Thing& operator=(const Thing&) = delete;
  ~Thing() {
    if (log != nullptr) log->destroyed(number);
  }

  int number;
  Log* log;
};

Result<void> set(const Published<Thing>& thing, int number) {
  return thing.update([&](Thing& draft) -> Result<void> {
    draft.number = number;
    return {};
  });
}

/// Runs `body` on another thread, to its end.
template <typename Body>
auto elsewhere(Body body) {
  return std::async(std::launch::async, std::move(body)).get();
}

TEST(Published, AReaderSeesEachPublicationAndItsGeneration) {
  Published<int> number{10};
  auto reader = number.reader();
  EXPECT_EQ(reader.generation(), 0U);
  EXPECT_EQ(reader.current(), 10);
  EXPECT_EQ(reader.generation(), 1U);
  ASSERT_TRUE(number.update([](int& draft) -> Result<void> {
    ++draft;
    return {};
  }));
  EXPECT_EQ(number.generation(), 2U);
  EXPECT_EQ(reader.generation(), 1U);
  EXPECT_EQ(reader.current(), 11);
  EXPECT_EQ(reader.generation(), 2U);
}

TEST(Published, UpdateGivesWhatTheEditGives) {
  Published<int> number{10};
  const auto old =
      number.update([](int& draft) -> Result<int> { return std::exchange(draft, 20); });
  EXPECT_EQ(*old, 10);
  EXPECT_EQ(*number.snapshot(), 20);
}

TEST(Published, AnEditThatFailsPublishesNothing) {
  Published<int> number{10};
  auto reader = number.reader();
  const int* before = &reader.current();
  const auto failed = number.update([](int& draft) -> Result<void> {
    draft = 99;
    return fail({.code = Errc::no_space, .operation = "edit"});
  });
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error(), (Error{.code = Errc::no_space, .operation = "edit"}));
  EXPECT_EQ(number.generation(), 1U);
  EXPECT_EQ(&reader.current(), before);
  EXPECT_EQ(*before, 10);
}

TEST(Published, AnEditThatThrowsPublishesNothingAndLetsTheNextOneIn) {
  Published<int> number{10};
  EXPECT_THROW(static_cast<void>(number.update([](int& draft) -> Result<void> {
                 draft = 99;
                 throw std::bad_alloc();
               })),
               std::bad_alloc);
  EXPECT_EQ(number.generation(), 1U);
  EXPECT_EQ(*number.snapshot(), 10);
  EXPECT_TRUE(number.update([](int&) -> Result<void> { return {}; }));
  EXPECT_EQ(number.generation(), 2U);
}

TEST(Published, CopiesOfAHandleAreTheSameValue) {
  Published<int> number{10};
  const Published<int> copy = number;
  EXPECT_TRUE(copy.same_as(number));
  EXPECT_FALSE(copy.same_as(Published<int>{10}));
  ASSERT_TRUE(copy.update([](int& draft) -> Result<void> {
    draft = 11;
    return {};
  }));
  EXPECT_EQ(*number.snapshot(), 11);
}

TEST(Published, MovingAHandleCopiesIt) {
  Published<int> number{10};
  const Published<int> moved = std::move(number);
  EXPECT_TRUE(moved.same_as(number));
  Published<int> other{0};
  other = std::move(number);
  EXPECT_TRUE(other.same_as(number));
  EXPECT_EQ(*number.snapshot(), 10);
  static_assert(std::is_nothrow_move_constructible_v<Published<int>> &&
                std::is_nothrow_move_assignable_v<Published<int>>);
}

/// A type that must not be asked for its address with an operator.
struct NoAddress {
  int number = 10;
  NoAddress* operator&() = delete;
  const NoAddress* operator&() const = delete;
};

TEST(Published, TakesNoAddressesWithAnOperatorOfTheValue) {
  const Published<NoAddress> value{NoAddress{}};
  auto reader = value.reader();
  EXPECT_EQ(reader->number, 10);
  EXPECT_EQ(value.snapshot()->number, 10);
  EXPECT_TRUE(value.update([](NoAddress& draft) -> Result<void> {
    draft.number = 11;
    return {};
  }));
  EXPECT_EQ(reader->number, 11);
}

TEST(Published, AnUpdateFromInsideAnEditIsAnErrorAndTheOuterEditGoesOn) {
  Published<int> number{10};
  const Published<int> copy = number;
  Published<int> other{0};
  std::optional<Error> inner;
  std::optional<Error> waiting;
  const auto outer = number.update([&](int& draft) -> Result<void> {
    draft = 11;
    inner = copy.update([](int&) -> Result<void> { return {}; }).error();
    waiting = copy.wait_released(0s).error();
    EXPECT_EQ(*copy.snapshot(), 10);  // readers go on with what is published
    return other.update([](int&) -> Result<void> { return {}; });
  });
  EXPECT_TRUE(outer);
  EXPECT_EQ(inner->code, Errc::would_deadlock);
  EXPECT_EQ(waiting->code, Errc::would_deadlock);
  EXPECT_EQ(*number.snapshot(), 11);
  EXPECT_EQ(number.generation(), 2U);
  EXPECT_EQ(other.generation(), 2U);
  EXPECT_TRUE(number.update([](int&) -> Result<void> { return {}; }));
}

TEST(Published, AWriterDestroysWhatNobodyHoldsWhenItHasPublished) {
  Log log;
  {
    Published<Thing> thing{Thing(1, &log)};
    ASSERT_TRUE(set(thing, 2));
    EXPECT_THAT(log.numbers(), ElementsAre(1));
    ASSERT_TRUE(set(thing, 3));
    EXPECT_THAT(log.numbers(), ElementsAre(1, 2));
  }
  EXPECT_THAT(log.numbers(), ElementsAre(1, 2, 3));
}

TEST(Published, AReaderThatLetsGoLastHandsTheValueBackToTheWriters) {
  Log log;
  Published<Thing> thing{Thing(1, &log)};
  elsewhere([&] {
    auto reader = thing.reader();
    EXPECT_EQ(reader.current().number, 1);
    EXPECT_TRUE(elsewhere([&] { return set(thing, 2).has_value(); }));
    EXPECT_EQ(reader.current().number, 2);
  });
  EXPECT_THAT(log.numbers(), IsEmpty());
  EXPECT_EQ(thing.collect(), 1U);
  EXPECT_EQ(thing.collect(), 0U);
  EXPECT_THAT(log.numbers(), ElementsAre(1));
  EXPECT_THAT(log.threads(), ElementsAre(std::this_thread::get_id()));
}

TEST(Published, NeitherParkNorDestructionOfAReaderOrSnapshotDestroysAValue) {
  Log log;
  Published<Thing> thing{Thing(1, &log)};
  auto parked = thing.reader();
  auto destroyed = std::make_optional(thing.reader());
  auto snapshot = thing.snapshot();
  const std::weak_ptr<const Thing> weak = snapshot;
  EXPECT_EQ(parked->number + (*destroyed)->number, 2);
  ASSERT_TRUE(set(thing, 2));
  parked.park();
  destroyed.reset();
  EXPECT_THAT(log.numbers(), IsEmpty());
  snapshot = weak.lock();
  snapshot.reset();
  EXPECT_TRUE(weak.expired());
  EXPECT_THAT(log.numbers(), IsEmpty());
  EXPECT_EQ(thing.collect(), 1U);
  EXPECT_THAT(log.numbers(), ElementsAre(1));
}

TEST(Published, ReadersAndSnapshotsMayOutliveTheHandles) {
  Log log;
  auto thing = std::make_optional<Published<Thing>>(Thing(1, &log));
  auto reader = std::make_optional(thing->reader());
  auto snapshot = thing->snapshot();
  thing.reset();
  EXPECT_EQ(reader->current().number, 1);
  reader.reset();
  EXPECT_EQ(snapshot->number, 1);
  EXPECT_THAT(log.numbers(), IsEmpty());
  snapshot.reset();
  EXPECT_THAT(log.numbers(), ElementsAre(1));
}

TEST(Published, AParkedReaderKeepsNoOldValueAlive) {
  Log log;
  Published<Thing> thing{Thing(1, &log)};
  auto reader = thing.reader();
  EXPECT_EQ(reader->number, 1);
  reader.park();
  EXPECT_EQ(reader.generation(), 0U);
  ASSERT_TRUE(set(thing, 2));
  EXPECT_THAT(log.numbers(), ElementsAre(1));
  EXPECT_EQ(reader->number, 2);
  EXPECT_EQ(reader.generation(), 2U);
}

TEST(Published, AReaderComesBackFromParkToTheSameValueWhenNothingChanged) {
  Published<int> number{10};
  auto reader = number.reader();
  const int* value = &reader.current();
  reader.park();
  reader.park();
  EXPECT_EQ(&reader.current(), value);
  EXPECT_EQ(reader.generation(), 1U);
  reader.park();
}

TEST(Published, ParkBeforeTheFirstUseDoesNothing) {
  Published<int> number{10};
  auto reader = number.reader();
  reader.park();
  EXPECT_EQ(reader.current(), 10);
}

TEST(Published, AMovedReaderGoesOn) {
  Published<int> number{10};
  auto first = number.reader();
  const int* value = &first.current();
  auto second = std::move(first);
  EXPECT_EQ(&second.current(), value);
  EXPECT_EQ(second.generation(), 1U);
  auto third = number.reader();
  EXPECT_EQ(third.current(), 10);
  third = std::move(second);
  EXPECT_EQ(&third.current(), value);
  third.park();
}

TEST(WaitReleased, ReturnsAtOnceWhenNobodyHoldsAnOldValue) {
  Published<int> number{10};
  auto reader = number.reader();
  EXPECT_EQ(reader.current(), 10);
  EXPECT_TRUE(number.wait_released(0s));
  EXPECT_TRUE(number.wait_released(-1s));
  EXPECT_TRUE(number.wait_released(std::chrono::nanoseconds::max()));
  EXPECT_TRUE(number.wait_released(std::chrono::nanoseconds::min()));
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
    EXPECT_EQ(waited.error(), (Error{.code = Errc::timed_out,
                                     .operation = "Published::wait_released",
                                     .first = Operand::number(1),
                                     .reason = "that generation is still held"}));
  }
  EXPECT_THAT(log.numbers(), IsEmpty());
  reader.park();
  EXPECT_TRUE(thing.wait_released(0s));
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
    EXPECT_TRUE(thing.wait_released(10min));
    return std::this_thread::get_id();
  });
  EXPECT_EQ(thing.wait_released(1ms).error().code, Errc::timed_out);
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
  EXPECT_EQ(waited.error().code, Errc::timed_out);
  EXPECT_TRUE(value.wait_released(10min));
  EXPECT_TRUE(writer.get());
}

TEST(WaitReleased, ByAThreadWhoseOwnReaderOrSnapshotHoldsAnOldValueTimesOut) {
  Published<int> number{10};
  auto first = number.reader();
  auto second = number.reader();
  auto snapshot = number.snapshot();
  EXPECT_EQ(first.current() + second.current(), 20);
  ASSERT_TRUE(number.update([](int&) -> Result<void> { return {}; }));
  const auto expect_timeout = [&] {
    EXPECT_EQ(number.wait_released(1ms).error(),
              (Error{.code = Errc::timed_out,
                     .operation = "Published::wait_released",
                     .first = Operand::number(1),
                     .reason = "that generation is still held"}));
  };
  expect_timeout();
  first.park();
  expect_timeout();
  EXPECT_EQ(second.current(), 10);  // now holds the new value
  expect_timeout();
  snapshot.reset();
  EXPECT_TRUE(number.wait_released(0s));
}

// A thread that begins when another has ended may look like it: same stack, same identity.
TEST(WaitReleased, AThreadIsNotTakenForOneThatEnded) {
  for (int round = 0; round < 10; ++round) {
    Published<int> number{10};
    auto reader = number.reader();
    std::thread([&] { EXPECT_EQ(reader.current(), 10); }).join();
    std::thread([&] {
      ASSERT_TRUE(number.update([](int&) -> Result<void> { return {}; }));
      EXPECT_EQ(number.wait_released(1ms).error().code, Errc::timed_out);
    }).join();
    reader.park();
    EXPECT_TRUE(number.wait_released(0s));
  }
}

/// A gate that a destructor stands at until it is told to go on.
struct Gate {
  std::promise<void> reached;
  std::promise<void> open;
};

/// A value whose destructor stops at the gate of its number, if there is one.
struct Gated {
  int number;
  std::array<std::unique_ptr<Gate>, 5>* gates;

  Gated(int n, std::array<std::unique_ptr<Gate>, 5>* g) : number(n), gates(g) {}
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
  const auto publish = [&](int number) {
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
  ASSERT_TRUE(number.update([](int&) -> Result<void> { return {}; }));
  EXPECT_EQ(number.wait_released(1ms).error().code, Errc::timed_out);
  snapshot.reset();
  EXPECT_TRUE(number.wait_released(0s));
}

TEST(WaitReleased, HoldingTheCurrentValueIsNoHindrance) {
  Published<int> number{10};
  ASSERT_TRUE(number.update([](int&) -> Result<void> { return {}; }));
  auto reader = number.reader();
  const auto snapshot = number.snapshot();
  EXPECT_EQ(reader.current(), 10);
  EXPECT_TRUE(number.wait_released(0s));
}

}  // namespace
}  // namespace vmspace
