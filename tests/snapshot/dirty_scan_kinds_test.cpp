// SPDX-License-Identifier: Apache-2.0
//
// DirtyScan of each kind of memory with small pages.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/snapshot/dirty_scan.hpp"
#include "vmspace/testing.hpp"

#include "faults/failing_new.hpp"
#include "host/host_support.hpp"
#include "memory/guest_support.hpp"
#include "snapshot/dirty_scan_support.hpp"

namespace vmspace::dirty_scan_kinds_test {
namespace {

using namespace test;
using namespace test::scanned;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

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
    START_SCAN_OR_SKIP(scan, memory);
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
    START_SCAN_OR_SKIP(scan, memory);
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
    START_SCAN_OR_SKIP(scan, memory);
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
    START_SCAN_OR_SKIP(scan, memory);
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
    START_SCAN_OR_SKIP(scan, memory);
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
  START_SCAN_OR_SKIP(scan, memory);
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
    START_SCAN_OR_SKIP(scan, memory);
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

}  // namespace
}  // namespace vmspace::dirty_scan_kinds_test
