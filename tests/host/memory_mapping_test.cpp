// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/memory_mapping.hpp"

#include <sys/mman.h>
#include <sys/resource.h>

#include <cstring>
#include <functional>

#include <gtest/gtest.h>

#include "vmspace/host/populate.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"

namespace vmspace {
namespace {

using namespace test;

const BackingSpec anon{.source = MemorySource::anon};
const BackingSpec shmem{.source = MemorySource::shmem};

std::uint64_t address_of(const MemoryMapping& mapping) {
  return reinterpret_cast<std::uintptr_t>(mapping.data());
}

TEST(MemoryMapping, UnknownProtectionBitsAreRefused) {
  constexpr auto unknown = static_cast<Protection>(0x09);
  const auto backing = Backing::open({.source = MemorySource::anon}, page_size());
  ASSERT_THAT(backing, IsOk());
  const auto refused = MemoryMapping::map(*backing, {.size = page_size(), .protection = unknown});
  ASSERT_THAT(refused, HasError(Errc::invalid_argument));

  auto mapping = MemoryMapping::map(*backing, {.size = page_size()});
  ASSERT_THAT(mapping, IsOk());
  EXPECT_THAT(mapping->protect(unknown), HasError(Errc::invalid_argument));
  EXPECT_EQ(mapping->protection(), Protection::read_write);
  EXPECT_EQ(permissions_at(mapping->data()), "rw-p");
}

TEST(MemoryMapping, ValuesThatAreNoEnumeratorsAreRefusedAndChangeNothing) {
  auto mapping = map_or_die(anon, {.size = 64_KiB});
  const auto flags = smaps_value(mapping.data(), "VmFlags");
  const auto policy = numa_policy_at(mapping.data());
  EXPECT_THAT(mapping.advise(0, 4_KiB, static_cast<Advice>(6)), HasError(Errc::invalid_argument));
  for (const std::vector<std::uint32_t>& nodes : {std::vector<std::uint32_t>{}, {0}}) {
    EXPECT_THAT(mapping.bind_to_nodes({static_cast<NumaMode>(3), nodes}),
                HasError(Errc::invalid_argument));
  }
  EXPECT_EQ(smaps_value(mapping.data(), "VmFlags"), flags);
  EXPECT_EQ(numa_policy_at(mapping.data()), policy);
  EXPECT_EQ(mapping.numa_policy(), NumaPolicy{});
}

TEST(MemoryMapping, MapsWithTheProtectionAndSharingOfItsOptions) {
  const auto permissions = [](Sharing sharing, Protection protection) {
    const auto mapping = map_or_die({.source = MemorySource::shmem, .sharing = sharing},
                                    {.size = page_size(), .protection = protection});
    return permissions_at(mapping.data());
  };
  EXPECT_EQ(permissions(Sharing::map_shared, Protection::read_write), "rw-s");
  EXPECT_EQ(permissions(Sharing::map_private, Protection::read_write), "rw-p");
  EXPECT_EQ(permissions(Sharing::map_shared, Protection::read), "r--s");
  EXPECT_EQ(permissions(Sharing::map_shared, Protection::none), "---s");
  EXPECT_EQ(permissions(Sharing::map_private, Protection::read | Protection::execute), "r-xp");
}

TEST(MemoryMapping, OffsetsOfBackingAndMappingReachTheSameBytesOfTheFile) {
  const TemporaryDirectory directory;
  const std::uint64_t page = page_size();
  const std::string path = directory.path() / "image";
  {
    std::ofstream file(path);
    for (const char fill : {'a', 'b', 'c', 'd'})
      file << std::string(page, fill);
  }
  for (const auto sharing : {Sharing::map_shared, Sharing::map_private}) {
    const auto backing = Backing::open(
        {.source = MemorySource::file, .path = path, .offset = page, .sharing = sharing}, 3 * page);
    ASSERT_THAT(backing, IsOk());
    const auto mapping = MemoryMapping::map(*backing, {.size = page, .offset = 2 * page});
    ASSERT_THAT(mapping, IsOk());
    EXPECT_EQ(mapping->file_offset(), 3 * page);
    EXPECT_TRUE(holds(*mapping, 0, page, 'd'));
  }
}

TEST(MemoryMapping, SharedMappingsOfOneBackingSeeEachOtherAndPrivateOnesDoNot) {
  const auto shared = Backing::open(shmem, 64_KiB);
  auto first = MemoryMapping::map(*shared, {.size = 64_KiB});
  auto second = MemoryMapping::map(*shared, {.size = 4_KiB, .offset = 60_KiB});
  ASSERT_TRUE(first && second);
  first->data()[60_KiB] = std::byte{7};
  EXPECT_EQ(second->data()[0], std::byte{7});

  const auto priv = map_or_die(
      {.source = MemorySource::file, .fd = shared->fd(), .sharing = Sharing::map_private},
      {.size = 64_KiB});
  priv.data()[60_KiB] = std::byte{9};
  EXPECT_EQ(first->data()[60_KiB], std::byte{7});
}

TEST(MemoryMapping, HostAddressIsCongruentModuloTheAlignment) {
  for (const std::uint64_t align : {page_size(), 64_KiB, 2_MiB, 1_GiB}) {
    for (const std::uint64_t congruent_to : {std::uint64_t{0}, page_size(), 3_GiB + page_size()}) {
      const auto mapping =
          map_or_die(anon, {.size = 4 * page_size(), .align = align, .congruent_to = congruent_to});
      EXPECT_EQ(address_of(mapping) % align, congruent_to % align);
      fill(mapping, 1);
    }
  }
}

TEST(MemoryMapping, GuardPagesMakeRunningOverAnEndFault) {
  for (const auto& spec : {anon, shmem}) {
    const auto mapping = map_or_die(spec, {.size = 64_KiB, .align = 2_MiB, .guard_pages = true});
    EXPECT_EQ(address_of(mapping) % 2_MiB, 0U);
    EXPECT_EQ(permissions_at(mapping.data() - 1).substr(0, 3), "---");
    EXPECT_EQ(permissions_at(mapping.data() + 64_KiB).substr(0, 3), "---");
    const int status = in_child([&] {
      ::signal(SIGSEGV, SIG_DFL);
      *static_cast<volatile std::byte*>(mapping.data() + 64_KiB);
    });
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) << status;
  }
}

TEST(MemoryMapping, UnmapsAllThatItReserved) {
  const std::uint64_t before = address_space_bytes();
  {
    const auto mapping = map_or_die(anon, {.size = 1_GiB, .align = 1_GiB, .guard_pages = true});
    EXPECT_GT(address_space_bytes(), before + 1_GiB);
  }
  EXPECT_LT(address_space_bytes(), before + 64_MiB);
}

TEST(MemoryMapping, MovingLeavesNothingBehind) {
  auto first = map_or_die(anon, {.size = 64_KiB});
  fill(first, 3);
  auto* const data = first.data();
  MemoryMapping second = std::move(first);
  EXPECT_FALSE(first.is_mapped());
  EXPECT_EQ(first.size(), 0U);
  EXPECT_EQ(second.data(), data);
  auto third = map_or_die(anon, {.size = 4_KiB});
  auto* const replaced = third.data();
  third = std::move(second);
  EXPECT_TRUE(holds(third, 0, 64_KiB, 3));
  EXPECT_EQ(permissions_at(replaced), "");
  auto& self = third;
  third = std::move(self);
  EXPECT_TRUE(third.is_mapped());
}

TEST(MemoryMapping, BadOptionsAreErrorsThatNameThem) {
  const auto backing = Backing::open(shmem, 1_MiB);
  const auto code = [&](const MappingOptions& options) {
    const auto mapping = MemoryMapping::map(*backing, options);
    return mapping ? Errc{} : mapping.error().code;
  };
  EXPECT_EQ(code({.size = 0}), Errc::zero_size);
  EXPECT_EQ(code({.size = 1}), Errc::misaligned);
  EXPECT_EQ(code({.size = 4_KiB, .offset = 1}), Errc::misaligned);
  EXPECT_EQ(code({.size = 4_KiB, .congruent_to = 1}), Errc::misaligned);
  EXPECT_EQ(code({.size = 4_KiB, .align = 3}), Errc::bad_alignment);
  EXPECT_EQ(code({.size = 2_MiB}), Errc::out_of_bounds);
  EXPECT_EQ(code({.size = 4_KiB, .offset = 1_MiB}), Errc::out_of_bounds);
  EXPECT_EQ(code({.size = 4_KiB, .offset = UINT64_MAX - 4_KiB + 1}), Errc::out_of_bounds);
  EXPECT_EQ(code({.size = 4_KiB, .align = std::uint64_t{1} << 63}), Errc::limit_exceeded);
}

TEST(MemoryMapping, SizesAboveTheAddressSpaceAreErrors) {
  for (const std::uint64_t size : {1ULL << 48, 1ULL << 56, 1ULL << 62}) {
    const auto backing = Backing::open(anon, size);
    ASSERT_THAT(backing, IsOk());
    for (const std::uint64_t align : {0ULL, 1ULL << 30}) {
      const auto mapping = MemoryMapping::map(*backing, {.size = size, .align = align});
      ASSERT_FALSE(mapping);
      EXPECT_EQ(mapping.error().os_errno, ENOMEM);
    }
  }
  const auto backing = Backing::open(anon, INT64_MAX - 4095);
  ASSERT_THAT(backing, IsOk());
  EXPECT_THAT(MemoryMapping::map(*backing, {.size = INT64_MAX - 4095}),
              HasError(Errc::limit_exceeded));
}

template <typename T>
Errc code_of(const Result<T>& result) {
  return result ? Errc{} : result.error().code;
}

TEST(MemoryMapping, EveryCallOnAPartChecksItFirst) {
  const auto mapping = map_or_die(shmem, {.size = 64_KiB});
  fill(mapping, 5);
  using U = std::uint64_t;
  const auto check = [&](const std::function<Errc(U, U)>& code) {
    EXPECT_EQ(code(0, 0), Errc::zero_size);
    EXPECT_EQ(code(64_KiB, 4_KiB), Errc::out_of_bounds);
    EXPECT_EQ(code(60_KiB, 8_KiB), Errc::out_of_bounds);
    EXPECT_EQ(code(UINT64_MAX, 2), Errc::out_of_bounds);
    EXPECT_EQ(code(4_KiB, UINT64_MAX - 4_KiB + 1), Errc::out_of_bounds);
    EXPECT_EQ(code(1, 4_KiB), Errc::misaligned);
    EXPECT_EQ(code(0, 4_KiB + 1), Errc::misaligned);
  };
  check([&](U offset, U size) { return code_of(mapping.advise(offset, size, Advice::cold)); });
  check([&](U offset, U size) { return code_of(mapping.lock(offset, size)); });
  check([&](U offset, U size) { return code_of(mapping.unlock(offset, size)); });
  check([&](U offset, U size) { return code_of(mapping.discard(offset, size)); });
  check([&](U offset, U size) { return code_of(mapping.residency(offset, size)); });
  check([&](U offset, U size) { return code_of(mapping.prefetch(offset, size)); });
  check([&](U offset, U size) { return code_of(mapping.msync(offset, size)); });
  check([&](U offset, U size) {
    const PopulateRange range{&mapping, offset, size};
    return code_of(populate(std::span(&range, 1)));
  });
  EXPECT_TRUE(holds(mapping, 0, 64_KiB, 5));
}

TEST(MemoryMapping, AClosedMappingRefusesEveryCall) {
  auto mapping = map_or_die(anon, {.size = 64_KiB});
  VMSPACE_ASSERT_OK(mapping.close());
  EXPECT_FALSE(mapping.is_mapped());
  EXPECT_THAT(mapping.close(), HasError(Errc::bad_state));
  EXPECT_THAT(mapping.use_hugepages(), HasError(Errc::bad_state));
  EXPECT_THAT(mapping.use_dontfork(), HasError(Errc::bad_state));
  EXPECT_THAT(mapping.use_mergeable(), HasError(Errc::bad_state));
  EXPECT_THAT(mapping.bind_to_nodes({}), HasError(Errc::bad_state));
  EXPECT_THAT(mapping.protect(Protection::read), HasError(Errc::bad_state));
  EXPECT_THAT(mapping.discard(0, 4_KiB), HasError(Errc::bad_state));
  EXPECT_THAT(mapping.residency(), HasError(Errc::bad_state));
  EXPECT_THAT(mapping.msync(), HasError(Errc::bad_state));
  EXPECT_THAT(populate(mapping), HasError(Errc::bad_state));
}

TEST(MemoryMapping, ProtectChangesWhatIsAllowed) {
  auto mapping = map_or_die(shmem, {.size = 64_KiB});
  fill(mapping, 1);
  VMSPACE_ASSERT_OK(mapping.protect(Protection::read));
  EXPECT_EQ(mapping.protection(), Protection::read);
  EXPECT_EQ(permissions_at(mapping.data()), "r--s");
  VMSPACE_ASSERT_OK(mapping.protect(Protection::read_write));
  fill(mapping, 2);
}

TEST(MemoryMapping, ProtectCannotWriteThroughAReadOnlyDescriptor) {
  const TemporaryDirectory directory;
  auto mapping =
      map_or_die({.source = MemorySource::file, .path = directory.file("rom", 64_KiB, 'r')},
                 {.size = 64_KiB, .protection = Protection::read});
  const auto changed = mapping.protect(Protection::read_write);
  ASSERT_THAT(changed, HasError(Errc::access_denied));
  EXPECT_EQ(mapping.protection(), Protection::read);
  EXPECT_EQ(permissions_at(mapping.data()), "r--s");
}

TEST(MemoryMapping, WritableSharedMappingNeedsABackingOpenedForIt) {
  const TemporaryDirectory directory;
  const auto backing =
      Backing::open({.source = MemorySource::file, .path = directory.file("rom", 64_KiB, 'r')},
                    64_KiB, Protection::read);
  ASSERT_THAT(backing, IsOk());
  const auto mapping = MemoryMapping::map(*backing, {.size = 64_KiB});
  ASSERT_THAT(mapping, HasError(Errc::access_denied));
}

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

/// The value in force of a setting like `always [madvise] never`; empty where there is none.
std::string thp_setting(const std::string& name) {
  std::string text;
  std::getline(std::ifstream("/sys/kernel/mm/transparent_hugepage/" + name), text);
  const std::size_t open = text.find('[');
  return open == text.npos ? "" : text.substr(open + 1, text.find(']') - open - 1);
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

TEST(MemoryMapping, WhatIsWrittenThroughASharedFileOutlivesAKilledProcess) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 64_KiB, '.');
  const int status = in_child([&] {
    const auto mapping = map_or_die({.source = MemorySource::file, .path = path}, {.size = 64_KiB});
    std::memcpy(mapping.data() + 60_KiB, "still here", 10);
    ::raise(SIGKILL);
  });
  ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  std::ifstream file(path);
  std::string text(64_KiB, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  EXPECT_EQ(text.substr(60_KiB, 10), "still here");
  EXPECT_EQ(text.substr(0, 60_KiB), std::string(60_KiB, '.'));
}

TEST(MemoryMapping, CloseWritesASharedFileBackAndPrivateOnesStayAsTheyWere) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 4_KiB, 'o');
  for (const auto sharing : {Sharing::map_private, Sharing::map_shared}) {
    auto mapping = map_or_die({.source = MemorySource::file, .path = path, .sharing = sharing},
                              {.size = 4_KiB});
    fill(mapping, 'n');
    VMSPACE_ASSERT_OK(mapping.msync(0, 4_KiB));
    VMSPACE_ASSERT_OK(mapping.close());
    const bool shared = sharing == Sharing::map_shared;
    EXPECT_EQ(std::ifstream(path).get(), shared ? 'n' : 'o');
  }
}

TEST(MemoryMapping, BindsToNodesOrSaysWhichOneIsMissing) {
  auto mapping = map_or_die(anon, {.size = 1_MiB});
  const auto bound = mapping.bind_to_nodes({NumaMode::bind, {0}});
  if (!bound && bound.error().code == Errc::unsupported) {
    // mbind(2) is ENOSYS without CONFIG_NUMA and EPERM under the seccomp filters of containers.
    GTEST_SKIP() << "this kernel has no NUMA, or this container may not use it";
  }
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
  std::uint64_t missing = 4_MiB;
  while (std::filesystem::exists("/sys/kernel/mm/hugepages/hugepages-" +
                                 std::to_string(missing / 1024) + "kB")) {
    missing *= 2;
  }
  const auto backing =
      Backing::open({.source = MemorySource::hugeanon, .page_size = missing}, missing);
  ASSERT_THAT(backing, IsOk());
  const auto mapping = MemoryMapping::map(*backing, {.size = missing});
  ASSERT_THAT(mapping, HasError(Errc::unsupported));
}

}  // namespace
}  // namespace vmspace
