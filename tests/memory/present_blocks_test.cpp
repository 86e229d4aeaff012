// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/present_blocks.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::present_blocks_test {
namespace {

using Runs = std::vector<PresentBlocks::Run>;

constexpr std::uint64_t block = std::uint64_t{2} << 20;

PresentBlocksPtr none(std::uint64_t blocks, std::uint64_t blocks_a_slot = 64) {
  auto made = PresentBlocks::none(blocks * block, block, blocks_a_slot * block);
  VMSPACE_EXPECT_OK(made);
  return *made;
}

PresentBlocksPtr with(const PresentBlocksPtr& blocks, std::uint64_t first, std::uint64_t count) {
  auto after = blocks->with({.offset = first * block, .size = count * block});
  VMSPACE_EXPECT_OK(after);
  return *after;
}

TEST(PresentBlocks, BeginsWithNone) {
  const auto blocks = none(200);
  EXPECT_EQ(blocks->present_size(), 0u);
  EXPECT_FALSE(blocks->all());
  EXPECT_EQ(blocks->runs(), Runs{});
  EXPECT_EQ(blocks->slots(), Runs{});
  EXPECT_EQ(blocks->present_after(0, block), 0u);
  EXPECT_EQ(blocks->absent_after(0, 300 * block), 200 * block);
}

TEST(PresentBlocks, RefusesSizesThatDoNotFit) {
  EXPECT_THAT(PresentBlocks::none(8 * block, 3 * 4096, 8 * block), HasError(Errc::bad_alignment));
  EXPECT_THAT(PresentBlocks::none(8 * block, 0, 8 * block), HasError(Errc::bad_alignment));
  EXPECT_THAT(PresentBlocks::none(8 * block, 2048, 8 * block), HasError(Errc::invalid_argument));
  EXPECT_THAT(PresentBlocks::none(8 * block + 4096, block, block), HasError(Errc::misaligned));
  EXPECT_THAT(PresentBlocks::none(8 * block, block, block + 4096), HasError(Errc::misaligned));
  EXPECT_THAT(PresentBlocks::none(0, block, block), HasError(Errc::zero_size));
  EXPECT_THAT(PresentBlocks::none(block, block, 0), HasError(Errc::zero_size));
}

TEST(PresentBlocks, ChangesMakeNewSetsAndRefuseWhatIsSoAlready) {
  const auto before = none(130);
  const auto after = with(before, 63, 66);  // from the last bit of a word into the first of another
  EXPECT_EQ(before->present_size(), 0u);
  EXPECT_EQ(after->present_size(), 66 * block);
  EXPECT_EQ(after->runs(), (Runs{{63 * block, 66 * block}}));
  EXPECT_THAT(after->with({60 * block, 4 * block}), HasError(Errc::bad_state));
  EXPECT_THAT(after->without({128 * block, 2 * block}), HasError(Errc::bad_state));
  const auto less = after->without({64 * block, 64 * block});
  ASSERT_THAT(less, IsOk());
  EXPECT_EQ((*less)->runs(), (Runs{{63 * block, block}, {128 * block, block}}));
  EXPECT_EQ((*less)->present_size(), 2 * block);
}

TEST(PresentBlocks, NeverChangeNotEvenWhenTheyAreMoved) {
  PresentBlocks blocks = *with(none(130), 63, 66);
  const PresentBlocks moved = std::move(blocks);
  EXPECT_EQ(blocks, moved);  // NOLINT(bugprone-use-after-move): defined, and shown here
  EXPECT_EQ(blocks.runs(), (Runs{{63 * block, 66 * block}}));
}

TEST(PresentBlocks, ManyRunsAreAddedAsOneAfterTheOther) {
  const auto before = with(none(200), 5, 1);
  const Runs runs = {{63 * block, 2 * block}, {0, block}, {130 * block, 70 * block}};
  PresentBlocksPtr expected = before;
  for (const PresentBlocks::Run& run : runs)
    expected = *expected->with(run);
  const auto after = before->with(runs);
  VMSPACE_ASSERT_OK(after);
  EXPECT_EQ(**after, *expected);
  EXPECT_EQ((*after)->present_size(), 74 * block);
  EXPECT_EQ(**before->with(Runs{}), *before);
  // The last one has a block that an earlier one has.
  const auto refused = before->with(Runs{{0, block}, {10 * block, block}, {9 * block, 2 * block}});
  ASSERT_THAT(refused, HasError(Errc::bad_state));
  EXPECT_EQ(refused.error().first, Operand::span(10 * block, block));
  EXPECT_EQ(before->runs(), (Runs{{5 * block, block}}));
}

TEST(PresentBlocks, RefusesRunsThatAreNotWholeBlocksOfTheRegion) {
  const auto blocks = none(8);
  constexpr std::uint64_t top = ~std::uint64_t{0};
  EXPECT_THAT(blocks->with({0, 0}), HasError(Errc::zero_size));
  EXPECT_THAT(blocks->with({4096, block}), HasError(Errc::misaligned));
  EXPECT_THAT(blocks->with({0, block + 4096}), HasError(Errc::misaligned));
  EXPECT_THAT(blocks->with({8 * block, block}), HasError(Errc::out_of_bounds));
  EXPECT_THAT(blocks->with({7 * block, 2 * block}), HasError(Errc::out_of_bounds));
  // Offset and size whose sum is past 2^64.
  EXPECT_THAT(blocks->with({block, top - block + 1}), HasError(Errc::out_of_bounds));
  EXPECT_THAT(blocks->with({top - block + 1, block}), HasError(Errc::out_of_bounds));
  EXPECT_EQ(blocks->present_size(), 0u);
}

TEST(PresentBlocks, ASlotIsThereWhileAnyBlockOfItIs) {
  const auto blocks = with(with(none(130), 5, 1), 129, 1);
  EXPECT_EQ(blocks->slots(), (Runs{{0, 64 * block}, {128 * block, 2 * block}}));
  EXPECT_TRUE(with(none(64), 0, 64)->all());
}

// Every answer of every offset against a list of bools.
TEST(PresentBlocks, SaysWhatAListOfBoolsSays) {
  constexpr std::uint64_t count = 200;
  auto blocks = none(count);
  std::vector<bool> model(count);
  std::uint64_t state = 7;
  for (int round = 0; round < 400; ++round) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const std::uint64_t first = (state >> 33) % count;
    const std::uint64_t most = 1 + (state >> 20) % 90;
    std::uint64_t size = 1;
    while (size < most && first + size < count && model[first + size] == model[first])
      ++size;
    const PresentBlocks::Run run{.offset = first * block, .size = size * block};
    const auto after = model[first] ? blocks->without(run) : blocks->with(run);
    ASSERT_THAT(after, IsOk());
    blocks = *after;
    const bool now = !model[first];
    for (std::uint64_t i = 0; i < size; ++i)
      model[first + i] = now;

    Runs runs;
    std::uint64_t present = 0;
    for (std::uint64_t i = 0; i < count; ++i) {
      if (!model[i]) continue;
      present += block;
      if (!runs.empty() && runs.back().offset + runs.back().size == i * block) {
        runs.back().size += block;
      } else {
        runs.push_back({i * block, block});
      }
    }
    ASSERT_EQ(blocks->runs(), runs);
    ASSERT_EQ(blocks->present_size(), present);
    const std::uint64_t at = (state >> 12) % (count * block);
    const std::uint64_t asked = 1 + (state >> 7) % (40 * block);
    std::uint64_t after_at = 0;
    while (after_at < asked && at + after_at < count * block && model[(at + after_at) / block])
      after_at = std::min(asked, after_at + block - (at + after_at) % block);
    ASSERT_EQ(blocks->present_after(at, asked), after_at);
    std::uint64_t gap = 0;
    while (gap < asked && at + gap < count * block && !model[(at + gap) / block])
      gap = std::min(asked, gap + block - (at + gap) % block);
    ASSERT_EQ(blocks->absent_after(at, asked), gap);
    std::uint64_t before_end = 0;
    const std::uint64_t end = at + 1;
    while (before_end < asked && before_end < end && model[(end - before_end - 1) / block])
      before_end = std::min(asked, before_end + (end - before_end - 1) % block + 1);
    ASSERT_EQ(blocks->present_before(end, asked), before_end);
  }
}

}  // namespace
}  // namespace vmspace::present_blocks_test
