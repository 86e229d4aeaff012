// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/backing.hpp"

#include <sys/mman.h>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "host/host_support.hpp"

namespace vmspace::backing_test {
namespace {

using namespace test;

// A constant: clang 14 takes no consteval literal in a generic lambda.
constexpr std::uint64_t large_page = 2_MiB;

int seals_of(int fd) {
  return ::fcntl(fd, F_GET_SEALS);
}

TEST(Backing, AnonymousMemoryHasNoDescriptor) {
  for (const auto source : {MemorySource::anon, MemorySource::hugeanon}) {
    const auto backing = Backing::open({.source = source}, 2_MiB);
    ASSERT_THAT(backing, IsOk());
    EXPECT_TRUE(backing->is_anonymous());
    EXPECT_EQ(backing->fd(), -1);
    EXPECT_FALSE(backing->is_shared());
    EXPECT_EQ(backing->is_hugetlb(), source == MemorySource::hugeanon);
    EXPECT_EQ(backing->page_size(), source == MemorySource::hugeanon ? 2_MiB : page_size());
  }
}

TEST(Backing, MemfdIsCloseOnExecSealedAndNotExecutable) {
  const auto backing = Backing::open({.source = MemorySource::shmem}, 1_MiB);
  ASSERT_THAT(backing, IsOk());
  const int fd = backing->fd();
  EXPECT_NE(::fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
  constexpr int size_seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  EXPECT_EQ(seals_of(fd) & size_seals, size_seals);
  EXPECT_NE(::ftruncate(fd, 0), 0) << "somebody who has the descriptor could take our memory away";
  EXPECT_NE(::ftruncate(fd, 2_MiB), 0);
  struct stat info {};
  ASSERT_EQ(::fstat(fd, &info), 0);
  EXPECT_EQ(info.st_size, static_cast<off_t>(1_MiB));
  constexpr int seal_exec = 0x20;  // F_SEAL_EXEC, where the kernel has it (Linux 6.3)
  if ((seals_of(fd) & seal_exec) != 0) {
    EXPECT_EQ(info.st_mode & 0111, 0U);
    EXPECT_NE(::fchmod(fd, 0777), 0);
  }
}

TEST(Backing, HugeMemfdIsOnHugetlbWithThePageSizeAskedFor) {
  const auto backing = Backing::open({.source = MemorySource::hugeshmem}, 4_MiB);
  ASSERT_THAT(backing, IsOk());
  EXPECT_EQ(backing->page_size(), 2_MiB);
  struct stat info {};
  ASSERT_EQ(::fstat(backing->fd(), &info), 0);
  EXPECT_EQ(info.st_blksize, static_cast<blksize_t>(2_MiB)) << "no MFD_HUGETLB";
  EXPECT_NE(seals_of(backing->fd()) & F_SEAL_SHRINK, 0);

  // What is right for 1 GiB depends on the pools that the kernel lists there; jails have no /sys.
  if (!sys_is_mounted()) GTEST_SKIP() << "/sys is not mounted: the kernel's pools are not known";
  const auto giant = Backing::open({.source = MemorySource::hugeshmem, .page_size = 1_GiB}, 1_GiB);
  if (std::filesystem::exists("/sys/kernel/mm/hugepages/hugepages-1048576kB")) {
    ASSERT_THAT(giant, IsOk());
    ASSERT_EQ(::fstat(giant->fd(), &info), 0);
    EXPECT_EQ(info.st_blksize, static_cast<blksize_t>(1_GiB));
  } else {
    ASSERT_THAT(giant, HasError(Errc::unsupported));
  }
}

TEST(Backing, APageSizeThatTheKernelHasNoPoolForIsUnsupported) {
  const std::uint64_t missing = missing_huge_page_size();
  const auto backing =
      Backing::open({.source = MemorySource::hugeshmem, .page_size = missing}, missing);
  ASSERT_THAT(backing, HasError(Errc::unsupported));
  EXPECT_EQ(backing.error().first, Operand::size(missing));
}

TEST(Backing, CopiesShareTheDescriptorAndTheLastOneClosesIt) {
  const auto before = open_descriptors();
  {
    auto first = Backing::open({.source = MemorySource::shmem}, 1_MiB);
    ASSERT_THAT(first, IsOk());
    const Backing second = *first;
    EXPECT_EQ(second, *first);
    EXPECT_EQ(second.fd(), first->fd());
    const int fd = second.fd();
    first = fail({.code = Errc::not_found});
    EXPECT_NE(::fcntl(fd, F_GETFD), -1);
    EXPECT_NE(Backing::open({.source = MemorySource::shmem}, 1_MiB), second);
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(Backing, FileIsOpenedForWritingOnlyWhenWritesReachIt) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 64_KiB, 'x');
  const auto mode = [&](Sharing sharing, Protection protection) {
    const auto backing = Backing::open(
        {.source = MemorySource::file, .path = path, .sharing = sharing}, 64_KiB, protection);
    return backing ? ::fcntl(backing->fd(), F_GETFL) & O_ACCMODE : -1;
  };
  EXPECT_EQ(mode(Sharing::map_shared, Protection::read_write), O_RDWR);
  EXPECT_EQ(mode(Sharing::map_shared, Protection::read), O_RDONLY);
  EXPECT_EQ(mode(Sharing::map_private, Protection::read_write), O_RDONLY);
}

TEST(Backing, DescriptorHandedInIsDuplicatedAndKeptByTheCaller) {
  const TemporaryDirectory directory;
  const OwnedFd fd(::open(directory.file("ram", 64_KiB, 'x').c_str(), O_RDWR));
  {
    const auto backing =
        Backing::open({.source = MemorySource::file, .fd = fd.get(), .offset = 4_KiB}, 60_KiB);
    ASSERT_THAT(backing, IsOk());
    EXPECT_NE(backing->fd(), fd.get());
    EXPECT_NE(::fcntl(backing->fd(), F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_EQ(backing->offset(), 4_KiB);
    EXPECT_FALSE(backing->is_discardable());
  }
  EXPECT_NE(::fcntl(fd.get(), F_GETFD), -1);
}

TEST(Backing, TellsWhetherSomebodyElseCanTakePagesAway) {
  EXPECT_FALSE(Backing::open({.source = MemorySource::anon}, 64_KiB)->can_lose_pages());
  EXPECT_FALSE(Backing::open({.source = MemorySource::shmem}, 64_KiB)->can_lose_pages());
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 64_KiB, 'r');
  EXPECT_TRUE(
      Backing::open({.source = MemorySource::file, .path = path}, 64_KiB)->can_lose_pages());

  const OwnedFd theirs(::memfd_create("theirs", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(theirs.get(), 64_KiB), 0);
  const BackingSpec spec{.source = MemorySource::file, .fd = theirs.get()};
  EXPECT_TRUE(Backing::open(spec, 64_KiB)->can_lose_pages());
  ASSERT_EQ(::fcntl(theirs.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
  EXPECT_FALSE(Backing::open(spec, 64_KiB)->can_lose_pages());
}

TEST(Backing, AFileSealedAgainstWritingCanOnlyBeRead) {
  for (const int seal : {F_SEAL_WRITE, F_SEAL_FUTURE_WRITE}) {
    const OwnedFd sealed(::memfd_create("image", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    ASSERT_EQ(::ftruncate(sealed.get(), 64_KiB), 0);
    ASSERT_EQ(::fcntl(sealed.get(), F_ADD_SEALS, seal), 0);
    BackingSpec spec{.source = MemorySource::file, .fd = sealed.get()};
    const auto refused = Backing::open(spec, 64_KiB);
    ASSERT_THAT(refused, HasError(Errc::access_denied));
    const auto shared = Backing::open(spec, 64_KiB, Protection::read);
    ASSERT_THAT(shared, IsOk());
    EXPECT_FALSE(shared->is_writable());
    spec.sharing = Sharing::map_private;
    const auto copy = Backing::open(spec, 64_KiB);
    ASSERT_THAT(copy, IsOk());
    EXPECT_TRUE(copy->is_writable());
  }
}

TEST(Backing, MemfdOfSomebodyElseIsRecognised) {
  const OwnedFd plain(::memfd_create("theirs", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(plain.get(), 1_MiB), 0);
  const auto backing = Backing::open({.source = MemorySource::file, .fd = plain.get()}, 1_MiB);
  ASSERT_THAT(backing, IsOk());
  EXPECT_EQ(backing->page_kind(), PageKind::shmem);

  const OwnedFd huge(::memfd_create("theirs", MFD_CLOEXEC | MFD_HUGETLB));
  ASSERT_EQ(::ftruncate(huge.get(), 4_MiB), 0);
  BackingSpec spec{.source = MemorySource::file, .fd = huge.get()};
  EXPECT_EQ(Backing::open(spec, 4_MiB)->page_size(), 2_MiB);
  const auto small = Backing::open(spec, 4_KiB);
  ASSERT_THAT(small, HasError(Errc::misaligned));
  spec.page_size = page_size();
  EXPECT_THAT(Backing::open(spec, 4_MiB), HasError(Errc::invalid_argument));
}

TEST(Backing, ValuesThatAreNoEnumeratorsAreRefusedAndOpenNothing) {
  const auto before = open_descriptors();
  const auto source = static_cast<MemorySource>(99);
  const auto sharing = static_cast<Sharing>(3);
  const auto protection = static_cast<Protection>(0x18);
  EXPECT_THAT(Backing::open({.source = source}, 64_KiB), HasError(Errc::invalid_argument));
  EXPECT_THAT(Backing::open({.source = MemorySource::shmem, .sharing = sharing}, 64_KiB),
              HasError(Errc::invalid_argument));
  EXPECT_THAT(Backing::open({.source = MemorySource::shmem}, 64_KiB, protection),
              HasError(Errc::invalid_argument));
  EXPECT_EQ(open_descriptors(), before);
}

TEST(Backing, FileShorterThanTheMemoryIsAnErrorAndNotSigbus) {
  const TemporaryDirectory directory;
  BackingSpec spec{.source = MemorySource::file, .path = directory.file("ram", 64_KiB, 'x')};
  VMSPACE_ASSERT_OK(Backing::open(spec, 64_KiB));
  const auto error_of = [&](std::uint64_t offset, std::uint64_t size) {
    spec.offset = offset;
    const auto backing = Backing::open(spec, size);
    return backing ? std::string("opened") : backing.error().message();
  };
  const std::string error = error_of(0, 68_KiB);
  EXPECT_EQ(error.find("Backing::open: out of bounds: [0x0, 0x10fff] is not within [0x0, 0xffff] "
                       "(the file must be at least offset + size bytes long: \""),
            0U)
      << error;
  EXPECT_TRUE(error.ends_with("/ram\")")) << error;
  EXPECT_NE(error_of(4_KiB, 64_KiB), "opened");
  EXPECT_NE(error_of(64_KiB, 4_KiB), "opened");
  EXPECT_NE(error_of(1_GiB, 4_KiB), "opened");
  EXPECT_EQ(error_of(60_KiB, 4_KiB), "opened");
}

TEST(Backing, BadInputIsAnErrorThatNamesIt) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 64_KiB, 'x');
  const auto before = open_descriptors();
  const auto code = [](const BackingSpec& spec, std::uint64_t size) {
    const auto backing = Backing::open(spec, size);
    return backing ? Errc{} : backing.error().code;
  };
  const BackingSpec shmem{.source = MemorySource::shmem};
  const BackingSpec file{.source = MemorySource::file, .path = path};
  const auto with = [](BackingSpec spec, auto change) {
    change(spec);
    return spec;
  };
  EXPECT_EQ(code({}, 4_KiB), Errc::invalid_argument) << "source none";
  EXPECT_EQ(code(shmem, 0), Errc::zero_size);
  EXPECT_EQ(code(shmem, 1), Errc::misaligned);
  EXPECT_EQ(code(shmem, UINT64_MAX), Errc::limit_exceeded);
  EXPECT_EQ(code(shmem, std::uint64_t{1} << 63), Errc::limit_exceeded);
  EXPECT_EQ(code(with(shmem, [](auto& s) { s.page_size = 3; }), 4_KiB), Errc::bad_alignment);
  EXPECT_EQ(code(with(shmem, [](auto& s) { s.page_size = large_page; }), 2_MiB),
            Errc::invalid_argument)
      << "small pages under the name of large ones";
  EXPECT_EQ(code({.source = MemorySource::hugeshmem}, 4_KiB), Errc::misaligned);
  EXPECT_EQ(code(with(file, [](auto& s) { s.offset = 1; }), 4_KiB), Errc::misaligned);
  EXPECT_EQ(code(with(file, [](auto& s) { s.offset = UINT64_MAX - 4095; }), 8_KiB),
            Errc::limit_exceeded);
  EXPECT_EQ(code(with(file, [](auto& s) { s.path = "/proc/self/missing"; }), 4_KiB), Errc::os);
  EXPECT_EQ(code(with(file, [](auto& s) { s.path = "/dev/null"; }), 4_KiB), Errc::invalid_argument);
  EXPECT_EQ(code({.source = MemorySource::hugetlbfs, .path = directory.path()}, 2_MiB),
            Errc::invalid_argument)
      << "a directory that is in no hugetlbfs";
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 1)
      << "the file made to find that out is gone";
  EXPECT_EQ(open_descriptors(), before);
}

TEST(Backing, WhatASourceLacksOrCanNotUseIsAnErrorAndNotIgnored) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 2_MiB, 'x');
  const std::string folder = directory.path();
  const OwnedFd fd(::open(path.c_str(), O_RDWR));
  const auto before = open_descriptors();
  using enum MemorySource;
  for (const BackingSpec& spec : std::vector<BackingSpec>{
           // The memfd would have 2 MiB, of which the memory would begin with the second page.
           {.source = shmem, .offset = 4_KiB},
           {.source = hugeshmem, .offset = 2_MiB},
           {.source = anon, .offset = 4_KiB},
           {.source = hugetlbfs, .path = folder, .offset = 2_MiB},
           {.source = shmem, .path = path},
           {.source = anon, .fd = fd.get()},
           {.source = hugetlbfs, .path = folder, .fd = fd.get()},
           {.source = hugetlbfs},
           {.source = file},
           {.source = file, .path = path, .fd = fd.get()},
           {.source = device},
           {.source = device, .path = "/dev/zero", .fd = fd.get()},
           {.source = device, .path = "/dev/zero", .discardable = true},
           {.source = shmem, .discardable = true},
           {.source = hugeanon, .page_size = 1},
           {.source = hugeshmem, .page_size = page_size() / 2},
       }) {
    SCOPED_TRACE(std::string(name_of(spec.source)) + " of " + spec.path);
    EXPECT_THAT(Backing::open(spec, 2_MiB), HasError(Errc::invalid_argument));
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST(Backing, AFifoIsRefusedAndNotWaitedFor) {
  const TemporaryDirectory directory;
  const std::string path = directory.path() / "fifo";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const auto backing = Backing::open(
      {.source = MemorySource::file, .path = path, .sharing = Sharing::map_private}, 4_KiB);
  ASSERT_THAT(backing, HasError(Errc::invalid_argument));
}

TEST(Backing, DescriptorsThatAreClosedReadOnlyOrDirectoriesAreErrors) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 64_KiB, 'x');
  const auto open = [](int fd, Sharing sharing = Sharing::map_shared) {
    return Backing::open({.source = MemorySource::file, .fd = fd, .sharing = sharing}, 64_KiB);
  };
  const int closed = ::open(path.c_str(), O_RDWR);
  ::close(closed);
  ASSERT_FALSE(open(closed));
  EXPECT_EQ(open(closed).error().os_errno, EBADF);

  const OwnedFd read_only(::open(path.c_str(), O_RDONLY));
  EXPECT_THAT(open(read_only.get()), HasError(Errc::access_denied));
  EXPECT_TRUE(open(read_only.get(), Sharing::map_private));
  const OwnedFd write_only(::open(path.c_str(), O_WRONLY));
  EXPECT_THAT(open(write_only.get()), HasError(Errc::access_denied));
  const OwnedFd path_only(::open(path.c_str(), O_PATH));
  EXPECT_THAT(open(path_only.get(), Sharing::map_private), HasError(Errc::access_denied));

  const OwnedFd folder(::open(directory.path().c_str(), O_RDONLY | O_DIRECTORY));
  EXPECT_THAT(open(folder.get(), Sharing::map_private), HasError(Errc::invalid_argument));
}

TEST(Backing, HugetlbfsFileIsMadeExclusivelyAndLeavesNoName) {
  const TemporaryDirectory directory;
  const HugetlbfsMount mount(directory.path());
  // Mounting takes CAP_SYS_ADMIN, and a kernel with huge pages of 2 MiB.
  if (!mount.mounted()) GTEST_SKIP() << "may not mount a hugetlbfs";
  {
    const auto backing =
        Backing::open({.source = MemorySource::hugetlbfs, .path = directory.path()}, 4_MiB);
    ASSERT_THAT(backing, IsOk());
    EXPECT_EQ(backing->page_size(), 2_MiB);
    EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
    struct stat info {};
    ASSERT_EQ(::fstat(backing->fd(), &info), 0);
    EXPECT_EQ(info.st_nlink, 0U);
    EXPECT_EQ(info.st_size, static_cast<off_t>(4_MiB));
    EXPECT_EQ(info.st_mode & 0777, 0600U);
    EXPECT_THAT(
        Backing::open(
            {.source = MemorySource::hugetlbfs, .path = directory.path(), .page_size = 1_GiB},
            1_GiB),
        HasError(Errc::invalid_argument))
        << "the mount has other pages";
  }
}

TEST(Backing, MovingCopiesTheHandle) {
  auto backing = Backing::open({.source = MemorySource::shmem}, 4_KiB);
  ASSERT_THAT(backing, IsOk());
  const Backing moved = std::move(*backing);
  EXPECT_EQ(backing->fd(), moved.fd());
  EXPECT_EQ(*backing, moved);
}

}  // namespace
}  // namespace vmspace::backing_test
