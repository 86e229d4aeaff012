// SPDX-License-Identifier: Apache-2.0
//
// Host memory where the kernel lacks calls that a newer one has, in jails without /proc and /sys, and
// of files that can't answer what a regular one can.

#include <sys/mman.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "vmspace/host/fault_guard.hpp"
#include "vmspace/host/host_info.hpp"
#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/host/page_scan.hpp"
#include "vmspace/host/populate.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/host_support.hpp"

namespace vmspace::lesser_kernels_test {
namespace {

using namespace test;

TEST(LesserKernels, WithoutPopulatingAdviceSpaceIsAllocatedAndPagesAreTouched) {
  Injector injector;
  for (const auto source : {MemorySource::anon, MemorySource::shmem}) {
    const auto mapping = map_or_die({.source = source}, {.size = 20_MiB});
    mapping.data()[5] = std::byte{5};
    injector.fail_always("madvise", EINVAL);
    const auto done = populate(mapping, {.threads = 2});
    EXPECT_EQ(injector.count("fallocate") > 0, source == MemorySource::shmem);
    injector.fail_none();
    ASSERT_THAT(done, IsOk());
    EXPECT_EQ(mapping.residency()->resident, 20_MiB);
    EXPECT_EQ(mapping.data()[5], std::byte{5});
  }
  const TemporaryDirectory directory;
  const auto image = map_or_die({.source = MemorySource::file,
                                 .path = directory.file("image", 64_KiB, 'i'),
                                 .sharing = Sharing::map_private},
                                {.size = 64_KiB});
  injector.fail_always("madvise", EINVAL);
  const auto done = populate(image);
  injector.fail_none();
  ASSERT_TRUE(done);
  EXPECT_EQ(std::stoull(smaps_value(image.data(), "Rss")), 64U);
  EXPECT_EQ(std::stoull(smaps_value(image.data(), "Anonymous")), 0U) << "read, not copied";
}

TEST(LesserKernels, OlderKernelsStillTellWhatIsHuge) {
  Injector injector;
  auto mapping = map_or_die({.source = MemorySource::anon},
                            {.size = 8_MiB, .align = 2_MiB, .guard_pages = true});
  VMSPACE_ASSERT_OK(mapping.use_hugepages());
  VMSPACE_ASSERT_OK(populate(mapping));
  const auto precise = mapping.residency();
  // No PAGEMAP_SCAN before Linux 6.7.
  injector.fail_always("ioctl", ENOTTY);
  const auto summed = mapping.residency();
  ASSERT_TRUE(precise && summed);
  EXPECT_EQ(summed->resident, 8_MiB);
  ASSERT_TRUE(summed->huge);
  EXPECT_EQ(*summed->huge, precise->huge.value_or(*summed->huge));
  const auto part = mapping.residency(0, 2_MiB + 4_KiB);
  ASSERT_THAT(part, IsOk());
  EXPECT_EQ(part->huge.has_value(), *summed->huge == 0) << "a sum can't be divided";
}

TEST(LesserKernels, WhatIsPresentIsFoundWithoutPagemapScanAndWithoutProc) {
  for (const auto source : {MemorySource::anon, MemorySource::shmem}) {
    const auto mapping = map_or_die({.source = source}, {.size = 1_MiB});
    mapping.data()[64_KiB] = std::byte{1};
    mapping.data()[256_KiB] = std::byte{1};
    mapping.data()[256_KiB] = std::byte{0};
    Injector injector;
    for (const bool has_proc : {true, false}) {
      injector.fail_always("ioctl", ENOTTY);
      if (!has_proc) injector.hide_proc_and_sys();
      PageScan present(mapping, PageQuery::present);
      PageScan zero(mapping, PageQuery::zero);
      const std::uint64_t page = page_size();
      EXPECT_EQ(*present.next(0, 1_MiB), (Extent{64_KiB, page}));
      EXPECT_EQ(*present.next(64_KiB + page, 1_MiB), (Extent{256_KiB, page}));
      EXPECT_EQ(*zero.next(0, 1_MiB), (Extent{256_KiB, page}));
    }
  }
}

TEST(LesserKernels, TheEndOfALongPathIsNotTakenForFigures) {
  // /proc/self/smaps is read through a buffer of 4096 characters. Of a line that names a file the path has
  // all but the first 73, and what is behind the buffer's end here looks like another line.
  constexpr std::size_t inside = 4096 - 73;
  const TemporaryDirectory directory;
  std::string path = directory.path();
  while (path.size() < inside - 200)
    path += "/" + std::string(100, 'd');
  std::filesystem::create_directories(path);
  path += "/";
  path += std::string(inside - path.size(), 'f') + "AnonHugePages:    4096 kB";
  std::ofstream(path) << std::string(64_KiB, 'r');
  const auto mapping = map_or_die({.source = MemorySource::file, .path = path}, {.size = 64_KiB});
  Injector injector;
  injector.fail_always("ioctl", ENOTTY);
  const auto residency = mapping.residency();
  ASSERT_THAT(residency, IsOk());
  EXPECT_EQ(residency->huge, 0U);
}

TEST(LesserKernels, WhereTheSizeOfTheHostMayNotBeAskedItIsAnError) {
  Injector injector;
  injector.fail_always("sysinfo", EPERM);
  const auto size = host_memory_size();
  ASSERT_THAT(size, HasError(Errc::os));
  EXPECT_EQ(size.error().os_errno, EPERM);
}

TEST(LesserKernels, WhereSignalsMayNotBeHandledThereIsNoGuard) {
  for (const int calls : {0, 1}) {
    Injector injector;
    static int left;
    left = calls;
    injector.table().sigaction = [](int signal, const struct sigaction* next,
                                    struct sigaction* before) {
      if (left-- > 0) return ::sigaction(signal, next, before);
      errno = EPERM;
      return -1;
    };
    EXPECT_THAT(FaultGuard::install(), HasError(Errc::os));
    EXPECT_FALSE(FaultGuard::installed());
  }
  VMSPACE_EXPECT_OK(FaultGuard::install());
}

TEST(LesserKernels, AFileThatMayNotBeMappedIsDeniedAndNotBroken) {
  const TemporaryDirectory directory;
  const auto backing = Backing::open(
      {.source = MemorySource::file, .path = directory.file("ram", 64_KiB, 'r')}, 64_KiB);
  ASSERT_THAT(backing, IsOk());
  Injector injector;
  injector.fail_always("mmap", EACCES);
  EXPECT_THAT(MemoryMapping::map(*backing, {.size = 64_KiB}), HasError(Errc::access_denied));
}

TEST(LesserKernels, WithoutSysTheKernelIsAskedForHugePages) {
  Injector injector;
  injector.hide_proc_and_sys();
  for (const auto source : {MemorySource::anon, MemorySource::shmem}) {
    auto mapping = map_or_die({.source = source}, {.size = 8_MiB, .align = 2_MiB});
    const auto known = mapping.use_hugepages();
    ASSERT_THAT(known, IsOk());
    const bool advised = smaps_value(mapping.data(), "VmFlags").find(" hg") != std::string::npos;
    EXPECT_EQ(*known == Applied::applied, advised);
    EXPECT_EQ(advised, ::madvise(mapping.data(), 8_MiB, MADV_HUGEPAGE) == 0);
    // A kernel that was built without them.
    injector.fail_next("madvise", EINVAL);
    EXPECT_EQ(mapping.use_hugepages(), Applied::not_applicable);
    ASSERT_TRUE(injector.has_failed());
    injector.fail_none();
  }
}

TEST(LesserKernels, WithoutProcResidencyIsWhatMincoreSays) {
  Injector injector;
  injector.hide_proc_and_sys();
  const TemporaryDirectory directory;
  const BackingSpec specs[] = {
      {.source = MemorySource::anon},
      {.source = MemorySource::shmem},
      {.source = MemorySource::file, .path = directory.file("ram", 1_MiB, 'r')},
  };
  for (const auto& spec : specs) {
    SCOPED_TRACE(name_of(spec.source));
    const auto mapping = map_or_die(spec, {.size = 1_MiB});
    VMSPACE_ASSERT_OK(mapping.advise(0, 1_MiB, Advice::no_huge_pages));
    mapping.data()[64_KiB] = std::byte{1};
    const auto residency = mapping.residency(0, 1_MiB);
    ASSERT_THAT(residency, IsOk());
    EXPECT_EQ(residency->resident, spec.source == MemorySource::file ? 1_MiB : page_size());
    EXPECT_FALSE(residency->huge) << "nobody could tell";
  }
}

TEST(LesserKernels, WhyPagesWereNotCollapsedSaysWhatToDo) {
  const auto mapping = map_or_die({.source = MemorySource::anon}, {.size = 4_MiB, .align = 2_MiB});
  fill(mapping, 1);
  Injector injector;
  injector.fail_next("madvise", EINVAL);
  const auto unknown = mapping.collapse(0, 4_MiB);
  ASSERT_THAT(unknown, HasError(Errc::unsupported));
  EXPECT_NE(unknown.error().message().find("6.1"), std::string::npos);
  for (const auto& [error, advice] : {std::pair{ENOMEM, "compact"},
                                      {EBUSY, "later"},
                                      {EAGAIN, "later"},
                                      {EIO, "MADV_COLLAPSE"}}) {
    injector.fail_next("madvise", error);
    const auto failed = mapping.collapse(0, 4_MiB);
    ASSERT_THAT(failed, HasError(Errc::os));
    EXPECT_EQ(failed.error().os_errno, error);
    EXPECT_NE(failed.error().message().find(advice), std::string::npos);
    EXPECT_TRUE(holds(mapping, 0, 4_MiB, 1));
  }
  injector.fail_next("madvise", EINTR);
  const auto again = mapping.collapse(0, 4_MiB);
  EXPECT_EQ(injector.count("madvise"), 2U);
  if (!again) {
    EXPECT_THAT(again, HasError(Errc::unsupported));  // before Linux 6.1
  }
}

TEST(LesserKernels, LockedPrivatePagesStayWhereTheKernelCannotDropThem) {
  Injector injector;
  for (const BackingSpec& spec :
       {BackingSpec{.source = MemorySource::anon},
        BackingSpec{.source = MemorySource::shmem, .sharing = Sharing::map_private}}) {
    const auto mapping = map_or_die(spec, {.size = 64_KiB});
    fill(mapping, 0xa5);
    VMSPACE_ASSERT_OK(mapping.lock(0, 4_KiB));
    injector.fail_next("madvise", EINVAL);
    const auto refused = mapping.discard(0, 64_KiB);
    ASSERT_THAT(refused, HasError(Errc::unsupported));
    EXPECT_NE(refused.error().message().find("5.18"), std::string::npos);
    EXPECT_TRUE(holds(mapping, 0, 64_KiB, 0xa5));
    VMSPACE_EXPECT_OK(mapping.discard(4_KiB, 60_KiB)) << "what is not locked needs no new kernel";
    injector.fail_none();
  }
}

// What the tests of names see in /proc/self/maps takes a kernel that shows them; this needs none.
TEST(LesserKernels, TheKernelIsToldTheNameOfAnonymousMemory) {
  Injector injector;
  static std::string told;
  injector.table().prctl = [](int, unsigned long, unsigned long, unsigned long,
                              unsigned long name) {
    told = reinterpret_cast<const char*>(name);
    return 0;
  };
  const std::string name = "dimm[1]" + std::string(200, 'x');
  const auto mapping = map_or_die({.source = MemorySource::anon}, {.size = 64_KiB, .name = name});
  EXPECT_EQ(told, "dimm_1_" + std::string(72, 'x'));
}

TEST(LesserKernels, NamesOfMemoryAreNotNeeded) {
  Injector injector;
  for (const int error : {EINVAL, ENOSYS, ENOMEM}) {
    injector.fail_next("prctl", error);
    const auto mapping =
        map_or_die({.source = MemorySource::anon}, {.size = 64_KiB, .name = "ram0"});
    EXPECT_TRUE(injector.has_failed());
    EXPECT_EQ(name_at(mapping.data()), "");
  }
}

// A VFIO device's file has offsets that no file is long enough for, and no type.
TEST(LesserKernels, ADeviceIsNotAskedForItsSizeOrSeals) {
  const OwnedFd bar(::memfd_create("bar", MFD_CLOEXEC));
  constexpr std::uint64_t offset = std::uint64_t{2} << 40;
  ASSERT_EQ(::ftruncate(bar.get(), static_cast<off_t>(offset + 64_KiB)), 0);
  Injector injector;
  injector.table().fstat = [](int fd, struct stat* out) {
    const int done = ::fstat(fd, out);
    out->st_mode = 0600;
    out->st_size = 0;
    return done;
  };
  injector.fail_none();
  const auto region = MemoryRegion::map(
      {.size = 64_KiB,
       .backing = {.source = MemorySource::device, .fd = bar.get(), .offset = offset}});
  ASSERT_THAT(region, IsOk());
  EXPECT_EQ(injector.count("fcntl"), 2U) << "to duplicate it, and for its mode";
  EXPECT_EQ(injector.count("fstatfs") + injector.count("lseek"), 0U);
  (*region)->host_base()[1] = std::byte{7};
  char byte = 0;
  ASSERT_EQ(::pread(bar.get(), &byte, 1, static_cast<off_t>(offset + 1)), 1);
  EXPECT_EQ(byte, 7);
  injector.fail_next("mmap", EINVAL);
  const auto refused = MemoryMapping::map((*region)->backing(), {.size = 4_KiB});
  EXPECT_THAT(refused, HasError(Errc::unsupported)) << "a part that is not for mapping";
}

TEST(LesserKernels, MemfdOnAKernelWithoutMemfdIsUnsupported) {
  Injector injector;
  injector.fail_always("memfd_create", ENOSYS);
  const auto backing = Backing::open({.source = MemorySource::shmem}, 64_KiB);
  ASSERT_THAT(backing, HasError(Errc::unsupported));
  EXPECT_EQ(backing.error().os_errno, ENOSYS);
}

}  // namespace
}  // namespace vmspace::lesser_kernels_test
