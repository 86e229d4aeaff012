// SPDX-License-Identifier: Apache-2.0

#include "vmspace/allocator/range_pool.hpp"

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/testing.hpp"
#include "vmspace/text.hpp"

namespace vmspace::range_pool_test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

static_assert(std::is_nothrow_move_constructible_v<Lease>);
static_assert(std::is_nothrow_move_assignable_v<Lease>);
static_assert(!std::is_copy_constructible_v<Lease> && !std::is_copy_assignable_v<Lease>);
static_assert(std::is_nothrow_copy_constructible_v<RangePool>);
static_assert(std::is_nothrow_copy_assignable_v<RangePool>);

RangePool pool_of(Range range) {
  return *RangePool::create("GSI", {range});
}

TEST(RangePool, ALeaseReturnsItsRangeWhenItIsDestroyed) {
  const RangePool pool = pool_of(Range::of(5, 7));
  {
    const auto nic = pool.acquire({.size = 1}, "nic0");
    const auto disk = pool.acquire({.size = 2}, "disk0");
    ASSERT_TRUE(nic && disk);
    EXPECT_EQ(nic->range(), Range::point(5));
    EXPECT_EQ(nic->tag(), "nic0");
    EXPECT_THAT(pool.holders(), ElementsAre(RangeHolder{Range::point(5), "nic0"},
                                            RangeHolder{Range::of(6, 7), "disk0"}));
    EXPECT_THAT(pool.acquire({.size = 1}, "gpu0"), HasError(Errc::no_space));
    VMSPACE_EXPECT_OK(pool.check_invariants());
  }
  EXPECT_THAT(pool.holders(), IsEmpty());
  EXPECT_EQ(pool.snapshot().stats().free_amount, 3U);
  VMSPACE_EXPECT_OK(pool.acquire({.size = 3}, "all"));
}

TEST(RangePool, AcquiresByConstraintAndAtAnAddress) {
  const RangePool pool = pool_of(Range::of(0, 0xff));
  const auto aligned = pool.acquire({.size = 0x10, .min = 1, .align = 0x10}, "a");
  ASSERT_TRUE(aligned);
  EXPECT_EQ(aligned->range(), Range::of(0x10, 0x1f));
  const auto exact = pool.acquire_at(Range::of(0x21, 0x22), "b");
  ASSERT_TRUE(exact);
  EXPECT_EQ(exact->range(), Range::of(0x21, 0x22));
  const auto last = pool.acquire({.size = 1, .policy = AllocPolicy::last_match}, std::string("c"));
  ASSERT_TRUE(last);
  EXPECT_EQ(last->range(), Range::point(0xff));
}

TEST(RangePool, CopiesAreTheSamePool) {
  RangePool pool = pool_of(Range::of(0, 9));
  const RangePool copy = pool;
  EXPECT_TRUE(copy.same_as(pool));
  const auto lease = copy.acquire({.size = 10}, "all");
  EXPECT_FALSE(pool.acquire({.size = 1}, "none"));

  RangePool other = pool_of(Range::of(0, 9));
  EXPECT_FALSE(other.same_as(pool));
  other = pool;
  EXPECT_TRUE(other.same_as(pool));
  EXPECT_FALSE(other.acquire({.size = 1}, "none"));
}

TEST(RangePool, AHandleThatWasMovedFromIsStillOne) {
  RangePool pool = pool_of(Range::of(0, 9));
  const RangePool moved = std::move(pool);
  EXPECT_EQ(pool.name(), "GSI");  // NOLINT(bugprone-use-after-move): this is what is tested
  VMSPACE_EXPECT_OK(pool.acquire({.size = 10}, "all"));
  RangePool assigned = pool_of(Range::of(0, 0));
  assigned = std::move(pool);
  EXPECT_TRUE(pool.same_as(assigned));  // NOLINT(bugprone-use-after-move)
  EXPECT_TRUE(moved.same_as(pool));
}

TEST(RangePool, RangesCanBeAddedLater) {
  const RangePool pool = *RangePool::create("slots", {});
  EXPECT_THAT(pool.acquire({.size = 1}, "a"), HasError(Errc::no_space));
  ASSERT_THAT(pool.insert(Range::of(0, 3)), IsOk());
  const auto lease = pool.acquire({.size = 4}, "a");
  ASSERT_TRUE(lease);
  ASSERT_THAT(pool.insert(Range::of(10, 13)), IsOk());
  EXPECT_EQ(pool.acquire({.size = 4}, "b")->range(), Range::of(10, 13));

  const auto again = pool.insert(Range::of(3, 9));
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().message(),
            "RangePool::insert: \"slots\": [0x3, 0x9] overlaps [0x0, 0x3] (\"a\")");
}

TEST(RangePool, AnAddedRangeIsRefusedForTheLowestOneInItsWay) {
  const RangePool pool = *RangePool::create("slots", {Range::of(0, 9), Range::of(20, 29)});
  const auto nic = pool.acquire_at(Range::of(4, 5), "nic0");
  const auto disk = pool.acquire_at(Range::of(2, 3), "disk0");
  ASSERT_TRUE(nic && disk);
  EXPECT_EQ(pool.insert(Range::of(2, 40)).error().message(),
            "RangePool::insert: \"slots\": [0x2, 0x28] overlaps [0x2, 0x3] (\"disk0\")");
  EXPECT_EQ(pool.insert(Range::of(1, 40)).error().message(),
            "RangePool::insert: \"slots\": [0x1, 0x28] overlaps [0x0, 0x1]");
  EXPECT_EQ(pool.insert(Range::of(7, 40)).error().message(),
            "RangePool::insert: \"slots\": [0x7, 0x28] overlaps [0x6, 0x9]");
}

TEST(RangePool, CanNotBeCreatedOfRangesThatOverlap) {
  const auto pool = RangePool::create("GSI", {Range::of(0, 9), Range::of(9, 12)});
  ASSERT_FALSE(pool);
  EXPECT_EQ(pool.error().message(), "RangePool::create: \"GSI\": [0x9, 0xc] overlaps [0x0, 0x9]");
  EXPECT_TRUE(RangePool::create("GSI", {Range::of(0, 9), Range::of(10, 12)}));
}

TEST(RangePool, ErrorsNameThePoolAndTheHolder) {
  const RangePool pool = pool_of(Range::of(5, 9));
  const auto nic = pool.acquire_at(Range::of(6, 7), "nic0");
  const auto disk = pool.acquire_at(Range::point(8), "disk0");
  ASSERT_TRUE(nic && disk);
  const auto snapshot = pool.snapshot();
  EXPECT_EQ(pool.acquire_at(Range::of(5, 9), "gpu0").error().message(),
            "RangePool::acquire_at: \"GSI\": wrong state: [0x5, 0x9] conflicts with [0x6, 0x7] "
            "(part of the range is already taken: \"nic0\")");
  EXPECT_EQ(pool.acquire_at(Range::of(9, 10), "gpu0").error().message(),
            "RangePool::acquire_at: \"GSI\": not found: [0x9, 0xa] (part of the range is not in "
            "the tree)");
  // The window's lowest address is held, which is not what is wrong.
  EXPECT_EQ(pool.acquire({.size = 2, .min = 6}, "gpu0").error().message(),
            "RangePool::acquire: \"GSI\": no space for 0x2 in [0x6, 0xffffffffffffffff]; the "
            "largest free piece is [0x9, 0x9]");
  EXPECT_EQ(pool.acquire({.size = 0}, "gpu0").error().message(),
            "RangePool::acquire: \"GSI\": size is zero");
  EXPECT_EQ(pool.snapshot(), snapshot);
}

TEST(Lease, OutlivesTheHandlesOfItsPool) {
  std::optional<Lease> lease;
  {
    const RangePool pool = pool_of(Range::of(0, 9));
    lease = *pool.acquire({.size = 2}, "nic0");
  }
  EXPECT_EQ(lease->range(), Range::of(0, 1));
  EXPECT_EQ(lease->tag(), "nic0");
  VMSPACE_EXPECT_OK(lease->release());
}

TEST(Lease, LeavesItsRangeTakenWhenItIsAbandoned) {
  const RangePool pool = pool_of(Range::of(0, 9));
  {
    Lease lease = *pool.acquire({.size = 2}, "nic0");
    lease.abandon();
    EXPECT_FALSE(lease.is_held());
    EXPECT_THAT(lease.release(), HasError(Errc::bad_state));
    lease.abandon();
  }
  EXPECT_THAT(pool.holders(), ElementsAre(RangeHolder{Range::of(0, 1), "nic0"}));
  VMSPACE_EXPECT_OK(pool.check_invariants());
}

TEST(Lease, CanBeReleasedOnce) {
  const RangePool pool = pool_of(Range::of(0, 9));
  auto lease = *pool.acquire({.size = 2}, "nic0");
  EXPECT_TRUE(lease.is_held());
  VMSPACE_EXPECT_OK(lease.release());
  EXPECT_FALSE(lease.is_held());
  EXPECT_EQ(lease.tag(), "");
  EXPECT_THAT(pool.holders(), IsEmpty());

  // Another lease of the range is none of its business.
  const auto other = pool.acquire_at(lease.range(), "disk0");
  ASSERT_TRUE(other);
  const auto again = lease.release();
  ASSERT_FALSE(again);
  EXPECT_THAT(again, HasError(Errc::bad_state));
  EXPECT_EQ(
      again.error().message(),
      "Lease::release: wrong state: [0x0, 0x1] (the lease was already released or moved from)");
  EXPECT_THAT(pool.holders(), ElementsAre(RangeHolder{Range::of(0, 1), "disk0"}));
}

TEST(Lease, ThatWasMovedFromHoldsNothing) {
  const RangePool pool = pool_of(Range::of(0, 9));
  Lease first = *pool.acquire({.size = 2}, "nic0");
  {
    const Lease second(std::move(first));
    EXPECT_FALSE(first.is_held());  // NOLINT(bugprone-use-after-move): this is what is tested
    EXPECT_THAT(first.release(), HasError(Errc::bad_state));
    EXPECT_TRUE(second.is_held());
    EXPECT_EQ(second.tag(), "nic0");
  }
  EXPECT_THAT(pool.holders(), IsEmpty());
  first = *pool.acquire({.size = 3}, "nic1");
  EXPECT_EQ(first.range(), Range::of(0, 2));
  VMSPACE_EXPECT_OK(first.release());
}

TEST(Lease, ThatIsAssignedToReturnsWhatItHeld) {
  const RangePool pool = pool_of(Range::of(0, 9));
  Lease lease = *pool.acquire({.size = 2}, "nic0");
  lease = *pool.acquire({.size = 3}, "nic1");
  EXPECT_THAT(pool.holders(), ElementsAre(RangeHolder{Range::of(2, 4), "nic1"}));
  // Of another pool, whose handles are gone.
  lease = *pool_of(Range::of(100, 109)).acquire({.size = 1}, "far");
  EXPECT_THAT(pool.holders(), IsEmpty());
  EXPECT_EQ(lease.range(), Range::point(100));
}

TEST(Lease, ThatIsMovedToItselfKeepsItsRange) {
  const RangePool pool = pool_of(Range::of(0, 9));
  Lease lease = *pool.acquire({.size = 2}, "nic0");
  Lease& self = lease;
  lease = std::move(self);
  EXPECT_TRUE(lease.is_held());
  EXPECT_EQ(lease.tag(), "nic0");
  EXPECT_THAT(pool.holders(), ElementsAre(RangeHolder{Range::of(0, 1), "nic0"}));
}

TEST(Lease, CanBeDestroyedOnAnotherThread) {
  const RangePool pool = pool_of(Range::of(0, 9));
  std::thread([lease = *pool.acquire({.size = 2}, "nic0")] {
    EXPECT_TRUE(lease.is_held());
  }).join();
  EXPECT_THAT(pool.holders(), IsEmpty());
}

TEST(RangePool, ListsWhatIsFree) {
  const RangePool pool = pool_of(Range::of(0, 0xf));
  const Lease lease = *pool.acquire_at(Range::of(4, 5), "nic0");
  EXPECT_THAT(pool.free_ranges(), ElementsAre(Range::of(0, 3), Range::of(6, 0xf)));
}

TEST(RangePool, PrintsItsNameAndItsRanges) {
  const RangePool pool = pool_of(Range::of(0, 0xf));
  Lease lease = *pool.acquire({.size = 2}, "nic0");
  EXPECT_EQ(to_text(pool), "GSI: [0x0-0x1] nic0 | free 0xe");
  EXPECT_EQ(to_text(pool.holders()[0]), "[0x0-0x1] nic0");
  EXPECT_EQ(to_text(lease), "[0x0-0x1] nic0");
  ASSERT_THAT(lease.release(), IsOk());
  EXPECT_EQ(to_text(lease), "released");
}

}  // namespace
}  // namespace vmspace::range_pool_test
