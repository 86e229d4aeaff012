// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/arena.hpp"

#include <algorithm>

#include <gtest/gtest.h>

#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"

namespace vmspace::arena_test {
namespace {

using namespace test;

constexpr GuestAddress guest_base{4_GiB};

// A constant: clang 14 takes no consteval literal as a default argument.
constexpr std::uint64_t arena_size = 64_MiB;

HostArena reserve(std::uint64_t size = arena_size) {
  return *HostArena::reserve({.size = size, .guest_base = guest_base.value()});
}

Result<MemoryRegionPtr> map_at(const HostArena& arena, std::uint64_t guest, std::uint64_t size,
                               MemorySource source = MemorySource::anon) {
  const auto region = AddressSpaceRegion::make(
      {.base = GuestAddress(guest), .size = size, .backing = {.source = source}});
  return MemoryRegion::map(*region, {.arena = arena});
}

TEST(HostArena, IsInaccessibleAndCongruentToItsGuestBase) {
  for (const std::uint64_t base : {std::uint64_t{0}, 4_GiB, 5_GiB + 3_MiB}) {
    for (const std::uint64_t align : {std::uint64_t{0}, 1_GiB}) {
      const auto arena = HostArena::reserve({.size = 64_MiB, .guest_base = base, .align = align});
      ASSERT_THAT(arena, IsOk());
      const auto host = reinterpret_cast<std::uintptr_t>(arena->data());
      EXPECT_EQ((host - base) % (align == 0 ? 2_MiB : align), 0U);
      EXPECT_EQ(permissions_at(arena->data()), "---p");
      EXPECT_EQ(permissions_at(arena->data() + arena->size() - 1), "---p");
      EXPECT_EQ(arena->guest_base(), base);
    }
  }
}

TEST(HostArena, NeighboursInTheGuestAreNeighboursOnTheHost) {
  const auto arena = reserve();
  const auto low = map_at(arena, 4_GiB, 2_MiB);
  const auto high = map_at(arena, 4_GiB + 2_MiB, 2_MiB, MemorySource::shmem);
  const auto last = map_at(arena, 4_GiB + 64_MiB - 4_KiB, 4_KiB);
  ASSERT_TRUE(low && high && last);
  EXPECT_EQ((*low)->host_base(), arena.data());
  EXPECT_EQ((*high)->host_base(), (*low)->host_base() + 2_MiB);
  EXPECT_EQ((*last)->host_base(), arena.data() + 64_MiB - 4_KiB);
  std::fill_n((*low)->host_base(), 4_MiB, std::byte{1});
  EXPECT_EQ(permissions_at(arena.data() + 4_MiB), "---p");
}

TEST(HostArena, APlaceIsTakenOnceAndFreeAgainAfterwards) {
  const auto arena = reserve();
  auto first = map_at(arena, 4_GiB, 4_MiB);
  ASSERT_THAT(first, IsOk());
  (*first)->host_base()[0] = std::byte{1};
  for (const std::uint64_t guest : {4_GiB, 4_GiB + 4_MiB - 4_KiB}) {
    const auto second = map_at(arena, guest, 4_MiB);
    ASSERT_THAT(second, HasError(Errc::overlap));
  }
  EXPECT_EQ((*first)->host_base()[0], std::byte{1});
  first->reset();
  EXPECT_EQ(permissions_at(arena.data()), "---p") << "still nobody else's";
  EXPECT_EQ(permissions_at(arena.data() + 4_MiB - 1), "---p");
  const auto again = map_at(arena, 4_GiB, 64_MiB);
  ASSERT_THAT(again, IsOk());
  EXPECT_EQ((*again)->host_base()[0], std::byte{0});
}

TEST(HostArena, TellsWhoHasWhichPart) {
  const auto arena = reserve();
  const auto region = AddressSpaceRegion::make({.name = "ram0",
                                                .base = GuestAddress(4_GiB + 2_MiB),
                                                .size = 2_MiB,
                                                .backing = {.source = MemorySource::anon}});
  auto mapped = MemoryRegion::map(*region, {.arena = arena});
  ASSERT_THAT(mapped, IsOk());
  const std::vector<RangeHolder> holders{{Range::of(2_MiB, 4_MiB - 1), "ram0"}};
  EXPECT_EQ(arena.parts().holders(), holders);

  const auto second = map_at(arena, 4_GiB + 2_MiB, 4_KiB);
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().message().find("ram0"), std::string::npos) << second.error().message();
  EXPECT_EQ(arena.parts().holders(), holders);
  mapped->reset();
  EXPECT_TRUE(arena.parts().holders().empty());
}

TEST(HostArena, APartThatIsLeasedForAnythingElseIsNotMappedOver) {
  const auto arena = reserve();
  const Lease bar =
      VMSPACE_ASSERT_OK(arena.parts().acquire_at(Range::of(4_MiB, 6_MiB - 1), "vfio0 BAR2"));
  const auto refused = map_at(arena, 4_GiB, 64_MiB);
  ASSERT_THAT(refused, HasError(Errc::overlap));
  EXPECT_EQ(refused.error().second, Operand::range(4_MiB, 6_MiB - 1));
  EXPECT_EQ(permissions_at(arena.data()), "---p");
  VMSPACE_EXPECT_OK(map_at(arena, 4_GiB, 4_MiB));
}

TEST(HostArena, ClosingAMappingGivesThePlaceBack) {
  const auto arena = reserve();
  const auto backing = Backing::open({.source = MemorySource::anon}, 64_MiB);
  for (int round = 0; round < 2; ++round) {
    auto mapping = MemoryMapping::map(*backing, {.size = 64_MiB, .arena = arena});
    ASSERT_THAT(mapping, IsOk());
    auto moved = std::move(*mapping);
    moved.data()[0] = std::byte{1};
    VMSPACE_EXPECT_OK(moved.close());
  }
}

TEST(HostArena, RegionsOutsideOrMisalignedAreErrors) {
  const auto arena = reserve();
  EXPECT_THAT(map_at(arena, 4_GiB - 4_KiB, 4_KiB), HasError(Errc::out_of_bounds));
  EXPECT_THAT(map_at(arena, 4_GiB + 64_MiB - 4_KiB, 8_KiB), HasError(Errc::out_of_bounds));
  EXPECT_THAT(map_at(arena, 4_GiB + 64_MiB, 4_KiB), HasError(Errc::out_of_bounds));
  EXPECT_THAT(map_at(arena, UINT64_MAX - 4095, 4_KiB), HasError(Errc::out_of_bounds));
  const auto backing = Backing::open({.source = MemorySource::anon}, 4_MiB);
  const auto code = [&](MappingOptions options) {
    options.arena = arena;
    const auto mapping = MemoryMapping::map(*backing, options);
    return mapping ? Errc{} : mapping.error().code;
  };
  EXPECT_EQ(code({.size = 4_MiB, .align = 2_MiB, .arena_offset = 4_KiB}), Errc::misaligned);
  EXPECT_EQ(code({.size = 4_KiB, .arena_offset = 1}), Errc::misaligned);
  EXPECT_EQ(code({.size = 4_KiB, .guard_pages = true}), Errc::out_of_bounds)
      << "no page before the first";
  EXPECT_EQ(code({.size = 4_MiB, .arena_offset = UINT64_MAX - 4095}), Errc::out_of_bounds);
  const auto whole = map_at(arena, 4_GiB, 64_MiB);
  EXPECT_TRUE(whole) << "what failed has taken nothing";
}

TEST(HostArena, GuardPagesTakeAPageOnEitherSide) {
  const auto arena = reserve();
  const auto backing = Backing::open({.source = MemorySource::anon}, 4_KiB);
  const auto guarded = MemoryMapping::map(
      *backing, {.size = 4_KiB, .guard_pages = true, .arena = arena, .arena_offset = 8_KiB});
  ASSERT_TRUE(guarded);
  EXPECT_THAT(map_at(arena, 4_GiB + 4_KiB, 4_KiB), HasError(Errc::overlap));
  EXPECT_THAT(map_at(arena, 4_GiB + 12_KiB, 4_KiB), HasError(Errc::overlap));
  VMSPACE_EXPECT_OK(map_at(arena, 4_GiB, 4_KiB));
  VMSPACE_EXPECT_OK(map_at(arena, 4_GiB + 16_KiB, 4_KiB));
}

TEST(HostArena, MappingsKeepTheArenaAlive) {
  const std::uint64_t before = address_space_bytes();
  {
    MemoryRegionPtr region;
    {
      const auto arena = reserve(1_GiB);
      region = *map_at(arena, 4_GiB + 512_MiB, 4_KiB);
    }
    EXPECT_GE(address_space_bytes(), before + 1_GiB);
    region->host_base()[0] = std::byte{1};
    EXPECT_EQ(permissions_at(region->host_base() - 1), "---p");
  }
  EXPECT_LT(address_space_bytes(), before + 64_MiB);
}

TEST(HostArena, BadOptionsAreErrors) {
  const auto code = [](const ArenaOptions& options) {
    const auto arena = HostArena::reserve(options);
    return arena ? Errc{} : arena.error().code;
  };
  EXPECT_EQ(code({.size = 0}), Errc::zero_size);
  EXPECT_EQ(code({.size = 1}), Errc::misaligned);
  EXPECT_EQ(code({.size = 4_KiB, .guest_base = 1}), Errc::misaligned);
  EXPECT_EQ(code({.size = 4_KiB, .align = 3}), Errc::bad_alignment);
  EXPECT_EQ(code({.size = std::uint64_t{1} << 63}), Errc::limit_exceeded);
  EXPECT_EQ(code({.size = 4_KiB, .align = std::uint64_t{1} << 63}), Errc::limit_exceeded);
  EXPECT_EQ(HostArena::reserve({.size = std::uint64_t{1} << 60}).error().os_errno, ENOMEM);
}

TEST(HostArena, HugetlbMemoryHasItsPlaceOrLeavesItReserved) {
  HugePages pool(2_MiB, 2);
  // The machine's pool may be empty, and adding to it takes root.
  if (!pool.available()) GTEST_SKIP() << pool.why_not();
  // Room for more than any machine's pool.
  const auto arena = reserve(std::uint64_t{1} << 42);
  for (const auto source : {MemorySource::hugeanon, MemorySource::hugeshmem}) {
    const auto region = map_at(arena, 4_GiB + 2_MiB, 4_MiB, source);
    ASSERT_THAT(region, IsOk());
    EXPECT_EQ((*region)->host_base(), arena.data() + 2_MiB);
    (*region)->host_base()[4_MiB - 1] = std::byte{1};
    const auto too_much = map_at(arena, 4_GiB + 8_MiB, (pool.free() + 1) * 2_MiB, source);
    ASSERT_FALSE(too_much);
    EXPECT_EQ(too_much.error().os_errno, ENOMEM);
    EXPECT_EQ(permissions_at(arena.data() + 8_MiB), "---p");
  }
}

TEST(HostArena, MovingCopiesTheHandle) {
  auto arena = HostArena::reserve({.size = 2_MiB});
  ASSERT_THAT(arena, IsOk());
  const HostArena moved = std::move(*arena);
  EXPECT_EQ(arena->data(), moved.data());
  EXPECT_EQ(*arena, moved);
}

}  // namespace
}  // namespace vmspace::arena_test
