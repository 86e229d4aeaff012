// SPDX-License-Identifier: Apache-2.0
//
// MemoryRegion::part: regions that are split, cut and moved in parts.

#include <gtest/gtest.h>

#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"

namespace vmspace::memory_region_part_test {
namespace {

using namespace test;

constexpr std::uint64_t size = 64_KiB;
constexpr std::uint64_t cut = 24_KiB;
constexpr GuestAddress base{1_MiB};

AddressSpaceRegionPtr part_of(const MemoryRegion& region, std::uint64_t offset, std::uint64_t bytes,
                              GuestAddress at) {
  RegionOptions options = region.description().options();
  options.base = at;
  options.size = bytes;
  options.name += "." + std::to_string(offset);
  if (options.backing.source == MemorySource::file) options.backing.offset += offset;
  const auto part = AddressSpaceRegion::make(options);
  return part ? *part : nullptr;
}

Result<MemoryRegionPtr> split_off(const MemoryRegion& region, std::uint64_t offset,
                                  std::uint64_t bytes) {
  const GuestAddress here(region.base().value() + offset);
  return region.part(part_of(region, offset, bytes, here), offset);
}

struct Given {
  TemporaryDirectory directory;
  std::vector<BackingSpec> specs{
      {.source = MemorySource::anon},
      {.source = MemorySource::anon, .sharing = Sharing::map_shared},
      {.source = MemorySource::shmem},
      {.source = MemorySource::file,
       .path = directory.file("image", size, 'i'),
       .sharing = Sharing::map_private},
  };
};

MemoryRegionPtr map_ram(const BackingSpec& spec, const MapOptions& options = {}) {
  const auto region =
      MemoryRegion::map({.name = "ram", .base = base, .size = size, .backing = spec}, options);
  if (!region) ADD_FAILURE() << region.error().message();
  return *region;
}

TEST(MemoryRegionPart, BothPartsKeepTheContentsAlsoOfPrivatePages) {
  const Given given;
  for (const BackingSpec& spec : given.specs) {
    SCOPED_TRACE(name_of(spec.source));
    MemoryRegionPtr whole = map_ram(spec);
    std::byte* const host = whole->host_base();
    fill(whole->mapping(), 0xa5);
    auto low = split_off(*whole, 0, cut);
    auto high = split_off(*whole, cut, size - cut);
    ASSERT_THAT(low, IsOk());
    ASSERT_THAT(high, IsOk());
    whole.reset();
    const auto memory = GuestMemory::from_regions({*low, *high});
    ASSERT_THAT(memory, IsOk());
    EXPECT_EQ((*high)->host_base(), host + cut);
    EXPECT_EQ(*memory->read<std::uint64_t>(GuestAddress(base.value() + cut - 4)),
              0xa5a5'a5a5'a5a5'a5a5);
    EXPECT_TRUE(holds((*low)->mapping(), 0, cut, 0xa5));
    EXPECT_TRUE(holds((*high)->mapping(), 0, size - cut, 0xa5));
  }
}

TEST(MemoryRegionPart, ARemovedPartIsGivenBackAndTheRestStays) {
  const Given given;
  for (const BackingSpec& spec : given.specs) {
    SCOPED_TRACE(name_of(spec.source));
    MemoryRegionPtr whole = map_ram(spec);
    fill(whole->mapping(), 0xa5);
    const auto low = split_off(*whole, 0, cut);
    const auto middle = split_off(*whole, cut, 8_KiB);
    const auto high = split_off(*whole, cut + 8_KiB, size - cut - 8_KiB);
    ASSERT_TRUE(low && middle && high);
    const auto memory = GuestMemory::from_regions({*low, *high});
    ASSERT_THAT(memory, IsOk());
    VMSPACE_ASSERT_OK((*middle)->mapping().discard(0, 8_KiB));
    // Before the whole is read, which fills the hole.
    if (spec.source == MemorySource::shmem) {
      EXPECT_EQ(allocated_bytes((*low)->backing().fd()), size - 8_KiB);
    }
    EXPECT_THAT(memory->read<std::uint8_t>(GuestAddress(base.value() + cut)),
                HasError(Errc::not_found));
    EXPECT_TRUE(holds(whole->mapping(), cut, 8_KiB, 0)) << "zeros for users of the whole";
    EXPECT_TRUE(holds((*low)->mapping(), 0, cut, 0xa5));
    EXPECT_TRUE(holds((*high)->mapping(), 0, (*high)->size(), 0xa5));
    if (spec.source == MemorySource::anon) {
      VMSPACE_EXPECT_OK((*low)->mapping().discard(0, cut));
      EXPECT_EQ(whole->mapping().residency(0, cut)->resident, 0U);
    }
  }
}

TEST(MemoryRegionPart, APartMovesToAnotherGuestAddress) {
  const MemoryRegionPtr whole = map_ram({.source = MemorySource::anon});
  fill(whole->mapping(), 0xa5);
  const GuestAddress away(1_GiB);
  const auto moved = whole->part(part_of(*whole, cut, 8_KiB, away), cut);
  ASSERT_THAT(moved, IsOk());
  const auto low = split_off(*whole, 0, cut);
  const auto memory = GuestMemory::from_regions({*low, *moved});
  ASSERT_THAT(memory, IsOk());
  EXPECT_EQ(*memory->read<std::uint8_t>(away), 0xa5);
  EXPECT_EQ(*memory->host_address({away, 8_KiB}), whole->host_base() + cut);
}

TEST(MemoryRegionPart, TheMemoryGoesWithItsLastPart) {
  MemoryRegionPtr whole = map_ram({.source = MemorySource::anon});
  std::byte* const host = whole->host_base();
  auto low = split_off(*whole, 0, cut);
  auto half = split_off(**low, 0, 8_KiB);
  ASSERT_TRUE(low && half);
  whole.reset();
  low = fail({});
  EXPECT_EQ(permissions_at(host), "rw-p") << "a part of a part keeps it";
  half = fail({});
  EXPECT_EQ(permissions_at(host), "");
}

TEST(MemoryRegionPart, APinOfTheWholeHoldsForItsParts) {
  const Given given;
  for (const BackingSpec& spec : given.specs) {
    SCOPED_TRACE(name_of(spec.source));
    const MemoryRegionPtr whole = map_ram(spec);
    const auto high = split_off(*whole, cut, size - cut);
    ASSERT_THAT(high, IsOk());
    const auto pin = whole->mapping().pin(cut + 4_KiB, 4_KiB, "nic0");
    ASSERT_THAT(pin, IsOk());
    EXPECT_THAT((*high)->mapping().discard(4_KiB, 4_KiB), HasError(Errc::bad_state));
    VMSPACE_EXPECT_OK((*high)->mapping().discard(0, 4_KiB));
    VMSPACE_EXPECT_OK((*high)->mapping().discard(8_KiB, 4_KiB));
  }
}

TEST(MemoryRegionPart, InAnArenaPartsStayInOrder) {
  const auto arena = HostArena::reserve({.size = 16_MiB});
  ASSERT_THAT(arena, IsOk());
  MemoryRegionPtr whole = map_ram({.source = MemorySource::anon}, {.arena = *arena});
  const auto low = split_off(*whole, 0, cut);
  const auto high = split_off(*whole, cut, size - cut);
  ASSERT_TRUE(low && high);
  const auto memory = GuestMemory::from_regions({*low, *high});
  ASSERT_THAT(memory, IsOk());
  EXPECT_EQ(*memory->host_address({base, size}), whole->host_base()) << "across both";
  const auto description = part_of(*whole, cut, 8_KiB, GuestAddress(8_MiB));
  EXPECT_THAT(whole->part(description, cut), HasError(Errc::bad_state));
  EXPECT_THAT(whole->part(description, cut, {.leave_arena_order = true}), IsOk());
}

TEST(MemoryRegionPart, OfARegionThatTracksWritesAllCountsAsWritten) {
  const MemoryRegionPtr whole = map_ram({.source = MemorySource::anon});
  const auto before = split_off(*whole, 0, cut);
  VMSPACE_ASSERT_OK(whole->dirty().enable());
  const auto after = split_off(*whole, cut, size - cut);
  ASSERT_TRUE(before && after);
  EXPECT_FALSE((*before)->dirty().is_enabled());
  const auto dirty = (*after)->dirty().harvest();
  ASSERT_THAT(dirty, IsOk());
  ASSERT_EQ(dirty->size(), 1U);
  EXPECT_EQ(dirty->front().size, size - cut);
}

TEST(MemoryRegionPart, WhatDoesNotDescribeAPartIsRefused) {
  const MemoryRegionPtr whole = map_ram({.source = MemorySource::anon});
  EXPECT_THAT(whole->part(nullptr, 0), HasError(Errc::invalid_argument));
  EXPECT_THAT(split_off(*whole, size, 4_KiB), HasError(Errc::out_of_bounds));
  EXPECT_THAT(split_off(*whole, cut, size), HasError(Errc::out_of_bounds));
  EXPECT_THAT(whole->part(part_of(*whole, 0, 4_KiB, base), 1), HasError(Errc::misaligned));
  EXPECT_THAT(whole->part(part_of(*whole, 0, 4_KiB, base), ~std::uint64_t{4095}),
              HasError(Errc::out_of_bounds));
  RegionOptions other = whole->description().options();
  other.protection = Protection::read;
  const auto refused = whole->part(*AddressSpaceRegion::make(other), 0);
  ASSERT_THAT(refused, HasError(Errc::invalid_argument));
  EXPECT_STREQ(refused.error().operation, "MemoryRegion::part");

  const Given given;
  const MemoryRegionPtr file = map_ram(given.specs.back());
  RegionOptions elsewhere = file->description().options();
  elsewhere.base = GuestAddress(base.value() + 4_KiB);
  elsewhere.size = 4_KiB;
  EXPECT_THAT(file->part(*AddressSpaceRegion::make(elsewhere), 4_KiB),
              HasError(Errc::invalid_argument))
      << "the file's offset is that of another part";
}

TEST(MemoryRegionPart, AMapHoldsNoByteOfTheMemoryTwice) {
  const MemoryRegionPtr whole = map_ram({.source = MemorySource::shmem});
  const auto elsewhere = [&](std::uint64_t offset, std::uint64_t bytes, std::uint64_t times) {
    const GuestAddress at(base.value() + times * size);
    return whole->part(part_of(*whole, offset, bytes, at), offset).value();
  };
  const MemoryRegionPtr end = elsewhere(cut, size - cut, 1);
  const MemoryRegionPtr middle = elsewhere(cut - 4_KiB, 8_KiB, 2);
  const MemoryRegionPtr begin = elsewhere(0, cut, 3);
  EXPECT_THAT(GuestMemory::from_regions({whole, end}), HasError(Errc::overlap));
  EXPECT_THAT(GuestMemory::from_regions({whole, middle}), HasError(Errc::overlap));
  EXPECT_THAT(GuestMemory::from_regions({end, middle}), HasError(Errc::overlap));
  const auto apart = GuestMemory::from_regions({begin, end});
  ASSERT_THAT(apart, IsOk());
  EXPECT_THAT(apart->with_region(middle), HasError(Errc::overlap));
  EXPECT_THAT(apart->with_region(whole), HasError(Errc::overlap));
  VMSPACE_EXPECT_OK(apart->check_invariants());
}

}  // namespace
}  // namespace vmspace::memory_region_part_test
