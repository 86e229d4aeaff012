// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/guest_address.hpp"

#include <cstdint>
#include <type_traits>
#include <unordered_set>

#include <gtest/gtest.h>

namespace vmspace::guest_address_test {
namespace {

constexpr GuestAddress last{UINT64_MAX};

// A number is not an address by accident, and an address has no operators that wrap.
static_assert(!std::is_convertible_v<std::uint64_t, GuestAddress>);
static_assert(!std::is_convertible_v<GuestAddress, std::uint64_t>);
template <typename T>
concept Adds = requires(T a) {
  a + 1;
};
static_assert(!Adds<GuestAddress>);
static_assert(GuestAddress{}.value() == 0);
static_assert(sizeof(GuestAddress) == sizeof(std::uint64_t));

TEST(GuestAddress, AddsUpToTheLastAddressAndNotBeyond) {
  EXPECT_EQ(GuestAddress{0x1000}.checked_add(0x234), GuestAddress{0x1234});
  EXPECT_EQ(GuestAddress{0}.checked_add(UINT64_MAX), last);
  EXPECT_EQ(last.checked_add(0), last);
  EXPECT_EQ(last.checked_add(1), std::nullopt);
  EXPECT_EQ(GuestAddress{1}.checked_add(UINT64_MAX), std::nullopt);
}

TEST(GuestAddress, SubtractsDownToZeroAndNotBeyond) {
  EXPECT_EQ(GuestAddress{0x1234}.checked_sub(0x234), GuestAddress{0x1000});
  EXPECT_EQ(last.checked_sub(UINT64_MAX), GuestAddress{0});
  EXPECT_EQ(GuestAddress{0}.checked_sub(0), GuestAddress{0});
  EXPECT_EQ(GuestAddress{0}.checked_sub(1), std::nullopt);
}

TEST(GuestAddress, OffsetIsNothingBelowTheBase) {
  EXPECT_EQ(GuestAddress{0x1234}.offset_from(GuestAddress{0x1000}), 0x234U);
  EXPECT_EQ(last.offset_from(GuestAddress{0}), UINT64_MAX);
  EXPECT_EQ(last.offset_from(last), 0U);
  EXPECT_EQ(GuestAddress{0xfff}.offset_from(GuestAddress{0x1000}), std::nullopt);
}

TEST(GuestAddress, AlignsToAnyPowerOfTwo) {
  EXPECT_EQ(GuestAddress{0x1001}.align_up(0x1000), GuestAddress{0x2000});
  EXPECT_EQ(GuestAddress{0x1000}.align_up(0x1000), GuestAddress{0x1000});
  EXPECT_EQ(GuestAddress{0x1fff}.align_down(0x1000), GuestAddress{0x1000});
  EXPECT_EQ(GuestAddress{0}.align_up(std::uint64_t{1} << 63), GuestAddress{0});
  EXPECT_EQ(last.align_up(1), last);
  EXPECT_EQ(last.align_up(2), std::nullopt);
  EXPECT_EQ(last.align_down(std::uint64_t{1} << 63), GuestAddress{std::uint64_t{1} << 63});
  EXPECT_EQ((GuestAddress{(std::uint64_t{1} << 63) + 1}.align_up(std::uint64_t{1} << 63)),
            std::nullopt);
  EXPECT_TRUE(GuestAddress{0x3000}.is_aligned(0x1000));
  EXPECT_FALSE(GuestAddress{0x3800}.is_aligned(0x1000));
  EXPECT_TRUE(last.is_aligned(1));
}

TEST(GuestAddress, AlignsToWhatIsNoPowerOfTwoAndTakesZeroAsOne) {
  EXPECT_EQ(GuestAddress{0x1001}.align_up(0x1800), GuestAddress{0x1800});
  EXPECT_EQ(GuestAddress{0x1800}.align_up(0x1800), GuestAddress{0x1800});
  EXPECT_EQ(GuestAddress{0x2fff}.align_down(0x1800), GuestAddress{0x1800});
  EXPECT_TRUE(GuestAddress{0x3000}.is_aligned(0x1800));
  EXPECT_FALSE(GuestAddress{0x2000}.is_aligned(0x1800));
  EXPECT_EQ(last.align_up(3), last);  // 2^64-1 is a multiple of 3
  EXPECT_EQ(GuestAddress{UINT64_MAX - 1}.align_up(UINT64_MAX), last);
  EXPECT_EQ(last.align_up(UINT64_MAX - 1), std::nullopt);
  EXPECT_EQ(last.align_up(0), last);
  EXPECT_EQ(last.align_down(0), last);
  EXPECT_TRUE(last.is_aligned(0));
}

TEST(GuestAddress, OrdersAndHashesAsItsNumber) {
  EXPECT_LT(GuestAddress{1}, GuestAddress{2});
  EXPECT_GT(last, GuestAddress{0});
  EXPECT_EQ((std::unordered_set<GuestAddress>{GuestAddress{1}, GuestAddress{1}, last}).size(), 2U);
}

}  // namespace
}  // namespace vmspace::guest_address_test
