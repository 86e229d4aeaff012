// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/address_space_region.hpp"

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::address_space_region_test {
namespace {

using namespace literals;

Errc code_of(RegionOptions options) {
  const auto region = AddressSpaceRegion::make(std::move(options));
  return region ? Errc{} : region.error().code;
}

/// A 2 MiB region at 2 MiB with this backing: fits any page size up to that.
Errc code_of(BackingSpec backing) {
  return code_of({.base = GuestAddress{2_MiB}, .size = 2_MiB, .backing = std::move(backing)});
}

TEST(Region, SaysWhatItWasMadeFrom) {
  const auto region = AddressSpaceRegion::make(
      {.name = "pmem0",
       .type = RegionType::dax_memory,
       .base = GuestAddress{4_GiB},
       .size = 1_GiB,
       .backing = {.source = MemorySource::file, .path = "/images/root", .offset = 2_MiB},
       .protection = Protection::read,
       .numa_node = 3,
       .huge_pages = true,
       .hotplug = true,
       .populate = true,
       .owner = "virtio-pmem 0"});
  ASSERT_THAT(region, IsOk());
  EXPECT_EQ((*region)->name(), "pmem0");
  EXPECT_EQ((*region)->type(), RegionType::dax_memory);
  EXPECT_TRUE((*region)->is_dax());
  EXPECT_EQ((*region)->base(), GuestAddress{4_GiB});
  EXPECT_EQ((*region)->size(), 1_GiB);
  EXPECT_EQ((*region)->last_addr(), GuestAddress{5_GiB - 1});
  EXPECT_EQ((*region)->range(), *Range::make(4_GiB, 5_GiB - 1));
  EXPECT_EQ((*region)->backing().path, "/images/root");
  EXPECT_EQ((*region)->protection(), Protection::read);
  EXPECT_EQ((*region)->numa_node(), 3U);
  EXPECT_TRUE((*region)->wants_huge_pages());
  EXPECT_TRUE((*region)->is_hotplug());
  EXPECT_TRUE((*region)->wants_populate());
  EXPECT_EQ((*region)->owner(), "virtio-pmem 0");
  EXPECT_TRUE((*region)->is_mapped());
}

TEST(Region, DefaultsAreUnbackedReadWriteRamAnywhere) {
  const auto region = AddressSpaceRegion::make({.size = 1});
  ASSERT_TRUE(region);
  EXPECT_EQ((*region)->type(), RegionType::default_memory);
  EXPECT_EQ((*region)->protection(), Protection::read_write);
  EXPECT_EQ((*region)->numa_node(), std::nullopt);
  EXPECT_FALSE((*region)->is_mapped());
  EXPECT_FALSE((*region)->is_dax());
  EXPECT_EQ((*region)->owner(), "");
  EXPECT_EQ((*region)->alignment(), 1U);
  EXPECT_EQ((*region)->last_addr(), GuestAddress{0});
}

TEST(Region, ContainsItsFirstAndLastByteAndNoMore) {
  const auto region = *AddressSpaceRegion::make({.base = GuestAddress{0x1000}, .size = 0x1000});
  EXPECT_FALSE(region->contains(GuestAddress{0xfff}));
  EXPECT_TRUE(region->contains(GuestAddress{0x1000}));
  EXPECT_TRUE(region->contains(GuestAddress{0x1fff}));
  EXPECT_FALSE(region->contains(GuestAddress{0x2000}));
}

TEST(Region, MayEndWithTheLastByteOfTheAddressSpace) {
  const auto region =
      AddressSpaceRegion::make({.base = GuestAddress{UINT64_MAX - 0xfff}, .size = 0x1000});
  ASSERT_TRUE(region);
  EXPECT_EQ((*region)->last_addr(), GuestAddress{UINT64_MAX});
  EXPECT_TRUE((*region)->contains(GuestAddress{UINT64_MAX}));
  EXPECT_TRUE(AddressSpaceRegion::make({.size = UINT64_MAX}));
  EXPECT_TRUE(AddressSpaceRegion::make({.base = GuestAddress{UINT64_MAX}, .size = 1}));
}

TEST(Region, RefusesSizesThatMakeNoRange) {
  const auto empty = AddressSpaceRegion::make({.base = GuestAddress{0x1000}, .size = 0});
  ASSERT_FALSE(empty);
  EXPECT_EQ(empty.error(), (Error{.code = Errc::zero_size,
                                  .operation = "AddressSpaceRegion::make",
                                  .second = Operand::address(0x1000)}));
  const auto wraps = AddressSpaceRegion::make({.base = GuestAddress{0x1000}, .size = UINT64_MAX});
  ASSERT_FALSE(wraps);
  EXPECT_EQ(wraps.error(), (Error{.code = Errc::overflow,
                                  .operation = "AddressSpaceRegion::make",
                                  .first = Operand::address(0x1000),
                                  .second = Operand::size(UINT64_MAX)}));
  EXPECT_EQ(code_of({.base = GuestAddress{UINT64_MAX}, .size = 2}), Errc::overflow);
}

TEST(Region, RefusesWhatIsNoMultipleOfTheBackingsPages) {
  const auto with = [](std::uint64_t base, std::uint64_t size, BackingSpec backing) {
    return code_of({.base = GuestAddress{base}, .size = size, .backing = std::move(backing)});
  };
  EXPECT_EQ(with(4_KiB, 4_KiB, {.source = MemorySource::shmem}), Errc{});
  EXPECT_EQ(with(4_KiB + 1, 4_KiB, {.source = MemorySource::shmem}), Errc::misaligned);
  EXPECT_EQ(with(4_KiB, 4_KiB + 1, {.source = MemorySource::shmem}), Errc::misaligned);
  EXPECT_EQ(with(4_KiB, 2_MiB, {.source = MemorySource::hugeshmem}), Errc::misaligned);
  EXPECT_EQ(with(2_MiB, 3_MiB, {.source = MemorySource::hugeshmem}), Errc::misaligned);
  EXPECT_EQ(with(2_MiB, 2_MiB, {.source = MemorySource::hugeshmem, .page_size = 1_GiB}),
            Errc::misaligned);
  EXPECT_EQ(with(2_MiB, 2_MiB, {.source = MemorySource::file, .path = "f", .offset = 512}),
            Errc::misaligned);
  // Nothing is mapped, so nothing needs to be a whole number of pages.
  EXPECT_EQ(with(3, 5, {}), Errc{});
}

TEST(Region, RefusesPageSizesThatNoMachineHas) {
  EXPECT_EQ(code_of(BackingSpec{.source = MemorySource::anon, .page_size = 3_MiB}),
            Errc::bad_alignment);
  EXPECT_EQ(code_of(BackingSpec{.source = MemorySource::anon, .page_size = 1}),
            Errc::invalid_argument);
  EXPECT_EQ(code_of(BackingSpec{.source = MemorySource::anon, .page_size = 512}),
            Errc::invalid_argument);
}

TEST(Region, RefusesABackingThatMissesWhatItsSourceNeeds) {
  EXPECT_EQ(code_of(BackingSpec{.source = MemorySource::hugetlbfs}), Errc::invalid_argument);
  EXPECT_EQ(code_of(BackingSpec{.source = MemorySource::hugetlbfs, .path = "/dev/hugepages"}),
            Errc{});
  EXPECT_EQ(code_of(BackingSpec{.source = MemorySource::file}), Errc::invalid_argument);
  EXPECT_EQ(code_of(BackingSpec{.source = MemorySource::file, .path = "f"}), Errc{});
  EXPECT_EQ(code_of(BackingSpec{.source = MemorySource::file, .fd = 0}), Errc{});
  EXPECT_EQ(code_of(BackingSpec{.source = MemorySource::file, .fd = -1}), Errc::invalid_argument);
  EXPECT_EQ(code_of(BackingSpec{.source = MemorySource::file, .path = "f", .fd = 3}),
            Errc::invalid_argument);
}

TEST(Region, RefusesABackingThatHasWhatItsSourceCannotUse) {
  for (const MemorySource source :
       {MemorySource::none, MemorySource::anon, MemorySource::shmem, MemorySource::hugeanon}) {
    EXPECT_EQ(code_of(BackingSpec{.source = source, .path = "f"}), Errc::invalid_argument);
    EXPECT_EQ(code_of(BackingSpec{.source = source, .fd = 3}), Errc::invalid_argument);
    EXPECT_EQ(code_of(BackingSpec{.source = source, .offset = 2_MiB}), Errc::invalid_argument);
    EXPECT_EQ(code_of(BackingSpec{.source = source, .discardable = true}), Errc::invalid_argument);
  }
  EXPECT_EQ(code_of(BackingSpec{.page_size = 2_MiB}), Errc::invalid_argument);
  EXPECT_EQ(code_of(BackingSpec{.sharing = Sharing::map_shared}), Errc::invalid_argument);
  EXPECT_EQ(code_of(BackingSpec{}), Errc{});
}

TEST(Region, RefusesAPartOfAFileThatNoFileReaches) {
  const std::uint64_t max_file_end = std::uint64_t{1} << 63;
  const auto at = [](std::uint64_t offset) {
    return code_of(BackingSpec{.source = MemorySource::file, .path = "f", .offset = offset});
  };
  EXPECT_EQ(at(max_file_end - 4_MiB), Errc{});
  EXPECT_EQ(at(max_file_end - 2_MiB), Errc::overflow);
  EXPECT_EQ(at(max_file_end), Errc::overflow);
}

TEST(Region, RefusesNumbersThatHaveNoName) {
  const RegionOptions good{
      .name = "ram", .size = 0x1000, .backing = {.source = MemorySource::anon}};
  ASSERT_TRUE(AddressSpaceRegion::make(good));
  const auto message = [&](auto change) {
    RegionOptions options = good;
    change(options);
    const auto region = AddressSpaceRegion::make(options);
    return region ? "made" : region.error().message();
  };
  EXPECT_EQ(message([](auto& o) { o.type = static_cast<RegionType>(4); }),
            "AddressSpaceRegion::make: \"ram\": invalid argument: 4 (not a value of RegionType)");
  EXPECT_EQ(
      message([](auto& o) { o.backing.source = static_cast<MemorySource>(99); }),
      "AddressSpaceRegion::make: \"ram\": invalid argument: 99 (not a value of MemorySource)");
  EXPECT_EQ(message([](auto& o) { o.backing.sharing = static_cast<Sharing>(3); }),
            "AddressSpaceRegion::make: \"ram\": invalid argument: 3 (not a value of Sharing)");
  for (unsigned bits = 0; bits < 256; ++bits) {
    EXPECT_EQ(message([&](auto& o) { o.protection = static_cast<Protection>(bits); }) == "made",
              bits < 8)
        << bits;
  }
}

TEST(Region, RefusesToTuneMemoryThatItDoesNotHave) {
  const auto message = [](RegionOptions options) {
    options.name = "bar";
    options.size = 0x1000;
    const auto region = AddressSpaceRegion::make(options);
    return region ? "made" : region.error().message();
  };
  EXPECT_EQ(message({.numa_node = 0}),
            "AddressSpaceRegion::make: \"bar\": invalid argument: [0x0, 0xfff] "
            "(numa_node requires a backing)");
  EXPECT_EQ(message({.huge_pages = true}),
            "AddressSpaceRegion::make: \"bar\": invalid argument: [0x0, 0xfff] "
            "(huge_pages requires a backing)");
  EXPECT_EQ(message({.populate = true}),
            "AddressSpaceRegion::make: \"bar\": invalid argument: [0x0, 0xfff] "
            "(populate requires a backing)");
  EXPECT_EQ(message({.hotplug = true}), "made");
}

TEST(Region, OptionsMakeAChangedCopy) {
  const auto region = *AddressSpaceRegion::make({.name = "bar", .size = 0x1000});
  RegionOptions options = region->options();
  options.base = GuestAddress{0x8000};
  const auto moved = *AddressSpaceRegion::make(options);
  EXPECT_EQ(moved->base(), GuestAddress{0x8000});
  EXPECT_NE(*moved, *region);
  EXPECT_EQ(**AddressSpaceRegion::make(region->options()), *region);
}

TEST(Protection, CombinesAndAllows) {
  EXPECT_EQ(Protection::read | Protection::write, Protection::read_write);
  EXPECT_TRUE(allows(Protection::read_write, Protection::read));
  EXPECT_FALSE(allows(Protection::read, Protection::read_write));
  EXPECT_FALSE(allows(Protection::read_write, Protection::execute));
  EXPECT_TRUE(allows(Protection::none, Protection::none));
}

TEST(RegionType, HasANameForTheMap) {
  EXPECT_EQ(name_of(RegionType::default_memory), "ram");
  EXPECT_EQ(name_of(RegionType::device_memory), "device");
  EXPECT_EQ(name_of(RegionType::dax_memory), "dax");
  EXPECT_EQ(name_of(RegionType::firmware_memory), "firmware");
}

}  // namespace
}  // namespace vmspace::address_space_region_test
