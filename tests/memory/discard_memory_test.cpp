// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/discard_memory.hpp"

#include <cstddef>
#include <cstdint>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/present_blocks.hpp"
#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::discard_memory_test {
namespace {

using test::at;
using test::contents;
using test::guest;
using test::page;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// Two regions side by side, and one that the guest can't write behind a gap; all of it written.
class DiscardMemory : public ::testing::Test {
 protected:
  static constexpr std::uint64_t low = 0x10'0000;
  static constexpr std::uint64_t high = low + 8 * page;
  static constexpr std::uint64_t rom = high + 9 * page;

  DiscardMemory() {
    VMSPACE_EXPECT_OK(memory.fill({at(low), 16 * page}, std::byte{7}));
    VMSPACE_EXPECT_OK(enable_dirty_tracking(memory));
  }

  [[nodiscard]] static std::vector<std::byte> bytes(std::uint64_t size, int value) {
    return std::vector<std::byte>(size, static_cast<std::byte>(value));
  }
  void expect_unchanged() const {
    EXPECT_EQ(contents(memory, low, 16 * page), bytes(16 * page, 7));
    EXPECT_THAT(harvest_dirty(memory), IsOkAndHolds(IsEmpty()));
  }

  GuestMemory memory = guest({{.base = low, .size = 8 * page},
                              {.base = high, .size = 8 * page, .source = MemorySource::shmem},
                              {.base = rom, .size = page, .protection = Protection::read}});
};

TEST_F(DiscardMemory, WhatIsGivenBackIsZerosAndCountsAsWritten) {
  const auto resident = [&](std::size_t i) {
    return memory.regions()[i]->mapping().residency()->resident;
  };
  ASSERT_EQ(resident(0) + resident(1), 16 * page);
  const GuestRange middle{at(high - 2 * page), 5 * page};
  VMSPACE_ASSERT_OK(discard_memory(memory, middle));
  EXPECT_EQ(resident(0), 6 * page);
  EXPECT_EQ(resident(1), 5 * page);
  EXPECT_EQ(contents(memory, low, 6 * page), bytes(6 * page, 7));
  EXPECT_EQ(contents(memory, middle.base.value(), 5 * page), bytes(5 * page, 0));
  EXPECT_EQ(contents(memory, high + 3 * page, 5 * page), bytes(5 * page, 7));
  EXPECT_THAT(harvest_dirty(memory), IsOkAndHolds(std::vector{middle}));
}

TEST_F(DiscardMemory, NothingIsGivenBackOfARangeThatIsNotAllWholePagesOfRam) {
  const auto refused = [&](std::uint64_t base, std::uint64_t size) {
    return discard_memory(memory, {at(base), size});
  };
  EXPECT_THAT(refused(low + 1, page), HasError(Errc::misaligned));
  const auto end = refused(high - page, page + 1);
  ASSERT_THAT(end, HasError(Errc::misaligned)) << "in the second region";
  EXPECT_THAT(end.error().message(),
              HasSubstr("discard_memory: \"test [0x108000, 0x10ffff]\": misaligned"));
  EXPECT_THAT(refused(high + 7 * page, 2 * page), HasError(Errc::out_of_bounds));
  EXPECT_THAT(refused(high + 8 * page, page), HasError(Errc::not_found));
  EXPECT_THAT(refused(rom, page), HasError(Errc::access_denied));
  EXPECT_THAT(refused(test::top - page + 1, 2 * page), HasError(Errc::overflow));
  VMSPACE_EXPECT_OK(refused(rom, 0));
  expect_unchanged();
}

TEST_F(DiscardMemory, WhatADeviceHasIsNotGivenBack) {
  const auto pin = memory.regions()[0]->mapping().pin(7 * page, page, "nic");
  ASSERT_THAT(pin, IsOk());
  const auto discarded = discard_memory(memory, {at(high - 2 * page), 4 * page});
  ASSERT_THAT(discarded, HasError(Errc::bad_state));
  EXPECT_STREQ(discarded.error().operation, "discard_memory");
  EXPECT_THAT(discarded.error().message(), HasSubstr("\"test [0x100000, 0x107fff]\": wrong state"));
  expect_unchanged();
}

TEST_F(DiscardMemory, AnAbsentBlockIsAGap) {
  const auto none = *PresentBlocks::none(8 * page, page, 4 * page);
  const auto some = memory.regions()[0]->with_blocks(*none->with({0, 4 * page}));
  ASSERT_THAT(some, IsOk());
  const auto partly = memory.with_changes(std::vector{memory.regions()[0]}, {*some});
  ASSERT_THAT(partly, IsOk());
  EXPECT_THAT(discard_memory(*partly, {at(low + 3 * page), 2 * page}),
              HasError(Errc::out_of_bounds));
  expect_unchanged();
  VMSPACE_EXPECT_OK(discard_memory(*partly, {at(low + 3 * page), page}));
}

}  // namespace
}  // namespace vmspace::discard_memory_test
