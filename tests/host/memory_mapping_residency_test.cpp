// SPDX-License-Identifier: Apache-2.0
//
// MemoryMapping: what is in RAM, and what has to stay there.

#include <sys/resource.h>

#include <algorithm>

#include <gtest/gtest.h>

#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/host/populate.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"

namespace vmspace::memory_mapping_residency_test {
namespace {

using namespace test;

const BackingSpec anon{.source = MemorySource::anon};
const BackingSpec shmem{.source = MemorySource::shmem};

TEST(MemoryMapping, ResidencyTellsPagesAndHowManyAreHuge) {
  auto mapping = map_or_die(anon, {.size = 8_MiB, .align = 2_MiB});
  EXPECT_EQ(mapping.residency()->resident, 0U);
  mapping.data()[0] = std::byte{1};
  mapping.data()[5_MiB] = std::byte{1};
  auto residency = mapping.residency();
  ASSERT_THAT(residency, IsOk());
  if (thp_setting("enabled") != "always") {
    EXPECT_EQ(residency->resident, 2 * page_size());
    EXPECT_EQ(residency->huge.value_or(0), 0U);
    EXPECT_EQ(mapping.residency(4_MiB, 4_MiB)->resident, page_size());
    EXPECT_EQ(mapping.residency(page_size(), 4_MiB)->resident, 0U);
  }
  VMSPACE_ASSERT_OK(mapping.discard(0, 8_MiB));
  if (*mapping.use_hugepages() != Applied::applied) {
    // The administrator's choice: /sys/kernel/mm/transparent_hugepage/enabled is "never".
    GTEST_SKIP() << "transparent huge pages are switched off";
  }
  VMSPACE_ASSERT_OK(populate(mapping));
  residency = mapping.residency();
  EXPECT_EQ(residency->resident, 8_MiB);
  const std::string truth = smaps_value(mapping.data(), "AnonHugePages");
  EXPECT_EQ(residency->huge, std::stoull(truth) * 1024) << truth;
}

TEST(MemoryMapping, ResidencyOfAMemfdCountsPagesThatOthersBroughtIn) {
  const auto backing = Backing::open(shmem, 1_MiB);
  const auto writer = MemoryMapping::map(*backing, {.size = 1_MiB});
  const auto other = MemoryMapping::map(*backing, {.size = 1_MiB});
  ASSERT_TRUE(writer && other);
  std::fill_n(writer->data(), 64_KiB, std::byte{1});
  EXPECT_EQ(other->residency()->resident, 64_KiB);
  EXPECT_EQ(other->residency(64_KiB, 64_KiB)->resident, 0U);
}

TEST(MemoryMapping, ReadingUntouchedAnonymousMemoryMakesNothingResident) {
  if (!can_scan_page_tables())
    GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN";  // before Linux 6.7
  const auto mapping = map_or_die(anon, {.size = 1_MiB});
  EXPECT_TRUE(holds(mapping, 0, 1_MiB, 0));
  const auto residency = mapping.residency();
  ASSERT_THAT(residency, IsOk());
  EXPECT_EQ(residency->resident, 0U) << "the kernel's one page of zeros";
}

TEST(MemoryMapping, LockedPagesAreInRamUntilUnlocked) {
  const auto mapping = map_or_die(anon, {.size = 64_KiB});
  VMSPACE_ASSERT_OK(mapping.lock(0, 16_KiB));
  EXPECT_GE(mapping.residency()->resident, 16_KiB);
  EXPECT_NE(smaps_value(mapping.data(), "VmFlags").find(" lo"), std::string::npos);
  VMSPACE_ASSERT_OK(mapping.unlock(0, 16_KiB));
  EXPECT_EQ(smaps_value(mapping.data(), "VmFlags").find(" lo"), std::string::npos);
}

TEST(MemoryMapping, LockingAboveTheLimitIsAnErrorAndLocksNothing) {
  const auto mapping = map_or_die(anon, {.size = 1_MiB});
  const int status = in_child([&] {
    const rlimit limit{64_KiB, 64_KiB};
    if (::setrlimit(RLIMIT_MEMLOCK, &limit) != 0) ::_exit(1);
    // Root is above the limit, and nobody is not.
    if (::geteuid() == 0 && ::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    const auto locked = mapping.lock(0, 1_MiB);
    if (locked) ::_exit(3);
    if (locked.error().code != Errc::os || locked.error().os_errno != ENOMEM) ::_exit(4);
    if (smaps_value(mapping.data(), "VmFlags").find(" lo") != std::string::npos) ::_exit(5);
    if (!mapping.lock(0, 32_KiB)) ::_exit(6);
  });
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace vmspace::memory_mapping_residency_test
