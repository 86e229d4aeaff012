// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/detail/translation_table.hpp"

#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace vmspace::detail::translation_table_test {
namespace {

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

TranslationEntry entry(std::uint64_t first, std::uint64_t size) {
  return {.first = first, .size = size, .host = nullptr, .dirty = nullptr};
}

/// Looks at both sides of every border, and compares with a search from end to end.
void expect_found(const std::vector<TranslationEntry>& entries) {
  const TranslationTable table(entries);
  const Translator translator = table.translator();
  std::vector<std::uint64_t> places{0, 1, top, top - 1, std::uint64_t{1} << 63};
  for (const TranslationEntry& one : entries) {
    for (const std::uint64_t delta : {std::uint64_t{0}, std::uint64_t{7}, one.size / 2}) {
      places.push_back(one.first + delta);
      places.push_back(one.first - delta - 1);
      places.push_back(one.first + one.size - delta - 1);
      places.push_back(one.first + one.size + delta);
    }
  }
  for (const std::uint64_t place : places) {
    for (const std::uint64_t size : {std::uint64_t{1}, std::uint64_t{8}, page, page + 1, top}) {
      const TranslationEntry* wanted = nullptr;
      for (const TranslationEntry& one : entries) {
        const bool inside = place >= one.first && place - one.first < one.size;
        if (inside && one.size - (place - one.first) >= size) wanted = &one;
      }
      const TranslationEntry* any = translator.find_any(place, size);
      ASSERT_EQ(any != nullptr, wanted != nullptr) << std::hex << place << " " << size;
      if (size <= min_region_size) {
        ASSERT_EQ(translator.find(place, size), any);
      }
      if (wanted != nullptr) {
        ASSERT_EQ(any->first, wanted->first);
      }
    }
  }
}

TEST(TranslationTable, FindsNothingInNothing) {
  expect_found({});
  EXPECT_EQ(TranslationTable::empty().find(0, 1), nullptr);
  EXPECT_EQ(TranslationTable::empty().find(top, 1), nullptr);
}

TEST(TranslationTable, FindsOneRegionWhereverItIs) {
  for (const std::uint64_t first :
       {std::uint64_t{0}, page, std::uint64_t{0xc000'0000}, top - page + 1, top - 7 * page + 1}) {
    expect_found({entry(first, page)});
  }
  expect_found({entry(0, std::uint64_t{1} << 63)});
  expect_found({entry(std::uint64_t{1} << 63, std::uint64_t{1} << 63)});
  expect_found(
      {entry(0, std::uint64_t{1} << 63), entry(std::uint64_t{1} << 63, std::uint64_t{1} << 63)});
}

TEST(TranslationTable, FindsALastRegionForWhichThereIsJustNoSlot) {
  // Adjacent pages, so that slots of two pages would cost a step; and one as many pages away as there
  // are slots, or one fewer.
  for (const std::uint64_t last :
       {DecodeBlock<TranslationEntry>::slots - 1, DecodeBlock<TranslationEntry>::slots}) {
    std::vector<TranslationEntry> entries;
    for (std::uint64_t i = 0; i < 5; ++i)
      entries.push_back(entry(i * page, page));
    entries.push_back(entry(last * page, page));
    expect_found(entries);
  }
}

TEST(TranslationTable, RefusesAddressesThatShareASlotWithARegion) {
  // 16 MiB apart in slots of a page; and in the coarsest slots of two regions.
  std::vector<TranslationEntry> entries;
  for (std::uint64_t i = 0; i < 4096; i += 8)
    entries.push_back(entry(i * page, 4 * page));
  for (const auto& regions : {entries, std::vector{entry(0, page), entry(1 << 30, page)}}) {
    const TranslationTable table(regions);
    const std::uint64_t slot = std::uint64_t{1} << (table.translator().shape % 64);
    for (const TranslationEntry& one : regions) {
      ASSERT_NE(table.translator().find(one.first, 8), nullptr);
      for (std::uint64_t lap = DecodeBlock<TranslationEntry>::slots * slot; lap != 0; lap *= 2) {
        ASSERT_EQ(table.translator().find(one.first + lap, 8), nullptr) << std::hex << lap;
      }
    }
  }
}

TEST(TranslationTable, TakesNoExtraStepForLayoutsOfVmms) {
  const TranslationTable table(std::vector{entry(0, 0xc000'0000), entry(0x1'0000'0000, 1 << 30)});
  EXPECT_EQ(table.translator().shape / 64, 0U);
  std::vector<TranslationEntry> entries;
  for (std::uint64_t i = 0; i < 512; ++i)
    entries.push_back(entry(i * (18 << 20), 2 << 20));
  EXPECT_EQ(TranslationTable(entries).translator().shape / 64, 0U);
  expect_found(entries);
}

TEST(TranslationTable, FindsRegionsInClustersFarApart) {
  std::vector<TranslationEntry> entries;
  for (const std::uint64_t cluster :
       {std::uint64_t{0}, std::uint64_t{1} << 40,
        (std::uint64_t{1} << 46) - (std::uint64_t{1} << 30), top - 40 * page + 1}) {
    for (std::uint64_t i = 0; i < 20; ++i) {
      // Pages with and without a gap; at the top, up to the last byte.
      entries.push_back(entry(cluster + i * 2 * page, i % 3 == 0 || i == 19 ? 2 * page : page));
    }
  }
  expect_found(entries);
  // Three of the clusters begin in one slot: 60 regions, six steps.
  EXPECT_EQ(TranslationTable(entries).translator().shape / 64, 5U);
}

TEST(TranslationTable, FindsAllOf512Irregular) {
  std::vector<TranslationEntry> entries;
  std::uint64_t first = 0;
  for (std::uint64_t i = 0; i < 512; ++i) {
    const std::uint64_t size = page << (i * 7 % 20);
    entries.push_back(entry(first, size));
    first += size + (i % 5 == 0 ? 0 : page << (i * 11 % 23));
  }
  expect_found(entries);
}

}  // namespace
}  // namespace vmspace::detail::translation_table_test
