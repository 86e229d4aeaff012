// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/memory_blocks.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/boot/e820.hpp"

#include "host/host_support.hpp"
#include "vmm/memory_blocks_support.hpp"

namespace vmspace::test::memory_blocks_test {
namespace {

using namespace std::chrono_literals;

/// How many mappings this process has.
std::size_t mappings() {
  std::ifstream maps("/proc/self/maps");
  return static_cast<std::size_t>(
      std::count(std::istreambuf_iterator<char>(maps), std::istreambuf_iterator<char>(), '\n'));
}

TEST_F(MemoryBlocksTest, BeginsWithoutABlockAndTellsNobody) {
  EXPECT_EQ(blocks.plugged_size(), 0u);
  EXPECT_EQ(blocks.plugged(), std::vector<GuestRange>{});
  EXPECT_EQ(by_slot->text(), "");
  EXPECT_EQ(by_block->text(), "");
  EXPECT_THAT(blocks.state(all), IsOkAndHolds(BlockState::unplugged));
  EXPECT_THAT(memory.map()->memory.read<int>(base), HasError(Errc::not_found));
  EXPECT_EQ(memory.map()->space.find_region(base)->name(), "mem0");
}

TEST_F(MemoryBlocksTest, PluggedBlocksAreInTheMapAndInTheTables) {
  VMSPACE_ASSERT_OK(blocks.plug(run(3, 2)));  // the last block of a slot and the first of the next
  EXPECT_EQ(blocks.plugged(), std::vector{run(3, 2)});
  EXPECT_EQ(blocks.plugged_size(), 2 * block);
  EXPECT_EQ(by_slot->text(),
            "prepare +mem0 [0x100000000-0x1007fffff] +mem0+0x800000 [0x100800000-0x100ffffff]\n"
            "add mem0 [0x100000000-0x1007fffff]\n"
            "add mem0+0x800000 [0x100800000-0x100ffffff]\n"
            "commit\n");
  EXPECT_EQ(by_block->text(),
            "prepare +mem0+0x600000 [0x100600000-0x1007fffff]"
            " +mem0+0x800000 [0x100800000-0x1009fffff]\n"
            "add mem0+0x600000 [0x100600000-0x1007fffff]\n"
            "add mem0+0x800000 [0x100800000-0x1009fffff]\n"
            "commit\n");
  expect_agreement();
  const auto now = memory.map();
  EXPECT_THAT(now->memory.read<int>(run(3, 1).base), IsOkAndHolds(0));
  EXPECT_TRUE(now->memory.contains(run(3, 2), Access::write));
  EXPECT_THAT(now->memory.read<int>(run(5, 1).base), HasError(Errc::not_found));
}

TEST_F(MemoryBlocksTest, TheTablesOfSlotsHearOnlyOfTheFirstBlockOfASlotAndOfTheLast) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 1)));
  by_slot->forget_calls();
  VMSPACE_ASSERT_OK(blocks.plug(run(2, 1)));
  VMSPACE_ASSERT_OK(blocks.unplug(run(0, 1), 1s));
  EXPECT_EQ(by_slot->text(), "");
  expect_agreement();
  VMSPACE_ASSERT_OK(blocks.unplug(run(2, 1), 1s));
  EXPECT_EQ(by_slot->text(),
            "prepare -mem0 [0x100000000-0x1007fffff]\n"
            "remove mem0 [0x100000000-0x1007fffff]\n"
            "commit\n");
  expect_agreement();
}

TEST_F(MemoryBlocksTest, WhatIsUnpluggedIsGivenBackAndComesBackAsZeros) {
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 4)));
  VMSPACE_ASSERT_OK(memory.map()->memory.fill(run(0, 4), std::byte{7}));
  EXPECT_EQ(resident(), 4 * block);
  VMSPACE_ASSERT_OK(blocks.unplug(run(1, 2), 1s));
  EXPECT_EQ(resident(), 2 * block);
  EXPECT_EQ(blocks.plugged(), (std::vector{run(0, 1), run(3, 1)}));
  VMSPACE_ASSERT_OK(blocks.plug(run(1, 1)));
  EXPECT_THAT(memory.map()->memory.read<std::uint8_t>(run(1, 1).base), IsOkAndHolds(0));
  EXPECT_THAT(memory.map()->memory.read<std::uint8_t>(run(0, 1).base), IsOkAndHolds(7));
}

TEST_F(MemoryBlocksTest, PluggedBlocksAreZerosWhateverWasThereBefore) {
  // A guest that writes to a block that it was not given, in a slot that it has.
  VMSPACE_ASSERT_OK(blocks.plug(run(0, 1)));
  blocks.region()->host_base()[2 * block] = std::byte{1};
  VMSPACE_ASSERT_OK(blocks.plug(run(2, 1)));
  EXPECT_THAT(memory.map()->memory.read<std::uint8_t>(run(2, 1).base), IsOkAndHolds(0));

  // A backing that held something.
  const auto old =
      Backing::open({.source = MemorySource::shmem}, 4 * block, Protection::read_write);
  ASSERT_THAT(old, IsOk());
  ASSERT_EQ(::pwrite(old->fd(), "secret", 6, block), 6);
  const auto others = MemoryBlocks::create(memory,
                                           {.name = "mem1",
                                            .base = GuestAddress{8_GiB},
                                            .size = 4 * block,
                                            .backing = {.source = MemorySource::shmem}},
                                           {.requested_size = 4 * block}, {.backing = *old});
  ASSERT_THAT(others, IsOk());
  VMSPACE_ASSERT_OK(others->plug({GuestAddress{8_GiB + block}, block}));
  EXPECT_THAT(memory.map()->memory.read<std::uint8_t>(GuestAddress{8_GiB + block}),
              IsOkAndHolds(0));
}

TEST_F(MemoryBlocksTest, MemoryOfEveryKindComesInBlocks) {
  // The pool must have a page for all of the region, or a guest could be given one that is not there.
  const HugePages pool(2_MiB, 4);
  std::vector<BackingSpec> kinds{{.source = MemorySource::anon},
                                 {.source = MemorySource::anon, .sharing = Sharing::map_shared},
                                 {.source = MemorySource::shmem, .sharing = Sharing::map_private}};
  if (pool.available()) kinds.push_back({.source = MemorySource::hugeshmem});
  for (std::uint64_t i = 0; i < kinds.size(); ++i) {
    const GuestAddress first((8 + i) * 1_GiB);
    const auto made = MemoryBlocks::create(
        memory, {.name = "kind", .base = first, .size = 4 * block, .backing = kinds[i]},
        {.block_size = block, .slot_size = slot, .requested_size = 4 * block});
    VMSPACE_ASSERT_OK(made);
    VMSPACE_ASSERT_OK(made->plug({first, 2 * block}));
    VMSPACE_ASSERT_OK(memory.map()->memory.fill({first, 2 * block}, std::byte{7}));
    VMSPACE_ASSERT_OK(made->unplug({first, block}, 1s));
    EXPECT_EQ(made->region()->mapping().residency()->resident, block);
    EXPECT_THAT(memory.map()->memory.read<int>(first), HasError(Errc::not_found));
    VMSPACE_ASSERT_OK(made->plug({first, block}));
    EXPECT_THAT(memory.map()->memory.read<int>(first), IsOkAndHolds(0));
    expect_agreement();
  }
}

TEST_F(MemoryBlocksTest, NoMoreThanRequestedIsPluggedAndOnlyBelowTheUsableSize) {
  const auto few = make({.name = "few", .base = GuestAddress(8_GiB), .size = 64_MiB},
                        {.block_size = block, .slot_size = slot, .requested_size = 4 * block});
  EXPECT_EQ(few.requested_size(), 4 * block);
  EXPECT_EQ(few.usable_size(), 4 * block + 2 * slot);
  const auto at = [&](std::uint64_t first, std::uint64_t count) {
    return GuestRange{GuestAddress(8_GiB + first * block), count * block};
  };
  EXPECT_THAT(few.plug(at(0, 5)), HasError(Errc::limit_exceeded));
  EXPECT_THAT(few.plug(at(12, 1)), HasError(Errc::out_of_bounds));
  EXPECT_THAT(few.plug(at(11, 2)), HasError(Errc::out_of_bounds));
  VMSPACE_EXPECT_OK(few.plug(at(8, 4)));
  EXPECT_THAT(few.plug(at(0, 1)), HasError(Errc::limit_exceeded));

  EXPECT_THAT(few.resize(block + 4096), HasError(Errc::misaligned));
  EXPECT_THAT(few.resize(128_MiB), HasError(Errc::out_of_bounds));
  VMSPACE_EXPECT_OK(few.resize(32 * block));
  EXPECT_EQ(few.usable_size(), 64_MiB);
  VMSPACE_EXPECT_OK(few.plug(at(0, 8)));
  // Asked for less, the guest keeps what it has until it gives it back.
  VMSPACE_EXPECT_OK(few.resize(block));
  EXPECT_EQ(few.plugged_size(), 12 * block);
  EXPECT_EQ(few.usable_size(), 64_MiB);
  EXPECT_THAT(few.plug(at(20, 1)), HasError(Errc::limit_exceeded));
  VMSPACE_EXPECT_OK(few.unplug_all(1s));
  EXPECT_EQ(few.plugged_size(), 0u);
  EXPECT_EQ(few.usable_size(), block + 2 * slot);
  VMSPACE_EXPECT_OK(few.unplug_all(1s));  // as a guest that starts again does
  VMSPACE_EXPECT_OK(few.plug(at(0, 1)));
}

TEST_F(MemoryBlocksTest, NoTableSaysThatTheRegionIsThereFromTheBeginning) {
  const auto few = make({.name = "few", .base = GuestAddress(8_GiB), .size = 64_MiB},
                        {.block_size = block, .slot_size = slot, .requested_size = 4 * block});
  VMSPACE_ASSERT_OK(few.plug({GuestAddress(8_GiB), block}));
  const auto now = memory.map();
  for (const E820Entry& entry : e820(now->space))
    EXPECT_NE(entry.type, E820Type::ram) << entry.base.value();
}

TEST_F(MemoryBlocksTest, WithTheLargestSlotAllOfTheRegionIsUsable) {
  const auto few =
      make({.name = "few", .base = GuestAddress(8_GiB), .size = 64_MiB},
           {.block_size = block, .slot_size = std::uint64_t{1} << 63, .requested_size = 4 * block});
  EXPECT_EQ(few.usable_size(), 64_MiB);
}

TEST_F(MemoryBlocksTest, AWholeRegionIsReadTheShortWayAndHasAllSlots) {
  VMSPACE_ASSERT_OK(blocks.plug(all));
  EXPECT_TRUE(blocks.region()->is_whole());
  expect_agreement();
  VMSPACE_ASSERT_OK(memory.map()->memory.fill(all, std::byte{1}));
  VMSPACE_ASSERT_OK(blocks.unplug_all(1s));
  EXPECT_EQ(resident(), 0u);
  expect_agreement();
}

// The kernel counts what this process has mapped (vm.max_map_count, 65,530 by default). It would be one
// mapping a block if each were protected, or mapped, by itself.
TEST_F(MemoryBlocksTest, NoPatternOfBlocksTakesMoreMappingsThanThereAreSlots) {
  constexpr std::uint64_t size = 64_GiB;
  constexpr std::uint64_t big_slot = 128_MiB;
  const GuestAddress first{8_GiB};
  VMSPACE_ASSERT_OK(memory.remove_listener(*by_slot));  // writes down every call
  VMSPACE_ASSERT_OK(memory.remove_listener(*by_block));
  const std::size_t before = mappings() + 64;  // some for what allocates meanwhile
  const auto big = make({.name = "big", .base = first, .size = size}, {.requested_size = size});
  const auto plug = [&](std::uint64_t offset) {
    const auto done = big.plug({GuestAddress(first.value() + offset), block});
    if (!done) ADD_FAILURE() << done.error().message();
  };
  for (std::uint64_t offset = 0; offset < size; offset += 2 * big_slot)
    plug(offset);
  EXPECT_LE(mappings(), before + size / big_slot);
  const std::size_t by_slots = mappings();
  for (std::uint64_t offset = 2 * block; offset < size; offset += 2 * block) {
    if (offset % (2 * big_slot) != 0) plug(offset);
  }
  EXPECT_LE(mappings(), by_slots + 64);
  VMSPACE_EXPECT_OK(big.unplug_all(60s));
  EXPECT_LE(mappings(), before);
}

TEST_F(MemoryBlocksTest, WhatWasPluggedIsPluggedAgainWhenAVmIsRestored) {
  VMSPACE_ASSERT_OK(blocks.plug(run(3, 2)));
  VMSPACE_ASSERT_OK(blocks.plug(run(30, 2)));
  const auto other = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40}));
  VMSPACE_ASSERT_OK(other);
  const auto listener = std::make_shared<MemoryRecorder>();
  VMSPACE_ASSERT_OK(other->add_listener(listener));
  const auto again = MemoryBlocks::create(
      *other, options(), {.block_size = block, .slot_size = slot, .plugged = blocks.plugged()});
  VMSPACE_ASSERT_OK(again);
  EXPECT_EQ(again->plugged(), blocks.plugged());
  EXPECT_EQ(listener->table().size(), 3u);
  VMSPACE_EXPECT_OK(other->map()->memory.fill(run(30, 2), std::byte{1}));
  VMSPACE_EXPECT_OK(again->unplug(run(30, 2), 1s));
  VMSPACE_EXPECT_OK(listener->check_equals(other->map()->memory));
}

TEST_F(MemoryBlocksTest, PagesAreThereWhenThePlugReturnsIfTheRegionAsksForIt) {
  const auto populated =
      make({.name = "populated", .base = GuestAddress(8_GiB), .size = 64_MiB, .populate = true},
           {.block_size = block, .slot_size = slot, .requested_size = 64_MiB});
  const auto size = [&] { return populated.region()->mapping().residency()->resident; };
  EXPECT_EQ(size(), 0u);
  VMSPACE_ASSERT_OK(populated.plug({GuestAddress(8_GiB), 2 * block}));
  EXPECT_EQ(size(), 2 * block);
  by_slot->refuse(1);
  EXPECT_THAT(populated.plug({GuestAddress(8_GiB + 4 * block), block}), HasError(Errc::bad_state));
  EXPECT_EQ(size(), 2 * block);
}

TEST_F(MemoryBlocksTest, TheRegionKeepsItsSize) {
  VMSPACE_ASSERT_OK(blocks.plug(run(3, 2)));
  const auto before = this->before();
  EXPECT_THAT(memory.resize(blocks.region()->shared_description(), 32_MiB),
              HasError(Errc::unsupported));
  expect_unchanged(before);
}

TEST_F(MemoryBlocksTest, AMovedHandleIsStillAHandle) {
  MemoryBlocks first = blocks;
  MemoryBlocks second = std::move(first);
  VMSPACE_EXPECT_OK(first.plug(run(0, 1)));  // NOLINT(bugprone-use-after-move): shown here
  EXPECT_EQ(second.plugged_size(), block);
  second = std::move(first);
  EXPECT_EQ(first.plugged_size(), block);  // NOLINT(bugprone-use-after-move)
}

TEST_F(MemoryBlocksTest, TheRegionCanMoveAndGo) {
  VMSPACE_ASSERT_OK(blocks.plug(run(3, 2)));
  const auto moved = memory.relocate(blocks.region()->shared_description(), GuestAddress(8_GiB));
  VMSPACE_ASSERT_OK(moved);
  EXPECT_EQ(blocks.plugged(),
            (std::vector<GuestRange>{{GuestAddress(8_GiB + 3 * block), 2 * block}}));
  expect_agreement();
  EXPECT_THAT(blocks.plug(run(0, 1)), HasError(Errc::out_of_bounds));
  VMSPACE_EXPECT_OK(blocks.plug({GuestAddress(8_GiB), block}));
  expect_agreement();
  VMSPACE_EXPECT_OK(memory.unplug(*moved, 1s));
  EXPECT_TRUE(by_slot->table().empty());
  EXPECT_TRUE(by_block->table().empty());
  EXPECT_THAT(blocks.plug({GuestAddress(8_GiB), block}), HasError(Errc::not_found));
  EXPECT_THAT(blocks.unplug_all(1s), HasError(Errc::not_found));
  EXPECT_THAT(blocks.resize(0), HasError(Errc::not_found));
  EXPECT_THAT(blocks.state(run(0, 1)), HasError(Errc::not_found));
  EXPECT_EQ(blocks.plugged_size(), 0u);
  EXPECT_EQ(blocks.region(), nullptr);
}

TEST_F(MemoryBlocksTest, ListenersThatComeLaterAreGivenWhatIsThere) {
  VMSPACE_ASSERT_OK(blocks.plug(run(3, 2)));
  const auto late = std::make_shared<MemoryRecorder>("late", SectionUnit::block);
  VMSPACE_ASSERT_OK(memory.add_listener(late));
  VMSPACE_EXPECT_OK(late->check_equals(memory.map()->memory));
  VMSPACE_ASSERT_OK(blocks.unplug(run(3, 1), 1s));
  VMSPACE_EXPECT_OK(late->check_equals(memory.map()->memory));
  VMSPACE_ASSERT_OK(memory.remove_listener(*late));
  EXPECT_TRUE(late->table().empty());
}

// A differential snapshot copies what the log reports.
TEST_F(MemoryBlocksTest, TheDirtyLogHasEverySlotAndNothingThatIsAbsent) {
  VMSPACE_ASSERT_OK(blocks.plug(run(3, 2)));  // in two slots
  auto log = VMSPACE_ASSERT_OK(memory.start_dirty_log());
  EXPECT_THAT(log.harvest(), IsOkAndHolds(std::vector<GuestRange>{}));
  by_slot->wrote({base, 16 * block});  // the guest, to what it was not given as well
  const auto page = [](std::uint64_t at) { return GuestRange{GuestAddress(at), 4096}; };
  VMSPACE_ASSERT_OK(memory.map()->memory.write(run(4, 1).base, 1));
  EXPECT_THAT(log.harvest(), IsOkAndHolds(std::vector{run(3, 2)}));
  VMSPACE_ASSERT_OK(memory.map()->memory.write(run(4, 1).base, 1));
  EXPECT_THAT(log.harvest(), IsOkAndHolds(std::vector{page(run(4, 1).base.value())}));

  // What is plugged meanwhile counts as written, and what is unplugged is not reported.
  VMSPACE_ASSERT_OK(blocks.plug(run(20, 1)));
  by_slot->wrote({run(20, 1).base, 4096});
  EXPECT_THAT(log.harvest(), IsOkAndHolds(std::vector{run(20, 1)}));
  VMSPACE_ASSERT_OK(memory.map()->memory.write(run(20, 1).base, 1));
  VMSPACE_ASSERT_OK(memory.map()->memory.write(run(3, 1).base, 1));
  VMSPACE_ASSERT_OK(blocks.unplug(run(20, 1), 1s));
  EXPECT_THAT(log.harvest(), IsOkAndHolds(std::vector{page(run(3, 1).base.value())}));
}

}  // namespace
}  // namespace vmspace::test::memory_blocks_test
