// SPDX-License-Identifier: Apache-2.0
//
// Snapshots through pipes and sockets.

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/format_support.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::snapshot_stream_test {
namespace {

using namespace test;

/// Both ends of a pipe or of a stream socket, the first to read from.
struct Ends {
  int fds[2] = {-1, -1};

  explicit Ends(bool is_socket, int flags = 0) {
    EXPECT_EQ(is_socket ? socketpair(AF_UNIX,
                                     SOCK_STREAM | ((flags & O_NONBLOCK) != 0 ? SOCK_NONBLOCK : 0),
                                     0, fds)
                        : pipe2(fds, flags),
              0);
  }
  Ends(const Ends&) = delete;
  Ends& operator=(const Ends&) = delete;
  ~Ends() {
    close_end(0);
    close_end(1);
  }
  void close_end(int i) {
    if (fds[i] >= 0) close(std::exchange(fds[i], -1));
  }
};

/// All that a save writes to a pipe.
std::vector<std::byte> streamed(const GuestMemory& memory, const SaveOptions& options = {}) {
  Ends ends(false);
  std::vector<std::byte> bytes;
  std::thread reader([&] {
    std::vector<std::byte> part(1 << 16);
    for (ssize_t got = 0; (got = read(ends.fds[0], part.data(), part.size())) > 0;)
      bytes.insert(bytes.end(), part.begin(), part.begin() + got);
  });
  VMSPACE_EXPECT_OK(save_snapshot(memory, ends.fds[1], options));
  ends.close_end(1);
  reader.join();
  return bytes;
}

/// Restores what a pipe gives; the writer ends with the bytes.
Result<void> restore_bytes(const GuestMemory& memory, std::span<const std::byte> bytes) {
  signal(SIGPIPE, SIG_IGN);
  Ends ends(false);
  std::thread writer([&] {
    while (!bytes.empty()) {
      const ssize_t done = write(ends.fds[1], bytes.data(), bytes.size());
      if (done < 0) break;
      bytes = bytes.subspan(static_cast<std::size_t>(done));
    }
    ends.close_end(1);
  });
  const auto restored = restore_snapshot(memory, ends.fds[0]);
  ends.close_end(0);
  writer.join();
  return restored;
}

GuestMemory filled_target(MemorySource source = MemorySource::anon) {
  GuestMemory target = guest({{low, 64 * page, Protection::read_write, source},
                              {high, 300 * page, Protection::read_write, source}});
  EXPECT_TRUE(target.fill({GuestAddress(low), 64 * page}, std::byte{0xee}));
  EXPECT_TRUE(target.fill({GuestAddress(high + 50 * page), page}, std::byte{0xee}));
  return target;
}

TEST(SnapshotStream, GoesThroughPipesAndSocketsThatBlockOrDont) {
  for (const bool is_socket : {false, true}) {
    for (const int flags : {0, O_NONBLOCK}) {
      for (const bool checksums : {false, true}) {
        for (const bool sparse : {false, true}) {
          SCOPED_TRACE(std::string(is_socket ? "socket" : "pipe") + " " + std::to_string(flags));
          const GuestMemory memory = sample(MemorySource::shmem);
          Ends ends(is_socket, flags);
          std::thread saver([&] {
            const auto saved =
                save_snapshot(memory, ends.fds[1], {.sparse = sparse, .checksums = checksums});
            ASSERT_THAT(saved, IsOk());
            EXPECT_EQ(saved->stored, sparse ? 5 * page : 364 * page);
          });
          const GuestMemory target = filled_target();
          const auto restored = restore_snapshot(target, ends.fds[0]);
          saver.join();
          ASSERT_THAT(restored, IsOk());
          expect_same(memory, target);
        }
      }
    }
  }
}

TEST(SnapshotStream, TakesNoByteThatFollows) {
  const GuestMemory memory = sample(MemorySource::anon);
  Ends ends(true);
  std::thread saver([&] {
    for (int i = 0; i < 2; ++i) {
      VMSPACE_EXPECT_OK(save_snapshot(memory, ends.fds[1]));
      EXPECT_EQ(write(ends.fds[1], "next", 4), 4);
    }
  });
  const GuestMemory target = filled_target();
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(restore_snapshot(target, ends.fds[0]), IsOk());
    char next[5] = {};
    EXPECT_EQ(recv(ends.fds[0], next, 4, MSG_WAITALL), 4);
    EXPECT_STREQ(next, "next");
  }
  saver.join();
  expect_same(memory, target);
}

TEST(SnapshotStream, CopiedToAFileIsASnapshotThere) {
  const GuestMemory memory = sample(MemorySource::anon);
  for (const bool checksums : {false, true}) {
    const TempFile file;
    file.write(streamed(memory, {.checksums = checksums}));
    EXPECT_THAT(inspect_snapshot(file.fd()), IsOk());
    const GuestMemory target = filled_target();
    VMSPACE_ASSERT_OK(restore_snapshot(target, file.fd()));
    expect_same(memory, target);
  }
}

TEST(SnapshotStream, ThatEndsEarlyIsCorruptAtEveryLength) {
  const GuestMemory memory = guest({{low, 4 * page}});
  ASSERT_TRUE(memory.write_slice(GuestAddress(low + page), pattern(page)));
  const auto bytes = streamed(memory, {.checksums = true});
  const GuestMemory target = guest({{low, 4 * page}});
  const std::size_t data = 128 + 32 + 32 + 8;
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    if (size > data && size < data + page) size = data + page;
    SCOPED_TRACE(size);
    ASSERT_THAT(restore_bytes(target, std::span(bytes).first(size)), HasError(Errc::corrupt));
  }
  VMSPACE_EXPECT_OK(restore_bytes(target, bytes));
}

TEST(SnapshotStream, AChangedByteAnywhereIsAnError) {
  const GuestMemory memory = guest({{low, 4 * page}, {high, page}});
  ASSERT_TRUE(memory.write_slice(GuestAddress(low + page), pattern(page)));
  ASSERT_TRUE(memory.write_slice(GuestAddress(high), pattern(page)));
  const auto good = streamed(memory, {.checksums = true});
  const GuestMemory target = guest({{low, 4 * page}, {high, page}});
  for (std::size_t i = 0; i < good.size(); ++i) {
    const std::size_t data = 128 + 64 + 32 + 8;
    if (i > data + 16 && i < data + page - 16) i = data + page - 16;
    SCOPED_TRACE(i);
    auto bad = good;
    bad[i] ^= std::byte{0x10};
    const auto restored = restore_bytes(target, bad);
    ASSERT_FALSE(restored);
    const bool version = i >= 8 && i < 12;
    ASSERT_TRUE(restored.error().code == Errc::corrupt ||
                (version && restored.error().code == Errc::unsupported))
        << restored.error().message();
  }
}

TEST(SnapshotStream, WithRecordsOfAnotherSaveIsCorrupt) {
  const GuestMemory memory = guest({{low, 4 * page}});
  ASSERT_TRUE(memory.write_slice(GuestAddress(low + page), pattern(page, 1)));
  ASSERT_TRUE(memory.write_slice(GuestAddress(low + 3 * page), pattern(page, 2)));
  const auto one = streamed(memory);
  const auto two = streamed(memory);
  const GuestMemory target = guest({{low, 4 * page}});
  const std::size_t record = 128 + 32;
  const std::size_t size = 32 + page;
  const auto splice = [&](const std::vector<std::byte>& from, std::size_t at) {
    auto bad = one;
    std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(at), size,
                bad.begin() + static_cast<std::ptrdiff_t>(record));
    return bad;
  };
  EXPECT_THAT(restore_bytes(target, splice(two, record)), HasError(Errc::corrupt));
  EXPECT_THAT(restore_bytes(target, splice(one, record + size)), HasError(Errc::corrupt));
  VMSPACE_EXPECT_OK(restore_bytes(target, splice(one, record)));
}

TEST(SnapshotStream, ThatNamesMorePagesThanThereAreIsCorruptAtOnce) {
  constexpr std::uint64_t size = 16 * page;  // more is not gathered
  const GuestMemory memory = guest({{low, size}});
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  std::thread sender([&] {
    auto writer = SnapshotWriter::create(ends[1], memory);
    while (writer && writer->write(GuestAddress(low), pattern(size))) {
    }
  });
  const auto restored = restore_snapshot(memory, ends[0]);
  ::close(ends[0]);
  sender.join();
  ::close(ends[1]);
  ASSERT_THAT(restored, HasError(Errc::corrupt));
  EXPECT_THAT(restored.error().message(), ::testing::HasSubstr("more pages"));
}

TEST(SnapshotStream, WhosePlacesMakeNoSenseIsCorrupt) {
  const GuestMemory memory = guest({{low, 4 * page}, {high, page}});
  ASSERT_TRUE(memory.write_slice(GuestAddress(low + page), pattern(page)));
  ASSERT_TRUE(memory.write_slice(GuestAddress(high), pattern(page)));
  const auto good = streamed(memory);
  const GuestMemory target = guest({{low, 4 * page}, {high, page}});
  const std::size_t record = 128 + 64;
  const auto altered = [&](std::uint32_t kind, std::uint64_t base, std::uint64_t size) {
    auto bytes = good;
    store_at(bytes, record, Le32(kind));
    store_at(bytes, record + 8, Le64(base));
    store_at(bytes, record + 16, Le64(size));
    mend_records(bytes);
    return restore_bytes(target, bytes);
  };
  VMSPACE_EXPECT_OK(altered(1, low, page));
  for (const std::uint64_t base : {std::uint64_t{0}, low + 1, low + 4 * page, high, last_page})
    EXPECT_THAT(altered(1, base, page), HasError(Errc::corrupt)) << base;
  for (const std::uint64_t size :
       {std::uint64_t{0}, std::uint64_t{1}, 5 * page, last_page, std::uint64_t{1} << 63})
    EXPECT_THAT(altered(1, low, size), HasError(Errc::corrupt)) << size;
  for (const std::uint32_t kind : {0U, 4U, 3U, 0x101U})
    EXPECT_THAT(altered(kind, low, page), HasError(Errc::corrupt)) << kind;
}

TEST(SnapshotStream, OfAnotherLayoutIsRefusedBeforeAnythingIsWritten) {
  const auto bytes = streamed(sample(MemorySource::anon));
  const GuestMemory other = guest({{low, 65 * page}, {high, 300 * page}});
  ASSERT_TRUE(other.fill({GuestAddress(low), 65 * page}, std::byte{0xee}));
  const auto before = contents(other, low, 65 * page);
  EXPECT_THAT(restore_bytes(other, bytes), HasError(Errc::invalid_argument));
  EXPECT_EQ(contents(other, low, 65 * page), before);
}

TEST(SnapshotStream, IsNeitherAnImageNorADifference) {
  const GuestMemory memory = sample(MemorySource::anon);
  const TempFile file;
  const auto full = save_snapshot(memory, file.fd());
  ASSERT_THAT(full, IsOk());
  EXPECT_THAT(restore_bytes(memory, file.read(1 << 16)), HasError(Errc::unsupported));
  const GuestRange changed{GuestAddress(low), page};
  const auto changes = streamed(memory, {.changes = SnapshotChanges{full->id, {&changed, 1}}});
  EXPECT_THAT(restore_bytes(memory, changes), HasError(Errc::invalid_argument));
  // But a difference that went through a pipe can be opened where it ends up.
  const TempFile copied;
  copied.write(changes);
  const int parent = file.fd();
  EXPECT_THAT(SnapshotReader::open(copied.fd(), {&parent, 1}), IsOk());
}

TEST(SnapshotStream, WhosePeerIsGoneIsAnErrorAndNoSignalOfASocket) {
  const GuestMemory memory = sample(MemorySource::anon);
  signal(SIGPIPE, SIG_DFL);  // would end the test
  Ends socket(true);
  socket.close_end(0);
  const auto saved = save_snapshot(memory, socket.fds[1]);
  ASSERT_THAT(saved, HasError(Errc::os));
  EXPECT_EQ(saved.error().os_errno, EPIPE);
  signal(SIGPIPE, SIG_IGN);
  Ends pipe(false);
  pipe.close_end(0);
  const auto piped = save_snapshot(memory, pipe.fds[1]);
  ASSERT_THAT(piped, HasError(Errc::os));
  EXPECT_EQ(piped.error().os_errno, EPIPE);
}

TEST(SnapshotStream, ASaverThatGivesUpIsNoticed) {
  const GuestMemory memory = guest({{low, 256 * page}});
  ASSERT_TRUE(memory.write_slice(GuestAddress(low), pattern(256 * page)));
  Ends ends(true);
  std::thread saver([&] {
    // Gives up when it is told of the first part.
    auto bytes = streamed(memory);
    EXPECT_EQ(write(ends.fds[1], bytes.data(), 300'000), 300'000);
    ends.close_end(1);
  });
  const GuestMemory target = guest({{low, 256 * page}});
  EXPECT_THAT(restore_snapshot(target, ends.fds[0]), HasError(Errc::corrupt));
  saver.join();
}

TEST(SnapshotStream, ReadOnlyRegionsMustBeWhatTheyWere) {
  const GuestMemory memory = guest({{low, 2 * page, Protection::read}, {high, page}});
  VMSPACE_ASSERT_OK(memory.write(GuestAddress(high), 5U));
  auto bytes = streamed(memory, {.sparse = false});
  VMSPACE_ASSERT_OK(memory.write(GuestAddress(high), 6U));
  VMSPACE_EXPECT_OK(restore_bytes(memory, bytes));
  EXPECT_EQ(memory.read<std::uint32_t>(GuestAddress(high)), 5U);
  bytes[128 + 64 + 32 + 100] = std::byte{1};
  EXPECT_THAT(restore_bytes(memory, bytes), HasError(Errc::access_denied));
}

TEST(SnapshotStream, MarksWhatItWrites) {
  const GuestMemory memory = sample(MemorySource::shmem);
  const auto bytes = streamed(memory);
  ASSERT_TRUE(memory.fill({GuestAddress(low + 40 * page), page}, std::byte{1}));
  VMSPACE_ASSERT_OK(enable_dirty_tracking(memory));
  VMSPACE_ASSERT_OK(restore_bytes(memory, bytes));
  const auto dirty = harvest_dirty(memory);
  ASSERT_THAT(dirty, IsOk());
  const auto marked = [&](std::uint64_t address) {
    return std::ranges::any_of(
        *dirty, [&](const GuestRange& r) { return r.contains(GuestAddress(address)); });
  };
  EXPECT_TRUE(marked(low + 3 * page));
  EXPECT_TRUE(marked(low + 40 * page));
  EXPECT_FALSE(marked(high + 200 * page));
}

TEST(SnapshotStream, ProgressReachesTheTotal) {
  const GuestMemory memory = sample(MemorySource::anon);
  std::uint64_t last = 0;
  Ends ends(true);
  std::thread saver([&] { VMSPACE_EXPECT_OK(save_snapshot(memory, ends.fds[1])); });
  VMSPACE_EXPECT_OK(restore_snapshot(memory, ends.fds[0], [&](auto done, auto total) {
    EXPECT_EQ(total, memory.total_size());
    EXPECT_GE(done, last);
    last = done;
  }));
  saver.join();
  EXPECT_EQ(last, memory.total_size());
}

}  // namespace
}  // namespace vmspace::snapshot_stream_test
