// SPDX-License-Identifier: Apache-2.0
//
// A region that is present in parts: what is absent is a gap to every access.

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/guest_cursor.hpp"
#include "vmspace/memory/guest_io.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::guest_memory_in_parts_test {
namespace {

using test::at;
using test::contents;
using test::page;
using test::pattern;

constexpr std::uint64_t base = 0x100000;

/// Eight pages, which are blocks; those at 1, 2 and 5 are present, and so is a whole region behind:
///
///   .##..#..|####
struct InParts : ::testing::Test {
  MemoryRegionPtr all = test::region({.base = base, .size = 8 * page});
  MemoryRegionPtr region = with_blocks({{1 * page, 2 * page}, {5 * page, page}});
  GuestMemory memory = *GuestMemory::from_regions(
      {region, test::region({.base = base + 8 * page, .size = 4 * page})});

  [[nodiscard]] MemoryRegionPtr with_blocks(const std::vector<PresentBlocks::Run>& runs) const {
    auto blocks = *PresentBlocks::none(8 * page, page, 4 * page);
    for (const auto& run : runs)
      blocks = *blocks->with(run);
    return *all->with_blocks(blocks);
  }
  static GuestAddress in(std::uint64_t block, std::uint64_t offset = 0) {
    return at(base + block * page + offset);
  }
};

TEST_F(InParts, PresentBlocksAreReadAndWritten) {
  ASSERT_THAT(memory.write(in(1, 8), std::uint64_t{42}), IsOk());
  EXPECT_THAT(memory.read<std::uint64_t>(in(1, 8)), IsOkAndHolds(42u));
  const auto bytes = pattern(2 * page);
  ASSERT_THAT(memory.write_slice(in(1), bytes), IsOk());
  EXPECT_EQ(contents(memory, base + page, 2 * page), bytes);
  ASSERT_THAT(memory.store(in(5), std::uint32_t{7}, std::memory_order_release), IsOk());
  EXPECT_THAT(memory.load<std::uint32_t>(in(5), std::memory_order_acquire), IsOkAndHolds(7u));
  EXPECT_THAT(memory.compare_exchange(in(5), std::uint32_t{7}, std::uint32_t{9}), IsOkAndHolds(7u));
  EXPECT_THAT(memory.fetch_or(in(5), std::uint32_t{6}), IsOkAndHolds(9u));
  EXPECT_THAT(memory.read<std::uint32_t>(in(5)), IsOkAndHolds(15u));
  EXPECT_THAT(memory.host_address({in(1), 2 * page}), IsOkAndHolds(all->host_base() + page));
  EXPECT_EQ(memory.guest_address(all->host_base() + page + 5), in(1, 5));
  EXPECT_THAT(memory.check_invariants(), IsOk());
}

// Reading or writing any of it would be a signal, or memory that the guest has given back.
TEST_F(InParts, AnAccessToAnAbsentBlockIsNotFoundWhateverItIs) {
  std::array<std::byte, 16> bytes{};
  for (const std::uint64_t block : {0u, 3u, 4u, 6u, 7u}) {
    const GuestRange range{in(block), 16};
    EXPECT_THAT(memory.read<std::uint64_t>(in(block)), HasError(Errc::not_found));
    EXPECT_THAT(memory.write(in(block), std::uint64_t{1}), HasError(Errc::not_found));
    EXPECT_THAT(memory.load<std::uint16_t>(in(block), std::memory_order_relaxed),
                HasError(Errc::not_found));
    EXPECT_THAT(memory.store(in(block), std::uint8_t{1}, std::memory_order_relaxed),
                HasError(Errc::not_found));
    EXPECT_THAT(memory.compare_exchange(in(block), 0u, 1u), HasError(Errc::not_found));
    EXPECT_THAT(memory.fetch_or(in(block), 1u), HasError(Errc::not_found));
    EXPECT_THAT(memory.read_slice(in(block), bytes), HasError(Errc::not_found));
    EXPECT_THAT(memory.write_slice(in(block), bytes), HasError(Errc::not_found));
    EXPECT_THAT(memory.read_some(in(block), bytes), HasError(Errc::not_found));
    EXPECT_THAT(memory.write_some(in(block), bytes), HasError(Errc::not_found));
    EXPECT_THAT(memory.fill(range, std::byte{1}), HasError(Errc::not_found));
    EXPECT_THAT(memory.copy(in(1), range), HasError(Errc::not_found));
    EXPECT_THAT(memory.copy(in(block), {in(1), 16}), HasError(Errc::not_found));
    EXPECT_THAT(memory.read_string(in(block), 5), HasError(Errc::not_found));
    EXPECT_THAT(memory.view(range), HasError(Errc::not_found));
    EXPECT_THAT(memory.mutable_view(range), HasError(Errc::not_found));
    EXPECT_THAT(memory.iovecs(range, Access::read), HasError(Errc::not_found));
    const std::array ranges{GuestRange{in(1), 16}, range};
    EXPECT_THAT(memory.iovecs(ranges, Access::write), HasError(Errc::not_found));
    EXPECT_THAT(GuestReader::make(memory, ranges), HasError(Errc::not_found));
    EXPECT_THAT(GuestWriter::make(memory, ranges), HasError(Errc::not_found));
    EXPECT_THAT(memory.host_address(range), HasError(Errc::not_found));
    EXPECT_THAT(memory.const_host_address(range), HasError(Errc::not_found));
    EXPECT_THAT(memory.mark_dirty(range), HasError(Errc::not_found));
    EXPECT_THAT(memory.check(range, Access::read), HasError(Errc::not_found));
    EXPECT_FALSE(memory.contains(range));
    EXPECT_THAT(read_into_guest(-1, memory, range), HasError(Errc::not_found));
    EXPECT_THAT(write_from_guest(-1, memory, range), HasError(Errc::not_found));
    EXPECT_THAT(region->load_image(block * page, bytes), HasError(Errc::not_found));
    EXPECT_EQ(memory.guest_address(all->host_base() + block * page), std::nullopt);
    EXPECT_EQ(memory.find_region(in(block)), region);  // the region is known all the same
  }
}

TEST_F(InParts, ARangeThatRunsIntoAnAbsentBlockIsOutOfBoundsAndTouchesNothing) {
  ASSERT_THAT(memory.fill({in(1), 2 * page}, std::byte{9}), IsOk());
  const auto bytes = pattern(64);
  EXPECT_THAT(memory.write_slice(in(2, page - 32), bytes), HasError(Errc::out_of_bounds));
  EXPECT_THAT(memory.write(in(2, page - 4), std::uint64_t{0}), HasError(Errc::out_of_bounds));
  EXPECT_THAT(region->load_image(3 * page - 32, bytes), HasError(Errc::not_found));
  EXPECT_EQ(contents(memory, base + 2 * page, page), std::vector<std::byte>(page, std::byte{9}));
  EXPECT_THAT(memory.write_some(in(2, page - 32), bytes), IsOkAndHolds(32u));
  std::vector<std::byte> some(page * 8);
  EXPECT_THAT(memory.read_some(in(1, 5), some), IsOkAndHolds(2 * page - 5));
  EXPECT_THAT(memory.read<std::uint64_t>(in(0, page - 4)), HasError(Errc::not_found));
}

TEST_F(InParts, CopiesWithinAndBetweenRegionsMoveWhatIsThere) {
  const auto bytes = pattern(page);
  ASSERT_THAT(memory.write_slice(in(1), bytes), IsOk());
  ASSERT_THAT(memory.copy(in(1, 100), {in(1), page}), IsOk());  // upwards, so from the end
  EXPECT_EQ(contents(memory, base + page + 100, page), bytes);
  ASSERT_THAT(memory.copy(in(9), {in(1, 100), page}), IsOk());
  EXPECT_EQ(contents(memory, base + 9 * page, page), bytes);
  ASSERT_THAT(memory.copy(in(1), {in(9), page}), IsOk());
  EXPECT_EQ(contents(memory, base + page, page), bytes);
}

TEST_F(InParts, AWholeRegionMadeOfBlocksGoesOnIntoTheNext) {
  const auto whole = with_blocks({{0, 8 * page}});
  EXPECT_TRUE(whole->is_whole());
  const auto after = memory.with_changes(std::vector{region}, {whole});
  ASSERT_THAT(after, IsOk());
  EXPECT_THAT(after->check_invariants(), IsOk());
  EXPECT_TRUE(after->contains({in(0), 12 * page}, Access::write));
  EXPECT_EQ(after->total_size(), 12 * page);
  EXPECT_EQ(memory.total_size(), 7 * page);
  const auto none = after->with_changes(std::vector{whole}, {with_blocks({})});
  ASSERT_THAT(none, IsOk());
  EXPECT_THAT(none->check_invariants(), IsOk());
  EXPECT_FALSE(none->contains({in(7), 1}));
  EXPECT_TRUE(none->contains({in(8), 1}));
}

TEST_F(InParts, WhatIsWrittenIsMarkedAndWhatIsAbsentIsNotReported) {
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  ASSERT_THAT(memory.write(in(1), 1), IsOk());
  ASSERT_THAT(memory.store(in(5), 1, std::memory_order_relaxed), IsOk());
  region->dirty().mark(2 * page, 4 * page);  // as a guest that writes to what it was not given
  EXPECT_THAT(harvest_dirty(memory),
              IsOkAndHolds(std::vector<GuestRange>{{in(1), 2 * page}, {in(5), page}}));
}

TEST_F(InParts, AMovedRegionKeepsItsBlocks) {
  const auto moved = region->at(at(base + 0x100000));
  ASSERT_THAT(moved, IsOk());
  EXPECT_EQ((*moved)->blocks(), region->blocks());
}

TEST_F(InParts, BlocksOfAnotherSizeAreRefused) {
  EXPECT_THAT(all->with_blocks(*PresentBlocks::none(4 * page, page, page)),
              HasError(Errc::invalid_argument));
  const auto whole = region->with_blocks(nullptr);
  ASSERT_THAT(whole, IsOk());
  EXPECT_TRUE((*whole)->is_whole());
  EXPECT_TRUE((*whole)->shares_memory_with(*region));
}

TEST_F(InParts, ALogMayBeginWithABlockThatIsAbsent) {
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  const std::array<std::uint64_t, 1> log{0b11};  // of the first two blocks, of which one is present
  ASSERT_THAT(merge_dirty_log(memory, in(0), log, page), IsOk());
  EXPECT_THAT(harvest_dirty(memory), IsOkAndHolds(std::vector<GuestRange>{{in(1), page}}));
}

}  // namespace
}  // namespace vmspace::guest_memory_in_parts_test
