// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_cursor.hpp"

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/memory/endian.hpp"

#include "faults/failing_new.hpp"
#include "memory/guest_support.hpp"

namespace vmspace::guest_cursor_test {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using namespace test;

static_assert(!std::is_copy_constructible_v<GuestReader> &&
              !std::is_copy_constructible_v<GuestWriter>);
static_assert(std::is_nothrow_move_constructible_v<GuestWriter>);

auto HasOsError(int error) {
  return HasErrorThat(::testing::Field(&Error::os_errno, error));
}

struct Header {
  Le32 type;
  Le32 reserved;
  Le64 sector;
};

class GuestCursors : public TrackedGuest {
 protected:
  GuestReader reader(const std::vector<GuestRange>& ranges) {
    auto made = GuestReader::make(memory, ranges);
    VMSPACE_EXPECT_OK(made);
    return *std::move(made);
  }
  GuestWriter writer(const std::vector<GuestRange>& ranges) {
    auto made = GuestWriter::make(memory, ranges);
    VMSPACE_EXPECT_OK(made);
    return *std::move(made);
  }
};

TEST_F(GuestCursors, ReadObjectsAcrossTheBordersOfRanges) {
  ASSERT_THAT(memory.write(at(first), Header{.type = 1, .reserved = 2, .sector = 3}), IsOk());
  ASSERT_THAT(memory.write(at(first + 100), Le16(7)), IsOk());
  // The header in three pieces, one of them of a single byte; then an empty range.
  auto in = reader(
      {{at(first), 3}, {at(first + 3), 1}, {at(first + 4), 12}, {at(0), 0}, {at(first + 100), 2}});
  EXPECT_EQ(in.remaining(), 18U);
  const auto header = in.read<Header>();
  ASSERT_THAT(header, IsOk());
  EXPECT_EQ(header->sector, 3U);
  EXPECT_EQ(in.position(), 16U);
  EXPECT_EQ(in.read<Le16>()->value(), 7);
  EXPECT_EQ(in.remaining(), 0U);
  EXPECT_THAT(in.read<std::uint8_t>(), HasError(Errc::out_of_bounds));
}

TEST_F(GuestCursors, TakeRangesOfEveryKindInTheirOrder) {
  // One that is a piece; one that continues it; none; one over two regions; one that is a piece.
  const std::vector<GuestRange> ranges = {
      {at(first), 8}, {at(first + 8), 8}, {at(0), 0}, {at(second - 4), 8}, {at(first + page), 4}};
  auto out = writer(ranges);
  ASSERT_EQ(out.remaining(), 28U);
  const auto bytes = pattern(28);
  ASSERT_THAT(out.write_exact(bytes), IsOk());
  EXPECT_THAT(harvest(), ElementsAre(pages(first, 3)));
  auto in = reader(ranges);
  EXPECT_EQ(in.iovecs()[0].iov_len, 16U) << "what is contiguous is one piece";
  std::vector<std::byte> read(28);
  ASSERT_THAT(in.read_exact(read), IsOk());
  EXPECT_EQ(read, bytes);
  EXPECT_EQ(contents(memory, second, 4),
            (std::vector<std::byte>(bytes.begin() + 20, bytes.begin() + 24)));
}

TEST_F(GuestCursors, AnAccessPastTheEndChangesNothing) {
  auto in = reader({{at(first), 3}, {at(second), 4}});
  EXPECT_THAT(in.read<std::uint64_t>(), HasError(Errc::out_of_bounds));
  std::array<std::byte, 8> bytes{};
  EXPECT_THAT(in.read_exact(bytes), HasError(Errc::out_of_bounds));
  EXPECT_THAT(in.skip(8), HasError(Errc::out_of_bounds));
  EXPECT_THAT(in.split_at(8), HasError(Errc::out_of_bounds));
  EXPECT_THAT(in.read_to(-1, 8), HasError(Errc::out_of_bounds));
  EXPECT_THAT(in.skip(top), HasError(Errc::out_of_bounds));
  EXPECT_EQ(in.remaining(), 7U);

  auto out = writer({{at(first), 3}, {at(second), 4}});
  EXPECT_THAT(out.write(std::uint64_t{1}), HasError(Errc::out_of_bounds));
  EXPECT_THAT(out.write_exact(bytes), HasError(Errc::out_of_bounds));
  EXPECT_THAT(out.write_from(-1, 8), HasError(Errc::out_of_bounds));
  EXPECT_THAT(out.commit(8), HasError(Errc::out_of_bounds));
  EXPECT_EQ(out.remaining(), 7U);
  EXPECT_THAT(harvest(), IsEmpty());
}

TEST_F(GuestCursors, AreNotMadeOfRangesThatCanNotBeAccessed) {
  const auto read = [&](std::vector<GuestRange> ranges) {
    return GuestReader::make(memory, ranges);
  };
  const auto write = [&](std::vector<GuestRange> ranges) {
    return GuestWriter::make(memory, ranges);
  };
  EXPECT_THAT(read({{at(first), 8}, {at(0), 1}}), HasError(Errc::not_found));
  EXPECT_THAT(read({{at(gap - 1), 2}}), HasError(Errc::out_of_bounds));
  EXPECT_THAT(read({{at(closed), 1}}), HasError(Errc::access_denied));
  EXPECT_THAT(read({{at(last), page + 1}}), HasError(Errc::overflow));
  EXPECT_THAT(read({{at(rom), 1}}), IsOk());
  EXPECT_THAT(write({{at(first), 8}, {at(rom), 1}}), HasError(Errc::access_denied));
  // A sum that wraps, although each range alone does not.
  EXPECT_THAT(read({{at(first), 8}, {at(8), top - 7}}), HasError(Errc::overflow));
}

TEST_F(GuestCursors, OfNothingAreAtTheirEnd) {
  auto in = reader({});
  EXPECT_EQ(in.remaining(), 0U);
  EXPECT_THAT(in.iovecs(), IsEmpty());
  EXPECT_THAT(in.skip(0), IsOk());
  EXPECT_THAT(in.read_exact({}), IsOk());
  EXPECT_THAT(in.read<std::uint8_t>(), HasError(Errc::out_of_bounds));
  EXPECT_THAT(in.read_to(-1, 0), IsOkAndHolds(0U));
  auto out = writer({{at(0), 0}});
  EXPECT_THAT(out.write(std::uint8_t{1}), HasError(Errc::out_of_bounds));
  EXPECT_THAT(out.split_at(0), IsOk());
}

TEST_F(GuestCursors, AWriterMarksWhatItHasWrittenAndNothingElse) {
  auto out = writer({{at(first), 2 * page}, {at(second + page), 8}});
  EXPECT_THAT(harvest(), IsEmpty()) << "nothing is written when it is made";
  ASSERT_THAT(out.write(std::uint32_t{5}), IsOk());
  EXPECT_THAT(harvest(), ElementsAre(pages(first, 1)));
  ASSERT_THAT(out.skip(2 * page - 8), IsOk());
  EXPECT_THAT(harvest(), IsEmpty());
  // Across the border, in part.
  ASSERT_THAT(out.write(std::uint64_t{6}), IsOk());
  EXPECT_THAT(harvest(), ElementsAre(pages(first + page, 1), pages(second + page, 1)));
  ASSERT_THAT(out.commit(4), IsOk());
  EXPECT_THAT(harvest(), ElementsAre(pages(second + page, 1)));
  EXPECT_EQ(out.remaining(), 0U);
}

TEST_F(GuestCursors, AreSplitIntoTwo) {
  auto out = writer({{at(first), 8}, {at(first + 100), 8}, {at(second), 1}});
  ASSERT_THAT(out.write(std::uint32_t{1}), IsOk());
  auto status = out.split_at(out.remaining() - 1);
  ASSERT_THAT(status, IsOk());
  EXPECT_EQ(out.remaining(), 12U);
  EXPECT_EQ(out.position(), 4U);
  EXPECT_EQ(status->remaining(), 1U);
  EXPECT_EQ(status->position(), 0U);
  ASSERT_THAT(status->write(std::uint8_t{9}), IsOk());
  EXPECT_THAT(memory.read<std::uint8_t>(at(second)), IsOkAndHolds(9));
  EXPECT_THAT(harvest(), ElementsAre(pages(first, 1), pages(second, 1)));
  EXPECT_THAT(out.write_exact(pattern(13)), HasError(Errc::out_of_bounds));
  const auto bytes = pattern(12);
  EXPECT_THAT(out.write_exact(bytes), IsOk());
  EXPECT_EQ(contents(memory, first + 100, 8),
            (std::vector<std::byte>(bytes.begin() + 4, bytes.end())));
}

TEST_F(GuestCursors, MovedFromAreAtTheirEnd) {
  auto out = writer({{at(first), 8}, {at(second), 8}});
  auto other = std::move(out);
  EXPECT_EQ(other.remaining(), 16U);
  EXPECT_EQ(out.remaining(), 0U);  // NOLINT(bugprone-use-after-move)
  EXPECT_THAT(out.write(std::uint8_t{1}), HasError(Errc::out_of_bounds));
  EXPECT_THAT(out.split_at(0), IsOk());
  out = std::move(other);
  EXPECT_THAT(out.write(std::array<std::uint64_t, 2>{1, 2}), IsOk());
}

TEST_F(GuestCursors, TheRestGoesToSystemCallsAsIovecs) {
  auto in = reader({{at(first), 4}, {at(first + 4), 4}, {at(second), 8}});
  ASSERT_THAT(in.skip(2), IsOk());
  ASSERT_THAT(in.iovecs(), SizeIs(2)) << "ranges side by side are one piece";
  EXPECT_EQ(in.iovecs()[0].iov_base, *memory.host_address({at(first + 2), 6}));
  EXPECT_EQ(in.iovecs()[0].iov_len, 6U);
  ASSERT_THAT(in.skip(6), IsOk());
  ASSERT_THAT(in.iovecs(), SizeIs(1));
  EXPECT_EQ(in.iovecs()[0].iov_len, 8U);
  ASSERT_THAT(in.skip(8), IsOk());
  EXPECT_THAT(in.iovecs(), IsEmpty());
}

TEST_F(GuestCursors, MoveBytesFromAndToFiles) {
  const int file = memfd_create("disk", MFD_CLOEXEC);
  const auto bytes = pattern(100, 5);
  ASSERT_THAT(memory.write_slice(at(first), bytes), IsOk());
  auto in = reader({{at(first), 60}, {at(first + 70), 30}});
  ASSERT_THAT(in.read_exact_to(file, 90, 1000), IsOk());
  EXPECT_EQ(lseek(file, 0, SEEK_CUR), 0) << "an offset leaves the file's own";

  harvest();
  auto out = writer({{at(second), 50}, {at(second + page), 100}});
  ASSERT_THAT(out.skip(10), IsOk());
  ASSERT_THAT(out.write_exact_from(file, 40, 1000), IsOk());
  EXPECT_THAT(harvest(), ElementsAre(pages(second, 1)));
  EXPECT_EQ(contents(memory, second + 10, 40),
            (std::vector<std::byte>(bytes.begin(), bytes.begin() + 40)));
  // The file ends with the 50 that are left: what there is, is taken.
  EXPECT_THAT(out.write_exact_from(file, 60, 1040), HasOsError(EIO));
  EXPECT_EQ(out.remaining(), 50U);
  EXPECT_THAT(out.write_from(file, 50, 2000), IsOkAndHolds(0U)) << "past the end";
  EXPECT_THAT(out.write_from(file, 50, top / 2 - 49), HasError(Errc::overflow));
  EXPECT_THAT(out.write_from(-1, 50), HasOsError(EBADF));
  close(file);
}

TEST_F(GuestCursors, WithoutAnOffsetAFileGoesOnWhereItIs) {
  const int file = memfd_create("console", MFD_CLOEXEC);
  const auto bytes = pattern(90, 5);
  ASSERT_THAT(memory.write_slice(at(first), bytes), IsOk());
  auto in = reader({{at(first), 60}, {at(first + 60), 30}});
  ASSERT_THAT(in.read_exact_to(file, 50), IsOk());
  ASSERT_THAT(in.read_exact_to(file, 40), IsOk());
  EXPECT_EQ(in.remaining(), 0U);
  std::vector<std::byte> written(91);
  EXPECT_EQ(pread(file, written.data(), 91, 0), 90);
  written.pop_back();
  EXPECT_EQ(written, bytes);
  EXPECT_THAT(in.read_exact_to(file, 1), HasError(Errc::out_of_bounds));
  close(file);
}

TEST_F(GuestCursors, TakeOneDatagramAtATime) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends), 0);
  ASSERT_EQ(send(ends[0], "packet", 6, 0), 6);
  ASSERT_EQ(send(ends[0], "next", 4, 0), 4);
  auto out = writer({{at(first), 4}, {at(second), 100}});
  EXPECT_THAT(out.write_from(ends[1], 104), IsOkAndHolds(6U));
  EXPECT_EQ(out.position(), 6U);
  auto in = reader({{at(first), 4}, {at(second), 2}});
  EXPECT_THAT(in.read_to(ends[1], 6), IsOkAndHolds(6U));
  char text[10];
  EXPECT_EQ(recv(ends[0], text, sizeof text, 0), 6) << "one packet, whatever its pieces";
  close(ends[0]);
  close(ends[1]);
}

TEST_F(GuestCursors, AllocateNothingForUpTo16Pieces) {
  std::vector<GuestRange> ranges;
  for (std::uint64_t i = 0; i < 16; ++i)
    ranges.push_back({at(first + 100 * i), 50});
  test::asked = 0;
  {
    auto in = GuestReader::make(memory, ranges);
    auto out = GuestWriter::make(memory, ranges);
    auto list = memory.iovecs(ranges, Access::write);
    static_cast<void>(in->read<Header>());
    static_cast<void>(out->write(std::uint64_t{1}));
    static_cast<void>(out->split_at(300));
  }
  EXPECT_EQ(test::asked, 0);
  // And so does one of any length, above.
  ranges.push_back({at(second), 50});
  auto in = GuestReader::make(memory, ranges);
  EXPECT_GT(test::asked, 0);
  EXPECT_EQ(in->remaining(), 17U * 50);
  EXPECT_THAT(in->iovecs(), SizeIs(17));
}

TEST_F(GuestCursors, LongListsHaveALimit) {
  std::vector<GuestRange> ranges;
  for (std::uint64_t i = 0; i < 65536; ++i)
    ranges.push_back({at(first + i % 2 * 100), 1});
  auto in = GuestReader::make(memory, ranges);
  ASSERT_THAT(in, IsOk());
  EXPECT_EQ(in->remaining(), 65536U);
  std::vector<std::byte> bytes(65536);
  EXPECT_THAT(in->read_exact(bytes), IsOk());
  auto out = GuestWriter::make(memory, ranges);
  const int file = memfd_create("disk", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(file, 65536), 0);
  EXPECT_THAT(out->write_exact_from(file, 65536), IsOk()) << "in calls of IOV_MAX pieces";
  close(file);
  ranges.push_back({at(first), 1});
  EXPECT_THAT(GuestReader::make(memory, ranges), HasError(Errc::limit_exceeded));
  EXPECT_THAT(GuestWriter::make(memory, ranges), HasError(Errc::limit_exceeded));
  EXPECT_THAT(memory.iovecs(ranges, Access::read), HasError(Errc::limit_exceeded));
}

TEST_F(GuestCursors, AreUnchangedWhenMemoryRunsOut) {
  std::vector<GuestRange> ranges;
  for (std::uint64_t i = 0; i < 40; ++i)
    ranges.push_back({at(first + 100 * i), 50});
  auto out = writer(ranges);
  ASSERT_THAT(out.skip(10), IsOk());
  const int failures =
      test::fail_each_allocation([&] { static_cast<void>(out.split_at(20)); },
                                 [&] { EXPECT_EQ(out.remaining(), 40U * 50 - 10); });
  EXPECT_GT(failures, 0);
  EXPECT_EQ(out.remaining(), 20U);
}

// Two regions of one arena lie side by side on the host as they do in the guest.
class GuestCursorsInAnArena : public ::testing::Test {
 protected:
  static constexpr std::uint64_t base = 0x10000;

  void SetUp() override {
    const auto arena = HostArena::reserve({.size = 2 * page, .guest_base = base});
    ASSERT_THAT(arena, IsOk());
    std::vector<MemoryRegionPtr> regions;
    for (const std::uint64_t address : {base, base + page}) {
      auto mapped = MemoryRegion::map({.name = "test",
                                       .base = GuestAddress(address),
                                       .size = page,
                                       .backing = {.source = MemorySource::anon}},
                                      {.arena = *arena});
      ASSERT_THAT(mapped, IsOk());
      regions.push_back(*mapped);
    }
    memory = *GuestMemory::from_regions(std::move(regions));
    ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  }

  GuestMemory memory;
};

TEST_F(GuestCursorsInAnArena, AHostAddressIsGoodOverBothRegions) {
  const GuestRange both{at(base + page - 4), 8};
  const auto host = memory.host_address(both);
  ASSERT_THAT(host, IsOk());
  EXPECT_EQ(*host + 4, *memory.host_address({at(base + page), 4}));
  EXPECT_THAT(memory.view(both), IsOk());
  EXPECT_THAT(memory.mutable_view(both), HasError(Errc::out_of_bounds)) << "it has two bitmaps";
  ASSERT_THAT(memory.mark_dirty(both), IsOk());
  EXPECT_THAT(*harvest_dirty(memory), ElementsAre(GuestRange{at(base), 2 * page}));
  EXPECT_THAT(memory.host_address({at(base), 2 * page + 1}), HasError(Errc::out_of_bounds));
}

TEST_F(GuestCursorsInAnArena, APieceReachesOverRegionsAndEachIsMarked) {
  const GuestRange both[] = {{at(base + page - 4), 8}};
  auto out = GuestWriter::make(memory, both);
  ASSERT_THAT(out, IsOk());
  EXPECT_THAT(out->iovecs(), SizeIs(1));
  ASSERT_THAT(out->write(std::uint64_t{0x0102'0304'0506'0708}), IsOk());
  EXPECT_THAT(memory.read<std::uint64_t>(at(base + page - 4)),
              IsOkAndHolds(0x0102'0304'0506'0708U));
  EXPECT_THAT(*harvest_dirty(memory), ElementsAre(GuestRange{at(base), 2 * page}));
  {
    const auto list = memory.iovecs(both, Access::write);
    ASSERT_THAT(list, IsOk());
    EXPECT_EQ(list->count(), 1);
  }
  EXPECT_THAT(*harvest_dirty(memory), ElementsAre(GuestRange{at(base), 2 * page}));
  // Within each of the regions, from the same cursor.
  const GuestRange all[] = {{at(base), 2 * page}};
  auto writer = GuestWriter::make(memory, all);
  ASSERT_THAT(writer->skip(page), IsOk());
  ASSERT_THAT(writer->write(std::uint8_t{1}), IsOk());
  EXPECT_THAT(*harvest_dirty(memory), ElementsAre(GuestRange{at(base + page), page}));
}

TEST(GuestCursor, APieceOfAStreamDoesNotMarkAllThatIsStillToCome) {
  constexpr std::uint64_t mib = std::uint64_t{1} << 20;
  const GuestRange all{GuestAddress(0), 8 * mib};
  const GuestMemory memory = *GuestMemory::create(std::span(&all, 1));
  VMSPACE_ASSERT_OK(enable_dirty_tracking(memory));
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe(pipe.data()), 0);
  ASSERT_EQ(::write(pipe[1], "x", 1), 1);
  ::close(pipe[1]);
  GuestWriter writer = *GuestWriter::make(memory, std::span(&all, 1));
  EXPECT_THAT(writer.write_exact_from(pipe[0], all.size), HasOsError(EIO));
  ::close(pipe[0]);
  EXPECT_EQ(writer.position(), 1U);
  EXPECT_THAT(*harvest_dirty(memory), ElementsAre(GuestRange{GuestAddress(0), mib}));
}

}  // namespace
}  // namespace vmspace::guest_cursor_test
