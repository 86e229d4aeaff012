// SPDX-License-Identifier: Apache-2.0
//
// One SnapshotReader, and copies of it, read by several threads at once: a chain of records, with
// checksums, and an image. Everybody finds what was saved.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::snapshot_reader_stress_test {
namespace {

using namespace test;

constexpr std::uint64_t pages = 512;
constexpr unsigned threads = 4;

class SnapshotReaderStress : public ::testing::Test {
 protected:
  /// Changes some pages, zeros among them, and saves what has changed.
  SnapshotId save(const TempFile& file, const SnapshotId& parent, unsigned seed, bool checksums) {
    std::mt19937_64 random(seed);
    for (unsigned i = 0; i < 100; ++i) {
      const GuestAddress at(low + random() % pages * page);
      EXPECT_TRUE(i % 5 == 0 ? memory.fill({at, page}, std::byte{0}).has_value()
                             : memory.write_slice(at, pattern(page, seed + i)).has_value());
    }
    SaveOptions options{.changes = {}, .checksums = checksums};
    const auto written = harvest_dirty(memory);
    EXPECT_TRUE(written.has_value());
    if (parent) options.changes = SnapshotChanges{.parent = parent, .ranges = *written};
    const auto saved = save_snapshot(memory, file.fd(), options);
    EXPECT_TRUE(saved.has_value());
    return saved->id;
  }

  void read_at_once(const SnapshotReader& shared) const {
    const std::vector<std::byte> expected = contents(memory, low, pages * page);
    std::atomic<std::uint64_t> wrong{0};
    SnapshotReader same = shared;
    const auto read = [&](SnapshotReader& reader, unsigned seed) {
      std::mt19937_64 random(seed);
      std::vector<std::byte> bytes(16 * page);
      for (int i = 0; i < 400; ++i) {
        const std::uint64_t first = random() % pages;
        const std::uint64_t count = 1 + random() % std::min<std::uint64_t>(16, pages - first);
        const std::span to(bytes.data(), count * page);
        const GuestRange range{GuestAddress(low + first * page), to.size()};
        const auto done = reader.read(range.base, to);
        const bool is_right =
            done && std::memcmp(to.data(), expected.data() + first * page, to.size()) == 0;
        const auto data = reader.next_data(range);
        if (!is_right || !data || !range.contains(*data)) ++wrong;
      }
    };
    std::vector<std::thread> running;
    for (unsigned i = 0; i < threads; ++i) {
      running.emplace_back([&, i] {
        SnapshotReader own = shared;
        read(i % 2 == 0 ? same : own, i);
      });
    }
    for (std::thread& thread : running)
      thread.join();
    EXPECT_EQ(wrong, 0U);
  }

  GuestMemory memory = guest({{low, pages* page}});
};

TEST_F(SnapshotReaderStress, ThreadsReadAChain) {
  VMSPACE_ASSERT_OK(enable_dirty_tracking(memory));
  for (const bool checksums : {false, true}) {
    const TempFile full;
    const TempFile first;
    const TempFile second;
    const SnapshotId full_id = save(full, {}, 1, checksums);
    const SnapshotId first_id = save(first, full_id, 2, checksums);
    save(second, first_id, 3, checksums);
    const std::array parents{full.fd(), first.fd()};
    const auto reader = SnapshotReader::open(second.fd(), parents);
    ASSERT_TRUE(reader.has_value()) << reader.error().message();
    read_at_once(*reader);
  }
}

TEST_F(SnapshotReaderStress, ThreadsReadAnImage) {
  VMSPACE_ASSERT_OK(enable_dirty_tracking(memory));
  const TempFile file;
  save(file, {}, 1, false);
  const auto reader = SnapshotReader::open(file.fd());
  ASSERT_TRUE(reader.has_value()) << reader.error().message();
  read_at_once(*reader);
}

}  // namespace
}  // namespace vmspace::snapshot_reader_stress_test
