// SPDX-License-Identifier: Apache-2.0
//
// What others can do, and can't, while the memory of a change is being made.

#include <linux/membarrier.h>
#include <sys/mman.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "faults/injector.hpp"
#include "vm_memory_support.hpp"

namespace vmspace::test::vm_memory_staging_test {
namespace {

using namespace std::chrono_literals;
using testing::IsEmpty;

/// Runs a piece of code in the middle of the next staging, when the kernel is asked for memory.
class VmMemoryStaging : public VmMemoryTest {
 protected:
  VmMemoryStaging() {
    while_staging = nullptr;
    injector.table().memfd_create = [](const char* name, unsigned flags) {
      if (const auto body = std::exchange(while_staging, nullptr)) body();
      return detail::real_system_calls.memfd_create(name, flags);
    };
    injector.table().mmap = [](void* at, std::size_t size, int protection, int flags, int fd,
                               off_t offset) {
      if (const auto body = std::exchange(while_staging, nullptr)) body();
      return detail::real_system_calls.mmap(at, size, protection, flags, fd, offset);
    };
  }

  /// `body` on another thread, since a change may not wait for itself.
  template <typename Body>
  void meanwhile(Body body) {
    while_staging = [body = std::move(body)] {
      auto other = std::async(std::launch::async, body);
      ASSERT_EQ(other.wait_for(20s), std::future_status::ready) << "staging holds others up";
      other.get();
    };
  }

  /// Without a snapshot that would outlive the call.
  AddressSpaceRegionPtr described(std::uint64_t base) const {
    return memory.map()->memory.find_region(GuestAddress(base))->shared_description();
  }

  inline static std::function<void()> while_staging;
  Injector injector;
};

TEST_F(VmMemoryStaging, OthersChangeWhatIsNotInvolved) {
  meanwhile([&] {
    VMSPACE_EXPECT_OK(memory.plug(dimm(8_GiB)));
    EXPECT_FALSE(memory.map()->memory.contains({GuestAddress(4_GiB), 1}));
    VMSPACE_EXPECT_OK(memory.unplug(described(8_GiB), 1s));
    VMSPACE_EXPECT_OK(memory.plug(dimm(16_GiB)));
  });
  VMSPACE_EXPECT_OK(memory.plug(dimm(4_GiB)));
  EXPECT_EQ(memory.map()->memory.regions().size(), 3u);
  expect_tables_agree();
}

TEST_F(VmMemoryStaging, ARegionThatIsChangingIsNotResized) {
  VMSPACE_ASSERT_OK(memory.set_gate(gate));
  VMSPACE_ASSERT_OK(memory.plug(dimm(8_GiB)));
  const auto leaving = described(8_GiB);
  meanwhile([&] { EXPECT_THAT(memory.resize(leaving, 1_MiB), HasError(Errc::bad_state)); });
  VMSPACE_EXPECT_OK(edit([&](AddressSpaceBase& draft) -> Result<AddressSpaceRegionPtr> {
    const auto removed = draft.remove_region(leaving);
    if (!removed) return removed;
    return draft.insert_region(bar("another", 0xe000'0000));
  }));
  EXPECT_THAT(memory.resize(leaving, 1_MiB), HasError(Errc::not_found));
  expect_tables_agree();
}

TEST_F(VmMemoryStaging, ThePlaceIsTakenFromTheBeginning) {
  meanwhile([&] {
    EXPECT_THAT(memory.plug(dimm(4_GiB + 1_MiB)), HasError(Errc::overlap));
    // Nor may what holds it be taken out.
    EXPECT_THAT(
        edit([](AddressSpaceBase& draft) { return draft.remove_region(GuestAddress(4_GiB)); }),
        HasError(Errc::bad_state));
    VMSPACE_EXPECT_OK(memory.check_invariants());
  });
  VMSPACE_EXPECT_OK(memory.plug(dimm(4_GiB)));
  expect_tables_agree();
}

TEST_F(VmMemoryStaging, WhatTheChangeRemovesIsLeftAlone) {
  const auto old = memory.plug(dimm(8_GiB)).value()->shared_description();
  meanwhile([&] {
    EXPECT_THAT(memory.unplug(old, 1s), HasError(Errc::bad_state));
    EXPECT_THAT(memory.relocate(old, GuestAddress(16_GiB)), HasError(Errc::bad_state));
  });
  VMSPACE_EXPECT_OK(edit([&](AddressSpaceBase& draft) -> Result<AddressSpaceRegionPtr> {
    VMSPACE_TRY(draft.remove_region(old));
    auto other = dimm(4_GiB);
    other.name = "other";
    return draft.insert_region(other);
  }));
  expect_tables_agree();
}

TEST_F(VmMemoryStaging, WhatIsPartlyReplacedIsTakenWhole) {
  VMSPACE_ASSERT_OK(memory.set_gate(gate));
  const auto old = memory.plug(dimm(5_GiB, 2_MiB)).value()->shared_description();
  meanwhile([&] {
    for (const std::uint64_t base : {5_GiB - 1_MiB, 5_GiB, 5_GiB + 1_MiB, 5_GiB + 2_MiB})
      EXPECT_THAT(memory.plug(dimm(base, 4_KiB)), HasError(Errc::overlap)) << base;
  });
  VMSPACE_EXPECT_OK(edit([&](AddressSpaceBase& draft) -> Result<AddressSpaceRegionPtr> {
    VMSPACE_TRY(draft.remove_region(old));
    return draft.insert_region(dimm(5_GiB - 1_MiB, 4_MiB));
  }));
  expect_tables_agree();
}

TEST_F(VmMemoryStaging, APartOfABackingIsMappedByOneChangeOnly) {
  const Backing backing = Backing::open({.source = MemorySource::shmem}, 4_MiB).value();
  meanwhile([&] { VMSPACE_EXPECT_OK(memory.plug(dimm(8_GiB), {.backing = backing})); });
  EXPECT_THAT(memory.plug(dimm(4_GiB), {.backing = backing}), HasError(Errc::overlap));
  EXPECT_EQ(memory.map()->memory.regions().size(), 2u);
  expect_tables_agree();
  VMSPACE_EXPECT_OK(memory.plug(dimm(4_GiB), {.backing = backing, .backing_offset = 2_MiB}));
}

TEST_F(VmMemoryStaging, ARegionDoesNotGrowIntoWhatIsMappedMeanwhile) {
  VMSPACE_ASSERT_OK(memory.set_gate(gate));
  const Backing backing = Backing::open({.source = MemorySource::shmem}, 4_MiB).value();
  const MapOptions second_half{.backing = backing, .backing_offset = 2_MiB};
  VMSPACE_ASSERT_OK(memory.plug(dimm(8_GiB), {.backing = backing}));
  meanwhile([&] { VMSPACE_EXPECT_OK(memory.plug(dimm(4_GiB), second_half)); });
  EXPECT_THAT(memory.resize(described(8_GiB), 4_MiB), HasError(Errc::overlap));
  VMSPACE_ASSERT_OK(memory.unplug(described(4_GiB), 1s));
  // Nor is mapped what it grows into.
  meanwhile([&] { VMSPACE_EXPECT_OK(memory.resize(described(8_GiB), 4_MiB)); });
  EXPECT_THAT(memory.plug(dimm(4_GiB), second_half), HasError(Errc::overlap));
  EXPECT_EQ(memory.map()->memory.regions().size(), 2u);
  expect_tables_agree();
}

TEST_F(VmMemoryStaging, WhenTheLastLogStopsARegionThatIsBeingResizedIsNotTrackedEither) {
  VMSPACE_ASSERT_OK(memory.set_gate(gate));
  const Backing backing = Backing::open({.source = MemorySource::shmem}, 2_MiB).value();
  VMSPACE_ASSERT_OK(memory.plug(dimm(8_GiB), {.backing = backing}));
  if (memory.map()->memory.regions()[0]->dirty().writers_fence())
    GTEST_SKIP() << "this kernel has no membarrier(2)";
  auto log = memory.start_dirty_log();
  ASSERT_THAT(log, IsOk());
  // When it begins to be tracked, as the region is that it comes from.
  injector.table().mmap = detail::real_system_calls.mmap;
  injector.table().membarrier = [](int command, unsigned flags) {
    if (command == MEMBARRIER_CMD_PRIVATE_EXPEDITED) {
      if (const auto body = std::exchange(while_staging, nullptr)) body();
    }
    return detail::real_system_calls.membarrier(command, flags);
  };
  meanwhile([&] { VMSPACE_EXPECT_OK(log->stop()); });
  VMSPACE_EXPECT_OK(memory.resize(described(8_GiB), 1_MiB));
  const auto now = memory.map();
  for (const MemoryRegionPtr& region : now->memory.regions())
    EXPECT_FALSE(region->dirty().is_enabled()) << region->description().name();
}

TEST_F(VmMemoryStaging, AFailureAtAnySystemCallGivesThePlaceBack) {
  auto was = before();
  injector.table().memfd_create = [](const char* name, unsigned flags) {
    return detail::real_system_calls.memfd_create(name, flags);
  };
  Injector counting;
  for (std::size_t call = 0;; ++call) {
    counting.fail_call(call, ENOMEM);
    const auto done = memory.plug(dimm());
    if (!counting.has_failed()) {
      VMSPACE_EXPECT_OK(done);
      EXPECT_GT(call, 3u);
      break;
    }
    if (!done) {
      expect_unchanged(was);
    }
    was.map.reset();  // what unplug() waits for
    if (done) {       // what fails is advice only
      VMSPACE_ASSERT_OK(memory.unplug((*done)->shared_description(), 1s));
    }
    counting.fail_none();
    const auto again = memory.plug(dimm());
    VMSPACE_ASSERT_OK(again);
    VMSPACE_ASSERT_OK(memory.unplug((*again)->shared_description(), 1s));
    was = before();
  }
  expect_tables_agree();
}

TEST_F(VmMemoryStaging, ListenersThatComeMeanwhileSeeTheChange) {
  const auto late = std::make_shared<MemoryRecorder>("late");
  meanwhile([&] {
    VMSPACE_EXPECT_OK(memory.remove_listener(*second));
    VMSPACE_EXPECT_OK(memory.add_listener(late));
  });
  VMSPACE_EXPECT_OK(memory.plug(dimm()));
  EXPECT_EQ(late->table(), first->table());
  EXPECT_THAT(second->table(), IsEmpty());
}

}  // namespace
}  // namespace vmspace::test::vm_memory_staging_test
