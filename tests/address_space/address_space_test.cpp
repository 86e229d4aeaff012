// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space.hpp"

#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::address_space_test {
namespace {

using namespace literals;
using namespace std::chrono_literals;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pointee;
using ::testing::Property;

AddressSpaceLayout pc() {
  return *AddressSpaceLayout::x86_64({.phys_bits = 46});
}

RegionOptions ram(std::uint64_t base, std::uint64_t size) {
  return {.name = "ram", .base = GuestAddress{base}, .size = size};
}

RegionOptions bar(std::uint64_t base) {
  return {
      .name = "bar", .type = RegionType::device_memory, .base = GuestAddress{base}, .size = 64_KiB};
}

AddressSpace example() {
  auto space = AddressSpace::create(pc(), {*AddressSpaceRegion::make(ram(0, 1_GiB)),
                                           *AddressSpaceRegion::make(bar(0xc000'0000))});
  EXPECT_TRUE(space);
  return *space;
}

TEST(AddressSpace, IsMadeFromALayoutAndRegions) {
  const auto empty = AddressSpace::create(pc());
  ASSERT_TRUE(empty);
  EXPECT_TRUE(empty->snapshot()->empty());
  EXPECT_EQ(empty->generation(), 1U);
  EXPECT_EQ(example().snapshot()->size(), 2U);
  EXPECT_EQ(example().generation(), 1U);
  const auto failed = AddressSpace::create(pc(), {*AddressSpaceRegion::make(ram(3_GiB, 4_KiB))});
  EXPECT_THAT(failed, HasError(Errc::overlap));
  EXPECT_EQ(AddressSpace(*example().snapshot()).snapshot()->size(), 2U);
}

TEST(AddressSpace, EachChangeIsPublishedOnce) {
  const AddressSpace space = example();
  VMSPACE_EXPECT_OK(space.insert_region(ram(4_GiB, 1_GiB)));
  EXPECT_EQ(space.generation(), 2U);
  VMSPACE_EXPECT_OK(space.insert_region(*AddressSpaceRegion::make(ram(5_GiB, 1_GiB))));
  EXPECT_EQ(space.generation(), 3U);
  EXPECT_EQ((*space.remove_region(GuestAddress{5_GiB}))->size(), 1_GiB);
  EXPECT_EQ(space.generation(), 4U);
  VMSPACE_EXPECT_OK(space.move_region(GuestAddress{0xc000'0000}, GuestAddress{0xd000'0000}));
  EXPECT_EQ(space.generation(), 5U);
  EXPECT_EQ((*space.place_region({.name = "bar", .type = RegionType::device_memory},
                                 {.size = 4_KiB}, "mmio_low"))
                ->base(),
            GuestAddress{0xc000'0000});
  EXPECT_EQ(space.generation(), 6U);
  EXPECT_EQ(space.snapshot()->size(), 4U);
  VMSPACE_EXPECT_OK(space.snapshot()->check_invariants());
}

TEST(AddressSpace, AChangeThatFailsLeavesSpaceGenerationAndReadersAsTheyWere) {
  const AddressSpace space = example();
  auto reader = space.reader();
  const AddressSpaceBase* seen = &reader.current();
  const AddressSpaceBase before = *seen;
  EXPECT_THAT(space.insert_region(ram(0, 4_KiB)), HasError(Errc::overlap));
  EXPECT_THAT(space.insert_region(ram(0, 0)), HasError(Errc::zero_size));
  EXPECT_THAT(space.remove_region(GuestAddress{0x1000}), HasError(Errc::not_found));
  EXPECT_THAT(space.move_region(GuestAddress{0}, GuestAddress{3_GiB}), HasError(Errc::overlap));
  EXPECT_THAT(space.place_region({}, {.size = 4_KiB}, "nowhere"), HasError(Errc::not_found));
  EXPECT_EQ(space.generation(), 1U);
  EXPECT_EQ(&reader.current(), seen);
  EXPECT_EQ(*seen, before);
}

TEST(AddressSpace, ATransactionThatFailsAtAnyEditChangesNothing) {
  using Edit = Result<void> (*)(AddressSpaceBase&);
  const std::vector<Edit> edits = {
      [](AddressSpaceBase& draft) {
        return draft.insert_region(ram(4_GiB, 1_GiB)).map([](auto&&) {});
      },
      [](AddressSpaceBase& draft) {
        return draft.insert_region(bar(0xd000'0000)).map([](auto&&) {});
      },
      [](AddressSpaceBase& draft) {
        return draft.move_region(GuestAddress{0xc000'0000}, GuestAddress{0xe000'0000})
            .map([](auto&&) {});
      },
      [](AddressSpaceBase& draft) {
        return draft.remove_region(GuestAddress{0}).map([](auto&&) {});
      },
      [](AddressSpaceBase& draft) {
        return draft
            .place_region({.name = "dax", .type = RegionType::dax_memory}, {.size = 1_GiB},
                          "mmio_high")
            .map([](auto&&) {});
      }};
  const AddressSpace space = example();
  const AddressSpaceBase before = *space.snapshot();
  auto reader = space.reader();
  const AddressSpaceBase* seen = &reader.current();
  for (std::size_t failing = 0; failing <= edits.size(); ++failing) {
    const auto result = space.transact([&](AddressSpaceBase& draft) -> Result<void> {
      for (std::size_t i = 0; i < edits.size(); ++i) {
        if (i == failing) break;
        VMSPACE_TRY(edits[i](draft));
      }
      VMSPACE_TRY(draft.insert_region(ram(3_GiB, 4_KiB)));  // fails always: the MMIO hole
      return {};
    });
    ASSERT_FALSE(result);
    EXPECT_THAT(result, HasError(Errc::overlap));
    EXPECT_EQ(space.generation(), 1U);
    EXPECT_EQ(&reader.current(), seen);
    EXPECT_EQ(*seen, before);
    EXPECT_EQ(*space.snapshot(), before);
  }
  const auto all = space.transact([&](AddressSpaceBase& draft) -> Result<void> {
    for (const Edit edit : edits) {
      if (auto ok = edit(draft); !ok) return ok;
    }
    return {};
  });
  EXPECT_TRUE(all);
  EXPECT_EQ(space.generation(), 2U);
  EXPECT_EQ(reader.current().size(), 4U);
  VMSPACE_EXPECT_OK(reader.current().check_invariants());
}

TEST(AddressSpace, AChangeFromInsideATransactionIsAnErrorAndNotADeadlock) {
  const AddressSpace space = example();
  const AddressSpace copy = space;
  std::vector<Errc> inner;
  const auto outer = space.transact([&](AddressSpaceBase& draft) -> Result<void> {
    inner.push_back(copy.insert_region(ram(8_GiB, 4_KiB)).error().code);
    inner.push_back(copy.remove_region(GuestAddress{0}).error().code);
    inner.push_back(copy.wait_released(1min).error().code);
    VMSPACE_TRY(draft.insert_region(ram(4_GiB, 1_GiB)));
    return {};
  });
  EXPECT_TRUE(outer);
  EXPECT_THAT(inner, ElementsAre(Errc::would_deadlock, Errc::would_deadlock, Errc::would_deadlock));
  EXPECT_EQ(space.generation(), 2U);
  EXPECT_EQ(space.snapshot()->size(), 3U);
}

TEST(AddressSpace, WithoutAnEditNothingIsDone) {
  const AddressSpace space = example();
  EXPECT_THAT(space.transact(RegionLedger::Edit()), HasError(Errc::invalid_argument));
  const RegionLedger& ledger = space;
  EXPECT_THAT(ledger.transact({}), HasError(Errc::invalid_argument));
  EXPECT_EQ(space.generation(), 1U);
}

TEST(AddressSpace, CopiesOfAHandleAreTheSameSpace) {
  const AddressSpace space = example();
  const AddressSpace copy = space;
  EXPECT_TRUE(copy.same_as(space));
  EXPECT_FALSE(copy.same_as(example()));
  ASSERT_THAT(copy.insert_region(ram(4_GiB, 1_GiB)), IsOk());
  EXPECT_EQ(space.snapshot()->size(), 3U);
}

TEST(AddressSpace, AMovedHandleIsStillAHandle) {
  AddressSpace space = example();
  const AddressSpace moved = std::move(space);
  EXPECT_TRUE(moved.same_as(space));
  EXPECT_EQ(space.snapshot()->size(), 2U);
}

TEST(AddressSpace, ARegionThatWasFoundOutlivesItsRemoval) {
  const AddressSpace space = example();
  const auto found = space.find_region(GuestAddress{0xc000'ffff});
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(space.find_region(GuestAddress{0xc001'0000}), nullptr);
  ASSERT_THAT(space.remove_region(GuestAddress{0xc000'0000}), IsOk());
  VMSPACE_EXPECT_OK(space.wait_released(0s));  // it keeps itself, not the space
  EXPECT_EQ(space.find_region(GuestAddress{0xc000'ffff}), nullptr);
  EXPECT_EQ(found->options(), bar(0xc000'0000));
}

TEST(AddressSpace, ASnapshotStaysAndItsDiffToTheNextSaysWhatChanged) {
  const AddressSpace space = example();
  const auto before = space.snapshot();
  ASSERT_THAT(space.remove_region(GuestAddress{0}), IsOk());
  ASSERT_THAT(space.insert_region(ram(4_GiB, 1_GiB)), IsOk());
  EXPECT_EQ(before->size(), 2U);
  const RegionDiff changes = diff(*before, *space.snapshot());
  EXPECT_THAT(changes.removed,
              ElementsAre(Pointee(Property(&AddressSpaceRegion::options, ram(0, 1_GiB)))));
  EXPECT_THAT(changes.added,
              ElementsAre(Pointee(Property(&AddressSpaceRegion::options, ram(4_GiB, 1_GiB)))));
}

TEST(AddressSpace, WaitsUntilNobodySeesTheOldSpace) {
  const AddressSpace space = example();
  std::optional<AddressSpace::Reader> vcpu = space.reader();
  std::thread([&] { EXPECT_EQ(vcpu->current().size(), 2U); }).join();
  ASSERT_THAT(space.remove_region(GuestAddress{0}), IsOk());
  EXPECT_THAT(space.wait_released(1ms), HasError(Errc::timed_out));
  vcpu->park();
  VMSPACE_EXPECT_OK(space.wait_released(0s));
  EXPECT_EQ(vcpu->current().size(), 1U);
}

TEST(AddressSpace, TwoThreadsThatInsertThroughCopiesOfOneHandleLoseNothing) {
  constexpr std::uint64_t each = 200;
  const AddressSpace space = *AddressSpace::create(pc());
  const auto insert_from = [space](std::uint64_t base) {
    for (std::uint64_t i = 0; i < each; ++i) {
      ASSERT_THAT(space.insert_region(ram(base + i * 8_KiB, 4_KiB)), IsOk());
    }
  };
  std::thread other(insert_from, 4_KiB);
  insert_from(0);
  other.join();
  EXPECT_EQ(space.snapshot()->size(), 2 * each);
  EXPECT_EQ(space.generation(), 2 * each + 1);
}

}  // namespace
}  // namespace vmspace::address_space_test
