// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/populate.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "host/host_support.hpp"

namespace vmspace::populate_test {
namespace {

using namespace test;

// More than one chunk for each of the threads, and no multiple of a chunk.
constexpr std::uint64_t size = 40_MiB + 4_KiB;

TEST(Populate, MakesEveryPageResidentOnAnyNumberOfThreads) {
  for (const unsigned threads : {0U, 1U, 2U, 7U, 1000U}) {
    for (const auto source : {MemorySource::anon, MemorySource::shmem}) {
      const auto mapping = map_or_die({.source = source}, {.size = size});
      VMSPACE_ASSERT_OK(populate(mapping, {.threads = threads}));
      EXPECT_EQ(mapping.residency()->resident, size);
    }
  }
}

TEST(Populate, KeepsContents) {
  const auto mapping = map_or_die({.source = MemorySource::anon}, {.size = size});
  mapping.data()[0] = std::byte{1};
  mapping.data()[size - 1] = std::byte{2};
  VMSPACE_ASSERT_OK(populate(mapping, {.threads = 2}));
  EXPECT_EQ(mapping.data()[0], std::byte{1});
  EXPECT_EQ(mapping.data()[size - 1], std::byte{2});
  EXPECT_TRUE(holds(mapping, 1, size - 2, 0));
}

TEST(Populate, FillsSeveralRangesAtOnceAndNothingElse) {
  const auto first = map_or_die({.source = MemorySource::anon}, {.size = size});
  const auto second = map_or_die({.source = MemorySource::shmem}, {.size = size});
  const std::array ranges{PopulateRange{&first, 4_KiB, 20_MiB},
                          PopulateRange{&second, 8_MiB, 8_KiB}};
  VMSPACE_ASSERT_OK(populate(ranges, {.threads = 2}));
  EXPECT_EQ(first.residency()->resident, 20_MiB);
  EXPECT_EQ(first.residency(0, 4_KiB)->resident, 0U);
  EXPECT_EQ(second.residency()->resident, 8_KiB);
  VMSPACE_EXPECT_OK(populate(std::span<const PopulateRange>{})) << "no ranges are no work";
}

TEST(Populate, OneWrongRangeAndNothingIsPopulated) {
  const auto mapping = map_or_die({.source = MemorySource::anon}, {.size = size});
  const std::array ranges{PopulateRange{&mapping, 0, 4_KiB}, PopulateRange{&mapping, size, 4_KiB}};
  const auto done = populate(ranges);
  ASSERT_THAT(done, HasError(Errc::out_of_bounds));
  const std::array none{PopulateRange{&mapping, 0, 4_KiB}, PopulateRange{nullptr, 0, 4_KiB}};
  EXPECT_THAT(populate(none), HasError(Errc::invalid_argument));
  EXPECT_EQ(mapping.residency()->resident, 0U);
}

TEST(Populate, AWayOfPopulatingThatDoesNotExistIsRefusedBeforeAnyPageComes) {
  const auto mapping = map_or_die({.source = MemorySource::anon}, {.size = 64_KiB});
  constexpr auto unknown = static_cast<PopulateAccess>(3);
  EXPECT_THAT(populate(mapping, {.access = unknown}), HasError(Errc::invalid_argument));
  const std::array ranges{
      PopulateRange{.mapping = &mapping, .offset = 0, .size = 4_KiB},
      PopulateRange{.mapping = &mapping, .offset = 4_KiB, .size = 4_KiB, .access = unknown}};
  EXPECT_THAT(populate(ranges), HasError(Errc::invalid_argument));
  EXPECT_THAT(populate(std::span<const PopulateRange>{}, {.access = unknown}),
              HasError(Errc::invalid_argument));
  EXPECT_EQ(mapping.residency()->resident, 0U);
}

TEST(Populate, AnErrorCarriesWhatItsRangeIsAbout) {
  const auto mapping = map_or_die({.source = MemorySource::anon}, {.size = 64_KiB});
  const std::array ranges{
      PopulateRange{.mapping = &mapping, .offset = 0, .size = 4_KiB, .about = "ram0"},
      PopulateRange{.mapping = &mapping, .offset = 4_KiB, .size = 1_MiB, .about = "ram1"}};
  const auto refused = populate(ranges);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().text.subject(), "ram1");
  EXPECT_STREQ(refused.error().operation, "populate");
  EXPECT_THAT(refused, HasError(Errc::out_of_bounds));
}

TEST(Populate, ReadsPrivateFilesInsteadOfCopyingThem) {
  const TemporaryDirectory directory;
  const auto mapping = map_or_die({.source = MemorySource::file,
                                   .path = directory.file("snapshot", 1_MiB, 's'),
                                   .sharing = Sharing::map_private},
                                  {.size = 1_MiB});
  VMSPACE_ASSERT_OK(populate(mapping));
  EXPECT_EQ(mapping.residency()->resident, 1_MiB);
  EXPECT_EQ(std::stoull(smaps_value(mapping.data(), "Rss")), 1024U) << "mapped, not only cached";
  EXPECT_EQ(std::stoull(smaps_value(mapping.data(), "Anonymous")), 0U);
  VMSPACE_ASSERT_OK(populate(mapping, {.access = PopulateAccess::write}));
  EXPECT_EQ(std::stoull(smaps_value(mapping.data(), "Anonymous")), 1024U);
  EXPECT_TRUE(holds(mapping, 0, 1_MiB, 's'));
}

TEST(Populate, ReadsWhatMayOnlyBeRead) {
  const TemporaryDirectory directory;
  const auto mapping =
      map_or_die({.source = MemorySource::file, .path = directory.file("rom", 1_MiB, 'r')},
                 {.size = 1_MiB, .protection = Protection::read});
  VMSPACE_EXPECT_OK(populate(mapping));
  EXPECT_EQ(std::stoull(smaps_value(mapping.data(), "Rss")), 1024U);
  EXPECT_THAT(populate(mapping, {.access = PopulateAccess::write}), HasError(Errc::access_denied));
  const auto nothing =
      map_or_die({.source = MemorySource::anon}, {.size = 4_KiB, .protection = Protection::none});
  EXPECT_THAT(populate(nothing), HasError(Errc::access_denied));
}

TEST(Populate, AllocatesTheSpaceOfASharedFile) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 0, ' ');
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(size)), 0);
  const auto mapping = map_or_die({.source = MemorySource::file, .path = path}, {.size = size});
  EXPECT_EQ(allocated_bytes(mapping.backing().fd()), 0U);
  VMSPACE_ASSERT_OK(populate(mapping, {.threads = 2}));
  EXPECT_GE(allocated_bytes(mapping.backing().fd()), size);
  EXPECT_TRUE(holds(mapping, 0, size, 0));
}

TEST(Populate, AFileThatWasCutOffIsNotMadeLonger) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 1_MiB, ' ');
  const auto mapping = map_or_die({.source = MemorySource::file, .path = path}, {.size = 1_MiB});
  ASSERT_EQ(::truncate(path.c_str(), 4096), 0);
  const auto done = populate(mapping);
  ASSERT_THAT(done, HasError(Errc::out_of_bounds));
  EXPECT_EQ(std::filesystem::file_size(path), 4096U);
}

TEST(Populate, KeepsHugePagesWhole) {
  auto mapping = map_or_die({.source = MemorySource::anon},
                            {.size = 40_MiB, .align = 2_MiB, .congruent_to = 0});
  if (*mapping.use_hugepages() != Applied::applied) {
    // The administrator's choice: /sys/kernel/mm/transparent_hugepage/enabled is "never".
    GTEST_SKIP() << "transparent huge pages are switched off";
  }
  VMSPACE_ASSERT_OK(populate(mapping, {.threads = 2}));
  const auto residency = mapping.residency();
  EXPECT_EQ(residency->resident, 40_MiB);
  EXPECT_EQ(residency->huge, std::stoull(smaps_value(mapping.data(), "AnonHugePages")) * 1024);
}

TEST(Populate, HugetlbIncludingAPoolThatRunsOut) {
  constexpr std::uint64_t huge = 2_MiB;
  HugePages pool(huge, 4);
  // The machine's pool may be empty, and adding to it takes root.
  if (!pool.available()) GTEST_SKIP() << pool.why_not();
  const std::uint64_t pages = pool.free();
  for (const auto source : {MemorySource::hugeanon, MemorySource::hugeshmem}) {
    const auto mapping = map_or_die({.source = source}, {.size = pages * huge});
    VMSPACE_ASSERT_OK(populate(mapping, {.threads = 2}));
    EXPECT_EQ(mapping.residency()->resident, pages * huge);
    EXPECT_EQ(pool.free(), 0U);
    // Discarding gives up the reservation: whoever takes the page now leaves none for us.
    if (!mapping.discard(0, huge)) continue;  // before Linux 5.18, private
    const auto thief = Backing::open({.source = MemorySource::hugeshmem}, huge);
    const auto stolen = MemoryMapping::map(*thief, {.size = huge});
    if (!stolen) continue;  // this kernel kept the reservation
    VMSPACE_ASSERT_OK(populate(*stolen));
    const auto failed = populate(mapping);
    ASSERT_THAT(failed, HasError(Errc::os)) << "the next access would be SIGBUS";
    EXPECT_EQ(failed.error().os_errno, EFAULT);
  }
}

}  // namespace
}  // namespace vmspace::populate_test
