// SPDX-License-Identifier: Apache-2.0
//
// LiveSnapshot: what it holds is the instant, whoever writes meanwhile and however; the guest goes on
// whatever happens to the snapshot; and nothing else may have the memory's faults.

#include "vmspace/snapshot/live_snapshot.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/host/fault_guard.hpp"
#include "vmspace/memory/guest_io.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/userfault.hpp"
#include "snapshot/live_support.hpp"

namespace vmspace {
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
    {
      const auto paused = stampers.pause();
      VMSPACE_ASSERT_OK(snapshot.take());
    }
    injector.fail_always("pwrite", ENOSPC);
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

TEST(LiveSnapshot, IsTakenOnceAndWaitedForOnce) {
  const GuestMemory memory = guest_of(anon, 1_MiB);
  const TempFile file;
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  EXPECT_THAT(snapshot.wait(), HasError(Errc::bad_state));
  VMSPACE_ASSERT_OK(snapshot.take());
  EXPECT_THAT(snapshot.take(), HasError(Errc::bad_state));
  VMSPACE_EXPECT_OK(snapshot.wait());
  EXPECT_TRUE(snapshot.is_done());
  EXPECT_THAT(snapshot.wait(), HasError(Errc::bad_state));
  EXPECT_THAT(snapshot.take(), HasError(Errc::bad_state));
}

TEST(LiveSnapshot, HasTheFaultsForItself) {
  const GuestMemory memory = guest_of(anon, 1_MiB);
  const MemoryMapping& mapping = memory.regions().front()->mapping();
  const TempFile file;
  const TempFile second;
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  const auto refused = prepare_live(memory, second.fd());
  ASSERT_THAT(refused, HasError(Errc::bad_state));
  EXPECT_THAT(refused.error().message(), HasSubstr("LiveSnapshot"));
  const auto pinned = mapping.pin(0, page, "dimm0");
  ASSERT_THAT(pinned, HasError(Errc::bad_state));
  EXPECT_THAT(pinned.error().message(), HasSubstr("LiveSnapshot"));
  VMSPACE_ASSERT_OK(snapshot.take());
  VMSPACE_ASSERT_OK(snapshot.wait());
  VMSPACE_EXPECT_OK(mapping.pin(0, page, "dimm0"));
  EXPECT_THAT(prepare_live(memory, second.fd()), IsOk());
}

TEST(LiveSnapshot, IsRefusedWhereWritesWouldBeMissed) {
  const TempFile file;
  const GuestMemory memory = guest_of(anon, 1_MiB);
  const auto pin = memory.regions().front()->mapping().pin(page, page, "nic0");
  ASSERT_THAT(pin, IsOk());
  const auto pinned = prepare_live(memory, file.fd());
  ASSERT_THAT(pinned, HasError(Errc::bad_state));
  EXPECT_THAT(pinned.error().message(), HasSubstr("nic0"));

  const GuestMemory shared =
      guest_of({.name = "", .backing = {.source = MemorySource::shmem}}, 1_MiB);
  const auto refused = prepare_live(shared, file.fd(), {});
  ASSERT_THAT(refused, HasError(Errc::bad_state));
  EXPECT_THAT(refused.error().message(), HasSubstr("peers_stopped"));
}

TEST(LiveSnapshot, PrivateFilesAreUnsupported) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 1_MiB, 'x');
  const GuestMemory memory = guest_of(
      {.name = "",
       .backing = {.source = MemorySource::file, .path = path, .sharing = Sharing::map_private}},
      1_MiB);
  const TempFile file;
  const auto refused = prepare_live(memory, file.fd());
  ASSERT_FALSE(refused);
  EXPECT_TRUE(refused.error().code == Errc::unsupported ||
              refused.error().code == Errc::access_denied)
      << refused.error().message();
}

/// A kernel whose userfaultfd lacks some features.
class LesserKernel {
 public:
  explicit LesserKernel(std::uint64_t lacking) {
    lacks() = lacking;
    injector_.table().ioctl = [](int fd, unsigned long request, void* argument) {
      const int result = detail::real_system_calls.ioctl(fd, request, argument);
      if (request == UFFDIO_API) static_cast<uffdio_api*>(argument)->features &= ~lacks();
      return result;
    };
  }

 private:
  static std::uint64_t& lacks() {
    static std::uint64_t bits;
    return bits;
  }
  Injector injector_;
};

TEST(LiveSnapshot, NamesWhatTheKernelLacks) {
  namespace feature = detail::userfault_feature;
  const TempFile file;
  const GuestMemory memory = guest_of(anon, 1_MiB);
  const GuestMemory shared =
      guest_of({.name = "", .backing = {.source = MemorySource::shmem}}, 1_MiB);
  { PREPARE_OR_SKIP(works_here, memory, file.fd()); }
  {
    const LesserKernel kernel(feature::write_protect);
    const auto refused = prepare_live(memory, file.fd());
    ASSERT_THAT(refused, HasError(Errc::unsupported));
    EXPECT_THAT(refused.error().message(), HasSubstr("can't write-protect pages"));
  }
  const LesserKernel kernel(feature::write_protect_files);
  const auto refused = prepare_live(shared, file.fd());
  ASSERT_THAT(refused, HasError(Errc::unsupported));
  EXPECT_THAT(refused.error().message(), HasSubstr("shared and hugetlb memory"));
  EXPECT_THAT(prepare_live(memory, file.fd()), IsOk());
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
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  VMSPACE_ASSERT_OK(snapshot.take());
  VMSPACE_ASSERT_OK(memory.write(far, std::uint64_t{2}));
  VMSPACE_ASSERT_OK(snapshot.wait());
  const GuestMemory again = restored(memory, file.fd());
  EXPECT_THAT(again.read<std::uint64_t>(base_of(memory)), IsOkAndHolds(1U));
  EXPECT_THAT(again.read<std::uint64_t>(far), IsOkAndHolds(0U));
}

}  // namespace
}  // namespace vmspace
