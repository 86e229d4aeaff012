// SPDX-License-Identifier: Apache-2.0

#include "vmspace/allocator/range.hpp"

#include <cstdint>
#include <tuple>
#include <type_traits>
#include <unordered_set>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

namespace vmspace::range_test {
namespace {

constexpr std::uint64_t top = UINT64_MAX;

TEST(Range, MakeTakesBoundsUpToTheWholeDomain) {
  const auto whole = Range::make(0, top);
  ASSERT_TRUE(whole);
  EXPECT_EQ(*whole, Range::whole_domain());
  EXPECT_EQ(Range::make(top, top), Range::point(top));
  EXPECT_EQ(Range::make(0, 0), Range::point(0));
}

TEST(Range, MakeRefusesInvertedBoundsAndNamesThem) {
  const auto range = Range::make(2, 1);
  ASSERT_FALSE(range);
  EXPECT_THAT(range, HasError(Errc::invalid_range));
  EXPECT_EQ(range.error().first, Operand::range(2, 1));
}

TEST(Range, OfBaseAndSizeIsNotOneTooLong) {
  const auto range = Range::from_base_size(0x1000, 0x1000);
  ASSERT_TRUE(range);
  EXPECT_EQ(*range, Range::of(0x1000, 0x1fff));
  EXPECT_EQ(range->size(), 0x1000U);
}

TEST(Range, OfBaseAndSizeMayEndAtTheLastMemberAndNotPassIt) {
  EXPECT_EQ(Range::from_base_size(top - 0xff, 0x100), Range::of(top - 0xff, top));
  EXPECT_EQ(Range::from_base_size(top, 1), Range::point(top));
  EXPECT_EQ(Range::from_base_size(1, top), Range::of(1, top));
  const auto past = Range::from_base_size(top - 0xff, 0x101);
  ASSERT_FALSE(past);
  EXPECT_THAT(past, HasError(Errc::overflow));
  EXPECT_EQ(past.error().first, Operand::address(top - 0xff));
  EXPECT_EQ(past.error().second, Operand::size(0x101));
}

TEST(Range, OfSizeZeroIsAnErrorEverywhere) {
  for (const std::uint64_t base : {std::uint64_t{0}, std::uint64_t{0x1000}, top}) {
    const auto range = Range::from_base_size(base, 0);
    ASSERT_FALSE(range);
    EXPECT_THAT(range, HasError(Errc::zero_size));
  }
}

TEST(Range, SizeOfTheWholeDomainIsZeroAndOfNothingElse) {
  EXPECT_EQ(Range::whole_domain().size(), 0U);
  EXPECT_EQ(Range::of(0, top - 1).size(), top);
  EXPECT_EQ(Range::of(1, top).size(), top);
  EXPECT_EQ(Range::point(top).size(), 1U);
}

TEST(Range, ContainsItsBounds) {
  constexpr Range range = Range::of(10, 20);
  EXPECT_TRUE(range.contains(10));
  EXPECT_TRUE(range.contains(20));
  EXPECT_FALSE(range.contains(9));
  EXPECT_FALSE(range.contains(21));
  EXPECT_TRUE(range.contains(range));
  EXPECT_FALSE(range.contains(Range::of(10, 21)));
  EXPECT_FALSE(range.contains(Range::of(9, 20)));
  EXPECT_TRUE(Range::whole_domain().contains(top));
  EXPECT_TRUE(Range::whole_domain().contains(Range::whole_domain()));
}

TEST(Range, OverlapsFromOneCommonMemberOn) {
  constexpr Range range = Range::of(10, 20);
  EXPECT_TRUE(range.overlaps(Range::point(10)));
  EXPECT_TRUE(range.overlaps(Range::of(20, 30)));
  EXPECT_FALSE(range.overlaps(Range::of(21, 30)));
  EXPECT_FALSE(range.overlaps(Range::of(0, 9)));
  EXPECT_TRUE(range.overlaps(Range::whole_domain()));
}

TEST(Range, AdjacentMeansNothingBetweenAndNothingInCommon) {
  EXPECT_TRUE(Range::of(10, 20).adjacent(Range::of(21, 30)));
  EXPECT_TRUE(Range::of(21, 30).adjacent(Range::of(10, 20)));
  EXPECT_TRUE(Range::point(4).adjacent(Range::point(5)));
  EXPECT_FALSE(Range::of(10, 20).adjacent(Range::of(22, 30)));
  EXPECT_FALSE(Range::of(10, 20).adjacent(Range::of(20, 30)));
  EXPECT_TRUE(Range::of(0, top - 1).adjacent(Range::point(top)));
}

TEST(Range, TheEndsOfTheDomainAreNotAdjacent) {
  EXPECT_FALSE(Range::point(top).adjacent(Range::point(0)));
  EXPECT_FALSE(Range::point(0).adjacent(Range::point(top)));
  EXPECT_FALSE(Range::whole_domain().adjacent(Range::whole_domain()));
}

TEST(Range, IntersectionIsWhatBothContain) {
  EXPECT_EQ(Range::of(10, 20).intersection(Range::of(15, 30)), Range::of(15, 20));
  EXPECT_EQ(Range::of(10, 20).intersection(Range::whole_domain()), Range::of(10, 20));
  EXPECT_EQ(Range::of(10, 20).intersection(Range::point(20)), Range::point(20));
  EXPECT_EQ(Range::of(10, 20).intersection(Range::of(21, 30)), std::nullopt);
}

TEST(Range, AlignUpKeepsThePartFromTheFirstMultipleOn) {
  EXPECT_EQ(Range::of(0x1001, 0x3fff).align_up(0x1000), Range::of(0x2000, 0x3fff));
  EXPECT_EQ(Range::of(0x1000, 0x3fff).align_up(0x1000), Range::of(0x1000, 0x3fff));
  EXPECT_EQ(Range::of(5, 9).align_up(0), Range::of(5, 9));
  EXPECT_EQ(Range::of(5, 9).align_up(1), Range::of(5, 9));
  EXPECT_EQ(Range::whole_domain().align_up(std::uint64_t{1} << 63), Range::whole_domain());
  EXPECT_EQ(Range::of(1, top).align_up(std::uint64_t{1} << 63),
            Range::of(std::uint64_t{1} << 63, top));
}

TEST(Range, AlignUpMayLeaveTheLastMemberOnly) {
  EXPECT_EQ(Range::of(1, 0x1000).align_up(0x1000), Range::point(0x1000));
  EXPECT_EQ(Range::of(0xfff, 0x1000).align_up(0x1000), Range::point(0x1000));
  EXPECT_EQ(Range::of(top - 0x1fff, top).align_up(0x1000), Range::of(top - 0x1fff, top));
  EXPECT_EQ(Range::of(top - 1, top).align_up(1), Range::of(top - 1, top));
  EXPECT_EQ(Range::of(1, std::uint64_t{1} << 63).align_up(std::uint64_t{1} << 63),
            Range::point(std::uint64_t{1} << 63));
  // One member less, and there is none.
  EXPECT_THAT(Range::of(1, 0xfff).align_up(0x1000), HasError(Errc::no_space));
}

TEST(Range, AlignUpFailsWhereNoMultipleLiesInside) {
  for (const Range range : {Range::of(0x1001, 0x1fff), Range::point(top),
                            Range::of((std::uint64_t{1} << 63) + 1, top)}) {
    const auto aligned = range.align_up(0x1000);
    if (range.max() - range.min() < 0x1000) {
      ASSERT_FALSE(aligned);
      EXPECT_THAT(aligned, HasError(Errc::no_space));
    }
    EXPECT_THAT(range.align_up(std::uint64_t{1} << 63), HasError(Errc::no_space));
  }
}

TEST(Range, AlignUpRefusesWhatIsNoPowerOfTwo) {
  const auto aligned = Range::of(0, 9).align_up(3);
  ASSERT_FALSE(aligned);
  EXPECT_THAT(aligned, HasError(Errc::bad_alignment));
  EXPECT_EQ(aligned.error().first, Operand::size(3));
}

TEST(Range, ComesApartIntoItsBounds) {
  const auto [min, max] = Range::of(0x100, 0x1ff);
  EXPECT_EQ(min, 0x100U);
  EXPECT_EQ(max, 0x1ffU);
  std::uint64_t members = 0;
  for (const auto& [first, last] : {Range::of(1, 2), Range::of(top - 2, top)})
    members += last - first + 1;
  EXPECT_EQ(members, 5U);

  static_assert(std::tuple_size_v<Range> == 2);
  static_assert(std::is_same_v<std::tuple_element_t<1, const Range>, const std::uint64_t>);
  static_assert([] {
    const auto [lowest, highest] = Range::whole_domain();
    return lowest == 0 && highest == top;
  }());
}

TEST(Range, IsOrderedByMinThenMax) {
  EXPECT_LT(Range::of(1, 9), Range::of(2, 3));
  EXPECT_LT(Range::of(1, 2), Range::of(1, 3));
  EXPECT_EQ(Range::of(1, 2), Range::of(1, 2));
}

TEST(Range, HashTellsManyRangesApart) {
  std::unordered_set<std::size_t> hashes;
  const std::hash<Range> hash;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    hashes.insert(hash(*Range::from_base_size(i << 12, 0x1000)));
  }
  EXPECT_EQ(hashes.size(), 1000U);
  EXPECT_EQ(hash(Range::whole_domain()), hash(*Range::make(0, top)));
}

}  // namespace
}  // namespace vmspace::range_test
