// SPDX-License-Identifier: Apache-2.0
//
// Dirty logs that KVM clears only when it is told to: against KVM's rules, with every call failing.

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"

#include "vmm/fake_kvm.hpp"
#include "vmm/kvm_pieces.hpp"

namespace vmspace::kvm_manual_protect_test {
namespace {

using namespace literals;
using test::fail_each_allocation;
using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using Pages = std::vector<std::uint64_t>;

class KvmManualProtectTest : public test::FakeKvm {
 protected:
  // Two slots, the largest that there is and 67 pages; slots are smaller here than KVM's.
  static constexpr std::uint64_t largest = 1_GiB;
  static constexpr std::uint64_t base = 4_GiB;
  const std::uint64_t rest = 67;
  const KvmMemory memory{.base = GuestAddress(base),
                         .size = largest + rest * page_size,
                         .host_address = host(32_TiB),
                         .log_dirty = true};
  const GuestRange range{memory.base, memory.size};
  const std::uint64_t first_of_second = largest / page_size;
  const std::uint64_t last = first_of_second + rest - 1;

  KvmManualProtectTest() { detail::max_pages_per_slot = largest / page_size; }
  ~KvmManualProtectTest() override { detail::max_pages_per_slot = kvms_pages_per_slot_; }

  KvmMemslots make_manual() {
    KvmMemslots kvm = make();
    VMSPACE_EXPECT_OK(kvm.enable_manual_protect());
    VMSPACE_EXPECT_OK(kvm.set(memory));
    return kvm;
  }

  void write(const Pages& pages) {
    for (const std::uint64_t page : pages)
      guest_writes(base + page * page_size);
  }

  static Pages pages(const Result<KvmDirtyLog>& log) {
    Pages found;
    EXPECT_THAT(log, IsOk());
    if (!log) return found;
    for (std::size_t word = 0; word < log->bits.size(); ++word) {
      for (std::uint64_t bits = log->bits[word]; bits != 0; bits &= bits - 1)
        found.push_back(64 * word + static_cast<std::uint64_t>(std::countr_zero(bits)));
    }
    return found;
  }

  /// A part of a log, in words.
  static KvmDirtyLog part(const KvmDirtyLog& log, std::size_t first, std::size_t count) {
    const auto begin = log.bits.begin() + static_cast<std::ptrdiff_t>(first);
    return {.base = GuestAddress(log.base.value() + first * 64 * log.unit),
            .unit = log.unit,
            .bits = {begin, begin + static_cast<std::ptrdiff_t>(count)}};
  }

 private:
  const std::uint64_t kvms_pages_per_slot_ = detail::max_pages_per_slot;
};

TEST_F(KvmManualProtectTest, IsSwitchedOnOnceAndOffOnDestruction) {
  {
    KvmMemslots kvm = make();
    EXPECT_FALSE(manual);
    VMSPACE_ASSERT_OK(kvm.enable_manual_protect());
    EXPECT_TRUE(manual);
    fail_enable = true;
    VMSPACE_EXPECT_OK(kvm.enable_manual_protect()) << "it is on";
    fail_enable = false;
    const KvmMemslots moved = std::move(kvm);
    EXPECT_THAT(kvm.enable_manual_protect(), HasError(Errc::bad_state));
    EXPECT_TRUE(manual);
  }
  EXPECT_FALSE(manual) << "another one would take logs for cleared";
}

TEST_F(KvmManualProtectTest, AKvmThatCanNotOrWillNotIsAnError) {
  KvmMemslots kvm = make();
  manual_flags = 0;
  EXPECT_THAT(kvm.enable_manual_protect(), HasError(Errc::unsupported));
  manual_flags = 2;
  EXPECT_THAT(kvm.enable_manual_protect(), HasError(Errc::unsupported));
  manual_flags = -1;
  EXPECT_THAT(kvm.enable_manual_protect(), HasError(Errc::os));
  manual_flags = 1;
  fail_enable = true;
  const auto refused = kvm.enable_manual_protect();
  ASSERT_THAT(refused, HasError(Errc::os));
  EXPECT_EQ(refused.error().os_errno, EPERM);
  EXPECT_THAT(kvm.read_dirty_log(range), HasError(Errc::bad_state));
  fail_enable = false;
  VMSPACE_EXPECT_OK(kvm.enable_manual_protect());
}

TEST_F(KvmManualProtectTest, IsNeededToReadWithoutClearing) {
  KvmMemslots kvm = make();
  VMSPACE_ASSERT_OK(kvm.set(memory));
  const auto refused = kvm.read_dirty_log(range);
  ASSERT_THAT(refused, HasError(Errc::bad_state));
  EXPECT_THAT(refused.error().message(), HasSubstr("enable_manual_protect()"));
  EXPECT_THAT(kvm.clear_dirty_log({.base = memory.base, .unit = page_size, .bits = {1}}),
              HasError(Errc::bad_state));
  EXPECT_EQ(fetches + clears, 0);
}

TEST_F(KvmManualProtectTest, FetchClearsAsItDoesWithoutIt) {
  KvmMemslots kvm = make_manual();
  const Pages written{5, first_of_second - 1, first_of_second, last};
  write(written);
  EXPECT_EQ(pages(kvm.fetch_dirty_log(range)), written);
  EXPECT_EQ(clears, 2);
  EXPECT_EQ(pages(kvm.fetch_dirty_log(range)), Pages{});
  EXPECT_EQ(clears, 2) << "nothing was there to clear";
}

TEST_F(KvmManualProtectTest, LogsThatAreOnAlreadyLoseNothing) {
  KvmMemslots kvm = make();
  VMSPACE_ASSERT_OK(kvm.set(memory));
  write({7});
  VMSPACE_ASSERT_OK(kvm.enable_manual_protect());
  EXPECT_EQ(pages(kvm.read_dirty_log(range)), Pages{7});
}

TEST_F(KvmManualProtectTest, ReadingClearsNothingAndClearingAPartClearsThatPart) {
  KvmMemslots kvm = make_manual();
  const Pages written{5, 64, first_of_second - 1, first_of_second, last};
  write(written);
  EXPECT_EQ(pages(kvm.read_dirty_log(range)), written);
  const auto log = kvm.read_dirty_log(range);
  EXPECT_EQ(pages(log), written);
  const std::size_t words = log->bits.size();
  VMSPACE_ASSERT_OK(kvm.clear_dirty_log(part(*log, 1, 1)));
  EXPECT_EQ(pages(kvm.read_dirty_log(range)),
            (Pages{5, first_of_second - 1, first_of_second, last}));
  // The end of one slot and the beginning of the next.
  VMSPACE_ASSERT_OK(kvm.clear_dirty_log(part(*log, words - 3, 2)));
  EXPECT_EQ(pages(kvm.read_dirty_log(range)), (Pages{5, last}));
  VMSPACE_ASSERT_OK(kvm.clear_dirty_log(part(*log, words - 1, 1)));  // fewer than 64 pages
  EXPECT_EQ(pages(kvm.read_dirty_log(range)), Pages{5});
}

TEST_F(KvmManualProtectTest, OnlyPagesWhoseBitsAreSetAreCleared) {
  KvmMemslots kvm = make_manual();
  write({3});
  const auto log = kvm.read_dirty_log(range);
  ASSERT_THAT(log, IsOk());
  write({4, 70});  // after the log was read
  VMSPACE_ASSERT_OK(kvm.clear_dirty_log(*log));
  EXPECT_EQ(pages(kvm.read_dirty_log(range)), (Pages{4, 70}));
  VMSPACE_ASSERT_OK(kvm.clear_dirty_log({.base = memory.base, .unit = page_size, .bits = {}}));
  VMSPACE_ASSERT_OK(
      kvm.clear_dirty_log({.base = memory.base, .unit = page_size, .bits = Pages(99, 0)}));
  EXPECT_EQ(clears, 1);
}

TEST_F(KvmManualProtectTest, WhatIsNoPartOfALogIsRefused) {
  KvmMemslots kvm = make_manual();
  write({3});
  const auto cleared = [&](std::uint64_t first_page, Pages bits, std::uint64_t unit = 0) {
    return kvm.clear_dirty_log({.base = GuestAddress(base + first_page * page_size),
                                .unit = unit == 0 ? page_size : unit,
                                .bits = std::move(bits)});
  };
  EXPECT_THAT(cleared(1, {1}), HasError(Errc::misaligned));
  EXPECT_THAT(cleared(63, {1}), HasError(Errc::misaligned));
  EXPECT_THAT(cleared(0, {1}, 2 * page_size), HasError(Errc::bad_alignment));
  EXPECT_THAT(cleared(last + 1, {1}), HasError(Errc::not_found));
  EXPECT_THAT(cleared(first_of_second + 64, {0b1000}), HasError(Errc::out_of_bounds));
  EXPECT_THAT(cleared(first_of_second + 64, {0, 1}), HasError(Errc::out_of_bounds));
  EXPECT_EQ(clears, 0);
  VMSPACE_EXPECT_OK(cleared(first_of_second + 64, {0b111, 0, 0}));
  VMSPACE_ASSERT_OK(kvm.stop_dirty_log(range));
  EXPECT_THAT(cleared(0, {1}), HasError(Errc::bad_state));
  EXPECT_THAT(kvm.read_dirty_log(range), HasError(Errc::bad_state));
  VMSPACE_ASSERT_OK(kvm.clear(range));
  EXPECT_THAT(cleared(0, {1}), HasError(Errc::not_found));
  EXPECT_THAT(kvm.read_dirty_log(range), HasError(Errc::not_found));
}

TEST_F(KvmManualProtectTest, AReadThatKvmRefusesLosesNothingAndInventsNothing) {
  KvmMemslots kvm = make_manual();
  const Pages written{5, last};
  write(written);
  for (int k = 0; k < 2; ++k) {
    fetches = 0;
    fail_fetch = k;
    EXPECT_THAT(kvm.read_dirty_log(range), HasError(Errc::os));
    fetches = 0;
    EXPECT_THAT(kvm.fetch_dirty_log(range), HasError(Errc::os));
  }
  fail_fetch.reset();
  EXPECT_EQ(pages(kvm.read_dirty_log(range)), written);
}

TEST_F(KvmManualProtectTest, AFetchWhoseClearingKvmRefusesLosesNothing) {
  KvmMemslots kvm = make_manual();
  const Pages written{5, first_of_second, last};
  for (int k = 0; k < 2; ++k) {
    write(written);
    clears = 0;
    fail_clear = k;
    const auto refused = kvm.fetch_dirty_log(range);
    ASSERT_THAT(refused, HasError(Errc::os));
    EXPECT_EQ(refused.error().text.subject(), "slot " + std::to_string(k));
    EXPECT_THAT(refused.error().message(), HasSubstr("KVM_CLEAR_DIRTY_LOG"));
    fail_clear.reset();
    const Pages found = pages(kvm.fetch_dirty_log(range));
    for (const std::uint64_t page : written)
      EXPECT_TRUE(std::ranges::binary_search(found, page)) << page;
    EXPECT_EQ(pages(kvm.fetch_dirty_log(range)), Pages{});
  }
}

TEST_F(KvmManualProtectTest, AClearThatKvmRefusesNamesTheSlot) {
  KvmMemslots kvm = make_manual();
  write({5, last});
  const auto log = kvm.read_dirty_log(range);
  ASSERT_THAT(log, IsOk());
  fail_clear = 1;
  const auto refused = kvm.clear_dirty_log(*log);
  ASSERT_THAT(refused, HasError(Errc::os));
  EXPECT_THAT(
      refused.error().message(),
      AllOf(HasSubstr("KvmMemslots::clear_dirty_log: \"slot 1\""), HasSubstr("Bad address")));
  fail_clear.reset();
  VMSPACE_EXPECT_OK(kvm.clear_dirty_log(*log)) << "and can be repeated";
  EXPECT_EQ(pages(kvm.read_dirty_log(range)), Pages{});
}

TEST_F(KvmManualProtectTest, ALostLogIsDirtyUntilItIsClearedAsAWhole) {
  KvmMemslots kvm = make_manual();
  fail_next(1);  // the first slot is deleted, and set again
  ASSERT_THAT(kvm.clear(range), HasError(Errc::os));
  const std::size_t words = largest / page_size / 64;
  const auto log = kvm.read_dirty_log(range);
  ASSERT_THAT(log, IsOk());
  EXPECT_THAT(part(*log, 0, words).bits, Each(~std::uint64_t{0}));
  EXPECT_THAT(part(*log, words, 2).bits, Each(0u));
  VMSPACE_ASSERT_OK(kvm.clear_dirty_log(part(*log, 0, words - 1)));
  EXPECT_EQ(kvm.read_dirty_log(range)->bits, log->bits);
  VMSPACE_ASSERT_OK(kvm.clear_dirty_log(part(*log, 0, words)));
  EXPECT_EQ(pages(kvm.read_dirty_log(range)), Pages{});
}

TEST_F(KvmManualProtectTest, ALostLogOfFewPagesEndsAsWell) {
  KvmMemslots kvm = make();
  VMSPACE_ASSERT_OK(kvm.set(memory));
  fetches = 0;
  fail_fetch = 1;
  ASSERT_THAT(kvm.fetch_dirty_log(range), HasError(Errc::os));  // without manual protect it is lost
  fail_fetch.reset();
  VMSPACE_ASSERT_OK(kvm.enable_manual_protect());
  const auto log = kvm.read_dirty_log(range);
  ASSERT_THAT(log, IsOk());
  EXPECT_EQ(pages(log).size(), largest / page_size + rest);
  VMSPACE_ASSERT_OK(kvm.clear_dirty_log(*log));
  EXPECT_EQ(pages(kvm.read_dirty_log(range)), Pages{});
}

TEST_F(KvmManualProtectTest, ARemovedSectionBringsItsLogWithoutClearingIt) {
  KvmMemslots kvm = make();
  VMSPACE_ASSERT_OK(kvm.enable_manual_protect());
  const auto region = MemoryRegion::map({.name = "ram",
                                         .base = GuestAddress(base),
                                         .size = 1_MiB,
                                         .backing = {.source = MemorySource::anon}});
  ASSERT_THAT(region, IsOk());
  VMSPACE_ASSERT_OK((*region)->dirty().enable());
  VMSPACE_ASSERT_OK(kvm.add(MemorySection(*region)));
  VMSPACE_ASSERT_OK(kvm.start_dirty_log((*region)->guest_range()));
  write({3});
  VMSPACE_ASSERT_OK(kvm.remove(MemorySection(*region)));
  EXPECT_EQ(clears, 0);
  EXPECT_THAT((*region)->dirty().harvest(),
              IsOkAndHolds(testing::ElementsAre(DirtyRange{3 * page_size, page_size})));
}

TEST_F(KvmManualProtectTest, NothingIsClearedWhenMemoryRunsOut) {
  KvmMemslots kvm = make_manual();
  write({3});
  EXPECT_EQ(fail_each_allocation([&] { EXPECT_TRUE(kvm.read_dirty_log(range)); },
                                 [&] { EXPECT_EQ(fetches, 0); }),
            1);
  const auto log = kvm.read_dirty_log(range);
  ASSERT_THAT(log, IsOk());
  EXPECT_EQ(fail_each_allocation([&] { EXPECT_TRUE(kvm.clear_dirty_log(*log)); }, [] {}), 0);
}

}  // namespace
}  // namespace vmspace::kvm_manual_protect_test
