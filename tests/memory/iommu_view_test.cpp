// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/iommu_view.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/endian.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::test::iommu_view_test {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t ram = 0x10000;
constexpr std::uint64_t more_ram = ram + 2 * page;  // adjacent, a region of its own

/// Two adjacent regions and one behind a gap; no translation yet.
class IommuViewTest : public ::testing::Test {
 protected:
  static IoTlbEntry entry(std::uint64_t iova, std::uint64_t guest, std::uint64_t size,
                          Protection access = Protection::read_write) {
    return {.iova = at(iova), .guest = {at(guest), size}, .access = access};
  }
  static IoTlb table(IoTlbOptions options = {}) {
    auto made = IoTlb::make(std::move(options));
    VMSPACE_EXPECT_OK(made);
    return *made;
  }
  void add(const IoTlbEntry& added) { VMSPACE_EXPECT_OK(tlb_.update(added)); }
  void expect_entries(const std::vector<IoTlbEntry>& expected) {
    EXPECT_EQ(tlb_.entries(), expected);
    VMSPACE_EXPECT_OK(tlb_.check_invariants());
  }

  GuestMemory memory_ = guest({{ram, 2 * page}, {more_ram, 2 * page}, {ram + 8 * page, page}});
  IoTlb tlb_ = table();
  IoTlbReader reader_ = tlb_.reader();
};

TEST_F(IommuViewTest, TranslatesEveryKindOfAccess) {
  add(entry(0x5000, ram + page, page));
  IommuView view(reader_, memory_);
  VMSPACE_EXPECT_OK(view.write(at(0x5010), std::uint32_t{7}));
  EXPECT_THAT(memory_.read<std::uint32_t>(at(ram + page + 0x10)), IsOkAndHolds(7U));
  EXPECT_THAT(view.read<std::uint32_t>(at(0x5010)), IsOkAndHolds(7U));
  VMSPACE_EXPECT_OK(view.store(at(0x5020), Le16(8), std::memory_order_release));
  EXPECT_THAT(view.load<Le16>(at(0x5020), std::memory_order_acquire), IsOkAndHolds(Le16(8)));
  EXPECT_THAT(view.compare_exchange(at(0x5020), Le16(8), Le16(9)), IsOkAndHolds(Le16(8)));
  EXPECT_THAT(view.fetch_or(at(0x5020), Le16(16)), IsOkAndHolds(Le16(9)));
  EXPECT_THAT(memory_.read<Le16>(at(ram + page + 0x20)), IsOkAndHolds(Le16(25)));
  const auto bytes = pattern(100);
  VMSPACE_EXPECT_OK(view.write_slice(at(0x5100), bytes));
  std::vector<std::byte> back(100);
  VMSPACE_EXPECT_OK(view.read_slice(at(0x5100), back));
  EXPECT_EQ(back, bytes);
}

TEST_F(IommuViewTest, AMovedHandleIsStillAHandle) {
  IoTlb moved = std::move(tlb_);
  add(entry(0x5000, ram, page));  // to the one that was moved from
  EXPECT_EQ(moved.entries(), std::vector{entry(0x5000, ram, page)});
}

TEST_F(IommuViewTest, WithoutATranslationNothingIsFound) {
  IommuView view(reader_, memory_);
  EXPECT_THAT(view.read<std::uint8_t>(at(ram)), HasError(Errc::not_found));
  EXPECT_THAT(view.write(at(top), std::uint8_t{1}), HasError(Errc::not_found));
  EXPECT_THAT(view.load<std::uint64_t>(at(0), std::memory_order_acquire),
              HasError(Errc::not_found));
}

TEST_F(IommuViewTest, AllowsOnlyWhatTheEntryDoes) {
  add(entry(0x1000, ram, page, Protection::read));
  add(entry(0x2000, ram, page, Protection::write));
  IommuView view(reader_, memory_);
  VMSPACE_EXPECT_OK(view.read<std::uint8_t>(at(0x1000)));
  EXPECT_THAT(view.write(at(0x1000), std::uint8_t{1}), HasError(Errc::access_denied));
  EXPECT_THAT(view.fetch_or(at(0x1000), std::uint8_t{1}), HasError(Errc::access_denied));
  VMSPACE_EXPECT_OK(view.write(at(0x2000), std::uint8_t{1}));
  EXPECT_THAT(view.read<std::uint8_t>(at(0x2000)), HasError(Errc::access_denied));
}

TEST_F(IommuViewTest, AWriteThatIsForbiddenFurtherOnChangesNothing) {
  add(entry(0x3000, ram, 16));
  add(entry(0x3010, ram + 16, 16, Protection::read));
  IommuView view(reader_, memory_);
  EXPECT_THAT(view.write(at(0x300c), ~std::uint64_t{0}), HasError(Errc::access_denied));
  EXPECT_THAT(memory_.read<std::uint32_t>(at(ram + 12)), IsOkAndHolds(0U));
}

TEST_F(IommuViewTest, TheRegionsProtectionHoldsToo) {
  const GuestMemory rom = guest({{.base = ram, .size = page, .protection = Protection::read}});
  add(entry(0, ram, page));
  IommuView view(reader_, rom);
  VMSPACE_EXPECT_OK(view.read<std::uint8_t>(at(0)));
  EXPECT_THAT(view.write(at(0), std::uint8_t{1}), HasError(Errc::access_denied));
}

TEST_F(IommuViewTest, RangesGoAcrossEntriesAndRegions) {
  // Backwards in guest memory, and the second across the border of two regions.
  add(entry(0x1000, ram + 8 * page, page));
  add(entry(0x2000, more_ram - 16, page));
  const auto bytes = pattern(64);
  IommuView view(reader_, memory_);
  VMSPACE_EXPECT_OK(view.write_slice(at(0x2000 - 32), bytes));
  std::vector<std::byte> part(32);
  VMSPACE_EXPECT_OK(memory_.read_slice(at(ram + 9 * page - 32), part));
  EXPECT_TRUE(std::equal(part.begin(), part.end(), bytes.begin()));
  VMSPACE_EXPECT_OK(memory_.read_slice(at(more_ram - 16), part));
  EXPECT_TRUE(std::equal(part.begin(), part.end(), bytes.begin() + 32));
  VMSPACE_EXPECT_OK(view.write(at(0x2000 - 3), std::uint64_t{0x0807060504030201}));
  EXPECT_THAT(view.read<std::uint64_t>(at(0x2000 - 3)), IsOkAndHolds(0x0807060504030201U));
  EXPECT_THAT(memory_.read<std::uint8_t>(at(ram + 9 * page - 1)), IsOkAndHolds(3));
  EXPECT_THAT(memory_.read<std::uint8_t>(at(more_ram - 16)), IsOkAndHolds(4));
}

TEST_F(IommuViewTest, AnIntegerInTwoPlacesIsRefused) {
  add(entry(0x1000, ram, 4));
  add(entry(0x1004, ram + page, 4));
  add(entry(0x2000, ram, 4));
  add(entry(0x2004, ram + 4, 4));
  add(entry(0x3000, ram + 1, page));
  IommuView view(reader_, memory_);
  EXPECT_THAT(view.load<std::uint64_t>(at(0x1000), std::memory_order_relaxed),
              HasError(Errc::out_of_bounds));
  VMSPACE_EXPECT_OK(view.load<std::uint64_t>(at(0x2000), std::memory_order_relaxed));
  EXPECT_THAT(view.load<std::uint64_t>(at(0x3000), std::memory_order_relaxed),
              HasError(Errc::misaligned));
}

TEST_F(IommuViewTest, TranslationsReachTheLastAddress) {
  add(entry(top - page + 1, ram, page));
  IommuView view(reader_, memory_);
  VMSPACE_EXPECT_OK(view.write(at(top), std::uint8_t{9}));
  EXPECT_THAT(memory_.read<std::uint8_t>(at(ram + page - 1)), IsOkAndHolds(9));
  EXPECT_THAT(view.read<std::uint16_t>(at(top)), HasError(Errc::overflow));
  EXPECT_THAT(view.translate({at(top), 2}, Access::read), HasError(Errc::overflow));
  EXPECT_THAT(view.translate({at(1), top}, Access::read), HasError(Errc::not_found));
  EXPECT_THAT(view.translate({at(top), 1}, Access::read),
              IsOkAndHolds((std::vector<GuestRange>{{at(ram + page - 1), 1}})));
}

TEST_F(IommuViewTest, TheWholeSpaceTakesTwoEntries) {
  constexpr std::uint64_t half = std::uint64_t{1} << 63;
  add(entry(0, 0, half));
  add(entry(half, half, half));
  expect_entries({entry(0, 0, half), entry(half, half, half)});
  IommuView view(reader_, memory_);
  VMSPACE_EXPECT_OK(view.read<std::uint64_t>(at(ram)));
  // Sizes that sum to 2^64 don't become an empty range.
  const GuestRange all[] = {{at(0), half}, {at(half), half}};
  EXPECT_THAT(view.reader(all), HasError(Errc::not_found));
}

TEST_F(IommuViewTest, UpdateRefusesWhatIsNoTranslation) {
  const IoTlbEntry wrong[] = {
      entry(0, ram, page, Protection::none),
      entry(0, ram, page, Protection::execute),
      entry(0, ram, page, Protection::read | Protection::execute),
  };
  add(entry(0, ram, page));
  for (const IoTlbEntry& each : wrong)
    EXPECT_THAT(tlb_.update(each), HasError(Errc::invalid_argument));
  EXPECT_THAT(tlb_.update(entry(0, ram, 0)), HasError(Errc::zero_size));
  EXPECT_THAT(tlb_.update(entry(top, ram, 2)), HasError(Errc::overflow));
  EXPECT_THAT(tlb_.update(entry(0, top, 2)), HasError(Errc::overflow));
  // All or none.
  const IoTlbEntry several[] = {entry(0x5000, ram, page), entry(top, ram, 2)};
  EXPECT_THAT(tlb_.update(several), HasError(Errc::overflow));
  expect_entries({entry(0, ram, page)});
  EXPECT_THAT(IoTlb::make({.max_entries = 0}), HasError(Errc::invalid_argument));
}

TEST_F(IommuViewTest, AnUpdateReplacesWhatItOverlaps) {
  add(entry(0x1000, 0x10'1000, 0x3000));
  add(entry(0x2000, 0x20'0000, 0x1000, Protection::read));  // in the middle
  expect_entries({entry(0x1000, 0x10'1000, 0x1000),
                  entry(0x2000, 0x20'0000, 0x1000, Protection::read),
                  entry(0x3000, 0x10'3000, 0x1000)});
  add(entry(0x1800, 0x30'0000, 0x2000));  // over a border on both sides
  expect_entries({entry(0x1000, 0x10'1000, 0x800), entry(0x1800, 0x30'0000, 0x2000),
                  entry(0x3800, 0x10'3800, 0x800)});
  add(entry(0x1000, 0x40'0000, 0x3000));  // all of them
  expect_entries({entry(0x1000, 0x40'0000, 0x3000)});
  add(entry(0x1000, 0x50'0000, 0x3000));
  expect_entries({entry(0x1000, 0x50'0000, 0x3000)});
}

TEST_F(IommuViewTest, InvalidateRemovesTheRangeAndNoMore) {
  add(entry(0, 0x10'0000, 0x4000));
  VMSPACE_EXPECT_OK(tlb_.invalidate({at(0x1000), 0x1000}, 0s));
  expect_entries({entry(0, 0x10'0000, 0x1000), entry(0x2000, 0x10'2000, 0x2000)});
  VMSPACE_EXPECT_OK(tlb_.invalidate({at(0x800), 0x2000}, 0s));
  expect_entries({entry(0, 0x10'0000, 0x800), entry(0x2800, 0x10'2800, 0x1800)});
  VMSPACE_EXPECT_OK(tlb_.invalidate({at(0x100), 0}, 0s));
  VMSPACE_EXPECT_OK(tlb_.invalidate({at(0x9000), 0x1000}, 0s));
  expect_entries({entry(0, 0x10'0000, 0x800), entry(0x2800, 0x10'2800, 0x1800)});
  // One that would pass 2^64 ends there: hostile, but nothing may be left that it means.
  add(entry(top - 0xfff, 0x20'0000, 0x1000));
  VMSPACE_EXPECT_OK(tlb_.invalidate({at(0x3000), top}, 0s));
  expect_entries({entry(0, 0x10'0000, 0x800), entry(0x2800, 0x10'2800, 0x800)});
  VMSPACE_EXPECT_OK(tlb_.invalidate_all(0s));
  expect_entries({});
}

TEST_F(IommuViewTest, TheOldestEntryGoesWhenTheTableIsFull) {
  tlb_ = table({.max_entries = 2});
  add(entry(0x3000, ram, 0x1000));
  add(entry(0x1000, ram, 0x1000));
  add(entry(0x2000, ram, 0x1000));
  expect_entries({entry(0x1000, ram, 0x1000), entry(0x2000, ram, 0x1000)});
  // An invalidation that makes two entries of one is no way around it, and does not fail.
  VMSPACE_EXPECT_OK(tlb_.invalidate({at(0x2400), 0x100}, 0s));
  EXPECT_EQ(tlb_.entries().size(), 2U);
  VMSPACE_EXPECT_OK(tlb_.check_invariants());
}

TEST_F(IommuViewTest, AMissIsAskedForOnce) {
  std::vector<std::pair<GuestAddress, Access>> asked;
  tlb_ = table({.on_miss = [&](GuestAddress iova, Access access) -> Result<IoTlbEntry> {
    asked.emplace_back(iova, access);
    return entry(iova.value() / page * page, ram, page);
  }});
  auto reader = tlb_.reader();
  {
    IommuView view(reader, memory_);
    VMSPACE_EXPECT_OK(view.write(at(0x1008), std::uint64_t{5}));
    EXPECT_THAT(view.read<std::uint64_t>(at(0x1008)), IsOkAndHolds(5U));
  }
  expect_entries({entry(0x1000, ram, page)});
  IommuView next(reader, memory_);
  EXPECT_THAT(next.read<std::uint64_t>(at(0x1008)), IsOkAndHolds(5U));
  ASSERT_EQ(asked.size(), 1U);
  EXPECT_EQ(asked[0], std::pair(at(0x1008), Access::write));
}

TEST_F(IommuViewTest, AMissThatFailsEndsTheAccess) {
  tlb_ = table({.on_miss = [](GuestAddress iova, Access) -> Result<IoTlbEntry> {
    return fail(
        {.code = Errc::timed_out, .operation = "ask", .first = Operand::address(iova.value())});
  }});
  auto reader = tlb_.reader();
  IommuView view(reader, memory_);
  EXPECT_THAT(view.read<std::uint64_t>(at(0x1000)), HasError(Errc::timed_out));
  EXPECT_STREQ(view.read<std::uint64_t>(at(0x1000)).error().operation, "IommuView::read");
  expect_entries({});
}

TEST_F(IommuViewTest, AWrongAnswerToAMissIsRefused) {
  IoTlbEntry answer;
  tlb_ = table({.on_miss = [&](GuestAddress, Access) -> Result<IoTlbEntry> { return answer; }});
  auto reader = tlb_.reader();
  IommuView view(reader, memory_);
  for (const IoTlbEntry& wrong : {entry(0x2000, ram, page),  // not what was asked for
                                  entry(0x1000, ram, 8), entry(0x1000, ram, page, Protection::read),
                                  entry(0x1000, ram, page, Protection::none), entry(0x1000, ram, 0),
                                  entry(0x1000, ram, top), entry(0x1000, top, page)}) {
    answer = wrong;
    EXPECT_THAT(view.write(at(0x1008), std::uint64_t{5}), HasError(Errc::invalid_argument));
  }
  expect_entries({});
}

TEST_F(IommuViewTest, AnAnswerThatWasInvalidatedMeanwhileIsNotKept) {
  IoTlb* tlb = nullptr;
  tlb_ = table({.on_miss = [&](GuestAddress iova, Access) -> Result<IoTlbEntry> {
    // As another thread may: it has to wait for this view, and so times out here.
    EXPECT_THAT(tlb->invalidate({iova, 8}, 0s), HasError(Errc::timed_out));
    return entry(iova.value(), ram, 8);
  }});
  tlb = &tlb_;
  auto reader = tlb_.reader();
  IommuView view(reader, memory_);
  VMSPACE_EXPECT_OK(view.read<std::uint64_t>(at(0x1000)));
  expect_entries({});
}

TEST_F(IommuViewTest, WhatWasMissedIsWaitedForLikeAnyOther) {
  tlb_ = table({.max_entries = 1, .on_miss = [](GuestAddress iova, Access) -> Result<IoTlbEntry> {
                  return entry(iova.value(), ram, 8);
                }});
  auto reader = tlb_.reader();
  {
    IommuView view(reader, memory_);
    for (std::uint64_t iova = 0; iova < 0x400; iova += 8)  // more than the reader remembers
      VMSPACE_EXPECT_OK(view.read<std::uint64_t>(at(iova)));
    VMSPACE_EXPECT_OK(
        tlb_.update(entry(0x8000, ram, page)));  // pushes the last one out of the table
    EXPECT_THAT(tlb_.invalidate({at(0x3f8), 8}, 0s), HasError(Errc::timed_out));
  }
  VMSPACE_EXPECT_OK(tlb_.invalidate({at(0x3f8), 8}, 0s));
}

TEST_F(IommuViewTest, AViewKeepsWhatItBeganWithAndInvalidateWaitsForItsEnd) {
  add(entry(0x1000, ram, page));
  {
    IommuView view(reader_, memory_);
    EXPECT_THAT(tlb_.invalidate({at(0x1000), page}, 0s), HasError(Errc::timed_out));
    expect_entries({});
    VMSPACE_EXPECT_OK(view.read<std::uint8_t>(at(0x1000)));
    {
      IommuView nested(reader_, memory_);
      VMSPACE_EXPECT_OK(nested.read<std::uint8_t>(at(0x1000)));
      // A view of another reader begins with what is current.
      auto other = tlb_.reader();
      IommuView later(other, memory_);
      EXPECT_THAT(later.read<std::uint8_t>(at(0x1000)), HasError(Errc::not_found));
    }
    EXPECT_THAT(tlb_.invalidate({at(0x1000), page}, 0s), HasError(Errc::timed_out));
  }
  VMSPACE_EXPECT_OK(tlb_.invalidate({at(0x1000), page}, 0s));
  IommuView view(reader_, memory_);
  EXPECT_THAT(view.read<std::uint8_t>(at(0x1000)), HasError(Errc::not_found));
}

TEST_F(IommuViewTest, InvalidateReturnsWhenAnotherThreadsViewEnds) {
  add(entry(0x1000, ram, page));
  std::atomic<bool> began{false};
  std::atomic<bool> ended{false};
  std::thread device([&] {
    auto reader = tlb_.reader();
    {
      IommuView view(reader, memory_);
      began = true;
      // Until the range is gone, which is when invalidate() has begun to wait.
      while (!tlb_.entries().empty())
        std::this_thread::yield();
      ended = true;
    }
  });
  while (!began)
    std::this_thread::yield();
  VMSPACE_EXPECT_OK(tlb_.invalidate({at(0x1000), page}, 60s));
  EXPECT_TRUE(ended);
  device.join();
}

TEST_F(IommuViewTest, CursorsReadAndWriteRangesOfIovas) {
  add(entry(0x1000, ram + page, page, Protection::read));
  add(entry(0x8000, ram + 8 * page, page));
  VMSPACE_EXPECT_OK(memory_.write(at(ram + 2 * page - 4), std::uint32_t{0x04030201}));
  VMSPACE_EXPECT_OK(memory_.write(at(ram + 8 * page), std::uint32_t{0x08070605}));
  IommuView view(reader_, memory_);
  const GuestRange readable[] = {{at(0x1ffc), 4}, {at(0x5000), 0}, {at(0x8000), 4}};
  auto in = view.reader(readable);
  VMSPACE_EXPECT_OK(in);
  EXPECT_THAT(in->read<Le64>(), IsOkAndHolds(Le64(0x0807060504030201)));
  EXPECT_EQ(in->remaining(), 0U);
  EXPECT_THAT(view.writer(readable), HasError(Errc::access_denied));
  const GuestRange writable[] = {{at(0x8010), 8}};
  auto out = view.writer(writable);
  VMSPACE_EXPECT_OK(out);
  VMSPACE_EXPECT_OK(out->write(std::uint64_t{3}));
  EXPECT_THAT(memory_.read<std::uint64_t>(at(ram + 8 * page + 0x10)), IsOkAndHolds(3U));
  const auto list = view.iovecs(readable, Access::read);
  VMSPACE_EXPECT_OK(list);
  EXPECT_EQ(list->count(), 2);
  const GuestRange missing[] = {{at(0x1000), 8}, {at(0x9000), 1}};
  EXPECT_THAT(view.reader(missing), HasError(Errc::not_found));
}

TEST_F(IommuViewTest, AnEntryForMemoryThatIsNotThereIsAnErrorOfTheAccess) {
  add(entry(0x1000, ram + 4 * page, page));      // a gap
  add(entry(0x2000, ram + 8 * page, 4 * page));  // runs out of memory
  IommuView view(reader_, memory_);
  EXPECT_THAT(view.read<std::uint64_t>(at(0x1000)), HasError(Errc::not_found));
  VMSPACE_EXPECT_OK(view.read<std::uint64_t>(at(0x2000)));
  EXPECT_THAT(view.write(at(0x2ffc), std::uint64_t{1}), HasError(Errc::out_of_bounds));
  const GuestRange all[] = {{at(0x2000), 4 * page}};
  EXPECT_THAT(view.writer(all), HasError(Errc::out_of_bounds));
}

TEST_F(IommuViewTest, WritesAreMarkedWhereTheyWent) {
  VMSPACE_EXPECT_OK(enable_dirty_tracking(memory_));
  add(entry(0x1000, ram + page, page));
  {
    IommuView view(reader_, memory_);
    VMSPACE_EXPECT_OK(view.write(at(0x1000), std::uint8_t{1}));
  }
  EXPECT_THAT(harvest_dirty(memory_),
              IsOkAndHolds((std::vector<GuestRange>{{at(ram + page), page}})));
}

TEST_F(IommuViewTest, PiecesOfOneRequestAreBounded) {
  // Two entries that alternate make a piece of each byte.
  add(entry(0, ram + page, 1));
  add(entry(1, ram, 1));
  IommuView view(reader_, memory_);
  const std::vector<GuestRange> hostile(32769, GuestRange{at(0), 2});
  EXPECT_THAT(view.reader(hostile), HasError(Errc::limit_exceeded));
  VMSPACE_EXPECT_OK(view.reader(std::span(hostile).first(32768)));
}

TEST_F(IommuViewTest, TranslationsOfOneRequestAreBounded) {
  // Sixteen entries that follow each other make one piece, of sixteen look-ups that may all miss.
  for (std::uint64_t i = 0; i < 16; ++i)
    add(entry(i, ram + i, 1));
  IommuView view(reader_, memory_);
  const std::vector<GuestRange> hostile(4097, GuestRange{at(0), 16});
  EXPECT_THAT(view.reader(hostile), HasError(Errc::limit_exceeded));
  VMSPACE_EXPECT_OK(view.reader(std::span(hostile).first(4096)));
}

TEST_F(IommuViewTest, EmptyRangesAreAcceptedAnywhere) {
  IommuView view(reader_, memory_);
  VMSPACE_EXPECT_OK(view.read_slice(at(0x1234), {}));
  VMSPACE_EXPECT_OK(view.write_slice(at(top), {}));
  EXPECT_THAT(view.translate({at(top), 0}, Access::write), IsOkAndHolds(std::vector<GuestRange>{}));
}

}  // namespace
}  // namespace vmspace::test::iommu_view_test
