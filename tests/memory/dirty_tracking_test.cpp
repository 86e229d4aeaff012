// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/dirty_tracking.hpp"

#include <unistd.h>

#include <array>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/guest_io.hpp"
#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::dirty_tracking_test {
namespace {

using test::at;
using test::guest;
using test::page;
using test::pattern;
using test::region;
using test::top;
using test::TrackedGuest;
using ::testing::Not;

TEST_F(TrackedGuest, EveryWayToWriteIsRecordedAndReadsAreNot) {
  const auto bytes = pattern(16);
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  ASSERT_EQ(write(ends[1], bytes.data(), 16), 16);
  const std::vector<std::pair<const char*, std::function<void()>>> writes{
      {"write", [&] { ASSERT_THAT(memory.write(at(first + 8), 1U), IsOk()); }},
      {"store",
       [&] { ASSERT_THAT(memory.store(at(first + 8), 1U, std::memory_order_release), IsOk()); }},
      {"fetch_or", [&] { ASSERT_THAT(memory.fetch_or(at(first + 8), 1U), IsOk()); }},
      {"compare_exchange",
       [&] { ASSERT_THAT(memory.compare_exchange(at(first + 8), 1U, 2U), IsOk()); }},
      {"write, large",
       [&] { ASSERT_THAT(memory.write(at(first + 8), std::array<std::uint64_t, 100>{}), IsOk()); }},
      {"write_slice", [&] { ASSERT_THAT(memory.write_slice(at(first + 8), bytes), IsOk()); }},
      {"write_slice, long",
       [&] { ASSERT_THAT(memory.write_slice(at(first + 8), pattern(200)), IsOk()); }},
      {"write_some", [&] { ASSERT_THAT(memory.write_some(at(first + 8), bytes), IsOk()); }},
      {"fill",
       [&] {
         ASSERT_THAT(memory.fill({at(first + 8), 8}, std::byte{1}), IsOk());
       }},
      {"copy",
       [&] {
         ASSERT_THAT(memory.copy(at(first + 8), {at(second), 8}), IsOk());
       }},
      {"read_from",
       [&] {
         ASSERT_THAT(read_into_guest(ends[0], memory, {at(first + 8), 16}), IsOk());
       }},
      {"mark_dirty",
       [&] {
         ASSERT_THAT(memory.mark_dirty({at(first + 8), 1}), IsOk());
       }},
      {"mutable_view",
       [&] {
         ASSERT_THAT(memory.mutable_view({at(first + 8), 8}), IsOk());
       }},
      {"iovecs",
       [&] {
         ASSERT_THAT(memory.iovecs({at(first + 8), 8}, Access::write), IsOk());
       }},
  };
  for (const auto& [name, write] : writes) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(harvest().empty());
    write();
    EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(first, 1)});
  }
  close(ends[0]);
  close(ends[1]);

  std::array<std::byte, 16> out{};
  ASSERT_THAT(memory.read<std::uint32_t>(at(first)), IsOk());
  ASSERT_THAT(memory.load<std::uint32_t>(at(first), std::memory_order_acquire), IsOk());
  ASSERT_THAT(memory.read_slice(at(first), out), IsOk());
  ASSERT_THAT(memory.view({at(first), 8}), IsOk());
  ASSERT_THAT(memory.iovecs({at(first), 8}, Access::read), IsOk());
  ASSERT_THAT(memory.compare_exchange(at(second), 4U, 5U), IsOk());  // not equal, so not stored
  EXPECT_TRUE(harvest().empty());
}

TEST_F(TrackedGuest, RangesCoalesceAcrossPagesAndRegionsAndAreClearedByTheHarvest) {
  ASSERT_THAT(memory.write(at(second - 4), std::uint64_t{1}),
              IsOk());  // the last page and the first
  ASSERT_THAT(memory.write(at(first + page - 1), std::uint16_t{1}), IsOk());
  ASSERT_THAT(memory.write(at(top), std::uint8_t{1}), IsOk());
  EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(first, 3), pages(last, 1)}));
  EXPECT_TRUE(harvest().empty());
}

TEST_F(TrackedGuest, FailedWritesMarkNothing) {
  EXPECT_THAT(memory.write(at(gap - 1), std::uint64_t{1}), Not(IsOk()));
  EXPECT_THAT(memory.write_slice(at(gap - 1), pattern(2)), Not(IsOk()));
  EXPECT_THAT(memory.fill({at(gap - 1), 2}, std::byte{1}), Not(IsOk()));
  EXPECT_THAT(memory.copy(at(gap - 1), {at(first), 2}), Not(IsOk()));
  EXPECT_THAT(memory.mark_dirty({at(gap - 1), 2}), Not(IsOk()));
  EXPECT_THAT(read_into_guest(-1, memory, {at(first), 3 * page}), Not(IsOk()));
  EXPECT_TRUE(harvest().empty());
}

TEST_F(TrackedGuest, TrackingIsSharedByAllMapsThatHoldTheRegion) {
  const auto other = memory.without_region(at(last));
  ASSERT_THAT(other, IsOk());
  ASSERT_THAT(other->write(at(first), 1U), IsOk());
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(first, 1)});
  ASSERT_THAT(memory.write(at(last), 2U), IsOk());
  disable_dirty_tracking(*other);
  ASSERT_THAT(memory.write(at(first), 2U), IsOk());
  // Its ranges without those of the others would not be all that was written.
  const auto untracked = harvest_dirty(memory);
  ASSERT_THAT(untracked, HasError(Errc::bad_state));
  EXPECT_EQ(untracked.error().first, Operand::range(first, second - 1));
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(last, 1)});  // still there
}

TEST_F(TrackedGuest, ARegionThatJoinsIsTrackedAndAllOfItIsDirty) {
  constexpr std::uint64_t plugged = 0x100'0000;
  for (const Protection protection : {Protection::read_write, Protection::read}) {
    const auto more = region({plugged, 3 * page, protection});
    ASSERT_THAT(memory.write(at(first), 1U), IsOk());
    const auto joined = memory.with_region(more);
    ASSERT_THAT(joined, IsOk());
    auto dirty = harvest_dirty(*joined);
    ASSERT_THAT(dirty, IsOk());
    EXPECT_EQ(*dirty, (std::vector<GuestRange>{pages(first, 1), pages(plugged, 3)}));
    // Later only what is written, by whichever way.
    ASSERT_THAT(more->load_image(page, pattern(1)), IsOk());
    dirty = harvest_dirty(*joined);
    ASSERT_THAT(dirty, IsOk());
    EXPECT_EQ(*dirty, std::vector<GuestRange>{pages(plugged + page, 1)});
    // Back again, it has its own log still.
    const auto without = joined->without_region(at(plugged));
    ASSERT_THAT(without, IsOk());
    ASSERT_THAT(more->load_image(0, pattern(1)), IsOk());
    const auto again = without->with_region(more);
    ASSERT_THAT(again, IsOk());
    dirty = harvest_dirty(*again);
    ASSERT_THAT(dirty, IsOk());
    EXPECT_EQ(*dirty, std::vector<GuestRange>{pages(plugged, 1)});
  }
}

TEST_F(TrackedGuest, RegionsArePutTogetherWithTrackedOnes) {
  const auto tracked = memory.regions()[0];
  const auto other = region({0x100'0000, page});
  const auto together = GuestMemory::from_regions({other, tracked});
  ASSERT_THAT(together, IsOk());
  const auto dirty = harvest_dirty(*together);
  ASSERT_THAT(dirty, IsOk());
  EXPECT_EQ(*dirty, std::vector<GuestRange>{pages(0x100'0000, 1)});
  // Regions that can't be put together do not begin to track.
  const auto in_the_way = region({first + page, page});
  EXPECT_THAT(memory.with_region(in_the_way), HasError(Errc::overlap));
  EXPECT_FALSE(in_the_way->dirty().is_enabled());
}

TEST(GuestMemory, AHarvestOfWhatIsNotTrackedIsAnError) {
  const GuestMemory memory = guest({{0x1000, page, Protection::read}});
  EXPECT_THAT(harvest_dirty(memory), HasError(Errc::bad_state));
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  EXPECT_THAT(harvest_dirty(memory), IsOkAndHolds(std::vector<GuestRange>{}));
  // RAM that joins a ROM is tracked, although the guest can't write a ROM.
  const auto joined = memory.with_region(region({0x8000, page}));
  ASSERT_THAT(joined, IsOk());
  EXPECT_THAT(harvest_dirty(*joined), IsOkAndHolds((std::vector<GuestRange>{{at(0x8000), page}})));
}

TEST_F(TrackedGuest, ForeignLogsMerge) {
  const std::array<std::uint64_t, 1> log{0b10};
  ASSERT_THAT(merge_dirty_log(memory, at(second), log, page), IsOk());
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(second + page, 1)});
  const std::array<std::uint64_t, 1> beyond{0b101};
  EXPECT_THAT(merge_dirty_log(memory, at(second), beyond, page), HasError(Errc::out_of_bounds));
  EXPECT_THAT(merge_dirty_log(memory, at(gap), log, page), HasError(Errc::not_found));
  EXPECT_THAT(merge_dirty_log(memory, at(rom), log, page), HasError(Errc::access_denied));
  EXPECT_TRUE(harvest().empty());
}

}  // namespace
}  // namespace vmspace::dirty_tracking_test
