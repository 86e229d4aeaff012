// SPDX-License-Identifier: Apache-2.0
//
// Snapshot files that are not what they should be.

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <ios>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/endian.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/format_support.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::snapshot_format_test {
namespace {

using namespace test;

TEST(Snapshot, AChangedByteAnywhereInTheMetadataIsAnErrorAndChangesNothing) {
  const GuestMemory memory = sample(MemorySource::anon);
  TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd()));
  const auto good = file.read(metadata);
  const GuestMemory target = sample(MemorySource::anon);
  ASSERT_TRUE(target.fill({GuestAddress(low), page}, std::byte{0x5a}));
  const auto before = contents(target, low, 64 * page);
  for (std::size_t i = 0; i < metadata; ++i) {
    for (const unsigned flip : {0x01U, 0x80U, 0xffU}) {
      SCOPED_TRACE("byte " + std::to_string(i));
      auto bad = good;
      bad[i] ^= static_cast<std::byte>(flip);
      file.write(bad);
      const auto seen = inspect_snapshot(file.fd());
      ASSERT_FALSE(seen);
      const bool version = i >= 8 && i < 12;
      EXPECT_TRUE(seen.error().code == Errc::corrupt ||
                  (version && seen.error().code == Errc::unsupported))
          << seen.error().message();
      ASSERT_FALSE(restore_snapshot(target, file.fd()));
      ASSERT_FALSE(map_snapshot(file.fd()));
    }
  }
  EXPECT_EQ(contents(target, low, 64 * page), before);
  file.write(good);
  VMSPACE_EXPECT_OK(restore_snapshot(target, file.fd()));
}

TEST(Snapshot, AFileThatIsCutOffIsAnErrorAtEveryLength) {
  const GuestMemory memory = sample(MemorySource::anon);
  TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd()));
  const off_t whole = file.status().st_size;
  const GuestMemory target = sample(MemorySource::anon);
  for (const off_t size : {whole - 1, whole / 2, off_t{metadata}, off_t{metadata - 1}, off_t{128},
                           off_t{63}, off_t{1}, off_t{0}}) {
    SCOPED_TRACE(size);
    ASSERT_EQ(ftruncate(file.fd(), size), 0);
    const auto restored = restore_snapshot(target, file.fd());
    ASSERT_THAT(restored, HasError(Errc::corrupt));
    EXPECT_THAT(map_snapshot(file.fd()), HasError(Errc::corrupt));
  }
  expect_same(memory, target);
}

TEST(Snapshot, AnErrorNamesTheCallThatWasMade) {
  TempFile file;
  file.write(pattern(page, 1));
  const auto operation = [](const auto& result) {
    return std::string(result ? "none" : result.error().operation);
  };
  EXPECT_EQ(operation(inspect_snapshot(file.fd())), "inspect_snapshot");
  EXPECT_EQ(operation(map_snapshot(file.fd())), "map_snapshot");
  EXPECT_EQ(operation(restore_snapshot(sample(MemorySource::anon), file.fd())), "restore_snapshot");
}

TEST(Snapshot, ANewerVersionIsUnsupportedAndNotCorrupt) {
  TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(sample(MemorySource::anon), file.fd()));
  auto head = file.read(64);
  head[8] = std::byte{3};
  file.write(head);
  EXPECT_THAT(inspect_snapshot(file.fd()), HasError(Errc::unsupported));
}

TEST(Snapshot, UnknownProtectionBitsAreCorrupt) {
  TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(sample(MemorySource::anon), file.fd()));
  auto head = file.read(metadata);
  for (const std::uint32_t protection : {8U, 0x0fU, 0x100U, 0x103U, 0x8000'0003U}) {
    SCOPED_TRACE(protection);
    const Le32 stored = protection;
    std::memcpy(head.data() + 128 + 24, &stored, sizeof stored);
    mend_head(head);
    file.write(head);
    EXPECT_THAT(inspect_snapshot(file.fd()), HasError(Errc::corrupt));
    EXPECT_THAT(map_snapshot(file.fd()), HasError(Errc::corrupt));
  }
  const Le32 known = 7U;
  std::memcpy(head.data() + 128 + 24, &known, sizeof known);
  mend_head(head);
  file.write(head);
  VMSPACE_EXPECT_OK(inspect_snapshot(file.fd()));
}

TEST(Snapshot, NothingBecomesExecutableOnTheFilesWord) {
  constexpr auto all = Protection::read_write | Protection::execute;
  TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(guest({{low, page, all}}), file.fd()));
  const auto mapped = map_snapshot(file.fd());
  ASSERT_THAT(mapped, IsOk());
  EXPECT_EQ(mapped->regions().front()->protection(), all);
  EXPECT_EQ(test::permissions_at(mapped->regions().front()->host_base()), "rw-p");
}

/// A file as the golden ones are written: runs of equal bytes.
void write_runs(const std::string& name, const TempFile& file) {
  std::ifstream in(std::string(VMSPACE_GOLDEN_DIR) + "/" + name);
  ASSERT_TRUE(in) << name;
  std::string comment;
  std::getline(in, comment);
  std::vector<std::byte> bytes;
  unsigned byte = 0;
  std::size_t count = 0;
  while (in >> std::hex >> byte >> count)
    bytes.insert(bytes.end(), count, static_cast<std::byte>(byte));
  file.write(bytes);
}

TEST(Snapshot, OfVersion1IsStillRead) {
  const TempFile file;
  write_runs("version1.txt", file);
  const GuestMemory expected = guest({{low, 4 * page}, {high, 3 * page}, {2 * high, page}});
  ASSERT_TRUE(expected.fill({GuestAddress(0x2000), page}, std::byte{0x11}));
  ASSERT_TRUE(expected.fill({GuestAddress(0x4800), 0x100}, std::byte{0x22}));
  ASSERT_TRUE(expected.fill({GuestAddress(high + 0x2ff0), 0x10}, std::byte{0x33}));
  const auto regions = inspect_snapshot(file.fd());
  ASSERT_THAT(regions, IsOk());
  EXPECT_EQ((*regions)[2], (SnapshotRegion{.base = GuestAddress(2 * high),
                                           .size = page,
                                           .offset = 0x60'0000,
                                           .protection = Protection::read}));
  const auto reader = SnapshotReader::open(file.fd());
  ASSERT_THAT(reader, IsOk());
  EXPECT_FALSE(reader->id());
  const GuestMemory restored = guest({{low, 4 * page}, {high, 3 * page}, {2 * high, page}});
  VMSPACE_ASSERT_OK(restore_snapshot(restored, file.fd()));
  expect_same(expected, restored);
  const auto mapped = map_snapshot(file.fd());
  ASSERT_THAT(mapped, IsOk());
  expect_same(expected, *mapped);
  // And every byte of its metadata counts.
  const auto good = file.read(64 + 3 * 32);
  for (std::size_t i = 0; i < good.size(); ++i) {
    auto bad = good;
    bad[i] ^= std::byte{1};
    file.write(bad);
    EXPECT_FALSE(inspect_snapshot(file.fd())) << i;
  }
}

}  // namespace
}  // namespace vmspace::snapshot_format_test
