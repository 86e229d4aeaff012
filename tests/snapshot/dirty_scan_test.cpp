// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/dirty_scan.hpp"

#include <fcntl.h>
#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/fault_owner.hpp"
#include "host/host_support.hpp"
#include "memory/guest_support.hpp"
#include "snapshot/dirty_scan_support.hpp"

namespace vmspace::dirty_scan_test {
namespace {

using namespace test;
using namespace test::scanned;
using test::guest;
using test::page;
using test::region;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(DirtyScan, NeighbouringRegionsGiveOneRange) {
  const GuestMemory memory =
      guest({{base, 10 * page},
             {base + 10 * page, 10 * page, Protection::read_write, MemorySource::shmem}});
  START_SCAN_OR_SKIP(scan, memory);
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
  START_SCAN_OR_SKIP(scan, memory);
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
  START_SCAN_OR_SKIP(scan, memory);
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
    START_SCAN_OR_SKIP(scan, memory);
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
    START_SCAN_OR_SKIP(scan, memory);
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
    START_SCAN_OR_SKIP(scan, memory);
    const auto refused = test::resized(memory.regions()[0], 16 * page);
    ASSERT_THAT(refused, HasError(Errc::bad_state));
    EXPECT_THAT(refused.error().message(), HasSubstr("DirtyScan"));
  }
  EXPECT_THAT(test::resized(memory.regions()[0], 16 * page), IsOk());
}

// It does not stand in the way of what its harvests are for.
TEST(DirtyScan, ADifferentialSnapshotIsMadeOfAHarvest) {
  const GuestMemory memory = guest({{base, size}});
  write(memory, 0, 50);
  START_SCAN_OR_SKIP(scan, memory);
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
  EXPECT_EQ(test::contents(again, base, size), test::contents(memory, base, size));
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
  START_SCAN_OR_SKIP(scan, memory);
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
  { START_SCAN_OR_SKIP(works, *GuestMemory::from_regions({own})); }
  const GuestMemory memory = *GuestMemory::from_regions({*external, own});
  const auto scan = DirtyScan::start(memory);
  ASSERT_THAT(scan, HasError(Errc::unsupported));
  EXPECT_THAT(scan.error().message(), HasSubstr("bar"));
  EXPECT_THAT(DirtyScan::start(*GuestMemory::from_regions({own})), IsOk());
}

TEST(DirtyScan, OneThatWasMovedFromSaysSo) {
  const GuestMemory memory = guest({{base, size}});
  START_SCAN_OR_SKIP(first, memory);
  DirtyScan second = std::move(first);
  EXPECT_THAT(first.harvest(), HasError(Errc::bad_state));  // NOLINT(bugprone-use-after-move)
  write(memory, 1);
  EXPECT_THAT(harvest(second), ElementsAre(pages(1, 1)));
}

TEST(DirtyScan, WhatTheKernelLacksIsNamed) {
  const GuestMemory memory = guest({{base, size}});
  { START_SCAN_OR_SKIP(scan, memory); }
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
  { START_SCAN_OR_SKIP(scan, memory); }
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
    START_SCAN_OR_SKIP(scan, memory);
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
}  // namespace vmspace::dirty_scan_test
