// SPDX-License-Identifier: Apache-2.0
//
// LiveSnapshot: what it holds is the instant, whoever writes meanwhile and however; the guest goes on
// whatever happens to the snapshot; and nothing else may have the memory's faults.

#include "vmspace/snapshot/live_snapshot.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <future>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/host/fault_guard.hpp"
#include "vmspace/memory/guest_io.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/userfault.hpp"
#include "snapshot/live_support.hpp"

namespace vmspace::live_snapshot_test {
namespace {

using namespace test;
using ::testing::Eq;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::Values;

const Kind anon{.name = "anon", .backing = {.source = MemorySource::anon}};

class LiveSnapshotOf : public ::testing::TestWithParam<Kind> {};

TEST_P(LiveSnapshotOf, HoldsTheInstantWhileManyWrite) {
  const Kind& kind = GetParam();
  constexpr std::uint64_t size = 16_MiB;
  std::optional<HugePages> pool;
  if (kind.backing.is_hugetlb()) {
    pool.emplace(2_MiB, 2 * size / 2_MiB);
    if (!pool->available()) GTEST_SKIP() << pool->why_not();
  }
  const GuestMemory memory = guest_of(kind, size);
  const TempFile file;
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  Stampers::Stamps instant;
  {
    const SlowDisk disk;
    Stampers stampers(memory, size / page / 2);
    stampers.wait_for(20'000);
    {
      const auto paused = stampers.pause();
      VMSPACE_ASSERT_OK(snapshot.take());
      instant = stampers.stamps();
      stampers.widen();
    }
    // They fault, since the disk has not let the snapshot get far.
    stampers.wait_for(20'000);
    SlowDisk::go_on();
    const auto id = snapshot.wait();
    ASSERT_THAT(id, IsOk());
    EXPECT_TRUE(*id);
    stampers.wait_for(20'000);
  }
  EXPECT_THAT(newer_and_older(stamps_in(restored(memory, file.fd())), instant), Pair(0, 0));
  const LiveSnapshotStatistics statistics = snapshot.statistics();
  EXPECT_GT(statistics.faults, 0U);
  EXPECT_GT(statistics.longest_wait.count(), 0);
  EXPECT_EQ(statistics.saved_by_fault + statistics.saved_in_background, statistics.protected_bytes);
  // What was absent was not copied; of hugetlb files nobody knows what is.
  if (!kind.backing.is_hugetlb() && !kind.hugepages) {
    EXPECT_LE(statistics.protected_bytes, size / 2);
  }
}

INSTANTIATE_TEST_SUITE_P(
    KindsOfMemory, LiveSnapshotOf,
    Values(anon, Kind{.name = "shmem", .backing = {.source = MemorySource::shmem}},
           Kind{.name = "shared_anon",
                .backing = {.source = MemorySource::anon, .sharing = Sharing::map_shared}},
           Kind{.name = "huge_pages", .backing = {.source = MemorySource::anon}, .hugepages = true},
           Kind{.name = "hugetlb", .backing = {.source = MemorySource::hugeanon}},
           Kind{.name = "shared_hugetlb", .backing = {.source = MemorySource::hugeshmem}}),
    [](const auto& tested) { return std::string(tested.param.name); });

TEST(LiveSnapshot, KeepsTheInstantFromWritesOfTheCallerAndOfTheKernel) {
  const GuestMemory memory = guest_of(anon, 64 * page);
  const GuestAddress base = base_of(memory);
  const auto before = pattern(64 * page, 1);
  ASSERT_TRUE(memory.write_slice(base, before));
  const TempFile file;
  const TempFile other;
  other.write(pattern(8 * page, 2));
  const SlowDisk disk;
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  VMSPACE_ASSERT_OK(snapshot.take());
  // The thread that took it writes at once, and so does read(2).
  ASSERT_TRUE(memory.write_slice(base, pattern(8 * page, 3)));
  const GuestRange read{GuestAddress(base.value() + 32 * page), 8 * page};
  VMSPACE_ASSERT_OK(read_into_guest(other.fd(), memory, read));
  SlowDisk::go_on();
  VMSPACE_ASSERT_OK(snapshot.wait());
  EXPECT_EQ(contents(restored(memory, file.fd()), base.value(), 64 * page), before);
  EXPECT_EQ(contents(memory, base.value(), 8 * page), pattern(8 * page, 3));
  EXPECT_EQ(contents(memory, read.base.value(), read.size), pattern(8 * page, 2));
}

TEST(LiveSnapshot, AbsentPagesAreZerosAndAreNotTouched) {
  for (const auto source : {MemorySource::anon, MemorySource::shmem}) {
    const GuestMemory memory = guest_of({.name = "", .backing = {.source = source}}, 1_GiB);
    const GuestAddress base = base_of(memory);
    const GuestAddress far(base.value() + 512_MiB);
    VMSPACE_ASSERT_OK(memory.write(base, std::uint64_t{42}));
    const TempFile file;
    const SlowDisk disk;
    PREPARE_OR_SKIP(snapshot, memory, file.fd());
    VMSPACE_ASSERT_OK(snapshot.take());
    VMSPACE_ASSERT_OK(memory.write(far, std::uint64_t{43}));
    SlowDisk::go_on();
    VMSPACE_ASSERT_OK(snapshot.wait());
    EXPECT_EQ(snapshot.statistics().protected_bytes, page);
    EXPECT_EQ(snapshot.statistics().faults, 0U);
    const auto resident = memory.regions().front()->mapping().residency();
    ASSERT_THAT(resident, IsOk());
    EXPECT_EQ(resident->resident, 2 * page);
    const GuestMemory again = restored(memory, file.fd());
    EXPECT_THAT(again.read<std::uint64_t>(base), IsOkAndHolds(42U));
    EXPECT_THAT(again.read<std::uint64_t>(far), IsOkAndHolds(0U));
  }
}

TEST(LiveSnapshot, WritersWaitForASlowDiskWhenTheBufferIsFull) {
  constexpr std::uint64_t pages = 4096;
  constexpr std::uint64_t room = 8;
  const GuestMemory memory = guest_of(anon, pages * page);
  const auto before = pattern(pages * page, 1);
  ASSERT_TRUE(memory.write_slice(base_of(memory), before));
  const TempFile file;
  const SlowDisk disk;
  PREPARE_OR_SKIP(snapshot, memory, file.fd(), {.buffer = room * page, .peers_stopped = false});
  VMSPACE_ASSERT_OK(snapshot.take());
  std::atomic<std::uint64_t> written = 0;
  // From the end, so that it does not meet what is saved in the background.
  std::thread writer([&] {
    for (std::uint64_t i = pages; i-- != 0; ++written) {
      const GuestAddress at(base_of(memory).value() + i * page);
      if (!memory.write(at, std::uint64_t{0})) std::abort();
    }
  });
  while (snapshot.statistics().saved_by_fault < room * page)
    std::this_thread::yield();
  EXPECT_LE(written, room);
  EXPECT_EQ(snapshot.statistics().saved_by_fault, room * page);
  SlowDisk::go_on(std::chrono::microseconds(20));
  VMSPACE_ASSERT_OK(snapshot.wait());
  writer.join();
  EXPECT_GT(snapshot.statistics().saved_by_fault, room * page);
  EXPECT_EQ(contents(restored(memory, file.fd()), base_of(memory).value(), pages * page), before);
}

TEST(LiveSnapshot, SavesPagesBeforeTheyAreDiscarded) {
  for (const auto source : {MemorySource::anon, MemorySource::shmem}) {
    constexpr std::uint64_t size = 8_MiB;
    const GuestMemory memory = guest_of({.name = "", .backing = {.source = source}}, size);
    const GuestAddress base = base_of(memory);
    ASSERT_TRUE(memory.write_slice(base, pattern(size)));
    const TempFile file;
    const SlowDisk disk;
    PREPARE_OR_SKIP(snapshot, memory, file.fd());
    VMSPACE_ASSERT_OK(snapshot.take());
    const MemoryMapping& mapping = memory.regions().front()->mapping();
    VMSPACE_ASSERT_OK(mapping.discard(4_MiB, 2_MiB));
    EXPECT_THAT(memory.read<std::uint64_t>(GuestAddress(base.value() + 5_MiB)), IsOkAndHolds(0U));
    EXPECT_GE(snapshot.statistics().saved_by_discard, 2_MiB - page);
    SlowDisk::go_on();
    // More than the buffer has room for.
    VMSPACE_ASSERT_OK(mapping.discard(0, size));
    VMSPACE_ASSERT_OK(snapshot.wait());
    EXPECT_EQ(contents(restored(memory, file.fd()), base.value(), size), pattern(size));
    EXPECT_EQ(contents(memory, base.value(), size), std::vector<std::byte>(size));
  }
}

TEST(LiveSnapshot, TheGuestGoesOnWhenTheDiskIsFull) {
  constexpr std::uint64_t size = 16_MiB;
  const GuestMemory memory = guest_of(anon, size);
  ASSERT_TRUE(memory.write_slice(base_of(memory), pattern(size)));
  const auto descriptors = open_descriptors();
  {
    const TempFile file;
    Injector injector;
    PREPARE_OR_SKIP(snapshot, memory, file.fd());
    Stampers stampers(memory, size / page);
    injector.fail_always("pwrite", ENOSPC);
    {
      const auto paused = stampers.pause();
      VMSPACE_ASSERT_OK(snapshot.take());
    }
    stampers.wait_for(10'000);
    const auto id = snapshot.wait();
    ASSERT_THAT(id, HasError(Errc::os));
    EXPECT_EQ(id.error().os_errno, ENOSPC);
    EXPECT_THAT(std::string(id.error().operation), Eq("LiveSnapshot::wait"));
    stampers.wait_for(10'000);
    injector.fail_none();
    EXPECT_FALSE(inspect_snapshot(file.fd()));
    EXPECT_THAT(snapshot.wait(), HasError(Errc::bad_state));
    // The memory is free for another one.
    EXPECT_THAT(prepare_live(memory, file.fd()), IsOk());
  }
  EXPECT_EQ(open_descriptors(), descriptors);
}

TEST(LiveSnapshot, TakesNoMoreOfABufferThanTheMemoryHas) {
  const GuestMemory memory = guest_of(anon, 1_MiB);
  ASSERT_TRUE(memory.write_slice(base_of(memory), pattern(1_MiB)));
  const TempFile file;
  PREPARE_OR_SKIP(snapshot, memory, file.fd(), {.buffer = UINT64_MAX, .peers_stopped = true});
  VMSPACE_ASSERT_OK(snapshot.take());
  EXPECT_THAT(snapshot.wait(), IsOk());
}

TEST(LiveSnapshot, CanBeGivenUpAtAnyTime) {
  const GuestMemory memory = guest_of(anon, 1_MiB);
  ASSERT_TRUE(memory.write_slice(base_of(memory), pattern(1_MiB)));
  const auto descriptors = open_descriptors();
  for (const bool taken : {false, true}) {
    const TempFile file;
    PREPARE_OR_SKIP(snapshot, memory, file.fd());
    EXPECT_FALSE(snapshot.is_done());
    if (taken) VMSPACE_ASSERT_OK(snapshot.take());
  }
  EXPECT_EQ(open_descriptors(), descriptors);
  // Nobody is there to resolve a fault.
  ASSERT_TRUE(memory.write_slice(base_of(memory), pattern(1_MiB, 2)));
}

TEST(LiveSnapshot, OneThatNobodyReadsIsGivenUpWhenItsOtherEndIsClosed) {
  const GuestMemory memory = guest_of(anon, 1_MiB);
  ASSERT_TRUE(memory.write_slice(base_of(memory), pattern(1_MiB)));
  for (const int flags : {0, O_NONBLOCK}) {
    int ends[2] = {-1, -1};
    ASSERT_EQ(pipe2(ends, O_CLOEXEC | flags), 0);
    PREPARE_OR_SKIP(snapshot, memory, ends[1]);
    VMSPACE_ASSERT_OK(snapshot.take());
    while (snapshot.statistics().saved_in_background == 0)
      std::this_thread::yield();
    auto given_up = std::async(std::launch::async, [one = std::move(snapshot)]() mutable {
      const LiveSnapshot ends_here = std::move(one);
    });
    close(ends[0]);
    EXPECT_EQ(given_up.wait_for(std::chrono::minutes(1)), std::future_status::ready);
    close(ends[1]);
  }
  // Nobody is there to resolve a fault.
  ASSERT_TRUE(memory.write_slice(base_of(memory), pattern(1_MiB, 2)));
}

TEST(LiveSnapshot, HoldsTheInstantWhereAbsentPagesCantBeProtectedAndNobodyKnowsWhichAreAbsent) {
  namespace feature = detail::userfault_feature;
  const GuestMemory memory = guest_of(anon, 1_MiB);
  const GuestAddress far(base_of(memory).value() + 512_KiB);
  VMSPACE_ASSERT_OK(memory.write(base_of(memory), std::uint64_t{1}));
  const TempFile file;
  Injector injector;
  injector.hide_proc_and_sys();
  injector.table().mincore = [](void*, std::size_t, unsigned char*) {
    errno = EPERM;
    return -1;
  };
  injector.table().ioctl = [](int fd, unsigned long request, void* argument) {
    const int result = detail::real_system_calls.ioctl(fd, request, argument);
    if (request == UFFDIO_API) {
      static_cast<uffdio_api*>(argument)->features &= ~feature::write_protect_absent;
    }
    return result;
  };
  injector.table().pwrite = [](int fd, const void* from, std::size_t size, off_t offset) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return detail::real_system_calls.pwrite(fd, from, size, offset);
  };
  const auto populate = injector.table().madvise;
  injector.forget_populating();
  EXPECT_THAT(prepare_live(memory, file.fd()),
              AnyOf(HasError(Errc::unsupported), HasError(Errc::access_denied)));
  injector.table().madvise = populate;
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  VMSPACE_ASSERT_OK(snapshot.take());
  VMSPACE_ASSERT_OK(memory.write(far, std::uint64_t{2}));
  VMSPACE_ASSERT_OK(snapshot.wait());
  const GuestMemory again = restored(memory, file.fd());
  EXPECT_THAT(again.read<std::uint64_t>(base_of(memory)), IsOkAndHolds(1U));
  EXPECT_THAT(again.read<std::uint64_t>(far), IsOkAndHolds(0U));
}

TEST(LiveSnapshot, SavesWhatHasChangedSinceAnother) {
  for (const auto source : {MemorySource::anon, MemorySource::shmem}) {
    const GuestMemory memory = guest_of({.name = "", .backing = {.source = source}}, 1_MiB);
    const std::uint64_t base = base_of(memory).value();
    ASSERT_TRUE(memory.write_slice(GuestAddress(base), pattern(64 * page, 1)));
    const TempFile full;
    PREPARE_OR_SKIP(first, memory, full.fd());
    VMSPACE_ASSERT_OK(first.take());
    const auto parent = first.wait();
    ASSERT_THAT(parent, IsOk());

    // Written, discarded, and both at an end of a range.
    ASSERT_TRUE(memory.write_slice(GuestAddress(base + 8 * page), pattern(4 * page, 2)));
    VMSPACE_ASSERT_OK(memory.regions().front()->mapping().discard(30 * page, 2 * page));
    const std::vector<GuestRange> changed{{GuestAddress(base + 8 * page), 4 * page},
                                          {GuestAddress(base + 30 * page), 3 * page}};
    const auto instant = contents(memory, base, 1_MiB);
    const TempFile difference;
    auto writer = SnapshotWriter::create(difference.fd(), memory, {.parent = *parent});
    ASSERT_THAT(writer, IsOk());
    auto second = LiveSnapshot::prepare(memory, *std::move(writer), {.peers_stopped = true});
    ASSERT_THAT(second, IsOk());
    const SlowDisk disk;
    VMSPACE_ASSERT_OK(second->take(changed));
    // Reading them has brought the discarded pages of the memfd back.
    EXPECT_LE(second->statistics().protected_bytes, 7 * page);
    ASSERT_TRUE(memory.write_slice(GuestAddress(base), pattern(64 * page, 3)));
    SlowDisk::go_on();
    VMSPACE_ASSERT_OK(second->wait());

    auto reader = SnapshotReader::open(difference.fd(), {{full.fd()}});
    ASSERT_THAT(reader, IsOk());
    std::vector<std::byte> read(1_MiB);
    VMSPACE_ASSERT_OK(reader->read(GuestAddress(base), read));
    EXPECT_EQ(read, instant);
  }
}

TEST(LiveSnapshot, ADifferentialOneOfAllMemoryHasWhatIsAbsentAsZeros) {
  const GuestMemory memory = guest_of(anon, 1_MiB);
  const GuestAddress base = base_of(memory);
  auto expected = pattern(1_MiB);
  ASSERT_TRUE(memory.write_slice(base, expected));
  const TempFile full;
  const auto parent = save_snapshot(memory, full.fd());
  ASSERT_THAT(parent, IsOk());
  VMSPACE_ASSERT_OK(memory.regions().front()->mapping().discard(8 * page, 4 * page));
  std::fill_n(expected.begin() + 8 * page, 4 * page, std::byte{});
  const TempFile difference;
  PREPARE_OR_SKIP(snapshot, memory, difference.fd(), {}, {.parent = parent->id});
  VMSPACE_ASSERT_OK(snapshot.take());
  VMSPACE_ASSERT_OK(snapshot.wait());
  auto reader = SnapshotReader::open(difference.fd(), {{full.fd()}});
  ASSERT_THAT(reader, IsOk());
  std::vector<std::byte> read(1_MiB);
  VMSPACE_ASSERT_OK(reader->read(base, read));
  EXPECT_TRUE(read == expected);
}

TEST(LiveSnapshot, ADifferentialOneHasZerosForWhatWasUnpluggedSince) {
  const GuestMemory memory = guest_of(anon, 1_MiB);
  const GuestAddress base = base_of(memory);
  ASSERT_TRUE(memory.write_slice(base, pattern(1_MiB)));
  const TempFile full;
  const auto parent = save_snapshot(memory, full.fd());
  ASSERT_THAT(parent, IsOk());
  const MemoryRegionPtr all = memory.regions().front();
  const auto none = *PresentBlocks::none(1_MiB, 16 * page, 64 * page);
  const auto first_half = all->with_blocks(*none->with({0, 512_KiB}));
  ASSERT_THAT(first_half, IsOk());
  const auto fewer = GuestMemory::from_regions({*first_half});
  ASSERT_THAT(fewer, IsOk());
  const std::vector<GuestRange> written{{GuestAddress(base.value() + 512_KiB - page), 2 * page}};
  for (const auto& changes : {std::vector<GuestRange>{}, written}) {
    const TempFile difference;
    PREPARE_OR_SKIP(snapshot, *fewer, difference.fd(), {}, {.parent = parent->id});
    VMSPACE_ASSERT_OK(snapshot.take(changes));
    VMSPACE_ASSERT_OK(snapshot.wait());
    auto reader = SnapshotReader::open(difference.fd(), {{full.fd()}});
    ASSERT_THAT(reader, IsOk());
    std::vector<std::byte> read(1_MiB);
    VMSPACE_ASSERT_OK(reader->read(base, read));
    auto expected = pattern(1_MiB);
    std::fill(expected.begin() + 512_KiB, expected.end(), std::byte{});
    EXPECT_TRUE(read == expected);
  }
}

TEST(LiveSnapshot, ChangesAreSavedOnlyWithAParent) {
  const GuestMemory memory = guest_of(anon, 1_MiB);
  ASSERT_TRUE(memory.write_slice(base_of(memory), pattern(1_MiB)));
  const TempFile file;
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  const GuestRange changed{base_of(memory), page};
  EXPECT_THAT(snapshot.take(std::span(&changed, 1)), HasError(Errc::invalid_argument));
  VMSPACE_ASSERT_OK(snapshot.take());
  VMSPACE_ASSERT_OK(snapshot.wait());
  const GuestMemory again = restored(memory, file.fd());
  EXPECT_TRUE(contents(again, base_of(memory).value(), 1_MiB) == pattern(1_MiB));
}

TEST(LiveSnapshot, PagesThatAreGoneAreAFault) {
  const auto guard = FaultGuard::install();
  ASSERT_THAT(guard, IsOk());
  const int fd = memfd_create("unsealed", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(fd, 8_MiB), 0);
  const auto region = MemoryRegion::map({.name = "ram",
                                         .base = GuestAddress(0),
                                         .size = 8_MiB,
                                         .backing = {.source = MemorySource::file, .fd = fd},
                                         .protection = Protection::read_write},
                                        {.unsealed = Unsealed::guard});
  ASSERT_THAT(region, IsOk());
  const auto memory = GuestMemory::from_regions({*region});
  ASSERT_THAT(memory, IsOk());
  ASSERT_TRUE(memory->write_slice(GuestAddress(0), pattern(8_MiB)));
  const TempFile file;
  const SlowDisk disk;
  PREPARE_OR_SKIP(snapshot, *memory, file.fd());
  VMSPACE_ASSERT_OK(snapshot.take());
  ASSERT_EQ(ftruncate(fd, page), 0);
  SlowDisk::go_on();
  EXPECT_THAT(snapshot.wait(), HasError(Errc::fault));
  VMSPACE_EXPECT_OK(memory->write(GuestAddress(0), std::uint64_t{1}));
  close(fd);
}

}  // namespace
}  // namespace vmspace::live_snapshot_test
