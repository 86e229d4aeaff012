// SPDX-License-Identifier: Apache-2.0
//
// Blocks that are unplugged while somebody handles the page faults of their memory, who keeps the region
// for as long and is not waited for.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "snapshot/dirty_scan_support.hpp"
#include "snapshot/lazy_support.hpp"
#include "snapshot/live_support.hpp"
#include "vmm/memory_blocks_support.hpp"

namespace vmspace::test::unplugged_blocks_test {
namespace {

using namespace std::chrono_literals;

/// Two slots are plugged; the first goes, and one block of it comes back.
class UnpluggedBlocks : public MemoryBlocksTest {
 protected:
  void SetUp() override {
    MemoryBlocksTest::SetUp();
    VMSPACE_ASSERT_OK(blocks.plug(run(0, 8)));
  }
  void unplug_and_plug() const {
    VMSPACE_EXPECT_OK(blocks.unplug(run(0, 4), 1s));
    expect_agreement();
    VMSPACE_EXPECT_OK(blocks.plug(run(1, 1)));
    EXPECT_EQ(word(1), 0u);
  }
  [[nodiscard]] GuestMemory now() const { return memory.map()->memory; }
  [[nodiscard]] std::uint64_t word(std::uint64_t first) const {
    return now().read<std::uint64_t>(run(first, 1).base).value();
  }
};

TEST_F(UnpluggedBlocks, GoWhileTheMemoryIsRestored) {
  const auto source = std::make_shared<WordSource>();
  source->is_zero = [](std::uint64_t at) { return !run(0, 8).contains(GuestAddress(at)); };
  START_RESTORE_OR_SKIP(restore, now(), source, {.background = false});
  EXPECT_EQ(word(0), word_at(base.value()));
  unplug_and_plug();
  restore.resume_background();
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
  EXPECT_EQ(restore.statistics().discarded, 4 * block - page);
  EXPECT_EQ(word(1), 0u);
  EXPECT_EQ(word(4), word_at(run(4, 1).base.value()));
}

TEST_F(UnpluggedBlocks, AreSavedAsTheyWereAtTheInstant) {
  VMSPACE_ASSERT_OK(now().write_slice(base, pattern(8 * block)));
  const TempFile file;
  PREPARE_OR_SKIP(snapshot, now(), file.fd());
  const SlowDisk disk;
  VMSPACE_ASSERT_OK(snapshot.take());
  std::thread goes_on([] { SlowDisk::go_on(); });
  unplug_and_plug();  // waits for the disk where the buffer is full
  goes_on.join();
  VMSPACE_EXPECT_OK(now().fill(run(1, 1), std::byte{1}));
  VMSPACE_ASSERT_OK(snapshot.wait());
  const GuestMemory saved = guest({{base.value(), all.size}});
  VMSPACE_ASSERT_OK(restore_snapshot(saved, file.fd()));
  EXPECT_EQ(contents(saved, base.value(), 8 * block), pattern(8 * block));
}

TEST_F(UnpluggedBlocks, GoWhileTheMemoryIsWatched) {
  START_SCAN_OR_SKIP(scan, now());
  unplug_and_plug();
  VMSPACE_EXPECT_OK(now().write(run(4, 1).base, std::uint64_t{1}));
  const auto harvested = scan.harvest();
  ASSERT_THAT(harvested, IsOk());
  EXPECT_THAT(*harvested, testing::ElementsAre(GuestRange{base, 4 * block + page}));
}

}  // namespace
}  // namespace vmspace::test::unplugged_blocks_test
