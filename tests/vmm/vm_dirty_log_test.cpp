// SPDX-License-Identifier: Apache-2.0
//
// The dirty log of a whole VM: what its parts report, to whom, and what changes of memory do to it.

#include "vmspace/vmm/vm_dirty_log.hpp"

#include <chrono>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vm_memory_support.hpp"
#include "vmm/page_set.hpp"
#include "vmm/range_list.hpp"

namespace vmspace::test::vm_dirty_log_test {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

constexpr std::uint64_t page = 4096;

GuestRange pages(std::uint64_t first, std::uint64_t count = 1) {
  return {.base = GuestAddress(first * page), .size = count * page};
}

class VmDirtyLogTest : public VmMemoryTest {
 protected:
  void write(std::uint64_t address) const {
    VMSPACE_EXPECT_OK(memory.map()->memory.write(GuestAddress(address), std::uint64_t{1}));
  }
  std::vector<GuestRange> harvest(VmDirtyLog& log) const {
    auto ranges = log.harvest();
    VMSPACE_EXPECT_OK(ranges);
    return ranges.value_or(std::vector<GuestRange>());
  }
};

TEST_F(VmDirtyLogTest, ReportsWhatThisProcessAndTheGuestHaveWritten) {
  auto log = memory.start_dirty_log().value();
  EXPECT_THAT(harvest(log), IsEmpty());
  write(0);
  write(5 * page);
  first->wrote(pages(6));
  second->wrote(pages(100, 2));
  EXPECT_THAT(harvest(log), ElementsAre(pages(0), pages(5, 2), pages(100, 2)));
  EXPECT_THAT(harvest(log), IsEmpty());
}

TEST_F(VmDirtyLogTest, LogsDoNotTakeFromEachOther) {
  auto migration = memory.start_dirty_log().value();
  write(0);
  auto display = memory.start_dirty_log().value();
  write(page);
  first->wrote(pages(2));
  EXPECT_THAT(harvest(display), ElementsAre(pages(1, 2)));
  write(7 * page);
  EXPECT_THAT(harvest(migration), ElementsAre(pages(0, 3), pages(7)));
  EXPECT_THAT(harvest(display), ElementsAre(pages(7)));
  EXPECT_THAT(harvest(migration), IsEmpty());
}

TEST_F(VmDirtyLogTest, ARangeIsHarvestedByItself) {
  auto log = memory.start_dirty_log().value();
  write(0);
  first->wrote(pages(9, 4));
  EXPECT_EQ(log.harvest(pages(10, 2)), (std::vector{pages(10, 2)}));
  EXPECT_EQ(log.harvest(pages(10, 0)), std::vector<GuestRange>());
  EXPECT_THAT(harvest(log), ElementsAre(pages(0), pages(9), pages(12)));
  EXPECT_THAT(log.harvest({GuestAddress(~std::uint64_t{0}), 2}), HasError(Errc::overflow));
  EXPECT_EQ(log.harvest({GuestAddress(page), ~std::uint64_t{0} - page}), std::vector<GuestRange>());
}

TEST_F(VmDirtyLogTest, APageThatARangeHasInPartIsNotLostToTheRest) {
  auto log = memory.start_dirty_log().value();
  first->wrote(pages(9, 3));
  EXPECT_EQ(log.harvest(GuestRange{GuestAddress(9 * page + 100), 2 * page}),
            (std::vector{GuestRange{GuestAddress(9 * page + 100), 2 * page}}));
  EXPECT_THAT(harvest(log), ElementsAre(pages(9), pages(11)));
}

TEST_F(VmDirtyLogTest, ListenersLogWhileAnyLogLives) {
  auto one = std::optional(memory.start_dirty_log().value());
  EXPECT_THAT(first->calls(), ElementsAre("log_start ram [0x0-0x3fffff]"));
  auto two = memory.start_dirty_log().value();
  forget_calls();
  one.reset();
  EXPECT_THAT(first->calls(), IsEmpty());
  VMSPACE_EXPECT_OK(two.stop());
  EXPECT_THAT(first->calls(), ElementsAre("log_stop ram [0x0-0x3fffff]"));
  EXPECT_FALSE(memory.map()->memory.regions().front()->dirty().is_enabled());
  EXPECT_THAT(two.harvest(), HasError(Errc::bad_state));
  VMSPACE_EXPECT_OK(two.stop());
}

TEST_F(VmDirtyLogTest, WhatIsPluggedCountsAsWrittenAndIsLogged) {
  auto log = memory.start_dirty_log().value();
  VMSPACE_ASSERT_OK(memory.plug(dimm()));
  EXPECT_THAT(first->calls(), testing::Contains("log_start dimm [0x100000000-0x1001fffff]"));
  EXPECT_THAT(harvest(log), ElementsAre(GuestRange{GuestAddress(4_GiB), 2_MiB}));
  first->wrote({GuestAddress(4_GiB), 1});
  EXPECT_THAT(harvest(log), ElementsAre(GuestRange{GuestAddress(4_GiB), page}));
}

TEST_F(VmDirtyLogTest, BeginsBeforeThereIsAnyMemory) {
  const VmMemory own = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
  auto log = own.start_dirty_log().value();
  EXPECT_THAT(harvest(log), IsEmpty());
  VMSPACE_ASSERT_OK(own.plug(dimm()));
  EXPECT_THAT(harvest(log), ElementsAre(GuestRange{GuestAddress(4_GiB), 2_MiB}));
  VMSPACE_EXPECT_OK(own.map()->memory.write(GuestAddress(4_GiB), 'x'));
  EXPECT_THAT(harvest(log), ElementsAre(GuestRange{GuestAddress(4_GiB), page}));
}

TEST_F(VmDirtyLogTest, WhatIsUnpluggedIsForgotten) {
  const auto description = memory.plug(dimm()).value()->shared_description();
  auto log = memory.start_dirty_log().value();
  auto other = memory.start_dirty_log().value();
  write(4_GiB);
  write(0);
  EXPECT_THAT(harvest(other), SizeIs(2));  // so that it is pending in the first
  VMSPACE_ASSERT_OK(memory.unplug(description, 1s));
  EXPECT_THAT(harvest(log), ElementsAre(pages(0)));
}

TEST_F(VmDirtyLogTest, WhatIsMovedCountsAsWrittenAtItsNewPlace) {
  const auto device = memory.plug(bar("bar", 0xe000'0000)).value()->shared_description();
  auto log = memory.start_dirty_log().value();
  VMSPACE_ASSERT_OK(memory.relocate(device, GuestAddress(0xe100'0000)));
  EXPECT_THAT(harvest(log), ElementsAre(GuestRange{GuestAddress(0xe100'0000), 64_KiB}));
}

TEST_F(VmDirtyLogTest, WhatReturnsFromParkingCountsAsWritten) {
  const auto device = memory.plug(bar("bar", 0xe000'0000)).value()->shared_description();
  auto log = memory.start_dirty_log().value();
  auto other = memory.start_dirty_log().value();
  write(0xe000'0000);
  EXPECT_THAT(harvest(other), SizeIs(1));  // so that it is pending in the first
  const auto move = [&](std::optional<GuestAddress> to) {
    return edit([&](AddressSpaceBase& draft) {
      return draft.move_regions({{.region = device, .to = to}});
    });
  };
  VMSPACE_ASSERT_OK(move({}));
  EXPECT_THAT(harvest(log), IsEmpty());
  VMSPACE_ASSERT_OK(move(device->base()));
  EXPECT_THAT(harvest(log), ElementsAre(device->guest_range()));
}

TEST_F(VmDirtyLogTest, ARemovalThatIsUndoneForgetsNothing) {
  VMSPACE_ASSERT_OK(memory.set_gate(gate));
  const auto a = memory.plug(bar("a", 0xe000'0000)).value()->shared_description();
  auto log = memory.start_dirty_log().value();
  first->wrote({a->base(), page});
  second->wrote({GuestAddress(a->base().value() + page), page});
  second->on_call([](std::string_view line) -> Result<void> {
    if (!line.starts_with("add a [0xe0008000")) return {};
    return fail({.code = Errc::os, .operation = "own"});
  });
  EXPECT_THAT(memory.relocate(a, GuestAddress(0xe000'8000)), HasError(Errc::os));
  second->on_call({});
  // All of it, as far as a log began anew.
  const auto ranges = harvest(log);
  ASSERT_FALSE(ranges.empty());
  EXPECT_TRUE(ranges.front().contains(GuestRange{a->base(), 2 * page}));
  first->wrote({GuestAddress(a->base().value() + 5 * page), page});
  EXPECT_THAT(harvest(log),
              ElementsAre(GuestRange{GuestAddress(a->base().value() + 5 * page), page}));
}

TEST_F(VmDirtyLogTest, WhatAListenerTakesBackBeforeItCommitsIsLoggedAgain) {
  VMSPACE_ASSERT_OK(memory.set_gate(gate));
  const auto a = memory.plug(bar("a", 0xe000'0000)).value()->shared_description();
  const auto b = memory.plug(bar("b", 0xe001'0000)).value()->shared_description();
  auto log = memory.start_dirty_log().value();
  second->on_call([](std::string_view line) -> Result<void> {
    if (!line.starts_with("remove b")) return {};
    return fail({.code = Errc::os, .operation = "own"});
  });
  EXPECT_THAT(
      edit([&](AddressSpaceBase& draft) {
        return draft.move_regions({{.region = a, .to = b->base()}, {.region = b, .to = a->base()}});
      }),
      HasError(Errc::os));
  static_cast<void>(harvest(log));
  second->wrote({a->base(), 1});
  EXPECT_THAT(harvest(log), ElementsAre(GuestRange{a->base(), page}));
}

TEST_F(VmDirtyLogTest, ANewListenerLogsAsWell) {
  auto log = memory.start_dirty_log().value();
  const auto late = std::make_shared<MemoryRecorder>("late");
  VMSPACE_ASSERT_OK(memory.add_listener(late));
  static_cast<void>(harvest(log));
  late->wrote(pages(3));
  EXPECT_THAT(harvest(log), ElementsAre(pages(3)));
  late->wrote(pages(4));
  VMSPACE_ASSERT_OK(memory.remove_listener(*late));
  EXPECT_THAT(harvest(log), ElementsAre(pages(4)));
}

TEST_F(VmDirtyLogTest, AListenerThatCannotLogRefusesTheLog) {
  second->refuse(0);
  EXPECT_THAT(memory.start_dirty_log(), HasError(Errc::bad_state));
  EXPECT_FALSE(memory.map()->memory.regions().front()->dirty().is_enabled());
  first->wrote(pages(0));  // into no log
  auto log = memory.start_dirty_log().value();
  EXPECT_THAT(harvest(log), IsEmpty());
  // Nor is anything plugged that it can't log.
  second->on_call([](std::string_view line) -> Result<void> {
    if (!line.starts_with("log_start")) return {};
    return fail({.code = Errc::os, .operation = "own"});
  });
  EXPECT_THAT(memory.plug(dimm()), HasError(Errc::os));
  expect_tables_agree();
}

TEST_F(VmDirtyLogTest, AfterAListenerThatThrowsNothingIsTracked) {
  second->run_out_of_memory(0);
  EXPECT_THROW(static_cast<void>(memory.start_dirty_log()), std::bad_alloc);
  EXPECT_FALSE(memory.map()->memory.regions().front()->dirty().is_enabled());
  auto log = memory.start_dirty_log().value();
  EXPECT_THAT(harvest(log), IsEmpty());
}

TEST_F(VmDirtyLogTest, AHarvestThatFailsLosesNothing) {
  auto log = memory.start_dirty_log().value();
  auto other = memory.start_dirty_log().value();
  write(0);
  first->wrote(pages(1));
  second->wrote(pages(2));
  for (const auto& listener : {first, second}) {
    listener->refuse(0);
    EXPECT_THAT(log.harvest(), HasError(Errc::bad_state));
  }
  EXPECT_THAT(harvest(log), ElementsAre(pages(0, 3)));
  EXPECT_THAT(harvest(other), ElementsAre(pages(0, 3)));
}

TEST_F(VmDirtyLogTest, WhatCannotBeLoggedAgainAfterAnUndoIsReportedWhole) {
  VMSPACE_ASSERT_OK(memory.set_gate(gate));
  const auto a = memory.plug(bar("a", 0xe000'0000)).value()->shared_description();
  bool refuses = false;  // listeners ask it until the log has gone
  auto log = memory.start_dirty_log().value();
  first->on_call([&](std::string_view line) -> Result<void> {
    if (!refuses || !line.starts_with("log_start a")) return {};
    return fail({.code = Errc::os, .operation = "own"});
  });
  second->on_call([&](std::string_view line) -> Result<void> {
    if (!line.starts_with("add a [0xe0008000")) return {};
    refuses = true;
    return fail({.code = Errc::os, .operation = "own"});
  });
  EXPECT_THAT(memory.relocate(a, GuestAddress(0xe000'8000)), HasError(Errc::inconsistent));
  EXPECT_THAT(memory.unsettled().value(),
              ElementsAre(UnsettledSection{
                  .listener = "first", .range = a->guest_range(), .how = Unsettled::unlogged}));
  EXPECT_THAT(log.harvest(), HasError(Errc::os));
  refuses = false;
  EXPECT_THAT(harvest(log), ElementsAre(a->guest_range()));
  EXPECT_THAT(memory.unsettled().value(), IsEmpty());
}

TEST_F(VmDirtyLogTest, ALogThatGoesInsideAChangeIsStoppedByTheNext) {
  auto log = std::optional(memory.start_dirty_log().value());
  VMSPACE_ASSERT_OK(memory.transact([&](AddressSpaceBase&) -> Result<void> {
    log.reset();
    return {};
  }));
  VMSPACE_ASSERT_OK(memory.collect());
  EXPECT_FALSE(memory.map()->memory.regions().front()->dirty().is_enabled());
}

TEST_F(VmDirtyLogTest, MovesAndOutlivesTheOtherHandles) {
  auto own = std::optional(VmMemory::create(planned()).value());
  auto log = own->start_dirty_log().value();
  const auto map = own->map();
  own.reset();
  auto moved = std::move(log);
  VMSPACE_EXPECT_OK(map->memory.write(GuestAddress(0), std::uint64_t{1}));
  EXPECT_THAT(harvest(moved), ElementsAre(pages(0)));
  moved = memory.start_dirty_log().value();
  EXPECT_FALSE(map->memory.regions().front()->dirty().is_enabled());
}

TEST_F(VmDirtyLogTest, AStoppedLogKeepsNoMemoryMapped) {
  auto own = std::optional(VmMemory::create(planned()).value());
  auto log = own->start_dirty_log().value();
  const std::weak_ptr<const MemoryRegion> region = own->map()->memory.regions().front();
  own.reset();
  EXPECT_FALSE(region.expired()) << "a log that runs does";
  VMSPACE_ASSERT_OK(log.stop());
  EXPECT_TRUE(region.expired());
}

using detail::intersection_of;
using detail::RangeList;
using detail::union_of;

GuestRange bytes(std::uint64_t first, std::uint64_t last) {
  return {.base = GuestAddress(first), .size = last - first + 1};
}

TEST(RangeList, JoinsAndCuts) {
  const std::uint64_t top = ~std::uint64_t{0};
  const RangeList a = {bytes(0, 9), bytes(20, 29), bytes(top - 9, top)};
  const RangeList b = {bytes(5, 19), bytes(25, 26), bytes(40, 49), bytes(top, top)};
  EXPECT_EQ(union_of(a, b), (RangeList{bytes(0, 29), bytes(40, 49), bytes(top - 9, top)}));
  EXPECT_EQ(intersection_of(a, b), (RangeList{bytes(5, 9), bytes(25, 26), bytes(top, top)}));
  EXPECT_EQ(union_of({}, a), a);
  EXPECT_EQ(intersection_of({}, a), RangeList());
}

TEST(PageSet, GivesWhatIsInARangeAndForgetsWholePages) {
  const std::uint64_t top = ~std::uint64_t{0};
  const std::uint64_t block = 128_MiB;
  detail::PageSet set;
  EXPECT_THAT(set.ranges_in(0, top), IsEmpty());
  const RangeList added = {pages(0), pages(2, 3), bytes(block - 2 * page, 2 * block + page - 1),
                           bytes(top - page + 1, top)};
  set.reserve(added);
  EXPECT_THAT(set.ranges_in(0, top), IsEmpty());
  set.add(added);
  set.add(RangeList{pages(3)});
  EXPECT_EQ(set.ranges_in(0, top), added);
  EXPECT_EQ(set.ranges_in(page, 3 * page + 9), (RangeList{bytes(2 * page, 3 * page + 9)}));

  // Both pages at the ends are there in part, and stay.
  set.remove(2 * page + 1, 4 * page + 7);
  EXPECT_EQ(set.ranges_in(0, 9 * page), (RangeList{pages(0), pages(2), pages(4)}));
  set.remove(0, 0);
  set.remove(block, 2 * block - 1);
  EXPECT_EQ(set.ranges_in(5 * page, top),
            (RangeList{bytes(block - 2 * page, block - 1), bytes(2 * block, 2 * block + page - 1),
                       bytes(top - page + 1, top)}));
  set.remove(0, top);
  EXPECT_THAT(set.ranges_in(0, top), IsEmpty());
}

}  // namespace
}  // namespace vmspace::test::vm_dirty_log_test
