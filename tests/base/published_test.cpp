// SPDX-License-Identifier: Apache-2.0

#include "vmspace/base/published.hpp"

#include <memory>
#include <optional>
#include <thread>
#include <type_traits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "base/published_support.hpp"

namespace vmspace::published_test {
namespace {

using namespace std::chrono_literals;
using test::elsewhere;
using test::Log;
using test::set;
using test::Thing;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(Published, AReaderSeesEachPublicationAndItsGeneration) {
  Published<int> number{10};
  auto reader = number.reader();
  EXPECT_EQ(reader.generation(), 0U);
  EXPECT_EQ(reader.current(), 10);
  EXPECT_EQ(reader.generation(), 1U);
  ASSERT_THAT(number.update([](int& draft) -> Result<void> {
    ++draft;
    return {};
  }),
              IsOk());
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
  VMSPACE_EXPECT_OK(number.update([](int&) -> Result<void> { return {}; }));
  EXPECT_EQ(number.generation(), 2U);
}

TEST(Published, CopiesOfAHandleAreTheSameValue) {
  Published<int> number{10};
  const Published<int> copy = number;
  EXPECT_TRUE(copy.same_as(number));
  EXPECT_FALSE(copy.same_as(Published<int>{10}));
  ASSERT_THAT(copy.update([](int& draft) -> Result<void> {
    draft = 11;
    return {};
  }),
              IsOk());
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
  VMSPACE_EXPECT_OK(value.update([](NoAddress& draft) -> Result<void> {
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
  VMSPACE_EXPECT_OK(number.update([](int&) -> Result<void> { return {}; }));
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

}  // namespace
}  // namespace vmspace::published_test
