// SPDX-License-Identifier: Apache-2.0
//
// Memory runs out at every allocation that copying or assigning a public type makes. A class keeps
// what it had. An aggregate of options is assigned member by member: it is left with members of
// either, whole ones, and takes the value when it is assigned again. Nothing that moves allocates.
//
// Every public type that owns memory and can be copied is here; views, readers, mappings and
// harvests can't be, and plain numbers own nothing.

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmspace.hpp"

#include "faults/failing_new.hpp"

namespace vmspace::special_members_test {
namespace {

using namespace literals;
using test::fail_each_allocation;

/// What assigning a T promises when memory runs out.
enum class Assignment { strong, by_member };

/// Too long to be kept inside of a string.
std::string long_name(const char* name) {
  return std::string("a name that does not fit into a string: ") + name;
}

AddressSpaceRegionPtr region(const char* name, std::uint64_t base) {
  return *AddressSpaceRegion::make(
      {.name = long_name(name),
       .base = GuestAddress{base},
       .size = 2_MiB,
       .backing = {.source = MemorySource::file, .path = "/" + long_name(name)},
       .owner = long_name("the owner")});
}

/// Two different values of each type.
template <typename T>
struct Example;

template <>
struct Example<BackingSpec> {
  static constexpr Assignment assignment = Assignment::by_member;
  static BackingSpec make(bool first) {
    return {.source = first ? MemorySource::file : MemorySource::hugetlbfs,
            .path = long_name(first ? "a" : "b, which is longer")};
  }
};

template <>
struct Example<RegionOptions> {
  static constexpr Assignment assignment = Assignment::by_member;
  static RegionOptions make(bool first) {
    return region(first ? "a" : "b, which is longer", 0)->options();
  }
};

template <>
struct Example<Aperture> {
  static constexpr Assignment assignment = Assignment::strong;  // one member allocates, the first
  static Aperture make(bool first) {
    return {long_name(first ? "a" : "b, which is longer"), Range::point(first ? 1 : 2),
            ApertureUse::mmio};
  }
};

template <>
struct Example<Hole> {
  static constexpr Assignment assignment = Assignment::strong;  // one member allocates, the first
  static Hole make(bool first) {
    return {long_name(first ? "a" : "b, which is longer"), Range::point(first ? 1 : 2)};
  }
};

bool operator==(const LayoutOptions& a, const LayoutOptions& b) {
  return a.phys_max == b.phys_max && a.ram == b.ram && a.apertures == b.apertures &&
         a.holes == b.holes;
}

template <>
struct Example<LayoutOptions> {
  static constexpr Assignment assignment = Assignment::by_member;
  static LayoutOptions make(bool first) {
    return {.phys_max = first ? 1_TiB : 2_TiB,
            .ram = Range::of(0, 1_GiB - 1),
            .apertures = {Aperture{long_name(first ? "a" : "b, which is longer"),
                                   Range::point(1_GiB), ApertureUse::mmio}},
            .holes = {Hole{long_name(first ? "c" : "d, which is longer"), Range::point(2_GiB)}}};
  }
};

template <>
struct Example<AddressSpaceLayout> {
  static constexpr Assignment assignment = Assignment::strong;
  static AddressSpaceLayout make(bool first) {
    return *AddressSpaceLayout::make(Example<LayoutOptions>::make(first));
  }
};

template <>
struct Example<AddressSpaceBase> {
  static constexpr Assignment assignment = Assignment::strong;
  static AddressSpaceBase make(bool first) {
    AddressSpaceBase space(Example<AddressSpaceLayout>::make(first));
    for (std::uint64_t i = 0; i < (first ? 20 : 30); ++i)
      VMSPACE_EXPECT_OK(space.insert_region(region("ram", i * 4_MiB)));
    return space;
  }
};

bool operator==(const RegionDiff& a, const RegionDiff& b) {
  const auto same = [](const AddressSpaceRegionPtr& left, const AddressSpaceRegionPtr& right) {
    return *left == *right;
  };
  return std::ranges::equal(a.removed, b.removed, same) &&
         std::ranges::equal(a.added, b.added, same);
}

template <>
struct Example<RegionDiff> {
  static constexpr Assignment assignment = Assignment::by_member;
  static RegionDiff make(bool first) {
    if (first) return {.removed = {region("a", 0)}, .added = {region("c", 2_MiB)}};
    return {.removed = {region("a", 0), region("b", 2_MiB)}, .added = {region("d", 4_MiB)}};
  }
};

bool operator==(const DeviceRange& a, const DeviceRange& b) {
  return a.name == b.name && a.range == b.range && a.owner == b.owner;
}

template <>
struct Example<DeviceRange> {
  static constexpr Assignment assignment = Assignment::by_member;
  static DeviceRange make(bool first) {
    return {long_name(first ? "a" : "b, which is longer"), Range::point(first ? 1 : 2),
            long_name(first ? "c" : "d, which is longer")};
  }
};

template <>
struct Example<PlacementRequest> {
  static constexpr Assignment assignment = Assignment::strong;  // one member allocates, the first
  static PlacementRequest make(bool first) {
    return {.name = long_name(first ? "a" : "b, which is longer"),
            .kind = PlacementKind::ram,
            .size = first ? 1_GiB : 2_GiB};
  }
};

template <>
struct Example<Placement> {
  static constexpr Assignment assignment = Assignment::by_member;
  static Placement make(bool first) {
    const GuestRange piece{GuestAddress{0}, first ? 1_GiB : 2_GiB};
    return {.name = long_name(first ? "a" : "b, which is longer"),
            .kind = PlacementKind::ram,
            .pieces = std::vector<GuestRange>(first ? 1 : 2, piece)};
  }
};

template <>
struct Example<LayoutPlan> {
  static constexpr Assignment assignment = Assignment::by_member;
  static LayoutPlan make(bool first) {
    const Placement placement = Example<Placement>::make(first);
    return {.placements = {placement}, .pieces = {{placement.pieces.front(), 0}}};
  }
};

template <>
struct Example<IntervalTree<std::string>> {
  static constexpr Assignment assignment = Assignment::strong;
  static IntervalTree<std::string> make(bool first) {
    IntervalTree<std::string> tree;
    VMSPACE_EXPECT_OK(tree.insert(Range::of(0, 999)));
    for (int i = 0; i < (first ? 40 : 60); ++i)
      VMSPACE_EXPECT_OK(tree.allocate({.size = 3}, long_name("value")));
    return tree;
  }
};

template <>
struct Example<NumaPolicy> {
  static constexpr Assignment assignment = Assignment::by_member;
  static NumaPolicy make(bool first) {
    return first ? NumaPolicy{NumaMode::bind, {0, 1}} : NumaPolicy{NumaMode::preferred, {2, 3, 4}};
  }
};

template <typename T>
struct SpecialMembers : testing::Test {};

using OwnersOfMemory =
    testing::Types<BackingSpec, RegionOptions, Aperture, Hole, LayoutOptions, AddressSpaceLayout,
                   AddressSpaceBase, RegionDiff, DeviceRange, PlacementRequest, Placement,
                   LayoutPlan, IntervalTree<std::string>, NumaPolicy>;
TYPED_TEST_SUITE(SpecialMembers, OwnersOfMemory);

TYPED_TEST(SpecialMembers, CopyingGivesAWholeCopyOrNothing) {
  const TypeParam value = Example<TypeParam>::make(true);
  const int failures = fail_each_allocation(
      [&] {
        const TypeParam copy(value);
        EXPECT_TRUE(copy == value);
      },
      [&] { EXPECT_TRUE(value == Example<TypeParam>::make(true)); });
  EXPECT_GT(failures, 0);
}

TYPED_TEST(SpecialMembers, AssigningKeepsWhatWasThereWhenMemoryRunsOut) {
  const TypeParam before = Example<TypeParam>::make(true);
  const TypeParam after = Example<TypeParam>::make(false);
  ASSERT_FALSE(before == after);
  // The target is new for each attempt, so that it has no memory of its own from the one before.
  for (int granted = 0;; ++granted) {
    TypeParam target = before;
    test::granted = granted;
    try {
      target = after;
      test::granted = -1;
      EXPECT_TRUE(target == after);
      EXPECT_GT(granted, 0);
      break;
    } catch (const std::bad_alloc&) {
      test::granted = -1;
      if (Example<TypeParam>::assignment == Assignment::strong) {
        EXPECT_TRUE(target == before);
      }
      target = after;
      EXPECT_TRUE(target == after);
    }
  }
}

TYPED_TEST(SpecialMembers, AssigningToItselfChangesNothing) {
  TypeParam value = Example<TypeParam>::make(true);
  const TypeParam& self = value;
  value = self;
  EXPECT_TRUE(value == Example<TypeParam>::make(true));
}

TYPED_TEST(SpecialMembers, MovingAndDestroyingNeedNoMemory) {
  static_assert(std::is_nothrow_move_constructible_v<TypeParam> &&
                std::is_nothrow_move_assignable_v<TypeParam> &&
                std::is_nothrow_destructible_v<TypeParam>);
  TypeParam value = Example<TypeParam>::make(true);
  const TypeParam expected = value;
  test::granted = 0;
  TypeParam moved(std::move(value));
  value = std::move(moved);
  { const TypeParam destroyed(std::move(value)); }
  test::granted = -1;
  value = expected;  // what was moved from may be assigned to
  EXPECT_TRUE(value == expected);
}

// Handles share what they name: copying one needs no memory, so that assigning one can't fail.
template <typename Handle>
void expect_free_of_allocations(const Handle& value, const Handle& other) {
  static_assert(std::is_nothrow_move_constructible_v<Handle> &&
                std::is_nothrow_move_assignable_v<Handle>);
  test::granted = 0;
  {
    Handle copy(value);
    copy = other;
    copy = value;
    Handle moved(std::move(copy));
    copy = std::move(moved);
  }
  test::granted = -1;
}

TEST(SpecialMembersOfHandles, NeedNoMemory) {
  const AddressSpaceBase base(
      *AddressSpaceLayout::make({.phys_max = 1_GiB - 1, .ram = Range::of(0, 1_GiB - 1)}));
  const AddressSpace space(base);
  expect_free_of_allocations(space, AddressSpace(base));
  expect_free_of_allocations(RegionMove{region("a", 0), GuestAddress{2_MiB}},
                             RegionMove{region("b", 2_MiB), std::nullopt});
  expect_free_of_allocations(*RangePool::create(long_name("a"), {Range::of(0, 9)}),
                             *RangePool::create(long_name("b"), {}));
  expect_free_of_allocations(Published<std::string>(long_name("a")),
                             Published<std::string>(long_name("b")));
  ASSERT_THAT(space.insert_region(
                  {.name = "ram", .size = 2_MiB, .backing = {.source = MemorySource::shmem}}),
              IsOk());
  expect_free_of_allocations(*GuestMemory::map(*space.snapshot()), GuestMemory());
  expect_free_of_allocations(*Backing::open({.source = MemorySource::anon}, 2_MiB),
                             *Backing::open({.source = MemorySource::shmem}, 2_MiB));
  expect_free_of_allocations(*HostArena::reserve({.size = 2_MiB}),
                             *HostArena::reserve({.size = 4_MiB}));
}

}  // namespace
}  // namespace vmspace::special_members_test
