// SPDX-License-Identifier: Apache-2.0
//
// GuestMemory::map: a whole address space becomes memory.

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/memory/snapshot.hpp"

#include "memory/host_support.hpp"

namespace vmspace {
namespace {

using namespace test;

/// An address space of these regions.
AddressSpaceBase space_of(std::vector<RegionOptions> regions) {
  auto layout = AddressSpaceLayout::make({.phys_max = UINT64_MAX, .ram = Range::whole_domain()});
  EXPECT_TRUE(layout);
  AddressSpaceBase space(*layout);
  for (RegionOptions& region : regions) {
    const auto ok = space.insert_region(std::move(region));
    EXPECT_TRUE(ok) << ok.error().message();
  }
  return space;
}

RegionOptions ram(std::uint64_t base, std::uint64_t size) {
  return {.name = "ram",
          .base = GuestAddress(base),
          .size = size,
          .backing = {.source = MemorySource::shmem}};
}

Backing memfd(std::uint64_t size) {
  auto backing = Backing::open({.source = MemorySource::shmem}, size);
  EXPECT_TRUE(backing);
  return *backing;
}

TEST(GuestMemoryMap, EachRegionHasItsOwnPartOfASharedBacking) {
  const auto backing = memfd(10_MiB);
  const auto memory =
      GuestMemory::map(space_of({ram(4_GiB, 4_MiB), ram(4_KiB, 64_KiB), ram(1_MiB, 2_MiB)}),
                       {.backing = backing, .backing_offset = 1_MiB});
  ASSERT_TRUE(memory) << memory.error().message();
  std::vector<std::uint64_t> offsets;
  for (const auto& region : memory->regions()) {
    EXPECT_EQ(region->backing(), backing);
    offsets.push_back(region->mapping().file_offset());
    ASSERT_TRUE(memory->write(region->base(), region->base().value()));
  }
  EXPECT_EQ(offsets, (std::vector<std::uint64_t>{1_MiB, 1_MiB + 64_KiB, 3_MiB + 64_KiB}));
  for (const auto& region : memory->regions()) {
    EXPECT_EQ(memory->read<std::uint64_t>(region->base()), region->base().value())
        << "two regions are one memory";
  }
}

TEST(GuestMemoryMap, ABackingTooShortForAllRegionsIsRefused) {
  const auto space = space_of({ram(0, 2_MiB), ram(4_GiB, 2_MiB)});
  const auto mapped = address_space_bytes();
  for (const auto& [size, offset] : {std::pair{3_MiB, 0_MiB}, std::pair{4_MiB, 4_KiB},
                                     std::pair{4_MiB, 8_MiB}, std::pair{4_MiB, ~0_KiB}}) {
    const auto memory = GuestMemory::map(space, {.backing = memfd(size), .backing_offset = offset});
    ASSERT_FALSE(memory) << size << ' ' << offset;
    EXPECT_EQ(memory.error().code, Errc::out_of_bounds) << memory.error().message();
  }
  EXPECT_EQ(address_space_bytes(), mapped);
  // Sizes whose sum passes 64 bits.
  const auto huge = space_of({ram(0, std::uint64_t{1} << 63),
                              ram(std::uint64_t{1} << 63, (std::uint64_t{1} << 63) - 4_KiB)});
  EXPECT_EQ(GuestMemory::map(huge, {.backing = memfd(4_MiB)}).error().code, Errc::out_of_bounds);
  EXPECT_TRUE(GuestMemory::map(space, {.backing = memfd(4_MiB)}));
}

TEST(GuestMemoryMap, RegionsOfAFileKeepTheirFile) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("firmware", 64_KiB, 'f');
  const auto memory =
      GuestMemory::map(space_of({{.name = "firmware",
                                  .type = RegionType::firmware_memory,
                                  .base = GuestAddress(0),
                                  .size = 64_KiB,
                                  .backing = {.source = MemorySource::file, .path = path},
                                  .protection = Protection::read},
                                 ram(1_MiB, 1_MiB)}),
                       {.backing = memfd(1_MiB)});
  ASSERT_TRUE(memory) << memory.error().message();
  EXPECT_EQ(memory->read<char>(GuestAddress(0)), 'f');
  EXPECT_EQ(memory->regions()[1]->mapping().file_offset(), 0U);
}

TEST(GuestMemoryMap, AGuestMayBeLargerThanTheHost) {
  if (overcommit_policy() == 2) GTEST_SKIP() << "vm.overcommit_memory=2 counts every mapping";
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 0, ' ');
  const std::uint64_t size = more_than_the_host_has();
  ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(size)), 0);
  const BackingSpec specs[] = {
      {.source = MemorySource::anon},
      {.source = MemorySource::anon, .sharing = Sharing::map_shared},
      {.source = MemorySource::shmem},
      {.source = MemorySource::file, .path = path, .sharing = Sharing::map_private},
  };
  for (const BackingSpec& spec : specs) {
    RegionOptions options = ram(0, size);
    options.backing = spec;
    const auto memory = GuestMemory::map(space_of({options}));
    ASSERT_TRUE(memory) << memory.error().message();
    EXPECT_TRUE(memory->write(GuestAddress(size - 8), std::uint64_t{1}));
  }
  // A guess refuses what can't be there; with 1 it takes anything.
  if (overcommit_policy() == 0) {
    RegionOptions options = ram(0, size);
    options.backing = specs[0];
    const auto memory = GuestMemory::map(space_of({options}), {.reserve = true});
    ASSERT_FALSE(memory);
    EXPECT_EQ(memory.error().os_errno, ENOMEM) << memory.error().message();
  }
}

TEST(GuestMemoryMap, ASnapshotLargerThanTheHostCanBeMapped) {
  if (overcommit_policy() == 2) GTEST_SKIP() << "vm.overcommit_memory=2 counts every mapping";
  const std::uint64_t size = more_than_the_host_has();
  const OwnedFd file(::memfd_create("snapshot", MFD_CLOEXEC));
  {
    const auto memory = GuestMemory::map(space_of({ram(0, size)}));
    ASSERT_TRUE(memory);
    ASSERT_TRUE(memory->write(GuestAddress(size / 2), std::uint64_t{42}));
    ASSERT_TRUE(Snapshot::save(*memory, file.get()));
  }
  const auto mapped = Snapshot::map(file.get());
  ASSERT_TRUE(mapped) << mapped.error().message();
  EXPECT_EQ(mapped->read<std::uint64_t>(GuestAddress(size / 2)), 42U);
}

TEST(GuestMemoryMap, ARegionThatAsksForHugePagesIsNotQuietlyOnSmallOnes) {
  RegionOptions wants = ram(0, 2_MiB);
  wants.backing = {.source = MemorySource::hugeshmem};
  const auto memory = GuestMemory::map(space_of({wants}), {.backing = memfd(2_MiB)});
  ASSERT_FALSE(memory);
  EXPECT_EQ(memory.error().code, Errc::invalid_argument) << memory.error().message();
}

}  // namespace
}  // namespace vmspace
