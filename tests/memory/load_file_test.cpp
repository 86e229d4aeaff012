// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/load_file.hpp"

#include <sys/stat.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/testing.hpp"

#include "host/host_support.hpp"
#include "memory/guest_support.hpp"

namespace vmspace::load_file_test {
namespace {

using test::at;
using test::contents;
using test::guest;
using test::page;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr std::uint64_t base = 0xf'0000;

class LoadFile : public ::testing::Test {
 protected:
  static std::vector<std::byte> bytes(std::uint64_t size, char fill) {
    return std::vector<std::byte>(size, static_cast<std::byte>(fill));
  }

  test::TemporaryDirectory directory;
};

TEST_F(LoadFile, AllOfAFileIsReadAndItsRangeGiven) {
  const std::string kernel = directory.file("kernel", page + 100, 'k');
  const GuestMemory memory = guest({{base, 4 * page}});
  const auto loaded = load_file(kernel, memory, at(base + 7));
  ASSERT_THAT(loaded, IsOkAndHolds(GuestRange{at(base + 7), page + 100}));
  EXPECT_EQ(contents(memory, base, 7), bytes(7, 0));
  EXPECT_EQ(contents(memory, base + 7, page + 100), bytes(page + 100, 'k'));
  EXPECT_EQ(contents(memory, base + page + 107, 9), bytes(9, 0));
}

TEST_F(LoadFile, ARomIsFilledAlthoughTheGuestMayNotWriteIt) {
  const std::string firmware = directory.file("firmware", 2 * page, 'f');
  const GuestMemory memory = guest({{base, 2 * page, Protection::read}});
  ASSERT_THAT(load_file(firmware, memory, at(base)), IsOk());
  EXPECT_EQ(contents(memory, base, 2 * page), bytes(2 * page, 'f'));
  EXPECT_THAT(memory.write(at(base), 1U), HasError(Errc::access_denied));
}

TEST_F(LoadFile, AFileMayCrossFromOneRegionIntoTheNext) {
  const std::string file = directory.file("initrd", 3 * page, 'i');
  const GuestMemory memory =
      guest({{base, 2 * page}, {base + 2 * page, 2 * page, Protection::read}});
  ASSERT_THAT(load_file(file, memory, at(base + page / 2)), IsOk());
  EXPECT_EQ(contents(memory, base + page / 2, 3 * page), bytes(3 * page, 'i'));
  EXPECT_EQ(contents(memory, base + 3 * page + page / 2, page / 2), bytes(page / 2, 0));
}

TEST_F(LoadFile, WhatItWritesIsMarkedDirty) {
  const std::string file = directory.file("kernel", page, 'k');
  const GuestMemory memory = guest({{base, 4 * page}});
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  ASSERT_THAT(load_file(file, memory, at(base + page)), IsOk());
  EXPECT_THAT(harvest_dirty(memory),
              IsOkAndHolds(std::vector<GuestRange>{{at(base + page), page}}));
}

TEST_F(LoadFile, AFileThatDoesNotFitIsRefusedAndNothingIsWritten) {
  const std::string file = directory.file("kernel", 2 * page, 'k');
  const GuestMemory memory = guest({{base, 2 * page}, {base + 3 * page, page}});
  EXPECT_THAT(load_file(file, memory, at(base + 1)), HasError(Errc::out_of_bounds));
  EXPECT_THAT(load_file(file, memory, at(base - 1)), HasError(Errc::not_found));
  EXPECT_THAT(load_file(file, memory, at(test::top)), HasError(Errc::overflow));
  EXPECT_EQ(contents(memory, base, 2 * page), bytes(2 * page, 0));
}

TEST_F(LoadFile, WhatIsNoRegularFileWithContentsIsRefusedByName) {
  const GuestMemory memory = guest({{base, page}});
  const std::string missing = directory.path() / "missing";
  const auto absent = load_file(missing, memory, at(base));
  ASSERT_THAT(absent, HasError(Errc::os));
  EXPECT_EQ(absent.error().os_errno, ENOENT);
  EXPECT_THAT(std::string(absent.error().text.subject()), HasSubstr("missing"));
  EXPECT_STREQ(absent.error().operation, "load_file");

  EXPECT_THAT(load_file(directory.file("empty", 0, ' '), memory, at(base)),
              HasError(Errc::zero_size));
  EXPECT_THAT(load_file(directory.path(), memory, at(base)), HasError(Errc::invalid_argument));
  const std::string fifo = directory.path() / "fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_THAT(load_file(fifo, memory, at(base)), HasError(Errc::invalid_argument));
}

TEST_F(LoadFile, APathThatOnlyBeginsLikeTheFilesIsRefused) {
  const std::string kernel = directory.file("kernel", page, 'k');
  const GuestMemory memory = guest({{base, page}});
  EXPECT_THAT(load_file(kernel + std::string(1, '\0') + ".sig", memory, at(base)),
              HasError(Errc::invalid_argument));
  EXPECT_EQ(contents(memory, base, page), bytes(page, 0));
}

TEST_F(LoadFile, MemoryThatThisProcessMayNotWriteIsRefused) {
  const std::string firmware = directory.file("firmware", page, 'f');
  ASSERT_EQ(chmod(firmware.c_str(), 0400), 0);
  const auto region = MemoryRegion::map(
      {.name = "flash",
       .base = at(base),
       .size = page,
       .backing = {.source = MemorySource::file, .path = firmware, .sharing = Sharing::map_shared},
       .protection = Protection::read});
  ASSERT_THAT(region, IsOk());
  const auto memory = GuestMemory::from_regions({*region});
  ASSERT_THAT(memory, IsOk());
  EXPECT_THAT(load_file(directory.file("image", page, 'i'), *memory, at(base)),
              HasError(Errc::access_denied));
}

}  // namespace
}  // namespace vmspace::load_file_test
