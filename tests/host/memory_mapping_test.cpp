// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/memory_mapping.hpp"

#include <sys/mman.h>

#include <cstring>

#include <gtest/gtest.h>

#include "vmspace/host/populate.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"

namespace vmspace::memory_mapping_test {
namespace {

using namespace test;

const BackingSpec anon{.source = MemorySource::anon};
const BackingSpec shmem{.source = MemorySource::shmem};

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
  EXPECT_EQ(code({.size = 4_KiB, .arena_offset = 4_KiB}), Errc::invalid_argument) << "no arena";
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

}  // namespace
}  // namespace vmspace::memory_mapping_test
