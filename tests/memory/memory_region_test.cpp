// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/memory_region.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "host/host_support.hpp"
#include "memory/region_support.hpp"

namespace vmspace::memory_region_test {
namespace {

using ::testing::Not;
using namespace test;

TEST(MemoryRegion, IsWhatItsDescriptionSays) {
  for (const auto source : {MemorySource::anon, MemorySource::shmem}) {
    const auto description = ram({.source = source});
    const auto region = MemoryRegion::map(description);
    ASSERT_THAT(region, IsOk());
    EXPECT_EQ(&(*region)->description(), description.get());
    EXPECT_EQ((*region)->base(), GuestAddress(4_GiB));
    EXPECT_EQ((*region)->size(), 1_MiB);
    EXPECT_EQ((*region)->last_addr(), GuestAddress(4_GiB + 1_MiB - 1));
    EXPECT_EQ((*region)->protection(), Protection::read_write);
    EXPECT_EQ((*region)->backing().fd() >= 0, source == MemorySource::shmem);
    EXPECT_EQ((*region)->host_base(), (*region)->mapping().data());
    EXPECT_EQ((*region)->mapping().residency()->resident, 0U) << "nobody asked to populate it";
    (*region)->host_base()[1_MiB - 1] = std::byte{7};
  }
}

TEST(MemoryRegion, HonoursOffsetAndSharing) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("firmware", 64_KiB, 'x');
  {
    std::fstream file(path, std::ios::in | std::ios::out);
    file.seekp(60_KiB) << "firmware";
  }
  const auto region = MemoryRegion::map(
      describe({.type = RegionType::firmware_memory,
                .base = GuestAddress(4_GiB - 4_KiB),
                .size = 4_KiB,
                .backing = {.source = MemorySource::file, .path = path, .offset = 60_KiB},
                .protection = Protection::read}));
  ASSERT_THAT(region, IsOk());
  EXPECT_EQ(permissions_at((*region)->host_base()), "r--s");
  EXPECT_EQ((*region)->mapping().file_offset(), 60_KiB);
  EXPECT_EQ((*region)->host_base()[0], std::byte{'f'});
  EXPECT_EQ((*region)->protection(), Protection::read);

  const auto copy = MemoryRegion::map(
      ram({.source = MemorySource::file, .path = path, .sharing = Sharing::map_private}, 64_KiB));
  ASSERT_THAT(copy, IsOk());
  EXPECT_EQ(permissions_at((*copy)->host_base()), "rw-p");
}

/// How this process may access a region that the guest may access with `protection`.
std::string host_permissions(BackingSpec backing, Protection protection, MapOptions options = {}) {
  const auto region = MemoryRegion::map(describe({.base = GuestAddress(4_GiB),
                                                  .size = 64_KiB,
                                                  .backing = std::move(backing),
                                                  .protection = protection}),
                                        options);
  if (!region) return region.error().message();
  EXPECT_EQ((*region)->protection(), protection);
  return permissions_at((*region)->host_base());
}

TEST(MemoryRegion, TheRegionsProtectionIsTheGuestsAndTheHostMayFillIt) {
  for (const auto protection : {Protection::none, Protection::read, Protection::read_write,
                                Protection::read | Protection::execute}) {
    EXPECT_EQ(host_permissions({.source = MemorySource::anon}, protection), "rw-p");
    EXPECT_EQ(host_permissions({.source = MemorySource::shmem}, protection), "rw-s");
  }
}

TEST(MemoryRegion, NothingIsExecutableUnlessTheVmmAsks) {
  constexpr auto all = Protection::read_write | Protection::execute;
  EXPECT_EQ(host_permissions({.source = MemorySource::shmem}, all), "rw-s");
  EXPECT_EQ(host_permissions({.source = MemorySource::shmem}, all, {.host_executable = true}),
            "rwxs");
  EXPECT_EQ(host_permissions({.source = MemorySource::shmem}, Protection::read_write,
                             {.host_executable = true}),
            "rw-s");
}

TEST(MemoryRegion, AFileThatCantBeWrittenIsMappedForReading) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("rom", 64_KiB, 'r');
  // A shared file that the guest only reads is not opened for writing.
  EXPECT_EQ(host_permissions({.source = MemorySource::file, .path = path}, Protection::read),
            "r--s");
  // What a private mapping writes never reaches the file.
  EXPECT_EQ(host_permissions(
                {.source = MemorySource::file, .path = path, .sharing = Sharing::map_private},
                Protection::read),
            "rw-p");
  const OwnedFd reading(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const BackingSpec shared{.source = MemorySource::file, .fd = reading.get()};
  EXPECT_EQ(host_permissions(shared, Protection::read), "r--s");
  BackingSpec own = shared;
  own.sharing = Sharing::map_private;
  EXPECT_EQ(host_permissions(own, Protection::read_write), "rw-p");

  const OwnedFd both(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_EQ(host_permissions({.source = MemorySource::file, .fd = both.get()}, Protection::read),
            "rw-s");
}

TEST(MemoryRegion, ABackingThatCantBeWrittenIsRefusedToAGuestThatWrites) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("rom", 64_KiB, 'r');
  const auto backing =
      Backing::open({.source = MemorySource::file, .path = path}, 64_KiB, Protection::read);
  ASSERT_TRUE(backing);
  EXPECT_FALSE(backing->is_writable());
  const auto region =
      MemoryRegion::map(ram({.source = MemorySource::shmem}, 64_KiB), {.backing = *backing});
  ASSERT_THAT(region, HasError(Errc::access_denied));
}

TEST(MemoryRegion, HostAddressAgreesWithTheGuestAddressModuloTheHugePage) {
  for (const std::uint64_t base : {std::uint64_t{0}, 4_GiB, 3_MiB, 4_GiB + 4_KiB}) {
    const auto region = MemoryRegion::map(describe(
        {.base = GuestAddress(base), .size = 8_MiB, .backing = {.source = MemorySource::anon}}));
    ASSERT_THAT(region, IsOk());
    const auto host = reinterpret_cast<std::uintptr_t>((*region)->host_base());
    EXPECT_EQ((host - base) % 2_MiB, 0U) << base;
  }
  const auto giant =
      MemoryRegion::map(ram({.source = MemorySource::anon}, 2_MiB), {.align = 1_GiB});
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>((*giant)->host_base()) % 1_GiB, 0U);
}

TEST(MemoryRegion, TheLastPageOfTheAddressSpaceCanBeMapped) {
  const std::uint64_t page = page_size();
  const auto region = MemoryRegion::map(describe({.base = GuestAddress(UINT64_MAX - page + 1),
                                                  .size = page,
                                                  .backing = {.source = MemorySource::anon}}));
  ASSERT_THAT(region, IsOk());
  EXPECT_EQ((*region)->last_addr(), GuestAddress(UINT64_MAX));
  EXPECT_EQ(MemoryRegion::map(describe({.size = std::uint64_t{1} << 63,
                                        .backing = {.source = MemorySource::anon}}))
                .error()
                .code,
            Errc::limit_exceeded);
}

TEST(MemoryRegion, BindsBeforeTheFirstPageAndPopulatesLast) {
  RegionOptions options{.base = GuestAddress(0),
                        .size = 8_MiB,
                        .backing = {.source = MemorySource::anon},
                        .numa_node = 0,
                        .huge_pages = true,
                        .populate = true};
  const auto region = MemoryRegion::map(describe(options));
  if (may_not_bind(region)) GTEST_SKIP() << region.error().message();
  ASSERT_THAT(region, IsOk());
  const auto& mapping = (*region)->mapping();
  EXPECT_EQ(mapping.numa_policy(), (NumaPolicy{NumaMode::bind, {0}}));
  const auto residency = mapping.residency();
  EXPECT_EQ(residency->resident, 8_MiB);
  if ((*region)->huge_pages() == Applied::applied) {
    // Not all of it must be huge: the host may be short of contiguous memory.
    EXPECT_EQ(residency->huge, std::stoull(smaps_value(mapping.data(), "AnonHugePages")) * 1024);
    EXPECT_NE(smaps_value(mapping.data(), "VmFlags").find(" hg"), std::string::npos);
  }
  options.numa_node = 1023;
  const auto missing = MemoryRegion::map(describe(options));
  ASSERT_THAT(missing, HasError(Errc::not_found));
  VMSPACE_EXPECT_OK(MemoryRegion::map(describe(options), {.numa_mode = NumaMode::by_default}));
}

TEST(MemoryRegion, TellsWhetherTheWishForHugePagesWasTaken) {
  const auto plain = MemoryRegion::map(ram({.source = MemorySource::anon}, 8_MiB));
  EXPECT_EQ((*plain)->huge_pages(), Applied::not_applicable);
  const auto small = MemoryRegion::map(
      describe({.size = 64_KiB, .backing = {.source = MemorySource::anon}, .huge_pages = true}));
  EXPECT_EQ((*small)->huge_pages(), Applied::not_applicable);
}

TEST(MemoryRegion, SeveralRegionsShareOneBacking) {
  const auto memory = Backing::open({.source = MemorySource::shmem}, 2_MiB);
  const auto low = MemoryRegion::map(ram({.source = MemorySource::shmem}), {.backing = *memory});
  const auto high = MemoryRegion::map(ram({.source = MemorySource::shmem}),
                                      {.backing = *memory, .backing_offset = 1_MiB});
  ASSERT_TRUE(low && high);
  EXPECT_EQ((*low)->backing(), (*high)->backing());
  EXPECT_EQ((*high)->mapping().file_offset(), 1_MiB);
  (*high)->host_base()[0] = std::byte{9};
  const auto all = MemoryMapping::map(*memory, {.size = 2_MiB});
  EXPECT_EQ(all->data()[1_MiB], std::byte{9});
  const auto past = MemoryRegion::map(ram({.source = MemorySource::shmem}),
                                      {.backing = *memory, .backing_offset = 2_MiB});
  ASSERT_THAT(past, HasError(Errc::out_of_bounds));
}

TEST(MemoryRegion, PopulatesSeveralRegionsAtOnce) {
  std::vector<MemoryRegionPtr> regions;
  for (const auto source : {MemorySource::anon, MemorySource::shmem}) {
    const auto region = MemoryRegion::map(
        describe({.size = 20_MiB, .backing = {.source = source}, .populate = true}),
        {.defer_populate = true});
    ASSERT_THAT(region, IsOk());
    EXPECT_EQ((*region)->mapping().residency()->resident, 0U);
    regions.push_back(*region);
  }
  const auto done = populate(regions, {.threads = 2});
  ASSERT_THAT(done, IsOk());
  for (const auto& region : regions) {
    EXPECT_EQ(region->mapping().residency()->resident, 20_MiB);
  }
  regions.push_back(nullptr);
  EXPECT_THAT(populate(regions), HasError(Errc::invalid_argument));
}

TEST(MemoryRegion, OptionsThatAreNoEnumeratorsAreRefusedEvenWhereTheyDoNotMatter) {
  const auto description = describe({.size = 64_KiB, .backing = {.source = MemorySource::anon}});
  const std::uint64_t before = address_space_bytes();
  const auto mode = static_cast<NumaMode>(3);
  const auto access = static_cast<PopulateAccess>(3);
  for (const MapOptions& options :
       {MapOptions{.numa_mode = mode}, MapOptions{.populate = {.access = access}}}) {
    const auto refused = MemoryRegion::map(description, options);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Errc::invalid_argument);
  }
  EXPECT_EQ(address_space_bytes(), before);
}

TEST(MemoryRegion, ErrorsNameTheRegionItsGuestRangeAndItsFile) {
  const auto message = [](BackingSpec backing, MapOptions options = {}) {
    const auto region = MemoryRegion::map(describe({.name = "ram0",
                                                    .base = GuestAddress(4_GiB),
                                                    .size = 256_KiB,
                                                    .backing = std::move(backing)}),
                                          options);
    return region ? std::string("mapped") : region.error().message();
  };
  const TemporaryDirectory directory;
  const std::string path = directory.file("r", 64_KiB, 'r');
  const std::string name = R"("ram0 [0x100000000, 0x10003ffff]")";
  EXPECT_EQ(message({.source = MemorySource::file, .path = "/srv/vm/ram"}),
            "MemoryRegion::map: " + name +
                ": failed (opening the file: \"/srv/vm/ram\"): No such file or directory");
  const std::string elsewhere = "/tmp";  // where anybody may create a file
  EXPECT_EQ(
      message({.source = MemorySource::hugetlbfs, .path = elsewhere, .page_size = page_size()}),
      "MemoryRegion::map: " + name +
          ": invalid argument (the path must be a directory in a hugetlbfs: \"" + elsewhere +
          "\")");
  const std::string short_file = message({.source = MemorySource::file, .path = path});
  EXPECT_EQ(short_file.find("MemoryRegion::map: " + name + ": out of bounds: [0x0, 0x3ffff]"), 0U)
      << short_file;
  EXPECT_NE(short_file.find("/r\")"), std::string::npos) << short_file;
  // Below the region, where there is no path, or no name.
  EXPECT_EQ(message({.source = MemorySource::anon}, {.align = 3}),
            "MemoryRegion::map: " + name + ": invalid alignment: 0x3");
  const auto unnamed = MemoryRegion::map(
      describe({.size = 64_KiB, .backing = {.source = MemorySource::file, .path = "/srv/ram"}}));
  ASSERT_THAT(unnamed, Not(IsOk()));
  EXPECT_EQ(
      unnamed.error().message(),
      "MemoryRegion::map: \"[0x0, 0xffff]\": failed (opening the file: \"/srv/ram\"): No such "
      "file or directory");
}

TEST(MemoryRegion, PopulatingDoesNotWriteAFileThatTheGuestOnlyReads) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("sparse", 0, ' ');
  ASSERT_EQ(::truncate(path.c_str(), 1_MiB), 0);
  const OwnedFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  const auto description = describe({.size = 1_MiB,
                                     .backing = {.source = MemorySource::file, .fd = fd.get()},
                                     .protection = Protection::read,
                                     .populate = true});
  const auto alone = MemoryRegion::map(description);
  ASSERT_THAT(alone, IsOk());
  EXPECT_EQ(allocated_bytes(fd.get()), 0U);
  const auto later = MemoryRegion::map(description, {.defer_populate = true});
  ASSERT_THAT(later, IsOk());
  ASSERT_THAT(populate(std::span(&*later, 1)), IsOk());
  EXPECT_EQ(allocated_bytes(fd.get()), 0U);
}

TEST(MemoryRegion, ErrorsOfPopulatingNameTheRegion) {
  const auto good = MemoryRegion::map(ram({.source = MemorySource::anon}));
  const TemporaryDirectory directory;
  const std::string path = directory.file("rom", 64_KiB, 'r');
  const auto rom =
      MemoryRegion::map(describe({.name = "rom",
                                  .base = GuestAddress(1_MiB),
                                  .size = 64_KiB,
                                  .backing = {.source = MemorySource::file, .path = path},
                                  .protection = Protection::read}));
  ASSERT_TRUE(good && rom);
  const MemoryRegionPtr both[] = {*good, *rom};
  const auto done = populate(both, {.access = PopulateAccess::write});
  ASSERT_THAT(done, Not(IsOk()));
  EXPECT_EQ(done.error().text.subject(), "rom [0x100000, 0x10ffff]") << done.error().message();
}

TEST(MemoryRegion, ARegionWithoutABackingHasNoMemory) {
  const auto region = MemoryRegion::map(describe({.size = 4_KiB}));
  ASSERT_THAT(region, HasError(Errc::invalid_argument));
  const auto backing = Backing::open({.source = MemorySource::shmem}, 4_KiB);
  const auto given = MemoryRegion::map(describe({.size = 4_KiB}), {.backing = *backing});
  ASSERT_THAT(given, HasError(Errc::invalid_argument));
}

TEST(MemoryRegion, IsMappedFromOptionsWithoutAnAddressSpace) {
  const RegionOptions options{.name = "ram",
                              .base = GuestAddress(4_GiB),
                              .size = 1_MiB,
                              .backing = {.source = MemorySource::anon}};
  const auto region = MemoryRegion::map(options);
  ASSERT_THAT(region, IsOk());
  EXPECT_EQ((*region)->description().options(), options);
  const auto empty = MemoryRegion::map({.name = "ram", .backing = {.source = MemorySource::anon}});
  ASSERT_THAT(empty, HasError(Errc::zero_size));
  EXPECT_EQ(empty.error().operation, std::string("MemoryRegion::map"));
}

TEST(MemoryRegion, LastHolderUnmaps) {
  const auto before = open_descriptors();
  const std::uint64_t mapped = address_space_bytes();
  {
    auto region = MemoryRegion::map(ram({.source = MemorySource::shmem}, 1_GiB));
    ASSERT_THAT(region, IsOk());
    const auto other = *region;
    region->reset();
    other->host_base()[1_GiB - 1] = std::byte{1};
  }
  EXPECT_EQ(open_descriptors(), before);
  EXPECT_LT(address_space_bytes(), mapped + 64_MiB);
}

}  // namespace
}  // namespace vmspace::memory_region_test
