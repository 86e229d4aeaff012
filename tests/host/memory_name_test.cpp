// SPDX-License-Identifier: Apache-2.0
//
// What /proc/self/maps shows of memory.

#include <sys/prctl.h>

#include <string>

#include <gtest/gtest.h>

#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

namespace vmspace::memory_name_test {
namespace {

using namespace test;

MemoryRegionPtr map_named(const std::string& name, MemorySource source) {
  const auto region =
      MemoryRegion::map(RegionOptions{.name = name, .size = 64_KiB, .backing = {.source = source}});
  return region ? *region : nullptr;
}

/// A kernel without CONFIG_ANON_VMA_NAME, or before Linux 5.17, has no names for anonymous memory.
bool anonymous_memory_has_names() {
  const auto memory = map_or_die({.source = MemorySource::anon}, {.size = page_size()});
  return ::prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, memory.data(), memory.size(), "probe") == 0;
}

std::string name_of_memfd(const std::string& name) {
  const auto backing =
      Backing::open({.source = MemorySource::shmem}, 64_KiB, Protection::read_write, name);
  if (!backing) return backing.error().message();
  const auto mapping = MemoryMapping::map(*backing, {.size = 64_KiB});
  return mapping ? name_at(mapping->data()) : mapping.error().message();
}

TEST(MemoryName, AMemfdIsCalledWhatItsRegionIs) {
  const auto region = map_named("ram0", MemorySource::shmem);
  ASSERT_NE(region, nullptr);
  EXPECT_EQ(name_at(region->host_base()), "/memfd:ram0 (deleted)");
  const auto unnamed = map_named("", MemorySource::shmem);
  ASSERT_NE(unnamed, nullptr);
  EXPECT_EQ(name_at(unnamed->host_base()), "/memfd:vmspace (deleted)");
}

TEST(MemoryName, AnonymousMemoryIsCalledWhatItsRegionIs) {
  if (!anonymous_memory_has_names()) GTEST_SKIP() << "this kernel names no anonymous memory";
  const auto region = map_named("ram0", MemorySource::anon);
  ASSERT_NE(region, nullptr);
  EXPECT_EQ(name_at(region->host_base()), "[anon:ram0]");
  const auto unnamed = map_named("", MemorySource::anon);
  ASSERT_NE(unnamed, nullptr);
  EXPECT_EQ(name_at(unnamed->host_base()), "");
}

TEST(MemoryName, LongNamesAreCutWhereTheKernelCuts) {
  EXPECT_EQ(name_of_memfd(std::string(249, 'm')), "/memfd:" + std::string(249, 'm') + " (deleted)");
  EXPECT_EQ(name_of_memfd(std::string(1000, 'm')),
            "/memfd:" + std::string(249, 'm') + " (deleted)");
  const auto region = map_named(std::string(5000, 'r'), MemorySource::shmem);
  ASSERT_NE(region, nullptr);
  EXPECT_EQ(region->description().name().size(), 5000U) << "only the kernel's name is cut";
  if (!anonymous_memory_has_names()) GTEST_SKIP() << "this kernel names no anonymous memory";
  const auto anonymous = map_named(std::string(200, 'a'), MemorySource::anon);
  ASSERT_NE(anonymous, nullptr);
  EXPECT_EQ(name_at(anonymous->host_base()), "[anon:" + std::string(79, 'a') + "]");
}

TEST(MemoryName, CharactersThatTheKernelDoesNotTakeAreUnderscores) {
  EXPECT_EQ(name_of_memfd("a b/c.d-1"), "/memfd:a b/c.d-1 (deleted)");
  EXPECT_EQ(name_of_memfd("a\nb\tc\x7f$[x]`\\"), "/memfd:a_b_c___x___ (deleted)");
  EXPECT_EQ(name_of_memfd(std::string("a\0b", 3)), "/memfd:a_b (deleted)");
  EXPECT_EQ(name_of_memfd("\u00fc"), "/memfd:__ (deleted)");
  if (!anonymous_memory_has_names()) GTEST_SKIP() << "this kernel names no anonymous memory";
  const auto region = map_named("dimm[1]\n", MemorySource::anon);
  ASSERT_NE(region, nullptr);
  EXPECT_EQ(name_at(region->host_base()), "[anon:dimm_1__]");
}

}  // namespace
}  // namespace vmspace::memory_name_test
