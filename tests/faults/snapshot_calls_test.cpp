// SPDX-License-Identifier: Apache-2.0
//
// Every system call that differential snapshots, chains and streams make, failing: with each errno,
// at each place, once.

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/snapshot/snapshot_writer.hpp"
#include "vmspace/testing.hpp"

#include "faults/fail_each_call.hpp"
#include "faults/failing_new.hpp"
#include "faults/injector.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::snapshot_calls_test {
namespace {

using test::contents;
using test::fail_each_call;
using test::guest;
using test::Injector;
using test::page;
using test::pattern;
using test::TempFile;

constexpr std::uint64_t base = 0x10000;

/// Two pages of changes since a full snapshot, in memory that has both.
struct SnapshotChangesCalls : ::testing::Test {
  GuestMemory memory = guest({{base, 4 * page, Protection::read_write, MemorySource::shmem}});
  TempFile full;
  TempFile changes;
  SnapshotId full_id;
  std::vector<GuestRange> changed{{GuestAddress(base), page},
                                  {GuestAddress(base + 3 * page), page}};

  void SetUp() override {
    // No holes, which reading would fill, so that every run makes the same calls.
    ASSERT_TRUE(memory.fill({GuestAddress(base), 4 * page}, std::byte{0}));
    ASSERT_TRUE(memory.write_slice(GuestAddress(base), pattern(2 * page)));
    full_id = save_snapshot(memory, full.fd(), {.checksums = true})->id;
    ASSERT_TRUE(memory.fill({GuestAddress(base), page}, std::byte{0}));
    ASSERT_TRUE(memory.write_slice(GuestAddress(base + 3 * page), pattern(page, 3)));
    VMSPACE_ASSERT_OK(save_changes());
  }

  [[nodiscard]] Result<void> save_changes() const {
    const auto saved = save_snapshot(
        memory, changes.fd(),
        {.changes = SnapshotChanges{.parent = full_id, .ranges = changed}, .checksums = true});
    if (!saved) return fail(saved.error());
    return {};
  }
  [[nodiscard]] Result<SnapshotReader> open() const {
    const int parent = full.fd();
    return SnapshotReader::open(changes.fd(), {&parent, 1});
  }
  [[nodiscard]] bool is_good(Result<SnapshotReader> reader) const {
    std::vector<std::byte> bytes(4 * page);
    return reader && reader->read(GuestAddress(base), bytes) &&
           bytes == contents(memory, base, 4 * page);
  }
};

TEST_F(SnapshotChangesCalls, ASaveThatFailsSaysSoAndLeavesNoSnapshot) {
  bool complete = false;
  fail_each_call(
      {"lseek", "open", "ioctl", "pread of pagemap", "mincore"},
      [&] {
        EXPECT_EQ(ftruncate(changes.fd(), 0), 0);
        const auto saved = save_changes();
        complete = saved.has_value();
        if (!saved) {
          EXPECT_FALSE(inspect_snapshot(changes.fd()));
        }
        return saved;
      },
      [&] { return complete && is_good(open()); });
}

TEST_F(SnapshotChangesCalls, AChainThatCantBeOpenedOrReadSaysSo) {
  bool good = false;
  fail_each_call(
      {"lseek"},
      [&]() -> Result<void> {
        auto reader = open();
        if (!reader) return fail(reader.error());
        const auto data = reader->next_data({GuestAddress(base), 4 * page});
        if (!data) return fail(data.error());
        std::vector<std::byte> bytes(4 * page);
        const auto read = reader->read(GuestAddress(base), bytes);
        good = read && bytes == contents(memory, base, 4 * page);
        return read;
      },
      [&] { return good; });
}

TEST_F(SnapshotChangesCalls, AMergeThatFailsSaysSoAndLeavesNoSnapshot) {
  const TempFile merged;
  const auto reader = open();
  ASSERT_THAT(reader, IsOk());
  fail_each_call(
      {"lseek"},
      [&]() -> Result<void> {
        EXPECT_EQ(ftruncate(merged.fd(), 0), 0);
        const auto saved = merge_snapshots(*reader, merged.fd(), {.checksums = true});
        if (saved) return {};
        EXPECT_FALSE(inspect_snapshot(merged.fd()));
        return fail(saved.error());
      },
      [&] { return is_good(SnapshotReader::open(merged.fd())); });
}

TEST_F(SnapshotChangesCalls, AWriterThatHasFailedWritesNoMore) {
  for (const auto& parent : {std::optional<SnapshotId>{}, std::optional{full_id}}) {
    auto writer = SnapshotWriter::create(changes.fd(), memory, {.parent = parent});
    ASSERT_THAT(writer, IsOk());
    Injector injector;
    injector.fail_next("pwrite", ENOSPC);
    const auto many = pattern(4 * page);
    const auto written = writer->write(GuestAddress(base), many);
    // Records are gathered: what fails is the end then.
    const bool failed = written ? !writer->finish() : true;
    EXPECT_TRUE(failed);
    EXPECT_THAT(writer->write(GuestAddress(base), many), HasError(Errc::bad_state));
    EXPECT_THAT(writer->finish(), HasError(Errc::bad_state));
    EXPECT_FALSE(inspect_snapshot(changes.fd()));
  }
}

TEST(SnapshotWriterMemory, RunsOutAndWhatWasNotWrittenCanBeWrittenAgain) {
  constexpr std::uint64_t size = std::uint64_t{20} << 20;  // three records
  const GuestMemory memory = guest({{base, size}});
  const TempFile full;
  const auto parent = save_snapshot(memory, full.fd());
  ASSERT_THAT(parent, IsOk());
  const std::vector<std::byte> pages = pattern(size);
  for (const auto& id : {std::optional<SnapshotId>{}, std::optional{parent->id}}) {
    const TempFile file;
    auto writer = SnapshotWriter::create(file.fd(), memory, {.parent = id});
    ASSERT_THAT(writer, IsOk());
    const int failures = test::fail_each_allocation(
        [&] { VMSPACE_ASSERT_OK(writer->write(GuestAddress(base), pages)); },
        [&] { EXPECT_EQ(writer->stored(), 0U); });
    EXPECT_GT(failures, 0);
    EXPECT_EQ(writer->stored(), size);
    ASSERT_THAT(writer->finish(), IsOk());
    auto reader = SnapshotReader::open(file.fd(), {{full.fd()}});
    ASSERT_THAT(reader, IsOk());
    std::vector<std::byte> read(size);
    VMSPACE_ASSERT_OK(reader->read(GuestAddress(base), read));
    EXPECT_TRUE(read == pages);
  }
}

/// A socket whose calls fail, with all that is sent in its buffer.
struct SnapshotStreamCalls : SnapshotChangesCalls {
  [[nodiscard]] static bool drain(int fd) {
    std::vector<std::byte> rest(1 << 16);
    return recv(fd, rest.data(), rest.size(), MSG_DONTWAIT) >= 0;
  }
};

TEST_F(SnapshotStreamCalls, ASaveOrARestoreThatFailsSaysSo) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  const GuestMemory target = guest({{base, 4 * page, Protection::read_write, MemorySource::shmem}});
  ASSERT_TRUE(target.fill({GuestAddress(base), 4 * page}, std::byte{1}));
  fail_each_call(
      {"lseek", "open", "ioctl", "pread of pagemap", "mincore"},
      [&]() -> Result<void> {
        const auto saved = save_snapshot(memory, ends[1], {.checksums = true});
        if (!saved) return fail(saved.error());
        return restore_snapshot(target, ends[0]);
      },
      [&] { return contents(target, base, 4 * page) == contents(memory, base, 4 * page); },
      [&] {
        while (drain(ends[0])) {
        }
      });
  close(ends[0]);
  close(ends[1]);
}

TEST_F(SnapshotStreamCalls, BytesThatComeAndGoOneByOneAreASnapshot) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), 0);
  const GuestMemory target = guest({{base, 4 * page}});
  Injector injector;
  injector.table().read = [](int fd, void* buffer, std::size_t size) {
    return ::read(fd, buffer, std::min<std::size_t>(size, 7));
  };
  injector.table().sendmsg = [](int fd, const struct msghdr* message, int flags) {
    EXPECT_NE(flags & MSG_NOSIGNAL, 0);
    const struct iovec& piece = message->msg_iov[0];
    return ::send(fd, piece.iov_base, std::min<std::size_t>(piece.iov_len, 1000), flags);
  };
  VMSPACE_EXPECT_OK(save_snapshot(memory, ends[1]));
  VMSPACE_EXPECT_OK(restore_snapshot(target, ends[0]));
  EXPECT_EQ(contents(target, base, 4 * page), contents(memory, base, 4 * page));
  close(ends[0]);
  close(ends[1]);
}

}  // namespace
}  // namespace vmspace::snapshot_calls_test
