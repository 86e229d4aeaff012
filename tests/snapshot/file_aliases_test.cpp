// SPDX-License-Identifier: Apache-2.0
//
// Memory that is one part of a file at two guest addresses, where faults tell of one of them alone.

#include <sys/mman.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"
#include "snapshot/dirty_scan_support.hpp"
#include "snapshot/lazy_support.hpp"
#include "snapshot/live_support.hpp"

namespace vmspace::test::file_aliases_test {
namespace {

constexpr std::uint64_t part = 64_KiB;

class FileAliases : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(::ftruncate(file.get(), 4 * part), 0); }

  /// Two regions of `part` bytes each, at these offsets in the file, each by a descriptor of its own.
  [[nodiscard]] GuestMemory memory(std::uint64_t first, std::uint64_t second,
                                   Protection protection = Protection::read_write) const {
    std::vector<MemoryRegionPtr> regions;
    for (const std::uint64_t offset : {first, second}) {
      auto region = MemoryRegion::map(
          {.name = "part " + std::to_string(regions.size()),
           .base = GuestAddress(regions.size() * 1_MiB),
           .size = part,
           .backing = {.source = MemorySource::file, .fd = file.get(), .offset = offset},
           .protection = protection});
      VMSPACE_EXPECT_OK(region);
      regions.push_back(*region);
    }
    return *GuestMemory::from_regions(regions);
  }

  OwnedFd file{::memfd_create("guest", MFD_CLOEXEC)};
  TempFile saved;
  std::shared_ptr<WordSource> source = std::make_shared<WordSource>();
};

/// An overlap, of which the error names both.
template <typename T>
void expect_alias(const Result<T>& refused) {
  ASSERT_THAT(refused, HasError(Errc::overlap));
  EXPECT_EQ(refused.error().first, Operand::span(0, part));
  EXPECT_EQ(refused.error().second, Operand::span(1_MiB, part));
  EXPECT_EQ(refused.error().text.subject(), "part 1");
}

TEST_F(FileAliases, AreNotSavedLive) {
  expect_alias(prepare_live(memory(0, 0), saved.fd()));
  expect_alias(prepare_live(memory(page, 0), saved.fd()));
  PREPARE_OR_SKIP(snapshot, memory(part, 0), saved.fd());
  VMSPACE_ASSERT_OK(snapshot.take());
  VMSPACE_EXPECT_OK(snapshot.wait());
}

TEST_F(FileAliases, AreNotRestoredLazily) {
  expect_alias(LazyRestore::start(memory(0, part - page), source));
  START_RESTORE_OR_SKIP(restore, memory(0, part), source);
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
}

TEST_F(FileAliases, AreNotWatchedForWrites) {
  { START_SCAN_OR_SKIP(works, memory(0, part)); }
  expect_alias(DirtyScan::start(memory(0, 0)));
}

TEST_F(FileAliases, ThatTheGuestOnlyReadsAreNoMatter) {
  START_SCAN_OR_SKIP(scan, memory(0, 0, Protection::read));
  EXPECT_THAT(scan.harvest(), IsOkAndHolds(std::vector<GuestRange>{}));
}

}  // namespace
}  // namespace vmspace::test::file_aliases_test
