// SPDX-License-Identifier: Apache-2.0
//
// Changes in steps: what a Writer keeps out, publishes and drops.

#include <chrono>
#include <future>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/published.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/testing.hpp"

#include "published_support.hpp"

namespace {

using vmspace::Errc;
using vmspace::Published;
using vmspace::test::elsewhere;
using vmspace::test::Log;
using vmspace::test::set;
using vmspace::test::Thing;

TEST(PublishedWriter, PublishesADraftWhenToldTo) {
  const Published<int> number(1);
  auto reader = number.reader();
  auto writer = number.writer().value();
  writer.draft() = 2;
  EXPECT_EQ(writer.current(), 1);
  EXPECT_EQ(reader.current(), 1);

  writer.publish();
  EXPECT_EQ(writer.current(), 2);
  EXPECT_EQ(reader.current(), 2);
  EXPECT_EQ(number.generation(), 2u);
}

TEST(PublishedWriter, PublishesSeveralTimesInItsTurn) {
  const Published<int> number(1);
  auto writer = number.writer().value();
  ++writer.draft();
  writer.publish();
  ++writer.draft();
  writer.publish();
  EXPECT_EQ(writer.current(), 3);
  EXPECT_EQ(number.generation(), 3u);
}

TEST(PublishedWriter, WithoutADraftPublishesNothing) {
  const Published<int> number(1);
  auto writer = number.writer().value();
  writer.publish();
  EXPECT_EQ(number.generation(), 1u);
}

TEST(PublishedWriter, DropsADraftThatWasNotPublished) {
  const Published<int> number(1);
  number.writer().value().draft() = 2;
  EXPECT_EQ(*number.snapshot(), 1);
  EXPECT_EQ(number.generation(), 1u);
}

TEST(PublishedWriter, BeginsANewDraftAfterRollingBack) {
  const Published<int> number(1);
  auto writer = number.writer().value();
  writer.draft() = 2;
  writer.roll_back();
  EXPECT_EQ(writer.draft(), 1);
  writer.draft() = 3;
  writer.publish();
  EXPECT_EQ(*number.snapshot(), 3);
  EXPECT_EQ(number.generation(), 2u);
}

TEST(PublishedWriter, ExcludesOtherWritersUntilItIsGone) {
  const Published<int> number(1);
  auto writer = std::make_unique<Published<int>::Writer>(number.writer().value());
  auto other = std::async(std::launch::async, [&] {
    return number.update([](int& draft) -> vmspace::Result<int> { return draft *= 10; });
  });
  EXPECT_EQ(other.wait_for(std::chrono::milliseconds(20)), std::future_status::timeout);
  writer->draft() = 2;
  writer->publish();
  writer.reset();
  EXPECT_EQ(other.get().value(), 20);
}

TEST(PublishedWriter, OfTheSameThreadWouldDeadlock) {
  const Published<int> number(1);
  const auto writer = number.writer().value();
  EXPECT_EQ(number.writer("second").error().code, Errc::would_deadlock);
  EXPECT_STREQ(number.writer("second").error().operation, "second");
  const auto update = number.update([](int&) -> vmspace::Result<void> { return {}; });
  EXPECT_EQ(update.error().code, Errc::would_deadlock);
  EXPECT_EQ(number.wait_released({}).error().code, Errc::would_deadlock);
  // A turn for another value is none for this one.
  EXPECT_TRUE(Published<int>(1).writer());
}

TEST(PublishedWriter, GivesItsTurnOnWhenMoved) {
  const Published<int> number(1);
  auto writer = number.writer().value();
  auto taken = std::move(writer);
  taken.draft() = 2;
  taken.publish();
  const Published<int> another(7);
  taken = another.writer().value();
  EXPECT_EQ(taken.current(), 7);
  EXPECT_EQ(number.writer().value().current(), 2);
}

TEST(PublishedWriter, KeepsTheValueAliveWithoutAHandle) {
  auto number = std::make_unique<Published<int>>(1);
  auto writer = number->writer().value();
  number.reset();
  writer.draft() = 2;
  writer.publish();
  EXPECT_EQ(writer.current(), 2);
}

TEST(PublishedWriter, DestroysOldValuesOnItsThreadAfterItsTurn) {
  Log log;
  const Published<Thing> thing(Thing(1, &log));
  elsewhere([&] {
    auto writer = thing.writer().value();
    writer.draft().number = 2;
    writer.publish();
    EXPECT_TRUE(log.numbers().empty());
    return 0;
  });
  EXPECT_EQ(log.numbers(), std::vector{1});
  EXPECT_NE(log.threads().front(), std::this_thread::get_id());
}

}  // namespace
