// SPDX-License-Identifier: Apache-2.0
//
// MemoryMapping: pages of hugetlb pools.

#include <gtest/gtest.h>

#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"

namespace vmspace::memory_mapping_hugetlb_test {
namespace {

using namespace test;

TEST(MemoryMapping, AHugetlbPoolWithTooFewPagesIsAnErrorWhenMapping) {
  HugePages pool(2_MiB, 1);
  if (!pool.available()) GTEST_SKIP() << pool.why_not();
  const std::uint64_t too_much = (pool.free() + 1) * 2_MiB;
  for (const auto source : {MemorySource::hugeanon, MemorySource::hugeshmem}) {
    const auto backing = Backing::open({.source = source}, too_much);
    ASSERT_THAT(backing, IsOk());
    for (const bool guard_pages : {false, true}) {
      const auto mapping =
          MemoryMapping::map(*backing, {.size = too_much, .guard_pages = guard_pages});
      ASSERT_FALSE(mapping);
      EXPECT_EQ(mapping.error().os_errno, ENOMEM);
      EXPECT_NE(mapping.error().message().find("hugetlb pool"), std::string::npos);
    }
  }
}

TEST(MemoryMapping, HugetlbMemoryIsHugeAlignedAndGuarded) {
  HugePages pool(2_MiB, 4);
  if (!pool.available()) GTEST_SKIP() << pool.why_not();
  for (const auto source : {MemorySource::hugeanon, MemorySource::hugeshmem}) {
    const auto mapping = map_or_die({.source = source}, {.size = 4_MiB, .guard_pages = true});
    EXPECT_EQ(address_of(mapping) % 2_MiB, 0U);
    EXPECT_EQ(permissions_at(mapping.data() - 1).substr(0, 3), "---");
    fill(mapping, 1);
    const auto residency = mapping.residency();
    ASSERT_THAT(residency, IsOk());
    EXPECT_EQ(residency->resident, 4_MiB);
    EXPECT_EQ(residency->huge, 4_MiB);
    EXPECT_EQ(*map_or_die({.source = source}, {.size = 2_MiB}).use_hugepages(),
              Applied::not_applicable);
  }
}

TEST(MemoryMapping, GiganticPagesWorkOrSayWhatIsMissing) {
  const BackingSpec giant{.source = MemorySource::hugeanon, .page_size = 1_GiB};
  const auto backing = Backing::open(giant, 1_GiB);
  ASSERT_THAT(backing, IsOk());
  if (!sys_is_mounted()) GTEST_SKIP() << "/sys is not mounted: the kernel's pools are not known";
  if (!std::filesystem::exists("/sys/kernel/mm/hugepages/hugepages-1048576kB")) {
    EXPECT_THAT(MemoryMapping::map(*backing, {.size = 1_GiB}), HasError(Errc::unsupported));
    return;
  }
  {
    const HugePages lock(1_GiB, 0);
    if (lock.free() == 0) {
      const auto none = MemoryMapping::map(*backing, {.size = 1_GiB});
      ASSERT_FALSE(none);
      EXPECT_EQ(none.error().os_errno, ENOMEM);
    }
  }
  HugePages pool(1_GiB, 1);
  if (!pool.available()) GTEST_SKIP() << pool.why_not();
  const auto mapping = MemoryMapping::map(*backing, {.size = 1_GiB});
  ASSERT_THAT(mapping, IsOk());
  EXPECT_EQ(address_of(*mapping) % 1_GiB, 0U);
  EXPECT_EQ(MemoryMapping::map(*backing, {.size = 1_GiB}).error().os_errno, ENOMEM)
      << "the page is reserved, although nothing has touched it";
}

TEST(MemoryMapping, ThePageSizeMissingFromTheKernelIsUnsupported) {
  const std::uint64_t missing = missing_huge_page_size();
  const auto backing =
      Backing::open({.source = MemorySource::hugeanon, .page_size = missing}, missing);
  ASSERT_THAT(backing, IsOk());
  const auto mapping = MemoryMapping::map(*backing, {.size = missing});
  ASSERT_THAT(mapping, HasError(Errc::unsupported));
}

}  // namespace
}  // namespace vmspace::memory_mapping_hugetlb_test
