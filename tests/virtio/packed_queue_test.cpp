// SPDX-License-Identifier: Apache-2.0

#include "vmspace/virtio/packed_queue.hpp"

#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/memory/guest_cursor.hpp"

#include "virtio/packed_driver.hpp"

namespace vmspace::packed_queue_test {
namespace {

using ::testing::ElementsAre;
using ::testing::Optional;
using ::testing::SizeIs;
using namespace test;

constexpr std::uint16_t next = PackedDescriptor::has_next;
constexpr std::uint16_t writable = PackedDescriptor::writable;
constexpr std::uint16_t indirect = PackedDescriptor::indirect;
constexpr std::uint64_t data = PackedDriver::data;
constexpr std::uint16_t first = 0x8000;  // the first entry in the first lap

// Whether a queue of this driver gives `code` for what it offers, and is where it was.
void expect_refused(const PackedDriver& driver, Errc code) {
  PackedQueue queue = driver.queue();
  DescriptorChain chain;
  EXPECT_THAT(queue.pop(driver.memory, chain), HasError(code));
  EXPECT_EQ(queue.state(), PackedQueueState{});
  EXPECT_THAT(queue.pop(driver.memory, chain), HasError(code)) << "and again";
}

TEST(PackedQueue, GivesTheBuffersOfARequestAndTakesItBack) {
  PackedDriver driver(8);
  PackedQueue queue = driver.queue();
  DescriptorChain chain;
  EXPECT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(false));
  driver.offer(std::vector<Buffer>{{data, 16},
                                   {data + 64, 0},  // of no bytes
                                   {data + 128, 512, true},
                                   {data + 1024, 1, true}},
               77);
  ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
  EXPECT_EQ(chain.id(), (RequestId{.number = 77, .entries = 4})) << "the last one's ID";
  EXPECT_THAT(chain.readable(), ElementsAre(GuestRange{at(data), 16}));
  EXPECT_THAT(chain.writable(),
              ElementsAre(GuestRange{at(data + 128), 512}, GuestRange{at(data + 1024), 1}));
  EXPECT_EQ(queue.in_flight(), 4);
  EXPECT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(false));
  ASSERT_THAT(queue.push_used(driver.memory, {77, 4}, 513), IsOk());
  EXPECT_THAT(driver.take_used(), Optional(Used{.id = 77, .length = 513}));
  EXPECT_EQ(driver.take_used(), std::nullopt);
  EXPECT_EQ(queue.in_flight(), 0);
  EXPECT_EQ(driver.memory.read<PackedDescriptor>(driver.entry(first))->address, data)
      << "which a used descriptor leaves alone";
}

TEST(PackedQueue, TakesBackNoMoreThanWasTaken) {
  PackedDriver driver(8);
  PackedQueue queue = driver.queue();
  DescriptorChain chain;
  EXPECT_THAT(queue.push_used(driver.memory, {0, 1}, 0), HasError(Errc::bad_state));
  driver.offer(std::vector<Buffer>{{data, 1}, {data, 1}});
  ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
  EXPECT_THAT(queue.push_used(driver.memory, {0, 3}, 0), HasError(Errc::bad_state));
  EXPECT_THAT(queue.push_used(driver.memory, {}, 0), HasError(Errc::bad_state));
  EXPECT_THAT(queue.push_used(driver.memory, chain.id(), 0), IsOk());
}

// Requests of one to three descriptors go round rings of all small sizes, and come back in any order.
TEST(PackedQueue, GoesRoundRingsOfAnySizeInAnyOrder) {
  std::minstd_rand random(1);
  for (const std::uint16_t size : std::initializer_list<std::uint16_t>{1, 2, 3, 5, 7, 8, 100}) {
    PackedDriver driver(size);
    PackedQueue queue = driver.queue();
    DescriptorChain chain;
    std::vector<std::uint16_t> ids;  // not offered
    for (std::uint16_t id = 0; id < size; ++id)
      ids.push_back(id);
    unsigned free = size;
    std::vector<RequestId> taken;
    for (unsigned i = 0; i < 2000; ++i) {
      const auto entries = static_cast<unsigned>(1 + random() % 3);
      if (entries <= free && random() % 3 != 0) {
        const std::vector<Buffer> buffers(entries, Buffer{data + i, i + 1});
        driver.offer(buffers, ids.back());
        ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true)) << size << " " << i;
        ASSERT_EQ(chain.id(), (RequestId{ids.back(), static_cast<std::uint16_t>(entries)}));
        ASSERT_THAT(chain.readable(), SizeIs(entries));
        ASSERT_EQ(chain.readable().back(), (GuestRange{at(data + i), i + 1}));
        taken.push_back(chain.id());
        ids.pop_back();
        free -= entries;
        ASSERT_EQ(queue.state().next_available, driver.available);
      } else if (!taken.empty()) {
        std::swap(taken[random() % taken.size()], taken.back());
        const RequestId id = taken.back();
        ASSERT_THAT(queue.push_used(driver.memory, id, i), IsOk());
        ASSERT_THAT(driver.take_used(), Optional(Used{.id = id.number, .length = i}));
        ASSERT_EQ(queue.state().next_used, driver.next_used);
        taken.pop_back();
        ids.push_back(id.number);
        free += id.entries;
      }
      ASSERT_EQ(queue.in_flight(), size - free);
      ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(false)) << size << " " << i;
    }
  }
}

TEST(PackedQueue, IsNotMadeOfWhatNoDriverMaySet) {
  const auto with = [](auto change) {
    PackedQueueOptions options{.size = 6,
                               .descriptors = at(0x1000),
                               .driver_event = at(0x2000),
                               .device_event = at(0x3000)};
    change(options);
    return PackedQueue::make(options);
  };
  for (const std::uint16_t size : std::initializer_list<std::uint16_t>{1, 3, 8, 32767, 32768})
    EXPECT_THAT(with([&](auto& o) { o.size = size; }), IsOk()) << size;
  for (const std::uint16_t size : std::initializer_list<std::uint16_t>{0, 32769, 65535})
    EXPECT_THAT(with([&](auto& o) { o.size = size; }), HasError(Errc::invalid_argument)) << size;
  EXPECT_THAT(with([](auto& o) { o.descriptors = at(8); }), HasError(Errc::misaligned));
  EXPECT_THAT(with([](auto& o) { o.driver_event = at(2); }), HasError(Errc::misaligned));
  EXPECT_THAT(with([](auto& o) { o.device_event = at(1); }), HasError(Errc::misaligned));
  EXPECT_THAT(with([](auto& o) { o.descriptors = at(top - 79); }), HasError(Errc::overflow));
  EXPECT_THAT(with([](auto& o) { o.descriptors = at(top - 95); }), IsOk());
}

TEST(PackedQueue, ChecksTheStateThatItIsToGoOnFrom) {
  const PackedQueueOptions options{.size = 6};
  const auto from = [&](std::uint16_t available, std::uint16_t used) {
    return PackedQueue::make(options, {.next_available = available, .next_used = used});
  };
  EXPECT_THAT(from(0x8005, 0x8000), IsOk());
  EXPECT_THAT(from(0x0000, 0x8000), IsOk()) << "all are taken";
  EXPECT_THAT(from(0x0003, 0x8003), IsOk()) << "all are taken";
  EXPECT_THAT(from(0x8002, 0x0004), IsOk());
  EXPECT_THAT(from(0x0004, 0x8003), HasError(Errc::invalid_argument)) << "seven";
  EXPECT_THAT(from(0x8003, 0x8004), HasError(Errc::invalid_argument)) << "eleven";
  EXPECT_THAT(from(0x8006, 0x8005), HasError(Errc::invalid_argument)) << "no entry";
  EXPECT_THAT(from(0x0000, 0x8006), HasError(Errc::invalid_argument));
  EXPECT_EQ(from(0x8002, 0x0004)->in_flight(), 4);
}

TEST(PackedQueue, TakesNothingWhoseFlagsAreNotThoseOfTheLap) {
  PackedDriver driver(4);
  PackedQueue queue = driver.queue();
  DescriptorChain chain;
  constexpr std::uint16_t both = PackedDescriptor::available | PackedDescriptor::used;
  for (const std::uint16_t flags : std::initializer_list<std::uint16_t>{
           0, PackedDescriptor::used, both, both | next | indirect, 0x7f7f}) {
    driver.set_half(first, 1, flags, 0);
    EXPECT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(false)) << flags;
  }
  // What is reserved is ignored.
  driver.set_half(first, 1, 0x7ff8, 0);
  EXPECT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
}

TEST(PackedQueue, RefusesChainsThatGoOnWhereNothingIsAvailable) {
  PackedDriver driver(4);
  driver.describe(first, data, 1, next);
  expect_refused(driver, Errc::corrupt);
  driver.describe(1, data, 1);  // as in the next lap
  expect_refused(driver, Errc::corrupt);
}

TEST(PackedQueue, RefusesChainsLongerThanTheRing) {
  PackedDriver driver(4);
  for (std::uint16_t i = 0; i < 4; ++i)
    driver.describe(static_cast<std::uint16_t>(first + i), data, 1, next);
  expect_refused(driver, Errc::corrupt);  // the fifth is the first, of this lap
  driver.describe(first + 3, data, 1);
  PackedQueue queue = driver.queue();
  DescriptorChain chain;
  EXPECT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true)) << "as long as the ring";
  EXPECT_THAT(chain.readable(), SizeIs(4));
  // All are taken: a driver that makes the first available again is refused, in whatever way.
  driver.describe(0, data, 1);
  EXPECT_THAT(queue.pop(driver.memory, chain), HasError(Errc::corrupt));
  driver.describe(0, data, 16, indirect);
  EXPECT_THAT(queue.pop(driver.memory, chain), HasError(Errc::corrupt));
  driver.options.max_chain = 3;
  driver.describe(first, data, 1, next);
  expect_refused(driver, Errc::corrupt);
}

TEST(PackedQueue, RefusesToRunIntoWhatIsTaken) {
  PackedDriver driver(4);
  PackedQueue queue = driver.queue();
  DescriptorChain chain;
  driver.offer(std::vector<Buffer>{{data, 1}, {data, 1}});
  ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
  const PackedQueueState before = queue.state();
  driver.describe(0, data, 1);  // in the next lap, while it is taken
  driver.describe(first + 3, data, 1, next);
  driver.describe(first + 2, data, 1, next);
  EXPECT_THAT(queue.pop(driver.memory, chain), HasError(Errc::corrupt));
  EXPECT_EQ(queue.state(), before);
}

TEST(PackedQueue, RefusesBuffersToReadBehindThoseToWrite) {
  PackedDriver driver(8);
  driver.offer(std::vector<Buffer>{{data, 1, true}, {data, 1}});
  expect_refused(driver, Errc::corrupt);
}

TEST(PackedQueue, RefusesChainsOfMoreThan4GiB) {
  PackedDriver driver(32768, true);
  driver.offer(std::vector<Buffer>{{0, 0xffff'ffff}, {0, 1}, {0, 1}});
  expect_refused(driver, Errc::corrupt);
  driver.describe(first + 1, 0, 1);
  PackedQueue queue = driver.queue();
  DescriptorChain chain;
  EXPECT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true)) << "2^32 bytes";
  EXPECT_THAT(GuestReader::make(driver.memory, chain.readable()), HasError(Errc::not_found));
  // 2^15 times 2^32 - 1, in the ring and in a table.
  driver.available = first;
  driver.offer(std::vector<Buffer>(32768, Buffer{top, 0xffff'ffff}));
  expect_refused(driver, Errc::corrupt);
  driver.describe(first, data, 32768 * 16, indirect);
  for (std::uint32_t i = 0; i < 32768; ++i)
    driver.describe_in(data, i, top, 0xffff'ffff);
  expect_refused(driver, Errc::corrupt);
}

TEST(PackedQueue, FollowsOneIndirectTable) {
  PackedDriver driver(3, true);
  const std::uint64_t table = data + 8;  // tables need no alignment
  // Its flags are all ignored but one, so it has no tables within it, and no gaps or ends.
  driver.describe_in(table, 0, data + 0x2000, 8, indirect | PackedDescriptor::available);
  driver.describe_in(table, 1, data + 0x2800, 9, next);
  driver.describe_in(table, 2, data + 0x3000, 16, writable);
  driver.describe(first, table, 3 * 16, indirect | writable, 9);  // the latter is to be ignored
  PackedQueue queue = driver.queue();
  DescriptorChain chain;
  ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
  EXPECT_EQ(chain.id(), (RequestId{.number = 9, .entries = 1}));
  EXPECT_THAT(chain.readable(),
              ElementsAre(GuestRange{at(data + 0x2000), 8}, GuestRange{at(data + 0x2800), 9}));
  EXPECT_THAT(chain.writable(), ElementsAre(GuestRange{at(data + 0x3000), 16}));
}

TEST(PackedQueue, RefusesIndirectTablesThatBreakTheRules) {
  const auto refused = [&](bool negotiated, std::uint32_t size, std::uint16_t flags) {
    PackedDriver driver(4, negotiated);
    driver.describe(first + 1, data, 1);
    driver.describe(first, data, size, flags);
    expect_refused(driver, Errc::corrupt);
  };
  refused(false, 32, indirect);
  refused(true, 32, indirect | next);
  refused(true, 0, indirect);
  refused(true, 17, indirect);
  refused(true, 5 * 16, indirect);       // longer than the ring
  refused(true, 0xffff'fff0, indirect);  // 2^28 descriptors
  PackedDriver driver(4, true);
  driver.describe(first + 1, data, 16, indirect);
  driver.describe(first, data, 1, next);
  expect_refused(driver, Errc::corrupt);
}

TEST(PackedQueue, TakesLongIndirectTablesWhenItIsTold) {
  PackedDriver driver(4, true);
  driver.options.max_chain = 65535;
  for (std::uint32_t i = 0; i < 65536; ++i)
    driver.describe_in(data, i, data, 1);
  driver.describe(first, data, 65536 * 16, indirect);
  expect_refused(driver, Errc::corrupt);
  driver.describe(first, data, 65535 * 16, indirect);
  PackedQueue queue = driver.queue();
  DescriptorChain chain;
  ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
  EXPECT_THAT(chain.readable(), SizeIs(65535));
}

TEST(PackedQueue, RefusesRingsAndTablesThatAreNotInMemory) {
  PackedDriver driver(8, true);
  driver.options.descriptors = at(0x1000);
  {
    PackedQueue queue = driver.queue();
    DescriptorChain chain;
    EXPECT_THAT(queue.pop(driver.memory, chain), HasError(Errc::not_found));
    EXPECT_THAT(queue.enable_notifications(driver.memory), HasError(Errc::not_found));
  }
  driver = PackedDriver(8, true);
  driver.describe(first, top - 15, 32, indirect);
  expect_refused(driver, Errc::not_found);
  driver.describe(first, data, 1);
  driver.options.driver_event = at(0x1000);
  driver.options.device_event = at(0x1000);
  PackedQueue queue = driver.queue();
  EXPECT_THAT(queue.needs_notification(driver.memory), HasError(Errc::not_found));
  EXPECT_THAT(queue.disable_notifications(driver.memory), HasError(Errc::not_found));
  EXPECT_THAT(queue.enable_notifications(driver.memory), HasError(Errc::not_found));
  // Taken, then its ring is out of memory.
  DescriptorChain chain;
  ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
  const GuestMemory elsewhere = guest({{0x8000'0000, page}});
  EXPECT_THAT(queue.push_used(elsewhere, chain.id(), 0), HasError(Errc::not_found));
  EXPECT_EQ(queue.in_flight(), 1) << "it was not given back";
}

// Offers requests of one descriptor and gives them back.
void give_back(PackedDriver& driver, PackedQueue& queue, unsigned count) {
  DescriptorChain chain;
  for (unsigned i = 0; i < count; ++i) {
    driver.offer(std::vector<Buffer>{{data, 1}});
    ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
    ASSERT_THAT(queue.push_used(driver.memory, chain.id(), 0), IsOk());
    ASSERT_TRUE(driver.take_used());
  }
}

TEST(PackedQueue, NotifiesUnlessTheDriverSaysNo) {
  PackedDriver driver(8);
  PackedQueue queue = driver.queue();
  give_back(driver, queue, 1);
  EXPECT_THAT(queue.needs_notification(driver.memory), IsOkAndHolds(true));
  EXPECT_THAT(queue.needs_notification(driver.memory), IsOkAndHolds(false)) << "nothing new";
  driver.set_event(PackedEvent::disable);
  give_back(driver, queue, 1);
  EXPECT_THAT(queue.needs_notification(driver.memory), IsOkAndHolds(false));
  // What it may not say without the event index, or never: rather once too often.
  for (const std::uint16_t flags : std::initializer_list<std::uint16_t>{2, 3, 0xfffc}) {
    driver.set_event(flags, 0x8007);
    give_back(driver, queue, 1);
    EXPECT_THAT(queue.needs_notification(driver.memory), IsOkAndHolds(true)) << flags;
  }
}

TEST(PackedQueue, NotifiesOfTheDescriptorThatTheDriverNames) {
  PackedDriver driver(5, false, true);
  PackedQueue queue = driver.queue();
  const auto notifies_after = [&](unsigned count) {
    give_back(driver, queue, count);
    return *queue.needs_notification(driver.memory);
  };
  driver.set_event(PackedEvent::descriptor, 0x8003);
  EXPECT_TRUE(notifies_after(1)) << "the first time";
  EXPECT_FALSE(notifies_after(2));  // 1 and 2
  EXPECT_TRUE(notifies_after(1));   // 3
  EXPECT_FALSE(notifies_after(1));  // 4
  EXPECT_FALSE(notifies_after(4)) << "3 again, in another lap";
  driver.set_event(PackedEvent::descriptor, 0x8000);
  EXPECT_TRUE(notifies_after(3)) << "4, 0 and 1, in the lap after";
  EXPECT_FALSE(notifies_after(8)) << "up to the one before it";
  EXPECT_TRUE(notifies_after(10)) << "two laps";
  EXPECT_TRUE(notifies_after(1000));
  driver.set_event(PackedEvent::descriptor, 5);
  EXPECT_TRUE(notifies_after(1)) << "no descriptor of the ring";
}

TEST(PackedQueue, TellsTheDriverWhetherToNotify) {
  for (const bool event_index : {false, true}) {
    PackedDriver driver(8, false, event_index);
    PackedQueue queue = driver.queue();
    DescriptorChain chain;
    ASSERT_THAT(queue.disable_notifications(driver.memory), IsOk());
    EXPECT_EQ(driver.device_event().flags, PackedEvent::disable);
    driver.offer(std::vector<Buffer>{{data, 1}});
    EXPECT_THAT(queue.enable_notifications(driver.memory), IsOkAndHolds(true));
    ASSERT_THAT(queue.pop(driver.memory, chain), IsOkAndHolds(true));
    EXPECT_THAT(queue.enable_notifications(driver.memory), IsOkAndHolds(false));
    EXPECT_EQ(driver.device_event().flags,
              event_index ? PackedEvent::descriptor : PackedEvent::enable);
    if (event_index) {
      EXPECT_EQ(driver.device_event().position, 0x8001) << "the next request";
    }
  }
}

TEST(PackedQueue, GoesOnWhereASavedOneWas) {
  PackedDriver driver(3);
  PackedQueue before = driver.queue();
  DescriptorChain chain;
  give_back(driver, before, 2);
  driver.offer(std::vector<Buffer>{{data, 1}, {data + 1, 1}}, 1);
  driver.offer(std::vector<Buffer>{{data + 2, 1}}, 2);
  ASSERT_THAT(before.pop(driver.memory, chain), IsOkAndHolds(true));
  const RequestId out = chain.id();
  EXPECT_EQ(before.state(), (PackedQueueState{.next_available = 0x0001, .next_used = 0x8002}));
  PackedQueue after = driver.queue(before.state());
  ASSERT_THAT(after.pop(driver.memory, chain), IsOkAndHolds(true));
  EXPECT_EQ(chain.id().number, 2);
  ASSERT_THAT(after.push_used(driver.memory, chain.id(), 0), IsOk());
  ASSERT_THAT(after.push_used(driver.memory, out, 0), IsOk());
  EXPECT_THAT(driver.take_used(), Optional(Used{.id = 2, .length = 0}));
  EXPECT_THAT(driver.take_used(), Optional(Used{.id = 1, .length = 0}));
  EXPECT_THAT(after.needs_notification(driver.memory), IsOkAndHolds(true));
}

}  // namespace
}  // namespace vmspace::packed_queue_test
