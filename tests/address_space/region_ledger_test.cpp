// SPDX-License-Identifier: Apache-2.0
//
// AddressSpace as the ledger that others enter regions in.

#include "vmspace/address_space/region_ledger.hpp"

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/address_space.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::region_ledger_test {
namespace {

using namespace literals;
using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

static_assert(std::has_virtual_destructor_v<RegionLedger>);
static_assert(std::is_base_of_v<RegionLedger, AddressSpace>);

class RegionLedgerTest : public testing::Test {
 protected:
  static constexpr std::uint64_t low = 0xc000'0000;

  static RegionOptions bar(std::uint64_t index) {
    return {.name = "BAR" + std::to_string(index),
            .type = RegionType::device_memory,
            .base = GuestAddress{low + index * 64_KiB},
            .size = 64_KiB};
  }
  [[nodiscard]] AddressSpaceRegionPtr entered(std::uint64_t index) const {
    return space.insert_region(bar(index)).value();
  }
  void retire(const AddressSpaceRegionPtr& region) const {
    RegionList list;
    list.push_back(region);
    ledger.retire(std::move(list));
    EXPECT_TRUE(list.empty());
  }
  static Result<void> nothing(AddressSpaceBase&) { return {}; }

  const AddressSpace space =
      AddressSpace::create(AddressSpaceLayout::x86_64({.phys_bits = 40}).value()).value();
  const RegionLedger& ledger = space;
};

TEST_F(RegionLedgerTest, AChangeIsMadeAtOnceOrNotAtAll) {
  VMSPACE_EXPECT_OK(ledger.transact([](AddressSpaceBase& draft) -> Result<void> {
    VMSPACE_TRY(draft.insert_region(bar(0)));
    VMSPACE_TRY(draft.insert_region(bar(1)));
    return {};
  }));
  EXPECT_EQ(ledger.snapshot()->size(), 2U);
  const auto failed = ledger.transact([](AddressSpaceBase& draft) -> Result<void> {
    VMSPACE_TRY(draft.insert_region(bar(2)));
    VMSPACE_TRY(draft.insert_region(bar(1)));
    return {};
  });
  EXPECT_THAT(failed, HasError(Errc::overlap));
  EXPECT_STREQ(failed.error().operation, "AddressSpaceBase::insert_region");
  EXPECT_EQ(ledger.snapshot()->size(), 2U);
}

TEST_F(RegionLedgerTest, ASnapshotStaysAsItIs) {
  const auto before = ledger.snapshot();
  const auto region = entered(0);
  EXPECT_TRUE(before->empty());
  EXPECT_EQ(ledger.snapshot()->find_region(region->base()), region.get());
}

TEST_F(RegionLedgerTest, AChangeInsideAChangeIsRefused) {
  VMSPACE_EXPECT_OK(ledger.transact([&](AddressSpaceBase&) -> Result<void> {
    EXPECT_THAT(ledger.transact(nothing), HasError(Errc::would_deadlock));
    return {};
  }));
}

TEST_F(RegionLedgerTest, AnEmptyEditIsRefusedAndPublishesNothing) {
  const std::uint64_t generation = space.generation();
  EXPECT_THAT(ledger.transact({}), HasError(Errc::invalid_argument));
  const RegionLedger::Edit none;
  EXPECT_THAT(space.transact(none), HasError(Errc::invalid_argument));
  EXPECT_EQ(space.generation(), generation);
}

TEST_F(RegionLedgerTest, RetiredRegionsStayUntilTheNextChangeAndAreNotInItsDraft) {
  const auto first = entered(0);
  const auto second = entered(1);
  retire(first);
  EXPECT_THAT(ledger.retired(), ElementsAre(first));
  EXPECT_EQ(ledger.snapshot()->size(), 2U);
  VMSPACE_EXPECT_OK(ledger.transact([&](AddressSpaceBase& draft) -> Result<void> {
    EXPECT_EQ(draft.find_region(first->base()), nullptr);
    EXPECT_EQ(draft.size(), 1U);
    EXPECT_THAT(ledger.retired(), IsEmpty());  // this change takes them out
    return {};
  }));
  EXPECT_THAT(ledger.retired(), IsEmpty());
  EXPECT_EQ(ledger.snapshot()->size(), 1U);
}

TEST_F(RegionLedgerTest, EveryCallThatChangesTheSpaceTakesThemOut) {
  const auto parked = AddressSpaceRegion::make(bar(40)).value();
  const std::vector<std::function<void()>> changes = {
      [&] { VMSPACE_EXPECT_OK(space.insert_region(bar(0))); },
      [&] { VMSPACE_EXPECT_OK(space.move_region(GuestAddress{low}, GuestAddress{low + 1_MiB})); },
      [&] { VMSPACE_EXPECT_OK(space.remove_region(GuestAddress{low + 1_MiB})); },
      [&] { VMSPACE_EXPECT_OK(space.insert_parked_region(parked)); },
      [&] {
        VMSPACE_EXPECT_OK(space.move_regions({{parked, GuestAddress{low}}}));
      },
      [&] {
        VMSPACE_EXPECT_OK(
            space.place_region({.type = RegionType::device_memory}, {.size = 4_KiB}, "mmio_low"));
      },
      [&] { VMSPACE_EXPECT_OK(space.transact(nothing)); },
      [&] { VMSPACE_EXPECT_OK(ledger.collect()); }};
  for (const auto& change : changes) {
    const auto gone = entered(50);
    retire(gone);
    change();
    EXPECT_THAT(ledger.retired(), IsEmpty());
    EXPECT_EQ(space.find_region(gone->base()), nullptr);
  }
}

TEST_F(RegionLedgerTest, ParkedRegionsAreTakenOutToo) {
  const auto parked = space.insert_parked_region(AddressSpaceRegion::make(bar(0)).value()).value();
  retire(parked);
  EXPECT_EQ(ledger.snapshot()->parked().size(), 1U);
  VMSPACE_EXPECT_OK(ledger.collect());
  EXPECT_TRUE(ledger.snapshot()->parked().empty());
}

TEST_F(RegionLedgerTest, CollectChangesNothingWhenNothingIsRetired) {
  const std::uint64_t generation = space.generation();
  VMSPACE_EXPECT_OK(ledger.collect());
  EXPECT_EQ(space.generation(), generation);
  retire(entered(0));
  const std::uint64_t entered_one = space.generation();
  VMSPACE_EXPECT_OK(ledger.collect());
  EXPECT_EQ(space.generation(), entered_one + 1);
  EXPECT_TRUE(space.snapshot()->empty());
}

TEST_F(RegionLedgerTest, CollectInsideAChangeIsRefusedWhenThereIsSomethingToDo) {
  const auto region = entered(0);
  VMSPACE_EXPECT_OK(ledger.transact([&](AddressSpaceBase&) -> Result<void> {
    retire(region);
    EXPECT_THAT(ledger.collect(), HasError(Errc::would_deadlock));
    return {};
  }));
  EXPECT_THAT(ledger.retired(), ElementsAre(region));
  VMSPACE_EXPECT_OK(ledger.collect());
}

TEST_F(RegionLedgerTest, AChangeThatFailsOrThrowsKeepsThemForTheNext) {
  const auto first = entered(0);
  const auto second = entered(1);
  retire(first);
  retire(second);
  EXPECT_THAT(ledger.transact([](AddressSpaceBase&) -> Result<void> {
    return fail({.code = Errc::timed_out});
  }),
              HasError(Errc::timed_out));
  EXPECT_THAT(ledger.retired(), ElementsAre(first, second));
  EXPECT_THROW(static_cast<void>(ledger.transact(
                   [](AddressSpaceBase&) -> Result<void> { throw std::runtime_error("broken"); })),
               std::runtime_error);
  EXPECT_THAT(ledger.retired(), ElementsAre(first, second));
  EXPECT_EQ(ledger.snapshot()->size(), 2U);
  VMSPACE_EXPECT_OK(ledger.transact(nothing));
  EXPECT_TRUE(ledger.snapshot()->empty());
}

TEST_F(RegionLedgerTest, WhatIsRetiredDuringAChangeWaitsForTheNext) {
  const auto first = entered(0);
  const auto second = entered(1);
  retire(first);
  VMSPACE_EXPECT_OK(ledger.transact([&](AddressSpaceBase&) -> Result<void> {
    retire(second);
    return {};
  }));
  EXPECT_THAT(ledger.retired(), ElementsAre(second));
  EXPECT_EQ(ledger.snapshot()->size(), 1U);
  // One that fails has those that it did not take out, and those that came meanwhile.
  retire(entered(2));
  EXPECT_FALSE(ledger.transact([&](AddressSpaceBase&) -> Result<void> {
    retire(AddressSpaceRegion::make(bar(3)).value());
    return fail({.code = Errc::timed_out});
  }));
  EXPECT_THAT(ledger.retired(), SizeIs(2));
}

TEST_F(RegionLedgerTest, ARegionThatTheSpaceDoesNotHaveIsSkipped) {
  const auto removed = entered(0);
  VMSPACE_EXPECT_OK(space.remove_region(removed));
  const auto replaced = entered(0);  // it says the same, and is another one
  retire(removed);
  retire(AddressSpaceRegion::make(bar(7)).value());
  VMSPACE_EXPECT_OK(ledger.collect());
  EXPECT_EQ(space.find_region(replaced->base()), replaced);
  EXPECT_THAT(ledger.retired(), IsEmpty());
}

TEST_F(RegionLedgerTest, ARegionThatMovedSinceIsAnotherOneAndStays) {
  const auto before = entered(0);
  retire(before);
  // The move is a change, which takes it out first.
  EXPECT_THAT(space.move_region(before->base(), GuestAddress{low + 1_MiB}),
              HasError(Errc::not_found));
  // And failed, so that it is retired as before.
  EXPECT_THAT(ledger.retired(), ElementsAre(before));
  EXPECT_EQ(space.find_region(before->base()), before);
}

TEST_F(RegionLedgerTest, NothingRetiredIsNothing) {
  ledger.retire({});
  EXPECT_THAT(ledger.retired(), IsEmpty());
  const std::uint64_t generation = space.generation();
  VMSPACE_EXPECT_OK(ledger.collect());
  EXPECT_EQ(space.generation(), generation);
}

TEST_F(RegionLedgerTest, AllHandlesOfASpaceAreOneLedger) {
  AddressSpace handle = space;
  const std::unique_ptr<const RegionLedger> other = std::make_unique<AddressSpace>(space);
  const auto region = entered(0);
  retire(region);
  EXPECT_THAT(other->retired(), ElementsAre(region));
  VMSPACE_EXPECT_OK(handle.transact(&nothing));
  EXPECT_THAT(other->retired(), IsEmpty());
  EXPECT_TRUE(other->snapshot()->empty());
  const AddressSpace unrelated =
      AddressSpace::create(AddressSpaceLayout::x86_64({.phys_bits = 40}).value()).value();
  const auto mine = unrelated.insert_region(bar(0)).value();
  RegionList list;
  list.push_back(mine);
  unrelated.retire(std::move(list));
  handle = unrelated;
  EXPECT_THAT(handle.retired(), ElementsAre(mine));
  EXPECT_THAT(space.retired(), IsEmpty());
}

TEST_F(RegionLedgerTest, RegionsAreRetiredOnManyThreadsWhileOthersChange) {
  constexpr std::uint64_t threads = 4;
  constexpr std::uint64_t rounds = 200;
  std::vector<std::thread> running;
  std::atomic<bool> sound{true};
  for (std::uint64_t t = 0; t < threads; ++t) {
    running.emplace_back([&, t] {
      for (std::uint64_t round = 0; round < rounds; ++round) {
        // The place is free again: what was there is taken out by this very change.
        const auto region = space.insert_region(bar(t));
        if (!region) {
          sound = false;
          return;
        }
        RegionList list;
        list.push_back(*region);
        ledger.retire(std::move(list));
        if (round % 16 == t && !ledger.collect()) sound = false;
        static_cast<void>(ledger.retired());
      }
    });
  }
  for (std::thread& thread : running)
    thread.join();
  EXPECT_TRUE(sound);
  VMSPACE_EXPECT_OK(ledger.collect());
  EXPECT_TRUE(ledger.snapshot()->empty());
  EXPECT_THAT(ledger.retired(), IsEmpty());
}

TEST_F(RegionLedgerTest, AChangeThatFailsMeanwhileHidesNoRetiredRegion) {
  std::atomic<bool> done{false};
  std::thread failing([&] {
    while (!done) {
      static_cast<void>(ledger.transact(
          [](AddressSpaceBase&) -> Result<void> { return fail({.code = Errc::timed_out}); }));
      try {
        static_cast<void>(
            ledger.transact([](AddressSpaceBase&) -> Result<void> { throw std::bad_alloc(); }));
      } catch (const std::bad_alloc&) {
      }
    }
  });
  for (int round = 0; round < 2000; ++round) {
    const auto region = space.insert_region(bar(0));
    EXPECT_THAT(region, IsOk());
    if (!region) break;
    retire(*region);
    if (round % 2 == 0) continue;
    EXPECT_THAT(ledger.collect(), IsOk());
    const bool is_gone = space.find_region(GuestAddress{low}) == nullptr;
    EXPECT_TRUE(is_gone);
    if (!is_gone) break;
  }
  done = true;
  failing.join();
}

}  // namespace
}  // namespace vmspace::region_ledger_test
