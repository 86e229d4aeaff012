// SPDX-License-Identifier: Apache-2.0

#include "vmspace/address_space/guest_range.hpp"

#include <cstdint>
#include <limits>
#include <optional>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"
#include "vmspace/text.hpp"

namespace vmspace::guest_range_test {
namespace {

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

constexpr GuestRange bytes(std::uint64_t base, std::uint64_t size) {
  return {GuestAddress(base), size};
}

static_assert(bytes(0x1000, 0x200).last() == GuestAddress(0x11ff));
static_assert(bytes(0x1000, 0x200) == GuestRange{.base = GuestAddress(0x1000), .size = 0x200});
static_assert(GuestRange{}.empty());

TEST(GuestRange, EndsAreGivenOnlyWhereTheyExist) {
  EXPECT_EQ(bytes(0x1000, 0x200).end(), GuestAddress(0x1200));
  EXPECT_EQ(bytes(0x1000, 0).last(), std::nullopt);
  EXPECT_EQ(bytes(0x1000, 0).end(), GuestAddress(0x1000));
  EXPECT_EQ(bytes(top, 1).last(), GuestAddress(top));
  EXPECT_EQ(bytes(top, 1).end(), std::nullopt);
  EXPECT_EQ(bytes(1, top).last(), GuestAddress(top));
  EXPECT_EQ(bytes(top, 2).last(), std::nullopt);
  EXPECT_EQ(bytes(2, top).last(), std::nullopt);
  EXPECT_EQ(bytes(top, 2).end(), std::nullopt);
}

TEST(GuestRange, ContainsItsBytesAndNoOthers) {
  const GuestRange range = bytes(0x1000, 0x200);
  EXPECT_TRUE(range.contains(GuestAddress(0x1000)));
  EXPECT_TRUE(range.contains(GuestAddress(0x11ff)));
  EXPECT_FALSE(range.contains(GuestAddress(0x1200)));
  EXPECT_FALSE(range.contains(GuestAddress(0xfff)));
  EXPECT_FALSE(range.contains(GuestAddress(0)));
  EXPECT_FALSE(bytes(0x1000, 0).contains(GuestAddress(0x1000)));
  EXPECT_TRUE(bytes(top, 1).contains(GuestAddress(top)));
  EXPECT_FALSE(bytes(top, 2).contains(GuestAddress(0))) << "it must not wrap";
}

TEST(GuestRange, ContainsRangesThatLieWhollyInside) {
  const GuestRange range = bytes(0x1000, 0x200);
  EXPECT_TRUE(range.contains(range));
  EXPECT_TRUE(range.contains(bytes(0x11ff, 1)));
  EXPECT_FALSE(range.contains(bytes(0x11ff, 2)));
  EXPECT_FALSE(range.contains(bytes(0xfff, 2)));
  EXPECT_FALSE(range.contains(bytes(0x1000, top)));
  EXPECT_TRUE(range.contains(bytes(0x9000, 0))) << "an empty range has no byte outside";
  EXPECT_TRUE(bytes(1, top).contains(bytes(top, 1)));
  EXPECT_FALSE(bytes(0, top).contains(bytes(top, 1)));
}

TEST(GuestRange, OverlapNeedsAByteInCommon) {
  const GuestRange range = bytes(0x1000, 0x200);
  EXPECT_TRUE(range.overlaps(bytes(0x11ff, 1)));
  EXPECT_TRUE(range.overlaps(bytes(0, top)));
  EXPECT_TRUE(bytes(0, top).overlaps(range));
  EXPECT_FALSE(range.overlaps(bytes(0x1200, 1))) << "adjacent";
  EXPECT_FALSE(bytes(0x1200, 1).overlaps(range));
  EXPECT_FALSE(range.overlaps(bytes(0x1100, 0)));
  EXPECT_FALSE(bytes(0x1100, 0).overlaps(range));
  EXPECT_FALSE(bytes(top, 2).overlaps(bytes(0, 1))) << "it must not wrap";
}

TEST(GuestRange, IntersectionIsWhatBothContain) {
  const GuestRange range = bytes(0x1000, 0x200);
  const auto with = [&](const GuestRange& other) {
    EXPECT_EQ(range.intersection(other), other.intersection(range));
    return range.intersection(other);
  };
  EXPECT_EQ(with(range), range);
  EXPECT_EQ(with(bytes(0x1080, 0x10)), bytes(0x1080, 0x10));
  EXPECT_EQ(with(bytes(0xff0, 0x20)), bytes(0x1000, 0x10));
  EXPECT_EQ(with(bytes(0x11f0, 0x20)), bytes(0x11f0, 0x10));
  EXPECT_EQ(with(bytes(0, top)), range);
  EXPECT_EQ(with(bytes(0x1200, 1)), std::nullopt) << "adjacent";
  EXPECT_EQ(with(bytes(0x1100, 0)), std::nullopt) << "an empty range has no byte";
}

TEST(GuestRange, IntersectionDoesNotWrapAroundTheEndOfTheDomain) {
  EXPECT_EQ(bytes(top - 1, 2).intersection(bytes(1, top)), bytes(top - 1, 2));
  EXPECT_EQ(bytes(top, 2).intersection(bytes(0, 1)), std::nullopt);
  EXPECT_EQ(bytes(top, 4).intersection(bytes(top - 1, 2)), bytes(top, 1));
}

TEST(GuestRange, ConvertsToInclusiveBoundsAndBack) {
  EXPECT_THAT(bytes(0x1000, 0x200).range(), IsOkAndHolds(Range::of(0x1000, 0x11ff)));
  EXPECT_THAT(bytes(1, top).range(), IsOkAndHolds(Range::of(1, top)));
  EXPECT_THAT(bytes(0x1000, 0).range(), HasError(Errc::zero_size));
  EXPECT_THAT(bytes(2, top).range(), HasError(Errc::overflow));
  EXPECT_THAT(GuestRange::from_range(Range::of(0x1000, 0x11ff)),
              IsOkAndHolds(bytes(0x1000, 0x200)));
  EXPECT_THAT(GuestRange::from_range(Range::point(top)), IsOkAndHolds(bytes(top, 1)));
  EXPECT_THAT(GuestRange::from_range(Range::of(1, top)), IsOkAndHolds(bytes(1, top)));
  EXPECT_THAT(GuestRange::from_range(Range::whole_domain()), HasError(Errc::overflow));
}

TEST(GuestRange, IsPrintedAsBaseAndSizeWhateverTheyAre) {
  EXPECT_EQ(to_text(bytes(0x1000, 0x200)), "0x1000+0x200");
  EXPECT_EQ(to_text(bytes(top, 2)), "0xffffffffffffffff+0x2");
}

}  // namespace
}  // namespace vmspace::guest_range_test
