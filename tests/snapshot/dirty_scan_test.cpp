// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/dirty_scan.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/testing.hpp"

#include "faults/failing_new.hpp"
#include "faults/injector.hpp"
#include "host/fault_owner.hpp"
#include "host/host_support.hpp"
#include "memory/guest_support.hpp"

namespace vmspace {
namespace {

using namespace test;
using ::testing::ElementsAre;
using testing::guest;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::page;
using testing::region;

constexpr std::uint64_t base = 0x10'0000;
constexpr std::uint64_t size = 300 * page;

GuestRange pages(std::uint64_t first, std::uint64_t count) {
  return {GuestAddress(base + first * page), count * page};
}

/// Starts a scan, or skips the test where kernel or rights are missing.
#define START_OR_SKIP(name, memory)                                            \
  auto started_##name = DirtyScan::start(memory);                              \
  if (!started_##name && (started_##name.error().code == Errc::unsupported ||  \
                          started_##name.error().code == Errc::access_denied)) \
    GTEST_SKIP() << started_##name.error().message();                          \
  ASSERT_THAT(started_##name, IsOk());                                         \
  DirtyScan name = *std::move(started_##name)

std::vector<GuestRange> harvest(DirtyScan& scan) {
  auto ranges = harvest_dirty(scan);
  EXPECT_THAT(ranges, IsOk());
  return ranges ? *ranges : std::vector<GuestRange>{};
}

void write(const GuestMemory& memory, std::uint64_t first, std::uint64_t count = 1) {
  for (std::uint64_t i = first; i < first + count; ++i)
    VMSPACE_EXPECT_OK(memory.write(GuestAddress(base + i * page + 8), std::uint64_t{0x1234}));
}

/// Each kind of memory with small pages.
class DirtyScanKinds : public ::testing::Test {
 protected:
  DirtyScanKinds()
      : memfd_(::memfd_create("memory", MFD_CLOEXEC)),
        path_(directory_.file("ram", 0, ' ')),
        specs_{
            {.source = MemorySource::anon},
            {.source = MemorySource::anon, .sharing = Sharing::map_shared},
            {.source = MemorySource::shmem},
            {.source = MemorySource::file, .fd = memfd_.get(), .sharing = Sharing::map_private},
            {.source = MemorySource::file, .fd = memfd_.get(), .discardable = true},
            {.source = MemorySource::file, .path = path_, .sharing = Sharing::map_private},
            {.source = MemorySource::file, .path = path_, .discardable = true},
        } {
    EXPECT_EQ(::ftruncate(memfd_.get(), size), 0);
    EXPECT_EQ(::truncate(path_.c_str(), size), 0);
  }

  static std::string name(const BackingSpec& spec) {
    return (spec.is_shared() ? "shared " : "private ") +
           std::string(spec.fd ? "memfd" : name_of(spec.source));
  }
  static GuestMemory map(const BackingSpec& spec) {
    auto mapped = MemoryRegion::map(
        {.name = "ram", .base = GuestAddress(base), .size = size, .backing = spec});
    VMSPACE_EXPECT_OK(mapped);
    auto memory = GuestMemory::from_regions({*mapped});
    VMSPACE_EXPECT_OK(memory);
    return *memory;
  }

  TemporaryDirectory directory_;
  OwnedFd memfd_;
  std::string path_;
  std::vector<BackingSpec> specs_;
};

TEST_F(DirtyScanKinds, WhatWasWrittenIsReportedOnce) {
  for (const BackingSpec& spec : specs_) {
    SCOPED_TRACE(name(spec));
    const GuestMemory memory = map(spec);
    write(memory, 0, 20);  // present when it starts
    START_OR_SKIP(scan, memory);
    EXPECT_THAT(harvest(scan), IsEmpty());
    write(memory, 3, 2);
    write(memory, 19);
    write(memory, 200);  // was absent
    write(memory, size / page - 1);
    EXPECT_THAT(harvest(scan),
                ElementsAre(pages(3, 2), pages(19, 1), pages(200, 1), pages(size / page - 1, 1)));
    EXPECT_THAT(harvest(scan), IsEmpty());
    write(memory, 4);
    write(memory, 200);
    EXPECT_THAT(harvest(scan), ElementsAre(pages(4, 1), pages(200, 1)));
  }
}

TEST_F(DirtyScanKinds, OfWhatWasPresentReadingReportsNothing) {
  for (const BackingSpec& spec : specs_) {
    SCOPED_TRACE(name(spec));
    const GuestMemory memory = map(spec);
    write(memory, 0, 20);
    START_OR_SKIP(scan, memory);
    for (std::uint64_t i = 0; i < 20; ++i)
      EXPECT_THAT(memory.read<std::uint64_t>(GuestAddress(base + i * page)), IsOk());
    EXPECT_THAT(harvest(scan), IsEmpty());
  }
}

TEST_F(DirtyScanKinds, WritesOfTheKernelAreReported) {
  const TemporaryDirectory directory;
  const OwnedFd file(::open(directory.file("data", 4 * page, 'x').c_str(), O_RDONLY | O_CLOEXEC));
  for (const BackingSpec& spec : specs_) {
    SCOPED_TRACE(name(spec));
    const GuestMemory memory = map(spec);
    write(memory, 0, 20);
    START_OR_SKIP(scan, memory);
    std::byte* const host = *memory.host_address(pages(10, 2));
    ASSERT_EQ(::pread(file.get(), host, 2 * page, 0), static_cast<ssize_t>(2 * page));
    EXPECT_THAT(harvest(scan), ElementsAre(pages(10, 2)));
  }
}

TEST_F(DirtyScanKinds, DiscardedPagesAreReportedAndWatchedOn) {
  for (const BackingSpec& spec : specs_) {
    SCOPED_TRACE(name(spec));
    const GuestMemory memory = map(spec);
    write(memory, 0, 20);
    START_OR_SKIP(scan, memory);
    const MemoryMapping& mapping = memory.regions()[0]->mapping();
    VMSPACE_ASSERT_OK(mapping.discard(5 * page, 3 * page));
    EXPECT_THAT(harvest(scan), ElementsAre(pages(5, 3)));
    EXPECT_THAT(harvest(scan), IsEmpty());
    write(memory, 6);
    EXPECT_THAT(harvest(scan), ElementsAre(pages(6, 1)));
  }
}

TEST_F(DirtyScanKinds, HarvestsGoOnWhilePagesAreDiscarded) {
  for (const BackingSpec& spec : specs_) {
    SCOPED_TRACE(name(spec));
    const GuestMemory memory = map(spec);
    START_OR_SKIP(scan, memory);
    const std::jthread discarder([&](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        VMSPACE_EXPECT_OK(memory.regions()[0]->mapping().discard(5 * page, page));
        std::this_thread::yield();
      }
    });
    for (int i = 0; i < 1'000; ++i)
      ASSERT_THAT(scan.harvest(), IsOk());
  }
}

TEST_F(DirtyScanKinds, PagesThatAreDiscardedAgainAndAgainTakeNoMoreMemory) {
  const GuestMemory memory = map(specs_.front());
  START_OR_SKIP(scan, memory);
  const MemoryMapping& mapping = memory.regions()[0]->mapping();
  test::largest = 0;
  for (std::uint64_t i = 0; i < 10'000; ++i)
    VMSPACE_ASSERT_OK(mapping.discard(i % 4 * page, page));
  EXPECT_LT(test::largest, 4096U);
  EXPECT_THAT(harvest(scan), ElementsAre(pages(0, 4)));
}

// The kernel may do so at any time, to swap a page out or to write it back.
TEST_F(DirtyScanKinds, PagesThatLeaveThePageTablesAreNotLost) {
  for (const BackingSpec& spec : specs_) {
    if (!spec.is_shared()) continue;
    SCOPED_TRACE(name(spec));
    const GuestMemory memory = map(spec);
    write(memory, 0, 20);
    START_OR_SKIP(scan, memory);
    write(memory, 7);
    write(memory, 100);
    std::byte* const host = *memory.host_address({GuestAddress(base), size});
    // Takes the pages out of the page tables, and leaves them in the file.
    ASSERT_EQ(::madvise(host, size, MADV_DONTNEED), 0);
    const auto found = harvest(scan);
    const auto is_found = [&](GuestRange range) {
      return std::ranges::any_of(found, [&](const GuestRange& one) {
        return one.base <= range.base && range.end() <= one.end();
      });
    };
    EXPECT_TRUE(is_found(pages(7, 1)));
    EXPECT_TRUE(is_found(pages(100, 1)));
    EXPECT_FALSE(is_found(pages(8, 1))) << "its mark stays";
    EXPECT_THAT(harvest(scan), IsEmpty());
  }
}

TEST(DirtyScan, NeighbouringRegionsGiveOneRange) {
  const GuestMemory memory =
      guest({{base, 10 * page},
             {base + 10 * page, 10 * page, Protection::read_write, MemorySource::shmem}});
  START_OR_SKIP(scan, memory);
  write(memory, 8, 4);
  EXPECT_THAT(harvest(scan), ElementsAre(pages(8, 4)));
}

TEST(DirtyScan, OfAnonymousHugePagesOnlyWhatWasWrittenIsReported) {
  auto mapped = MemoryRegion::map({.name = "ram",
                                   .base = GuestAddress(4_MiB),
                                   .size = 8_MiB,
                                   .backing = {.source = MemorySource::anon},
                                   .huge_pages = true,
                                   .populate = true});
  ASSERT_THAT(mapped, IsOk());
  const MemoryMapping& mapping = (*mapped)->mapping();
  if (mapping.residency()->huge.value_or(0) != 8_MiB) GTEST_SKIP() << "no huge pages to be had";
  const GuestMemory memory = *GuestMemory::from_regions({*mapped});
  START_OR_SKIP(scan, memory);
  EXPECT_THAT(harvest(scan), IsEmpty());
  EXPECT_EQ(mapping.residency()->huge, 8_MiB) << "watching splits none";
  VMSPACE_EXPECT_OK(memory.write(GuestAddress(6_MiB + 5 * page), 1));
  EXPECT_THAT(harvest(scan), ElementsAre(GuestRange{GuestAddress(6_MiB + 5 * page), page}));
  EXPECT_EQ(mapping.residency()->huge, 6_MiB) << "writing splits one";
}

TEST(DirtyScan, OfHugePagesOfAMemfdWholePagesAreReported) {
  const GuestMemory memory = guest({{4_MiB, 8_MiB, Protection::read_write, MemorySource::shmem}});
  const MemoryMapping& mapping = memory.regions()[0]->mapping();
  ASSERT_TRUE(memory.fill({GuestAddress(4_MiB), 8_MiB}, std::byte{1}));
  const auto collapsed = mapping.collapse(0, 8_MiB);
  if (!collapsed) GTEST_SKIP() << collapsed.error().message();
  ASSERT_TRUE(memory.fill({GuestAddress(4_MiB), 8_MiB}, std::byte{2}));
  if (mapping.residency()->huge.value_or(0) != 8_MiB) GTEST_SKIP() << "no huge pages to be had";
  START_OR_SKIP(scan, memory);
  for (int round = 0; round < 2; ++round) {
    EXPECT_THAT(harvest(scan), IsEmpty());
    VMSPACE_EXPECT_OK(memory.write(GuestAddress(6_MiB + 5 * page), 1));
    EXPECT_THAT(harvest(scan), ElementsAre(GuestRange{GuestAddress(6_MiB), 2_MiB}));
  }
  EXPECT_EQ(mapping.residency()->huge, 8_MiB);
}

TEST(DirtyScan, OfHugetlbMemoryWholePagesAreReported) {
  const HugePages pool(2_MiB, 6);
  if (!pool.available()) GTEST_SKIP() << pool.why_not();
  for (const auto source : {MemorySource::hugeanon, MemorySource::hugeshmem}) {
    const GuestMemory memory = guest({{4_MiB, 6_MiB, Protection::read_write, source}});
    VMSPACE_EXPECT_OK(memory.write(GuestAddress(4_MiB), 1));
    START_OR_SKIP(scan, memory);
    EXPECT_THAT(harvest(scan), IsEmpty());
    VMSPACE_EXPECT_OK(memory.write(GuestAddress(4_MiB + 5 * page), 1));
    VMSPACE_EXPECT_OK(memory.write(GuestAddress(8_MiB + 5 * page), 1));
    EXPECT_THAT(harvest(scan), ElementsAre(GuestRange{GuestAddress(4_MiB), 2_MiB},
                                           GuestRange{GuestAddress(8_MiB), 2_MiB}));
    EXPECT_THAT(harvest(scan), IsEmpty());
  }
}

TEST(DirtyScan, SeveralScansOfTheSameMemoryAreRefusedByName) {
  const GuestMemory memory = guest({{base, size}});
  {
    START_OR_SKIP(scan, memory);
    const auto second = DirtyScan::start(memory);
    ASSERT_THAT(second, HasError(Errc::bad_state));
    EXPECT_THAT(second.error().message(), HasSubstr("DirtyScan"));
    write(memory, 1);
    EXPECT_THAT(harvest(scan), ElementsAre(pages(1, 1))) << "the first one is as before";
  }
  EXPECT_THAT(DirtyScan::start(memory), IsOk());
}

// What is written through the other mapping would not be found.
TEST(DirtyScan, ARegionKeepsItsSizeMeanwhile) {
  const GuestMemory memory = guest({{base, size, Protection::read_write, MemorySource::shmem}});
  {
    START_OR_SKIP(scan, memory);
    const auto refused = testing::resized(memory.regions()[0], 16 * page);
    ASSERT_THAT(refused, HasError(Errc::bad_state));
    EXPECT_THAT(refused.error().message(), HasSubstr("DirtyScan"));
  }
  EXPECT_THAT(testing::resized(memory.regions()[0], 16 * page), IsOk());
}

// It does not stand in the way of what its harvests are for.
TEST(DirtyScan, ADifferentialSnapshotIsMadeOfAHarvest) {
  const GuestMemory memory = guest({{base, size}});
  write(memory, 0, 50);
  START_OR_SKIP(scan, memory);
  EXPECT_EQ(detail::FaultClaim::holder(memory.regions()[0]->mapping()), nullptr);
  const OwnedFd full(::memfd_create("full", MFD_CLOEXEC));
  const OwnedFd changes(::memfd_create("changes", MFD_CLOEXEC));
  const auto saved = save_snapshot(memory, full.get());
  ASSERT_THAT(saved, IsOk());
  EXPECT_THAT(memory.write(GuestAddress(base + 20 * page), std::uint64_t{0x5678}), IsOk());
  VMSPACE_EXPECT_OK(memory.regions()[0]->mapping().discard(30 * page, page));
  const std::vector<GuestRange> written = harvest(scan);
  const SaveOptions options{.changes = SnapshotChanges{saved->id, written}};
  const auto difference = save_snapshot(memory, changes.get(), options);
  ASSERT_THAT(difference, IsOk());
  EXPECT_EQ(difference->stored, page);

  const GuestMemory again = guest({{base, size}});
  const std::array parents{full.get()};
  auto reader = SnapshotReader::open(changes.get(), parents);
  ASSERT_THAT(reader, IsOk());
  VMSPACE_ASSERT_OK(restore_snapshot(again, *reader));
  EXPECT_EQ(testing::contents(again, base, size), testing::contents(memory, base, size));
}

TEST(DirtyScan, MemoryThatNobodyMayWriteIsLeftOut) {
  const TemporaryDirectory directory;
  const OwnedFd file(::open(directory.file("rom", 4 * page, 'x').c_str(), O_RDONLY | O_CLOEXEC));
  auto rom = MemoryRegion::map({.name = "rom",
                                .base = GuestAddress(0),
                                .size = 4 * page,
                                .backing = {.source = MemorySource::file, .fd = file.get()},
                                .protection = Protection::read});
  ASSERT_THAT(rom, IsOk());
  const GuestMemory memory = *GuestMemory::from_regions({*rom, region({base, size})});
  START_OR_SKIP(scan, memory);
  write(memory, 1);
  EXPECT_THAT(harvest(scan), ElementsAre(pages(1, 1)));
}

TEST(DirtyScan, MemoryOfOthersIsUnsupportedAndNothingIsWatched) {
  const auto outside = map_or_die({.source = MemorySource::anon}, {.size = size});
  auto external =
      MemoryRegion::map({.name = "bar",
                         .base = GuestAddress(0),
                         .size = size,
                         .backing = {.source = MemorySource::external}},
                        {.external = ExternalMemory{.data = outside.data(), .size = size}});
  ASSERT_THAT(external, IsOk());
  const MemoryRegionPtr own = region({0x80'0000, size});
  const GuestMemory memory = *GuestMemory::from_regions({*external, own});
  const auto scan = DirtyScan::start(memory);
  if (!scan && scan.error().code == Errc::access_denied) GTEST_SKIP() << scan.error().message();
  ASSERT_THAT(scan, HasError(Errc::unsupported));
  if (scan.error().message().find("bar") == std::string::npos)
    GTEST_SKIP() << scan.error().message();
  EXPECT_THAT(DirtyScan::start(*GuestMemory::from_regions({own})), IsOk());
}

TEST(DirtyScan, OneThatWasMovedFromSaysSo) {
  const GuestMemory memory = guest({{base, size}});
  START_OR_SKIP(first, memory);
  DirtyScan second = std::move(first);
  EXPECT_THAT(first.harvest(), HasError(Errc::bad_state));  // NOLINT(bugprone-use-after-move)
  write(memory, 1);
  EXPECT_THAT(harvest(second), ElementsAre(pages(1, 1)));
}

TEST(DirtyScan, WhatTheKernelLacksIsNamed) {
  const GuestMemory memory = guest({{base, size}});
  { START_OR_SKIP(scan, memory); }
  Injector injector;
  injector.hide_proc_and_sys();
  EXPECT_THAT(DirtyScan::start(memory), HasError(Errc::unsupported));
  // Linux before 6.7 knows neither the ioctl nor the feature.
  injector.table().ioctl = [](int fd, unsigned long request, void* argument) {
    if (_IOC_TYPE(request) == 'f') {
      errno = ENOTTY;
      return -1;
    }
    return detail::real_system_calls.ioctl(fd, request, argument);
  };
  injector.table().open = detail::real_system_calls.open;
  const auto scan = DirtyScan::start(memory);
  ASSERT_THAT(scan, HasError(Errc::unsupported));
  EXPECT_THAT(scan.error().message(), HasSubstr("PAGEMAP_SCAN"));
}

TEST(DirtyScan, WhicheverCallFailsNothingIsWatchedAndNothingIsLost) {
  const GuestMemory memory =
      guest({{base, 10 * page},
             {base + 10 * page, 10 * page, Protection::read_write, MemorySource::shmem}});
  { START_OR_SKIP(scan, memory); }
  for (std::size_t index = 0;; ++index) {
    Injector injector;
    injector.fail_call(index, EIO);
    auto started = DirtyScan::start(memory);
    const bool failed = injector.has_failed();
    injector.fail_none();
    // Closing fails without an effect, and one way to open stands in for another.
    if (started) {
      write(memory, 2);
      EXPECT_THAT(harvest(*started), ElementsAre(pages(2, 1)));
    }
    if (!failed) break;
    if (!started) {
      EXPECT_THAT(DirtyScan::start(memory), IsOk()) << index;
    }
  }
  auto scan = DirtyScan::start(memory);
  ASSERT_THAT(scan, IsOk());
  for (std::size_t index = 0;; ++index) {
    write(memory, 3);
    write(memory, 9, 2);
    Injector injector;
    injector.fail_call(index, EIO);
    const auto found = scan->harvest();
    const bool failed = injector.has_failed();
    injector.fail_none();
    if (!failed) {
      EXPECT_THAT(*found, ElementsAre(pages(3, 1), pages(9, 2)));
      break;
    }
    ASSERT_THAT(found, HasError(Errc::os)) << index;
    EXPECT_THAT(harvest(*scan), ElementsAre(pages(3, 1), pages(9, 2))) << index;
  }
}

TEST(DirtyScan, ManyRangesAreAllFound) {
  constexpr std::uint64_t count = 4096;
  for (const auto source : {MemorySource::anon, MemorySource::shmem}) {
    const GuestMemory memory = guest({{base, 2 * count * page, Protection::read_write, source}});
    START_OR_SKIP(scan, memory);
    std::vector<GuestRange> expected;
    for (std::uint64_t i = 0; i < count; ++i) {
      write(memory, 2 * i);
      expected.push_back(pages(2 * i, 1));
    }
    EXPECT_EQ(harvest(scan), expected);
    EXPECT_THAT(harvest(scan), IsEmpty());
  }
}

}  // namespace
}  // namespace vmspace
