// SPDX-License-Identifier: Apache-2.0
//
// MemoryMapping::discard for each backing: pages go back, reads give zeros, nothing stale remains.

#include <sys/mman.h>

#include <gtest/gtest.h>

#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"

namespace vmspace::memory_mapping_discard_test {
namespace {

using namespace test;

constexpr std::uint64_t size = 1_MiB;
constexpr std::uint64_t begin = 256_KiB;
constexpr std::uint64_t length = 512_KiB;

/// Fills, discards the middle half, and checks what every backing has in common.
void expect_discarded(const MemoryMapping& mapping) {
  fill(mapping, 0xa5);
  const std::uint64_t before = mapping.residency()->resident;
  VMSPACE_ASSERT_OK(mapping.discard(begin, length));
  EXPECT_EQ(mapping.residency(begin, length)->resident, 0U);
  EXPECT_EQ(mapping.residency()->resident, before - length);
  EXPECT_TRUE(holds(mapping, begin, length, 0));
  EXPECT_TRUE(holds(mapping, 0, begin, 0xa5));
  EXPECT_TRUE(holds(mapping, begin + length, size - begin - length, 0xa5));
  fill(mapping, 0x5a);
  EXPECT_TRUE(holds(mapping, 0, size, 0x5a)) << "memory that comes back is ordinary memory";
  VMSPACE_EXPECT_OK(mapping.discard(begin, length));
  VMSPACE_EXPECT_OK(mapping.discard(begin, length)) << "what has no pages may be discarded again";
}

TEST(Discard, PrivateAnonymousMemory) {
  expect_discarded(map_or_die({.source = MemorySource::anon}, {.size = size}));
}

TEST(Discard, SharedAnonymousMemory) {
  expect_discarded(
      map_or_die({.source = MemorySource::anon, .sharing = Sharing::map_shared}, {.size = size}));
}

TEST(Discard, MemfdGivesItsBlocksBackForEveryMappingOfIt) {
  const auto backing = Backing::open({.source = MemorySource::shmem}, 2 * size);
  const auto mapping = MemoryMapping::map(*backing, {.size = size, .offset = size});
  const auto other = MemoryMapping::map(*backing, {.size = 2 * size});
  ASSERT_TRUE(mapping && other);
  fill(*other, 1);
  ASSERT_EQ(allocated_bytes(backing->fd()), 2 * size);
  expect_discarded(*mapping);
  EXPECT_EQ(allocated_bytes(backing->fd()), 2 * size - length);
  EXPECT_TRUE(holds(*other, size + begin, length, 0));
  EXPECT_TRUE(holds(*other, 0, size, 1)) << "the offset of the mapping counts";
}

TEST(Discard, PrivateMappingOfAMemfdKeepsNoStaleCopyAndGivesTheFilePagesBackToo) {
  const auto backing =
      Backing::open({.source = MemorySource::shmem, .sharing = Sharing::map_private}, size);
  ASSERT_THAT(backing, IsOk());
  const std::string contents(size, 'f');
  ASSERT_EQ(::pwrite(backing->fd(), contents.data(), size, 0), static_cast<ssize_t>(size));
  const auto mapping = MemoryMapping::map(*backing, {.size = size});
  ASSERT_THAT(mapping, IsOk());
  fill(*mapping, 0xa5);
  VMSPACE_ASSERT_OK(mapping->discard(begin, length));
  EXPECT_EQ(allocated_bytes(backing->fd()), size - length);
  EXPECT_TRUE(holds(*mapping, begin, length, 0));
  EXPECT_TRUE(holds(*mapping, 0, begin, 0xa5));
}

TEST(Discard, PrivateFileShowsZerosAndNotTheFileAgain) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("image", size, 'f');
  const auto mapping =
      map_or_die({.source = MemorySource::file, .path = path, .sharing = Sharing::map_private},
                 {.size = size});
  fill(mapping, 0xa5);
  VMSPACE_ASSERT_OK(mapping.discard(begin, length));
  EXPECT_EQ(mapping.residency(begin, length)->resident, 0U);
  EXPECT_TRUE(holds(mapping, begin, length, 0));
  EXPECT_TRUE(holds(mapping, 0, begin, 0xa5));
  EXPECT_TRUE(holds(mapping, begin + length, size - begin - length, 0xa5));
  fill(mapping, 0x5a);
  VMSPACE_EXPECT_OK(mapping.discard(begin, length));
  VMSPACE_EXPECT_OK(mapping.discard(0, size));
  EXPECT_TRUE(holds(mapping, 0, size, 0));
  std::string text(size, '\0');
  std::ifstream(path).read(text.data(), static_cast<std::streamsize>(size));
  EXPECT_EQ(text, std::string(size, 'f')) << "the file is nobody's to change";
}

TEST(Discard, MemoryThatTakesThePlaceOfAFileHasItsProtectionPolicyAndAdvice) {
  const TemporaryDirectory directory;
  auto mapping = map_or_die({.source = MemorySource::file,
                             .path = directory.file("image", size, 'f'),
                             .sharing = Sharing::map_private},
                            {.size = size});
  VMSPACE_ASSERT_OK(mapping.use_dontfork());
  VMSPACE_ASSERT_OK(mapping.use_dontdump());
  const bool numa = mapping.bind_to_nodes({NumaMode::bind, {0}}).has_value();
  VMSPACE_ASSERT_OK(mapping.protect(Protection::read_write | Protection::execute));
  VMSPACE_ASSERT_OK(mapping.discard(begin, length));
  const auto* const place = mapping.data() + begin;
  EXPECT_EQ(permissions_at(place), "rwxp");
  const std::string flags = smaps_value(place, "VmFlags");
  EXPECT_NE(flags.find(" dc"), std::string::npos) << flags;
  EXPECT_NE(flags.find(" dd"), std::string::npos) << flags;
  if (numa) {
    EXPECT_EQ(numa_policy_at(place).find("bind:0"), 0U) << numa_policy_at(place);
  }
}

TEST(Discard, MemoryThatTakesThePlaceOfAFileIsCountedAsTheMappingWas) {
  if (overcommit_policy() == 2) GTEST_SKIP() << "vm.overcommit_memory=2 counts every mapping";
  const TemporaryDirectory directory;
  const BackingSpec image{.source = MemorySource::file,
                          .path = directory.file("image", size, 'f'),
                          .sharing = Sharing::map_private};
  for (const bool reserve : {false, true}) {
    const auto mapping = map_or_die(image, {.size = size, .reserve = reserve});
    VMSPACE_ASSERT_OK(mapping.discard(begin, length));
    for (const std::uint64_t offset : {std::uint64_t{0}, begin}) {
      const std::string flags = smaps_value(mapping.data() + offset, "VmFlags");
      EXPECT_EQ(flags.find(" ac") != std::string::npos, reserve) << flags;
      EXPECT_EQ(flags.find(" nr") != std::string::npos, !reserve) << flags;
    }
  }
}

TEST(Discard, SharedFileOnlyWhenItWasDeclaredDiscardable) {
  const TemporaryDirectory directory;
  BackingSpec spec{.source = MemorySource::file, .path = directory.file("ram", size, 'f')};
  {
    const auto mapping = map_or_die(spec, {.size = size});
    const auto refused = mapping.discard(begin, length);
    ASSERT_THAT(refused, HasError(Errc::bad_state));
    EXPECT_TRUE(holds(mapping, 0, size, 'f'));
  }
  spec.discardable = true;
  const auto mapping = map_or_die(spec, {.size = size});
  const auto done = mapping.discard(begin, length);
  if (!done && done.error().code == Errc::unsupported) {
    // The build directory lies where its owner put it, and not every file system can punch holes.
    GTEST_SKIP() << "the file system here has no holes";
  }
  ASSERT_THAT(done, IsOk());
  VMSPACE_ASSERT_OK(mapping.msync());
  EXPECT_LE(allocated_bytes(mapping.backing().fd()), size - length + 64_KiB);
  EXPECT_TRUE(holds(mapping, begin, length, 0));
  EXPECT_TRUE(holds(mapping, 0, begin, 'f'));
  struct stat info {};
  ASSERT_EQ(::fstat(mapping.backing().fd(), &info), 0);
  EXPECT_EQ(info.st_size, static_cast<off_t>(size));
}

TEST(Discard, HugetlbPagesGoBackToThePool) {
  constexpr std::uint64_t huge = 2_MiB;
  HugePages pool(huge, 8);
  // The machine's pool may be empty, and adding to it takes root.
  if (!pool.available()) GTEST_SKIP() << pool.why_not();
  for (const auto source : {MemorySource::hugeanon, MemorySource::hugeshmem}) {
    for (const auto sharing : {Sharing::map_shared, Sharing::map_private}) {
      const std::uint64_t free_before = pool.free();
      const auto mapping = map_or_die({.source = source, .sharing = sharing}, {.size = 4 * huge});
      fill(mapping, 0xa5);
      EXPECT_EQ(pool.free(), free_before - 4);
      const auto done = mapping.discard(huge, 2 * huge);
      if (!done && done.error().code == Errc::unsupported && sharing == Sharing::map_private) {
        continue;  // before Linux 5.18 private hugetlb pages can't be dropped
      }
      ASSERT_THAT(done, IsOk());
      EXPECT_EQ(pool.free(), free_before - 2) << name_of(source);
      EXPECT_TRUE(holds(mapping, huge, 2 * huge, 0));
      EXPECT_TRUE(holds(mapping, 0, huge, 0xa5));
      EXPECT_TRUE(holds(mapping, 3 * huge, huge, 0xa5));
      const auto part = mapping.discard(huge, page_size());
      ASSERT_THAT(part, HasError(Errc::misaligned));
      EXPECT_EQ(part.error().second, Operand::size(huge));
    }
  }
}

TEST(Discard, HugetlbfsFile) {
  constexpr std::uint64_t huge = 2_MiB;
  const TemporaryDirectory directory;
  const HugetlbfsMount mount(directory.path());
  // Mounting takes CAP_SYS_ADMIN, and a kernel with huge pages of 2 MiB.
  if (!mount.mounted()) GTEST_SKIP() << "may not mount a hugetlbfs";
  HugePages pool(huge, 2);
  // The machine's pool may be empty, and adding to it takes root.
  if (!pool.available()) GTEST_SKIP() << pool.why_not();
  const auto mapping =
      map_or_die({.source = MemorySource::hugetlbfs, .path = directory.path()}, {.size = 2 * huge});
  fill(mapping, 0xa5);
  EXPECT_EQ(allocated_bytes(mapping.backing().fd()), 2 * huge);
  VMSPACE_ASSERT_OK(mapping.discard(0, huge));
  EXPECT_EQ(allocated_bytes(mapping.backing().fd()), huge);
  EXPECT_TRUE(holds(mapping, 0, huge, 0));
  EXPECT_TRUE(holds(mapping, huge, huge, 0xa5));
}

TEST(Discard, LockedMemoryIsGivenBackAndStaysLocked) {
  for (const BackingSpec& spec :
       {BackingSpec{.source = MemorySource::shmem}, BackingSpec{.source = MemorySource::anon},
        BackingSpec{.source = MemorySource::shmem, .sharing = Sharing::map_private}}) {
    const auto mapping = map_or_die(spec, {.size = 64_KiB});
    fill(mapping, 0xa5);
    // A part, so that locked and other pages are discarded together.
    VMSPACE_ASSERT_OK(mapping.lock(16_KiB, 32_KiB));
    const auto done = mapping.discard(8_KiB, 16_KiB);
    // Private pages, before Linux 5.18.
    if (!done && done.error().code == Errc::unsupported) GTEST_SKIP() << done.error().message();
    VMSPACE_ASSERT_OK(done);
    EXPECT_EQ(mapping.residency(8_KiB, 16_KiB)->resident, 0U);
    EXPECT_TRUE(holds(mapping, 0, 8_KiB, 0xa5));
    EXPECT_TRUE(holds(mapping, 24_KiB, 40_KiB, 0xa5));
    EXPECT_NE(smaps_value(mapping.data() + 16_KiB, "VmFlags").find(" lo"), std::string::npos);
    EXPECT_TRUE(holds(mapping, 8_KiB, 16_KiB, 0));
    std::fill_n(mapping.data() + 8_KiB, 16_KiB, std::byte{1});
    EXPECT_EQ(std::stoull(smaps_value(mapping.data() + 16_KiB, "Locked")), 32U)
        << "what came back is locked";
  }
}

TEST(Discard, LockedPagesThatTheKernelCannotDropAreRefusedAndKeepTheirContents) {
  const TemporaryDirectory directory;
  const BackingSpec specs[] = {
      {.source = MemorySource::anon, .sharing = Sharing::map_shared},
      {.source = MemorySource::file,
       .path = directory.file("image", 64_KiB, 'f'),
       .sharing = Sharing::map_private},
  };
  for (const auto& spec : specs) {
    const auto mapping = map_or_die(spec, {.size = 64_KiB});
    fill(mapping, 0xa5);
    VMSPACE_ASSERT_OK(mapping.lock(16_KiB, 4_KiB));
    const auto refused = mapping.discard(0, 64_KiB);
    ASSERT_THAT(refused, HasError(Errc::bad_state));
    EXPECT_TRUE(holds(mapping, 0, 64_KiB, 0xa5)) << "not a byte of it is gone";
    VMSPACE_EXPECT_OK(mapping.discard(20_KiB, 44_KiB)) << "the rest is not locked";
    VMSPACE_ASSERT_OK(mapping.unlock(16_KiB, 4_KiB));
    VMSPACE_EXPECT_OK(mapping.discard(0, 64_KiB));
    EXPECT_TRUE(holds(mapping, 0, 64_KiB, 0));
  }
}

TEST(Discard, ReadOnlyMemoryIsNotChanged) {
  auto mapping = map_or_die({.source = MemorySource::shmem}, {.size = 64_KiB});
  fill(mapping, 0xa5);
  VMSPACE_ASSERT_OK(mapping.protect(Protection::read));
  const auto refused = mapping.discard(0, 64_KiB);
  ASSERT_THAT(refused, HasError(Errc::access_denied));
  EXPECT_TRUE(holds(mapping, 0, 64_KiB, 0xa5));
}

}  // namespace
}  // namespace vmspace::memory_mapping_discard_test
