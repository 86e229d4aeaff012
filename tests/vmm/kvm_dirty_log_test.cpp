// SPDX-License-Identifier: Apache-2.0
//
// The dirty logs of KvmMemslots: against KVM's rules with every call failing, and against KVM
// itself with a guest that writes.

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"

#include "os/descriptor.hpp"
#include "os/system_calls.hpp"
#include "vmm/fake_kvm.hpp"

namespace vmspace {
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

  // Two slots: the largest that there is, and what remains.
  const std::uint64_t largest = ((std::uint64_t{1} << 31) - 1) * page_size / 1_GiB * 1_GiB;
  const KvmMemory split{
      .base = GuestAddress(4_GiB), .size = largest + 64_MiB, .host_address = host(32_TiB)};
  const GuestRange split_range{split.base, split.size};

  /// The pages that a log calls dirty, as numbers from its base; only the first of very many.
  static std::vector<std::uint64_t> pages(const Result<KvmDirtyLog>& log) {
    std::vector<std::uint64_t> found;
    EXPECT_TRUE(log) << log.error().message();
    if (!log) return found;
    EXPECT_EQ(log->unit, page_size);
    // The log of a split range is 256 MiB, nearly all of them 0: passed over by blocks.
    static const std::array<std::uint64_t, 8192> zeros{};
    for (std::size_t word = 0; word < log->bits.size() && found.size() < 1000; ++word) {
      const std::size_t block = std::min(zeros.size(), log->bits.size() - word);
      if (std::memcmp(&log->bits[word], zeros.data(), block * sizeof(zeros[0])) == 0) {
        word += block - 1;
        continue;
      }
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
};

using Pages = std::vector<std::uint64_t>;
constexpr std::uint32_t logged = KVM_MEM_LOG_DIRTY_PAGES;

TEST_F(KvmDirtyLogTest, SwitchesTheFlagOfLiveSlotsAndNothingElse) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set(split));
  const auto before = slots;
  changes = 0;
  ASSERT_TRUE(memslots.start_dirty_log(split_range));
  EXPECT_EQ(changes, 2) << "one call a slot: none is deleted";
  EXPECT_THAT(flags(), Each(logged));
  EXPECT_EQ(memslots.used(), 2u);

  ASSERT_TRUE(memslots.stop_dirty_log(split_range));
  EXPECT_EQ(changes, 4);
  EXPECT_EQ(slots, before);
  EXPECT_TRUE(memslots.check_invariants());
}

TEST_F(KvmDirtyLogTest, ARangeSetWithItsLogOnCanBeSwitchedOff) {
  KvmMemslots memslots = make();
  KvmMemory from_the_start = memory;
  from_the_start.log_dirty = true;
  ASSERT_TRUE(memslots.set(from_the_start));
  EXPECT_THAT(flags(), Each(logged));
  ASSERT_TRUE(memslots.stop_dirty_log(range));
  EXPECT_THAT(flags(), Each(0u));
}

TEST_F(KvmDirtyLogTest, StartingTwiceKeepsTheLogAndStoppingTwiceDoesNothing) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set(memory));
  ASSERT_TRUE(memslots.stop_dirty_log(range));
  EXPECT_EQ(changes, 1);
  ASSERT_TRUE(memslots.start_dirty_log(range));
  guest_writes(base + 3 * page_size);
  ASSERT_TRUE(memslots.start_dirty_log(range));
  EXPECT_EQ(changes, 2);
  EXPECT_EQ(pages(memslots.fetch_dirty_log(range)), Pages{3});
}

TEST_F(KvmDirtyLogTest, ReadOnlyMemoryStaysReadOnly) {
  KvmMemslots memslots = make();
  KvmMemory rom = memory;
  rom.read_only = true;
  ASSERT_TRUE(memslots.set(rom));
  ASSERT_TRUE(memslots.start_dirty_log(range));
  EXPECT_THAT(flags(), Each(KVM_MEM_READONLY | logged));
  ASSERT_TRUE(memslots.stop_dirty_log(range));
  EXPECT_THAT(flags(), Each(KVM_MEM_READONLY));
}

TEST_F(KvmDirtyLogTest, SettingAKnownRangeAgainSaysWhatCanBeSwitched) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set(memory));
  const auto before = slots;
  changes = 0;
  KvmMemory changed = memory;
  changed.read_only = true;
  const auto set = memslots.set(changed);
  ASSERT_FALSE(set);
  EXPECT_EQ(set.error().code, Errc::overlap);
  EXPECT_THAT(set.error().message(),
              AllOf(HasSubstr("start_dirty_log"), HasSubstr("clear"), HasSubstr("read-only")));
  EXPECT_EQ(changes, 0);
  EXPECT_EQ(slots, before);
}

TEST_F(KvmDirtyLogTest, OnlyExactlyAKnownRangeHasALog) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set(memory));
  ASSERT_TRUE(memslots.start_dirty_log(range));
  const auto before = slots;
  changes = 0;
  for (const GuestRange other :
       {GuestRange{range.base, size - page_size}, GuestRange{range.base, size + 1},
        GuestRange{GuestAddress(base + page_size), size - page_size}, GuestRange{range.base, 1},
        GuestRange{GuestAddress(0), base}, GuestRange{range.base, 0},
        GuestRange{range.base, ~std::uint64_t{0}}}) {
    EXPECT_EQ(memslots.start_dirty_log(other).error().code, Errc::not_found);
    EXPECT_EQ(memslots.stop_dirty_log(other).error().code, Errc::not_found);
    const auto fetched = memslots.fetch_dirty_log(other);
    ASSERT_FALSE(fetched);
    EXPECT_EQ(fetched.error().code, Errc::not_found);
    EXPECT_EQ(fetched.error().first, Operand::span(other.base.value(), other.size));
  }
  EXPECT_EQ(slots, before);
  EXPECT_EQ(changes, 0);
  EXPECT_EQ(fetches, 0);
}

TEST_F(KvmDirtyLogTest, FetchGivesTheWrittenPagesOnce) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set(memory));
  guest_writes(base);  // the log is off
  ASSERT_TRUE(memslots.start_dirty_log(range));
  EXPECT_EQ(pages(memslots.fetch_dirty_log(range)), Pages{});
  guest_writes(base);
  guest_writes(base + 64 * page_size);
  guest_writes(base + size - 1);
  const auto log = memslots.fetch_dirty_log(range);
  EXPECT_EQ(pages(log), (Pages{0, 64, size / page_size - 1}));
  EXPECT_EQ(log->base, GuestAddress(base));
  EXPECT_EQ(pages(memslots.fetch_dirty_log(range)), Pages{});

  guest_writes(base);
  ASSERT_TRUE(memslots.stop_dirty_log(range));
  ASSERT_TRUE(memslots.start_dirty_log(range));
  EXPECT_EQ(pages(memslots.fetch_dirty_log(range)), Pages{}) << "stopping forgets";
}

TEST_F(KvmDirtyLogTest, ARangeOfFewPagesFitsInItsWords) {
  for (const std::uint64_t count : {1u, 63u, 64u, 65u, 128u}) {
    KvmMemslots memslots = make();
    KvmMemory small = memory;
    small.size = count * page_size;
    small.log_dirty = true;
    ASSERT_TRUE(memslots.set(small));
    guest_writes(base + (count - 1) * page_size);
    const auto log = memslots.fetch_dirty_log({small.base, small.size});
    EXPECT_EQ(pages(log), Pages{count - 1});
    EXPECT_EQ(log->bits.size(), (count + 63) / 64);
  }
}

TEST_F(KvmDirtyLogTest, FetchOfALogThatIsOffIsAnErrorAndKvmIsNotAsked) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set(memory));
  const auto log = memslots.fetch_dirty_log(range);
  ASSERT_FALSE(log);
  EXPECT_EQ(log.error().code, Errc::bad_state);
  EXPECT_THAT(log.error().message(), HasSubstr("not on"));
  EXPECT_EQ(fetches, 0);
}

// All the pieces of a split range are in one bitmap; whichever KVM refuses, nothing is lost.
TEST_F(KvmDirtyLogTest, FetchJoinsPiecesAndLosesNothingWhicheverKvmRefuses) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set(split));
  ASSERT_TRUE(memslots.start_dirty_log(split_range));
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
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::os);
    EXPECT_EQ(refused.error().os_errno, EFAULT);
    EXPECT_EQ(refused.error().second, Operand::number(static_cast<std::uint64_t>(k)));
    fail_fetch.reset();
    const auto log = memslots.fetch_dirty_log(split_range);
    ASSERT_TRUE(log);
    for (const std::uint64_t page : written)
      EXPECT_TRUE(log->bits[page / 64] >> page % 64 & 1) << page;
    EXPECT_TRUE(memslots.check_invariants());
  }
  EXPECT_EQ(pages(memslots.fetch_dirty_log(split_range)), Pages{});
}

TEST_F(KvmDirtyLogTest, AfterARefusedFetchAllOfTheSlotIsDirtyAndNothingBeyondIt) {
  KvmMemslots memslots = make();
  KvmMemory odd = memory;
  odd.size = 67 * page_size;
  odd.log_dirty = true;
  const GuestRange odd_range{odd.base, odd.size};
  ASSERT_TRUE(memslots.set(odd));
  fail_fetch = 0;
  ASSERT_FALSE(memslots.fetch_dirty_log(odd_range));
  const auto log = memslots.fetch_dirty_log(odd_range);
  ASSERT_TRUE(log);
  EXPECT_EQ(log->bits, (std::vector<std::uint64_t>{~std::uint64_t{0}, 0b111}));
  EXPECT_EQ(pages(memslots.fetch_dirty_log(odd_range)), Pages{});
}

TEST_F(KvmDirtyLogTest, StartIsAllOrNothingWhicheverPieceKvmRefuses) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set(split));
  const auto before = slots;
  for (int k = 0; k < 2; ++k) {
    fail_next(k);
    const auto started = memslots.start_dirty_log(split_range);
    ASSERT_FALSE(started);
    EXPECT_EQ(started.error().code, Errc::os);
    EXPECT_EQ(started.error().os_errno, ENOMEM);
    EXPECT_EQ(started.error().second, Operand::number(static_cast<std::uint64_t>(k)));
    EXPECT_THAT(started.error().message(), HasSubstr("KvmMemslots::start_dirty_log"));
    EXPECT_EQ(slots, before);
    EXPECT_EQ(memslots.fetch_dirty_log(split_range).error().code, Errc::bad_state);
  }
  fail_change.reset();
  ASSERT_TRUE(memslots.start_dirty_log(split_range));
  EXPECT_EQ(pages(memslots.fetch_dirty_log(split_range)), Pages{}) << "it began only now";
}

// Switching a piece back on gives KVM an empty log: what was in the old one must not be missed.
TEST_F(KvmDirtyLogTest, StopAndClearAreAllOrNothingAndLoseNothingWhicheverPieceKvmRefuses) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set(split));
  ASSERT_TRUE(memslots.start_dirty_log(split_range));
  const auto before = slots;
  const auto stop = [&] { return memslots.stop_dirty_log(split_range); };
  const auto clear = [&] { return memslots.clear(split_range); };
  const auto expect_nothing_lost = [&](const Result<void>& refused) {
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().os_errno, ENOMEM);
    EXPECT_EQ(slots, before);
    fail_change.reset();
    const auto log = memslots.fetch_dirty_log(split_range);
    ASSERT_TRUE(log) << log.error().message();
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
  EXPECT_TRUE(clear());
}

TEST_F(KvmDirtyLogTest, ALogThatIsLeftOnInPartIsStartedOrStoppedAgain) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set(split));
  fail_all_from(1);  // the second piece, and switching the first back
  const auto started = memslots.start_dirty_log(split_range);
  ASSERT_FALSE(started);
  EXPECT_THAT(started.error().message(), HasSubstr("start or stop it again"));
  EXPECT_EQ(flags(), (std::vector<std::uint32_t>{logged, 0}));
  const auto fetched = memslots.fetch_dirty_log(split_range);
  ASSERT_FALSE(fetched);
  EXPECT_EQ(fetched.error().code, Errc::bad_state);
  EXPECT_THAT(fetched.error().message(), HasSubstr("in part"));
  EXPECT_TRUE(memslots.check_invariants());

  fail_from.reset();
  ASSERT_TRUE(memslots.start_dirty_log(split_range));
  EXPECT_THAT(flags(), Each(logged));
  ASSERT_TRUE(memslots.fetch_dirty_log(split_range));
  ASSERT_TRUE(memslots.stop_dirty_log(split_range));
  EXPECT_THAT(flags(), Each(0u));
}

TEST_F(KvmDirtyLogTest, ALogThatGoesOnAfterHavingEndedInPartCountsAsDirtyThere) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set(split));
  ASSERT_TRUE(memslots.start_dirty_log(split_range));
  fail_all_from(1);  // the second piece, and switching the first back
  ASSERT_FALSE(memslots.stop_dirty_log(split_range));
  EXPECT_EQ(flags(), (std::vector<std::uint32_t>{0, logged}));
  guest_writes(4_GiB + 7 * page_size);
  fail_from.reset();
  ASSERT_TRUE(memslots.start_dirty_log(split_range));
  const auto log = memslots.fetch_dirty_log(split_range);
  ASSERT_TRUE(log) << log.error().message();
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
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::bad_state);
    EXPECT_THAT(refused.error().message(), HasSubstr("clear it"));
  }
  EXPECT_EQ(memslots.fetch_dirty_log(split_range).error().code, Errc::bad_state);
  EXPECT_EQ(slots, before);
  EXPECT_TRUE(memslots.clear(split_range));
}

TEST_F(KvmDirtyLogTest, FetchForgetsNothingWhenMemoryRunsOutAndSwitchingNeedsNone) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set(memory));
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
  ASSERT_TRUE(guest) << guest.error().message();
  ASSERT_TRUE(enable_dirty_tracking(*guest));
  KvmMemslots memslots = make();
  for (const auto& region : guest->regions()) {
    ASSERT_TRUE(memslots.set({.base = region->base(),
                              .size = region->size(),
                              .host_address = region->host_base(),
                              .log_dirty = true}));
  }
  guest_writes(base + 3 * page_size);
  guest_writes(2 * base + size - 1);
  for (const auto& region : guest->regions()) {
    const auto log = memslots.fetch_dirty_log(region->guest_range());
    ASSERT_TRUE(log) << log.error().message();
    ASSERT_TRUE(merge_dirty_log(*guest, log->base, log->bits, log->unit));
  }
  const auto dirty = harvest_dirty(*guest);
  ASSERT_TRUE(dirty);
  EXPECT_EQ(*dirty,
            (std::vector<GuestRange>{{GuestAddress(base + 3 * page_size), page_size},
                                     {GuestAddress(2 * base + size - page_size), page_size}}));
}

/// KVM itself, where this user may open /dev/kvm, with a guest that writes to two of its pages.
class RealKvmDirtyLog : public testing::Test {
 protected:
  static constexpr std::uint64_t size = 16_MiB;
  static constexpr std::uint64_t code = 0x1000;
  static constexpr std::uint64_t first = 0x3000, second = 0x5000;  // where the guest writes
  const GuestRange range{GuestAddress(0), size};

  void SetUp() override {
#if !defined(__x86_64__)
    GTEST_SKIP() << "the guest's code is for x86-64";
#endif
    kvm_ = detail::Descriptor(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
    if (kvm_.value() < 0) GTEST_SKIP() << "can't open /dev/kvm: " << std::strerror(errno);
    vm_ = detail::Descriptor(::ioctl(kvm_.value(), KVM_CREATE_VM, 0));
    if (vm_.value() < 0) GTEST_SKIP() << "KVM_CREATE_VM failed: " << std::strerror(errno);
    memory_ = static_cast<std::byte*>(::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                             MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    ASSERT_NE(memory_, MAP_FAILED);
    // Real mode: mov [0x3000], al; mov [0x5000], al; hlt
    const unsigned char text[] = {0xa2, 0x00, 0x30, 0xa2, 0x00, 0x50, 0xf4};
    std::memcpy(memory_ + code, text, sizeof text);
    start_vcpu();
  }
  ~RealKvmDirtyLog() override {
    if (run_ != nullptr) ::munmap(run_, run_size_);
    if (memory_ != nullptr) ::munmap(memory_, size);
  }

  /// Runs the guest from its first instruction until it halts.
  void run_guest() {
#if defined(__x86_64__)
    kvm_regs regs{};
    regs.rip = code;
    regs.rflags = 2;
    ASSERT_EQ(::ioctl(vcpu_.value(), KVM_SET_REGS, &regs), 0) << std::strerror(errno);
    while (::ioctl(vcpu_.value(), KVM_RUN, 0) < 0)
      ASSERT_EQ(errno, EINTR) << std::strerror(errno);
    ASSERT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
#endif
  }

  std::vector<std::uint64_t> written(KvmMemslots& memslots) {
    std::vector<std::uint64_t> found;
    const auto log = memslots.fetch_dirty_log(range);
    EXPECT_TRUE(log) << log.error().message();
    if (!log) return found;
    for (std::uint64_t address = 0; address < size; address += log->unit) {
      const std::uint64_t bit = address / log->unit;
      if (log->bits[bit / 64] >> bit % 64 & 1) found.push_back(address);
    }
    return found;
  }

  detail::Descriptor kvm_, vm_, vcpu_;
  std::byte* memory_ = nullptr;

 private:
  void start_vcpu() {
#if defined(__x86_64__)
    ASSERT_EQ(::ioctl(vm_.value(), KVM_SET_TSS_ADDR, 0xfffb'd000ul), 0) << std::strerror(errno);
    vcpu_ = detail::Descriptor(::ioctl(vm_.value(), KVM_CREATE_VCPU, 0));
    ASSERT_GE(vcpu_.value(), 0) << std::strerror(errno);
    run_size_ = static_cast<std::size_t>(::ioctl(kvm_.value(), KVM_GET_VCPU_MMAP_SIZE, 0));
    void* const run =
        ::mmap(nullptr, run_size_, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_.value(), 0);
    ASSERT_NE(run, MAP_FAILED) << std::strerror(errno);
    run_ = static_cast<kvm_run*>(run);
    kvm_sregs sregs{};
    ASSERT_EQ(::ioctl(vcpu_.value(), KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    ASSERT_EQ(::ioctl(vcpu_.value(), KVM_SET_SREGS, &sregs), 0);
#endif
  }

  kvm_run* run_ = nullptr;
  std::size_t run_size_ = 0;
};

TEST_F(RealKvmDirtyLog, StartsAndStopsOnALiveSlot) {
  auto memslots = KvmMemslots::create(vm_.value());
  ASSERT_TRUE(memslots) << memslots.error().message();
  ASSERT_TRUE(memslots->set({.base = GuestAddress(0), .size = size, .host_address = memory_}));
  run_guest();  // its pages are mapped, writable, before the log begins
  EXPECT_EQ(memslots->fetch_dirty_log(range).error().code, Errc::bad_state);

  const auto started = memslots->start_dirty_log(range);
  ASSERT_TRUE(started) << started.error().message();
  EXPECT_EQ(written(*memslots), Pages{});
  for (int round = 0; round < 3; ++round) {
    run_guest();
    EXPECT_EQ(written(*memslots), (Pages{first, second}));
    EXPECT_EQ(written(*memslots), Pages{});
  }
  run_guest();
  const auto stopped = memslots->stop_dirty_log(range);
  ASSERT_TRUE(stopped) << stopped.error().message();
  run_guest();
  EXPECT_EQ(memslots->fetch_dirty_log(range).error().code, Errc::bad_state);
  ASSERT_TRUE(memslots->start_dirty_log(range));
  EXPECT_EQ(written(*memslots), Pages{});
}

// What the fake rests on, so that both are known to agree.
TEST_F(RealKvmDirtyLog, KvmItselfRefusesToSwitchReadOnlyAndToGiveALogThatIsOff) {
  auto memslots = KvmMemslots::create(vm_.value());
  ASSERT_TRUE(memslots) << memslots.error().message();
  ASSERT_TRUE(memslots->set({.base = GuestAddress(0), .size = size, .host_address = memory_}));
  kvm_userspace_memory_region region{};
  region.flags = KVM_MEM_READONLY;
  region.memory_size = size;
  region.userspace_addr = reinterpret_cast<std::uintptr_t>(memory_);
  EXPECT_EQ(::ioctl(vm_.value(), KVM_SET_USER_MEMORY_REGION, &region), -1);
  EXPECT_EQ(errno, EINVAL);
  std::vector<std::uint64_t> bits(size / 4096 / 64);
  kvm_dirty_log request{};
  request.dirty_bitmap = bits.data();
  EXPECT_EQ(::ioctl(vm_.value(), KVM_GET_DIRTY_LOG, &request), -1);
  EXPECT_EQ(errno, ENOENT);
}

}  // namespace
}  // namespace vmspace
