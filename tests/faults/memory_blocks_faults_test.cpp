// SPDX-License-Identifier: Apache-2.0
//
// Memory runs out at every allocation of a change of blocks: what is plugged is as it was.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/try.hpp"

#include "faults/failing_new.hpp"
#include "snapshot/dirty_scan_support.hpp"
#include "vmm/memory_blocks_support.hpp"

namespace vmspace::test::memory_blocks_faults_test {
namespace {

using namespace std::chrono_literals;

class MemoryBlocksFaults : public MemoryBlocksTest {
 protected:
  /// Every allocation of the call fails once; nothing has changed each time. Gives the last outcome.
  template <typename Call>
  Result<void> expect_all_or_nothing(Call call) {
    const auto plugged = blocks.plugged();
    const auto regions = memory.map()->memory.regions().size();
    Result<void> outcome;
    const int failures = fail_each_allocation(
        [&] {
          outcome = call();
          granted = -1;
          if (!outcome && outcome.error().code == Errc::inconsistent) {
            // A listener found no memory to take back what it had let go; later it does.
            VMSPACE_EXPECT_OK(memory.collect());
            throw std::bad_alloc();
          }
        },
        [&] {
          // When it ran out while an unplug was undone, the next call does the rest.
          EXPECT_THAT(blocks.plug({base, 1}), HasError(Errc::misaligned));
          EXPECT_EQ(blocks.plugged(), plugged);
          EXPECT_EQ(memory.map()->memory.regions().size(), regions);
          expect_agreement();
          forget_calls();
        });
    EXPECT_GT(failures, 0);
    expect_agreement();
    return outcome;
  }
};

TEST_F(MemoryBlocksFaults, PluggingIsAllOrNothing) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 1)));
  auto log = VMSPACE_ASSERT_OK(memory.start_dirty_log());
  VMSPACE_EXPECT_OK(expect_all_or_nothing([&] { return blocks.plug(run(2, 6)); }));
  EXPECT_THAT(log.harvest(), IsOkAndHolds(std::vector{run(2, 6)}));
}

TEST_F(MemoryBlocksFaults, UnpluggingIsAllOrNothing) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 9)));
  VMSPACE_EXPECT_OK(expect_all_or_nothing([&] { return blocks.unplug(run(2, 6), 1s); }));
  EXPECT_EQ(blocks.plugged(), (std::vector{run(0, 2), run(8, 1)}));
}

TEST_F(MemoryBlocksFaults, UnpluggingAllIsAllOrNothing) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 9)));
  VMSPACE_ASSERT_OK(blocks.plug(run(20, 2)));
  VMSPACE_EXPECT_OK(expect_all_or_nothing([&] { return blocks.unplug_all(1s); }));
  EXPECT_EQ(blocks.plugged_size(), 0u);
}

TEST_F(MemoryBlocksFaults, ATimeoutIsUndoneAlsoWhenMemoryRunsOut) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 9)));
  const GuestMemory copy = memory.map()->memory;
  EXPECT_THAT(expect_all_or_nothing([&] { return blocks.unplug(run(2, 6), 0s); }),
              HasError(Errc::timed_out));
  EXPECT_EQ(blocks.plugged(), std::vector{run(0, 9)});
}

// Plugging that is refused gives pages back while memory is short, and a scan notes what is discarded.
TEST_F(MemoryBlocksFaults, AScanOfTheMemoryNeedsNoneForBlocksThatAreGivenBack) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 1)));
  START_SCAN_OR_SKIP(scan, memory.map()->memory);
  VMSPACE_EXPECT_OK(expect_all_or_nothing([&] { return blocks.plug(run(4, 2)); }));
  VMSPACE_EXPECT_OK(expect_all_or_nothing([&] { return blocks.unplug(run(4, 2), 1s); }));
}

TEST_F(MemoryBlocksFaults, AScanReportsWhatWasDiscardedWithoutMemory) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 32)));
  START_SCAN_OR_SKIP(scan, memory.map()->memory);
  const MemoryRegionPtr region = blocks.region();
  for (std::uint64_t i = 0; i < 32; i += 2) {
    granted = 0;
    const auto discarded = region->mapping().discard(i * block, block);
    granted = -1;
    VMSPACE_EXPECT_OK(discarded);
  }
  const auto written = VMSPACE_ASSERT_OK(scan.harvest());
  for (std::uint64_t i = 0; i < 32; i += 2) {
    EXPECT_TRUE(std::ranges::any_of(written, [&](const GuestRange& range) {
      return range.contains(run(i, 1));
    })) << i;
  }
  EXPECT_THAT(scan.harvest(), IsOkAndHolds(testing::IsEmpty()));
}

TEST_F(MemoryBlocksFaults, ARegionIsMadeOrNot) {
  VMSPACE_EXPECT_OK(expect_all_or_nothing([&]() -> Result<void> {
    VMSPACE_TRY(MemoryBlocks::create(
        memory,
        {.name = "more",
         .base = GuestAddress(8_GiB),
         .size = 16_MiB,
         .backing = {.source = MemorySource::shmem}},
        {.requested_size = 16_MiB, .plugged = {{GuestAddress(8_GiB), 4_MiB}}}));
    return {};
  }));
  EXPECT_TRUE(memory.map()->memory.contains({GuestAddress(8_GiB), 4_MiB}));
}

// One copy of the set of blocks, not one for each run.
TEST_F(MemoryBlocksFaults, ARegionIsRestoredAtOnceHoweverManyRunsWerePlugged) {
  RegionOptions region = options();
  region.base = GuestAddress(8_GiB);
  const auto allocations_for = [&](const std::vector<GuestRange>& plugged) {
    const BlockOptions given{
        .block_size = block, .slot_size = slot, .requested_size = all.size, .plugged = plugged};
    const auto other = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40}));
    asked = 0;
    const auto made = MemoryBlocks::create(*other, region, given);
    const int count = asked;
    EXPECT_EQ(made.value().plugged_size(), 16 * block);
    return count;
  };
  std::vector<GuestRange> runs;
  for (std::uint64_t i = 0; i < 16; ++i)
    runs.push_back({GuestAddress(region.base.value() + i * block), block});
  EXPECT_EQ(allocations_for(runs), allocations_for({{region.base, 16 * block}}));
}

}  // namespace
}  // namespace vmspace::test::memory_blocks_faults_test
