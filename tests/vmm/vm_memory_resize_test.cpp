// SPDX-License-Identifier: Apache-2.0
//
// VmMemory::resize: what stays, who is told, and what is refused without a trace.

#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <string_view>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vm_memory_support.hpp"

namespace vmspace::test::vm_memory_resize_test {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr std::uint64_t base = 4_GiB;
constexpr std::uint64_t page = 4_KiB;

class VmMemoryResize : public VmMemoryTest {
 protected:
  void SetUp() override {
    VmMemoryTest::SetUp();
    VMSPACE_ASSERT_OK(memory.set_gate(gate));
    region = plug(dimm(base, 2_MiB));
    forget_calls();
  }
  AddressSpaceRegionPtr plug(RegionOptions options) const {
    const auto plugged = memory.plug(std::move(options), {.backing = backing});
    EXPECT_THAT(plugged, IsOk());
    return plugged ? (*plugged)->shared_description() : nullptr;
  }
  AddressSpaceRegionPtr resize(std::uint64_t size) {
    const auto resized = memory.resize(region, size);
    EXPECT_THAT(resized, IsOk());
    if (resized) region = (*resized)->shared_description();
    return region;
  }
  void write(std::uint64_t offset, std::uint64_t value) const {
    VMSPACE_EXPECT_OK(memory.map()->memory.write(GuestAddress(base + offset), value));
  }
  std::uint64_t read(std::uint64_t offset) const {
    return memory.map()->memory.read<std::uint64_t>(GuestAddress(base + offset)).value();
  }
  bool has(std::uint64_t offset) const {
    return memory.map()->memory.contains({GuestAddress(base + offset), 1});
  }

  const Backing backing = Backing::open({.source = MemorySource::shmem}, 8_MiB).value();
  AddressSpaceRegionPtr region;
};

TEST_F(VmMemoryResize, GrowsAndShrinksWithItsContents) {
  write(0, 1);
  write(2_MiB - 8, 2);
  const auto grown = memory.resize(region, 8_MiB);
  ASSERT_THAT(grown, IsOk());
  EXPECT_EQ((*grown)->size(), 8_MiB);
  EXPECT_EQ((*grown)->description().name(), "dimm");
  EXPECT_EQ(memory.map()->memory.find_region(GuestAddress(base)), *grown);
  EXPECT_EQ(gate->pauses, 1);
  EXPECT_FALSE(gate->is_paused);
  expect_tables_agree();
  region = (*grown)->shared_description();
  write(8_MiB - 8, 3);
  EXPECT_EQ(read(0), 1u);
  EXPECT_EQ(read(2_MiB - 8), 2u);
  EXPECT_EQ(read(4_MiB), 0u);

  resize(1_MiB);
  EXPECT_FALSE(has(1_MiB));
  EXPECT_EQ(read(0), 1u);
  expect_tables_agree();
  resize(8_MiB);
  EXPECT_EQ(read(2_MiB - 8), 2u) << "it stayed in the backing";
  EXPECT_EQ(read(8_MiB - 8), 3u);
  expect_tables_agree();
}

// Device threads don't stop for the gate: nothing is copied, so what they write meanwhile is there.
TEST_F(VmMemoryResize, WhatIsWrittenThroughTheOldMapIsInTheNewOne) {
  auto reader = memory.reader();
  const GuestMemory& old = reader->memory;
  resize(4_MiB);
  VMSPACE_ASSERT_OK(old.write(GuestAddress(base + page), std::uint64_t{7}));
  EXPECT_EQ(read(page), 7u);
  resize(1_MiB);
  VMSPACE_ASSERT_OK(old.write(GuestAddress(base + page), std::uint64_t{8}));
  EXPECT_EQ(read(page), 8u);
  EXPECT_THAT(memory.wait_released(0s), HasError(Errc::timed_out));
  reader.park();
  VMSPACE_EXPECT_OK(memory.wait_released(1s));
}

TEST_F(VmMemoryResize, ARegionThatHasTheSizeIsLeftAlone) {
  const Before now = before();
  const auto same = memory.resize(region, 2_MiB);
  ASSERT_THAT(same, IsOk());
  EXPECT_EQ(*same, now.map->memory.find_region(GuestAddress(base)));
  EXPECT_EQ(gate->pauses, 0);
  expect_unchanged(now);
}

TEST_F(VmMemoryResize, ItsErrorsChangeNothing) {
  const auto next = memory.plug(dimm(base + 6_MiB));
  ASSERT_THAT(next, IsOk());
  const auto small = memory.plug(dimm(8_GiB), {.backing = backing, .backing_offset = 6_MiB});
  ASSERT_THAT(small, IsOk());
  RegionOptions anonymous = dimm(16_GiB);
  anonymous.backing.source = MemorySource::anon;
  const auto anon = memory.plug(anonymous);
  ASSERT_THAT(anon, IsOk());
  RegionOptions copied = dimm(32_GiB);
  copied.backing.sharing = Sharing::map_private;
  const auto copy = memory.plug(copied);
  ASSERT_THAT(copy, IsOk());
  const auto in_arena = memory.plug(
      dimm(64_GiB), {.backing = Backing::open({.source = MemorySource::shmem}, 8_MiB).value(),
                     .arena = HostArena::reserve({.size = 8_MiB, .guest_base = 64_GiB}).value()});
  ASSERT_THAT(in_arena, IsOk());
  AddressSpaceRegionPtr parked;
  AddressSpaceRegionPtr bare;
  VMSPACE_ASSERT_OK(edit([&](AddressSpaceBase& draft) -> Result<void> {
    const auto inserted = draft.insert_region(bar("parked", 0xe000'0000));
    if (!inserted) return fail(inserted.error());
    parked = *inserted;
    const auto hole =
        draft.insert_region({.name = "bare", .base = GuestAddress(128_GiB), .size = 64_KiB});
    if (!hole) return fail(hole.error());
    bare = *hole;
    return {};
  }));
  VMSPACE_ASSERT_OK(edit([&](AddressSpaceBase& draft) {
    return draft.move_regions({{.region = parked, .to = std::nullopt}});
  }));

  const auto stranger = *AddressSpaceRegion::make(dimm(base, 2_MiB));
  struct Case {
    AddressSpaceRegionPtr region;
    std::uint64_t size;
    Errc code;
    const char* text;
  };
  const auto description = [](const Result<MemoryRegionPtr>& of) {
    return (*of)->shared_description();
  };
  const Case cases[] = {
      {nullptr, 4_MiB, Errc::invalid_argument, "null"},
      {stranger, 4_MiB, Errc::not_found, "dimm"},
      {region, 0, Errc::zero_size, "dimm"},
      {region, 4_MiB + 1, Errc::misaligned, "dimm"},
      {region, 7_MiB, Errc::overlap, "dimm"},
      {region, std::numeric_limits<std::uint64_t>::max() - page + 1, Errc::overflow, "dimm"},
      {description(next), 4_MiB, Errc::out_of_bounds, "MapOptions::backing"},
      {description(small), 4_MiB, Errc::out_of_bounds, "MapOptions::backing"},
      {description(anon), 1_MiB, Errc::unsupported, "shared memfd"},
      {description(copy), 1_MiB, Errc::unsupported, "shared memfd"},
      {description(in_arena), 4_MiB, Errc::unsupported, "leave_arena_order"},
      {parked, 128_KiB, Errc::bad_state, "place it first"},
      {bare, 128_KiB, Errc::invalid_argument, "transact()"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.text);
    const Before now = before();
    const auto refused = memory.resize(c.region, c.size);
    ASSERT_THAT(refused, HasError(c.code));
    EXPECT_THAT(refused.error().message(), HasSubstr(c.text));
    EXPECT_THAT(refused.error().message(), HasSubstr("VmMemory::"));
    expect_unchanged(now);
  }
  // What it would grow by is another region's.
  VMSPACE_ASSERT_OK(memory.unplug(description(next), 1s));
  const Before now = before();
  const auto refused = memory.resize(region, 7_MiB);
  ASSERT_THAT(refused, HasError(Errc::overlap));
  EXPECT_THAT(refused.error().message(), HasSubstr("a backing of its own"));
  expect_unchanged(now);
  VMSPACE_EXPECT_OK(memory.resize(region, 6_MiB));
  VMSPACE_EXPECT_OK(
      memory.resize(description(in_arena), 4_MiB, {.move = {.leave_arena_order = true}}));
  expect_tables_agree();
}

TEST_F(VmMemoryResize, NeedsAGate) {
  VMSPACE_ASSERT_OK(memory.set_gate(nullptr));
  const Before now = before();
  for (const std::uint64_t size : {1_MiB, 4_MiB}) {
    const auto refused = memory.resize(region, size);
    ASSERT_THAT(refused, HasError(Errc::bad_state));
    EXPECT_THAT(refused.error().message(), HasSubstr("set_gate()"));
    EXPECT_STREQ(refused.error().operation, "VmMemory::resize");
  }
  expect_unchanged(now);
  VMSPACE_ASSERT_OK(memory.set_gate(gate));
  gate->refuses = true;
  EXPECT_THAT(memory.resize(region, 4_MiB), HasError(Errc::timed_out));
  expect_unchanged(now);
}

// Whichever call of a listener is refused.
TEST_F(VmMemoryResize, IsUndoneWhereAListenerRefusesIt) {
  write(0, 1);
  int refusals = 0;
  for (const std::uint64_t size : {1_MiB, 4_MiB}) {
    for (const auto& listener : {first, second}) {
      for (std::size_t k = 0;; ++k) {
        const Before now = before();
        listener->refuse(k, 1);
        const auto done = memory.resize(region, size);
        listener->refuse(0, 0);
        if (done) {
          region = (*done)->shared_description();
          resize(2_MiB);
          break;
        }
        ++refusals;
        EXPECT_THAT(done, HasError(Errc::bad_state));
        expect_unchanged(now);
        EXPECT_FALSE(gate->is_paused);
        EXPECT_EQ(read(0), 1u);
      }
    }
  }
  EXPECT_GT(refusals, 12) << "prepare, remove, commit, add, commit, at least, each time";
}

TEST_F(VmMemoryResize, IsRefusedFromInsideAChange) {
  bool asked = false;
  first->on_call([&](std::string_view) -> Result<void> {
    asked = true;
    EXPECT_THAT(memory.resize(region, 4_MiB), HasError(Errc::would_deadlock));
    return {};
  });
  VMSPACE_ASSERT_OK(memory.relocate(region, GuestAddress(8_GiB)));
  EXPECT_TRUE(asked);
}

TEST_F(VmMemoryResize, AllOfItCountsAsWrittenWhileALogRuns) {
  auto log = memory.start_dirty_log().value();
  VMSPACE_ASSERT_OK(log.harvest());
  resize(4_MiB);
  EXPECT_THAT(*log.harvest(), ElementsAre(GuestRange{GuestAddress(base), 4_MiB}));
  resize(1_MiB);
  EXPECT_THAT(*log.harvest(), ElementsAre(GuestRange{GuestAddress(base), 1_MiB}));
  write(page, 1);
  EXPECT_THAT(*log.harvest(), ElementsAre(GuestRange{GuestAddress(base + page), page}));
}

// A device thread that still has an old map, from whichever size, before the log began or after.
TEST_F(VmMemoryResize, TheLogHasWhatIsWrittenThroughOldMaps) {
  auto oldest = memory.map();
  resize(4_MiB);
  auto log = memory.start_dirty_log().value();
  auto old = memory.map();
  resize(1_MiB);
  const auto moved = memory.relocate(region, GuestAddress(8_GiB));
  ASSERT_THAT(moved, IsOk());
  VMSPACE_ASSERT_OK(log.harvest());
  const auto at = [&](const std::shared_ptr<const VmMap>& map, std::uint64_t offset) {
    VMSPACE_EXPECT_OK(map->memory.write(GuestAddress(base + offset), std::uint64_t{1}));
  };
  at(oldest, page);
  at(old, 3 * page);
  at(oldest, 1_MiB);  // no longer a part of the region
  at(old, 3_MiB);
  EXPECT_THAT(*log.harvest(), ElementsAre(GuestRange{GuestAddress(8_GiB + page), page},
                                          GuestRange{GuestAddress(8_GiB + 3 * page), page}));
  at(oldest, 2 * page);
  oldest.reset();
  EXPECT_THAT(*log.harvest(), ElementsAre(GuestRange{GuestAddress(8_GiB + 2 * page), page}));
  at(old, 5 * page);
  old.reset();
  EXPECT_THAT(*log.harvest(), ElementsAre(GuestRange{GuestAddress(8_GiB + 5 * page), page}));
  EXPECT_THAT(*log.harvest(), IsEmpty());
}

TEST_F(VmMemoryResize, ALogThatDoesNotStartKeepsNoOldMapping) {
  auto old = memory.map();
  const std::weak_ptr<DirtyBitmap> watched =
      old->memory.find_region(GuestAddress(base))->shared_dirty();
  resize(4_MiB);
  second->refuse(0);
  EXPECT_THAT(memory.start_dirty_log(), HasError(Errc::bad_state));
  EXPECT_FALSE(watched.lock()->is_enabled());
  old.reset();
  VMSPACE_ASSERT_OK(memory.wait_released(1s));
  EXPECT_TRUE(watched.expired());
}

TEST_F(VmMemoryResize, OldMappingsGoWithTheirLastUser) {
  const auto watch = [&] {
    return std::weak_ptr<DirtyBitmap>(
        memory.map()->memory.find_region(GuestAddress(base))->shared_dirty());
  };
  const auto without_log = watch();
  resize(4_MiB);
  VMSPACE_ASSERT_OK(memory.wait_released(1s));
  EXPECT_TRUE(without_log.expired());
  {
    auto log = memory.start_dirty_log().value();
    const auto harvested = watch();
    resize(1_MiB);
    VMSPACE_ASSERT_OK(memory.wait_released(1s));
    EXPECT_FALSE(harvested.expired()) << "its last marks are still to be harvested";
    VMSPACE_ASSERT_OK(log.harvest());
    EXPECT_TRUE(harvested.expired());
  }
  auto log = memory.start_dirty_log().value();
  const auto stopped = watch();
  resize(4_MiB);
  VMSPACE_ASSERT_OK(log.stop());
  VMSPACE_ASSERT_OK(memory.wait_released(1s));
  EXPECT_TRUE(stopped.expired());
}

}  // namespace
}  // namespace vmspace::test::vm_memory_resize_test
