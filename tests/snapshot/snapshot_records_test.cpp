// SPDX-License-Identifier: Apache-2.0
//
// Files with records that are not what they should be.

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/snapshot/snapshot_writer.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/format_support.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::snapshot_records_test {
namespace {

using namespace test;

constexpr std::size_t head = 128 + 2 * 32;

/// Changes of two pages, of zeros and of data, since a full snapshot.
struct SnapshotRecords : ::testing::Test {
  GuestMemory memory = guest({{low, 4 * page}, {high, 2 * page}});
  TempFile base;
  TempFile changes;
  std::vector<std::byte> good;
  std::size_t index = 0;
  std::size_t trailer = 0;

  void SetUp() override {
    ASSERT_TRUE(memory.write_slice(GuestAddress(low), pattern(4 * page)));
    const auto full = save_snapshot(memory, base.fd());
    ASSERT_THAT(full, IsOk());
    write_changes(full->id);
  }

  void write_changes(const SnapshotId& parent) {
    auto writer = SnapshotWriter::create(changes.fd(), memory, {.parent = parent});
    ASSERT_THAT(writer, IsOk());
    VMSPACE_ASSERT_OK(writer->write(GuestAddress(high + page), pattern(page, 1)));
    VMSPACE_ASSERT_OK(writer->write_zeros({GuestAddress(low + page), page}));
    VMSPACE_ASSERT_OK(writer->write(GuestAddress(low + 2 * page), pattern(page, 2)));
    VMSPACE_ASSERT_OK(writer->finish());
    good = changes.read(static_cast<std::size_t>(changes.status().st_size));
    trailer = good.size() - 64;
    index = trailer - 3 * 32;
  }

  [[nodiscard]] Result<SnapshotReader> open() const {
    const int parent = base.fd();
    return SnapshotReader::open(changes.fd(), {&parent, 1});
  }
  [[nodiscard]] Result<SnapshotReader> open_as(const std::vector<std::byte>& bytes) const {
    EXPECT_EQ(ftruncate(changes.fd(), static_cast<off_t>(bytes.size())), 0);
    changes.write(bytes);
    return open();
  }
  /// With one number of an entry of the index replaced, and the checksums that belong to that.
  [[nodiscard]] Result<SnapshotReader> with_entry(std::size_t entry, std::size_t field,
                                                  std::uint64_t value) const {
    auto bytes = good;
    store_at(bytes, index + 32 * entry + field, Le64(value));
    mend_index(bytes);
    return open_as(bytes);
  }
  [[nodiscard]] Result<SnapshotReader> with_trailer(std::size_t field, std::uint64_t value) const {
    auto bytes = good;
    store_at(bytes, trailer + field, Le64(value));
    mend_index(bytes);
    return open_as(bytes);
  }
};

TEST_F(SnapshotRecords, AreReadByTheirIndex) {
  auto reader = open();
  ASSERT_THAT(reader, IsOk());
  std::vector<std::byte> bytes(4 * page);
  VMSPACE_ASSERT_OK(reader->read(GuestAddress(low), bytes));
  auto expected = pattern(4 * page);
  std::fill_n(expected.begin() + page, page, std::byte{0});
  std::ranges::copy(pattern(page, 2), expected.begin() + 2 * page);
  EXPECT_EQ(bytes, expected);
}

TEST_F(SnapshotRecords, AChangedByteOfTheMetadataIsAnError) {
  for (std::size_t i = 0; i < good.size(); ++i) {
    if (i == head) i = index;
    for (const unsigned flip : {0x01U, 0x80U, 0xffU}) {
      SCOPED_TRACE(i);
      auto bad = good;
      bad[i] ^= static_cast<std::byte>(flip);
      const auto reader = open_as(bad);
      ASSERT_FALSE(reader);
      const bool version = i >= 8 && i < 12;
      ASSERT_TRUE(reader.error().code == Errc::corrupt ||
                  (version && reader.error().code == Errc::unsupported))
          << reader.error().message();
    }
  }
  VMSPACE_EXPECT_OK(open_as(good));
}

TEST_F(SnapshotRecords, AFileThatIsCutOffOrGoesOnIsCorruptAtEveryLength) {
  for (std::size_t size = 0; size < good.size(); ++size) {
    SCOPED_TRACE(size);
    if (size > head && size + 64 < index) size = index - 64;
    auto bytes = good;
    bytes.resize(size);
    ASSERT_THAT(open_as(bytes), HasError(Errc::corrupt));
    ASSERT_THAT(inspect_snapshot(changes.fd()), HasError(Errc::corrupt));
  }
  auto more = good;
  more.resize(good.size() + 1);
  EXPECT_THAT(open_as(more), HasError(Errc::corrupt));
}

TEST_F(SnapshotRecords, OfAnotherSaveBehindThisHeadAreCorrupt) {
  const auto before = good;
  write_changes(*[&] { return Result<SnapshotId>(SnapshotReader::open(base.fd())->id()); }());
  ASSERT_EQ(good.size(), before.size());
  auto mixed = before;
  std::ranges::copy(good.begin() + static_cast<std::ptrdiff_t>(head), good.end(),
                    mixed.begin() + static_cast<std::ptrdiff_t>(head));
  EXPECT_THAT(open_as(mixed), HasError(Errc::corrupt));
}

TEST_F(SnapshotRecords, WhosePlacesMakeNoSenseAreCorrupt) {
  VMSPACE_EXPECT_OK(with_entry(0, 0, low + page));
  VMSPACE_EXPECT_OK(with_entry(0, 0, low));
  // Addresses: outside, misaligned, onto the next record, behind it.
  for (const std::uint64_t at : {std::uint64_t{0}, low + 1, low + 2 * page, low + 3 * page, high,
                                 high + 2 * page, last_page, ~std::uint64_t{0}})
    EXPECT_THAT(with_entry(0, 0, at), HasError(Errc::corrupt)) << at;
  for (const std::uint64_t size :
       {std::uint64_t{0}, std::uint64_t{1}, 2 * page, 4 * page, last_page, std::uint64_t{1} << 63})
    EXPECT_THAT(with_entry(0, 8, size), HasError(Errc::corrupt)) << size;
  // Where the data are: in the head, in the index, behind the end.
  for (const std::uint64_t at : {std::uint64_t{0}, std::uint64_t{head - 1}, index - page + 1,
                                 std::uint64_t{index}, ~std::uint64_t{0}, ~std::uint64_t{0} - page})
    EXPECT_THAT(with_entry(1, 16, at), HasError(Errc::corrupt)) << at;
  EXPECT_THAT(with_entry(0, 16, head), HasError(Errc::corrupt)) << "zeros are nowhere";
  for (const std::uint64_t kind :
       {std::uint64_t{0}, std::uint64_t{3}, std::uint64_t{4}, std::uint64_t{1} << 32 | 1})
    EXPECT_THAT(with_entry(1, 24, kind), HasError(Errc::corrupt)) << kind;
}

TEST_F(SnapshotRecords, WhoseTrailerContradictsTheFileAreCorrupt) {
  VMSPACE_EXPECT_OK(with_trailer(16, 3));
  for (const std::uint64_t at : {std::uint64_t{0}, index + 32, index - 32,
                                 trailer + std::size_t{64}, ~std::uint64_t{0}, ~std::uint64_t{31}})
    EXPECT_THAT(with_trailer(8, at), HasError(Errc::corrupt)) << at;
  for (const std::uint64_t count :
       {std::uint64_t{0}, std::uint64_t{2}, std::uint64_t{4}, (std::uint64_t{1} << 59) + 3})
    EXPECT_THAT(with_trailer(16, count), HasError(Errc::corrupt)) << count;
  EXPECT_THAT(with_trailer(48, good.size() + 1), HasError(Errc::corrupt));
}

TEST_F(SnapshotRecords, AnIndexThatIsOneHoleTakesNoMemory) {
  // An index of 2^40 entries, as the trailer of a file without blocks says.
  auto bytes = good;
  const std::uint64_t entries = std::uint64_t{1} << 40;
  const std::uint64_t end = index + 32 * entries;
  std::vector<std::byte> last(bytes.end() - 64, bytes.end());
  store_at(last, 16, Le64(entries));
  store_at(last, 48, Le64(end + 64));
  store_at(last, 56, Le64(xxh3(last.data(), 56)));
  bytes.resize(index);
  ASSERT_EQ(ftruncate(changes.fd(), 0), 0);
  changes.write(bytes);
  changes.write(last, static_cast<off_t>(end));
  EXPECT_THAT(open(), HasError(Errc::corrupt));
}

TEST_F(SnapshotRecords, HeadsThatContradictThemselvesAreCorrupt) {
  const auto with = [&](std::size_t field, std::uint64_t value) {
    auto bytes = good;
    store_at(bytes, field, Le64(value));
    mend_head(bytes);
    return open_as(bytes);
  };
  EXPECT_THAT(with(16, page), HasError(Errc::corrupt)) << "a file size";
  EXPECT_THAT(with(72, page), HasError(Errc::corrupt)) << "a place of checksums";
  EXPECT_THAT(with(64, 3), HasError(Errc::corrupt)) << "no such body";
  EXPECT_THAT(with(64, 1), HasError(Errc::corrupt)) << "an image with a parent";
  EXPECT_THAT(with(64, std::uint64_t{2} << 32 | 2), HasError(Errc::corrupt)) << "unknown flags";
  EXPECT_THAT(with(80, 1), HasError(Errc::corrupt)) << "reserved bytes";
  EXPECT_THAT(with(128 + 16, page), HasError(Errc::corrupt)) << "a place in the file";
  auto anonymous = good;
  std::fill_n(anonymous.begin() + 32, 16, std::byte{0});
  mend_head(anonymous);
  EXPECT_THAT(open_as(anonymous), HasError(Errc::corrupt)) << "no id";
}

TEST(SnapshotImage, ChecksumsMustLieWithinTheFile) {
  const TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(sample(MemorySource::anon), file.fd(), {.checksums = true}));
  const auto good = file.read(metadata);
  const std::uint64_t at = stored_at<Le64>(good, 72);
  for (const std::uint64_t place :
       {std::uint64_t{0}, at - page, at + 1, at + page, last_page, std::uint64_t{1} << 63}) {
    auto bad = good;
    store_at(bad, 72, Le64(place));
    mend_head(bad);
    file.write(bad);
    EXPECT_THAT(SnapshotReader::open(file.fd()), HasError(Errc::corrupt)) << place;
  }
  auto bad = good;
  store_at(bad, 68, Le32(0));
  mend_head(bad);
  file.write(bad);
  EXPECT_THAT(SnapshotReader::open(file.fd()), HasError(Errc::corrupt)) << "checksums of nobody";
}

}  // namespace
}  // namespace vmspace::snapshot_records_test
