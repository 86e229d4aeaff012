// SPDX-License-Identifier: Apache-2.0

#include "vmspace/virtio/split_queue.hpp"

#include <cstdint>
#include <initializer_list>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/memory/guest_cursor.hpp"

#include "virtio/driver.hpp"

namespace vmspace::split_queue_test {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;
using namespace test;

constexpr std::uint16_t next = SplitDescriptor::has_next;
constexpr std::uint16_t writable = SplitDescriptor::writable;
constexpr std::uint16_t indirect = SplitDescriptor::indirect;
constexpr std::uint64_t data = Driver::data;

// Whether a queue of this driver gives `code` for what it offers, and is where it was.
void expect_refused(const Driver& driver, Errc code) {
  SplitQueue queue = driver.queue();
  DescriptorChain chain;
  EXPECT_THAT(queue.pop(driver.memory, chain), HasError(code));
  EXPECT_EQ(queue.state(), SplitQueueState{});
  EXPECT_THAT(queue.pop(driver.memory, chain), HasError(code)) << "and again";
}

TEST(SplitQueue, GivesTheBuffersOfARequestAndTakesItBack) {
  Driver driver(8);
  SplitQueue queue = driver.queue();
  DescriptorChain chain;
  EXPECT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(false));
  driver.describe(5, data, 16, next, 2);
  driver.describe(2, data + 64, 0, next, 7);  // of no bytes
  driver.describe(7, data + 128, 512, writable | next, 0);
  driver.describe(0, data + 1024, 1, writable);
  driver.offer(5);
  ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
  EXPECT_EQ(chain.id(), (RequestId{.number = 5, .entries = 1}));
  EXPECT_THAT(chain.readable(), ElementsAre(GuestRange{at(data), 16}));
  EXPECT_THAT(chain.writable(),
              ElementsAre(GuestRange{at(data + 128), 512}, GuestRange{at(data + 1024), 1}));
  EXPECT_EQ(queue.in_flight(), 1);
  EXPECT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(false));
  ASSERT_THAT(queue.push_used(driver.memory, {5, 1}, 513), IsOk());
  EXPECT_EQ(driver.used_index(), 1);
  EXPECT_EQ(driver.used_head(0), 5U);
  EXPECT_EQ(driver.used_length(0), 513U);
  EXPECT_THAT(queue.push_used(driver.memory, {5, 1}, 513), HasError(Errc::bad_state));
}

/// A request, number 1, of 16 bytes to read and 32 to write.
DescriptorChain pop_read_and_write(Driver& driver, SplitQueue& queue) {
  DescriptorChain chain;
  driver.describe(1, data, 16, next, 2);
  driver.describe(2, data + 64, 32, writable);
  driver.offer(1);
  EXPECT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
  return chain;
}

TEST(SplitQueue, KeepsTheBuffersThatItHasReadWhateverTheDriverWritesAfterwards) {
  Driver driver(4);
  SplitQueue queue = driver.queue();
  const DescriptorChain chain = pop_read_and_write(driver, queue);
  ASSERT_THAT(driver.memory.fill({driver.options.descriptors, 4 * 16}, std::byte{0xff}), IsOk());
  EXPECT_EQ(chain.id(), (RequestId{.number = 1, .entries = 1}));
  EXPECT_THAT(chain.readable(), ElementsAre(GuestRange{at(data), 16}));
  EXPECT_THAT(chain.writable(), ElementsAre(GuestRange{at(data + 64), 32}));
}

TEST(SplitQueue, AChainThatWasMovedFromHasNoRequest) {
  Driver driver(4);
  SplitQueue queue = driver.queue();
  DescriptorChain chain = pop_read_and_write(driver, queue);
  DescriptorChain kept = std::move(chain);
  EXPECT_THAT(kept.readable(), SizeIs(1));
  EXPECT_THAT(kept.writable(), SizeIs(1));
  EXPECT_THAT(chain.readable(), SizeIs(0));  // NOLINT(bugprone-use-after-move): defined
  EXPECT_THAT(chain.writable(), SizeIs(0));
  EXPECT_EQ(chain.id(), RequestId{});
  chain = std::move(kept);
  EXPECT_THAT(chain.writable(), ElementsAre(GuestRange{at(data + 64), 32}));
  EXPECT_THAT(kept.writable(), SizeIs(0));  // NOLINT(bugprone-use-after-move)
}

TEST(SplitQueue, GoesRoundAndRoundPast16Bits) {
  Driver driver(2);
  driver.set_available_index(65534);
  SplitQueue queue = driver.queue({.next_available = 65534, .next_used = 65534});
  DescriptorChain chain;
  driver.describe(1, data, 1);
  for (int i = 0; i < 5; ++i) {
    driver.offer(1);
    ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
    ASSERT_THAT(queue.push_used(driver.memory, {1, 1}, 0), IsOk());
  }
  EXPECT_EQ(driver.used_index(), 3);
  EXPECT_EQ(queue.state(), (SplitQueueState{.next_available = 3, .next_used = 3}));
}

TEST(SplitQueue, IsNotMadeOfWhatNoDriverMaySet) {
  const auto with = [](auto change) {
    SplitQueueOptions options{
        .size = 8, .descriptors = at(0x1000), .available = at(0x2000), .used = at(0x3000)};
    change(options);
    return SplitQueue::make(options);
  };
  EXPECT_THAT(with([](auto&) {}), IsOk());
  for (const std::uint16_t size : std::initializer_list<std::uint16_t>{0, 3, 32769, 65535}) {
    EXPECT_THAT(with([&](auto& o) { o.size = size; }), HasError(Errc::invalid_argument)) << size;
  }
  EXPECT_THAT(with([](auto& o) { o.size = 32768; }), IsOk());
  EXPECT_THAT(with([](auto& o) { o.descriptors = at(8); }), HasError(Errc::misaligned));
  EXPECT_THAT(with([](auto& o) { o.available = at(1); }), HasError(Errc::misaligned));
  EXPECT_THAT(with([](auto& o) { o.used = at(2); }), HasError(Errc::misaligned));
  EXPECT_THAT(with([](auto& o) { o.descriptors = at(top - 15); }), HasError(Errc::overflow));
  EXPECT_THAT(with([](auto& o) { o.used = at(top - 3); }), HasError(Errc::overflow));
  const SplitQueueOptions options{.size = 8, .used = at(0)};
  EXPECT_THAT(SplitQueue::make(options, {.next_available = 9, .next_used = 0}),
              HasError(Errc::invalid_argument));
  EXPECT_THAT(SplitQueue::make(options, {.next_available = 0, .next_used = 1}),
              HasError(Errc::invalid_argument));
  EXPECT_THAT(SplitQueue::make(options, {.next_available = 3, .next_used = 65531}), IsOk());
}

TEST(SplitQueue, RefusesIndicesThatNoDriverReaches) {
  Driver driver(8);
  driver.describe(0, data, 1);
  driver.set_available_index(9);
  expect_refused(driver, Errc::corrupt);
  driver.set_available_index(65535);  // one back
  expect_refused(driver, Errc::corrupt);
  // Eight are out: a ninth is refused, whatever the ring says, until one is back.
  driver.set_available_index(8);
  SplitQueue queue = driver.queue();
  DescriptorChain chain;
  for (int i = 0; i < 8; ++i)
    ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
  driver.set_available_index(9);
  EXPECT_THAT(queue.pop(driver.memory, chain), HasError(Errc::corrupt));
  ASSERT_THAT(queue.push_used(driver.memory, {0, 1}, 0), IsOk());
  EXPECT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
}

TEST(SplitQueue, RefusesDescriptorsOutOfTheTable) {
  Driver driver(8);
  driver.offer(8);
  expect_refused(driver, Errc::corrupt);
  driver = Driver(8);
  driver.describe(0, data, 1, next, 8);
  driver.offer(0);
  expect_refused(driver, Errc::corrupt);
  driver.describe(0, data, 1, next, 65535);
  expect_refused(driver, Errc::corrupt);
}

TEST(SplitQueue, RefusesLoopsAndChainsThatAreTooLong) {
  Driver driver(8);
  driver.describe(0, data, 1, next, 0);
  driver.offer(0);
  expect_refused(driver, Errc::corrupt);
  for (std::uint16_t i = 0; i < 8; ++i)
    driver.describe(i, data, 1, next, static_cast<std::uint16_t>((i + 1) % 8));
  expect_refused(driver, Errc::corrupt);
  driver.describe(7, data, 1);
  SplitQueue queue = driver.queue();
  DescriptorChain chain;
  EXPECT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true)) << "as long as the queue";
  EXPECT_THAT(chain.readable(), SizeIs(8));
}

TEST(SplitQueue, RefusesBuffersToReadBehindThoseToWrite) {
  Driver driver(8);
  driver.describe(0, data, 1, writable | next, 1);
  driver.describe(1, data, 1);
  driver.offer(0);
  expect_refused(driver, Errc::corrupt);
}

TEST(SplitQueue, RefusesChainsOfMoreThan4GiB) {
  Driver driver(8);
  driver.describe(0, 0, 0xffff'ffff, next, 1);
  driver.describe(1, 0, 1, next, 2);
  driver.describe(2, 0, 1);
  driver.offer(0);
  expect_refused(driver, Errc::corrupt);
  driver.describe(1, 0, 1);
  SplitQueue queue = driver.queue();
  DescriptorChain chain;
  EXPECT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true)) << "2^32 bytes";
  // What is no memory is found when a cursor is made.
  EXPECT_THAT(GuestReader::make(driver.memory, chain.readable()), HasError(Errc::not_found));
}

TEST(SplitQueue, RefusesRingsAndTablesThatAreNotInMemory) {
  Driver driver(8, true);
  driver.options.available = at(0x1000);
  expect_refused(driver, Errc::not_found);
  driver = Driver(8, true);
  driver.describe(0, top - 15, 32, indirect);
  driver.offer(0);
  expect_refused(driver, Errc::not_found);
  // The second entry of a table that ends with the address space has no address.
  driver.memory = *driver.memory.with_region(region({top - page + 1, page}));
  driver.describe_in(top - 15, 0, data, 1, next, 1);
  expect_refused(driver, Errc::overflow);
  driver = Driver(8);
  driver.describe(0, data, 1);
  driver.offer(0);
  driver.options.used = at(0x1000);
  SplitQueue queue = driver.queue();
  DescriptorChain chain;
  ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
  EXPECT_THAT(queue.push_used(driver.memory, {0, 1}, 0), HasError(Errc::not_found));
  EXPECT_EQ(queue.in_flight(), 1) << "it was not given back";
  EXPECT_THAT(queue.push_used(driver.memory, {8, 1}, 0), HasError(Errc::out_of_bounds));
}

TEST(SplitQueue, FollowsOneIndirectTable) {
  Driver driver(4, true);
  const std::uint64_t table = data + 8;  // tables need no alignment
  driver.describe(0, data + 0x1000, 4, next, 1);
  driver.describe(1, table, 3 * 16, indirect | writable);  // the flag is to be ignored
  driver.describe_in(table, 0, data + 0x2000, 8, next, 2);
  driver.describe_in(table, 2, data + 0x3000, 16, writable);
  driver.offer(0);
  SplitQueue queue = driver.queue();
  DescriptorChain chain;
  ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
  EXPECT_THAT(chain.readable(),
              ElementsAre(GuestRange{at(data + 0x1000), 4}, GuestRange{at(data + 0x2000), 8}));
  EXPECT_THAT(chain.writable(), ElementsAre(GuestRange{at(data + 0x3000), 16}));
}

TEST(SplitQueue, RefusesIndirectTablesThatBreakTheRules) {
  const std::uint64_t table = data;
  const auto refused = [&](bool negotiated, std::uint32_t size, std::uint16_t flags,
                           std::uint16_t inner_flags, std::uint16_t inner_next) {
    Driver driver(4, negotiated);
    driver.describe(0, table, size, flags, 1);
    driver.describe(1, data, 1);
    for (std::uint32_t i = 0; i < 8; ++i)
      driver.describe_in(table, i, table, 16, inner_flags, inner_next);
    driver.offer(0);
    expect_refused(driver, Errc::corrupt);
  };
  refused(false, 32, indirect, 0, 0);
  refused(true, 32, indirect | next, 0, 0);
  refused(true, 0, indirect, 0, 0);
  refused(true, 17, indirect, 0, 0);
  refused(true, 32, indirect, indirect, 0);  // in itself
  refused(true, 32, indirect, next, 2);      // past its end
  refused(true, 64, indirect, next, 0);      // a loop
}

TEST(SplitQueue, TakesLongIndirectTablesWhenItIsTold) {
  Driver driver(4, true);
  const std::uint64_t table = data;
  constexpr std::uint32_t count = 65536;
  driver.describe(0, table, count * 16, indirect);
  for (std::uint32_t i = 0; i < count; ++i)
    driver.describe_in(table, i, data, 1, next, static_cast<std::uint16_t>(i + 1));
  driver.offer(0);
  expect_refused(driver, Errc::corrupt);  // as long as the queue at most
  driver.options.max_chain = 65535;
  expect_refused(driver, Errc::corrupt);  // and in a loop
  driver.describe_in(table, 999, data, 1);
  SplitQueue queue = driver.queue();
  DescriptorChain chain;
  ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
  EXPECT_THAT(chain.readable(), SizeIs(1000));
}

TEST(SplitQueue, NotifiesUnlessTheDriverSaysNo) {
  Driver driver(8);
  driver.describe(0, data, 1);
  SplitQueue queue = driver.queue();
  DescriptorChain chain;
  const auto give_back = [&] {
    driver.offer(0);
    ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
    ASSERT_THAT(queue.push_used(driver.memory, {0, 1}, 0), IsOk());
  };
  give_back();
  EXPECT_THAT(queue.needs_notification(driver.memory), IsOkAndHolds(true));
  EXPECT_THAT(queue.needs_notification(driver.memory), IsOkAndHolds(false)) << "nothing new";
  driver.set_available_flags(1);
  give_back();
  EXPECT_THAT(queue.needs_notification(driver.memory), IsOkAndHolds(false));
}

TEST(SplitQueue, NotifiesOfTheEntryThatTheDriverNames) {
  Driver driver(8, false, true);
  driver.describe(0, data, 1);
  driver.set_available_index(65530);
  SplitQueue queue = driver.queue({.next_available = 65530, .next_used = 65530});
  DescriptorChain chain;
  const auto give_back = [&](int count) {
    for (int i = 0; i < count; ++i) {
      driver.offer(0);
      ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
      ASSERT_THAT(queue.push_used(driver.memory, {0, 1}, 0), IsOk());
    }
  };
  driver.set_used_event(3);
  give_back(1);
  EXPECT_THAT(queue.needs_notification(driver.memory), IsOkAndHolds(true)) << "the first time";
  give_back(8);  // 65531 to 65535, 0 to 2
  EXPECT_THAT(queue.needs_notification(driver.memory), IsOkAndHolds(false));
  give_back(1);  // 3
  EXPECT_THAT(queue.needs_notification(driver.memory), IsOkAndHolds(true));
  give_back(1);
  EXPECT_THAT(queue.needs_notification(driver.memory), IsOkAndHolds(false));
  // After 2^16 it can't be told what was asked before.
  give_back(65536);
  EXPECT_THAT(queue.needs_notification(driver.memory), IsOkAndHolds(true));
}

TEST(SplitQueue, TellsTheDriverWhetherToNotify) {
  for (const bool event_index : {false, true}) {
    Driver driver(8, false, event_index);
    driver.describe(0, data, 1);
    SplitQueue queue = driver.queue();
    DescriptorChain chain;
    ASSERT_THAT(queue.disable_notifications(driver.memory), IsOk());
    EXPECT_EQ(driver.used_flags(), event_index ? 0 : 1);
    driver.offer(0);
    EXPECT_THAT(queue.enable_notifications(driver.memory), IsOkAndHolds(true));
    ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
    EXPECT_THAT(queue.enable_notifications(driver.memory), IsOkAndHolds(false));
    EXPECT_EQ(driver.used_flags(), 0);
    EXPECT_EQ(driver.available_event(), event_index ? 1 : 0) << "the next request";
  }
}

TEST(SplitQueue, GoesOnWhereASavedOneWas) {
  Driver driver(8);
  driver.describe(0, data, 1);
  driver.describe(1, data + 1, 1);
  SplitQueue before = driver.queue();
  DescriptorChain chain;
  driver.offer(0);
  driver.offer(1);
  ASSERT_THAT(before.pop(driver.memory, chain), IsOkAndHolds(true));
  ASSERT_THAT(before.push_used(driver.memory, {0, 1}, 0), IsOk());
  SplitQueue after = driver.queue(before.state());
  ASSERT_THAT(after.pop(driver.memory, chain), IsOkAndHolds(true));
  EXPECT_EQ(chain.id().number, 1);
  ASSERT_THAT(after.push_used(driver.memory, {1, 1}, 0), IsOk());
  EXPECT_EQ(driver.used_index(), 2);
  EXPECT_THAT(after.needs_notification(driver.memory), IsOkAndHolds(true));
}

}  // namespace
}  // namespace vmspace::split_queue_test
