// SPDX-License-Identifier: Apache-2.0
//
// Snapshots of memory that is not all there: nothing is touched to find out that it is zero.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/snapshot_support.hpp"

namespace vmspace::snapshot_holes_test {
namespace {

using namespace test;

constexpr std::uint64_t huge_base = 0x4000'0000;

/// A guest of one region at `huge_base`.
GuestMemory guest_of(const BackingSpec& spec, std::uint64_t size) {
  const auto description =
      AddressSpaceRegion::make({.base = GuestAddress(huge_base), .size = size, .backing = spec});
  EXPECT_THAT(description, IsOk());
  auto region = MemoryRegion::map(*description);
  EXPECT_THAT(region, IsOk());
  return *GuestMemory::from_regions({*region});
}

TEST(Snapshot, SparseFilesAndRestoredMemoryKeepTheirHoles) {
  const GuestMemory memory = sample(MemorySource::shmem);
  TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd()));
  EXPECT_LE(static_cast<std::uint64_t>(file.status().st_blocks) * 512, 8 * page);
  const GuestMemory other =
      guest({{low, 64 * page, Protection::read_write, MemorySource::shmem},
             {high, 300 * page, Protection::read_write, MemorySource::shmem}});
  VMSPACE_ASSERT_OK(restore_snapshot(other, file.fd()));
  struct stat status {};
  ASSERT_EQ(fstat(other.regions()[1]->backing().fd(), &status), 0);
  EXPECT_LE(static_cast<std::uint64_t>(status.st_blocks) * 512, 3 * page);
}

TEST(Snapshot, SavingAndRestoringMakeNoPageOfTheGuest) {
  constexpr std::uint64_t size = 512_MiB;
  const OwnedFd memfd(memfd_create("memory", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(memfd.get(), size), 0);
  for (const BackingSpec& spec : {
           BackingSpec{.source = MemorySource::anon},
           BackingSpec{.source = MemorySource::anon, .sharing = Sharing::map_shared},
           BackingSpec{.source = MemorySource::shmem},
           BackingSpec{
               .source = MemorySource::file, .fd = memfd.get(), .sharing = Sharing::map_private},
       }) {
    SCOPED_TRACE(std::string(name_of(spec.source)) + (spec.is_shared() ? " shared" : " private"));
    const GuestMemory memory = guest_of(spec, size);
    const MemoryMapping& mapping = memory.regions()[0]->mapping();
    ASSERT_TRUE(memory.fill({GuestAddress(huge_base + 100 * page), page}, std::byte{1}));
    const auto before = mapping.residency();
    ASSERT_THAT(before, IsOk());
    TempFile file;
    EXPECT_EQ(save_snapshot(memory, file.fd())->stored, page);
    EXPECT_EQ(mapping.residency()->resident, before->resident);
    // Clearing: of all pages one is there, and is made 0.
    ASSERT_TRUE(memory.fill({GuestAddress(huge_base + 100 * page), page}, std::byte{2}));
    VMSPACE_ASSERT_OK(restore_snapshot(memory, file.fd()));
    EXPECT_EQ(memory.read<std::uint8_t>(GuestAddress(huge_base + 100 * page)), 1);
    EXPECT_EQ(mapping.residency()->resident, before->resident);
  }
}

TEST(Snapshot, SavingInFullWritesZerosForWhatIsNotThereAndMakesNoPage) {
  const GuestMemory memory = guest_of({.source = MemorySource::shmem}, 3_MiB + page);
  ASSERT_TRUE(memory.write_slice(GuestAddress(huge_base + 2 * page), pattern(page)));
  const int own = memory.regions()[0]->backing().fd();
  const std::uint64_t before = allocated_bytes(own);
  TempFile file;
  file.write(pattern(8_MiB));  // what was there before does not show through
  EXPECT_EQ(save_snapshot(memory, file.fd(), {.sparse = false})->stored, 3_MiB + page);
  EXPECT_EQ(allocated_bytes(own), before);
  EXPECT_GE(allocated_bytes(file.fd()), 3_MiB + page);
  const auto mapped = map_snapshot(file.fd());
  ASSERT_THAT(mapped, IsOk());
  expect_same(memory, *mapped);
}

TEST(Snapshot, HugetlbHolesAreNotTouchedWhenThePoolIsEmpty) {
  HugePages pool(2_MiB, 3);
  // Taking pages into the pool is root's, and they may not be there to be had.
  if (!pool.available()) GTEST_SKIP() << pool.why_not();
  for (const bool sparse : {true, false}) {
    const GuestMemory memory = guest_of({.source = MemorySource::hugeshmem}, 3 * 2_MiB);
    const MemoryMapping& mapping = memory.regions()[0]->mapping();
    fill(mapping, 1);
    VMSPACE_ASSERT_OK(mapping.discard(2_MiB, 2_MiB));
    // Somebody else takes the page that was given back.
    std::vector<MemoryMapping> taken;
    const auto backing = Backing::open({.source = MemorySource::hugeanon}, 2_MiB);
    for (;;) {
      auto one = MemoryMapping::map(*backing, {.size = 2_MiB});
      if (!one) break;
      fill(*one, 2);
      taken.push_back(std::move(*one));
    }
    ASSERT_EQ(pool.free(), 0U);
    TempFile file;
    // In a child, which a SIGBUS would end.
    EXPECT_EQ(in_child([&] {
                const auto saved = save_snapshot(memory, file.fd(), {.sparse = sparse});
                _exit(saved && saved->stored == (sparse ? 2 : 3) * 2_MiB ? 0 : 1);
              }),
              0);
    EXPECT_EQ(in_child([&] { _exit(inspect_snapshot(file.fd()) ? 0 : 1); }), 0);
    if (!sparse) continue;
    EXPECT_EQ(in_child([&] {
                signal(SIGBUS, SIG_DFL);  // a sanitizer's handler ends otherwise
                fill(mapping, 0);
                _exit(1);
              }),
              SIGBUS)
        << "the hole could be touched: the test shows nothing";
    EXPECT_EQ(in_child([&] { _exit(restore_snapshot(memory, file.fd()) ? 0 : 1); }), 0);
    EXPECT_TRUE(holds(mapping, 0, 2_MiB, 1));
    EXPECT_TRUE(holds(mapping, 4_MiB, 2_MiB, 1));
    // What is stored has nowhere to go: an error.
    TempFile whole;
    const GuestMemory other = guest_of({.source = MemorySource::anon}, 3 * 2_MiB);
    ASSERT_TRUE(other.fill({GuestAddress(huge_base), 3 * 2_MiB}, std::byte{3}));
    VMSPACE_ASSERT_OK(save_snapshot(other, whole.fd()));
    EXPECT_EQ(in_child([&] {
                const auto restored = restore_snapshot(memory, whole.fd());
                _exit(!restored && restored.error().os_errno == EFAULT ? 0 : 1);
              }),
              0);
  }
}

TEST(Snapshot, AReadOnlyRegionIsComparedWithoutTouchingWhatIsNotThere) {
  const GuestMemory memory = guest({{low, 64 * page, Protection::read, MemorySource::shmem}});
  TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd()));
  VMSPACE_ASSERT_OK(restore_snapshot(memory, file.fd()));
  EXPECT_EQ(allocated_bytes(memory.regions()[0]->backing().fd()), 0U);
  const auto regions = inspect_snapshot(file.fd());
  ASSERT_THAT(regions, IsOk());
  file.write({std::byte{1}}, static_cast<off_t>((*regions)[0].offset + 63 * page));
  EXPECT_THAT(restore_snapshot(memory, file.fd()), HasError(Errc::access_denied));
}

}  // namespace
}  // namespace vmspace::snapshot_holes_test
