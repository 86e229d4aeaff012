// SPDX-License-Identifier: Apache-2.0
//
// Readers, two threads that plug and unplug blocks of two regions, and a dirty log, on all cores.

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm.hpp"

namespace vmspace::memory_blocks_stress_test {
namespace {

using namespace literals;
using namespace std::chrono_literals;

constexpr std::uint64_t block = 64_KiB;

// What a reader finds in a block is what was written since it was plugged, or 0: never what was there
// before, and never a signal.
TEST(MemoryBlocksStress, ReadersFindABlockOrNothing) {
  constexpr std::uint64_t rounds = 150;
  const VmMemory memory = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
  const auto by_slot = std::make_shared<MemoryRecorder>("by_slot");
  const auto by_block = std::make_shared<MemoryRecorder>("by_block", SectionUnit::block);
  VMSPACE_ASSERT_OK(memory.add_listener(by_slot));
  VMSPACE_ASSERT_OK(memory.add_listener(by_block));
  std::vector<MemoryBlocks> regions;
  for (std::uint64_t i = 0; i < 2; ++i) {
    const auto made = MemoryBlocks::create(
        memory,
        {.name = "mem",
         .base = GuestAddress((4 + i) * 1_GiB),
         .size = 32 * block,
         .backing = {.source = MemorySource::shmem}},
        {.block_size = block, .slot_size = 4 * block, .requested_size = 32 * block});
    VMSPACE_ASSERT_OK(made);
    regions.push_back(*made);
  }

  std::atomic<int> changing{2};
  std::atomic<bool> sound{true};
  std::array<std::atomic<std::uint64_t>, 2> now{};  // the round of each region
  std::vector<std::thread> threads;
  for (std::size_t region = 0; region < 2; ++region) {
    threads.emplace_back([&, region] {
      const MemoryBlocks& blocks = regions[region];
      const GuestAddress base = blocks.region()->base();
      for (std::uint64_t round = 1; round <= rounds; ++round) {
        const GuestRange run{GuestAddress(base.value() + round % 20 * block), 12 * block};
        now[region] = round;
        if (!blocks.plug(run)) sound = false;
        for (std::uint64_t i = 0; i < 12; ++i) {
          const GuestAddress at(run.base.value() + i * block);
          const auto map = memory.map();
          if (!map->memory.store(at, round, std::memory_order_relaxed)) sound = false;
        }
        if (!blocks.unplug(run, 60s)) sound = false;
      }
      --changing;
    });
  }
  threads.emplace_back([&] {
    auto reader = memory.reader();
    while (changing != 0) {
      for (std::size_t region = 0; region < 2; ++region) {
        for (std::uint64_t i = 0; i < 32; ++i) {
          const GuestAddress at((4 + region) * 1_GiB + i * block);
          const std::uint64_t before = now[region];
          const auto& map = reader.current();
          const auto value = map.memory.load<std::uint64_t>(at, std::memory_order_relaxed);
          if (!value) {
            if (value.error().code != Errc::not_found) sound = false;
          } else if (*value != 0 && *value < before) {
            sound = false;  // from before the block was unplugged
          }
        }
      }
      reader.park();
    }
  });
  threads.emplace_back([&] {
    auto log = memory.start_dirty_log();
    while (changing != 0) {
      const auto written = log->harvest();
      if (!written) sound = false;
      std::this_thread::sleep_for(1ms);
    }
  });
  for (auto& thread : threads)
    thread.join();
  EXPECT_TRUE(sound);
  VMSPACE_EXPECT_OK(memory.check_invariants());
  EXPECT_TRUE(by_slot->table().empty());
  EXPECT_TRUE(by_block->table().empty());
}

}  // namespace
}  // namespace vmspace::memory_blocks_stress_test
