// SPDX-License-Identifier: Apache-2.0
//
// What watches or fills memory goes on in the parent when a child that has forked destroys its copy.

#include "host/forked_child.hpp"

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/snapshot/dirty_scan.hpp"
#include "vmspace/snapshot/lazy_restore.hpp"
#include "vmspace/snapshot/live_snapshot.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/snapshot_support.hpp"

namespace vmspace::forked_child_test {
namespace {

using namespace test;

/// Whether this kernel has no userfaultfd for it, or this process may not use it: then a test skips.
template <typename T>
bool is_missing(const Result<T>& made) {
  return !made &&
         (made.error().code == Errc::unsupported || made.error().code == Errc::access_denied);
}

TEST(ForkedChild, LeavesARestoreToItsParent) {
  const GuestMemory memory = guest({{low, 64 * page}});
  ASSERT_TRUE(memory.write_slice(GuestAddress(low), pattern(64 * page)));
  const TempFile file;
  ASSERT_THAT(save_snapshot(memory, file.fd()), IsOk());
  const GuestMemory fresh = guest({{low, 64 * page}});
  auto reader = SnapshotReader::open(file.fd());
  ASSERT_THAT(reader, IsOk());
  auto started =
      LazyRestore::start(fresh, std::make_shared<SnapshotReader>(*reader), {.background = false});
  if (is_missing(started)) GTEST_SKIP() << started.error().message();
  ASSERT_THAT(started, IsOk());
  std::optional<LazyRestore> restore(*std::move(started));
  destroy_in_a_child(restore);
  EXPECT_EQ(contents(fresh, low, 64 * page), pattern(64 * page));
}

TEST(ForkedChild, LeavesASnapshotToItsParent) {
  const GuestMemory memory = guest({{low, 64 * page}});
  ASSERT_TRUE(memory.write_slice(GuestAddress(low), pattern(64 * page)));
  const TempFile file;
  auto writer = SnapshotWriter::create(file.fd(), memory);
  ASSERT_THAT(writer, IsOk());
  auto prepared = LiveSnapshot::prepare(memory, *std::move(writer));
  if (is_missing(prepared)) GTEST_SKIP() << prepared.error().message();
  ASSERT_THAT(prepared, IsOk());
  std::optional<LiveSnapshot> snapshot(*std::move(prepared));
  destroy_in_a_child(snapshot);
  VMSPACE_ASSERT_OK(snapshot->take());
  ASSERT_TRUE(memory.write_slice(GuestAddress(low), pattern(64 * page, 1)));
  destroy_in_a_child(snapshot);
  ASSERT_THAT(snapshot->wait(), IsOk());
  ASSERT_THAT(restore_snapshot(memory, file.fd()), IsOk());
  EXPECT_EQ(contents(memory, low, 64 * page), pattern(64 * page));
}

TEST(ForkedChild, LeavesAScanToItsParent) {
  const GuestMemory memory = guest({{low, 64 * page}});
  ASSERT_TRUE(memory.write_slice(GuestAddress(low), pattern(64 * page)));
  auto started = DirtyScan::start(memory);
  if (is_missing(started)) GTEST_SKIP() << started.error().message();
  ASSERT_THAT(started, IsOk());
  std::optional<DirtyScan> scan(*std::move(started));
  destroy_in_a_child(scan);
  ASSERT_TRUE(memory.write_slice(GuestAddress(low + page), pattern(page, 1)));
  EXPECT_THAT(scan->harvest(),
              IsOkAndHolds(std::vector<GuestRange>{{GuestAddress(low + page), page}}));
}

}  // namespace
}  // namespace vmspace::forked_child_test
