// SPDX-License-Identifier: Apache-2.0
//
// A small machine for the tests of VmMemory: 4 MiB of RAM, two listeners, and what can be compared.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm.hpp"

namespace vmspace::test {

using namespace vmspace::literals;

/// A gate that counts, and refuses when told to.
class CountingGate final : public VmGate {
 public:
  Result<void> pause(const MemoryChange& change) override {
    if (refuses) {
      return fail({.code = Errc::timed_out,
                   .operation = "CountingGate::pause",
                   .reason = "a vCPU does not stop"});
    }
    EXPECT_TRUE(change.disruptive);
    EXPECT_EQ(is_paused, false);
    is_paused = true;
    ++pauses;
    return {};
  }
  void resume() noexcept override {
    EXPECT_EQ(is_paused, true);
    is_paused = false;
  }

  bool refuses = false;
  bool is_paused = false;
  int pauses = 0;
};

class VmMemoryTest : public testing::Test {
 protected:
  static AddressSpaceBase planned() {
    AddressSpaceBase space(*AddressSpaceLayout::x86_64({.phys_bits = 40}));
    EXPECT_TRUE(space.insert_region({.name = "ram",
                                     .base = GuestAddress(0),
                                     .size = 4_MiB,
                                     .backing = {.source = MemorySource::shmem}}));
    return space;
  }

  void SetUp() override {
    VMSPACE_ASSERT_OK(memory.add_listener(first));
    VMSPACE_ASSERT_OK(memory.add_listener(second));
    forget_calls();
  }
  void TearDown() override {
    for (const auto& listener : {first, second}) {
      listener->on_call({});  // what it captured goes before the memory
      listener->refuse(0, 0);
    }
    VMSPACE_EXPECT_OK(memory.check_invariants());
  }

  static RegionOptions dimm(std::uint64_t base = 0x1'0000'0000, std::uint64_t size = 2_MiB) {
    return {.name = "dimm",
            .base = GuestAddress(base),
            .size = size,
            .backing = {.source = MemorySource::shmem}};
  }
  /// A BAR with memory behind it.
  static RegionOptions bar(const char* name, std::uint64_t base) {
    return {.name = name,
            .type = RegionType::device_memory,
            .base = GuestAddress(base),
            .size = 64_KiB,
            .backing = {.source = MemorySource::shmem}};
  }

  void forget_calls() {
    first->forget_calls();
    second->forget_calls();
  }

  /// Both listeners have exactly what is published.
  void expect_tables_agree() const {
    const auto now = memory.map();
    for (const auto& listener : {first, second})
      VMSPACE_EXPECT_OK(listener->check_equals(now->memory));
  }

  /// What a change that failed must have left as it was.
  struct Before {
    std::shared_ptr<const VmMap> map;
    std::vector<MemorySection> first;
    std::vector<MemorySection> second;
  };
  Before before() const { return {memory.map(), first->table(), second->table()}; }
  void expect_unchanged(const Before& before) const {
    EXPECT_EQ(memory.map(), before.map);  // not even published again
    EXPECT_EQ(first->table(), before.first);
    EXPECT_EQ(second->table(), before.second);
    VMSPACE_EXPECT_OK(memory.check_invariants());
  }

  template <typename Body>
  Result<void> edit(Body body) const {
    return memory.transact([&](AddressSpaceBase& draft) -> Result<void> {
      const auto done = body(draft);
      if (!done) return fail(done.error());
      return {};
    });
  }

  const VmMemory memory = VmMemory::create(planned()).value();
  const std::shared_ptr<MemoryRecorder> first = std::make_shared<MemoryRecorder>("first");
  const std::shared_ptr<MemoryRecorder> second = std::make_shared<MemoryRecorder>("second");
  const std::shared_ptr<CountingGate> gate = std::make_shared<CountingGate>();
};

}  // namespace vmspace::test
