// SPDX-License-Identifier: Apache-2.0
//
// Listeners and gates that refuse, throw, go away, and call back: a change happens wholly or not at
// all, and what could not be undone is known and tried again.

#include <chrono>
#include <cstddef>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vm_memory_support.hpp"

namespace vmspace::test::vm_memory_refusal_test {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

/// Swaps two BARs and adds a DIMM: everything that a change can be, at once.
class VmMemoryRefusal : public VmMemoryTest {
 protected:
  void SetUp() override {
    VmMemoryTest::SetUp();
    VMSPACE_ASSERT_OK(memory.set_gate(gate));
    a = memory.plug(bar("a", 0xe000'0000)).value()->shared_description();
    b = memory.plug(bar("b", 0xe001'0000)).value()->shared_description();
    gone = memory.plug(dimm(8_GiB)).value()->shared_description();
    VMSPACE_ASSERT_OK(memory.map()->memory.write(a->base(), std::uint64_t{1}));
    forget_calls();
  }

  Result<void> change() const {
    return edit([&](AddressSpaceBase& draft) -> Result<AddressSpaceRegionPtr> {
      VMSPACE_TRY(
          draft.move_regions({{.region = a, .to = b->base()}, {.region = b, .to = a->base()}}));
      VMSPACE_TRY(draft.remove_region(gone));
      return draft.insert_region(dimm());
    });
  }

  /// How many calls a listener has of a change that nobody refuses.
  std::size_t calls_of_a_change() {
    EXPECT_TRUE(change());
    const std::size_t count = first->calls().size();
    EXPECT_EQ(second->calls().size(), count);
    return count;
  }
  /// prepare, two removals, their commit, three additions, their commit: what can refuse.
  static constexpr std::size_t refusable = 8;

  AddressSpaceRegionPtr a, b, gone;
};

TEST_F(VmMemoryRefusal, WithoutAnEditNothingIsDone) {
  const Before unchanged = before();
  EXPECT_THAT(memory.transact(RegionLedger::Edit()), HasError(Errc::invalid_argument));
  expect_unchanged(unchanged);
}

TEST_F(VmMemoryRefusal, TheChangeHasEveryKindOfCall) {
  EXPECT_EQ(calls_of_a_change(), refusable + 2);  // and a removal afterwards, and its commit
  expect_tables_agree();
}

TEST_F(VmMemoryRefusal, ARefusalAtAnyCallUndoesEverything) {
  const auto was = before();
  for (const auto& listener : {first, second}) {
    for (std::size_t call = 0; call < refusable; ++call) {
      listener->refuse(call);
      const auto done = change();
      EXPECT_THAT(done, HasError(Errc::bad_state)) << listener->name() << " call " << call;
      expect_unchanged(was);
      EXPECT_FALSE(gate->is_paused);
      listener->refuse(0, 0);
    }
  }
  EXPECT_THAT(memory.unsettled().value(), IsEmpty());
  VMSPACE_EXPECT_OK(change());
  expect_tables_agree();
}

TEST_F(VmMemoryRefusal, ARefusalWhoseErrorIsAListenersOwnIsPassedOnAsItIs) {
  first->on_call([](std::string_view line) -> Result<void> {
    if (!line.starts_with("add dimm [0x1")) return {};
    return fail({.code = Errc::os, .operation = "own", .reason = "mine", .os_errno = 5});
  });
  const auto done = change();
  ASSERT_THAT(done, HasError(Errc::os));
  EXPECT_STREQ(done.error().operation, "own");
  EXPECT_EQ(done.error().os_errno, 5);
}

TEST_F(VmMemoryRefusal, AnExceptionAtAnyCallUndoesEverythingAndComesOut) {
  const auto was = before();
  for (const auto& listener : {first, second}) {
    for (std::size_t call = 0; call < refusable; ++call) {
      std::size_t count = 0;
      listener->on_call([&](std::string_view) -> Result<void> {
        if (count++ == call) throw std::runtime_error("mine");
        return {};
      });
      EXPECT_THROW(static_cast<void>(change()), std::runtime_error) << call;
      listener->on_call({});
      expect_unchanged(was);
      EXPECT_FALSE(gate->is_paused);
    }
  }
}

TEST_F(VmMemoryRefusal, ARemovalThatFailsAfterPublicationRetiresTheRange) {
  second->refuse(refusable);
  VMSPACE_ASSERT_OK(change());
  EXPECT_THAT(memory.unsettled().value(),
              ElementsAre(UnsettledSection{
                  .listener = "second", .range = gone->guest_range(), .how = Unsettled::retired}));
  // Absent to readers, still mapped, and taken.
  EXPECT_FALSE(memory.map()->memory.contains(gone->guest_range()));
  const auto left = second->table();
  const auto section = std::ranges::find(left, gone->base(), &MemorySection::base);
  ASSERT_NE(section, left.end());
  *section->host_base() = std::byte{1};
  VMSPACE_EXPECT_OK(memory.check_invariants());
  EXPECT_EQ(memory.snapshot()->find_region(gone->base()), nullptr);

  second->refuse(0, MemoryRecorder::all);
  EXPECT_THAT(memory.collect(), HasError(Errc::bad_state));
  second->refuse(0, 0);
  first->refuse(0, 0);
  VMSPACE_EXPECT_OK(memory.collect());
  EXPECT_THAT(memory.unsettled().value(), IsEmpty());
  expect_tables_agree();
  VMSPACE_EXPECT_OK(memory.plug(dimm(8_GiB)));  // the place is free
}

TEST_F(VmMemoryRefusal, NobodyComesWhereARangeIsRetired) {
  second->refuse(1, MemoryRecorder::all);
  VMSPACE_ASSERT_OK(memory.unplug(gone, 1s));
  // Every change tries again first, so it must go on failing.
  EXPECT_THAT(edit([&](AddressSpaceBase& draft) {
                return draft.insert_region({.name = "window", .base = gone->base(), .size = 4_KiB});
              }),
              HasError(Errc::overlap));
  EXPECT_THAT(edit([&](AddressSpaceBase& draft) { return draft.remove_region(gone->base()); }),
              HasError(Errc::bad_state));
  second->refuse(0, 0);
  VMSPACE_EXPECT_OK(memory.plug(dimm(8_GiB)));
  expect_tables_agree();
}

TEST_F(VmMemoryRefusal, AnUndoThatFailsSaysWhatIsLeftAndIsPutRightLater) {
  // The second listener refuses an addition; then the first refuses, in turn, each of the three
  // removals, the two additions and the commits that undo what it has done.
  for (std::size_t undo = 0; undo < 7; ++undo) {
    SCOPED_TRACE(undo);
    second->on_call([&](std::string_view line) -> Result<void> {
      if (!line.starts_with("add dimm [0x1")) return {};
      first->refuse(undo);
      return fail({.code = Errc::os, .operation = "own"});
    });
    const auto was = before();
    const auto done = change();
    second->on_call({});
    first->refuse(0, 0);
    EXPECT_THAT(done, HasError(Errc::inconsistent));
    EXPECT_EQ(memory.map(), was.map);
    EXPECT_EQ(second->table(), was.second);
    EXPECT_THAT(memory.unsettled().value(), testing::Not(IsEmpty()));
    EXPECT_FALSE(gate->is_paused);
    VMSPACE_EXPECT_OK(memory.check_invariants());
    VMSPACE_EXPECT_OK(memory.collect());
    EXPECT_THAT(memory.unsettled().value(), IsEmpty());
    expect_unchanged(was);
  }
}

TEST_F(VmMemoryRefusal, WhatAListenerLacksIsNotTakenFromItAgain) {
  // An undo leaves the first listener without `a`; unplugging `a` then needs nothing of it.
  second->on_call([&](std::string_view line) -> Result<void> {
    if (!line.starts_with("add dimm [0x1")) return {};
    first->on_call([](std::string_view again) -> Result<void> {
      if (!again.starts_with("add a")) return {};
      return fail({.code = Errc::os, .operation = "own"});
    });
    return fail({.code = Errc::os, .operation = "own"});
  });
  EXPECT_THAT(change(), HasError(Errc::inconsistent));
  second->on_call({});
  EXPECT_THAT(memory.unsettled().value(),
              ElementsAre(UnsettledSection{
                  .listener = "first", .range = a->guest_range(), .how = Unsettled::missing}));
  VMSPACE_ASSERT_OK(memory.unplug(a, 1s));
  first->on_call({});
  EXPECT_THAT(memory.unsettled().value(), IsEmpty());
  expect_tables_agree();
}

TEST_F(VmMemoryRefusal, WithoutAGateADisruptiveChangeIsRefused) {
  VMSPACE_ASSERT_OK(memory.set_gate(nullptr));
  const auto was = before();
  const auto done = change();
  EXPECT_THAT(done, HasError(Errc::bad_state));
  EXPECT_THAT(done.error().message(), HasSubstr("gate"));
  expect_unchanged(was);
}

TEST_F(VmMemoryRefusal, AGateThatRefusesRefusesTheChange) {
  gate->refuses = true;
  const auto was = before();
  EXPECT_THAT(change(), HasError(Errc::timed_out));
  expect_unchanged(was);
}

TEST_F(VmMemoryRefusal, MemoryThatGivesWayToMmioNeedsTheGate) {
  const auto replace = [&] {
    return edit([&](AddressSpaceBase& draft) -> Result<AddressSpaceRegionPtr> {
      VMSPACE_TRY(draft.remove_region(a));
      return draft.insert_region(
          {.name = "window", .type = RegionType::device_memory, .base = a->base(), .size = 4_KiB});
    });
  };
  VMSPACE_ASSERT_OK(memory.set_gate(nullptr));
  EXPECT_THAT(replace(), HasError(Errc::bad_state));
  VMSPACE_ASSERT_OK(memory.set_gate(gate));
  VMSPACE_EXPECT_OK(replace());
  EXPECT_EQ(gate->pauses, 1);
  expect_tables_agree();
}

TEST_F(VmMemoryRefusal, TheMemoryOfAParkedRegionIsNotMappedAgain) {
  const Backing backing = Backing::open({.source = MemorySource::shmem}, 2_MiB).value();
  const auto parked = memory.plug(dimm(32_GiB), {.backing = backing});
  ASSERT_THAT(parked, IsOk());
  const auto park = [&](AddressSpaceBase& draft) {
    return draft.move_regions({{.region = (*parked)->shared_description(), .to = {}}});
  };
  VMSPACE_ASSERT_OK(edit(park));
  const Before now = before();
  EXPECT_THAT(memory.plug(dimm(64_GiB), {.backing = backing}), HasError(Errc::overlap));
  expect_unchanged(now);
}

TEST_F(VmMemoryRefusal, ACallBackIntoTheMemoryIsAnErrorAndNoDeadlock) {
  std::vector<Errc> errors;
  first->on_call([&](std::string_view) -> Result<void> {
    for (const Result<void>& done :
         {memory.unplug(gone, 1s), memory.collect(), memory.add_listener(second),
          memory.remove_listener(*second), memory.set_gate(nullptr), memory.wait_released(1s),
          memory.check_invariants()}) {
      errors.push_back(done ? Errc::corrupt : done.error().code);
    }
    const auto plugged = memory.plug(dimm(9_GiB));
    errors.push_back(plugged ? Errc::corrupt : plugged.error().code);
    EXPECT_NE(memory.map(), nullptr);  // to look is allowed
    return {};
  });
  VMSPACE_EXPECT_OK(change());
  EXPECT_THAT(errors, testing::AllOf(SizeIs(testing::Ge(8u)), testing::Each(Errc::would_deadlock)));
  first->on_call({});
  expect_tables_agree();
}

TEST_F(VmMemoryRefusal, AListenerThatRefusesWhatThereIsIsNotAdded) {
  const auto late = std::make_shared<MemoryRecorder>("late");
  for (std::size_t call = 0; call < 6; ++call) {  // prepare, four regions, commit
    late->refuse(call);
    EXPECT_THAT(memory.add_listener(late), HasError(Errc::bad_state)) << call;
    EXPECT_THAT(late->table(), IsEmpty());
    EXPECT_THAT(memory.listeners().value(), SizeIs(2));
  }
  late->refuse(0, 0);
  VMSPACE_EXPECT_OK(memory.add_listener(late));
}

TEST_F(VmMemoryRefusal, AListenerIsAddedAnewOnceItLetsGoOfTheAttemptBefore) {
  const auto late = std::make_shared<MemoryRecorder>("late");
  // It takes two regions, refuses the third, and then lets none of the two go.
  late->refuse(3, MemoryRecorder::all);
  EXPECT_THAT(memory.add_listener(late), HasError(Errc::inconsistent));
  EXPECT_THAT(late->table(), SizeIs(2));
  EXPECT_THAT(memory.add_listener(late), HasError(Errc::bad_state));
  late->refuse(0, 0);
  late->forget_calls();
  VMSPACE_ASSERT_OK(memory.add_listener(late));
  EXPECT_THAT(memory.unsettled().value(), IsEmpty());
  EXPECT_EQ(late->table().size(), first->table().size());
  VMSPACE_EXPECT_OK(memory.check_invariants());
}

TEST_F(VmMemoryRefusal, AListenerThatDoesNotLetGoStays) {
  for (std::size_t call = 0; call < 5; ++call) {
    second->refuse(call);
    EXPECT_THAT(memory.remove_listener(*second), HasError(Errc::bad_state)) << call;
    EXPECT_THAT(memory.listeners().value(), SizeIs(2));
    expect_tables_agree();
  }
  second->refuse(0, 0);
  VMSPACE_EXPECT_OK(memory.remove_listener(*second));
}

TEST_F(VmMemoryRefusal, AListenerIsRemovedWithWhatItDidNotLetGoBefore) {
  second->refuse(1, MemoryRecorder::all);
  VMSPACE_ASSERT_OK(memory.unplug(gone, 1s));
  EXPECT_THAT(memory.unsettled().value(), SizeIs(1));
  EXPECT_THAT(memory.remove_listener(*second), HasError(Errc::bad_state));
  EXPECT_THAT(memory.listeners().value(), SizeIs(2));
  EXPECT_THAT(memory.unsettled().value(), SizeIs(1));
  second->refuse(0, 0);
  VMSPACE_ASSERT_OK(memory.remove_listener(*second));
  EXPECT_THAT(second->table(), IsEmpty());
  EXPECT_THAT(memory.unsettled().value(), IsEmpty());
  second->forget_calls();
  VMSPACE_EXPECT_OK(memory.plug(dimm(8_GiB)));  // the place is free
  EXPECT_THAT(second->calls(), IsEmpty()) << "it is told nothing any more";
}

/// A peer that may go at any call.
class Peer final : public MemoryListener {
 public:
  std::string_view name() const noexcept override { return "peer"; }
  Result<void> prepare(const MemoryChange&) override { return call(); }
  Result<void> add(const MemorySection&) override { return call(); }
  Result<void> remove(const MemorySection&) override { return call(); }
  Result<void> commit() override { return call(); }
  bool is_gone() const noexcept override { return calls_left == 0; }

  std::size_t calls_left = 1000;

 private:
  Result<void> call() {
    if (calls_left > 0 && --calls_left > 0) return {};
    return fail({.code = Errc::timed_out, .operation = "Peer", .reason = "gone"});
  }
};

TEST_F(VmMemoryRefusal, AChangeGoesOnWithoutAPeerThatHasGone) {
  for (std::size_t call = 1; call <= refusable + 2; ++call) {
    const auto peer = std::make_shared<Peer>();
    VMSPACE_ASSERT_OK(memory.add_listener(peer, {.required = false}));
    peer->calls_left = call;
    VMSPACE_EXPECT_OK(change());
    EXPECT_THAT(memory.listeners().value(), ElementsAre(first, second)) << call;
    EXPECT_THAT(memory.unsettled().value(), IsEmpty());
    expect_tables_agree();
    // As it was, for the next round.
    auto now = memory.map();
    a = now->memory.find_region(b->base())->shared_description();
    b = now->memory
            .find_region(a->base() == GuestAddress(0xe000'0000) ? GuestAddress(0xe001'0000)
                                                                : GuestAddress(0xe000'0000))
            ->shared_description();
    const auto added = now->memory.find_region(GuestAddress(4_GiB))->shared_description();
    now.reset();
    VMSPACE_ASSERT_OK(memory.unplug(added, 1s));
    gone = memory.plug(dimm(8_GiB)).value()->shared_description();
  }
}

TEST_F(VmMemoryRefusal, AChangeIsRefusedWhenARequiredPeerHasGone) {
  for (std::size_t call = 1; call <= refusable; ++call) {
    const auto peer = std::make_shared<Peer>();
    VMSPACE_ASSERT_OK(memory.add_listener(peer));
    peer->calls_left = call;
    const auto was = before();
    EXPECT_THAT(change(), HasError(Errc::timed_out)) << call;
    expect_unchanged(was);
    EXPECT_THAT(change(), HasError(Errc::bad_state)) << "until it is taken out";
    expect_unchanged(was);
    VMSPACE_EXPECT_OK(memory.remove_listener(*peer));
  }
}

TEST_F(VmMemoryRefusal, ARetiredRegionThatCantGoDoesNotKeepOthers) {
  const auto peer = std::make_shared<Peer>();
  VMSPACE_ASSERT_OK(memory.add_listener(peer));
  RegionOptions window = bar("window", 0xf000'0000);
  window.backing = {};
  std::optional<AddressSpaceRegionPtr> mmio;
  VMSPACE_ASSERT_OK(edit([&](AddressSpaceBase& draft) {
    auto inserted = draft.insert_region(window);
    if (inserted) mmio = *inserted;
    return inserted;
  }));
  memory.retire({gone, *mmio});
  peer->calls_left = 1;
  EXPECT_THAT(memory.collect(), HasError(Errc::bad_state)) << "the memory can't go";
  EXPECT_THAT(memory.retired(), ElementsAre(gone));
  VMSPACE_EXPECT_OK(edit([&](AddressSpaceBase& draft) { return draft.insert_region(window); }));
  VMSPACE_EXPECT_OK(memory.remove_listener(*peer));
  VMSPACE_EXPECT_OK(memory.collect());
  EXPECT_THAT(memory.retired(), IsEmpty());
}

TEST_F(VmMemoryRefusal, AnErrorNamesTheCallThatWasMade) {
  const auto there = memory.plug(dimm(16_GiB));
  ASSERT_THAT(there, IsOk());
  const auto region = (*there)->shared_description();
  const auto peer = std::make_shared<Peer>();
  VMSPACE_ASSERT_OK(memory.add_listener(peer));
  peer->calls_left = 1;
  EXPECT_THAT(memory.plug(dimm(20_GiB)), HasError(Errc::timed_out)) << "the peer's own error";
  const auto operation = [](const auto& refused) { return std::string(refused.error().operation); };
  EXPECT_EQ(operation(memory.plug(dimm(20_GiB))), "VmMemory::plug");
  EXPECT_EQ(operation(memory.unplug(region, 1s)), "VmMemory::unplug");
  EXPECT_EQ(operation(memory.relocate(region, GuestAddress(24_GiB))), "VmMemory::relocate");
  EXPECT_EQ(operation(change()), "VmMemory::transact");
  VMSPACE_EXPECT_OK(memory.remove_listener(*peer));

  auto log = memory.start_dirty_log();
  ASSERT_THAT(log, IsOk());
  disable_dirty_tracking(memory.map()->memory);
  EXPECT_EQ(operation(log->harvest()), "VmDirtyLog::harvest");
}

}  // namespace
}  // namespace vmspace::test::vm_memory_refusal_test
