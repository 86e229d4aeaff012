// SPDX-License-Identifier: Apache-2.0
//
// LiveSnapshot: what it refuses, what it excludes, and what a kernel may lack.

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/snapshot/live_snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/userfault.hpp"
#include "snapshot/live_support.hpp"

namespace vmspace::live_snapshot_refusal_test {
namespace {

using namespace test;
using ::testing::HasSubstr;

const Kind anon{.name = "anon", .backing = {.source = MemorySource::anon}};

TEST(LiveSnapshot, HasTheFaultsForItself) {
  const GuestMemory memory = guest_of(anon, 1_MiB);
  const MemoryMapping& mapping = memory.regions().front()->mapping();
  const TempFile file;
  const TempFile second;
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  const auto refused = prepare_live(memory, second.fd());
  ASSERT_THAT(refused, HasError(Errc::bad_state));
  EXPECT_THAT(refused.error().message(), HasSubstr("LiveSnapshot"));
  const auto pinned = mapping.pin(0, page, "dimm0");
  ASSERT_THAT(pinned, HasError(Errc::bad_state));
  EXPECT_THAT(pinned.error().message(), HasSubstr("LiveSnapshot"));
  VMSPACE_ASSERT_OK(snapshot.take());
  VMSPACE_ASSERT_OK(snapshot.wait());
  VMSPACE_EXPECT_OK(mapping.pin(0, page, "dimm0"));
  EXPECT_THAT(prepare_live(memory, second.fd()), IsOk());
}

// What is written through the other mapping would not be caught.
TEST(LiveSnapshot, ARegionKeepsItsSizeMeanwhile) {
  const GuestMemory memory =
      guest_of({.name = "", .backing = {.source = MemorySource::shmem}}, 1_MiB);
  const MemoryRegionPtr& region = memory.regions().front();
  const TempFile file;
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  const auto refused = resized(region, 64 * page);
  ASSERT_THAT(refused, HasError(Errc::bad_state));
  EXPECT_THAT(refused.error().message(), HasSubstr("LiveSnapshot"));
  VMSPACE_ASSERT_OK(snapshot.take());
  VMSPACE_ASSERT_OK(snapshot.wait());
  EXPECT_THAT(resized(region, 64 * page), IsOk());
}

TEST(LiveSnapshot, IsRefusedWhereWritesWouldBeMissed) {
  const TempFile file;
  const GuestMemory memory = guest_of(anon, 1_MiB);
  VMSPACE_ASSERT_OK(save_snapshot(memory, file.fd()));
  const auto pin = memory.regions().front()->mapping().pin(page, page, "nic0");
  ASSERT_THAT(pin, IsOk());
  const auto pinned = prepare_live(memory, file.fd());
  ASSERT_THAT(pinned, HasError(Errc::bad_state));
  EXPECT_THAT(pinned.error().message(), HasSubstr("nic0"));

  const GuestMemory shared =
      guest_of({.name = "", .backing = {.source = MemorySource::shmem}}, 1_MiB);
  const auto refused = prepare_live(shared, file.fd(), {});
  ASSERT_THAT(refused, HasError(Errc::bad_state));
  EXPECT_THAT(refused.error().message(), HasSubstr("peers_stopped"));
  VMSPACE_EXPECT_OK(restore_snapshot(memory, file.fd())) << "what the file held is still there";
}

TEST(LiveSnapshot, PrivateFilesAreUnsupported) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 1_MiB, 'x');
  const GuestMemory memory = guest_of(
      {.name = "",
       .backing = {.source = MemorySource::file, .path = path, .sharing = Sharing::map_private}},
      1_MiB);
  const TempFile file;
  const auto refused = prepare_live(memory, file.fd());
  ASSERT_FALSE(refused);
  EXPECT_TRUE(refused.error().code == Errc::unsupported ||
              refused.error().code == Errc::access_denied)
      << refused.error().message();
}

TEST(LiveSnapshot, IsTakenOnceAndWaitedForOnce) {
  const GuestMemory memory = guest_of(anon, 1_MiB);
  const TempFile file;
  PREPARE_OR_SKIP(snapshot, memory, file.fd());
  EXPECT_THAT(snapshot.wait(), HasError(Errc::bad_state));
  VMSPACE_ASSERT_OK(snapshot.take());
  EXPECT_THAT(snapshot.take(), HasError(Errc::bad_state));
  VMSPACE_EXPECT_OK(snapshot.wait());
  EXPECT_TRUE(snapshot.is_done());
  EXPECT_THAT(snapshot.wait(), HasError(Errc::bad_state));
  EXPECT_THAT(snapshot.take(), HasError(Errc::bad_state));
}

TEST(LiveSnapshot, RangesThatCantHaveChangedAreRefused) {
  const GuestMemory memory = guest_of(anon, 1_MiB);
  const std::uint64_t base = base_of(memory).value();
  const TempFile full;
  const auto parent = save_snapshot(memory, full.fd());
  ASSERT_THAT(parent, IsOk());
  const TempFile file;
  PREPARE_OR_SKIP(snapshot, memory, file.fd(), {}, {.parent = parent->id});
  const auto take = [&](std::vector<GuestRange> ranges) { return snapshot.take(ranges); };
  const auto range = [&](std::uint64_t offset, std::uint64_t size) {
    return GuestRange{GuestAddress(base + offset), size};
  };
  EXPECT_THAT(take({range(0, 0)}), HasError(Errc::invalid_argument));
  EXPECT_THAT(take({range(1, page)}), HasError(Errc::invalid_argument));
  EXPECT_THAT(take({range(0, page + 1)}), HasError(Errc::invalid_argument));
  EXPECT_THAT(take({range(0, 1_MiB + page)}), HasError(Errc::invalid_argument));
  EXPECT_THAT(take({{GuestAddress(0), page}}), HasError(Errc::invalid_argument));
  EXPECT_THAT(take({range(page, page), range(0, page)}), HasError(Errc::invalid_argument));
  EXPECT_THAT(take({range(0, 2 * page), range(page, page)}), HasError(Errc::invalid_argument));
  VMSPACE_EXPECT_OK(take({range(0, 1_MiB)}));
  VMSPACE_EXPECT_OK(snapshot.wait());
}

TEST(LiveSnapshot, ARangeOfChangesMayLieInRegionsThatTouch) {
  const GuestMemory memory = guest({{low, 4 * page}, {low + 4 * page, 4 * page}});
  const TempFile full;
  const auto parent = save_snapshot(memory, full.fd());
  ASSERT_THAT(parent, IsOk());
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  ASSERT_TRUE(memory.write_slice(GuestAddress(low + 3 * page), pattern(2 * page)));
  const auto changed = harvest_dirty(memory);
  ASSERT_THAT(changed, IsOk());
  ASSERT_EQ(changed->size(), 1U) << "a harvest joins them";
  const TempFile difference;
  PREPARE_OR_SKIP(snapshot, memory, difference.fd(), {}, {.parent = parent->id});
  VMSPACE_ASSERT_OK(snapshot.take(*changed));
  VMSPACE_ASSERT_OK(snapshot.wait());
  auto reader = SnapshotReader::open(difference.fd(), {{full.fd()}});
  ASSERT_THAT(reader, IsOk());
  const auto expected = pattern(2 * page);
  std::vector<std::byte> read(page);
  for (const std::uint64_t i : {0U, 1U}) {
    VMSPACE_ASSERT_OK(reader->read(GuestAddress(low + (3 + i) * page), read));
    EXPECT_TRUE(std::ranges::equal(read, std::span(expected).subspan(i * page, page))) << i;
  }
}

/// A kernel whose userfaultfd lacks some features.
class LesserKernel {
 public:
  explicit LesserKernel(std::uint64_t lacking) {
    lacks() = lacking;
    injector_.table().ioctl = [](int fd, unsigned long request, void* argument) {
      const int result = detail::real_system_calls.ioctl(fd, request, argument);
      if (request == UFFDIO_API) static_cast<uffdio_api*>(argument)->features &= ~lacks();
      return result;
    };
  }

 private:
  static std::uint64_t& lacks() {
    static std::uint64_t bits;
    return bits;
  }
  Injector injector_;
};

TEST(LiveSnapshot, NamesWhatTheKernelLacks) {
  namespace feature = detail::userfault_feature;
  const TempFile file;
  const GuestMemory memory = guest_of(anon, 1_MiB);
  const GuestMemory shared =
      guest_of({.name = "", .backing = {.source = MemorySource::shmem}}, 1_MiB);
  { PREPARE_OR_SKIP(works_here, memory, file.fd()); }
  {
    const LesserKernel kernel(feature::write_protect);
    const auto refused = prepare_live(memory, file.fd());
    ASSERT_THAT(refused, HasError(Errc::unsupported));
    EXPECT_THAT(refused.error().message(), HasSubstr("can't write-protect pages"));
  }
  const LesserKernel kernel(feature::write_protect_files);
  const auto refused = prepare_live(shared, file.fd());
  ASSERT_THAT(refused, HasError(Errc::unsupported));
  EXPECT_THAT(refused.error().message(), HasSubstr("shared and hugetlb memory"));
  EXPECT_THAT(prepare_live(memory, file.fd()), IsOk());
}

}  // namespace
}  // namespace vmspace::live_snapshot_refusal_test
