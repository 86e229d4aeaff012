// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/snapshot_writer.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/snapshot_support.hpp"

namespace vmspace::snapshot_writer_test {
namespace {

using namespace test;

/// Pages of a guest in an order like that of faults.
std::vector<std::uint64_t> shuffled(std::uint64_t count) {
  std::vector<std::uint64_t> pages(count);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), std::mt19937_64(1));
  return pages;
}

TEST(SnapshotWriter, TakesPagesInAnyOrder) {
  const GuestMemory memory = guest({{low, 64 * page}});
  ASSERT_TRUE(memory.write_slice(GuestAddress(low), pattern(64 * page)));
  const TempFile base;
  const auto base_id = save_snapshot(guest({{low, 64 * page}}), base.fd());
  ASSERT_THAT(base_id, IsOk());
  for (const bool is_differential : {false, true}) {
    for (const bool checksums : {false, true}) {
      const TempFile file;
      SnapshotWriterOptions options{.parent = {}, .checksums = checksums};
      if (is_differential) options.parent = base_id->id;
      auto writer = SnapshotWriter::create(file.fd(), memory, options);
      ASSERT_THAT(writer, IsOk());
      for (const std::uint64_t i : shuffled(64)) {
        const GuestAddress at(low + i * page);
        VMSPACE_ASSERT_OK(writer->write(at, contents(memory, at.value(), page)));
      }
      EXPECT_EQ(writer->stored(), 64 * page);
      const auto id = writer->finish();
      ASSERT_THAT(id, IsOk());
      const int parent = base.fd();
      auto reader = SnapshotReader::open(file.fd(), {&parent, 1});
      ASSERT_THAT(reader, IsOk());
      EXPECT_EQ(reader->id(), *id);
      std::vector<std::byte> bytes(64 * page);
      VMSPACE_ASSERT_OK(reader->read(GuestAddress(low), bytes));
      EXPECT_EQ(bytes, contents(memory, low, 64 * page));
    }
  }
}

TEST(SnapshotWriter, GivesEverySnapshotAnIdOfItsOwn) {
  const TempFile file;
  const auto one = SnapshotWriter::create(file.fd(), GuestMemory())->finish();
  const auto two = SnapshotWriter::create(file.fd(), GuestMemory())->finish();
  ASSERT_THAT(one, IsOk());
  EXPECT_TRUE(*one);
  EXPECT_NE(*one, *two);
}

TEST(SnapshotWriter, LeavesNoSnapshotUntilItIsFinished) {
  const GuestMemory memory = sample(MemorySource::anon);
  const TempFile base;
  const auto full = save_snapshot(memory, base.fd());
  ASSERT_THAT(full, IsOk());
  for (const auto& parent : {std::optional<SnapshotId>{}, std::optional{full->id}}) {
    const TempFile file;
    VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd()));
    {
      auto writer = SnapshotWriter::create(file.fd(), memory, {.parent = parent});
      ASSERT_THAT(writer, IsOk());
      EXPECT_THAT(inspect_snapshot(file.fd()), IsOk()) << "nothing was written yet";
      VMSPACE_ASSERT_OK(writer->write(GuestAddress(low), pattern(32 * page)));
      EXPECT_THAT(inspect_snapshot(file.fd()), HasError(Errc::corrupt));
    }
    EXPECT_THAT(inspect_snapshot(file.fd()), HasError(Errc::corrupt));
  }
}

TEST(SnapshotWriter, RefusesWhatIsNotPagesOfOneRegionAndGoesOn) {
  const GuestMemory memory = guest({{low, 4 * page}, {low + 4 * page, 4 * page}});
  const TempFile file;
  auto writer = SnapshotWriter::create(file.fd(), memory);
  ASSERT_THAT(writer, IsOk());
  const auto bytes = pattern(8 * page);
  const auto pages = [&](std::size_t size) { return std::span(bytes).first(size); };
  EXPECT_THAT(writer->write(GuestAddress(low + 1), pages(page)), HasError(Errc::misaligned));
  EXPECT_THAT(writer->write(GuestAddress(low), pages(page + 1)), HasError(Errc::misaligned));
  for (const std::uint64_t at : {std::uint64_t{0}, low + 8 * page, last_page})
    EXPECT_THAT(writer->write(GuestAddress(at), pages(page)), HasError(Errc::out_of_bounds));
  EXPECT_THAT(writer->write(GuestAddress(low), pages(8 * page)), HasError(Errc::out_of_bounds));
  EXPECT_THAT(writer->write_zeros({GuestAddress(low), last_page}), HasError(Errc::out_of_bounds));
  VMSPACE_EXPECT_OK(writer->write_zeros({GuestAddress(low), page}));
  VMSPACE_EXPECT_OK(writer->write(GuestAddress(low + 3 * page), pages(page)));
  VMSPACE_EXPECT_OK(writer->finish());
  VMSPACE_EXPECT_OK(restore_snapshot(memory, file.fd()));
  EXPECT_EQ(contents(memory, low + 3 * page, page), pattern(page));
}

TEST(SnapshotWriter, RefusesPagesOfAnImageThatWereWrittenAlready) {
  const GuestMemory memory = guest({{low, 200 * page}, {high, 4 * page}});
  const TempFile file;
  auto writer = SnapshotWriter::create(file.fd(), memory);
  ASSERT_THAT(writer, IsOk());
  const auto write = [&](std::uint64_t base, std::uint64_t count, unsigned seed) {
    return writer->write(GuestAddress(base), pattern(count * page, seed));
  };
  VMSPACE_ASSERT_OK(write(low + 60 * page, 10, 1));
  VMSPACE_ASSERT_OK(write(high, 1, 1));
  EXPECT_THAT(write(low + 69 * page, 1, 2), HasError(Errc::overlap));
  EXPECT_THAT(write(low, 200, 2), HasError(Errc::overlap));
  EXPECT_THAT(write(high, 4, 2), HasError(Errc::overlap));
  VMSPACE_EXPECT_OK(write(low, 60, 1));
  VMSPACE_EXPECT_OK(write(low + 70 * page, 130, 1));
  EXPECT_THAT(writer->write_zeros({GuestAddress(low + 199 * page), page}), HasError(Errc::overlap));
  VMSPACE_EXPECT_OK(writer->write_zeros({GuestAddress(high + page), 3 * page}));
  EXPECT_EQ(writer->stored(), 201 * page) << "what is refused changes nothing";
  ASSERT_THAT(writer->finish(), IsOk());
  auto reader = SnapshotReader::open(file.fd());
  ASSERT_THAT(reader, IsOk());
  std::vector<std::byte> bytes(10 * page);
  VMSPACE_ASSERT_OK(reader->read(GuestAddress(low + 60 * page), bytes));
  EXPECT_EQ(bytes, pattern(10 * page, 1));
}

TEST(SnapshotWriter, FindsPagesThatWereWrittenTwice) {
  const GuestMemory memory = guest({{low, 8 * page}});
  const TempFile base;
  const auto full = save_snapshot(memory, base.fd());
  ASSERT_THAT(full, IsOk());
  const TempFile file;
  auto writer = SnapshotWriter::create(file.fd(), memory, {.parent = full->id});
  ASSERT_THAT(writer, IsOk());
  VMSPACE_EXPECT_OK(writer->write(GuestAddress(low + 2 * page), pattern(2 * page)));
  VMSPACE_EXPECT_OK(writer->write_zeros({GuestAddress(low), 3 * page}));
  EXPECT_THAT(writer->finish(), HasError(Errc::overlap));
  EXPECT_THAT(writer->finish(), HasError(Errc::bad_state));
  EXPECT_THAT(inspect_snapshot(file.fd()), HasError(Errc::corrupt));
}

TEST(SnapshotWriter, TakesNothingAfterItsEnd) {
  const GuestMemory memory = guest({{low, 8 * page}});
  const TempFile file;
  auto writer = SnapshotWriter::create(file.fd(), memory);
  ASSERT_THAT(writer, IsOk());
  VMSPACE_ASSERT_OK(writer->finish());
  EXPECT_THAT(writer->write(GuestAddress(low), pattern(page)), HasError(Errc::bad_state));
  EXPECT_THAT(writer->write_zeros({GuestAddress(low), page}), HasError(Errc::bad_state));
  EXPECT_THAT(writer->finish(), HasError(Errc::bad_state));
}

TEST(SnapshotWriter, HoldsItsFileWhateverBecomesOfTheDescriptor) {
  const GuestMemory memory = guest({{low, 8 * page}});
  const TempFile file;
  const int fd = dup(file.fd());
  auto writer = SnapshotWriter::create(fd, memory);
  close(fd);
  ASSERT_THAT(writer, IsOk());
  auto moved = *std::move(writer);
  VMSPACE_EXPECT_OK(moved.write(GuestAddress(low), pattern(page)));
  VMSPACE_EXPECT_OK(moved.finish());
  VMSPACE_EXPECT_OK(restore_snapshot(memory, file.fd()));
  EXPECT_EQ(contents(memory, low, page), pattern(page));
}

TEST(SnapshotWriter, RefusesRegionsThatNoSnapshotHas) {
  const TempFile file;
  const auto before = pattern(page);
  file.write(before);
  const auto region = [](std::uint64_t base, std::uint64_t size) {
    return SnapshotRegion{.base = GuestAddress(base),
                          .size = size,
                          .offset = 0,
                          .protection = Protection::read_write};
  };
  const std::vector<std::vector<SnapshotRegion>> bad{
      {region(1, page)},
      {region(0, 0)},
      {region(0, page + 1)},
      {region(last_page, 2 * page)},
      {region(page, page), region(0, page)},
      {region(0, 2 * page), region(page, page)},
      {region(last_page, page), region(0, page)},
      std::vector<SnapshotRegion>(513, region(0, page)),
  };
  for (const auto& regions : bad)
    EXPECT_THAT(SnapshotWriter::create(file.fd(), regions), HasError(Errc::invalid_argument));
  EXPECT_THAT(SnapshotWriter::create(file.fd(), std::vector{region(0, 1ULL << 63)}),
              HasError(Errc::limit_exceeded));
  EXPECT_THAT(SnapshotWriter::create(file.fd(), std::vector{region(0, (1ULL << 63) - 8_MiB)},
                                     {.checksums = true}),
              HasError(Errc::limit_exceeded));
  const std::uint64_t most = (1ULL << 63) - 4_MiB - page;  // with 2 MiB before it
  EXPECT_THAT(SnapshotWriter::create(file.fd(), std::vector{region(0, most), region(most, page)}),
              HasError(Errc::limit_exceeded));
  EXPECT_THAT(SnapshotWriter::create(file.fd(), GuestMemory(), {.parent = SnapshotId{}}),
              HasError(Errc::invalid_argument));
  EXPECT_EQ(file.read(page), before);
}

TEST(SnapshotWriter, SplitsWhatIsLargerThanARecord) {
  constexpr std::uint64_t size = 20_MiB;
  const GuestMemory memory = guest({{low, size}});
  ASSERT_TRUE(memory.fill({GuestAddress(low), size}, std::byte{9}));
  const TempFile base;
  const auto full = save_snapshot(guest({{low, size}}), base.fd());
  ASSERT_THAT(full, IsOk());
  const TempFile file;
  auto writer = SnapshotWriter::create(file.fd(), memory, {.parent = full->id, .checksums = true});
  ASSERT_THAT(writer, IsOk());
  VMSPACE_ASSERT_OK(writer->write(GuestAddress(low), contents(memory, low, size)));
  VMSPACE_ASSERT_OK(writer->finish());
  const int parent = base.fd();
  auto reader = SnapshotReader::open(file.fd(), {&parent, 1});
  ASSERT_THAT(reader, IsOk());
  std::vector<std::byte> bytes(size);
  VMSPACE_ASSERT_OK(reader->read(GuestAddress(low), bytes));
  EXPECT_EQ(bytes, contents(memory, low, size));
}

}  // namespace
}  // namespace vmspace::snapshot_writer_test
