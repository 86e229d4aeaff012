// SPDX-License-Identifier: Apache-2.0

#include "vmspace/base/literals.hpp"

#include <cstdint>
#include <string_view>
#include <type_traits>

#include <gtest/gtest.h>

namespace vmspace::literals_test {
namespace {

using namespace literals;

TEST(Literals, ScaleByPowersOf1024) {
  EXPECT_EQ(1_KiB, 1024u);
  EXPECT_EQ(1_MiB, 1024u * 1024u);
  EXPECT_EQ(3_GiB, 0xc000'0000u);
  EXPECT_EQ(1_TiB, std::uint64_t{1} << 40);
  EXPECT_EQ(0_GiB, 0u);
}

TEST(Literals, ReachTheLargestMultipleThatFits) {
  EXPECT_EQ(0xff'ffff_TiB, 0xffff'ff00'0000'0000u);  // one TiB more does not compile
  static_assert(std::is_same_v<decltype(1_KiB), std::uint64_t>);
}

TEST(Literals, ReadEverySpellingOfAnInteger) {
  EXPECT_EQ(0x10_KiB, 16u * 1024);
  EXPECT_EQ(0XfF_KiB, 255u * 1024);
  EXPECT_EQ(0b11_KiB, 3u * 1024);
  EXPECT_EQ(010_KiB, 8u * 1024);
  EXPECT_EQ(1'000_KiB, 1000u * 1024);
  EXPECT_EQ(16777215_TiB, 0xffff'ff00'0000'0000u);
}

TEST(Literals, WhatIsNoWholeNumberBelow2To64IsRefused) {
  const auto is_valid = [](std::string_view text, unsigned shift) {
    return detail::scale_literal(text.data(), text.data() + text.size(), shift).valid;
  };
  EXPECT_TRUE(is_valid("16777215", 40));
  EXPECT_FALSE(is_valid("16777216", 40));
  EXPECT_FALSE(is_valid("18446744073709551616", 10));
  EXPECT_FALSE(is_valid("1.5", 10));
  EXPECT_FALSE(is_valid("1e3", 10));
}

std::uint64_t doubled(std::uint64_t size = 2_MiB) {
  return 2 * size;
}

TEST(Literals, WorkInDefaultArgumentsAndGenericLambdas) {
  const auto sum = [](auto size, std::uint64_t more = 1_KiB) { return size + more + 1_MiB; };
  EXPECT_EQ(doubled(), 4_MiB);
  EXPECT_EQ(sum(3_KiB), 4_KiB + 1_MiB);
}

}  // namespace
}  // namespace vmspace::literals_test
