// SPDX-License-Identifier: Apache-2.0
//
// The dirty logs of KvmMemslots: against KVM's rules, with every call failing.

#include <linux/kvm.h>

#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"

#include "vmm/fake_kvm.hpp"
#include "vmm/kvm_pieces.hpp"

namespace vmspace::kvm_dirty_log_test {
namespace {

using namespace literals;
using test::fail_each_allocation;
using testing::AllOf;
using testing::Each;
using testing::HasSubstr;

class KvmDirtyLogTest : public test::FakeKvm {
 protected:
  static constexpr std::uint64_t base = 1_GiB;
  static constexpr std::uint64_t size = 64_MiB;
  const GuestRange range{GuestAddress(base), size};
  const KvmMemory memory{.base = GuestAddress(base), .size = size, .host_address = host(1_GiB)};

  // Two slots: the largest that there is, and what remains. Slots are smaller here than KVM's,
  // whose logs would take most of the time; see ALogOfSlotsAsLargeAsKvmsReachesTheLastPage.
  const std::uint64_t largest = 1_GiB;
  const KvmMemory split{
      .base = GuestAddress(4_GiB), .size = largest + 64_MiB, .host_address = host(32_TiB)};
  const GuestRange split_range{split.base, split.size};

  KvmDirtyLogTest() { detail::max_pages_per_slot = largest / page_size; }
  ~KvmDirtyLogTest() override { detail::max_pages_per_slot = kvms_pages_per_slot_; }

  /// The pages that a log calls dirty, as numbers from its base.
  static std::vector<std::uint64_t> pages(const Result<KvmDirtyLog>& log) {
    std::vector<std::uint64_t> found;
    EXPECT_THAT(log, IsOk());
    if (!log) return found;
    EXPECT_EQ(log->unit, page_size);
    for (std::size_t word = 0; word < log->bits.size(); ++word) {
      for (std::uint64_t bits = log->bits[word]; bits != 0; bits &= bits - 1)
        found.push_back(64 * word + static_cast<std::uint64_t>(std::countr_zero(bits)));
    }
    return found;
  }

  [[nodiscard]] std::vector<std::uint32_t> flags() const {
    std::vector<std::uint32_t> all;
    for (const auto& [number, slot] : slots)
      all.push_back(slot.flags);
    return all;
  }

  const std::uint64_t kvms_pages_per_slot_ = detail::max_pages_per_slot;
};

using Pages = std::vector<std::uint64_t>;
constexpr std::uint32_t logged = KVM_MEM_LOG_DIRTY_PAGES;

TEST_F(KvmDirtyLogTest, SwitchesTheFlagOfLiveSlotsAndNothingElse) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(split));
  const auto before = slots;
  changes = 0;
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(split_range));
  EXPECT_EQ(changes, 2) << "one call a slot: none is deleted";
  EXPECT_THAT(flags(), Each(logged));
  EXPECT_EQ(memslots.used(), 2u);

  VMSPACE_ASSERT_OK(memslots.stop_dirty_log(split_range));
  EXPECT_EQ(changes, 4);
  EXPECT_EQ(slots, before);
  VMSPACE_EXPECT_OK(memslots.check_invariants());
}

TEST_F(KvmDirtyLogTest, ARangeSetWithItsLogOnCanBeSwitchedOff) {
  KvmMemslots memslots = make();
  KvmMemory from_the_start = memory;
  from_the_start.log_dirty = true;
  VMSPACE_ASSERT_OK(memslots.set(from_the_start));
  EXPECT_THAT(flags(), Each(logged));
  VMSPACE_ASSERT_OK(memslots.stop_dirty_log(range));
  EXPECT_THAT(flags(), Each(0u));
}

TEST_F(KvmDirtyLogTest, StartingTwiceKeepsTheLogAndStoppingTwiceDoesNothing) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(memory));
  VMSPACE_ASSERT_OK(memslots.stop_dirty_log(range));
  EXPECT_EQ(changes, 1);
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(range));
  guest_writes(base + 3 * page_size);
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(range));
  EXPECT_EQ(changes, 2);
  EXPECT_EQ(pages(memslots.fetch_dirty_log(range)), Pages{3});
}

TEST_F(KvmDirtyLogTest, ReadOnlyMemoryStaysReadOnly) {
  KvmMemslots memslots = make();
  KvmMemory rom = memory;
  rom.read_only = true;
  VMSPACE_ASSERT_OK(memslots.set(rom));
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(range));
  EXPECT_THAT(flags(), Each(KVM_MEM_READONLY | logged));
  VMSPACE_ASSERT_OK(memslots.stop_dirty_log(range));
  EXPECT_THAT(flags(), Each(KVM_MEM_READONLY));
}

TEST_F(KvmDirtyLogTest, SettingAKnownRangeAgainSaysWhatCanBeSwitched) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(memory));
  const auto before = slots;
  changes = 0;
  KvmMemory changed = memory;
  changed.read_only = true;
  const auto set = memslots.set(changed);
  ASSERT_THAT(set, HasError(Errc::overlap));
  EXPECT_THAT(set.error().message(),
              AllOf(HasSubstr("start_dirty_log"), HasSubstr("clear"), HasSubstr("set()")));
  EXPECT_EQ(changes, 0);
  EXPECT_EQ(slots, before);
}

TEST_F(KvmDirtyLogTest, OnlyExactlyAKnownRangeHasALog) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(memory));
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(range));
  const auto before = slots;
  changes = 0;
  for (const GuestRange other :
       {GuestRange{range.base, size - page_size}, GuestRange{range.base, size + 1},
        GuestRange{GuestAddress(base + page_size), size - page_size}, GuestRange{range.base, 1},
        GuestRange{GuestAddress(0), base}, GuestRange{range.base, 0},
        GuestRange{range.base, ~std::uint64_t{0}}}) {
    EXPECT_THAT(memslots.start_dirty_log(other), HasError(Errc::not_found));
    EXPECT_THAT(memslots.stop_dirty_log(other), HasError(Errc::not_found));
    const auto fetched = memslots.fetch_dirty_log(other);
    ASSERT_THAT(fetched, HasError(Errc::not_found));
    EXPECT_EQ(fetched.error().first, Operand::span(other.base.value(), other.size));
  }
  EXPECT_EQ(slots, before);
  EXPECT_EQ(changes, 0);
  EXPECT_EQ(fetches, 0);
}

TEST_F(KvmDirtyLogTest, FetchGivesTheWrittenPagesOnce) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(memory));
  guest_writes(base);  // the log is off
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(range));
  EXPECT_EQ(pages(memslots.fetch_dirty_log(range)), Pages{});
  guest_writes(base);
  guest_writes(base + 64 * page_size);
  guest_writes(base + size - 1);
  const auto log = memslots.fetch_dirty_log(range);
  EXPECT_EQ(pages(log), (Pages{0, 64, size / page_size - 1}));
  EXPECT_EQ(log->base, GuestAddress(base));
  EXPECT_EQ(pages(memslots.fetch_dirty_log(range)), Pages{});

  guest_writes(base);
  VMSPACE_ASSERT_OK(memslots.stop_dirty_log(range));
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(range));
  EXPECT_EQ(pages(memslots.fetch_dirty_log(range)), Pages{}) << "stopping forgets";
}

TEST_F(KvmDirtyLogTest, ARangeOfFewPagesFitsInItsWords) {
  for (const std::uint64_t count : {1u, 63u, 64u, 65u, 128u}) {
    KvmMemslots memslots = make();
    KvmMemory small = memory;
    small.size = count * page_size;
    small.log_dirty = true;
    VMSPACE_ASSERT_OK(memslots.set(small));
    guest_writes(base + (count - 1) * page_size);
    const auto log = memslots.fetch_dirty_log({small.base, small.size});
    EXPECT_EQ(pages(log), Pages{count - 1});
    EXPECT_EQ(log->bits.size(), (count + 63) / 64);
  }
}

TEST_F(KvmDirtyLogTest, FetchOfALogThatIsOffIsAnErrorAndKvmIsNotAsked) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(memory));
  const auto log = memslots.fetch_dirty_log(range);
  ASSERT_THAT(log, HasError(Errc::bad_state));
  EXPECT_THAT(log.error().message(), HasSubstr("the dirty log is off"));
  EXPECT_EQ(fetches, 0);
}

// All the pieces of a split range are in one bitmap; whichever KVM refuses, nothing is lost.
TEST_F(KvmDirtyLogTest, FetchJoinsPiecesAndLosesNothingWhicheverKvmRefuses) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(split));
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(split_range));
  const std::uint64_t first_of_second = largest / page_size;
  const auto write = [&] {
    for (const std::uint64_t page : {std::uint64_t{5}, first_of_second - 1, first_of_second})
      guest_writes(4_GiB + page * page_size);
    guest_writes(split_range.last()->value());
  };
  const Pages written{5, first_of_second - 1, first_of_second, split.size / page_size - 1};
  write();
  EXPECT_EQ(pages(memslots.fetch_dirty_log(split_range)), written);
  for (int k = 0; k < 2; ++k) {
    write();
    fetches = 0;
    fail_fetch = k;
    const auto refused = memslots.fetch_dirty_log(split_range);
    ASSERT_THAT(refused, HasError(Errc::os));
    EXPECT_EQ(refused.error().os_errno, EFAULT);
    EXPECT_EQ(refused.error().text.subject(), "slot " + std::to_string(k));
    fail_fetch.reset();
    const auto log = memslots.fetch_dirty_log(split_range);
    ASSERT_THAT(log, IsOk());
    for (const std::uint64_t page : written)
      EXPECT_TRUE(log->bits[page / 64] >> page % 64 & 1) << page;
    VMSPACE_EXPECT_OK(memslots.check_invariants());
  }
  EXPECT_EQ(pages(memslots.fetch_dirty_log(split_range)), Pages{});
}

TEST_F(KvmDirtyLogTest, ALogOfSlotsAsLargeAsKvmsReachesTheLastPage) {
  detail::max_pages_per_slot = kvms_pages_per_slot_;
  const std::uint64_t pages_per_slot = kvms_pages_per_slot_ * page_size / 1_GiB * 1_GiB / page_size;
  const KvmMemory huge{.base = GuestAddress(4_GiB),
                       .size = (pages_per_slot + 64) * page_size,
                       .host_address = host(32_TiB),
                       .log_dirty = true};
  const GuestRange huge_range{huge.base, huge.size};
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(huge));
  EXPECT_EQ(memslots.used(), 2u);
  for (const std::uint64_t page : {std::uint64_t{0}, pages_per_slot - 1, pages_per_slot})
    guest_writes(4_GiB + page * page_size);
  guest_writes(huge_range.last()->value());
  const auto log = memslots.fetch_dirty_log(huge_range);
  ASSERT_THAT(log, IsOk());
  ASSERT_EQ(log->bits.size(), pages_per_slot / 64 + 1);
  EXPECT_EQ(log->bits.front(), 1u);
  EXPECT_EQ(*(log->bits.end() - 2), std::uint64_t{1} << 63);
  EXPECT_EQ(log->bits.back(), std::uint64_t{1} << 63 | 1u);
}

TEST_F(KvmDirtyLogTest, AfterARefusedFetchAllOfTheSlotIsDirtyAndNothingBeyondIt) {
  KvmMemslots memslots = make();
  KvmMemory odd = memory;
  odd.size = 67 * page_size;
  odd.log_dirty = true;
  const GuestRange odd_range{odd.base, odd.size};
  VMSPACE_ASSERT_OK(memslots.set(odd));
  fail_fetch = 0;
  ASSERT_FALSE(memslots.fetch_dirty_log(odd_range));
  const auto log = memslots.fetch_dirty_log(odd_range);
  ASSERT_THAT(log, IsOk());
  EXPECT_EQ(log->bits, (std::vector<std::uint64_t>{~std::uint64_t{0}, 0b111}));
  EXPECT_EQ(pages(memslots.fetch_dirty_log(odd_range)), Pages{});
}

TEST_F(KvmDirtyLogTest, StartIsAllOrNothingWhicheverPieceKvmRefuses) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(split));
  const auto before = slots;
  for (int k = 0; k < 2; ++k) {
    fail_next(k);
    const auto started = memslots.start_dirty_log(split_range);
    ASSERT_THAT(started, HasError(Errc::os));
    EXPECT_EQ(started.error().os_errno, ENOMEM);
    EXPECT_EQ(started.error().text.subject(), "slot " + std::to_string(k));
    EXPECT_THAT(started.error().message(), HasSubstr("KvmMemslots::start_dirty_log"));
    EXPECT_EQ(slots, before);
    EXPECT_THAT(memslots.fetch_dirty_log(split_range), HasError(Errc::bad_state));
  }
  fail_change.reset();
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(split_range));
  EXPECT_EQ(pages(memslots.fetch_dirty_log(split_range)), Pages{}) << "it began only now";
}

// Switching a piece back on gives KVM an empty log: what was in the old one must not be missed.
TEST_F(KvmDirtyLogTest, StopAndClearAreAllOrNothingAndLoseNothingWhicheverPieceKvmRefuses) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(split));
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(split_range));
  const auto before = slots;
  const auto stop = [&] { return memslots.stop_dirty_log(split_range); };
  const auto clear = [&] { return memslots.clear(split_range); };
  const auto expect_nothing_lost = [&](const Result<void>& refused) {
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().os_errno, ENOMEM);
    EXPECT_EQ(slots, before);
    fail_change.reset();
    const auto log = memslots.fetch_dirty_log(split_range);
    ASSERT_THAT(log, IsOk());
    EXPECT_TRUE(log->bits.front() >> 7 & 1);
    EXPECT_TRUE(log->bits[largest / page_size / 64] & 1);
    EXPECT_EQ(log->bits.back(), 0u) << "the log of the second piece was never off";
  };
  for (int k = 0; k < 2; ++k) {
    guest_writes(4_GiB + 7 * page_size);
    guest_writes(4_GiB + largest);
    fail_next(k);
    expect_nothing_lost(k == 0 ? stop() : clear());
    guest_writes(4_GiB + 7 * page_size);
    guest_writes(4_GiB + largest);
    fail_next(1);
    expect_nothing_lost(k == 0 ? clear() : stop());
  }
  ASSERT_TRUE(stop());
  VMSPACE_EXPECT_OK(clear());
}

TEST_F(KvmDirtyLogTest, ALogThatIsLeftOnInPartIsStartedOrStoppedAgain) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(split));
  fail_all_from(1);  // the second piece, and switching the first back
  const auto started = memslots.start_dirty_log(split_range);
  ASSERT_FALSE(started);
  EXPECT_THAT(started.error().message(), HasSubstr("start or stop it again"));
  EXPECT_EQ(flags(), (std::vector<std::uint32_t>{logged, 0}));
  const auto fetched = memslots.fetch_dirty_log(split_range);
  ASSERT_THAT(fetched, HasError(Errc::bad_state));
  EXPECT_THAT(fetched.error().message(), HasSubstr("in part"));
  VMSPACE_EXPECT_OK(memslots.check_invariants());

  fail_from.reset();
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(split_range));
  EXPECT_THAT(flags(), Each(logged));
  VMSPACE_ASSERT_OK(memslots.fetch_dirty_log(split_range));
  VMSPACE_ASSERT_OK(memslots.stop_dirty_log(split_range));
  EXPECT_THAT(flags(), Each(0u));
}

TEST_F(KvmDirtyLogTest, ALogThatGoesOnAfterHavingEndedInPartCountsAsDirtyThere) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(split));
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(split_range));
  fail_all_from(1);  // the second piece, and switching the first back
  ASSERT_FALSE(memslots.stop_dirty_log(split_range));
  EXPECT_EQ(flags(), (std::vector<std::uint32_t>{0, logged}));
  guest_writes(4_GiB + 7 * page_size);
  fail_from.reset();
  VMSPACE_ASSERT_OK(memslots.start_dirty_log(split_range));
  const auto log = memslots.fetch_dirty_log(split_range);
  ASSERT_THAT(log, IsOk());
  EXPECT_EQ(log->bits.front(), ~std::uint64_t{0});
  EXPECT_EQ(log->bits.back(), 0u);
}

TEST_F(KvmDirtyLogTest, ARangeThatIsShownInPartHasNoLog) {
  KvmMemslots memslots = make();
  fail_all_from(1);  // the second piece, and taking the first back
  ASSERT_FALSE(memslots.set(split));
  fail_from.reset();
  const auto before = slots;
  for (const auto& refused :
       {memslots.start_dirty_log(split_range), memslots.stop_dirty_log(split_range)}) {
    ASSERT_THAT(refused, HasError(Errc::bad_state));
    EXPECT_THAT(refused.error().message(), HasSubstr("clear() it"));
  }
  EXPECT_THAT(memslots.fetch_dirty_log(split_range), HasError(Errc::bad_state));
  EXPECT_EQ(slots, before);
  VMSPACE_EXPECT_OK(memslots.clear(split_range));
}

TEST_F(KvmDirtyLogTest, FetchForgetsNothingWhenMemoryRunsOutAndSwitchingNeedsNone) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(memslots.set(memory));
  EXPECT_EQ(fail_each_allocation([&] { EXPECT_TRUE(memslots.start_dirty_log(range)); }, [] {}), 0);
  guest_writes(base);
  EXPECT_EQ(
      fail_each_allocation([&] { EXPECT_EQ(memslots.fetch_dirty_log(range)->bits[0], 1u); }, [] {}),
      1);
  EXPECT_EQ(fail_each_allocation([&] { EXPECT_TRUE(memslots.stop_dirty_log(range)); }, [] {}), 0);
}

TEST_F(KvmDirtyLogTest, WhatIsFetchedMergesIntoGuestMemory) {
  const GuestRange ram[] = {{GuestAddress{base}, size}, {GuestAddress{2 * base}, size}};
  const auto guest = GuestMemory::create(ram);
  ASSERT_THAT(guest, IsOk());
  VMSPACE_ASSERT_OK(enable_dirty_tracking(*guest));
  KvmMemslots memslots = make();
  for (const auto& region : guest->regions()) {
    VMSPACE_ASSERT_OK(memslots.set({.base = region->base(),
                                    .size = region->size(),
                                    .host_address = region->host_base(),
                                    .log_dirty = true}));
  }
  guest_writes(base + 3 * page_size);
  guest_writes(2 * base + size - 1);
  for (const auto& region : guest->regions()) {
    const auto log = memslots.fetch_dirty_log(region->guest_range());
    ASSERT_THAT(log, IsOk());
    VMSPACE_ASSERT_OK(merge_dirty_log(*guest, log->base, log->bits, log->unit));
  }
  const auto dirty = harvest_dirty(*guest);
  ASSERT_THAT(dirty, IsOk());
  EXPECT_EQ(*dirty,
            (std::vector<GuestRange>{{GuestAddress(base + 3 * page_size), page_size},
                                     {GuestAddress(2 * base + size - page_size), page_size}}));
}

}  // namespace
}  // namespace vmspace::kvm_dirty_log_test
