// SPDX-License-Identifier: Apache-2.0
//
// Memory runs out at every allocation that a call on an address space makes: the space, its
// generation and its readers are as they were.

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/address_space.hpp"
#include "vmspace/base/literals.hpp"

#include "faults/failing_new.hpp"

namespace vmspace::address_space_faults_test {
namespace {

using namespace literals;
using test::fail_each_allocation;

AddressSpaceLayout pc() {
  return *AddressSpaceLayout::x86_64({.phys_bits = 46});
}

RegionOptions bar(std::uint64_t base, std::uint64_t size) {
  return {.name = "a name that is too long to be kept inside of a string",
          .type = RegionType::device_memory,
          .base = GuestAddress{base},
          .size = size};
}

/// 100 BARs of 64 KiB with gaps of 64 KiB between, and one that is parked.
AddressSpaceBase filled() {
  AddressSpaceBase space(pc());
  for (std::uint64_t i = 0; i < 100; ++i) {
    EXPECT_TRUE(space.insert_region(bar(0xc000'0000 + i * 128_KiB, 64_KiB)));
  }
  EXPECT_TRUE(space.insert_parked_region(*AddressSpaceRegion::make(bar(0, 64_KiB))));
  return space;
}

/// Makes each allocation of `change` fail once on a copy of filled(); `change` must need some.
template <typename Change>
void expect_strong_guarantee(Change change) {
  const AddressSpaceBase before = filled();
  AddressSpaceBase space = before;
  const int failures = fail_each_allocation([&] { ASSERT_TRUE(change(space)); },
                                            [&] {
                                              EXPECT_EQ(space, before);
                                              EXPECT_TRUE(space.check_invariants());
                                            });
  EXPECT_GT(failures, 0);
  EXPECT_NE(space, before);
  EXPECT_TRUE(space.check_invariants());
}

TEST(AddressSpaceFaults, EveryChangeOfASpaceHappensWhollyOrNotAtAll) {
  expect_strong_guarantee(
      [](AddressSpaceBase& space) { return space.insert_region(bar(0xc001'0000, 4_KiB)); });
  expect_strong_guarantee([](AddressSpaceBase& space) {
    return space.move_region(GuestAddress{0xc000'0000}, GuestAddress{0xf000'0000});
  });
  expect_strong_guarantee([](AddressSpaceBase& space) {
    return space.move_region(GuestAddress{0xc000'0000}, GuestAddress{0xc000'8000});
  });
  // A swap, with a region that is parked and one that comes back from parking.
  expect_strong_guarantee([](AddressSpaceBase& space) {
    const AddressSpaceRegionPtr first = *space.begin();
    const AddressSpaceRegionPtr second = *std::next(space.begin(), 1);
    const AddressSpaceRegionPtr third = *std::next(space.begin(), 2);
    return space.move_regions({{first, second->base()},
                               {second, first->base()},
                               {third, std::nullopt},
                               {space.parked().front(), third->base()}});
  });
  // Every region, to a place where none has been: the first have their places when memory runs out.
  expect_strong_guarantee([](AddressSpaceBase& space) {
    std::vector<RegionMove> moves;
    for (const AddressSpaceRegionPtr& region : space)
      moves.push_back({.region = region, .to = region->base().checked_add(256_MiB)});
    return space.move_regions(moves);
  });
  expect_strong_guarantee([](AddressSpaceBase& space) {
    return space.move_regions({{space.parked().front(), GuestAddress{0xf000'0000}}});
  });
  expect_strong_guarantee([](AddressSpaceBase& space) {
    return space.move_regions({{*space.begin(), std::nullopt}});
  });
  expect_strong_guarantee([](AddressSpaceBase& space) {
    return space.insert_parked_region(*AddressSpaceRegion::make(bar(0, 4_KiB)));
  });
  expect_strong_guarantee([](AddressSpaceBase& space) {
    return space.place_region(bar(0, 64_KiB), {.size = 64_KiB, .align = 64_KiB}, "mmio_low");
  });
}

TEST(AddressSpaceFaults, RemovingNeedsNoMemory) {
  AddressSpaceBase space = filled();
  test::granted = 0;
  const auto removed = space.remove_region(GuestAddress{0xc000'0000});
  const auto removed_by_pointer = space.remove_region(*space.begin());
  const auto removed_parked = space.remove_region(space.parked().front());
  test::granted = -1;
  ASSERT_TRUE(removed);
  ASSERT_TRUE(removed_by_pointer);
  ASSERT_TRUE(removed_parked);
  EXPECT_EQ(space.size(), 98U);
  EXPECT_TRUE(space.parked().empty());
}

TEST(AddressSpaceFaults, ARegionAndItsReferenceCountAreOneAllocation) {
  EXPECT_EQ(
      fail_each_allocation(
          [] { ASSERT_TRUE(AddressSpaceRegion::make({.name = "ram", .size = 4_KiB})); }, [] {}),
      1);
}

TEST(AddressSpaceFaults, FindingAPlaceNeedsNoMemory) {
  const AddressSpaceBase space = filled();
  test::granted = 0;
  const auto place = space.find_place(RegionType::device_memory, {.size = 64_KiB}, "mmio_low");
  test::granted = -1;
  ASSERT_TRUE(place);
  EXPECT_EQ(place->min(), 0xc001'0000U);
}

TEST(AddressSpaceFaults, AnUpdateThatRunsOutOfMemoryPublishesNothing) {
  const AddressSpace space{filled()};
  auto reader = space.reader();
  const AddressSpaceBase* seen = &reader.current();
  const int failures =
      fail_each_allocation([&] { ASSERT_TRUE(space.insert_region(bar(0xc001'0000, 4_KiB))); },
                           [&] {
                             EXPECT_EQ(space.generation(), 1U);
                             EXPECT_EQ(&reader.current(), seen);
                             EXPECT_EQ(*seen, filled());
                           });
  EXPECT_GT(failures, 3);
  EXPECT_EQ(space.generation(), 2U);
  EXPECT_EQ(reader.current().size(), 101U);
  EXPECT_TRUE(space.wait_released(std::chrono::seconds(0)));
}

TEST(AddressSpaceFaults, AReaderOrSnapshotThatFindsNoMemoryHoldsNothing) {
  const AddressSpace space{filled()};
  EXPECT_GT(fail_each_allocation([&] { static_cast<void>(space.snapshot()); }, [] {}), 1);
  EXPECT_GT(fail_each_allocation([&] { static_cast<void>(space.reader()); }, [] {}), 0);
  ASSERT_TRUE(space.remove_region(GuestAddress{0xc000'0000}));
  EXPECT_TRUE(space.wait_released(std::chrono::seconds(0)));
}

TEST(AddressSpaceFaults, ReadingParkingAndWaitingNeedNoMemory) {
  const AddressSpace space{filled()};
  auto reader = space.reader();
  EXPECT_EQ(reader.current().size(), 100U);
  auto snapshot = space.snapshot();
  ASSERT_TRUE(space.remove_region(GuestAddress{0xc000'0000}));
  test::granted = 0;
  const std::size_t size = reader.current().size();
  const bool found = reader.current().find_region(GuestAddress{0xc002'0000}) != nullptr;
  reader.park();
  snapshot.reset();
  const bool released = space.wait_released(std::chrono::seconds(0)).has_value();
  test::granted = -1;
  EXPECT_EQ(size, 99U);
  EXPECT_TRUE(found);
  EXPECT_TRUE(released);
}

// What a tree learns takes memory in each of its inner nodes, once.
TEST(AddressSpaceFaults, PlacingLearnsTheAlignmentOfRequestsThatAreHardToMeet) {
  AddressSpaceBase space(pc());
  // Between them three pages, at odd ones.
  for (std::uint64_t i = 0; i < 3000; ++i)
    ASSERT_TRUE(space.insert_region(bar(0xc000'0000 + i * 16_KiB, 4_KiB)));
  std::vector<int> took;
  took.reserve(20);
  for (int i = 0; i < 20; ++i) {
    test::asked = 0;
    const auto placed =
        space.place_region(bar(0, 12_KiB), {.size = 12_KiB, .align = 8_KiB}, "mmio_low");
    took.push_back(test::asked);
    ASSERT_TRUE(placed);
    EXPECT_EQ((*placed)->base(), GuestAddress{0xc000'0000 + 2999 * 16_KiB + 8_KiB});
    ASSERT_TRUE(space.remove_region(*placed));
  }
  EXPECT_GT(std::ranges::max(took), took.back() + 5);
  EXPECT_TRUE(space.check_invariants());
}

}  // namespace
}  // namespace vmspace::address_space_faults_test
