// SPDX-License-Identifier: Apache-2.0
//
// WorkingSet: a set of pages whatever the order, through a file unchanged, and no altered byte of the
// file is believed.

#include "vmspace/snapshot/working_set.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "host/host_support.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::working_set_test {
namespace {

using namespace test;
using ::testing::ElementsAre;

GuestRange pages(std::uint64_t first, std::uint64_t count) {
  return {GuestAddress(first * page), count * page};
}

const SnapshotId id{{1, 2, 3, 4}};

WorkingSet sample_set() {
  return *WorkingSet::make(id, {pages(10, 2), pages(1, 1), pages(100, 50)});
}

TEST(WorkingSet, IsTheSamePagesInAnyOrder) {
  const auto set =
      WorkingSet::make(id, {pages(4, 2), pages(9, 1), pages(1, 3), pages(5, 3), pages(9, 1)});
  ASSERT_THAT(set, IsOk());
  EXPECT_THAT(set->ranges(), ElementsAre(pages(1, 7), pages(9, 1)));
  EXPECT_EQ(set->total_size(), 8 * page);
  EXPECT_EQ(*set, *WorkingSet::make(id, {pages(9, 1), pages(1, 7)}));
  EXPECT_NE(*set, *WorkingSet::make({}, {pages(9, 1), pages(1, 7)}));
  EXPECT_THAT(WorkingSet().ranges(), ElementsAre());
}

TEST(WorkingSet, ReachesTheEndOfTheAddressSpace) {
  const GuestRange last{GuestAddress(test::top - page + 1), page};
  const auto set = WorkingSet::make(id, {last, {GuestAddress(test::top - 2 * page + 1), page}});
  ASSERT_THAT(set, IsOk());
  EXPECT_THAT(set->ranges(),
              ElementsAre(GuestRange{GuestAddress(test::top - 2 * page + 1), 2 * page}));
  const TempFile file;
  VMSPACE_ASSERT_OK(set->save(file.fd()));
  lseek(file.fd(), 0, SEEK_SET);
  EXPECT_THAT(WorkingSet::load(file.fd()), IsOkAndHolds(*set));
}

TEST(WorkingSet, RefusesWhatIsNotPages) {
  EXPECT_THAT(WorkingSet::make(id, {{GuestAddress(0), 0}}), HasError(Errc::zero_size));
  EXPECT_THAT(WorkingSet::make(id, {{GuestAddress(1), page}}), HasError(Errc::misaligned));
  EXPECT_THAT(WorkingSet::make(id, {{GuestAddress(0), page + 1}}), HasError(Errc::misaligned));
  EXPECT_THAT(WorkingSet::make(id, {{GuestAddress(test::top - page + 1), 2 * page}}),
              HasError(Errc::overflow));
  // Together they are 2^64 bytes, which no range has.
  EXPECT_THAT(WorkingSet::make(id, {{GuestAddress(0), test::top - page + 1},
                                    {GuestAddress(test::top - page + 1), page}}),
              HasError(Errc::overflow));
  std::vector<GuestRange> many;
  for (std::uint64_t i = 0; i <= WorkingSet::max_ranges; ++i)
    many.push_back(pages(2 * i, 1));
  EXPECT_THAT(WorkingSet::make(id, many), HasError(Errc::limit_exceeded));
  many.pop_back();
  EXPECT_THAT(WorkingSet::make(id, many), IsOk());
}

TEST(WorkingSet, MergesWithAnotherOfTheSameSnapshot) {
  const WorkingSet one = *WorkingSet::make(id, {pages(1, 1), pages(5, 1)});
  const WorkingSet two = *WorkingSet::make(id, {pages(2, 3)});
  EXPECT_THAT(one.merged_with(two), IsOkAndHolds(*WorkingSet::make(id, {pages(1, 5)})));
  EXPECT_THAT(one.merged_with(two), IsOkAndHolds(*two.merged_with(one)));
  EXPECT_THAT(one.merged_with(WorkingSet()), HasError(Errc::invalid_argument));
}

TEST(WorkingSet, ComesBackFromAFileAndFromASocket) {
  const WorkingSet set = sample_set();
  const TempFile file;
  VMSPACE_ASSERT_OK(set.save(file.fd()));
  // One behind the other, as in a stream.
  VMSPACE_ASSERT_OK(WorkingSet().save(file.fd()));
  EXPECT_EQ(file.status().st_size, 40 + 3 * 16 + 40);
  lseek(file.fd(), 0, SEEK_SET);
  EXPECT_THAT(WorkingSet::load(file.fd()), IsOkAndHolds(set));
  EXPECT_THAT(WorkingSet::load(file.fd()), IsOkAndHolds(WorkingSet()));
  EXPECT_THAT(WorkingSet::load(file.fd()), HasError(Errc::corrupt));

  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  std::thread writer([&] { VMSPACE_EXPECT_OK(set.save(pair[0])); });
  EXPECT_THAT(WorkingSet::load(pair[1]), IsOkAndHolds(set));
  writer.join();
  close(pair[0]);
  close(pair[1]);
}

TEST(WorkingSet, WaitsForADescriptorThatDoesNotBlock) {
  std::vector<GuestRange> many;
  for (std::uint64_t i = 0; i < 200'000; ++i)  // more than the socket takes at a time
    many.push_back(pages(2 * i, 1));
  const WorkingSet set = *WorkingSet::make(id, std::move(many));
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
  std::thread writer([&] {
    VMSPACE_EXPECT_OK(set.save(pair[0]));
    close(pair[0]);
  });
  EXPECT_THAT(WorkingSet::load(pair[1]), IsOkAndHolds(set));
  close(pair[1]);
  writer.join();
}

TEST(WorkingSet, ASocketWithoutAPeerIsAnErrorAndNoSignal) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
  close(pair[1]);
  const auto saved = sample_set().save(pair[0]);
  close(pair[0]);
  ASSERT_THAT(saved, HasError(Errc::os));
  EXPECT_EQ(saved.error().os_errno, EPIPE);
}

TEST(WorkingSet, IsLittleEndian) {
  const TempFile file;
  VMSPACE_ASSERT_OK(sample_set().save(file.fd()));
  const auto bytes = file.read(40 + 16);
  EXPECT_EQ(std::memcmp(bytes.data(), "vmspWSET", 8), 0);
  EXPECT_EQ(bytes[8], std::byte{1});
  EXPECT_EQ(bytes[12], std::byte{3});
  EXPECT_EQ(bytes[16], std::byte{1});
  EXPECT_EQ(bytes[19], std::byte{4});
  EXPECT_EQ(bytes[41], std::byte{0x10}) << "0x1000";
}

TEST(WorkingSet, NoAlteredOrMissingByteIsBelieved) {
  const TempFile file;
  VMSPACE_ASSERT_OK(sample_set().save(file.fd()));
  const auto bytes = file.read(40 + 3 * 16);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    for (const unsigned flip : {0x01U, 0x80U, 0xffU}) {
      auto altered = bytes;
      altered[i] ^= static_cast<std::byte>(flip);
      const TempFile other;
      other.write(altered);
      const auto loaded = WorkingSet::load(other.fd());
      ASSERT_FALSE(loaded) << "byte " << i;
      EXPECT_TRUE(loaded.error().code == Errc::corrupt || loaded.error().code == Errc::unsupported);
    }
    const TempFile cut;
    cut.write({bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(i)});
    EXPECT_THAT(WorkingSet::load(cut.fd()), HasError(Errc::corrupt)) << "cut at " << i;
  }
}

TEST(WorkingSet, RangesThatMakeNoSenseAreRefusedWhateverTheChecksum) {
  const TempFile file;
  VMSPACE_ASSERT_OK(sample_set().save(file.fd()));
  const std::vector<std::byte> good = file.read(40 + 3 * 16);
  const auto with = [&](std::size_t at, std::uint64_t value) {
    std::vector<std::byte> bytes = good;
    const auto put = [&](std::size_t offset, std::uint64_t number) {
      for (std::size_t i = 0; i < 8; ++i)
        bytes[offset + i] = static_cast<std::byte>(number >> (8 * i));
    };
    put(40 + at, value);
    put(32, 0);
    std::uint64_t checksum = 0xcbf2'9ce4'8422'2325;  // FNV-1a
    for (const std::byte byte : bytes)
      checksum = (checksum ^ std::to_integer<std::uint64_t>(byte)) * 0x100'0000'01b3;
    put(32, checksum);
    const TempFile other;
    other.write(bytes);
    return WorkingSet::load(other.fd());
  };
  ASSERT_THAT(with(0, page), IsOkAndHolds(sample_set())) << "as it was";
  EXPECT_THAT(with(0, page + 1), HasError(Errc::corrupt)) << "a part of a page";
  EXPECT_THAT(with(8, 0), HasError(Errc::corrupt)) << "no page";
  EXPECT_THAT(with(40, 0 - 49 * page), HasError(Errc::corrupt)) << "more than there are";
  EXPECT_THAT(with(32, 11 * page), HasError(Errc::corrupt)) << "in one before";
  EXPECT_THAT(with(32, 12 * page), HasError(Errc::corrupt)) << "adjacent to one before";
  EXPECT_THAT(with(0, 200 * page), HasError(Errc::corrupt)) << "not in order";
}

TEST(WorkingSet, DescriptorsThatCanNotBeUsed) {
  EXPECT_THAT(WorkingSet::load(-1), HasError(Errc::os));
  EXPECT_THAT(sample_set().save(-1), HasError(Errc::os));
  const OwnedFd full(open("/dev/full", O_WRONLY));
  EXPECT_THAT(sample_set().save(full.get()), HasError(Errc::os));
}

}  // namespace
}  // namespace vmspace::working_set_test
