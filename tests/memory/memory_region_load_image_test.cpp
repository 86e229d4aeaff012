// SPDX-License-Identifier: Apache-2.0
//
// Filling regions that the guest may not write.

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"
#include "memory/guest_support.hpp"

namespace vmspace::memory_region_load_image_test {
namespace {

using test::contents;
using test::page;
using test::pattern;
using test::region;
using ::testing::Not;

constexpr std::uint64_t base = 0xf'0000;

TEST(LoadImage, ARomIsFilledByTheVmmAndNotByTheGuest) {
  for (const MemorySource source : {MemorySource::anon, MemorySource::shmem}) {
    const auto rom = region({base, 4 * page, Protection::read, source});
    const auto image = pattern(2 * page + 5);
    ASSERT_THAT(rom->load_image(page - 1, image), IsOk());
    const auto memory = GuestMemory::from_regions({rom});
    ASSERT_THAT(memory, IsOk());
    EXPECT_EQ(contents(*memory, base + page - 1, image.size()), image);
    EXPECT_EQ(contents(*memory, base, page - 1), std::vector<std::byte>(page - 1));
    EXPECT_THAT(memory->write(GuestAddress(base), 1U), HasError(Errc::access_denied));
    EXPECT_THAT(memory->write_slice(GuestAddress(base), image), HasError(Errc::access_denied));
    EXPECT_EQ(contents(*memory, base + page - 1, image.size()), image);
  }
}

TEST(LoadImage, FromADescriptorUpToTheEndOfTheFile) {
  const test::TemporaryDirectory directory;
  const test::OwnedFd file(open(directory.file("firmware", page + 100, 'f').c_str(), O_RDONLY));
  const auto rom = region({base, 4 * page, Protection::read});
  EXPECT_THAT(rom->load_image_from(file.get(), page, 3 * page), IsOkAndHolds(page + 100));
  const auto memory = GuestMemory::from_regions({rom});
  ASSERT_THAT(memory, IsOk());
  EXPECT_EQ(contents(*memory, base + page, page + 100),
            std::vector<std::byte>(page + 100, std::byte{'f'}));
  EXPECT_THAT(memory->read<std::uint8_t>(GuestAddress(base + page - 1)), IsOkAndHolds(0));
  EXPECT_THAT(memory->read<std::uint8_t>(GuestAddress(base + 2 * page + 100)), IsOkAndHolds(0));
  const auto closed = rom->load_image_from(-1, 0, page);
  ASSERT_THAT(closed, Not(IsOk()));
  EXPECT_EQ(closed.error().os_errno, EBADF);
}

TEST(LoadImage, WhatDoesNotFitIsRefusedAndNothingIsWritten) {
  constexpr auto top = std::numeric_limits<std::uint64_t>::max();
  const auto rom = region({base, 2 * page, Protection::read});
  const test::OwnedFd zeros(open("/dev/zero", O_RDONLY));
  ASSERT_THAT(rom->load_image(0, pattern(2 * page)), IsOk());
  for (const auto& [offset, size] : {std::pair<std::uint64_t, std::uint64_t>{0, 2 * page + 1},
                                     {2 * page, 1},
                                     {page, page + 1},
                                     {top, 2},
                                     {top - page, 2 * page}}) {
    SCOPED_TRACE(offset);
    EXPECT_THAT(rom->load_image(offset, std::vector<std::byte>(size)),
                HasError(Errc::out_of_bounds));
    EXPECT_THAT(rom->load_image_from(zeros.get(), offset, size), HasError(Errc::out_of_bounds));
  }
  EXPECT_THAT(rom->load_image_from(zeros.get(), page, top), HasError(Errc::out_of_bounds));
  VMSPACE_EXPECT_OK(rom->load_image(2 * page, {}));
  EXPECT_EQ(contents(*GuestMemory::from_regions({rom}), base, 2 * page), pattern(2 * page));
}

TEST(LoadImage, AFileThatCantBeWrittenIsRefused) {
  const test::TemporaryDirectory directory;
  const auto description =
      AddressSpaceRegion::make({.name = "firmware",
                                .base = GuestAddress(base),
                                .size = page,
                                .backing = {.source = MemorySource::file,
                                            .path = directory.file("firmware", page, 'f'),
                                            .sharing = Sharing::map_shared},
                                .protection = Protection::read});
  ASSERT_THAT(description, IsOk());
  const auto rom = MemoryRegion::map(*description);
  ASSERT_THAT(rom, IsOk());
  EXPECT_THAT((*rom)->load_image(0, pattern(8)), HasError(Errc::access_denied));
  EXPECT_THAT((*rom)->load_image_from(0, 0, 8), HasError(Errc::access_denied));
  EXPECT_EQ((*rom)->host_base()[0], std::byte{'f'});
}

TEST(LoadImage, WhatIsLoadedIsMarkedDirty) {
  const auto rom = region({base, 4 * page, Protection::read});
  ASSERT_THAT(rom->dirty().enable(), IsOk());
  ASSERT_THAT(rom->load_image(page + 7, pattern(8)), IsOk());
  EXPECT_THAT(rom->dirty().harvest(), IsOkAndHolds((std::vector<DirtyRange>{{page, page}})));
  const test::OwnedFd zeros(open("/dev/zero", O_RDONLY));
  EXPECT_THAT(rom->load_image_from(zeros.get(), 2 * page, page), IsOkAndHolds(page));
  EXPECT_THAT(rom->dirty().harvest(), IsOkAndHolds((std::vector<DirtyRange>{{2 * page, page}})));
}

}  // namespace
}  // namespace vmspace::memory_region_load_image_test
