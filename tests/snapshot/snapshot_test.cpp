// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/snapshot.hpp"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/snapshot_support.hpp"

namespace vmspace::snapshot_test {
namespace {

using namespace test;

TEST(Snapshot, RestoresFromEveryBackingIntoEveryOtherFullAndSparse) {
  for (const auto from : {MemorySource::anon, MemorySource::shmem}) {
    const GuestMemory memory = sample(from);
    for (const bool sparse : {false, true}) {
      TempFile file;
      const auto saved = save_snapshot(memory, file.fd(), {.sparse = sparse});
      ASSERT_THAT(saved, IsOk());
      EXPECT_EQ(saved->stored, sparse ? 5 * page : 364 * page);
      for (const auto to : {MemorySource::anon, MemorySource::shmem}) {
        SCOPED_TRACE(std::string(name_of(from)) + " to " + std::string(name_of(to)));
        const GuestMemory other = guest({{low, 64 * page, Protection::read_write, to},
                                         {high, 300 * page, Protection::read_write, to}});
        // What is there before goes.
        ASSERT_TRUE(other.fill({GuestAddress(low), 64 * page}, std::byte{0xee}));
        ASSERT_TRUE(other.fill({GuestAddress(high + 50 * page), page}, std::byte{0xee}));
        VMSPACE_ASSERT_OK(restore_snapshot(other, file.fd()));
        expect_same(memory, other);
      }
      const auto mapped = map_snapshot(file.fd());
      ASSERT_THAT(mapped, IsOk());
      expect_same(memory, *mapped);
    }
  }
}

TEST(Snapshot, MappedMemoryIsPrivateToItsGuest) {
  const GuestMemory memory = sample(MemorySource::anon);
  TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd()));
  const auto first = map_snapshot(file.fd());
  ASSERT_THAT(first, IsOk());
  ASSERT_TRUE(first->fill({GuestAddress(low), 64 * page}, std::byte{0xff}));
  const auto second = map_snapshot(file.fd());
  ASSERT_THAT(second, IsOk());
  expect_same(memory, *second);
  EXPECT_EQ(first->read<std::uint8_t>(GuestAddress(low)), 0xff);
  // And what a guest that was mapped has changed can be saved in turn.
  TempFile again;
  VMSPACE_ASSERT_OK(save_snapshot(*first, again.fd()));
  const auto third = map_snapshot(again.fd());
  ASSERT_THAT(third, IsOk());
  expect_same(*first, *third);
}

TEST(Snapshot, AnotherLayoutIsRefusedBeforeAnythingIsWritten) {
  const GuestMemory memory = sample(MemorySource::anon);
  TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd()));
  const std::vector<GuestMemory> others{
      guest({{low, 64 * page}}),
      guest({{low, 64 * page}, {high, 299 * page}}),
      guest({{low, 64 * page}, {high + page, 300 * page}}),
      guest({{low, 64 * page}, {high, 300 * page}, {2 * high, page}}),
      GuestMemory(),
  };
  for (const GuestMemory& other : others) {
    const auto restored = restore_snapshot(other, file.fd());
    ASSERT_THAT(restored, HasError(Errc::invalid_argument));
    if (other.regions().empty()) continue;
    const auto bytes = contents(other, low, 64 * page);
    EXPECT_TRUE(std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; }));
  }
}

TEST(Snapshot, ReadOnlyRegionsMustBeWhatTheyWere) {
  const GuestMemory memory = guest({{low, page, Protection::read}, {high, page}});
  VMSPACE_ASSERT_OK(memory.write(GuestAddress(high), std::uint32_t{5}));
  TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd()));
  VMSPACE_ASSERT_OK(memory.write(GuestAddress(high), std::uint32_t{6}));
  VMSPACE_ASSERT_OK(restore_snapshot(memory, file.fd()));
  EXPECT_EQ(memory.read<std::uint32_t>(GuestAddress(high)), 5U);

  const auto regions = inspect_snapshot(file.fd());
  ASSERT_THAT(regions, IsOk());
  EXPECT_EQ((*regions)[0].protection, Protection::read);
  file.write({std::byte{1}}, static_cast<off_t>((*regions)[0].offset));
  VMSPACE_ASSERT_OK(memory.write(GuestAddress(high), std::uint32_t{6}));
  EXPECT_THAT(restore_snapshot(memory, file.fd()), HasError(Errc::access_denied));
  EXPECT_EQ(memory.read<std::uint32_t>(GuestAddress(high)), 6U);
  // Mapped, it is read-only again.
  {
    const auto mapped = map_snapshot(file.fd());
    ASSERT_THAT(mapped, IsOk());
    EXPECT_THAT(mapped->write(GuestAddress(low), 1U), HasError(Errc::access_denied));
  }

  const GuestMemory closed = guest({{low, page, Protection::none}});
  const auto before = file.status().st_size;
  EXPECT_THAT(save_snapshot(closed, file.fd()), HasError(Errc::access_denied));
  EXPECT_EQ(file.status().st_size, before);
  const GuestMemory like_it =
      guest({{low, page, Protection::none}, {high, memory.regions()[1]->size()}});
  EXPECT_THAT(restore_snapshot(like_it, file.fd()), HasError(Errc::access_denied));
}

TEST(Snapshot, FilesThatCantHoldOneAreErrors) {
  const GuestMemory memory = sample(MemorySource::shmem);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_THAT(inspect_snapshot(ends[0]), HasError(Errc::invalid_argument));
  EXPECT_THAT(map_snapshot(ends[0]), HasError(Errc::invalid_argument));
  close(ends[0]);
  close(ends[1]);
  EXPECT_THAT(save_snapshot(memory, -1), HasError(Errc::os));
  EXPECT_THAT(inspect_snapshot(-1), HasError(Errc::os));
  const int own = memory.regions()[0]->backing().fd();
  EXPECT_THAT(save_snapshot(memory, own), HasError(Errc::invalid_argument));
  expect_same(memory, sample(MemorySource::anon));
  const int full = open("/dev/full", O_RDWR | O_CLOEXEC);
  ASSERT_GE(full, 0);
  EXPECT_THAT(save_snapshot(memory, full), HasError(Errc::invalid_argument));
  close(full);
}

TEST(Snapshot, ADescriptorThatAppendsIsRefusedAndItsFileKept) {
  const GuestMemory memory = sample(MemorySource::anon);
  TempFile file;
  const auto before = pattern(page);
  file.write(before);
  // Under O_APPEND, pwrite(2) writes to the end of the file whatever offset it is given.
  ASSERT_EQ(fcntl(file.fd(), F_SETFL, O_APPEND), 0);
  const auto saved = save_snapshot(memory, file.fd());
  ASSERT_THAT(saved, HasError(Errc::invalid_argument));
  EXPECT_EQ(file.status().st_size, static_cast<off_t>(page));
  EXPECT_EQ(file.read(page), before);
  ASSERT_EQ(fcntl(file.fd(), F_SETFL, 0), 0);
  VMSPACE_EXPECT_OK(save_snapshot(memory, file.fd()));
}

TEST(Snapshot, ProgressReachesTheTotalAndNeverGoesBack) {
  const GuestMemory memory = sample(MemorySource::shmem);
  TempFile file;
  std::vector<std::uint64_t> steps;
  const auto record = [&](std::uint64_t done, std::uint64_t total) {
    EXPECT_EQ(total, memory.total_size());
    steps.push_back(done);
  };
  for (const bool sparse : {true, false}) {
    steps.clear();
    VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd(), {.sparse = sparse, .progress = record}));
    ASSERT_FALSE(steps.empty());
    EXPECT_TRUE(std::ranges::is_sorted(steps));
    EXPECT_EQ(steps.back(), memory.total_size());
  }
  steps.clear();
  VMSPACE_ASSERT_OK(restore_snapshot(memory, file.fd(), record));
  EXPECT_TRUE(std::ranges::is_sorted(steps));
  EXPECT_EQ(steps.back(), memory.total_size());
}

TEST(Snapshot, RestoringMarksWhatItWrites) {
  const GuestMemory memory = sample(MemorySource::shmem);
  TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd()));
  ASSERT_TRUE(memory.fill({GuestAddress(low + 40 * page), page}, std::byte{1}));
  VMSPACE_ASSERT_OK(enable_dirty_tracking(memory));
  VMSPACE_ASSERT_OK(restore_snapshot(memory, file.fd()));
  const auto dirty = harvest_dirty(memory);
  ASSERT_THAT(dirty, IsOk());
  const auto marked = [&](std::uint64_t address) {
    return std::ranges::any_of(
        *dirty, [&](const GuestRange& r) { return r.contains(GuestAddress(address)); });
  };
  EXPECT_TRUE(marked(low + 3 * page));
  EXPECT_TRUE(marked(low + 40 * page));
  EXPECT_TRUE(marked(high + 299 * page));
  EXPECT_FALSE(marked(high + 200 * page));
}

TEST(Snapshot, AFileThatAGuestOfThisProcessPagesFromIsNotWrittenOver) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("snapshot", 0, ' ');
  const OwnedFd file(open(path.c_str(), O_RDWR | O_CLOEXEC));
  const GuestMemory memory = sample(MemorySource::anon);
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.get()));
  {
    const auto mapped = map_snapshot(file.get());
    ASSERT_THAT(mapped, IsOk());
    // By another descriptor and another name too.
    const std::string link = path + "-link";
    ASSERT_EQ(::link(path.c_str(), link.c_str()), 0);
    const OwnedFd other(open(link.c_str(), O_RDWR | O_CLOEXEC));
    const GuestMemory empty = guest({{low, page}});
    for (const int fd : {file.get(), other.get()}) {
      for (const GuestMemory* const guest : {&memory, &*mapped, &empty}) {
        const auto saved = save_snapshot(*guest, fd);
        ASSERT_THAT(saved, HasError(Errc::invalid_argument));
      }
    }
    expect_same(memory, *mapped);
  }
  VMSPACE_EXPECT_OK(save_snapshot(memory, file.get()));
}

TEST(Snapshot, OfNoMemoryIsASnapshotToo) {
  TempFile file;
  EXPECT_EQ(save_snapshot(GuestMemory(), file.fd())->stored, 0U);
  EXPECT_EQ(inspect_snapshot(file.fd())->size(), 0U);
  VMSPACE_EXPECT_OK(restore_snapshot(GuestMemory(), file.fd()));
  EXPECT_EQ(map_snapshot(file.fd())->regions().size(), 0U);
}

}  // namespace
}  // namespace vmspace::snapshot_test
