// SPDX-License-Identifier: Apache-2.0
//
// What a change of VmMemory does where nothing fails.

#include "vmspace/vmm/vm_memory.hpp"

#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/resources.hpp"

#include "vm_memory_support.hpp"

namespace vmspace::test::vm_memory_test {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

using VmMemoryBasics = VmMemoryTest;

TEST_F(VmMemoryBasics, MapsWhatIsPlanned) {
  const auto now = memory.map();
  EXPECT_EQ(now->space, planned());
  ASSERT_EQ(now->memory.regions().size(), 1u);
  EXPECT_EQ(now->memory.regions().front()->shared_description(), *now->space.begin());
  EXPECT_EQ(memory.generation(), 1u);
}

TEST_F(VmMemoryBasics, PlugsMemoryForReadersAndListenersAtOnce) {
  auto reader = memory.reader();
  EXPECT_FALSE(reader->memory.contains({GuestAddress(4_GiB), 1}));
  const auto plugged = memory.plug(dimm());
  VMSPACE_ASSERT_OK(plugged);
  EXPECT_EQ(reader->space.find_region(GuestAddress(4_GiB)), &(*plugged)->description());
  VMSPACE_EXPECT_OK(reader->memory.write(GuestAddress(4_GiB), std::uint64_t{7}));
  EXPECT_THAT(first->calls(), ElementsAre("prepare +dimm [0x100000000-0x1001fffff]",
                                          "add dimm [0x100000000-0x1001fffff]", "commit"));
  EXPECT_EQ(second->calls(), first->calls());
  expect_tables_agree();
}

TEST_F(VmMemoryBasics, UnplugsAndUnmapsBeforeItReturns) {
  std::weak_ptr<const MemoryRegion> mapped;
  AddressSpaceRegionPtr description;
  {
    const auto plugged = memory.plug(dimm()).value();
    mapped = plugged;
    description = plugged->shared_description();
  }
  forget_calls();
  first->on_call({});
  VMSPACE_ASSERT_OK(memory.unplug(description, 1s));
  EXPECT_THAT(first->calls(), ElementsAre("prepare -dimm [0x100000000-0x1001fffff]",
                                          "remove dimm [0x100000000-0x1001fffff]", "commit"));
  // Recorders keep nothing of what was removed, and nobody else has it.
  EXPECT_TRUE(mapped.expired());
  EXPECT_FALSE(memory.map()->memory.contains({GuestAddress(4_GiB), 1}));
  expect_tables_agree();
}

TEST_F(VmMemoryBasics, UnplugsForGoodWhenAReaderLingers) {
  const auto description = memory.plug(dimm()).value()->shared_description();
  auto reader = memory.reader();
  const GuestMemory& old = reader->memory;
  const auto done = memory.unplug(description, 0s);
  EXPECT_THAT(done, HasError(Errc::timed_out));
  EXPECT_STREQ(done.error().operation, "VmMemory::unplug");
  VMSPACE_EXPECT_OK(old.read<std::uint64_t>(GuestAddress(4_GiB)));  // still mapped
  EXPECT_FALSE(memory.map()->memory.contains({GuestAddress(4_GiB), 1}));
  reader.park();
  VMSPACE_EXPECT_OK(memory.wait_released(1s));
}

TEST_F(VmMemoryBasics, PublishesRegionsWithoutMemoryToReadersAlone) {
  VMSPACE_ASSERT_OK(edit([](AddressSpaceBase& draft) {
    return draft.insert_region({.name = "uart",
                                .type = RegionType::device_memory,
                                .base = GuestAddress(0xe000'0000),
                                .size = 4_KiB});
  }));
  EXPECT_NE(memory.snapshot()->find_region(GuestAddress(0xe000'0000)), nullptr);
  EXPECT_THAT(first->calls(), IsEmpty());
  EXPECT_EQ(memory.generation(), 2u);
}

TEST_F(VmMemoryBasics, PublishesNothingWhenAnEditChangesNothing) {
  VMSPACE_ASSERT_OK(memory.transact([](AddressSpaceBase&) { return Result<void>(); }));
  EXPECT_EQ(memory.generation(), 1u);
}

TEST_F(VmMemoryBasics, TellsListenersOfRemovalsInReverseOrder) {
  const auto description = memory.plug(dimm()).value()->shared_description();
  std::vector<std::string> order;
  for (const auto& listener : {first, second}) {
    listener->on_call([&order, name = listener->name()](std::string_view line) -> Result<void> {
      order.push_back(std::string(name) + ": " + std::string(line.substr(0, line.find(' '))));
      return {};
    });
  }
  VMSPACE_ASSERT_OK(memory.unplug(description, 1s));
  EXPECT_THAT(order, ElementsAre("first: prepare", "second: prepare", "second: remove",
                                 "second: commit", "first: remove", "first: commit"));
}

TEST_F(VmMemoryBasics, ReadersSeeAChangeOnlyOnceListenersHaveTheMemory) {
  bool seen_early = false;
  second->on_call([&](std::string_view) -> Result<void> {
    seen_early |= memory.map()->memory.contains({GuestAddress(4_GiB), 1});
    return {};
  });
  VMSPACE_ASSERT_OK(memory.plug(dimm()));
  EXPECT_FALSE(seen_early);
}

TEST_F(VmMemoryBasics, MovesARegionWithWhatItHolds) {
  const auto device = memory.plug(bar("bar", 0xe000'0000)).value();
  VMSPACE_ASSERT_OK(memory.map()->memory.write(GuestAddress(0xe000'0000), std::uint64_t{42}));
  forget_calls();
  const auto moved = memory.relocate(device->shared_description(), GuestAddress(0xe100'0000));
  VMSPACE_ASSERT_OK(moved);
  EXPECT_EQ((*moved)->base(), GuestAddress(0xe100'0000));
  const auto now = memory.map();
  EXPECT_EQ(now->memory.read<std::uint64_t>(GuestAddress(0xe100'0000)), std::uint64_t{42});
  EXPECT_FALSE(now->memory.contains({GuestAddress(0xe000'0000), 1}));
  EXPECT_THAT(first->calls(),
              ElementsAre("prepare -bar [0xe0000000-0xe000ffff] +bar [0xe1000000-0xe100ffff]",
                          "add bar [0xe1000000-0xe100ffff]", "commit",
                          "remove bar [0xe0000000-0xe000ffff]", "commit"));
  EXPECT_EQ(gate->pauses, 0);
}

TEST_F(VmMemoryBasics, SwapsTwoRegionsThroughTheGate) {
  VMSPACE_ASSERT_OK(memory.set_gate(gate));
  const auto a = memory.plug(bar("a", 0xe000'0000)).value()->shared_description();
  const auto b = memory.plug(bar("b", 0xe001'0000)).value()->shared_description();
  VMSPACE_ASSERT_OK(memory.map()->memory.write(a->base(), std::uint64_t{1}));
  VMSPACE_ASSERT_OK(memory.map()->memory.write(b->base(), std::uint64_t{2}));
  first->on_call([&](std::string_view line) -> Result<void> {
    EXPECT_EQ(gate->is_paused, !line.starts_with("prepare"));
    return {};
  });
  VMSPACE_ASSERT_OK(edit([&](AddressSpaceBase& draft) {
    return draft.move_regions({{.region = a, .to = b->base()}, {.region = b, .to = a->base()}});
  }));
  EXPECT_EQ(gate->pauses, 1);
  EXPECT_FALSE(gate->is_paused);
  const auto now = memory.map();
  EXPECT_EQ(now->memory.read<std::uint64_t>(a->base()), std::uint64_t{2});
  EXPECT_EQ(now->memory.read<std::uint64_t>(b->base()), std::uint64_t{1});
  expect_tables_agree();
}

TEST_F(VmMemoryBasics, ReplacesRomByRamThroughTheGate) {
  VMSPACE_ASSERT_OK(memory.set_gate(gate));
  auto rom = dimm();
  rom.name = "rom";
  rom.protection = Protection::read;
  const auto before = memory.plug(rom).value()->shared_description();
  VMSPACE_ASSERT_OK(edit([&](AddressSpaceBase& draft) -> Result<AddressSpaceRegionPtr> {
    VMSPACE_TRY(draft.remove_region(before));
    return draft.insert_region(dimm());
  }));
  EXPECT_EQ(gate->pauses, 1);
  VMSPACE_EXPECT_OK(memory.map()->memory.write(GuestAddress(4_GiB), 'x'));
  expect_tables_agree();
}

TEST_F(VmMemoryBasics, ReplacesMmioByMemoryWithoutAGate) {
  AddressSpaceRegionPtr window;
  VMSPACE_ASSERT_OK(edit([&](AddressSpaceBase& draft) {
    const auto inserted = draft.insert_region({.name = "window",
                                               .type = RegionType::device_memory,
                                               .base = GuestAddress(0xe000'0000),
                                               .size = 64_KiB});
    window = *inserted;
    return inserted;
  }));
  VMSPACE_ASSERT_OK(edit([&](AddressSpaceBase& draft) -> Result<AddressSpaceRegionPtr> {
    VMSPACE_TRY(draft.remove_region(window));
    return draft.insert_region(bar("bar", 0xe000'0000));
  }));
  expect_tables_agree();
}

TEST_F(VmMemoryBasics, AnEqualRegionInThePlaceOfAnotherKeepsItsMemory) {
  const auto before = memory.plug(dimm()).value()->shared_description();
  VMSPACE_ASSERT_OK(memory.map()->memory.write(GuestAddress(4_GiB), std::uint64_t{42}));
  forget_calls();
  AddressSpaceRegionPtr after;
  VMSPACE_ASSERT_OK(edit([&](AddressSpaceBase& draft) -> Result<AddressSpaceRegionPtr> {
    VMSPACE_TRY(draft.remove_region(before));
    after = VMSPACE_TRY(draft.insert_region(dimm()));
    return after;
  }));
  EXPECT_EQ(memory.map()->memory.read<std::uint64_t>(GuestAddress(4_GiB)), std::uint64_t{42});
  EXPECT_THAT(first->calls(), IsEmpty());
  VMSPACE_EXPECT_OK(memory.unplug(after, 1s));
  EXPECT_EQ(first->table().size(), 1u);
}

TEST_F(VmMemoryBasics, AParkedRegionKeepsItsMemoryAndNobodySeesIt) {
  const auto device = memory.plug(bar("bar", 0xe000'0000)).value()->shared_description();
  VMSPACE_ASSERT_OK(memory.map()->memory.write(device->base(), std::uint64_t{42}));
  VMSPACE_ASSERT_OK(
      edit([&](AddressSpaceBase& draft) { return draft.move_regions({{.region = device}}); }));
  EXPECT_FALSE(memory.map()->memory.contains({device->base(), 1}));
  expect_tables_agree();
  // Elsewhere, and back from parking once more.
  VMSPACE_ASSERT_OK(edit([&](AddressSpaceBase& draft) {
    return draft.move_regions({{.region = device, .to = GuestAddress(0xe200'0000)}});
  }));
  EXPECT_EQ(memory.map()->memory.read<std::uint64_t>(GuestAddress(0xe200'0000)), std::uint64_t{42});
  expect_tables_agree();
}

TEST_F(VmMemoryBasics, AParkedRegionThatIsRemovedLetsItsMemoryGo) {
  std::weak_ptr<const MemoryRegion> mapped;
  AddressSpaceRegionPtr device;
  {
    const auto region = memory.plug(bar("bar", 0xe000'0000)).value();
    mapped = region;
    device = region->shared_description();
  }
  VMSPACE_ASSERT_OK(
      edit([&](AddressSpaceBase& draft) { return draft.move_regions({{.region = device}}); }));
  EXPECT_FALSE(mapped.expired());
  VMSPACE_ASSERT_OK(edit([&](AddressSpaceBase& draft) { return draft.remove_region(device); }));
  EXPECT_TRUE(mapped.expired());
}

TEST_F(VmMemoryBasics, ANewListenerIsGivenWhatThereIs) {
  VMSPACE_ASSERT_OK(memory.plug(dimm()));
  const auto late = std::make_shared<MemoryRecorder>("late");
  VMSPACE_ASSERT_OK(memory.add_listener(late));
  EXPECT_THAT(
      late->calls(),
      ElementsAre("prepare +ram [0x0-0x3fffff] +dimm [0x100000000-0x1001fffff]",
                  "add ram [0x0-0x3fffff]", "add dimm [0x100000000-0x1001fffff]", "commit"));
  EXPECT_THAT(memory.listeners().value(), ElementsAre(first, second, late));
  VMSPACE_ASSERT_OK(memory.remove_listener(*late));
  EXPECT_THAT(late->table(), IsEmpty());
  EXPECT_THAT(memory.listeners().value(), ElementsAre(first, second));
}

TEST_F(VmMemoryBasics, ListenersAreAddedOnceAndRemovedOnce) {
  EXPECT_THAT(memory.add_listener(first), HasError(Errc::bad_state));
  EXPECT_THAT(memory.add_listener(nullptr), HasError(Errc::invalid_argument));
  VMSPACE_ASSERT_OK(memory.remove_listener(*first));
  EXPECT_THAT(memory.remove_listener(*first), HasError(Errc::not_found));
}

TEST_F(VmMemoryBasics, TheLastHandleTakesEverythingFromListeners) {
  const auto listener = std::make_shared<MemoryRecorder>();
  {
    const VmMemory own = VmMemory::create(planned()).value();
    VMSPACE_ASSERT_OK(own.add_listener(listener));
    const VmMemory copy = own;
    EXPECT_TRUE(copy.same_as(own));
  }
  EXPECT_THAT(listener->table(), IsEmpty());
}

TEST_F(VmMemoryBasics, MemoryThatAListenerNeverLetsGoStaysMapped) {
  const auto listener = std::make_shared<MemoryRecorder>();
  {
    const VmMemory own = VmMemory::create(planned()).value();
    VMSPACE_ASSERT_OK(own.add_listener(listener));
    listener->refuse(0, MemoryRecorder::all);
  }
  ASSERT_EQ(listener->table().size(), 1u);
  *listener->table().front().host_base() = std::byte{1};  // would fault
  // The recorder holds its regions as well, so look at who else does: what was kept for ever.
  EXPECT_GT(listener->table().front().region().use_count(), 2);
}

TEST_F(VmMemoryBasics, RetiredRegionsGoWithTheNextChange) {
  const auto description = memory.plug(dimm()).value()->shared_description();
  RegionList list{description};
  memory.retire(std::move(list));
  EXPECT_THAT(memory.retired(), ElementsAre(description));
  EXPECT_EQ(first->table().size(), 2u);
  // The same place, in the same change: it is free when the edit runs.
  VMSPACE_ASSERT_OK(memory.plug(dimm()));
  EXPECT_THAT(memory.retired(), IsEmpty());
  expect_tables_agree();
  memory.retire({memory.map()->memory.regions().back()->shared_description()});
  VMSPACE_ASSERT_OK(memory.collect());
  EXPECT_EQ(memory.map()->memory.regions().size(), 1u);
  expect_tables_agree();
}

TEST_F(VmMemoryBasics, IsTheLedgerOfAResourceManager) {
  const auto manager = ResourceManager::create(std::make_shared<VmMemory>(memory), {}).value();
  auto region = dimm();
  region.base = {};
  auto device = manager
                    .acquire({MemoryRange{.region = region, .aperture = "ram_high"},
                              MmioRange{.size = 4_KiB}},
                             "dimm0")
                    .value();
  const auto base = device.memory()->base();
  VMSPACE_EXPECT_OK(memory.map()->memory.write(base, 'x'));
  expect_tables_agree();
  VMSPACE_ASSERT_OK(device.release());
  EXPECT_FALSE(memory.map()->memory.contains({base, 1}));
  expect_tables_agree();
}

TEST_F(VmMemoryBasics, RefusesBadInputAndIsAsItWas) {
  const auto was = before();
  auto bare = dimm();
  bare.backing = {};
  EXPECT_THAT(memory.plug(bare), HasError(Errc::invalid_argument));
  EXPECT_THAT(memory.plug(dimm(0)), HasError(Errc::overlap));
  EXPECT_THAT(memory.plug(dimm(0x1'0000'0000, 0)), HasError(Errc::zero_size));
  EXPECT_THAT(memory.plug(dimm(~std::uint64_t{0} - 4095, 8192)), HasError(Errc::overflow));
  EXPECT_THAT(memory.unplug(nullptr, 1s), HasError(Errc::invalid_argument));
  const auto stranger = AddressSpaceRegion::make(dimm()).value();
  EXPECT_THAT(memory.unplug(stranger, 1s), HasError(Errc::not_found));
  EXPECT_THAT(memory.relocate(stranger, GuestAddress(8_GiB)), HasError(Errc::not_found));
  const auto ram = *was.map->space.begin();
  EXPECT_THAT(memory.relocate(ram, GuestAddress(0xe000'0000)), testing::Not(IsOk()));
  EXPECT_THAT(edit([](AddressSpaceBase&) -> Result<void> {
                return fail({.code = Errc::unsupported, .operation = "own"});
              }),
              HasError(Errc::unsupported));
  expect_unchanged(was);
}

TEST_F(VmMemoryBasics, ErrorsNameTheCallThatWasMade) {
  const auto large = memory.plug(dimm(8_GiB, 4_MiB));
  ASSERT_THAT(large, IsOk());
  const auto moved = memory.relocate((*large)->shared_description(), GuestAddress(8_GiB + 64_KiB));
  ASSERT_THAT(moved, HasError(Errc::misaligned)) << "huge pages would be lost";
  EXPECT_STREQ(moved.error().operation, "VmMemory::relocate");
  std::uint64_t next = 16_GiB;
  while (memory.map()->memory.regions().size() < GuestMemory::max_regions)
    VMSPACE_ASSERT_OK(memory.plug(dimm(next += 4_KiB, 4_KiB)));
  const auto plugged = memory.plug(dimm(next + 4_KiB, 4_KiB));
  ASSERT_THAT(plugged, HasError(Errc::limit_exceeded));
  EXPECT_STREQ(plugged.error().operation, "VmMemory::plug");
}

TEST_F(VmMemoryBasics, RefusesToGuessWhichRegionMoved) {
  const auto a = memory.plug(dimm(4_GiB)).value()->shared_description();
  const auto b = memory.plug(dimm(5_GiB)).value()->shared_description();
  const auto was = before();
  EXPECT_THAT(edit([&](AddressSpaceBase& draft) {
                return draft.move_regions({{.region = a, .to = GuestAddress(6_GiB)},
                                           {.region = b, .to = GuestAddress(7_GiB)}});
              }),
              HasError(Errc::bad_state));
  expect_unchanged(was);
}

TEST_F(VmMemoryBasics, RefusesToGuessWhichOfTwoRegionsHasTheMemoryOfOne) {
  const auto gone = memory.plug(dimm(4_GiB)).value()->shared_description();
  const auto was = before();
  EXPECT_THAT(edit([&](AddressSpaceBase& draft) -> Result<AddressSpaceRegionPtr> {
                VMSPACE_TRY(draft.remove_region(gone));
                VMSPACE_TRY(draft.insert_region(dimm(6_GiB)));
                return draft.insert_region(dimm(7_GiB));
              }),
              HasError(Errc::bad_state));
  expect_unchanged(was);
}

}  // namespace
}  // namespace vmspace::test::vm_memory_test
