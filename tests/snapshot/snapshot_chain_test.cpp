// SPDX-License-Identifier: Apache-2.0
//
// Differential snapshots, and chains of them.

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/snapshot/snapshot_writer.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/format_support.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::snapshot_chain_test {
namespace {

using namespace test;
using ::testing::HasSubstr;

/// A guest that is saved in full, changed and saved again, twice.
struct SnapshotChain : ::testing::Test {
  GuestMemory memory = sample(MemorySource::shmem);
  TempFile full;
  TempFile first;
  TempFile second;
  SavedSnapshot full_saved;
  SavedSnapshot first_saved;
  SavedSnapshot second_saved;

  SavedSnapshot save_changes(const TempFile& file, const SnapshotId& parent, bool checksums) const {
    const auto written = harvest_dirty(memory);
    EXPECT_THAT(written, IsOk());
    const auto saved = save_snapshot(
        memory, file.fd(),
        {.changes = SnapshotChanges{.parent = parent, .ranges = *written}, .checksums = checksums});
    EXPECT_THAT(saved, IsOk());
    return *saved;
  }

  void save_all(bool checksums) {
    VMSPACE_ASSERT_OK(enable_dirty_tracking(memory));
    full_saved = *save_snapshot(memory, full.fd(), {.checksums = checksums});
    ASSERT_TRUE(memory.write_slice(GuestAddress(low + 3 * page), pattern(page, 3)));
    ASSERT_TRUE(memory.write_slice(GuestAddress(low + 9 * page), pattern(3 * page, 4)));
    ASSERT_TRUE(memory.fill({GuestAddress(high), page}, std::byte{0}));
    first_saved = save_changes(first, full_saved.id, checksums);
    ASSERT_TRUE(memory.write_slice(GuestAddress(low + 10 * page), pattern(page, 5)));
    ASSERT_TRUE(memory.fill({GuestAddress(low + 3 * page), page}, std::byte{0}));
    ASSERT_TRUE(memory.write_slice(GuestAddress(high + 150 * page), pattern(2 * page, 6)));
    second_saved = save_changes(second, first_saved.id, checksums);
  }

  void SetUp() override { save_all(false); }

  [[nodiscard]] static GuestMemory other() {
    GuestMemory result = guest({{low, 64 * page}, {high, 300 * page}});
    EXPECT_TRUE(result.fill({GuestAddress(low), 64 * page}, std::byte{0xee}));
    EXPECT_TRUE(result.fill({GuestAddress(high + 50 * page), page}, std::byte{0xee}));
    return result;
  }
};

TEST_F(SnapshotChain, IsRestoredWhateverTheOrderOfItsParents) {
  EXPECT_EQ(first_saved.stored, 4 * page);
  EXPECT_EQ(second_saved.stored, 3 * page);
  for (const auto& parents : {std::vector{full.fd(), first.fd()}, {first.fd(), full.fd()}}) {
    const auto reader = SnapshotReader::open(second.fd(), parents);
    ASSERT_THAT(reader, IsOk());
    EXPECT_EQ(reader->id(), second_saved.id);
    EXPECT_EQ(reader->parent(), first_saved.id);
    const GuestMemory restored = other();
    VMSPACE_ASSERT_OK(restore_snapshot(restored, *reader));
    expect_same(memory, restored);
  }
}

TEST_F(SnapshotChain, HoldsOnlyWhatHasChanged) {
  EXPECT_LT(first.status().st_size, static_cast<off_t>(5 * page));
  EXPECT_LT(second.status().st_size, static_cast<off_t>(4 * page));
}

TEST_F(SnapshotChain, IsMergedToOneThatStandsAlone) {
  const auto reader = SnapshotReader::open(second.fd(), std::array{full.fd(), first.fd()});
  ASSERT_THAT(reader, IsOk());
  for (const bool sparse : {true, false}) {
    const TempFile merged;
    const auto saved = merge_snapshots(*reader, merged.fd(), {.sparse = sparse, .checksums = true});
    ASSERT_THAT(saved, IsOk());
    EXPECT_NE(saved->id, second_saved.id);
    EXPECT_EQ(saved->stored, sparse ? 8 * page : 364 * page);
    const auto mapped = map_snapshot(merged.fd());
    ASSERT_THAT(mapped, IsOk());
    expect_same(memory, *mapped);
  }
}

TEST_F(SnapshotChain, DoesNotOverwriteItselfWhileItIsMerged) {
  const auto reader = SnapshotReader::open(first.fd(), std::array{full.fd()});
  ASSERT_THAT(reader, IsOk());
  for (const TempFile* const own : {&full, &first})
    EXPECT_THAT(merge_snapshots(*reader, own->fd()), HasError(Errc::invalid_argument));
  VMSPACE_EXPECT_OK(SnapshotReader::open(first.fd(), std::array{full.fd()}));
}

TEST_F(SnapshotChain, DoesNotOverwriteItsParent) {
  const SaveOptions options{.changes = SnapshotChanges{first_saved.id, {}}};
  EXPECT_THAT(save_snapshot(memory, first.fd(), options), HasError(Errc::invalid_argument));
  VMSPACE_EXPECT_OK(SnapshotReader::open(first.fd(), std::array{full.fd()}));
  // Another file can be written over, also where it can't be read.
  const std::string path = "/proc/self/fd/" + std::to_string(second.fd());
  const OwnedFd write_only(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  VMSPACE_EXPECT_OK(save_snapshot(memory, write_only.get(), options));
}

TEST_F(SnapshotChain, NamesTheParentThatIsMissing) {
  const auto none = SnapshotReader::open(first.fd());
  ASSERT_THAT(none, HasError(Errc::not_found));
  EXPECT_THAT(none.error().message(), HasSubstr(to_text(full_saved.id)));
  // One of another chain, and one further up.
  TempFile stranger;
  VMSPACE_ASSERT_OK(save_snapshot(memory, stranger.fd()));
  const auto wrong = SnapshotReader::open(first.fd(), std::array{stranger.fd()});
  ASSERT_THAT(wrong, HasError(Errc::not_found));
  EXPECT_THAT(wrong.error().message(), HasSubstr(to_text(full_saved.id)));
  const auto gap = SnapshotReader::open(second.fd(), std::array{full.fd()});
  ASSERT_THAT(gap, HasError(Errc::not_found));
  EXPECT_THAT(gap.error().message(), HasSubstr(to_text(first_saved.id)));
  EXPECT_THAT(restore_snapshot(memory, first.fd()), HasError(Errc::not_found));
}

TEST_F(SnapshotChain, ThatLeadsBackToItselfIsCorrupt) {
  // The first one names the second as its parent.
  auto bytes = first.read(static_cast<std::size_t>(first.status().st_size));
  std::ranges::copy(std::as_bytes(std::span(second_saved.id.bytes)), bytes.begin() + 48);
  mend_head(bytes);
  first.write(bytes);
  const auto loop = SnapshotReader::open(second.fd(), std::array{full.fd(), first.fd()});
  ASSERT_THAT(loop, HasError(Errc::corrupt));
  EXPECT_THAT(loop.error().message(), HasSubstr(to_text(second_saved.id)));
  // And itself.
  std::ranges::copy(std::as_bytes(std::span(first_saved.id.bytes)), bytes.begin() + 48);
  mend_head(bytes);
  first.write(bytes);
  EXPECT_THAT(SnapshotReader::open(first.fd(), std::array{first.fd()}), HasError(Errc::corrupt));
}

TEST_F(SnapshotChain, CantBeMappedOrHaveAParentWithoutAnId) {
  EXPECT_THAT(map_snapshot(first.fd()), HasError(Errc::invalid_argument));
  const TempFile file;
  const auto before = pattern(page);
  file.write(before);
  EXPECT_THAT(save_snapshot(memory, file.fd(), {.changes = SnapshotChanges{}}),
              HasError(Errc::invalid_argument));
  EXPECT_EQ(file.read(page), before);
}

TEST_F(SnapshotChain, RefusesChangesOutsideOfTheMemory) {
  const TempFile file;
  const auto before = pattern(page);
  file.write(before);
  for (const GuestRange range : {GuestRange{GuestAddress(0), page},
                                 {GuestAddress(low), 65 * page},
                                 {GuestAddress(high + 300 * page), 1},
                                 {GuestAddress(high), ~std::uint64_t{0}},
                                 {GuestAddress(~std::uint64_t{0}), 2}}) {
    EXPECT_THAT(
        save_snapshot(memory, file.fd(), {.changes = SnapshotChanges{full_saved.id, {&range, 1}}}),
        HasError(Errc::out_of_bounds));
  }
  EXPECT_EQ(file.read(page), before);
}

TEST_F(SnapshotChain, TakesChangesInAnyFormAndOrder) {
  ASSERT_TRUE(memory.write_slice(GuestAddress(low + 20 * page), pattern(2 * page, 7)));
  const std::vector<GuestRange> ranges{{GuestAddress(low + 21 * page + 5), 1},
                                       {GuestAddress(low + 20 * page + 4095), 2},
                                       {GuestAddress(low + 21 * page), page},
                                       {GuestAddress(low), 0}};
  const TempFile third;
  const auto saved =
      save_snapshot(memory, third.fd(), {.changes = SnapshotChanges{second_saved.id, ranges}});
  ASSERT_THAT(saved, IsOk());
  EXPECT_EQ(saved->stored, 2 * page);
  const auto reader =
      SnapshotReader::open(third.fd(), std::array{full.fd(), first.fd(), second.fd()});
  ASSERT_THAT(reader, IsOk());
  const GuestMemory restored = other();
  VMSPACE_ASSERT_OK(restore_snapshot(restored, *reader));
  expect_same(memory, restored);
}

TEST_F(SnapshotChain, OfNoChangesIsItsParent) {
  const TempFile third;
  VMSPACE_ASSERT_OK(
      save_snapshot(memory, third.fd(), {.changes = SnapshotChanges{second_saved.id, {}}}));
  const auto reader =
      SnapshotReader::open(third.fd(), std::array{full.fd(), first.fd(), second.fd()});
  ASSERT_THAT(reader, IsOk());
  const GuestMemory restored = other();
  VMSPACE_ASSERT_OK(restore_snapshot(restored, *reader));
  expect_same(memory, restored);
}

TEST_F(SnapshotChain, ChecksItsContentsWhereItHasChecksums) {
  save_all(true);
  const auto open = [&] {
    return SnapshotReader::open(second.fd(), std::array{full.fd(), first.fd()});
  };
  ASSERT_THAT(open(), IsOk());
  EXPECT_TRUE(open()->has_checksums());
  const GuestMemory restored = other();
  VMSPACE_ASSERT_OK(restore_snapshot(restored, *open()));
  expect_same(memory, restored);
  // A byte of each page that each file still contributes.
  const auto flip = [](const TempFile& file, off_t at) {
    auto byte = file.read(1, at);
    byte[0] ^= std::byte{1};
    file.write(byte, at);
  };
  const auto base = SnapshotReader::open(full.fd());
  ASSERT_THAT(base, IsOk());
  const auto in_full = static_cast<off_t>(base->regions()[1].offset + 299 * page + 17);
  const auto in_second = static_cast<off_t>(second.status().st_size - 64 - 3 * 32 - 32 - 100);
  for (const auto& [file, at] : {std::pair{&full, in_full}, {&second, in_second}}) {
    flip(*file, at);
    EXPECT_THAT(restore_snapshot(restored, *open()), HasError(Errc::corrupt));
    flip(*file, at);
  }
  VMSPACE_EXPECT_OK(restore_snapshot(restored, *open()));
}

}  // namespace
}  // namespace vmspace::snapshot_chain_test
