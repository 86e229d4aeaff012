// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/snapshot_reader.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_writer.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/format_support.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::snapshot_reader_test {
namespace {

using namespace test;

TEST(SnapshotReader, GivesTheRegionsAndTheirContents) {
  const GuestMemory memory = sample(MemorySource::anon);
  for (const bool checksums : {false, true}) {
    const TempFile file;
    const auto saved = save_snapshot(memory, file.fd(), {.checksums = checksums});
    ASSERT_THAT(saved, IsOk());
    auto reader = SnapshotReader::open(file.fd());
    ASSERT_THAT(reader, IsOk());
    EXPECT_EQ(reader->id(), saved->id);
    EXPECT_FALSE(reader->parent());
    EXPECT_EQ(reader->has_checksums(), checksums);
    ASSERT_EQ(reader->regions().size(), 2U);
    EXPECT_EQ(reader->regions()[1].base, GuestAddress(high));
    EXPECT_EQ(reader->regions()[1].size, 300 * page);
    for (const SnapshotRegion& region : reader->regions()) {
      std::vector<std::byte> bytes(region.size);
      VMSPACE_ASSERT_OK(reader->read(region.base, bytes));
      EXPECT_EQ(bytes, contents(memory, region.base.value(), region.size));
    }
  }
}

TEST(SnapshotReader, FindsWhereDataAre) {
  const GuestMemory memory = sample(MemorySource::anon);
  const TempFile base;
  const auto full = save_snapshot(memory, base.fd(), {.checksums = true});
  ASSERT_THAT(full, IsOk());
  const TempFile file;
  auto writer = SnapshotWriter::create(file.fd(), memory, {.parent = full->id});
  ASSERT_THAT(writer, IsOk());
  VMSPACE_ASSERT_OK(writer->write_zeros({GuestAddress(low + 4 * page), page}));
  VMSPACE_ASSERT_OK(writer->write(GuestAddress(low + 6 * page), pattern(page)));
  VMSPACE_ASSERT_OK(writer->write(GuestAddress(low + 7 * page), pattern(page)));
  VMSPACE_ASSERT_OK(writer->finish());
  const int parent = base.fd();
  auto reader = SnapshotReader::open(file.fd(), {&parent, 1});
  ASSERT_THAT(reader, IsOk());
  const auto next = [&](std::uint64_t from, std::uint64_t to) {
    return *reader->next_data({GuestAddress(low + from * page), (to - from) * page});
  };
  const auto is = [](std::uint64_t from, std::uint64_t to) {
    return GuestRange{GuestAddress(low + from * page), (to - from) * page};
  };
  EXPECT_EQ(next(0, 64), is(3, 4));
  EXPECT_EQ(next(4, 64), is(5, 8));  // of the parent, and two records
  EXPECT_EQ(next(6, 7), is(6, 7));
  EXPECT_EQ(next(8, 64), is(64, 64));
  EXPECT_EQ(next(4, 5), is(5, 5));
  EXPECT_EQ(next(9, 9), is(9, 9));
}

TEST(SnapshotReader, RefusesWhatIsNotPagesOfOneRegion) {
  const TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(guest({{low, 4 * page}, {low + 4 * page, 4 * page}}), file.fd()));
  auto reader = SnapshotReader::open(file.fd());
  ASSERT_THAT(reader, IsOk());
  std::vector<std::byte> bytes(8 * page);
  const auto pages = [&](std::size_t size) { return std::span(bytes).first(size); };
  EXPECT_THAT(reader->read(GuestAddress(low + 1), pages(page)), HasError(Errc::misaligned));
  EXPECT_THAT(reader->read(GuestAddress(low), pages(1)), HasError(Errc::misaligned));
  EXPECT_THAT(reader->read(GuestAddress(low), bytes), HasError(Errc::out_of_bounds));
  for (const std::uint64_t at : {std::uint64_t{0}, low + 8 * page, last_page}) {
    EXPECT_THAT(reader->read(GuestAddress(at), pages(page)), HasError(Errc::out_of_bounds));
    EXPECT_THAT(reader->next_data({GuestAddress(at), page}), HasError(Errc::out_of_bounds));
  }
  EXPECT_THAT(reader->next_data({GuestAddress(low), last_page}), HasError(Errc::out_of_bounds));
  VMSPACE_EXPECT_OK(reader->read(GuestAddress(low + 4 * page), pages(4 * page)));
}

TEST(SnapshotReader, HoldsItsFilesWhateverBecomesOfTheDescriptors) {
  const GuestMemory memory = sample(MemorySource::anon);
  std::optional<SnapshotReader> copy;
  {
    const TempFile file;
    VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd()));
    auto reader = SnapshotReader::open(file.fd());
    ASSERT_THAT(reader, IsOk());
    copy = *reader;
  }
  std::vector<std::byte> bytes(64 * page);
  VMSPACE_ASSERT_OK(copy->read(GuestAddress(low), bytes));
  EXPECT_EQ(bytes, contents(memory, low, 64 * page));
}

TEST(SnapshotReader, OfAFileThatShrinksGivesAnError) {
  const GuestMemory memory = sample(MemorySource::anon);
  const TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd()));
  auto reader = SnapshotReader::open(file.fd());
  ASSERT_THAT(reader, IsOk());
  ASSERT_EQ(ftruncate(file.fd(), 0), 0);
  std::vector<std::byte> bytes(page);
  EXPECT_THAT(reader->read(GuestAddress(low), bytes), HasError(Errc::corrupt));
  EXPECT_THAT(reader->next_data({GuestAddress(low), page}), HasError(Errc::corrupt));
}

TEST(SnapshotReader, ChecksPagesThatAreStoredAndThoseThatAreNot) {
  const GuestMemory memory = sample(MemorySource::anon);
  const TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd(), {.checksums = true}));
  auto reader = SnapshotReader::open(file.fd());
  ASSERT_THAT(reader, IsOk());
  const auto at = static_cast<off_t>(reader->regions()[0].offset);
  const auto is_corrupt = [&](std::uint64_t number) {
    std::vector<std::byte> bytes(page);
    const auto read = reader->read(GuestAddress(low + number * page), bytes);
    return !read && read.error().code == Errc::corrupt;
  };
  EXPECT_FALSE(is_corrupt(3));
  EXPECT_FALSE(is_corrupt(8));
  // A page that was stored is lost, one that was not has something.
  file.write(std::vector<std::byte>(page), at + static_cast<off_t>(3 * page));
  file.write(std::vector<std::byte>{std::byte{1}}, at + static_cast<off_t>(8 * page));
  EXPECT_TRUE(is_corrupt(3));
  EXPECT_FALSE(is_corrupt(4));
  EXPECT_TRUE(is_corrupt(8));
  EXPECT_THAT(restore_snapshot(sample(MemorySource::anon), *reader), HasError(Errc::corrupt));
}

TEST(SnapshotReader, ReadsFromSeveralThreads) {
  const GuestMemory memory = sample(MemorySource::anon);
  const TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd(), {.checksums = true}));
  auto reader = SnapshotReader::open(file.fd());
  ASSERT_THAT(reader, IsOk());
  const auto expected = contents(memory, low, 64 * page);
  std::atomic<int> good = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      std::vector<std::byte> bytes(64 * page);
      if (reader->read(GuestAddress(low), bytes) && bytes == expected) ++good;
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(good, 4);
}

/// The most memory that this process has had resident, in KiB.
long peak_kib() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

TEST(SnapshotReader, OfHolesWithoutEndTakesLittleMemoryAndTime) {
  constexpr std::uint64_t size = std::uint64_t{64} << 40;
  const std::vector<SnapshotRegion> regions{
      {.base = GuestAddress(low), .size = size, .offset = 0, .protection = Protection::read_write}};
  const long before = peak_kib();
  for (const bool checksums : {false, true}) {
    const TempFile base;
    auto writer = SnapshotWriter::create(base.fd(), regions, {.checksums = checksums});
    ASSERT_THAT(writer, IsOk());
    VMSPACE_ASSERT_OK(writer->write(GuestAddress(low + size / 2), pattern(page)));
    const auto id = writer->finish();
    ASSERT_THAT(id, IsOk());
    EXPECT_LT(base.status().st_blocks, 64);
    const TempFile changes;
    auto differential =
        SnapshotWriter::create(changes.fd(), regions, {.parent = *id, .checksums = checksums});
    VMSPACE_ASSERT_OK(differential->write_zeros({GuestAddress(low), size / 4}));
    VMSPACE_ASSERT_OK(differential->finish());
    const int parent = base.fd();
    auto reader = SnapshotReader::open(changes.fd(), {&parent, 1});
    ASSERT_THAT(reader, IsOk());
    EXPECT_EQ(*reader->next_data({GuestAddress(low), size}),
              (GuestRange{GuestAddress(low + size / 2), page}));
    EXPECT_EQ(reader->next_data({GuestAddress(low + size / 2 + page), size / 2 - page})->size, 0U);
    const TempFile merged;
    VMSPACE_EXPECT_OK(merge_snapshots(*reader, merged.fd(), {.checksums = checksums}));
    EXPECT_LT(merged.status().st_blocks, 64);
  }
  EXPECT_LT(peak_kib() - before, 64 * 1024);
}

}  // namespace
}  // namespace vmspace::snapshot_reader_test
