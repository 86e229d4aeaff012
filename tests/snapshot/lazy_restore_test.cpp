// SPDX-License-Identifier: Apache-2.0
//
// LazyRestore: memory is usable at once and holds what the source has, whatever kind it is of and
// whoever touches it first; what may not be done meanwhile is refused, and possible afterwards.

#include "vmspace/snapshot/lazy_restore.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <ostream>
#include <thread>

#include "vmspace/memory/region_descriptor.hpp"
#include "vmspace/snapshot/snapshot.hpp"

#include "host/host_support.hpp"
#include "snapshot/lazy_support.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::lazy_restore_test {
namespace {

using namespace test;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::uint64_t base = 0x1'0000'0000;

MemoryRegionPtr map_or_skip(RegionOptions options) {
  options.base = GuestAddress(base);
  auto region = MemoryRegion::map(std::move(options));
  return region ? *region : nullptr;
}

GuestMemory memory_of(MemoryRegionPtr region) {
  auto memory = GuestMemory::from_regions({std::move(region)});
  VMSPACE_EXPECT_OK(memory);
  return *memory;
}

/// The backing, its size, and how many pages of a hugetlb pool it needs.
struct Kind {
  const char* name;
  BackingSpec spec;
  std::uint64_t size;
  std::uint64_t huge_pages = 0;
};

void PrintTo(const Kind& kind, std::ostream* out) {
  *out << kind.name;
}

class LazyRestoreKinds : public ::testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    if (GetParam().huge_pages != 0 && !pool_.available()) GTEST_SKIP() << pool_.why_not();
  }

 private:
  const HugePages pool_{2_MiB, GetParam().huge_pages};
};

TEST_P(LazyRestoreKinds, BringsWhatIsTouchedThenTheRest) {
  const auto region =
      map_or_skip({.name = "ram", .size = GetParam().size, .backing = GetParam().spec});
  ASSERT_NE(region, nullptr);
  const GuestMemory memory = memory_of(region);
  const auto source = std::make_shared<WordSource>();
  // A few pages of zeros; whole huge pages of them, too.
  source->is_zero = [](std::uint64_t page) {
    return page / source_page % 5 == 3 || page / 2_MiB % 3 == 1;
  };
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  // Every third page but at the end, by reading and by writing.
  for (std::uint64_t at = 0; at < region->size() - 2_MiB; at += 3 * source_page) {
    const std::uint64_t address = base + at;
    const bool zero = source->is_zero(address);
    if (at % 2 == 0) {
      ASSERT_TRUE(holds_words(region->host_base() + at, address, zero)) << std::hex << address;
    } else {
      VMSPACE_ASSERT_OK(memory.write(GuestAddress(address), std::uint64_t{7}));
      ASSERT_EQ(*memory.read<std::uint64_t>(GuestAddress(address + 8)),
                zero ? 0 : word_at(address + 8));
      VMSPACE_ASSERT_OK(memory.write(GuestAddress(address), zero ? 0 : word_at(address)));
    }
  }
  EXPECT_FALSE(restore.is_done());
  EXPECT_THAT(restore.wait(std::chrono::milliseconds(1)), HasError(Errc::timed_out));
  const auto before = restore.statistics();
  EXPECT_GT(before.faults, 0U);
  EXPECT_GT(before.demand, 0U);
  EXPECT_EQ(before.background, 0U);
  EXPECT_EQ(settled(before) + before.remaining, region->size());
  restore.resume_background();
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  EXPECT_TRUE(restore.is_done());
  expect_restored(memory, *source);
  const auto after = restore.statistics();
  EXPECT_EQ(after.remaining, 0U);
  EXPECT_EQ(after.errors, 0U);
  EXPECT_EQ(settled(after), region->size());
  EXPECT_EQ(after.lost, 0U);
}

TEST_P(LazyRestoreKinds, ComesByItselfOnOneThread) {
  const auto region =
      map_or_skip({.name = "ram", .size = GetParam().size, .backing = GetParam().spec});
  ASSERT_NE(region, nullptr);
  const GuestMemory memory = memory_of(region);
  const auto source = std::make_shared<WordSource>();
  source->is_zero = [](std::uint64_t page) { return page / 2_MiB % 2 == 1; };
  source->finds_holes = true;
  START_RESTORE_OR_SKIP(restore, memory, source, {.threads = 1});
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  EXPECT_EQ(restore.statistics().faults, 0U);
  const std::uint64_t data = restore.statistics().background;
  EXPECT_EQ(source->bytes_read, data) << "holes are not read";
  expect_restored(memory, *source);
}

TEST_P(LazyRestoreKinds, DiscardedPagesDoNotComeBack) {
  const auto region =
      map_or_skip({.name = "ram", .size = GetParam().size, .backing = GetParam().spec});
  ASSERT_NE(region, nullptr);
  const GuestMemory memory = memory_of(region);
  const auto source = std::make_shared<WordSource>();
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  const std::uint64_t unit = std::max<std::uint64_t>(region->mapping().page_size(), source_page);
  // One that has come, and two that have not, of which one is read before the end.
  ASSERT_TRUE(holds_words(region->host_base(), base));
  VMSPACE_ASSERT_OK(region->mapping().discard(0, 3 * unit));
  EXPECT_EQ(restore.statistics().discarded, 2 * unit);
  EXPECT_TRUE(holds_words(region->host_base(), base, true));
  EXPECT_TRUE(holds_words(region->host_base() + unit, base + unit, true));
  restore.resume_background();
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  for (std::uint64_t at = 0; at < region->size(); at += source_page) {
    ASSERT_TRUE(holds_words(region->host_base() + at, base + at, at < 3 * unit)) << at;
  }
}

TEST_P(LazyRestoreKinds, AWorkingSetComesWithoutFaults) {
  const SnapshotId id{{1, 2, 3}};
  const auto source = std::make_shared<WordSource>();
  WorkingSet recorded;
  for (int run = 0; run < 2; ++run) {
    const auto region =
        map_or_skip({.name = "ram", .size = GetParam().size, .backing = GetParam().spec});
    ASSERT_NE(region, nullptr);
    const GuestMemory memory = memory_of(region);
    START_RESTORE_OR_SKIP(restore, memory, source,
                          {.background = false, .working_set = recorded, .snapshot = id});
    while (restore.statistics().working_set < recorded.total_size())
      std::this_thread::yield();
    for (std::uint64_t at = 0; at < region->size(); at += 2 * region->mapping().page_size())
      EXPECT_TRUE(holds_words(region->host_base() + at, base + at));
    if (run == 0) {
      EXPECT_GT(restore.statistics().faults, 0U);
    } else {
      EXPECT_EQ(restore.statistics().faults, 0U);
      EXPECT_EQ(restore.statistics().working_set, recorded.total_size());
    }
    const auto set = restore.working_set();
    ASSERT_THAT(set, IsOk());
    if (run == 1) {
      EXPECT_EQ(*set, recorded);
    }
    recorded = *set;
    EXPECT_EQ(recorded.snapshot(), id);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Memory, LazyRestoreKinds,
    ::testing::Values(
        Kind{"anonymous", {.source = MemorySource::anon}, 9_MiB},
        Kind{"memfd", {.source = MemorySource::shmem}, 9_MiB},
        Kind{"anonymous_shared",
             {.source = MemorySource::anon, .sharing = Sharing::map_shared},
             9_MiB},
        Kind{"hugetlb", {.source = MemorySource::hugeanon, .page_size = 2_MiB}, 12_MiB, 6},
        Kind{"hugetlb_shared", {.source = MemorySource::hugeshmem, .page_size = 2_MiB}, 12_MiB, 6}),
    [](const auto& kind) { return kind.param.name; });

}  // namespace
}  // namespace vmspace::lazy_restore_test
