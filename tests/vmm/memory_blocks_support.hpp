// SPDX-License-Identifier: Apache-2.0
//
// A machine with 32 blocks of memory in slots of four, for the tests of MemoryBlocks.

#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm.hpp"

namespace vmspace::test {

using namespace vmspace::literals;

class MemoryBlocksTest : public testing::Test {
 protected:
  static constexpr std::uint64_t block = 2_MiB;
  static constexpr std::uint64_t slot = 8_MiB;
  static constexpr GuestAddress base{4_GiB};
  static constexpr GuestRange all{base, 64_MiB};

  static constexpr GuestRange run(std::uint64_t first, std::uint64_t count) {
    return {GuestAddress(base.value() + first * block), count * block};
  }
  static RegionOptions options() {
    return {.name = "mem0",
            .base = base,
            .size = all.size,
            .backing = {.source = MemorySource::shmem},
            .hotplug = true};
  }
  MemoryBlocks make(RegionOptions region, const BlockOptions& given) const {
    region.backing = {.source = MemorySource::shmem};
    auto made = MemoryBlocks::create(memory, std::move(region), given);
    VMSPACE_EXPECT_OK(made);
    return *made;
  }

  void SetUp() override {
    VMSPACE_ASSERT_OK(memory.add_listener(by_slot));
    VMSPACE_ASSERT_OK(memory.add_listener(by_block));
    forget_calls();
  }
  void TearDown() override {
    for (const auto& listener : {by_slot, by_block}) {
      listener->on_call({});  // what it captured goes before the memory
      listener->refuse(0, 0);
    }
    VMSPACE_EXPECT_OK(memory.check_invariants());
  }
  void forget_calls() const {
    by_slot->forget_calls();
    by_block->forget_calls();
  }

  /// Bytes of the region that are in RAM.
  [[nodiscard]] std::uint64_t resident() const {
    return blocks.region()->mapping().residency()->resident;
  }
  /// Both tables have what is published.
  void expect_agreement() const {
    const auto now = memory.map();
    VMSPACE_EXPECT_OK(by_slot->check_equals(now->memory));
    VMSPACE_EXPECT_OK(by_block->check_equals(now->memory));
    VMSPACE_EXPECT_OK(memory.check_invariants());
  }

  struct Before {
    std::uint64_t generation;
    std::vector<MemorySection> by_slot;
    std::vector<MemorySection> by_block;
  };
  [[nodiscard]] Before before() const {
    return {memory.generation(), by_slot->table(), by_block->table()};
  }
  void expect_unchanged(const Before& before) const {
    EXPECT_EQ(memory.generation(), before.generation);
    EXPECT_EQ(by_slot->table(), before.by_slot);
    EXPECT_EQ(by_block->table(), before.by_block);
    VMSPACE_EXPECT_OK(memory.check_invariants());
  }

  const VmMemory memory = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
  const MemoryBlocks blocks =
      make(options(), {.block_size = block, .slot_size = slot, .requested_size = all.size});
  const std::shared_ptr<MemoryRecorder> by_slot = std::make_shared<MemoryRecorder>("by_slot");
  const std::shared_ptr<MemoryRecorder> by_block =
      std::make_shared<MemoryRecorder>("by_block", SectionUnit::block);
};

}  // namespace vmspace::test
