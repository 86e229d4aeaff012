// SPDX-License-Identifier: Apache-2.0
//
// What a live snapshot is made of: the pages that wait for their turn, and the buffer that they go
// through.

#include "snapshot/live_pages.hpp"

#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "snapshot/page_buffer.hpp"

namespace vmspace::live_pages_test {
namespace {

using detail::LivePages;
using detail::PageBuffer;
using detail::RegionPages;
using Turn = LivePages::Turn;

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t huge = 2U << 20;

/// A host address that is a multiple of a huge page, or so many bytes more.
const std::byte* host(std::uint64_t more = 0) {
  return reinterpret_cast<const std::byte*>(1024 * huge + more);
}

void expect_run(RegionPages run, std::uint64_t offset, std::uint64_t size) {
  EXPECT_EQ(run.offset, offset);
  EXPECT_EQ(run.size, size);
}

TEST(LivePages, APageIsTakenOnce) {
  LivePages pages(host(), 100 * page, page);
  pages.add({70 * page, 2 * page});
  EXPECT_EQ(pages.take(69 * page), Turn::done) << "it never waited";
  EXPECT_EQ(pages.take(70 * page + 17), Turn::mine);
  EXPECT_EQ(pages.take(70 * page), Turn::others);
  pages.finish({70 * page, page});
  EXPECT_EQ(pages.take(70 * page), Turn::done);
  EXPECT_EQ(pages.take(71 * page), Turn::mine);
}

TEST(LivePages, RunsAreOfWaitingPagesAndEndWithHugePages) {
  LivePages pages(host(huge - 3 * page), 2 * huge, page);
  pages.add({page, 20 * page});
  pages.add({200 * page, 1 * page});
  EXPECT_EQ(pages.take(10 * page), Turn::mine);
  expect_run(pages.take_next(0, 2 * huge), page, 2 * page);
  expect_run(pages.take_next(3 * page, 2 * huge), 3 * page, 7 * page);
  expect_run(pages.take_next(10 * page, 2 * huge), 11 * page, 10 * page);
  expect_run(pages.take_next(21 * page, 200 * page), 200 * page, 0);
  expect_run(pages.take_next(21 * page, 201 * page), 200 * page, page);
  expect_run(pages.take_next(0, 2 * huge), 2 * huge, 0);
}

TEST(LivePages, HugePagesComeOneByOne) {
  LivePages pages(host(), 4 * huge, huge);
  pages.add({0, 4 * huge});
  EXPECT_EQ(pages.take(huge + 5 * page), Turn::mine);
  expect_run(pages.take_next(0, 4 * huge), 0, huge);
  expect_run(pages.take_next(huge, 4 * huge), 2 * huge, huge);
  expect_run(pages.whole_pages(huge + page, 2 * huge + page), huge, 2 * huge);
}

TEST(LivePages, WaitingEndsWhenTheLastCopyIsFinishedOrWithClose) {
  LivePages pages(host(), 8 * page, page);
  pages.add({0, 8 * page});
  pages.wait_finished(0, 8 * page);
  ASSERT_EQ(pages.take(2 * page), Turn::mine);
  ASSERT_EQ(pages.take(3 * page), Turn::mine);
  pages.wait_finished(0, 2 * page);
  std::atomic<int> finished = 0;
  std::thread waiter([&] {
    pages.wait_finished(0, 4 * page);
    EXPECT_EQ(finished, 2);
  });
  for (const std::uint64_t at : {2 * page, 3 * page}) {
    ++finished;
    pages.finish({at, page});
  }
  waiter.join();
  ASSERT_EQ(pages.take(5 * page), Turn::mine);
  std::thread other([&] { pages.wait_finished(0, 8 * page); });
  pages.close();
  other.join();
}

void fill(PageBuffer& buffer, PageBuffer::Slot* slot, int value) {
  ASSERT_NE(slot, nullptr);
  std::memset(slot->bytes, value, slot->size);
  buffer.fill(*slot);
}

TEST(PageBuffer, GivesPagesInOrderOnceTheyAreFilled) {
  PageBuffer buffer(4 * page, page);
  EXPECT_EQ(buffer.front(), nullptr);
  auto* const one = buffer.reserve(0, 7 * page, page);
  auto* const two = buffer.reserve(1, 8 * page, 2 * page);
  fill(buffer, two, 2);
  EXPECT_EQ(buffer.front(), nullptr) << "the first is not filled";
  fill(buffer, one, 1);
  const auto* front = buffer.front();
  ASSERT_NE(front, nullptr);
  EXPECT_EQ(front->offset, 7 * page);
  EXPECT_EQ(front->bytes[0], std::byte{1});
  buffer.pop();
  front = buffer.wait_front();
  ASSERT_NE(front, nullptr);
  EXPECT_EQ(front->region, 1U);
  EXPECT_EQ(front->bytes[2 * page - 1], std::byte{2});
  buffer.pop();
  buffer.end();
  EXPECT_EQ(buffer.wait_front(), nullptr);
}

TEST(PageBuffer, APageLiesInOnePieceHoweverTheRingTurns) {
  PageBuffer buffer(5 * page, page);
  std::uint64_t written = 0;
  std::thread consumer([&] {
    for (std::uint64_t read = 0; const auto* slot = buffer.wait_front(); ++read) {
      EXPECT_EQ(slot->offset, read);
      for (std::uint64_t i = 0; i < slot->size; i += page)
        EXPECT_EQ(slot->bytes[i], static_cast<std::byte>(read));
      buffer.pop();
    }
  });
  for (; written < 2'000; ++written) {
    fill(buffer, buffer.reserve(0, written, (written * 7 % 3 + 1) * page),
         static_cast<int>(written & 0xff));
  }
  buffer.end();
  consumer.join();
}

TEST(PageBuffer, WaitingForRoomEndsWithRoomOrClose) {
  PageBuffer buffer(page, page);
  fill(buffer, buffer.reserve(0, 0, page), 1);
  std::thread producer([&] {
    fill(buffer, buffer.reserve(0, 1, page), 2);
    EXPECT_EQ(buffer.reserve(0, 2, page), nullptr);
  });
  buffer.pop();
  const auto* const second = buffer.wait_front();
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(second->offset, 1U);
  buffer.close();
  producer.join();
  EXPECT_EQ(buffer.wait_front(), nullptr);
}

}  // namespace
}  // namespace vmspace::live_pages_test
