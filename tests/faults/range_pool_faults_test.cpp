// SPDX-License-Identifier: Apache-2.0
//
// Memory runs out at every allocation that a call on a pool makes: the pool is as it was; and leases
// come back without asking for memory.

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/allocator/range_pool.hpp"

#include "faults/failing_new.hpp"

namespace vmspace::range_pool_faults_test {
namespace {

using test::asked;
using test::fail_each_allocation;
using test::granted;

const char* const long_tag = "a tag that does not fit into a string: nic0";

TEST(RangePoolFaults, AFailedCallLeavesThePoolAsItWas) {
  // At some of these sizes a node is full, and the call splits it.
  for (std::uint64_t n = 0; n < 70; ++n) {
    const RangePool pool = *RangePool::create("numbers", {Range::of(0, 999)});
    std::vector<Lease> leases;
    for (std::uint64_t i = 0; i < n; ++i)
      leases.push_back(*pool.acquire_at(Range::point(2 * i + 1), "held"));
    const IntervalTree<std::string> before = pool.snapshot();
    const auto expect_unchanged = [&] {
      EXPECT_EQ(pool.snapshot(), before);
      EXPECT_TRUE(pool.check_invariants());
    };
    int failures = fail_each_allocation(
        [&] { EXPECT_TRUE(pool.acquire({.size = 10, .min = 500}, long_tag)); }, expect_unchanged);
    EXPECT_GT(failures, 0);  // the tag
    failures = fail_each_allocation(
        [&] { EXPECT_TRUE(pool.acquire_at(Range::of(500, 509), long_tag)); }, expect_unchanged);
    EXPECT_GT(failures, 0);
    expect_unchanged();
    fail_each_allocation([&] { EXPECT_EQ(pool.holders().size(), n); }, expect_unchanged);
    fail_each_allocation([&] { EXPECT_EQ(pool.snapshot(), before); }, expect_unchanged);
    bool inserted = false;
    fail_each_allocation([&] { inserted = pool.insert(Range::of(2000, 2009)).has_value(); },
                         expect_unchanged);
    EXPECT_TRUE(inserted);
  }
}

TEST(RangePoolFaults, AFailedCreateLeavesNothingBehind) {
  const std::vector<Range> ranges = {Range::of(0, 9), Range::of(20, 29)};
  EXPECT_GT(fail_each_allocation([&] { EXPECT_TRUE(RangePool::create(long_tag, ranges)); }, [] {}),
            0);
}

// What a tree learns takes memory in each of its inner nodes, once.
TEST(RangePoolFaults, LearnsTheAlignmentOfRequestsThatAreHardToMeet) {
  std::vector<Range> gaps;
  for (std::uint64_t i = 0; i < 3000; ++i)
    gaps.push_back(*Range::make(4 * i + 1, 4 * i + 3));
  const Range fit = Range::of(12'002, 12'004);
  gaps.push_back(fit);
  const RangePool pool = *RangePool::create("odd", gaps);
  std::vector<int> took;
  took.reserve(20);
  for (int i = 0; i < 20; ++i) {
    asked = 0;
    const auto lease = pool.acquire({.size = 3, .align = 2}, "3");
    took.push_back(asked);
    ASSERT_TRUE(lease);
    EXPECT_EQ(lease->range(), fit);
  }
  EXPECT_GT(std::ranges::max(took), took.back() + 5);
  EXPECT_TRUE(pool.check_invariants());
}

TEST(RangePoolFaults, LeasesComeBackWithoutAskingForMemory) {
  const RangePool pool = *RangePool::create("numbers", {Range::of(0, 9999)});
  std::vector<Lease> leases;
  for (int i = 0; i < 3000; ++i)
    leases.push_back(*pool.acquire({.size = 3}, long_tag));
  asked = 0;
  granted = 0;
  for (std::size_t i = 0; i < leases.size(); ++i) {
    Lease lease(std::move(leases[i * 1'009 % leases.size()]));
    if (i % 2 == 0) {
      EXPECT_TRUE(lease.release());
    }
  }
  granted = -1;
  EXPECT_EQ(asked, 0);
  EXPECT_TRUE(pool.check_invariants());
  EXPECT_EQ(pool.snapshot().size(), 1U);
}

TEST(RangePoolFaults, CallsThatFailAskForNoMemory) {
  const RangePool pool = *RangePool::create("numbers", {Range::of(0, 9)});
  Lease lease = *pool.acquire_at(Range::of(0, 4), long_tag);
  asked = 0;
  EXPECT_FALSE(pool.acquire({.size = 10}, "short"));
  EXPECT_FALSE(pool.acquire_at(Range::of(0, 9), "short"));
  EXPECT_FALSE(pool.insert(Range::of(0, 9)));
  EXPECT_TRUE(lease.release());
  EXPECT_FALSE(lease.release());
  EXPECT_EQ(asked, 0);
}

}  // namespace
}  // namespace vmspace::range_pool_faults_test
