// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/region_descriptor.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "host/host_support.hpp"
#include "memory/guest_support.hpp"

namespace vmspace::region_descriptor_test {
namespace {

using ::testing::Not;
using test::operator""_MiB;
using test::guest;
using test::page;

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

TEST(RegionDescriptor, TheOtherSideSeesTheSameMemory) {
  const GuestMemory memory =
      guest({{0x1000, 4 * page, Protection::read_write, MemorySource::shmem},
             {top - 2 * page + 1, 2 * page, Protection::read, MemorySource::shmem}});
  const auto described = describe_regions(memory);
  ASSERT_THAT(described, IsOk());
  ASSERT_EQ(described->size(), 2U);
  const auto other = map_regions(*described);
  ASSERT_THAT(other, IsOk());
  ASSERT_THAT(other->write(GuestAddress(0x1008), std::uint64_t{42}), IsOk());
  EXPECT_THAT(memory.read<std::uint64_t>(GuestAddress(0x1008)), IsOkAndHolds(42U));
  EXPECT_THAT(other->write(GuestAddress(top), std::uint8_t{1}), HasError(Errc::access_denied));
  EXPECT_EQ(other->last_addr(), GuestAddress(top));
  // And may be described in turn.
  const auto again = describe_regions(*other);
  ASSERT_THAT(again, IsOk());
  EXPECT_EQ((*again)[0].offset, (*described)[0].offset);
}

TEST(RegionDescriptor, NothingBecomesExecutableOnThePeersWord) {
  const GuestMemory memory = guest({{0, page, Protection::read_write, MemorySource::shmem}});
  auto described = describe_regions(memory);
  ASSERT_THAT(described, IsOk());
  described->front().protection = Protection::read_write | Protection::execute;
  const auto mapped = map_regions(*described);
  ASSERT_THAT(mapped, IsOk());
  EXPECT_EQ(test::permissions_at(mapped->regions().front()->host_base()), "rw-s");
  EXPECT_EQ(mapped->regions().front()->protection(), described->front().protection);
}

TEST(RegionDescriptor, OffsetsAreKept) {
  const int file = memfd_create("two halves", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(file, 2 * page), 0);
  const std::vector<RegionDescriptor> halves{
      {.range = {GuestAddress(0), page}, .fd = file, .offset = page},
      {.range = {GuestAddress(4 * page), page}, .fd = file}};
  const auto memory = map_regions(halves, Unsealed::accept);
  ASSERT_THAT(memory, IsOk());
  ASSERT_THAT(memory->write(GuestAddress(0), std::uint8_t{9}), IsOk());
  std::uint8_t byte = 0;
  ASSERT_EQ(pread(file, &byte, 1, page), 1);
  EXPECT_EQ(byte, 9);
  EXPECT_EQ((*describe_regions(*memory))[0].offset, page);
  close(file);
  EXPECT_THAT(memory->read<std::uint8_t>(GuestAddress(0)),
              IsOkAndHolds(9));  // a descriptor of its own
}

TEST(RegionDescriptor, FilesThatTheirOwnerCouldShrinkAreRefusedUnlessAccepted) {
  const GuestMemory memory = guest({{0, page, Protection::read_write, MemorySource::shmem}});
  const auto sealed = describe_regions(memory);
  ASSERT_THAT(sealed, IsOk());
  VMSPACE_EXPECT_OK(map_regions(*sealed));

  std::FILE* const regular = std::tmpfile();
  ASSERT_NE(regular, nullptr);
  for (const int file : {memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING),
                         memfd_create("never", MFD_CLOEXEC), dup(fileno(regular))}) {
    ASSERT_GE(file, 0);
    ASSERT_EQ(ftruncate(file, page), 0);
    const std::vector<RegionDescriptor> regions{sealed->front(),
                                                {.range = {GuestAddress(page), page}, .fd = file}};
    VMSPACE_EXPECT_OK(map_regions(regions, Unsealed::accept));
    const auto refused = map_regions(regions);
    ASSERT_THAT(refused, HasError(Errc::access_denied));
    EXPECT_EQ(refused.error().message(),
              "map_regions: \"[0x1000, 0x1fff]\": access denied (the file's owner could truncate "
              "it, which "
              "would raise SIGBUS here: install a FaultGuard (see Unsealed::guard), or seal the "
              "file with "
              "F_SEAL_SHRINK)");
    close(file);
  }
  std::fclose(regular);
}

TEST(RegionDescriptor, HugePagesThatTheirOwnerCouldPunchOutAreRefusedUnlessAccepted) {
  const test::HugePages pages(2_MiB, 2);
  if (!pages.available()) GTEST_SKIP() << pages.why_not();
  const int file = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
  ASSERT_GE(file, 0);
  ASSERT_EQ(ftruncate(file, 2_MiB), 0);
  ASSERT_EQ(fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK), 0);
  std::vector<RegionDescriptor> regions{{.range = {GuestAddress(0), 2_MiB}, .fd = file}};
  const auto refused = map_regions(regions);
  ASSERT_THAT(refused, Not(IsOk()));
  EXPECT_THAT(refused, HasError(Errc::access_denied)) << refused.error().message();
  const auto accepted = map_regions(regions, Unsealed::accept);
  ASSERT_THAT(accepted, IsOk());
  EXPECT_EQ(accepted->regions().front()->backing().page_size(), 2_MiB);

  ASSERT_EQ(fcntl(file, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
  EXPECT_NE(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2_MiB), 0);
  regions.front().protection = Protection::read;
  const auto sealed = map_regions(regions);
  VMSPACE_EXPECT_OK(sealed);
  close(file);
}

TEST(RegionDescriptor, WhatNobodyCanShareIsUnsupported) {
  const auto described = describe_regions(guest({{0x1000, page}}));
  ASSERT_THAT(described, HasError(Errc::unsupported));
}

TEST(RegionDescriptor, NothingThatWasReceivedIsTrusted) {
  const int file = memfd_create("short", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(file, 2 * page), 0);
  const RegionDescriptor good{.range = {GuestAddress(0), page}, .fd = file};
  const auto refused = [&](auto change, Errc code) {
    RegionDescriptor bad = good;
    bad.range.base = GuestAddress(8 * page);
    change(bad);
    const auto mapped = map_regions(std::vector<RegionDescriptor>{good, bad}, Unsealed::accept);
    EXPECT_THAT(mapped, HasError(code));
  };
  refused([](auto& r) { r.fd = -1; }, Errc::os);
  refused([](auto& r) { r.range.size = 0; }, Errc::zero_size);
  refused([](auto& r) { r.range.size = 3 * page; }, Errc::out_of_bounds);
  refused([](auto& r) { r.offset = 2 * page; }, Errc::out_of_bounds);
  refused([](auto& r) { r.offset = top - page + 1; }, Errc::limit_exceeded);
  refused([](auto& r) { r.protection = static_cast<Protection>(0x0b); }, Errc::invalid_argument);
  refused([](auto& r) { r.offset = 1; }, Errc::misaligned);
  refused([](auto& r) { r.range.base = GuestAddress(page / 2); }, Errc::misaligned);
  refused([](auto& r) { r.range.base = GuestAddress(top - page + 1), r.range.size = 2 * page; },
          Errc::overflow);
  refused([](auto& r) { r.range.base = GuestAddress(0); }, Errc::overlap);
  const std::vector<RegionDescriptor> many(GuestMemory::max_regions + 1, good);
  EXPECT_THAT(map_regions(many), HasError(Errc::limit_exceeded));
  EXPECT_EQ(map_regions({})->regions().size(), 0U);
  const auto before = test::open_descriptors();
  EXPECT_EQ(map_regions(std::vector{good}, static_cast<Unsealed>(3)).error().code,
            Errc::invalid_argument);
  EXPECT_EQ(test::open_descriptors(), before);
  close(file);
}

}  // namespace
}  // namespace vmspace::region_descriptor_test
