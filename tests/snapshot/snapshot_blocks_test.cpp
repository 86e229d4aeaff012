// SPDX-License-Identifier: Apache-2.0
//
// Snapshots of regions that are present in parts.

#include <algorithm>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/snapshot_support.hpp"

namespace vmspace::test::snapshot_blocks_test {
namespace {

using test::at;

/// Eight pages that are blocks, of which three are present in `memory`; and one region behind.
struct BlocksSnapshot : ::testing::Test {
  MemoryRegionPtr all = test::region({.base = low, .size = 8 * page});
  MemoryRegionPtr region = with_blocks({{1 * page, 2 * page}, {5 * page, page}});
  GuestMemory memory =
      *GuestMemory::from_regions({region, test::region({.base = high, .size = 4 * page})});

  [[nodiscard]] MemoryRegionPtr with_blocks(const std::vector<PresentBlocks::Run>& runs) const {
    auto blocks = *PresentBlocks::none(8 * page, page, 4 * page);
    for (const auto& run : runs)
      blocks = *blocks->with(run);
    return *all->with_blocks(blocks);
  }
  static GuestAddress in(std::uint64_t block) { return at(low + block * page); }

  void SetUp() override {
    ASSERT_THAT(memory.fill({in(1), 2 * page}, std::byte{1}), IsOk());
    ASSERT_THAT(memory.fill({in(5), page}, std::byte{2}), IsOk());
    all->host_base()[3 * page] = std::byte{3};  // as a guest that writes to what it was not given
  }
};

TEST_F(BlocksSnapshot, HasWhatIsPresentAndZerosForTheRest) {
  for (const bool sparse : {true, false}) {
    const TempFile file;
    const auto stored = save_snapshot(memory, file.fd(), {.sparse = sparse});
    ASSERT_THAT(stored, IsOk());
    EXPECT_EQ(stored->stored, sparse ? 3 * page : 12 * page);
    const GuestMemory other =
        guest({{.base = low, .size = 8 * page}, {.base = high, .size = 4 * page}});
    ASSERT_THAT(other.fill({in(0), 8 * page}, std::byte{9}), IsOk());
    ASSERT_THAT(restore_snapshot(other, file.fd()), IsOk());
    std::vector<std::byte> expected(8 * page);
    for (const std::uint64_t block : {1u, 2u, 5u}) {
      std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(block * page), page,
                  block == 5 ? std::byte{2} : std::byte{1});
    }
    EXPECT_EQ(contents(other, low, 8 * page), expected);
  }
}

TEST_F(BlocksSnapshot, RestoresWhatIsPresentAndTouchesNothingElse) {
  for (const bool sparse : {true, false}) {
    const TempFile file;
    ASSERT_THAT(save_snapshot(memory, file.fd(), {.sparse = sparse}), IsOk());
    ASSERT_THAT(memory.fill({in(1), 2 * page}, std::byte{7}), IsOk());
    ASSERT_THAT(restore_snapshot(memory, file.fd()), IsOk());
    EXPECT_THAT(memory.read<std::uint8_t>(in(2)), IsOkAndHolds(1));
    EXPECT_EQ(all->host_base()[3 * page], std::byte{3});
  }
}

TEST_F(BlocksSnapshot, RefusesContentsOfBlocksThatAreNotPluggedBeforeItWrites) {
  const TempFile file;
  ASSERT_THAT(save_snapshot(memory, file.fd()), IsOk());
  const auto fewer = memory.with_changes(std::vector{region}, {with_blocks({{page, 2 * page}})});
  ASSERT_THAT(fewer, IsOk());
  ASSERT_THAT(memory.fill({in(1), page}, std::byte{7}), IsOk());
  EXPECT_THAT(restore_snapshot(*fewer, file.fd()), HasError(Errc::bad_state));
  EXPECT_THAT(memory.read<std::uint8_t>(in(1)), IsOkAndHolds(7));
}

TEST_F(BlocksSnapshot, ADifferentialOneHasZerosForWhatWasUnpluggedSince) {
  const TempFile full;
  const auto parent = save_snapshot(memory, full.fd());
  ASSERT_THAT(parent, IsOk());
  const auto fewer = memory.with_changes(std::vector{region}, {with_blocks({{page, 2 * page}})});
  ASSERT_THAT(fewer, IsOk());
  ASSERT_THAT(fewer->fill({in(2), page}, std::byte{7}), IsOk());
  const std::vector<GuestRange> only_written{{in(2), page}};
  const std::vector<GuestRange> all_of_it{{in(2), 5 * page}};
  for (const auto& changes : {only_written, all_of_it}) {
    for (const bool sparse : {true, false}) {
      const TempFile difference;
      const auto saved = save_snapshot(
          *fewer, difference.fd(),
          {.sparse = sparse, .changes = SnapshotChanges{.parent = parent->id, .ranges = changes}});
      ASSERT_THAT(saved, IsOk());
      EXPECT_EQ(saved->stored, page);
      auto reader = SnapshotReader::open(difference.fd(), {{full.fd()}});
      ASSERT_THAT(reader, IsOk());
      std::vector<std::byte> unplugged(page, std::byte{9});
      ASSERT_THAT(reader->read(in(5), unplugged), IsOk());
      EXPECT_EQ(unplugged, std::vector<std::byte>(page));
      EXPECT_THAT(restore_snapshot(*fewer, *reader), IsOk());
      EXPECT_THAT(fewer->read<std::uint8_t>(in(2)), IsOkAndHolds(7));
    }
  }
}

TEST_F(BlocksSnapshot, ProgressEndsAtTheSizeOfAllRegions) {
  const TempFile file;
  std::uint64_t done = 0;
  std::uint64_t total = 0;
  const auto report = [&](std::uint64_t now, std::uint64_t all_of_it) {
    done = now;
    total = all_of_it;
  };
  ASSERT_THAT(save_snapshot(memory, file.fd(), {.progress = report}), IsOk());
  EXPECT_EQ(total, 12 * page);
  EXPECT_EQ(done, total);
  done = total = 0;
  ASSERT_THAT(restore_snapshot(memory, file.fd(), report), IsOk());
  EXPECT_EQ(total, 12 * page);
  EXPECT_EQ(done, total);
}

}  // namespace
}  // namespace vmspace::test::snapshot_blocks_test
