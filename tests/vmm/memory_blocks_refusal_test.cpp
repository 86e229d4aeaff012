// SPDX-License-Identifier: Apache-2.0
//
// MemoryBlocks: what is refused, what fails, and who is waited for.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmm/memory_blocks_support.hpp"

namespace vmspace::test::memory_blocks_refusal_test {
namespace {

using namespace std::chrono_literals;

// A range of which only some is plugged was accepted where its first block alone was asked for.
TEST_F(MemoryBlocksTest, EveryBlockOfARangeMustBeAsItIsAskedToBe) {
  VMSPACE_ASSERT_OK(blocks.plug(run(1, 2)));
  const auto before = this->before();
  for (const GuestRange& range : {run(0, 2), run(2, 2), run(0, 4), run(1, 1)})
    EXPECT_THAT(blocks.plug(range), HasError(Errc::bad_state));
  for (const GuestRange& range : {run(0, 2), run(2, 2), run(0, 4), run(5, 1)})
    EXPECT_THAT(blocks.unplug(range, 1s), HasError(Errc::bad_state));
  expect_unchanged(before);
  EXPECT_THAT(blocks.state(run(0, 2)), IsOkAndHolds(BlockState::mixed));
  EXPECT_THAT(blocks.state(run(1, 2)), IsOkAndHolds(BlockState::plugged));
  EXPECT_THAT(blocks.state(run(3, 9)), IsOkAndHolds(BlockState::unplugged));
}

// The guest chose these numbers.
TEST_F(MemoryBlocksTest, RangesThatAreNotBlocksOfTheRegionAreRefusedWhateverTheySumUpTo) {
  constexpr std::uint64_t top = ~std::uint64_t{0};
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 1)));
  const auto before = this->before();
  struct Case {
    GuestRange range;
    Errc code;
  };
  for (const auto& [range, code] : {
           Case{{base, 0}, Errc::zero_size},
           Case{{GuestAddress(base.value() + 4096), block}, Errc::misaligned},
           Case{{base, block + 4096}, Errc::misaligned},
           Case{{GuestAddress(base.value() - block), block}, Errc::out_of_bounds},
           Case{{GuestAddress(0), block}, Errc::out_of_bounds},
           Case{{base, top - block + 1}, Errc::out_of_bounds},
           Case{{GuestAddress(top - block + 1), block}, Errc::out_of_bounds},
           Case{{GuestAddress(top - block + 1), 2 * block}, Errc::out_of_bounds},
           Case{run(31, 2), Errc::out_of_bounds},
           Case{run(32, 1), Errc::out_of_bounds},
       }) {
    EXPECT_THAT(blocks.plug(range), HasError(code)) << range.size;
    EXPECT_THAT(blocks.unplug(range, 1s), HasError(code)) << range.size;
    EXPECT_THAT(blocks.state(range), HasError(code)) << range.size;
  }
  expect_unchanged(before);
}

// Not before: the guest, or a device, would have had memory that is not the VM's any more.
TEST_F(MemoryBlocksTest, ThePagesGoWhenNoTableHasThemAnyMore) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 1)));
  VMSPACE_ASSERT_OK(memory.map()->memory.fill(run(0, 1), std::byte{7}));
  int removals = 0;
  for (const auto& listener : {by_slot, by_block}) {
    listener->on_call([&](std::string_view line) -> Result<void> {
      if (line.starts_with("remove")) {
        ++removals;
        EXPECT_EQ(resident(), block);
        EXPECT_EQ(blocks.region()->without_blocks()->host_base()[0], std::byte{7});
      }
      return {};
    });
  }
  VMSPACE_ASSERT_OK(blocks.unplug(run(0, 1), 1s));
  EXPECT_EQ(removals, 2);
  EXPECT_EQ(resident(), 0u);
}

TEST_F(MemoryBlocksTest, ATableThatRefusesLeavesTheBlocksAsTheyWere) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 2)));
  VMSPACE_ASSERT_OK(memory.map()->memory.fill(run(0, 2), std::byte{7}));
  for (const auto& listener : {by_slot, by_block}) {
    for (const bool throws : {false, true}) {
      for (std::size_t call = 0; call < 4; ++call) {
        for (const bool plugs : {false, true}) {
          const auto tables = std::pair(by_slot->table(), by_block->table());
          if (throws) {
            listener->run_out_of_memory(call);
          } else {
            listener->refuse(call);
          }
          bool changed = false;
          try {
            changed = (plugs ? blocks.plug(run(7, 2)) : blocks.unplug(run(0, 2), 1s)).has_value();
          } catch (const std::bad_alloc&) {
          }
          listener->refuse(0, 0);
          if (changed) {  // there were no so many calls
            VMSPACE_ASSERT_OK(plugs ? blocks.unplug(run(7, 2), 1s) : blocks.plug(run(0, 2)));
            VMSPACE_ASSERT_OK(memory.map()->memory.fill(run(0, 2), std::byte{7}));
          }
          EXPECT_EQ(blocks.plugged(), std::vector{run(0, 2)});
          EXPECT_EQ(by_slot->table(), tables.first);
          EXPECT_EQ(by_block->table(), tables.second);
          EXPECT_THAT(memory.map()->memory.read<std::uint8_t>(base), IsOkAndHolds(7));
          expect_agreement();
        }
      }
    }
  }
}

TEST_F(MemoryBlocksTest, AnUndoThatFailsIsSaidAndSettledLater) {
  // The second listener refuses; the first does not let go of what it was given.
  by_block->refuse(1);
  by_slot->on_call([](std::string_view line) -> Result<void> {
    if (!line.starts_with("remove")) return {};
    return fail({.code = Errc::os, .operation = "test"});
  });
  EXPECT_THAT(blocks.plug(run(0, 1)), HasError(Errc::inconsistent));
  EXPECT_EQ(blocks.plugged_size(), 0u);
  EXPECT_THAT(memory.unsettled(), IsOkAndHolds(testing::SizeIs(1)));
  EXPECT_THAT(blocks.plug(run(1, 1)), HasError(Errc::bad_state));  // in the slot that is retired
  VMSPACE_EXPECT_OK(blocks.plug(run(4, 1)));
  // A guest that still uses the slot has memory there.
  EXPECT_EQ(blocks.region()->without_blocks()->host_base()[0], std::byte{0});
  by_slot->on_call({});
  VMSPACE_EXPECT_OK(memory.collect());
  VMSPACE_EXPECT_OK(blocks.plug(run(1, 1)));
  expect_agreement();
}

TEST_F(MemoryBlocksTest, ReadersAreWaitedForAndATimeoutLeavesTheBlocksPlugged) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 2)));
  VMSPACE_ASSERT_OK(memory.map()->memory.fill(run(0, 2), std::byte{7}));
  const auto tables = std::pair(by_slot->table(), by_block->table());
  const auto times_out = [&] {
    EXPECT_THAT(blocks.unplug(run(0, 1), 1ms), HasError(Errc::timed_out));
    EXPECT_EQ(blocks.plugged(), std::vector{run(0, 2)});
    EXPECT_EQ(by_slot->table(), tables.first);
    EXPECT_EQ(by_block->table(), tables.second);
    expect_agreement();
  };
  {
    auto reader = memory.reader();
    static_cast<void>(reader.current());
    times_out();
    // The old map has the block, and its page is there.
    EXPECT_THAT(reader->memory.read<std::uint8_t>(base), IsOkAndHolds(7));
    reader.park();
  }
  {
    const auto map = memory.map();
    times_out();
  }
  {  // A running copy: of the memory, not of the map.
    const GuestMemory copy = memory.map()->memory;
    times_out();
    EXPECT_THAT(copy.read<std::uint8_t>(base), IsOkAndHolds(7));
  }
  {
    const auto view = VMSPACE_ASSERT_OK(memory.map()->memory.view(run(0, 1)));
    times_out();
    EXPECT_EQ(view.bytes()[0], std::byte{7});
  }
  VMSPACE_EXPECT_OK(blocks.unplug(run(0, 1), 1s));
}

TEST_F(MemoryBlocksTest, WhileReadersAreWaitedForOnlyThisRegionIsHeldUp) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 2)));
  std::optional<GuestMemory> copy = memory.map()->memory;
  Result<void> unplugged;
  std::thread waiting([&] { unplugged = blocks.unplug(run(0, 1), 60s); });
  while (blocks.plugged_size() != block)
    std::this_thread::sleep_for(1ms);
  EXPECT_THAT(blocks.plug(run(4, 1)), HasError(Errc::bad_state));
  EXPECT_THAT(blocks.unplug(run(1, 1), 1s), HasError(Errc::bad_state));
  const auto region = blocks.region()->shared_description();
  EXPECT_THAT(memory.unplug(region, 1s), HasError(Errc::bad_state));
  EXPECT_THAT(memory.relocate(region, GuestAddress(8_GiB)), HasError(Errc::bad_state));
  EXPECT_THAT(memory.map()->memory.read<int>(base), HasError(Errc::not_found));
  VMSPACE_EXPECT_OK(make({.name = "other", .base = GuestAddress(8_GiB), .size = 64_MiB},
                         {.block_size = block, .slot_size = slot, .requested_size = 64_MiB})
                        .plug({GuestAddress(8_GiB), block}));
  copy.reset();
  waiting.join();
  VMSPACE_EXPECT_OK(unplugged);
  expect_agreement();
  VMSPACE_EXPECT_OK(memory.unplug(region, 1s));
}

// What happens while an unplug of the first block waits for readers, who have lost it by then; tables
// have it until nobody reads it any more. There is another one in another slot.
class MemoryBlocksInBetween : public MemoryBlocksTest {
 protected:
  void SetUp() override {
    MemoryBlocksTest::SetUp();
    VMSPACE_ASSERT_OK(blocks.plug(run(0, 1)));
    VMSPACE_ASSERT_OK(blocks.plug(run(4, 1)));
  }
  template <typename Meanwhile>
  Result<void> unplug(Meanwhile meanwhile) {
    std::optional<GuestMemory> copy = memory.map()->memory;
    Result<void> unplugged;
    std::thread waiting([&] { unplugged = blocks.unplug(run(0, 1), 60s); });
    while (blocks.plugged_size() != block)
      std::this_thread::sleep_for(1ms);
    meanwhile();
    copy.reset();
    waiting.join();
    return unplugged;
  }
  /// A listener refuses this call of those that follow the wait: 0 is the question whether it could.
  template <typename Meanwhile>
  void fail_to_unplug(Meanwhile meanwhile, std::size_t call = 0) {
    const auto then_refuse = [&] {
      meanwhile();
      by_slot->refuse(call);
    };
    EXPECT_THAT(unplug(then_refuse), HasError(Errc::bad_state));
    EXPECT_EQ(blocks.plugged(), (std::vector{run(0, 1), run(4, 1)}));
    expect_agreement();
  }
};

TEST_F(MemoryBlocksInBetween, ListenersThatComeAndGoAgreeWithTheOthers) {
  const auto late = std::make_shared<MemoryRecorder>("late", SectionUnit::block);
  const auto come = [&] { VMSPACE_EXPECT_OK(memory.add_listener(late)); };
  const auto go = [&] {
    VMSPACE_EXPECT_OK(memory.remove_listener(*late));
    EXPECT_TRUE(late->table().empty());
  };

  for (const std::size_t refused : {0U, 1U}) {
    fail_to_unplug(come, refused);
    VMSPACE_EXPECT_OK(late->check_equals(memory.map()->memory));
    fail_to_unplug(go, refused);
    EXPECT_TRUE(late->table().empty());
  }

  VMSPACE_EXPECT_OK(unplug(come));
  VMSPACE_EXPECT_OK(late->check_equals(memory.map()->memory));
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 1)));
  VMSPACE_EXPECT_OK(unplug(go));
  EXPECT_TRUE(late->table().empty());
  expect_agreement();
}

TEST_F(MemoryBlocksInBetween, ALogThatStartsHasTheBlocksIfTheyStay) {
  std::optional<VmDirtyLog> log;
  fail_to_unplug([&] { log = VMSPACE_ASSERT_OK(memory.start_dirty_log()); });
  EXPECT_THAT(log->harvest(), IsOk());
  by_slot->wrote(run(0, 1));
  EXPECT_THAT(log->harvest(), IsOkAndHolds(std::vector{run(0, 1)}));
}

// A migration that copies all memory in between lacks them, and a harvest leaves out what was written to
// them before.
TEST_F(MemoryBlocksInBetween, BlocksThatStayCountAsWritten) {
  auto log = VMSPACE_ASSERT_OK(memory.start_dirty_log());
  VMSPACE_ASSERT_OK(memory.map()->memory.write(base, 7));
  // Written, and to be reported later.
  EXPECT_THAT(log.harvest(run(4, 1)), IsOkAndHolds(std::vector<GuestRange>{}));
  fail_to_unplug([&] { EXPECT_THAT(log.harvest(), IsOkAndHolds(std::vector<GuestRange>{})); });
  EXPECT_THAT(log.harvest(), IsOkAndHolds(std::vector{run(0, 1)}));
}

// Somebody who uses other blocks is not waited for longer than the map that it came from.
TEST_F(MemoryBlocksTest, ACopyFromBeforeABlockWasPluggedDoesNotHoldItUp) {
  const GuestMemory copy = memory.map()->memory;
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 1)));
  VMSPACE_EXPECT_OK(blocks.unplug(run(0, 1), 1s));
}

TEST_F(MemoryBlocksTest, OptionsThatDoNotFitLeaveNothing) {
  const auto before = this->before();
  const auto with = [&](const BlockOptions& given, RegionOptions region) {
    return MemoryBlocks::create(memory, std::move(region), given);
  };
  RegionOptions free = options();
  free.base = GuestAddress(8_GiB);
  EXPECT_THAT(with({.block_size = 3 * 4096}, free), HasError(Errc::bad_alignment));
  EXPECT_THAT(with({.block_size = block, .slot_size = block + 4096}, free),
              HasError(Errc::misaligned));
  EXPECT_THAT(with({.block_size = block, .requested_size = 1_GiB}, free),
              HasError(Errc::out_of_bounds));
  EXPECT_THAT(with({.block_size = block, .requested_size = block + 4096}, free),
              HasError(Errc::misaligned));
  EXPECT_THAT(with({.block_size = block, .usable_size = 1_GiB}, free),
              HasError(Errc::out_of_bounds));
  EXPECT_THAT(with({.block_size = block, .plugged = {run(0, 1)}}, free),
              HasError(Errc::out_of_bounds));
  const GuestRange one{free.base, block};
  EXPECT_THAT(with({.block_size = block, .plugged = {one, one}}, free), HasError(Errc::bad_state));
  EXPECT_THAT(with({.block_size = block}, options()), HasError(Errc::overlap));
  RegionOptions other = free;
  other.base = GuestAddress(8_GiB + 1_MiB);
  EXPECT_THAT(with({.block_size = block}, other), HasError(Errc::misaligned));
  other = free;
  other.protection = Protection::read;
  EXPECT_THAT(with({.block_size = block}, other), HasError(Errc::access_denied));
  other = free;
  other.backing = {};
  EXPECT_THAT(with({.block_size = block}, other), HasError(Errc::invalid_argument));
  other = free;
  other.backing = {.source = MemorySource::file, .path = "/dev/null"};
  EXPECT_THAT(with({.block_size = block}, other), HasError(Errc::unsupported));
  expect_unchanged(before);
}

TEST_F(MemoryBlocksTest, PagesThatCantBeGivenBackStayPlugged) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 2)));
  {
    const auto pin = VMSPACE_ASSERT_OK(blocks.region()->mapping().pin(block, 4096, "dimm0"));
    EXPECT_THAT(blocks.unplug(run(0, 2), 1s), HasError(Errc::bad_state));
    EXPECT_EQ(blocks.plugged(), std::vector{run(0, 2)});
    expect_agreement();
  }
  VMSPACE_EXPECT_OK(blocks.unplug(run(0, 2), 1s));
}

TEST_F(MemoryBlocksTest, FromACallOfAListenerEveryChangeWouldDeadlock) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 1)));
  int calls = 0;
  by_slot->on_call([&](std::string_view) -> Result<void> {
    ++calls;
    EXPECT_THAT(blocks.plug(run(1, 1)), HasError(Errc::would_deadlock));
    EXPECT_THAT(blocks.unplug(run(0, 1), 1s), HasError(Errc::would_deadlock));
    EXPECT_THAT(blocks.unplug_all(1s), HasError(Errc::would_deadlock));
    EXPECT_THAT(blocks.resize(0), HasError(Errc::would_deadlock));
    EXPECT_EQ(blocks.plugged_size(), block);
    return {};
  });
  VMSPACE_EXPECT_OK(blocks.plug(run(4, 1)));
  EXPECT_EQ(calls, 3);
}

}  // namespace
}  // namespace vmspace::test::memory_blocks_refusal_test
