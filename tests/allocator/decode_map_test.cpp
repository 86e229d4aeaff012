// SPDX-License-Identifier: Apache-2.0

#include "vmspace/allocator/decode_map.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/testing.hpp"
#include "vmspace/text.hpp"

namespace vmspace::decode_map_test {
namespace {

using testing::IsEmpty;
using Map = DecodeMap<int>;

static_assert(std::is_nothrow_move_constructible_v<Map> && std::is_nothrow_move_assignable_v<Map>);
static_assert(!std::is_copy_constructible_v<Map>);

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

/// Looks at both sides of every border, and compares with a search from end to end.
void expect_found(const std::vector<Range>& ranges) {
  std::vector<Map::Entry> entries;
  for (const Range& range : ranges)
    entries.push_back({range, static_cast<int>(entries.size())});
  const auto map = Map::create(entries);
  ASSERT_TRUE(map) << map.error().message();
  ASSERT_EQ(map->entries().size(), ranges.size());
  std::vector<std::uint64_t> places{0, 1, top, top - 1, std::uint64_t{1} << 63};
  for (const Range& range : ranges) {
    places.insert(places.end(), {range.min() - 1, range.min(), range.min() + 1, range.max() - 1,
                                 range.max(), range.max() + 1});
    places.push_back(range.min() + (range.max() - range.min()) / 2);
  }
  for (const std::uint64_t place : places) {
    const Map::Entry* wanted = nullptr;
    for (const Map::Entry& entry : entries) {
      if (entry.range.contains(place)) wanted = &entry;
    }
    const Map::Entry* const found = map->find(place);
    ASSERT_EQ(found != nullptr, wanted != nullptr) << std::hex << place;
    if (wanted != nullptr) {
      ASSERT_EQ(found->range, wanted->range) << std::hex << place;
      ASSERT_EQ(found->value, wanted->value) << std::hex << place;
    }
  }
}

TEST(DecodeMap, FindsNothingInNothing) {
  const Map none;
  for (const std::uint64_t number : {std::uint64_t{0}, std::uint64_t{1} << 63, top})
    EXPECT_EQ(none.find(number), nullptr);
  EXPECT_THAT(none.entries(), IsEmpty());
  expect_found({});
}

TEST(DecodeMap, FindsOneRangeWhereverItIs) {
  for (const std::uint64_t at : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{0xcf8},
                                 std::uint64_t{1} << 63, top - 1, top}) {
    expect_found({Range::point(at)});
  }
  expect_found({Range::whole_domain()});
  expect_found({Range::of(0, top - 1)});
  expect_found({Range::of(1, top)});
}

TEST(DecodeMap, TellsNeighboursApart) {
  expect_found({Range::point(0), Range::point(1), Range::point(2), Range::point(top)});
  expect_found({Range::of(0, top / 2), Range::of(top / 2 + 1, top)});
  std::vector<Range> ports;
  for (std::uint64_t port = 0; port < 64; ++port)
    ports.push_back(*Range::from_base_size(0x3f8 + port * 8, port % 8 + 1));
  expect_found(ports);
}

TEST(DecodeMap, FindsRangesInClustersFarApart) {
  std::vector<Range> ranges;
  for (const std::uint64_t cluster : {std::uint64_t{0}, std::uint64_t{1} << 40, top - 200}) {
    for (std::uint64_t i = 0; i < 40; ++i)
      ranges.push_back(*Range::from_base_size(cluster + i * 5, i % 5 + 1));
  }
  expect_found(ranges);
}

TEST(DecodeMap, FindsRangesOfAllSizesGivenInAnyOrder) {
  std::mt19937_64 random(1);
  for (const std::size_t count : {2U, 3U, 9U, 100U, 1000U}) {
    std::vector<Range> ranges;
    std::uint64_t at = 0;
    for (std::size_t i = 0; i < count; ++i) {
      at += random() % 3 == 0 ? 0 : random() >> (14 + random() % 50);
      const std::uint64_t size = 1 + (random() >> (14 + random() % 50));
      ranges.push_back(*Range::from_base_size(at, size));
      at += size;
    }
    std::ranges::shuffle(ranges, random);
    expect_found(ranges);
  }
}

TEST(DecodeMap, HoldsAsManyRangesAsItSays) {
  std::vector<Map::Entry> entries;
  for (std::size_t i = 0; i < Map::max_ranges; ++i)
    entries.push_back({Range::point(i * 3), static_cast<int>(i)});
  const auto map = Map::create(entries);
  ASSERT_TRUE(map);
  for (const Map::Entry& entry : entries) {
    const Map::Entry* const found = map->find(entry.range.min());
    ASSERT_NE(found, nullptr);
    ASSERT_EQ(found->value, entry.value);
    ASSERT_EQ(map->find(entry.range.min() + 1), nullptr);
  }
  entries.push_back({Range::point(top), 0});
  EXPECT_THAT(Map::create(entries), HasError(Errc::limit_exceeded));
}

TEST(DecodeMap, RefusesRangesThatOverlapAndNamesThem) {
  const auto map =
      Map::create({{Range::of(0x80, 0x8f), 1}, {Range::of(0, 0xf), 2}, {Range::of(0xf, 0x10), 3}});
  ASSERT_THAT(map, HasError(Errc::overlap));
  EXPECT_EQ(map.error().first, Operand::range(0xf, 0x10));
  EXPECT_EQ(map.error().second, Operand::range(0, 0xf));
  EXPECT_THAT(Map::create({{Range::whole_domain(), 1}, {Range::point(7), 2}}),
              HasError(Errc::overlap));
  EXPECT_THAT(Map::create({{Range::point(7), 1}, {Range::point(7), 1}}), HasError(Errc::overlap));
}

TEST(DecodeMap, TakesTheValuesOfATree) {
  IntervalTree<int> tree;
  ASSERT_TRUE(tree.insert(Range::of(0, 0xff)));
  ASSERT_TRUE(tree.allocate_at(Range::of(0x10, 0x1f), 1));
  ASSERT_TRUE(tree.allocate_at(Range::of(0x20, 0x2f)));  // has no value to be found
  ASSERT_TRUE(tree.allocate_at(Range::of(0x30, 0x3f), 3));
  const auto map = Map::create(tree);
  ASSERT_TRUE(map);
  ASSERT_EQ(map->entries().size(), 2U);
  EXPECT_EQ(map->find(0x1f)->value, 1);
  EXPECT_EQ(map->find(0x20), nullptr);
  EXPECT_EQ(map->find(0x30)->range, Range::of(0x30, 0x3f));
  // The map goes its own way.
  ASSERT_TRUE(tree.free(Range::of(0x10, 0x1f)));
  EXPECT_EQ(map->find(0x10)->value, 1);
}

TEST(DecodeMap, OneThatWasMovedFromIsEmptyAndEntriesStayWhereTheyAre) {
  auto map = *Map::create({{Range::of(0, 9), 1}, {Range::of(20, 29), 2}});
  const Map::Entry* const second = map.find(25);
  Map moved = std::move(map);
  EXPECT_EQ(moved.find(25), second);
  EXPECT_EQ(map.find(25), nullptr);  // NOLINT(bugprone-use-after-move): defined, and shown here
  EXPECT_THAT(map.entries(), IsEmpty());
  map = std::move(moved);
  EXPECT_EQ(map.find(25), second);
  EXPECT_EQ(moved.find(25), nullptr);  // NOLINT(bugprone-use-after-move)
}

TEST(DecodeMap, AssigningToItselfChangesNothing) {
  auto map = *Map::create({{Range::of(0, 9), 1}, {Range::of(20, 29), 2}});
  Map& self = map;
  map = std::move(self);
  EXPECT_EQ(map.entries().size(), 2U);
  ASSERT_NE(map.find(25), nullptr);
  EXPECT_EQ(map.find(25), &map.entries()[1]);
}

TEST(DecodeMap, HoldsValuesThatOnlyMove) {
  using Owner = DecodeMap<std::unique_ptr<int>>;
  std::vector<Owner::Entry> entries;
  entries.push_back({Range::point(9), std::make_unique<int>(9)});
  entries.push_back({Range::point(3), std::make_unique<int>(3)});
  const auto map = Owner::create(std::move(entries));
  ASSERT_TRUE(map);
  EXPECT_EQ(*map->find(3)->value, 3);
  EXPECT_EQ(*map->find(9)->value, 9);
}

}  // namespace
}  // namespace vmspace::decode_map_test
