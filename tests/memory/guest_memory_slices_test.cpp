// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::guest_memory_slices_test {
namespace {

using test::at;
using test::contents;
using test::Guest;
using test::page;
using test::pattern;

TEST_F(Guest, SlicesCrossRegionsWholeOrNotAtAll) {
  const auto bytes = pattern(3 * page);
  ASSERT_THAT(memory.write_slice(at(first + 100), bytes), IsOk());
  EXPECT_EQ(contents(memory, first + 100, 3 * page), bytes);
  const auto before = contents(memory, first, 4 * page);
  const auto more = pattern(page, 9);
  EXPECT_THAT(memory.write_slice(at(gap - page + 1), more), HasError(Errc::out_of_bounds));
  EXPECT_EQ(contents(memory, first, 4 * page), before);
  std::vector<std::byte> out(page, std::byte{0x5a});
  EXPECT_THAT(memory.read_slice(at(gap - page + 1), out), HasError(Errc::out_of_bounds));
  EXPECT_EQ(out, std::vector<std::byte>(page, std::byte{0x5a}));
}

TEST_F(Guest, SlicesOfEveryLengthEndWhereTheyEnd) {
  // Short, long and in between, inside of a region, up to its end, and across it; the bytes on both
  // sides stay.
  for (std::size_t size = 0; size <= 140; ++size) {
    const auto bytes = pattern(size, static_cast<unsigned>(size));
    for (const std::uint64_t start : {first + 70, second - size, second - size / 2, gap - size}) {
      SCOPED_TRACE(std::to_string(size) + " bytes at " + std::to_string(start));
      ASSERT_THAT(memory.fill({at(first), 4 * page}, std::byte{0xee}), IsOk());
      ASSERT_THAT(memory.write_slice(at(start), bytes), IsOk());
      std::vector<std::byte> all(4 * page, std::byte{0xee});
      std::ranges::copy(bytes, all.begin() + static_cast<std::ptrdiff_t>(start - first));
      ASSERT_EQ(contents(memory, first, 4 * page), all);
      std::vector<std::byte> out(size + 2, std::byte{0xee});
      ASSERT_THAT(memory.read_slice(at(start), std::span(out).subspan(1, size)), IsOk());
      ASSERT_TRUE(std::ranges::equal(std::span(out).subspan(1, size), bytes));
      ASSERT_EQ(out.front(), std::byte{0xee});
      ASSERT_EQ(out.back(), std::byte{0xee});
    }
    EXPECT_EQ(memory.write_slice(at(gap - size), pattern(size + 1)).error().code,
              size == 0 ? Errc::not_found : Errc::out_of_bounds);
    EXPECT_EQ(memory.write_slice(at(rom), bytes).has_value(), size == 0);
  }
}

TEST_F(Guest, LargeObjectsAreReadAndWrittenAsSmallOnesAre) {
  struct Large {
    std::array<std::uint8_t, 3000> bytes;
  };
  Large large{};
  for (std::size_t i = 0; i < large.bytes.size(); ++i)
    large.bytes[i] = static_cast<std::uint8_t>(i * 7);
  for (const std::uint64_t start : {first + 1, second - 1500, gap - sizeof(Large)}) {
    ASSERT_THAT(memory.fill({at(first), 4 * page}, std::byte{0}), IsOk());
    ASSERT_THAT(memory.write(at(start), large), IsOk());
    const auto read = memory.read<Large>(at(start));
    ASSERT_THAT(read, IsOk());
    EXPECT_EQ(read->bytes, large.bytes);
  }
  const auto before = contents(memory, first, 4 * page);
  EXPECT_THAT(memory.write(at(gap - sizeof(Large) + 1), large), HasError(Errc::out_of_bounds));
  EXPECT_THAT(memory.read<Large>(at(gap - sizeof(Large) + 1)), HasError(Errc::out_of_bounds));
  EXPECT_THAT(memory.write(at(rom), large), HasError(Errc::access_denied));
  EXPECT_EQ(contents(memory, first, 4 * page), before);
}

TEST_F(Guest, PartialSlicesStopAtTheGap) {
  const auto bytes = pattern(3 * page);
  EXPECT_THAT(memory.write_some(at(second + 10), bytes), IsOkAndHolds(2 * page - 10));
  EXPECT_TRUE(std::ranges::equal(contents(memory, second + 10, 2 * page - 10),
                                 std::span(bytes).first(2 * page - 10)));
  std::vector<std::byte> out(3 * page);
  EXPECT_THAT(memory.read_some(at(second + 10), out), IsOkAndHolds(2 * page - 10));
  EXPECT_THAT(memory.read_some(at(gap), out), HasError(Errc::not_found));
  EXPECT_THAT(memory.write_some(at(gap), bytes), HasError(Errc::not_found));
}

TEST_F(Guest, FillsAndCopiesAcrossRegions) {
  ASSERT_THAT(memory.fill({at(second - 10), 20}, std::byte{3}), IsOk());
  EXPECT_EQ(contents(memory, second - 10, 20), std::vector<std::byte>(20, std::byte{3}));
  EXPECT_THAT(memory.read<std::uint8_t>(at(second + 10)), IsOkAndHolds(0));
  EXPECT_THAT(memory.read<std::uint8_t>(at(second - 11)), IsOkAndHolds(0));

  // As memmove, both ways and across the border between the regions.
  for (const auto& [to, from] : {std::pair{first + 5000, first + 3000},
                                 {first + 3000, first + 5000},
                                 {first + 100, first + 100},
                                 {first + 1, first},
                                 {first, first + 1}}) {
    const auto all = pattern(4 * page, 4);
    ASSERT_THAT(memory.write_slice(at(first), all), IsOk());
    auto expected = all;
    std::memmove(expected.data() + (to - first), expected.data() + (from - first), 7000);
    ASSERT_THAT(memory.copy(at(to), {at(from), 7000}), IsOk());
    EXPECT_EQ(contents(memory, first, 4 * page), expected);
  }
  EXPECT_THAT(memory.copy(at(rom), {at(first), 8}), HasError(Errc::access_denied));
  VMSPACE_EXPECT_OK(memory.copy(at(first), {at(rom), 8}));
}

TEST_F(Guest, StringsEndAtTheirZeroOrAtTheLimit) {
  const std::string text = "console=ttyS0 root=/dev/vda";
  ASSERT_THAT(memory.write_slice(at(second - 5), std::as_bytes(std::span(text))), IsOk());
  EXPECT_THAT(memory.read_string(at(second - 5), 4096), IsOkAndHolds(text));
  EXPECT_THAT(memory.read_string(at(second - 5), text.size() + 1), IsOkAndHolds(text));
  EXPECT_THAT(memory.read_string(at(second - 5), text.size()), HasError(Errc::limit_exceeded));
  EXPECT_THAT(memory.read_string(at(first), 10), IsOkAndHolds(""));
  EXPECT_THAT(memory.read_string(at(first), 0), HasError(Errc::limit_exceeded));
  ASSERT_THAT(memory.fill({at(second), 2 * page}, std::byte{'a'}), IsOk());
  EXPECT_THAT(memory.read_string(at(second), 5 * page), HasError(Errc::out_of_bounds));
  ASSERT_THAT(memory.fill({at(last), page}, std::byte{'b'}), IsOk());
  EXPECT_THAT(memory.read_string(at(last), 5 * page), HasError(Errc::overflow));
  EXPECT_THAT(memory.read_string(at(gap), 5), HasError(Errc::not_found));
}

}  // namespace
}  // namespace vmspace::guest_memory_slices_test
