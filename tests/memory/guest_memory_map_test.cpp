// SPDX-License-Identifier: Apache-2.0
//
// GuestMemory::map and remap: a whole address space becomes memory, and changes.

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"

namespace vmspace::guest_memory_map_test {
namespace {

using ::testing::Not;
using namespace test;

/// An address space of these regions.
AddressSpaceBase space_of(std::vector<RegionOptions> regions) {
  auto layout = AddressSpaceLayout::make({.phys_max = UINT64_MAX, .ram = Range::whole_domain()});
  VMSPACE_EXPECT_OK(layout);
  AddressSpaceBase space(*layout);
  for (RegionOptions& region : regions) {
    const auto ok = space.insert_region(std::move(region));
    VMSPACE_EXPECT_OK(ok);
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
  VMSPACE_EXPECT_OK(backing);
  return *backing;
}

TEST(GuestMemoryMap, EachRegionHasItsOwnPartOfASharedBacking) {
  const auto backing = memfd(10_MiB);
  const auto memory =
      GuestMemory::map(space_of({ram(4_GiB, 4_MiB), ram(4_KiB, 64_KiB), ram(1_MiB, 2_MiB)}),
                       {.backing = backing, .backing_offset = 1_MiB});
  ASSERT_THAT(memory, IsOk());
  std::vector<std::uint64_t> offsets;
  for (const auto& region : memory->regions()) {
    EXPECT_EQ(region->backing(), backing);
    offsets.push_back(region->mapping().file_offset());
    ASSERT_THAT(memory->write(region->base(), region->base().value()), IsOk());
  }
  EXPECT_EQ(offsets, (std::vector<std::uint64_t>{1_MiB, 1_MiB + 64_KiB, 3_MiB + 64_KiB}));
  for (const auto& region : memory->regions()) {
    EXPECT_THAT(memory->read<std::uint64_t>(region->base()), IsOkAndHolds(region->base().value()))
        << "two regions are one memory";
  }
}

TEST(GuestMemoryMap, ABackingTooShortForAllRegionsIsRefused) {
  const auto space = space_of({ram(0, 2_MiB), ram(4_GiB, 2_MiB)});
  const auto mapped = address_space_bytes();
  for (const auto& [size, offset] : {std::pair{3_MiB, 0_MiB}, std::pair{4_MiB, 4_KiB},
                                     std::pair{4_MiB, 8_MiB}, std::pair{4_MiB, ~0_KiB}}) {
    const auto memory = GuestMemory::map(space, {.backing = memfd(size), .backing_offset = offset});
    ASSERT_THAT(memory, Not(IsOk())) << size << ' ' << offset;
    EXPECT_THAT(memory, HasError(Errc::out_of_bounds)) << memory.error().message();
  }
  EXPECT_EQ(address_space_bytes(), mapped);
  // Sizes whose sum passes 64 bits.
  const auto huge = space_of({ram(0, std::uint64_t{1} << 63),
                              ram(std::uint64_t{1} << 63, (std::uint64_t{1} << 63) - 4_KiB)});
  EXPECT_THAT(GuestMemory::map(huge, {.backing = memfd(4_MiB)}), HasError(Errc::out_of_bounds));
  VMSPACE_EXPECT_OK(GuestMemory::map(space, {.backing = memfd(4_MiB)}));
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
  ASSERT_THAT(memory, IsOk());
  EXPECT_THAT(memory->read<char>(GuestAddress(0)), IsOkAndHolds('f'));
  EXPECT_EQ(memory->regions()[1]->mapping().file_offset(), 0U);
}

TEST(GuestMemoryMap, AParkedRegionIsNotMapped) {
  auto space = space_of({ram(0, 1_MiB)});
  const auto parked = AddressSpaceRegion::make(ram(2_MiB, 1_MiB));
  ASSERT_THAT(parked, IsOk());
  ASSERT_THAT(space.insert_parked_region(*parked), IsOk());
  // Nor does it take a part of a backing.
  const auto memory = GuestMemory::map(space, {.backing = memfd(1_MiB)});
  ASSERT_THAT(memory, IsOk());
  EXPECT_EQ(memory->regions().size(), 1U);
  EXPECT_THAT(memory->read<std::uint8_t>(GuestAddress(2_MiB)), HasError(Errc::not_found));
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
    ASSERT_THAT(memory, IsOk());
    VMSPACE_EXPECT_OK(memory->write(GuestAddress(size - 8), std::uint64_t{1}));
  }
  // A guess refuses what can't be there; with 1 it takes anything.
  if (overcommit_policy() == 0) {
    RegionOptions options = ram(0, size);
    options.backing = specs[0];
    const auto memory = GuestMemory::map(space_of({options}), {.reserve = true});
    ASSERT_THAT(memory, Not(IsOk()));
    EXPECT_EQ(memory.error().os_errno, ENOMEM) << memory.error().message();
  }
}

TEST(GuestMemoryMap, ASnapshotLargerThanTheHostCanBeMapped) {
  if (overcommit_policy() == 2) GTEST_SKIP() << "vm.overcommit_memory=2 counts every mapping";
  const std::uint64_t size = more_than_the_host_has();
  const OwnedFd file(::memfd_create("snapshot", MFD_CLOEXEC));
  {
    const auto memory = GuestMemory::map(space_of({ram(0, size)}));
    ASSERT_THAT(memory, IsOk());
    ASSERT_THAT(memory->write(GuestAddress(size / 2), std::uint64_t{42}), IsOk());
    ASSERT_THAT(save_snapshot(*memory, file.get()), IsOk());
  }
  const auto mapped = map_snapshot(file.get());
  ASSERT_THAT(mapped, IsOk());
  EXPECT_THAT(mapped->read<std::uint64_t>(GuestAddress(size / 2)), IsOkAndHolds(42U));
}

TEST(GuestMemoryMap, ARegionThatAsksForHugePagesIsNotQuietlyOnSmallOnes) {
  RegionOptions wants = ram(0, 2_MiB);
  wants.backing = {.source = MemorySource::hugeshmem};
  const auto memory = GuestMemory::map(space_of({wants}), {.backing = memfd(2_MiB)});
  ASSERT_THAT(memory, Not(IsOk()));
  EXPECT_THAT(memory, HasError(Errc::invalid_argument)) << memory.error().message();
}

class GuestMemoryRemap : public ::testing::Test {
 protected:
  // RAM, a firmware image, and RAM that can be unplugged.
  static constexpr std::uint64_t plugged = 4_GiB;
  static constexpr std::uint64_t more = 8_GiB;

  void SetUp() override {
    ASSERT_THAT(memory.write(GuestAddress(1_MiB), std::uint64_t{0x1234}), IsOk());
    ASSERT_THAT(memory.write(GuestAddress(plugged), std::uint64_t{0x5678}), IsOk());
  }

  [[nodiscard]] std::uint64_t at(const GuestMemory& where, std::uint64_t address) const {
    const auto value = where.read<std::uint64_t>(GuestAddress(address));
    VMSPACE_EXPECT_OK(value);
    return *value;
  }

  /// Nothing is mapped any more that a failed remap mapped, and the memory is what it was.
  void expect_unchanged() const {
    EXPECT_EQ(memory.regions().size(), 2U);
    EXPECT_EQ(at(memory, 1_MiB), 0x1234U);
    EXPECT_EQ(at(memory, plugged), 0x5678U);
  }

  AddressSpaceBase space = space_of({ram(0, 2_MiB), ram(plugged, 1_MiB)});
  GuestMemory memory = [this] {
    auto mapped = GuestMemory::map(space);
    VMSPACE_EXPECT_OK(mapped);
    return *mapped;
  }();
};

TEST_F(GuestMemoryRemap, WhatStaysKeepsItsContentsAndWhatIsNewIsMapped) {
  ASSERT_TRUE(space.insert_region(ram(more, 1_MiB)));
  const auto after = memory.remap(space);
  ASSERT_THAT(after, IsOk());
  EXPECT_EQ(after->regions().size(), 3U);
  EXPECT_EQ(at(*after, 1_MiB), 0x1234U);
  EXPECT_EQ(at(*after, plugged), 0x5678U);
  EXPECT_EQ(at(*after, more), 0U);
  // The regions are those that were there, so that a device which has the old map sees the same.
  EXPECT_EQ(after->regions()[0], memory.regions()[0]);
  EXPECT_EQ(after->regions()[1], memory.regions()[1]);
  VMSPACE_EXPECT_OK(after->check_invariants());
  expect_unchanged();
}

TEST_F(GuestMemoryRemap, WhatIsGoneIsLetGo) {
  const std::weak_ptr<const MemoryRegion> region = memory.regions()[1];
  ASSERT_TRUE(space.remove_region(GuestAddress(plugged)));
  auto after = memory.remap(space);
  ASSERT_THAT(after, IsOk());
  EXPECT_EQ(after->regions().size(), 1U);
  EXPECT_EQ(at(*after, 1_MiB), 0x1234U);
  EXPECT_THAT(after->read<std::uint8_t>(GuestAddress(plugged)), HasError(Errc::not_found));
  memory = *after;
  EXPECT_TRUE(region.expired());
  // Plugged again, it is new.
  ASSERT_TRUE(space.insert_region(ram(plugged, 1_MiB)));
  after = memory.remap(space);
  ASSERT_THAT(after, IsOk());
  EXPECT_EQ(at(*after, plugged), 0U);
}

TEST_F(GuestMemoryRemap, ARegionThatMovedKeepsItsContents) {
  for (const std::uint64_t to : {more, plugged + 512_KiB, plugged - 512_KiB}) {
    AddressSpaceBase changed = space;
    const auto moved = changed.move_region(GuestAddress(plugged), GuestAddress(to));
    ASSERT_THAT(moved, IsOk());
    const auto after = memory.remap(changed);
    ASSERT_THAT(after, IsOk());
    EXPECT_EQ(at(*after, 1_MiB), 0x1234U);
    EXPECT_EQ(at(*after, to), 0x5678U);
    EXPECT_THAT(after->read<std::uint8_t>(GuestAddress(to - 1)), HasError(Errc::not_found));
    EXPECT_EQ(after->regions()[1]->host_base(), memory.regions()[1]->host_base());
    EXPECT_EQ(after->regions()[1]->shared_description(), *moved);
    EXPECT_EQ(after->guest_address(memory.regions()[1]->host_base()), GuestAddress(to));
    VMSPACE_EXPECT_OK(after->check_invariants());
    expect_unchanged();
  }
}

// A parked region has no address in the guest, so it is no part of the guest's memory: what it holds
// lives on only where somebody holds its MemoryRegionPtr.

TEST_F(GuestMemoryRemap, AParkedRegionIsLetGoAndComesBackEmpty) {
  const std::weak_ptr<const MemoryRegion> mapped = memory.regions()[1];
  const AddressSpaceRegionPtr parked = *std::next(space.begin());
  ASSERT_THAT(space.move_regions({{parked, std::nullopt}}), IsOk());
  auto after = memory.remap(space);
  ASSERT_THAT(after, IsOk());
  EXPECT_EQ(after->regions().size(), 1U);
  EXPECT_THAT(after->read<std::uint8_t>(GuestAddress(plugged)), HasError(Errc::not_found));
  memory = *after;
  EXPECT_TRUE(mapped.expired());
  // Back to where it was, the region is the same object in the space, and its memory is new.
  EXPECT_THAT(space.move_regions({{parked, GuestAddress(plugged)}}),
              IsOkAndHolds(std::vector{parked}));
  after = memory.remap(space);
  ASSERT_THAT(after, IsOk());
  EXPECT_EQ(at(*after, plugged), 0U);
}

TEST_F(GuestMemoryRemap, AParkedRegionKeepsWhatItHoldsWhereItsMemoryIsHeld) {
  const MemoryRegionPtr held = memory.regions()[1];
  const AddressSpaceRegionPtr parked = *std::next(space.begin());
  ASSERT_THAT(space.move_regions({{parked, std::nullopt}}), IsOk());
  const auto without = memory.remap(space);
  ASSERT_THAT(without, IsOk());
  const auto back = space.move_regions({{parked, GuestAddress(more)}});
  ASSERT_THAT(back, IsOk());
  const auto moved = held->at(back->front());
  ASSERT_THAT(moved, IsOk());
  const auto with = without->with_region(*moved);
  ASSERT_THAT(with, IsOk());
  EXPECT_EQ(at(*with, more), 0x5678U);
  const auto after = with->remap(space);
  ASSERT_THAT(after, IsOk());
  EXPECT_EQ(after->regions()[1], *moved) << "remap() maps anew what is mapped as described";
}

TEST_F(GuestMemoryRemap, ARegionMayMoveToWhereAnotherWas) {
  RegionOptions dimm = ram(more, 2_MiB);
  dimm.name = "dimm";
  ASSERT_THAT(space.insert_region(dimm), IsOk());
  const auto before = memory.remap(space);
  ASSERT_THAT(before, IsOk());
  ASSERT_THAT(before->write(GuestAddress(more), std::uint64_t{0x9abc}), IsOk());
  // Both move, one of them onto the other's place; what was at 0 is removed.
  ASSERT_THAT(space.move_region(GuestAddress(more), GuestAddress(2 * more)), IsOk());
  ASSERT_THAT(space.move_region(GuestAddress(plugged), GuestAddress(more)), IsOk());
  ASSERT_THAT(space.remove_region(GuestAddress(0)), IsOk());
  const auto after = before->remap(space);
  ASSERT_THAT(after, IsOk());
  EXPECT_EQ(after->regions().size(), 2U);
  EXPECT_EQ(at(*after, more), 0x5678U);
  EXPECT_EQ(at(*after, 2 * more), 0x9abcU);
}

TEST_F(GuestMemoryRemap, RegionsThatAreAlikeMoveOneAtATime) {
  ASSERT_THAT(space.insert_region(ram(more, 1_MiB)), IsOk());
  const auto before = memory.remap(space);
  ASSERT_THAT(before, IsOk());
  AddressSpaceBase changed = space;
  ASSERT_THAT(changed.move_region(GuestAddress(plugged), GuestAddress(16_GiB)), IsOk());
  ASSERT_THAT(changed.move_region(GuestAddress(more), GuestAddress(32_GiB)), IsOk());
  EXPECT_THAT(before->remap(changed), HasError(Errc::bad_state)) << "two leave, two come";
  AddressSpaceBase doubled = space;
  ASSERT_THAT(doubled.move_region(GuestAddress(plugged), GuestAddress(16_GiB)), IsOk());
  ASSERT_THAT(doubled.insert_region(ram(32_GiB, 1_MiB)), IsOk());
  EXPECT_THAT(before->remap(doubled), HasError(Errc::bad_state)) << "one leaves, two come";
  expect_unchanged();
}

TEST_F(GuestMemoryRemap, AMoveThatLosesHugePagesIsRefusedUnlessAskedFor) {
  AddressSpaceBase changed = space_of({ram(0, 2_MiB)});
  const auto before = GuestMemory::map(changed);
  ASSERT_THAT(before, IsOk());
  ASSERT_THAT(changed.move_region(GuestAddress(0), GuestAddress(4_GiB + 4_KiB)), IsOk());
  const auto refused = before->remap(changed);
  ASSERT_THAT(refused, HasError(Errc::misaligned));
  EXPECT_EQ(refused.error().operation, std::string("GuestMemory::remap"));
  EXPECT_THAT(before->remap(changed, {.move = {.lose_huge_pages = true}}), IsOk());
}

TEST_F(GuestMemoryRemap, AllOfARegionThatMovedIsDirty) {
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  ASSERT_THAT(space.move_region(GuestAddress(plugged), GuestAddress(more)), IsOk());
  const auto after = memory.remap(space);
  ASSERT_THAT(after, IsOk());
  EXPECT_THAT(harvest_dirty(*after),
              IsOkAndHolds((std::vector<GuestRange>{{GuestAddress(more), 1_MiB}})));
}

TEST_F(GuestMemoryRemap, ContentsAreNotLostToARegionThatIsDescribedAnew) {
  struct Case {
    const char* what;
    std::uint64_t base;
    std::uint64_t size;
    const char* name;
  };
  for (const Case& change : {Case{"renamed", plugged, 1_MiB, "dimm"},
                             {"larger", plugged, 2_MiB, "ram"},
                             {"replaced", plugged - 4_KiB, 8_KiB, "vga"}}) {
    SCOPED_TRACE(change.what);
    AddressSpaceBase changed = space;
    ASSERT_TRUE(changed.remove_region(GuestAddress(plugged)));
    RegionOptions options = ram(change.base, change.size);
    options.name = change.name;
    ASSERT_TRUE(changed.insert_region(options));
    const auto after = memory.remap(changed);
    ASSERT_THAT(after, HasError(Errc::bad_state));
    EXPECT_EQ(after.error().second, Operand::range(plugged, plugged + 1_MiB - 1));
    expect_unchanged();
    // In two steps it is what the VMM means.
    const auto without = memory.without_region(GuestAddress(plugged));
    ASSERT_THAT(without, IsOk());
    const auto again = without->remap(changed);
    ASSERT_THAT(again, IsOk());
    EXPECT_EQ(at(*again, 1_MiB), 0x1234U);
    EXPECT_EQ(at(*again, change.base), 0U);
  }
}

TEST_F(GuestMemoryRemap, ARegionThatCantBeMappedChangesNothing) {
  RegionOptions missing = ram(more, 1_MiB);
  missing.backing = {.source = MemorySource::file, .path = "/nonexistent/memory"};
  ASSERT_TRUE(space.insert_region(ram(2 * more, 1_MiB)));
  ASSERT_TRUE(space.insert_region(missing));
  EXPECT_THAT(memory.remap(space), Not(IsOk()));
  expect_unchanged();
}

TEST_F(GuestMemoryRemap, NewRegionsTakeTheNextPartsOfASharedBacking) {
  const auto backing = memfd(4_MiB);
  ASSERT_TRUE(space.insert_region(ram(more, 1_MiB)));
  const auto after = memory.remap(space, {.backing = backing, .backing_offset = 3_MiB});
  ASSERT_THAT(after, IsOk());
  EXPECT_EQ(after->regions()[2]->mapping().file_offset(), 3_MiB);
  EXPECT_NE(after->regions()[0]->backing(), backing);
  ASSERT_TRUE(space.insert_region(ram(2 * more, 1_MiB)));
  EXPECT_THAT(after->remap(space, {.backing = backing, .backing_offset = 4_MiB}),
              HasError(Errc::out_of_bounds));
}

TEST_F(GuestMemoryRemap, RegionsPluggedWhileTrackingAreTracked) {
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  ASSERT_TRUE(space.insert_region(ram(more, 1_MiB)));
  const auto after = memory.remap(space);
  ASSERT_THAT(after, IsOk());
  EXPECT_THAT(harvest_dirty(*after),
              IsOkAndHolds((std::vector<GuestRange>{{GuestAddress(more), 1_MiB}})));
}

TEST_F(GuestMemoryRemap, APartOfTheBackingThatARegionHasIsNotGivenToAnother) {
  const auto backing = memfd(4_MiB);
  const auto before =
      GuestMemory::map(space_of({ram(0, 1_MiB), ram(4_GiB, 1_MiB)}), {.backing = backing});
  ASSERT_THAT(before, IsOk());
  const auto grown = space_of({ram(0, 1_MiB), ram(4_GiB, 1_MiB), ram(8_GiB, 1_MiB)});
  for (const std::uint64_t offset : {0_MiB, 1_MiB, 1_MiB + 4_KiB}) {
    const auto aliased = before->remap(grown, {.backing = backing, .backing_offset = offset});
    ASSERT_THAT(aliased, Not(IsOk())) << offset;
    EXPECT_THAT(aliased, HasError(Errc::overlap)) << aliased.error().message();
  }
  const auto after = before->remap(grown, {.backing = backing, .backing_offset = 2_MiB});
  ASSERT_THAT(after, IsOk());
  for (const auto& region : after->regions())
    ASSERT_THAT(after->write(region->base(), region->base().value()), IsOk());
  for (const auto& region : after->regions()) {
    EXPECT_THAT(after->read<std::uint64_t>(region->base()), IsOkAndHolds(region->base().value()));
  }
}

}  // namespace
}  // namespace vmspace::guest_memory_map_test
