// SPDX-License-Identifier: Apache-2.0

#include "vmspace/literals.hpp"

#include <cstdint>
#include <type_traits>

#include <gtest/gtest.h>

namespace vmspace {
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

}  // namespace
}  // namespace vmspace
