// SPDX-License-Identifier: Apache-2.0
//
// Regions over memory that is mapped already: a region moved in the guest's address space, and one
// made of a ready mapping.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"

#include "memory/region_support.hpp"

namespace vmspace::memory_region_move_test {
namespace {

using namespace test;

// -- at ----------------------------------------------------------------------------------------

TEST(MemoryRegion, AMovedRegionSharesItsMemory) {
  auto region = MemoryRegion::map(ram({.source = MemorySource::shmem}));
  ASSERT_THAT(region, IsOk());
  (*region)->host_base()[5] = std::byte{7};
  const auto moved = (*region)->at(GuestAddress(8_GiB));
  ASSERT_THAT(moved, IsOk());
  EXPECT_EQ((*moved)->guest_range(), (GuestRange{GuestAddress(8_GiB), 1_MiB}));
  EXPECT_EQ((*moved)->host_base(), (*region)->host_base());
  EXPECT_EQ(&(*moved)->dirty(), &(*region)->dirty());
  EXPECT_EQ((*moved)->description().name(), "ram");
  EXPECT_TRUE((*moved)->shares_memory_with(**region));
  EXPECT_EQ((*region)->base(), GuestAddress(4_GiB));
  // The memory lives as long as either.
  const MemoryRegionPtr last = *moved;
  region->reset();
  EXPECT_EQ(last->host_base()[5], std::byte{7});
}

TEST(MemoryRegion, AMoveTakesTheDescriptionThatTheSpaceHas) {
  const auto region = MemoryRegion::map(ram({.source = MemorySource::shmem}));
  ASSERT_THAT(region, IsOk());
  RegionOptions options = (*region)->description().options();
  options.base = GuestAddress(8_GiB);
  const auto description = describe(options);
  const auto moved = (*region)->at(description);
  ASSERT_THAT(moved, IsOk());
  EXPECT_EQ((*moved)->shared_description(), description);
  options.owner = "somebody else";
  EXPECT_THAT((*region)->at(describe(options)), HasError(Errc::invalid_argument));
  EXPECT_THAT((*region)->at(AddressSpaceRegionPtr()), HasError(Errc::invalid_argument));
  EXPECT_THAT((*region)->at(GuestAddress(8_GiB + 1)), HasError(Errc::misaligned));
  EXPECT_THAT((*region)->at(GuestAddress(UINT64_MAX - 4_KiB + 1)), HasError(Errc::overflow));
}

TEST(MemoryRegion, AllOfATrackedRegionIsDirtyAfterAMove) {
  const auto region = MemoryRegion::map(ram({.source = MemorySource::shmem}));
  ASSERT_THAT(region, IsOk());
  ASSERT_THAT((*region)->dirty().enable(), IsOk());
  ASSERT_THAT((*region)->at((*region)->base()), IsOk());
  EXPECT_THAT((*region)->dirty().harvest(), IsOkAndHolds(std::vector<DirtyRange>{}));
  ASSERT_THAT((*region)->at(GuestAddress(8_GiB)), IsOk());
  EXPECT_THAT((*region)->dirty().harvest(), IsOkAndHolds(std::vector<DirtyRange>{{0, 1_MiB}}));
}

TEST(MemoryRegion, AFileOfHugePagesIsAlignedToThemInTheGuest) {
  const HugePages pages(2_MiB, 1);
  if (!pages.available()) GTEST_SKIP() << pages.why_not();
  const OwnedFd file(::memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB));
  ASSERT_EQ(::ftruncate(file.get(), 2_MiB), 0);
  RegionOptions options{.base = GuestAddress(8_GiB),
                        .size = 2_MiB,
                        .backing = {.source = MemorySource::file, .fd = file.get()}};
  const auto region = MemoryRegion::map(options);
  ASSERT_THAT(region, IsOk());
  const GuestAddress between(8_GiB + 4_KiB);
  EXPECT_THAT((*region)->at(between, {.lose_huge_pages = true}), HasError(Errc::misaligned));
  options.base = between;
  EXPECT_THAT(MemoryRegion::map(options), HasError(Errc::misaligned));
}

TEST(MemoryRegion, AMoveKeepsHugePagesUnlessItIsAskedNotTo) {
  const auto region = MemoryRegion::map(ram({.source = MemorySource::shmem}, 4_MiB));
  ASSERT_THAT(region, IsOk());
  EXPECT_THAT((*region)->at(GuestAddress(8_GiB + 2_MiB)), IsOk());
  const auto refused = (*region)->at(GuestAddress(8_GiB + 4_KiB));
  ASSERT_THAT(refused, HasError(Errc::misaligned));
  EXPECT_EQ(
      refused.error().message(),
      "MemoryRegion::at: \"ram [0x100000000, 0x1003fffff]\": misaligned: 0x100001000 is not a "
      "multiple of 0x200000 (the distance must be a multiple of the huge page size, or KVM can no "
      "longer map huge pages; MoveOptions::lose_huge_pages allows it)");
  const auto moved = (*region)->at(GuestAddress(8_GiB + 4_KiB), {.lose_huge_pages = true});
  ASSERT_THAT(moved, IsOk());
  EXPECT_THAT((*moved)->at(GuestAddress(4_GiB + 8_KiB)), IsOk()) << "nothing is left to lose";
  // A region too small for a huge page moves anywhere.
  const auto small = MemoryRegion::map(ram({.source = MemorySource::shmem}));
  ASSERT_THAT(small, IsOk());
  EXPECT_THAT((*small)->at(GuestAddress(8_GiB + 4_KiB)), IsOk());
}

TEST(MemoryRegion, ARegionOfAnArenaMovesOnlyWhenItIsAskedTo) {
  const auto arena = HostArena::reserve({.size = 16_MiB, .guest_base = 4_GiB});
  ASSERT_THAT(arena, IsOk());
  const auto region = MemoryRegion::map(ram({.source = MemorySource::shmem}), {.arena = *arena});
  ASSERT_THAT(region, IsOk());
  EXPECT_THAT((*region)->at(GuestAddress(4_GiB + 2_MiB)), HasError(Errc::bad_state));
  EXPECT_THAT((*region)->at((*region)->base()), IsOk()) << "it stays";
  const auto moved = (*region)->at(GuestAddress(4_GiB + 2_MiB), {.leave_arena_order = true});
  ASSERT_THAT(moved, IsOk());
  EXPECT_EQ((*moved)->host_base(), arena->data());
}

// -- make --------------------------------------------------------------------------------------

class ReadyMapping : public ::testing::Test {
 protected:
  static MemoryMapping mapping(const MappingOptions& options, std::uint64_t size = 1_MiB) {
    const auto backing = Backing::open({.source = MemorySource::shmem}, size);
    VMSPACE_EXPECT_OK(backing);
    auto mapped = MemoryMapping::map(*backing, options);
    VMSPACE_EXPECT_OK(mapped);
    return *std::move(mapped);
  }
  const AddressSpaceRegionPtr description = ram({.source = MemorySource::shmem});
};

TEST_F(ReadyMapping, BecomesARegion) {
  MemoryMapping ready = mapping({.size = 1_MiB});
  std::byte* const host = ready.data();
  host[9] = std::byte{3};
  const auto region = MemoryRegion::make(description, std::move(ready), Applied::applied);
  ASSERT_THAT(region, IsOk());
  EXPECT_EQ((*region)->host_base(), host);
  EXPECT_EQ((*region)->shared_description(), description);
  EXPECT_EQ((*region)->huge_pages(), Applied::applied);
  EXPECT_EQ((*region)->host_base()[9], std::byte{3});
}

TEST_F(ReadyMapping, IsRefusedWhereItIsNotWhatTheDescriptionSays) {
  EXPECT_THAT(MemoryRegion::make(nullptr, mapping({.size = 1_MiB})),
              HasError(Errc::invalid_argument));
  EXPECT_THAT(MemoryRegion::make(ram({}), mapping({.size = 1_MiB})),
              HasError(Errc::invalid_argument));
  for (const std::uint64_t size : {1_MiB - 4_KiB, 1_MiB + 4_KiB}) {
    const auto other = MemoryRegion::make(description, mapping({.size = size}, 2_MiB));
    ASSERT_THAT(other, HasError(Errc::invalid_argument));
    EXPECT_EQ(other.error().first, Operand::size(size));
    EXPECT_EQ(other.error().text.subject(), "ram [0x100000000, 0x1000fffff]");
  }
  const MappingOptions unreadable{.size = 1_MiB, .protection = Protection::none};
  EXPECT_THAT(MemoryRegion::make(description, mapping(unreadable)), HasError(Errc::access_denied));
  const MappingOptions for_reading{.size = 1_MiB, .protection = Protection::read};
  EXPECT_THAT(MemoryRegion::make(description, mapping(for_reading)), HasError(Errc::access_denied));
  const auto rom = describe({.name = "rom",
                             .base = GuestAddress(4_GiB),
                             .size = 1_MiB,
                             .backing = {.source = MemorySource::shmem},
                             .protection = Protection::read});
  EXPECT_THAT(MemoryRegion::make(rom, mapping(for_reading)), IsOk());
}

TEST_F(ReadyMapping, OfAClosedMappingThereIsNoRegion) {
  MemoryMapping closed = mapping({.size = 1_MiB});
  ASSERT_THAT(closed.close(), IsOk());
  EXPECT_THAT(MemoryRegion::make(description, std::move(closed)), HasError(Errc::invalid_argument));
}

}  // namespace
}  // namespace vmspace::memory_region_move_test
