// SPDX-License-Identifier: Apache-2.0
//
// Every system call that mapping memory makes, failing: with each errno, at each place, once.

#include <sys/mman.h>

#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include <gtest/gtest.h>

#include "vmspace/host/populate.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/host_support.hpp"
#include "os/kernel_values.hpp"

namespace vmspace::host_calls_test {
namespace {

using namespace test;

constexpr int errnos[] = {ENOMEM, EMFILE, EINTR, EIO, ENOSPC, EPERM, EINVAL, ENOSYS};

// Large enough to be told from what the test itself maps.
constexpr std::uint64_t size = 256_MiB;

/// Calls that are made again when a signal interrupts them. The others change nothing that could be
/// asked for again, or can't be interrupted.
const std::set<std::string> retried{"madvise", "msync",  "mlock",     "munlock",   "mincore",
                                    "open",    "unlink", "fcntl",     "fstat",     "fstatfs",
                                    "read",    "ioctl",  "ftruncate", "fallocate", "memfd_create"};

/// Runs `body` once for each of its system calls and each errno, with that call failing. `body`
/// gives what the call under test gave; it may only succeed where the failure was overcome, which
/// `overcome` decides. Nothing may be left of a run, whatever it gave.
void fail_each_call(const std::function<Result<void>()>& body,
                    const std::function<bool(const std::string& call, int error)>& overcome) {
  Injector injector;
  ASSERT_TRUE(body());
  injector.fail_none();
  ASSERT_TRUE(body());
  const auto calls = injector.calls();
  ASSERT_FALSE(calls.empty());
  for (std::size_t index = 0; index < calls.size(); ++index) {
    // The memory of a failed munmap is lost, if it is not close() that is told: see below.
    // And without membarrier, writers of the dirty bitmap fence instead.
    if (calls[index] == "munmap" || calls[index] == "membarrier") continue;
    for (const int error : errnos) {
      SCOPED_TRACE(calls[index] + " (call " + std::to_string(index) + "): " + std::strerror(error));
      const auto descriptors = open_descriptors();
      const std::uint64_t mapped = address_space_bytes();
      injector.fail_call(index, error);
      const Result<void> done = body();
      const std::string call = injector.failed_call();
      injector.fail_none();
      ASSERT_NE(call, "");
      const bool is_retried = error == EINTR && retried.count(call) != 0;
      if (done) {
        EXPECT_TRUE(is_retried || call == "close" || overcome(call, error)) << call;
      } else {
        EXPECT_EQ(done.error().os_errno, error) << done.error().message();
        EXPECT_FALSE(is_retried) << call << " was not tried again";
        if (error == ENOSYS) {
          EXPECT_THAT(done, HasError(Errc::unsupported));
        }
      }
      EXPECT_EQ(open_descriptors(), descriptors);
      EXPECT_LT(address_space_bytes(), mapped + size / 2);
    }
  }
}

bool never(const std::string&, int) {
  return false;
}

Result<void> map_region(const RegionOptions& options, const MapOptions& map_options) {
  const auto region = MemoryRegion::map(*AddressSpaceRegion::make(options), map_options);
  if (!region) return fail(region.error());
  EXPECT_EQ((*region)->host_base()[0], (*region)->host_base()[4095]);
  return {};
}

TEST(SystemCallFaults, MappingEachBacking) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 0, ' ');
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(size)), 0);
  const OwnedFd fd(::open(path.c_str(), O_RDWR));
  const BackingSpec specs[] = {
      {.source = MemorySource::anon},
      {.source = MemorySource::shmem},
      {.source = MemorySource::file, .path = path},
      {.source = MemorySource::file, .fd = fd.get(), .sharing = Sharing::map_private},
  };
  for (const auto& spec : specs) {
    SCOPED_TRACE(name_of(spec.source));
    for (const bool guard_pages : {false, true}) {
      fail_each_call(
          [&] { return map_region({.size = size, .backing = spec}, {.guard_pages = guard_pages}); },
          [](const std::string& call, int error) {
            // A kernel that does not know MFD_NOEXEC_SEAL, and a file that can't have seals.
            return (call == "memfd_create" || call == "fcntl") && error == EINVAL;
          });
    }
  }
}

TEST(SystemCallFaults, MappingInAnArena) {
  const auto arena = HostArena::reserve({.size = size});
  ASSERT_THAT(arena, IsOk());
  fail_each_call(
      [&]() -> Result<void> {
        const auto backing = Backing::open({.source = MemorySource::anon}, size - 8_KiB);
        if (!backing) return fail(backing.error());
        auto mapping = MemoryMapping::map(
            *backing,
            {.size = size - 8_KiB, .guard_pages = true, .arena = *arena, .arena_offset = 4_KiB});
        if (!mapping) return fail(mapping.error());
        const auto closed = mapping->close();
        EXPECT_EQ(mapping->is_mapped(), !closed);
        EXPECT_TRUE(closed || mapping->close());
        EXPECT_EQ(permissions_at(arena->data() + 8_KiB), "---p");
        return closed;
      },
      never);
}

TEST(SystemCallFaults, ReservingAnArena) {
  fail_each_call(
      [&]() -> Result<void> {
        const auto arena = HostArena::reserve({.size = size});
        if (!arena) return fail(arena.error());
        return {};
      },
      never);
}

TEST(SystemCallFaults, AFailedMappingLeavesNoHoleInAnArena) {
  Injector injector;
  const auto arena = HostArena::reserve({.size = 1_MiB});
  static int hole_closed;
  static bool failed;
  hole_closed = 0;
  failed = false;
  // As older kernels do it: what was there is gone when the call fails.
  injector.table().mmap = [](void* address, std::size_t length, int protection, int flags, int fd,
                             off_t offset) {
    if ((flags & MAP_FIXED_NOREPLACE) != 0) ++hole_closed;
    if ((flags & MAP_FIXED) == 0 || std::exchange(failed, true)) {
      return ::mmap(address, length, protection, flags, fd, offset);
    }
    ::munmap(address, length);
    errno = ENOMEM;
    return MAP_FAILED;
  };
  const auto backing = Backing::open({.source = MemorySource::anon}, 64_KiB);
  const auto mapping =
      MemoryMapping::map(*backing, {.size = 64_KiB, .arena = *arena, .arena_offset = 64_KiB});
  ASSERT_FALSE(mapping);
  EXPECT_EQ(mapping.error().os_errno, ENOMEM);
  EXPECT_EQ(hole_closed, 1);
  EXPECT_EQ(permissions_at(arena->data() + 64_KiB), "---p");
}

TEST(SystemCallFaults, WhatCannotBeUnmappedStaysTakenInItsArena) {
  const auto arena = HostArena::reserve({.size = 1_MiB});
  ASSERT_THAT(arena, IsOk());
  Injector injector;
  {
    auto mapping = map_or_die({.source = MemorySource::anon}, {.size = 64_KiB, .arena = *arena});
    injector.fail_next("mmap", ENOMEM);
  }
  ASSERT_TRUE(injector.has_failed());
  EXPECT_EQ(permissions_at(arena->data()), "rw-p");
  const std::vector<RangeHolder> still{{Range::of(0, 64_KiB - 1), "anon"}};
  EXPECT_EQ(arena->parts().holders(), still);
}

TEST(SystemCallFaults, MappingADevice) {
  const OwnedFd fd(::open("/dev/zero", O_RDWR | O_CLOEXEC));
  const BackingSpec specs[] = {{.source = MemorySource::device, .path = "/dev/zero"},
                               {.source = MemorySource::device, .fd = fd.get()}};
  for (const auto& spec : specs)
    fail_each_call([&] { return map_region({.size = size, .backing = spec}, {}); }, never);
}

TEST(SystemCallFaults, TakingMemoryThatSomethingElseHasMapped) {
  const auto other = map_or_die({.source = MemorySource::anon}, {.size = size});
  int released = 0;
  int runs = 0;
  fail_each_call(
      [&]() -> Result<void> {
        const RegionOptions blob{.size = size, .backing = {.source = MemorySource::external}};
        ++runs;
        return map_region(
            blob, {.external = ExternalMemory{.data = other.data(),
                                              .size = size,
                                              .owner = {other.data(), [&](void*) { ++released; }}},
                   .dontfork = true,
                   .dontdump = true});
      },
      never);
  EXPECT_EQ(released, runs) << "once, whatever failed";
}

TEST(SystemCallFaults, HugetlbfsFiles) {
  const TemporaryDirectory directory;
  const HugetlbfsMount mount(directory.path());
  // Mounting takes CAP_SYS_ADMIN, and a kernel with huge pages of 2 MiB.
  if (!mount.mounted()) GTEST_SKIP() << "may not mount a hugetlbfs";
  fail_each_call(
      [&]() -> Result<void> {
        const auto backing =
            Backing::open({.source = MemorySource::hugetlbfs, .path = directory.path()}, size);
        if (!backing) return fail(backing.error());
        return {};
      },
      never);
}

TEST(SystemCallFaults, WhatARegionIsToldBeforeItsFirstPage) {
  const RegionOptions options{
      .size = size, .backing = {.source = MemorySource::anon}, .numa_node = 0, .huge_pages = true};
  const MapOptions told{.dontfork = true, .dontdump = true, .mergeable = true};
  const auto works = map_region(options, told);
  if (may_not_bind(works)) GTEST_SKIP() << works.error().message();
  fail_each_call([&] { return map_region(options, told); },
                 [](const std::string& call, int error) {
                   // Without the settings of huge pages there are none; without KSM no merging.
                   return call == "open" || call == "read" ||
                          (call == "madvise" && error == EINVAL);
                 });
}

TEST(SystemCallFaults, Populating) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 0, ' ');
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(size)), 0);
  const BackingSpec specs[] = {
      {.source = MemorySource::anon},
      {.source = MemorySource::shmem},
      {.source = MemorySource::file, .path = path},
      {.source = MemorySource::file, .path = path, .sharing = Sharing::map_private},
  };
  for (const auto& spec : specs) {
    SCOPED_TRACE(name_of(spec.source));
    const auto mapping = map_or_die(spec, {.size = size});
    // Three chunks, so that there is something left when the first one fails.
    const PopulateRange range{&mapping, 16_MiB - 8_KiB, 16_MiB + 16_KiB};
    for (const unsigned threads : {1U, 2U}) {
      fail_each_call([&] { return populate(std::span(&range, 1), {.threads = threads}); },
                     [&](const std::string& call, int error) {
                       // The kernel is asked what it knows by calls that may fail; threads are
                       // welcome and not needed.
                       return call == "madvise" || call == "pthread_create" ||
                              ((call == "fallocate" || call == "fstat") && error == EINTR);
                     });
      EXPECT_TRUE(holds(mapping, 16_MiB - 8_KiB, 8_KiB, 0));
    }
  }
}

TEST(SystemCallFaults, PopulateReportsWhatTheKernelSays) {
  Injector injector;
  const auto mapping = map_or_die({.source = MemorySource::anon}, {.size = 4_MiB});
  for (const int error : {ENOMEM, EFAULT, EIO}) {
    // The third call is the first that populates, after two that only ask.
    injector.fail_call(2, error);
    const auto done = populate(mapping, {.threads = 1});
    ASSERT_TRUE(injector.has_failed());
    ASSERT_THAT(done, HasError(Errc::os));
    EXPECT_EQ(done.error().os_errno, error);
  }
}

TEST(SystemCallFaults, CallsOnAMappingLeaveItAsItWas) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 64_KiB, ' ');
  const BackingSpec specs[] = {
      {.source = MemorySource::anon},
      {.source = MemorySource::anon, .sharing = Sharing::map_shared},
      {.source = MemorySource::shmem},
      {.source = MemorySource::file, .path = path, .discardable = true},
      {.source = MemorySource::file, .path = path, .sharing = Sharing::map_private},
  };
  for (const auto& spec : specs) {
    SCOPED_TRACE(name_of(spec.source));
    auto mapping = map_or_die(spec, {.size = 64_KiB});
    VMSPACE_ASSERT_OK(mapping.use_dontdump());
    const auto keeps = [&](auto call) {
      return [&mapping, call]() -> Result<void> {
        fill(mapping, 0xa5);
        const Protection protection = mapping.protection();
        const NumaPolicy policy = mapping.numa_policy();
        const std::string permissions = permissions_at(mapping.data());
        const auto done = call();
        if (!done) {
          EXPECT_TRUE(holds(mapping, 0, mapping.size(), 0xa5));
          EXPECT_EQ(mapping.protection(), protection);
          EXPECT_EQ(mapping.numa_policy(), policy);
          EXPECT_EQ(permissions_at(mapping.data()), permissions);
          return fail(done.error());
        }
        return {};
      };
    };
    fail_each_call(keeps([&] { return mapping.discard(4_KiB, 16_KiB); }), never);
    fail_each_call(keeps([&] { return mapping.residency(); }), [](const std::string& call, int) {
      // Where page tables can't be scanned, mincore knows enough.
      return call == "open" || call == "ioctl" || call == "pread of pagemap" || call == "read";
    });
    fail_each_call(keeps([&] { return mapping.advise(0, 4_KiB, Advice::random); }), never);
    fail_each_call(keeps([&] { return mapping.prefetch(0, 4_KiB); }), never);
    // Private ones can't be discarded before Linux 5.18.
    if (mapping.backing().is_shared() || detail::kernel_knows_advice(MADV_DONTNEED_LOCKED)) {
      fail_each_call(keeps([&]() -> Result<void> {
                       if (auto ok = mapping.lock(0, 8_KiB); !ok) return ok;
                       const auto done = mapping.discard(0, 8_KiB);
                       EXPECT_TRUE(mapping.unlock(0, 8_KiB) || mapping.unlock(0, 8_KiB));
                       // What the kernel never can is no failure of a call.
                       if (!done && done.error().code == Errc::bad_state) return {};
                       return done;
                     }),
                     [](const std::string& call, int) { return call == "munlock"; });
    }
    fail_each_call(keeps([&] { return mapping.use_dontfork(); }), never);
    fail_each_call(keeps([&]() -> Result<void> {
                     if (auto ok = mapping.lock(0, 8_KiB); !ok) {
                       EXPECT_EQ(smaps_value(mapping.data(), "VmFlags").find(" lo"),
                                 std::string::npos);
                       return ok;
                     }
                     const auto done = mapping.unlock(0, 8_KiB);
                     EXPECT_TRUE(done || mapping.unlock(0, 8_KiB));
                     return done;
                   }),
                   never);
    fail_each_call(keeps([&]() -> Result<void> {
                     if (auto ok = mapping.protect(Protection::read); !ok) return ok;
                     const auto done = mapping.protect(Protection::read_write);
                     if (done) return done;
                     EXPECT_EQ(permissions_at(mapping.data()).substr(0, 3), "r--");
                     VMSPACE_EXPECT_OK(mapping.protect(Protection::read_write));
                     return done;
                   }),
                   never);
    if (spec.source != MemorySource::anon && spec.sharing != Sharing::map_private) {
      fail_each_call(keeps([&] { return mapping.msync(); }), never);
    }
    const auto numa = mapping.bind_to_nodes({NumaMode::bind, {0}});
    if (numa) {
      fail_each_call(keeps([&] {
                       return mapping.bind_to_nodes({NumaMode::preferred, {0}});
                     }),
                     never);
    }
  }
}

// Discarding of a private file opens, maps and binds anonymous memory; the caller only discarded.
TEST(SystemCallFaults, AnErrorNamesTheCallThatWasMadeAndTheReasonWhatFailed) {
  const TemporaryDirectory directory;
  auto mapping = map_or_die({.source = MemorySource::file,
                             .path = directory.file("image", 64_KiB, 'i'),
                             .sharing = Sharing::map_private},
                            {.size = 64_KiB});
  Injector injector;
  for (const std::string call : {"msync", "mmap", "mremap"}) {
    injector.fail_next(call, ENOMEM);
    const auto discarded = mapping.discard(0, 4_KiB);
    ASSERT_FALSE(discarded);
    EXPECT_STREQ(discarded.error().operation, "MemoryMapping::discard");
    EXPECT_EQ(std::string(discarded.error().reason).find(call), 0U) << discarded.error().reason;
    EXPECT_TRUE(holds(mapping, 0, 64_KiB, 'i'));
  }
}

TEST(SystemCallFaults, CloseReportsAFailedWriteBackAndUnmapsAllTheSame) {
  const TemporaryDirectory directory;
  Injector injector;
  for (const int error : {EIO, ENOSPC, ENOMEM}) {
    const std::uint64_t mapped = address_space_bytes();
    const auto descriptors = open_descriptors();
    {
      auto mapping =
          map_or_die({.source = MemorySource::file, .path = directory.file("ram", 64_KiB, ' ')},
                     {.size = 64_KiB, .align = 1_GiB});
      fill(mapping, 1);
      injector.fail_next("msync", error);
      const auto closed = mapping.close();
      ASSERT_TRUE(injector.has_failed());
      ASSERT_THAT(closed, HasError(Errc::os));
      EXPECT_EQ(closed.error().os_errno, error);
      EXPECT_EQ(
          closed.error().message().find("MemoryMapping::close: failed: [0x0, 0xffff] (msync)"), 0U)
          << closed.error().message();
      EXPECT_FALSE(mapping.is_mapped());
      EXPECT_LT(address_space_bytes(), mapped + 512_MiB);
    }
    EXPECT_EQ(open_descriptors(), descriptors);
  }
  auto mapping = map_or_die(
      {.source = MemorySource::file, .path = directory.file("ram", 64_KiB, ' ')}, {.size = 64_KiB});
  injector.fail_next("msync", EINTR);
  VMSPACE_EXPECT_OK(mapping.close());
  EXPECT_EQ(injector.count("msync"), 2U);
}

TEST(SystemCallFaults, CloseReportsAFailedUnmappingAndKeepsTheMemory) {
  Injector injector;
  auto mapping = map_or_die({.source = MemorySource::shmem}, {.size = 64_KiB});
  fill(mapping, 7);
  for (const int error : {ENOMEM, EINVAL}) {
    injector.fail_next("munmap", error);
    const auto closed = mapping.close();
    ASSERT_FALSE(closed);
    EXPECT_EQ(closed.error().os_errno, error);
    ASSERT_TRUE(mapping.is_mapped());
    EXPECT_TRUE(holds(mapping, 0, 64_KiB, 7));
  }
  VMSPACE_EXPECT_OK(mapping.close());

  const auto arena = HostArena::reserve({.size = 1_MiB});
  auto inside = map_or_die({.source = MemorySource::anon}, {.size = 64_KiB, .arena = *arena});
  fill(inside, 7);
  injector.fail_next("mmap", ENOMEM);
  EXPECT_EQ(inside.close().error().os_errno, ENOMEM);
  EXPECT_TRUE(holds(inside, 0, 64_KiB, 7));
  VMSPACE_EXPECT_OK(inside.close());
}

TEST(SystemCallFaults, ARegionOfADescriptorThatCannotBeDuplicated) {
  Injector injector;
  injector.fail_next("fcntl", EMFILE);
  const auto backing = Backing::open({.source = MemorySource::file, .fd = 0}, 64_KiB);
  ASSERT_FALSE(backing);
  EXPECT_EQ(backing.error().os_errno, EMFILE);
}

}  // namespace
}  // namespace vmspace::host_calls_test
