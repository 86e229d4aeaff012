// SPDX-License-Identifier: Apache-2.0
//
// MemoryMapping: what the kernel is told about memory.

#include <sys/mman.h>
#include <unistd.h>

#include <optional>

#include <gtest/gtest.h>

#include "vmspace/host/memory_mapping.hpp"
#include "vmspace/testing.hpp"

#include "host/forked_child.hpp"
#include "host/host_support.hpp"

namespace vmspace::memory_mapping_advice_test {
namespace {

using namespace test;

const BackingSpec anon{.source = MemorySource::anon};
const BackingSpec shmem{.source = MemorySource::shmem};

TEST(MemoryMapping, AdviceReachesTheKernel) {
  auto mapping = map_or_die(anon, {.size = 8_MiB});
  const auto flags = [&] { return smaps_value(mapping.data(), "VmFlags") + " "; };
  EXPECT_EQ(flags().find(" dc "), std::string::npos);
  VMSPACE_ASSERT_OK(mapping.use_dontfork());
  EXPECT_NE(flags().find(" dc "), std::string::npos) << flags();
  VMSPACE_ASSERT_OK(mapping.use_dontdump());
  EXPECT_NE(flags().find(" dd "), std::string::npos) << flags();
  const auto mergeable = mapping.use_mergeable();
  ASSERT_THAT(mergeable, IsOk());
  EXPECT_EQ(*mergeable == Applied::applied, flags().find(" mg ") != std::string::npos);
  EXPECT_EQ(*mergeable == Applied::applied,
            ::madvise(mapping.data(), mapping.size(), MADV_MERGEABLE) == 0);
  VMSPACE_EXPECT_OK(mapping.advise(0, 4_KiB, Advice::random));
  EXPECT_NE(flags().find(" rr "), std::string::npos) << flags();
  VMSPACE_EXPECT_OK(mapping.advise(0, 4_KiB, Advice::normal));
  VMSPACE_EXPECT_OK(mapping.advise(0, 4_KiB, Advice::sequential));
  VMSPACE_EXPECT_OK(mapping.advise(0, 4_KiB, Advice::normal));
  VMSPACE_EXPECT_OK(mapping.advise(0, 8_MiB, Advice::cold));
  VMSPACE_EXPECT_OK(mapping.advise(0, 8_MiB, Advice::page_out));
}

TEST(MemoryMapping, ForkedChildrenDoNotGetDontforkMemory) {
  auto mapping = map_or_die(anon, {.size = 64_KiB});
  fill(mapping, 1);
  VMSPACE_ASSERT_OK(mapping.use_dontfork());
  const int status = in_child([&] {
    ::signal(SIGSEGV, SIG_DFL);
    *static_cast<volatile std::byte*>(mapping.data());
  });
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) << status;
}

TEST(MemoryMapping, AChildThatDestroysDontforkMemoryUnmapsNothingElse) {
  for (const bool in_arena : {false, true}) {
    std::optional<HostArena> arena;
    if (in_arena) arena = VMSPACE_ASSERT_OK(HostArena::reserve({.size = 1_MiB}));
    std::optional<MemoryMapping> mapping = map_or_die(anon, {.size = 64_KiB, .arena = arena});
    VMSPACE_ASSERT_OK(mapping->use_dontfork());
    in_a_child([&] {
      // There is room: the memory has not come along.
      void* const place = mapping->data();
      void* const own = ::mmap(place, 64_KiB, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
      if (own != place) ::_exit(1);
      *static_cast<volatile char*>(own) = 1;
      mapping.reset();
      arena.reset();
      if (*static_cast<volatile char*>(own) != 1) ::_exit(2);
    });
    VMSPACE_EXPECT_OK(mapping->close());  // the parent's is unmapped as ever
  }
}

TEST(MemoryMapping, HugePagesAreAppliedOnlyWhereTheyCanBe) {
  if (!sys_is_mounted()) GTEST_SKIP() << "/sys is not mounted: the settings are not known";
  auto large = map_or_die(anon, {.size = 8_MiB, .align = 2_MiB});
  const auto applied = large.use_hugepages();
  ASSERT_THAT(applied, IsOk());
  const std::string setting = thp_setting("enabled");
  EXPECT_EQ(*applied == Applied::applied, setting == "always" || setting == "madvise") << setting;

  auto small = map_or_die(anon, {.size = 1_MiB});
  EXPECT_EQ(*small.use_hugepages(), Applied::not_applicable);
  auto misplaced = map_or_die(anon, {.size = 3_MiB, .align = 2_MiB, .congruent_to = 2_MiB - 4_KiB});
  EXPECT_EQ(*misplaced.use_hugepages(), *applied) << "2 MiB fit after the first page";
  misplaced = map_or_die(anon, {.size = 3_MiB, .align = 2_MiB, .congruent_to = 512_KiB});
  EXPECT_EQ(*misplaced.use_hugepages(), Applied::not_applicable);

  auto shared = map_or_die(shmem, {.size = 8_MiB, .align = 2_MiB});
  const std::string shared_setting = thp_setting("shmem_enabled");
  const auto shared_applied = shared.use_hugepages();
  ASSERT_THAT(shared_applied, IsOk());
  EXPECT_EQ(*shared_applied == Applied::not_applicable,
            shared_setting == "never" || shared_setting == "deny" || shared_setting.empty())
      << shared_setting;
}

TEST(MemoryMapping, CollapsesPagesIntoHugeOnesWhateverTheSettingsSay) {
  for (const BackingSpec& spec : {anon, shmem}) {
    SCOPED_TRACE(name_of(spec.source));
    // Neither end is that of a huge page.
    const auto mapping = map_or_die(
        spec,
        {.size = 8_MiB, .offset = 2_MiB - 64_KiB, .align = 2_MiB, .congruent_to = 2_MiB - 64_KiB});
    fill(mapping, 0x5a);
    const auto collapsed = mapping.collapse(0, 8_MiB);
    if (!collapsed && collapsed.error().code == Errc::unsupported) {
      GTEST_SKIP() << "MADV_COLLAPSE came with Linux 6.1";
    }
    ASSERT_THAT(collapsed, IsOk());
    EXPECT_EQ(*collapsed, Applied::applied);
    EXPECT_EQ(mapping.residency()->huge, 6_MiB) << "the whole huge pages inside";
    EXPECT_TRUE(holds(mapping, 0, 8_MiB, 0x5a));
  }
}

TEST(MemoryMapping, NothingIsCollapsedWhereNoHugePageFits) {
  const auto small = map_or_die(anon, {.size = 1_MiB});
  EXPECT_EQ(small.collapse(0, 1_MiB), Applied::not_applicable);
  const auto misplaced = map_or_die(anon, {.size = 3_MiB, .align = 2_MiB, .congruent_to = 512_KiB});
  EXPECT_EQ(misplaced.collapse(0, 3_MiB), Applied::not_applicable);
  const auto apart = map_or_die(shmem, {.size = 8_MiB, .align = 2_MiB, .congruent_to = 512_KiB});
  EXPECT_EQ(apart.collapse(0, 8_MiB), Applied::not_applicable) << "the memfd begins elsewhere";
  const auto part = map_or_die(anon, {.size = 8_MiB, .align = 2_MiB});
  EXPECT_EQ(part.collapse(4_KiB, 3_MiB), Applied::not_applicable);
  EXPECT_THAT(part.collapse(0, 4_KiB + 1), HasError(Errc::misaligned));
  EXPECT_THAT(part.collapse(8_MiB, 4_KiB), HasError(Errc::out_of_bounds));
}

TEST(MemoryMapping, MemoryAdvisedAgainstHugePagesIsNotCollapsed) {
  const auto mapping = map_or_die(anon, {.size = 4_MiB, .align = 2_MiB});
  VMSPACE_ASSERT_OK(mapping.advise(0, 4_MiB, Advice::no_huge_pages));
  EXPECT_THAT(mapping.collapse(0, 4_MiB), HasError(Errc::unsupported));
}

TEST(MemoryMapping, BindsToNodesOrSaysWhichOneIsMissing) {
  auto mapping = map_or_die(anon, {.size = 1_MiB});
  const auto bound = mapping.bind_to_nodes({NumaMode::bind, {0}});
  if (may_not_bind(bound)) GTEST_SKIP() << bound.error().message();
  ASSERT_THAT(bound, IsOk());
  const auto policy = [&] { return numa_policy_at(mapping.data()); };
  EXPECT_EQ(policy().substr(0, 6), "bind:0");
  VMSPACE_ASSERT_OK(mapping.bind_to_nodes({NumaMode::preferred, {0}}));
  EXPECT_EQ(policy().find("prefer"), 0U) << policy();
  fill(mapping, 1);

  const NumaPolicy before = mapping.numa_policy();
  for (const std::uint32_t missing : {1023U, 1024U, 32767U, 32768U, UINT32_MAX}) {
    for (const NumaPolicy& wrong :
         {NumaPolicy{NumaMode::bind, {missing}}, NumaPolicy{NumaMode::bind, {0, missing}},
          NumaPolicy{NumaMode::preferred, {missing}}}) {
      const auto refused = mapping.bind_to_nodes(wrong);
      ASSERT_THAT(refused, HasError(Errc::not_found));
      EXPECT_EQ(refused.error().first, Operand::number(missing));
    }
  }
  EXPECT_THAT(mapping.bind_to_nodes({NumaMode::bind, {}}), HasError(Errc::invalid_argument));
  EXPECT_THAT(mapping.bind_to_nodes({NumaMode::preferred, {0, 0}}),
              HasError(Errc::invalid_argument));
  EXPECT_THAT(mapping.bind_to_nodes({NumaMode::by_default, {0}}), HasError(Errc::invalid_argument));
  EXPECT_EQ(mapping.numa_policy(), before);
  EXPECT_EQ(policy().find("prefer"), 0U) << policy();
  VMSPACE_ASSERT_OK(mapping.bind_to_nodes({}));
  EXPECT_EQ(policy().find("default"), 0U) << policy();
}

}  // namespace
}  // namespace vmspace::memory_mapping_advice_test
