// SPDX-License-Identifier: Apache-2.0
//
// DirtyScan of memory that a LazyRestore is bringing: what the guest writes is reported, what only the
// restore has put there is not, and the scan goes on when the restore ends, whichever way it does.

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <future>
#include <memory>
#include <optional>
#include <ostream>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/snapshot/dirty_scan.hpp"
#include "vmspace/snapshot/lazy_restore.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/host_support.hpp"
#include "memory/guest_support.hpp"
#include "snapshot/lazy_support.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::dirty_scan_restore_test {
namespace {

using namespace test;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint64_t base = 0x1'0000'0000;

/// The backing, the size of its pages, and how many of a hugetlb pool it needs.
struct Kind {
  const char* name;
  BackingSpec spec;
  std::uint64_t unit = source_page;
  std::uint64_t huge_pages = 0;
};

void PrintTo(const Kind& kind, std::ostream* out) {
  *out << kind.name;
}

/// Memory of 8 units.
class WatchedRestore : public ::testing::TestWithParam<Kind> {
 protected:
  static constexpr std::uint64_t units = 8;

  void SetUp() override {
    if (GetParam().huge_pages != 0 && !pool_.available()) GTEST_SKIP() << pool_.why_not();
    auto region = MemoryRegion::map({.name = "ram",
                                     .base = GuestAddress(base),
                                     .size = units * unit(),
                                     .backing = GetParam().spec});
    ASSERT_THAT(region, IsOk());
    auto made = GuestMemory::from_regions({*region});
    ASSERT_THAT(made, IsOk());
    memory = *made;
    // The last two units are zeros.
    source->is_zero = [](std::uint64_t page) { return page >= at(units - 2); };
    const auto tried = DirtyScan::start(memory);
    if (!tried &&
        (tried.error().code == Errc::unsupported || tried.error().code == Errc::access_denied))
      GTEST_SKIP() << tried.error().message();
    ASSERT_THAT(tried, IsOk());
  }

  static std::uint64_t unit() { return GetParam().unit; }
  static std::uint64_t at(std::uint64_t index) { return base + index * unit(); }
  static GuestRange pages(std::uint64_t first, std::uint64_t count = 1) {
    return {GuestAddress(at(first)), count * unit()};
  }
  void write(std::uint64_t index) const {
    VMSPACE_EXPECT_OK(memory.write(GuestAddress(at(index) + 16), std::uint64_t{0x5678}));
  }
  [[nodiscard]] std::uint64_t read(std::uint64_t index) const {
    return *memory.read<std::uint64_t>(GuestAddress(at(index)));
  }
  [[nodiscard]] const MemoryMapping& mapping() const { return memory.regions()[0]->mapping(); }
  [[nodiscard]] static bool is_in(const std::vector<GuestRange>& found, std::uint64_t index) {
    return std::ranges::any_of(found, [&](const GuestRange& one) {
      return one.base <= GuestAddress(at(index)) && pages(index).end() <= one.end();
    });
  }
  static std::vector<GuestRange> harvest(DirtyScan& scan) {
    auto ranges = scan.harvest();
    EXPECT_THAT(ranges, IsOk());
    return ranges ? *ranges : std::vector<GuestRange>{};
  }

  const HugePages pool_{2_MiB, GetParam().huge_pages};
  GuestMemory memory;
  std::shared_ptr<WordSource> source = std::make_shared<WordSource>();
};

/// A scan that has to start.
#define SCAN(name)                                \
  auto started_##name = DirtyScan::start(memory); \
  ASSERT_THAT(started_##name, IsOk());            \
  DirtyScan name = *std::move(started_##name)

TEST_P(WatchedRestore, OnlyWhatIsWrittenIsReportedDuringItAndAfterIt) {
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  EXPECT_EQ(read(0), word_at(at(0)));  // there before the scan begins
  SCAN(scan);
  EXPECT_THAT(harvest(scan), IsEmpty());
  EXPECT_EQ(read(1), word_at(at(1)));
  EXPECT_THAT(harvest(scan), IsEmpty()) << "the restore has put it there";
  write(0);
  write(2);
  EXPECT_THAT(harvest(scan), ElementsAre(pages(0), pages(2)));
  EXPECT_THAT(harvest(scan), IsEmpty());

  restore.resume_background();
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  EXPECT_THAT(harvest(scan), IsEmpty());
  EXPECT_EQ(read(3), word_at(at(3)));
  EXPECT_THAT(harvest(scan), IsEmpty());
  write(2);
  write(5);
  write(7);  // zeros, absent until now
  EXPECT_THAT(harvest(scan), ElementsAre(pages(2), pages(5), pages(7)));
  EXPECT_EQ(read(2), word_at(at(2)));
  EXPECT_EQ(read(6), 0U);
  if (!mapping().backing().is_shared()) {
    EXPECT_THAT(harvest(scan), IsEmpty()) << "pages of zeros are not written by reading them";
  }
}

TEST_P(WatchedRestore, WhatLeavesThePageTablesAndIsReadAgainIsNotLost) {
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  SCAN(scan);
  for (const bool has_ended : {false, true}) {
    write(1);
    // Private pages stay there until they are discarded.
    if (mapping().backing().is_shared()) {
      ASSERT_EQ(::madvise(mapping().data(), mapping().size(), MADV_DONTNEED), 0);
    }
    EXPECT_EQ(read(1), word_at(at(1)));
    EXPECT_TRUE(is_in(harvest(scan), 1)) << has_ended;
    restore.resume_background();
    VMSPACE_ASSERT_OK(restore.wait(long_enough));
  }
}

TEST_P(WatchedRestore, WritesWhileItEndsAreReported) {
  std::optional<LazyRestore> restore;
  {
    START_RESTORE_OR_SKIP(started, memory, source, {.background = false});
    restore = std::move(started);
  }
  SCAN(scan);
  write(1);
  restore->resume_background();
  VMSPACE_ASSERT_OK(restore->wait(long_enough));
  restore.reset();
  write(4);
  EXPECT_THAT(harvest(scan), ElementsAre(pages(1), pages(4)));
}

TEST_P(WatchedRestore, AScanThatEndsFirstLeavesTheRestoreAlone) {
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  for (int round = 0; round < 2; ++round) {
    SCAN(scan);
    write(1);
    EXPECT_THAT(harvest(scan), ElementsAre(pages(1)));
  }
  EXPECT_EQ(read(2), word_at(at(2)));
  restore.resume_background();
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  EXPECT_EQ(read(3), word_at(at(3)));
  EXPECT_EQ(read(7), 0U);
  EXPECT_THAT(DirtyScan::start(memory), IsOk()) << "nobody owns the faults any more";
}

TEST_P(WatchedRestore, WhatWasDiscardedIsZerosAndReported) {
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  SCAN(scan);
  EXPECT_EQ(read(0), word_at(at(0)));
  VMSPACE_ASSERT_OK(mapping().discard(0, 2 * unit()));  // one that has come, and one that has not
  EXPECT_EQ(read(0), 0U);
  auto found = harvest(scan);
  EXPECT_TRUE(is_in(found, 0) && is_in(found, 1));
  restore.resume_background();
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  EXPECT_EQ(read(1), 0U);
  VMSPACE_ASSERT_OK(mapping().discard(3 * unit(), unit()));
  EXPECT_EQ(read(3), 0U);
  found = harvest(scan);
  EXPECT_TRUE(is_in(found, 3));
  EXPECT_FALSE(is_in(found, 4));
  write(3);
  EXPECT_THAT(harvest(scan), ElementsAre(pages(3)));
}

TEST_P(WatchedRestore, WhatIsLostRaisesItsErrorAllTheSame) {
  source->fails = [](std::uint64_t page) { return page >= at(1) && page < at(2); };
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  SCAN(scan);
  const auto is_lost = [&](std::uint64_t index) {
    // A system call that reads it says so without a signal.
    const TempFile file;
    return ::pwrite(file.fd(), mapping().data() + index * unit(), 8, 0) < 0;
  };
  EXPECT_TRUE(is_lost(1));
  EXPECT_EQ(read(2), word_at(at(2)));
  write(2);
  EXPECT_TRUE(is_in(harvest(scan), 2));
  restore.cancel();
  EXPECT_TRUE(is_lost(1));
  EXPECT_TRUE(is_lost(4));
  EXPECT_EQ(read(2), word_at(at(2)));
  static_cast<void>(harvest(scan));
  EXPECT_TRUE(is_lost(4)) << "a harvest does not heal it";
  write(2);
  EXPECT_TRUE(is_in(harvest(scan), 2));
}

TEST_P(WatchedRestore, AfterTheEndTheMemoryIsLikeAnyOther) {
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  SCAN(scan);
  const TempFile early;
  EXPECT_THAT(save_snapshot(memory, early.fd()), HasError(Errc::bad_state));
  restore.resume_background();
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  const TempFile file;
  EXPECT_THAT(save_snapshot(memory, file.fd()), IsOk());
  EXPECT_THAT(DirtyScan::start(memory), HasError(Errc::bad_state)) << "but for a second scan";
}

TEST_P(WatchedRestore, WhoTouchesZerosAfterTheEndGoesOnWhereNobodyCanPoll) {
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  SCAN(scan);
  restore.resume_background();
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  Injector injector;
  injector.fail_always("poll", ENOMEM);
  // The first may end a poll that began before.
  auto reads = std::async(std::launch::async, [&] { return read(6) | read(7); });
  EXPECT_EQ(reads.wait_for(long_enough), std::future_status::ready);
  injector.fail_none();
  EXPECT_EQ(reads.get(), 0U);
}

TEST_P(WatchedRestore, WhicheverCallOfStartingFailsTheRestoreGoesOn) {
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  for (std::size_t index = 0;; ++index) {
    Injector injector;
    injector.fail_call(index, EIO);
    auto scan = DirtyScan::start(memory);
    const bool has_failed = injector.has_failed();
    injector.fail_none();
    if (scan) {
      write(2);
      EXPECT_TRUE(is_in(harvest(*scan), 2)) << index;
    }
    if (!has_failed) break;
  }
  EXPECT_EQ(read(3), word_at(at(3)));
  SCAN(scan);
  write(3);
  EXPECT_THAT(harvest(scan), ElementsAre(pages(3)));
  restore.resume_background();
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  EXPECT_EQ(read(4), word_at(at(4)));
}

TEST(WatchedRestoreOfMuchMemory, AllThatIsLostIsPoisonedPageByPage) {
  const GuestMemory memory = guest({{base, 512_MiB, Protection::read_write, MemorySource::shmem}});
  START_RESTORE_OR_SKIP(restore, memory, std::make_shared<WordSource>(), {.background = false});
  const auto scan = DirtyScan::start(memory);
  if (!scan && scan.error().code == Errc::unsupported) GTEST_SKIP() << scan.error().message();
  ASSERT_THAT(scan, IsOk());
  const Injector injector;
  restore.cancel();
  EXPECT_EQ(injector.count("mprotect"), 0U) << "which would take pages from the guest for good";
  EXPECT_LT(injector.calls().size(), 1'000U) << "no call for each page";
}

INSTANTIATE_TEST_SUITE_P(
    Memory, WatchedRestore,
    ::testing::Values(
        Kind{"anonymous", {.source = MemorySource::anon}},
        Kind{"memfd", {.source = MemorySource::shmem}},
        Kind{"anonymous_shared", {.source = MemorySource::anon, .sharing = Sharing::map_shared}},
        Kind{"hugetlb", {.source = MemorySource::hugeanon, .page_size = 2_MiB}, 2_MiB, 10},
        Kind{"hugetlb_shared", {.source = MemorySource::hugeshmem, .page_size = 2_MiB}, 2_MiB, 10}),
    [](const auto& kind) { return kind.param.name; });

}  // namespace
}  // namespace vmspace::dirty_scan_restore_test
