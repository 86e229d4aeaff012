// SPDX-License-Identifier: Apache-2.0
//
// LazyRestore: what it refuses to restore, what is refused while it runs, and what it does not leave
// behind.

#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/region_descriptor.hpp"
#include "vmspace/snapshot/snapshot.hpp"
#include "vmspace/snapshot/snapshot_reader.hpp"

#include "faults/injector.hpp"
#include "host/host_support.hpp"
#include "os/kernel_values.hpp"
#include "os/system_calls.hpp"
#include "snapshot/lazy_support.hpp"
#include "snapshot/snapshot_support.hpp"

namespace vmspace::lazy_refusal_test {
namespace {

using namespace test;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Property;

auto says(const char* text) {
  return Property("message", &Error::message, HasSubstr(text));
}

GuestMemory ram(MemorySource source = MemorySource::shmem, std::uint64_t size = 64 * page) {
  return guest({{low, size, Protection::read_write, source}});
}

class LazyRestoreRefusals : public ::testing::Test {
 protected:
  std::shared_ptr<WordSource> source = std::make_shared<WordSource>();
};

TEST_F(LazyRestoreRefusals, OptionsThatMakeNoSense) {
  const GuestMemory memory = ram();
  const auto start = [&](const LazyRestoreOptions& options) {
    return LazyRestore::start(memory, source, options);
  };
  EXPECT_THAT(LazyRestore::start(memory, nullptr), HasError(Errc::invalid_argument));
  EXPECT_THAT(start({.threads = 0}), HasError(Errc::invalid_argument));
  EXPECT_THAT(start({.threads = 65}), HasError(Errc::invalid_argument));
  EXPECT_THAT(start({.error_limit = 0}), HasError(Errc::invalid_argument));
  EXPECT_THAT(start({.fault_size = 0}), HasError(Errc::bad_alignment));
  EXPECT_THAT(start({.fault_size = 12288}), HasError(Errc::bad_alignment));
  EXPECT_THAT(start({.fault_size = 2048}), HasError(Errc::invalid_argument));
  EXPECT_THAT(start({.fault_size = 4_MiB}), HasError(Errc::limit_exceeded));
}

TEST_F(LazyRestoreRefusals, AWorkingSetOfAnotherSnapshotOrOtherMemory) {
  const GuestMemory memory = ram();
  const SnapshotId id{{7}};
  const WorkingSet inside =
      VMSPACE_ASSERT_OK(WorkingSet::make(id, {{GuestAddress(low), 2 * page}}));
  const WorkingSet outside =
      VMSPACE_ASSERT_OK(WorkingSet::make(id, {{GuestAddress(low + 63 * page), 2 * page}}));
  EXPECT_THAT(LazyRestore::start(memory, source, {.working_set = inside}),
              HasError(Errc::invalid_argument));
  EXPECT_THAT(
      LazyRestore::start(memory, source, {.working_set = inside, .snapshot = SnapshotId{{8}}}),
      HasError(Errc::invalid_argument));
  // Whether the kernel can do it is looked at before the memory is.
  EXPECT_THAT(LazyRestore::start(memory, source, {.working_set = outside, .snapshot = id}),
              AnyOf(HasError(Errc::out_of_bounds), HasError(Errc::unsupported),
                    HasError(Errc::access_denied)));
  START_RESTORE_OR_SKIP(restore, memory, source, {.working_set = inside, .snapshot = id});
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
}

TEST_F(LazyRestoreRefusals, MemoryThatWasTouched) {
  for (const MemorySource kind : {MemorySource::anon, MemorySource::shmem}) {
    { START_RESTORE_OR_SKIP(works, ram(kind), source); }
    const GuestMemory memory = ram(kind);
    VMSPACE_ASSERT_OK(memory.write(GuestAddress(low + 5 * page), std::uint8_t{1}));
    const auto refused = LazyRestore::start(memory, source);
    ASSERT_THAT(refused, HasErrorThat(says("untouched")));
    EXPECT_EQ(refused.error().code, Errc::bad_state);
    // What it holds is discarded, and it is as new.
    VMSPACE_ASSERT_OK(memory.regions()[0]->mapping().discard(0, 64 * page));
    START_RESTORE_OR_SKIP(restore, memory, source);
    VMSPACE_EXPECT_OK(restore.wait(long_enough));
    expect_restored(memory, *source);
  }
}

TEST_F(LazyRestoreRefusals, KindsOfMemoryThatTheKernelCanNotDoThisFor) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("ram", 4 * page, 'x');
  for (const Sharing sharing : {Sharing::map_shared, Sharing::map_private}) {
    const auto region = MemoryRegion::map(
        {.name = "disk",
         .base = GuestAddress(low),
         .size = 4 * page,
         .backing = {.source = MemorySource::file, .path = path, .sharing = sharing}});
    ASSERT_THAT(region, IsOk());
    const GuestMemory memory = *GuestMemory::from_regions({*region});
    EXPECT_THAT(LazyRestore::start(memory, source),
                HasErrorThat(AllOf(says("disk"), says("can't be restored lazily"))));
    EXPECT_THAT(LazyRestore::start(memory, source), HasError(Errc::unsupported));
  }
}

TEST_F(LazyRestoreRefusals, ReadOnlyMemoryThatHoldsSomethingElse) {
  const MemoryRegionPtr rom = test::region({high, 4 * page, Protection::read});
  const GuestMemory memory = *GuestMemory::from_regions({test::region({low, 16 * page}), rom});
  const auto refused = LazyRestore::start(memory, source);
  ASSERT_THAT(refused, HasError(Errc::access_denied));
  EXPECT_THAT(refused, HasErrorThat(says("read-only")));
  for (std::uint64_t at = 0; at < rom->size(); at += 8) {
    const std::uint64_t word = word_at(high + at);
    std::memcpy(rom->host_base() + at, &word, 8);
  }
  START_RESTORE_OR_SKIP(restore, memory, source);
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
  expect_restored(memory, *source);
  EXPECT_EQ(settled(restore.statistics()), 16 * page) << "the ROM is not restored";
}

TEST_F(LazyRestoreRefusals, ASourceThatThrowsWhenReadOnlyMemoryIsCompared) {
  const MemoryRegionPtr rom = test::region({high, 4 * page, Protection::read});
  const GuestMemory memory = *GuestMemory::from_regions({test::region({low, 16 * page}), rom});
  source->before_read = [](GuestAddress, std::size_t) { throw 9; };
  EXPECT_THAT(LazyRestore::start(memory, source), HasErrorThat(says("threw")));
  source->before_read = [](GuestAddress, std::size_t) { throw std::bad_alloc(); };
  EXPECT_THAT(LazyRestore::start(memory, source), HasErrorThat(says("out of memory")));
  // Nothing was begun.
  const TempFile file;
  VMSPACE_EXPECT_OK(save_snapshot(memory, file.fd()));
}

TEST_F(LazyRestoreRefusals, WhileItRuns) {
  const GuestMemory memory = ram();
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  EXPECT_THAT(LazyRestore::start(memory, source), HasErrorThat(says("LazyRestore")));
  EXPECT_THAT(LazyRestore::start(memory, source), HasError(Errc::bad_state));
  const TempFile file;
  EXPECT_THAT(save_snapshot(memory, file.fd()), HasError(Errc::bad_state));
  EXPECT_THAT(describe_regions(memory), HasError(Errc::bad_state));
  // Another mapping of the same file is the same memory.
  const auto alias = MemoryRegion::map({.name = "alias",
                                        .base = GuestAddress(high),
                                        .size = 64 * page,
                                        .backing = {.source = MemorySource::shmem}},
                                       {.backing = memory.regions()[0]->backing()});
  ASSERT_THAT(alias, IsOk());
  EXPECT_THAT(LazyRestore::start(*GuestMemory::from_regions({*alias}), source),
              HasError(Errc::bad_state));
  restore.resume_background();
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  VMSPACE_EXPECT_OK(save_snapshot(memory, file.fd()));
  VMSPACE_EXPECT_OK(describe_regions(memory));
}

// The other mapping would find absent pages as zeros.
TEST_F(LazyRestoreRefusals, AnotherSizeOfARegionWhileItRuns) {
  const GuestMemory memory = ram();
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  EXPECT_THAT(resized(memory.regions()[0], 16 * page),
              HasErrorThat(AllOf(says("LazyRestore"), says("size"))));
  EXPECT_THAT(resized(memory.regions()[0], 16 * page), HasError(Errc::bad_state));
  restore.resume_background();
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  EXPECT_THAT(resized(memory.regions()[0], 16 * page), IsOk());
}

TEST_F(LazyRestoreRefusals, AFailedStartLeavesTheMemoryUsable) {
  // The second region is in use, which is found when the first is registered already.
  const GuestMemory memory = guest({{low, 16 * page}, {high, 16 * page}});
  VMSPACE_ASSERT_OK(memory.write(GuestAddress(high), std::uint64_t{1}));
  const auto refused = LazyRestore::start(memory, source);
  ASSERT_FALSE(refused);
  EXPECT_EQ(*memory.read<std::uint64_t>(GuestAddress(low)), 0U);
  EXPECT_EQ(*memory.read<std::uint64_t>(GuestAddress(high)), 1U);
  EXPECT_EQ(source->reads, 0U);
}

TEST_F(LazyRestoreRefusals, MemoryMayBeDiscardedWhileAFailedStartIsUndone) {
  START_RESTORE_OR_SKIP(possible, ram(MemorySource::anon), source);
  VMSPACE_ASSERT_OK(possible.wait(long_enough));
  const GuestMemory memory = guest({{low, 64 * page, Protection::read_write, MemorySource::anon},
                                    {high, 64 * page, Protection::read_write, MemorySource::anon}});
  static const MemoryMapping* second;
  second = &memory.regions()[1]->mapping();
  Injector injector;
  injector.table().ioctl = [](int fd, unsigned long request, void* argument) {
    // The first region ends; the second one still belongs to the restore.
    if (request == UFFDIO_UNREGISTER && second != nullptr) {
      VMSPACE_EXPECT_OK(std::exchange(second, nullptr)->discard(0, page));
    }
    return detail::real_system_calls.ioctl(fd, request, argument);
  };
  injector.table().write = [](int fd, const void* buffer, std::size_t size) {
    const ssize_t written = detail::real_system_calls.write(fd, buffer, size);
    EXPECT_GE(written, 0) << "threads are woken that have gone";
    return written;
  };
  injector.fail_next("pthread_create", EAGAIN);
  EXPECT_FALSE(LazyRestore::start(memory, source).has_value());
  EXPECT_EQ(second, nullptr);
}

TEST_F(LazyRestoreRefusals, ChildrenGetTheMemoryOnlyAfterwards) {
  const GuestMemory memory = ram();
  const GuestMemory kept = guest({{high, page, Protection::read_write, MemorySource::shmem}});
  const std::byte* const data = memory.regions()[0]->host_base();
  const auto child_reads = [](const std::byte* at) {
    const int status = in_child([at] {
      signal(SIGSEGV, SIG_DFL);
      static_cast<void>(*static_cast<const volatile std::byte*>(at));
    });
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
  };
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  EXPECT_FALSE(child_reads(data));
  restore.resume_background();
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  EXPECT_TRUE(child_reads(data));
  // But not if it had been asked for.
  const auto region = MemoryRegion::map({.name = "ram",
                                         .base = GuestAddress(low),
                                         .size = 4 * page,
                                         .backing = {.source = MemorySource::anon}},
                                        {.dontfork = true});
  ASSERT_THAT(region, IsOk());
  START_RESTORE_OR_SKIP(second, *GuestMemory::from_regions({*region}), source);
  VMSPACE_ASSERT_OK(second.wait(long_enough));
  EXPECT_FALSE(child_reads((*region)->host_base()));
}

TEST_F(LazyRestoreRefusals, NothingIsLeftBehind) {
  const GuestMemory memory = ram(MemorySource::anon, 1_MiB);
  {
    START_RESTORE_OR_SKIP(warm_up, ram(MemorySource::anon, 1_MiB), source);
    VMSPACE_ASSERT_OK(warm_up.wait(long_enough));
  }
  const auto before = open_descriptors();
  {
    START_RESTORE_OR_SKIP(restore, memory, source, {.threads = 4});
    VMSPACE_ASSERT_OK(restore.wait(long_enough));
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(LazyRestoreRefusals, AllThatIsRestoredCountsAsWritten) {
  const GuestMemory memory = ram();
  VMSPACE_ASSERT_OK(enable_dirty_tracking(memory));
  START_RESTORE_OR_SKIP(restore, memory, source);
  EXPECT_THAT(harvest_dirty(memory),
              IsOkAndHolds(ElementsAre(GuestRange{GuestAddress(low), 64 * page})));
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  EXPECT_THAT(harvest_dirty(memory), IsOkAndHolds(ElementsAre())) << "once";
}

TEST_F(LazyRestoreRefusals, MemoryWithoutRegionsIsDoneAtOnce) {
  const auto restore = LazyRestore::start(GuestMemory(), source);
  ASSERT_THAT(restore, IsOk());
  EXPECT_TRUE(restore->is_done());
  VMSPACE_EXPECT_OK(restore->wait(std::chrono::seconds(0)));
  EXPECT_THAT(restore->working_set(), IsOkAndHolds(WorkingSet()));
}

TEST_F(LazyRestoreRefusals, BlocksThatAreAbsentAreNotBrought) {
  const auto whole = MemoryRegion::map({.name = "dimm",
                                        .base = GuestAddress(high),
                                        .size = 8_MiB,
                                        .backing = {.source = MemorySource::anon}});
  ASSERT_THAT(whole, IsOk());
  const auto blocks = PresentBlocks::none(8_MiB, 2_MiB, 2_MiB);
  ASSERT_THAT(blocks, IsOk());
  const auto present = (*blocks)->with({2_MiB, 2_MiB});
  ASSERT_THAT(present, IsOk());
  const auto region = (*whole)->with_blocks(*present);
  ASSERT_THAT(region, IsOk());
  const GuestMemory memory = *GuestMemory::from_regions({*region});
  // Or of the kernel, where that can't do it.
  EXPECT_THAT(LazyRestore::start(memory, source),
              AnyOf(HasErrorThat(says("blocks that are not plugged")), HasError(Errc::unsupported),
                    HasError(Errc::access_denied)));
  class Liar : public WordSource {
   public:
    Result<GuestRange> next_data(GuestRange range) override {
      return GuestRange{range.base, range.size + page};
    }
  };
  EXPECT_THAT(LazyRestore::start(memory, std::make_shared<Liar>()),
              AnyOf(HasErrorThat(says("outside of what it was asked for")),
                    HasError(Errc::unsupported), HasError(Errc::access_denied)));
  source->is_zero = [](std::uint64_t at) { return at < high + 2_MiB || at >= high + 4_MiB; };
  START_RESTORE_OR_SKIP(restore, memory, source, {.background = false});
  EXPECT_EQ(restore.statistics().zero, 6_MiB);
  // A block that is plugged meanwhile is new memory.
  EXPECT_TRUE(holds_words((*whole)->host_base(), high, true));
  EXPECT_TRUE(holds_words((*whole)->host_base() + 2_MiB, high + 2_MiB));
  restore.resume_background();
  VMSPACE_EXPECT_OK(restore.wait(long_enough));
  for (std::uint64_t at = 0; at < 8_MiB; at += page)
    ASSERT_TRUE(holds_words((*whole)->host_base() + at, high + at, source->is_zero(high + at)));
}

TEST_F(LazyRestoreRefusals, HugeSparseMemoryTakesNoTimeAndNoMemory) {
  constexpr std::uint64_t size = 16_GiB;
  const std::vector<MemoryRegionPtr> regions{test::region({high, size}),
                                             test::region({high + size, size})};
  const GuestMemory memory = *GuestMemory::from_regions(regions);
  // A page of data here and there.
  source->is_zero = [](std::uint64_t at) { return at % 4_GiB != 123 * page; };
  class Sparse : public WordSource {
   public:
    Result<GuestRange> next_data(GuestRange range) override {
      const std::uint64_t at = range.base.value();
      const std::uint64_t end = at + range.size;
      const std::uint64_t data = (at + 4_GiB - 124 * page) / 4_GiB * 4_GiB + 123 * page;
      return data < end ? GuestRange{GuestAddress(data), page} : GuestRange{GuestAddress(end), 0};
    }
  };
  const auto sparse = std::make_shared<Sparse>();
  sparse->is_zero = source->is_zero;
  START_RESTORE_OR_SKIP(restore, memory, sparse);
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  EXPECT_EQ(restore.statistics().zero, 2 * size - 8 * page);
  EXPECT_EQ(sparse->bytes_read, 8 * page);
  for (const auto& region : regions) {
    EXPECT_THAT(region->mapping().residency(),
                IsOkAndHolds(::testing::Field(&Residency::resident, 4 * page)));
  }
  EXPECT_TRUE(holds_words(regions[1]->host_base() + 123 * page, high + size + 123 * page));
}

TEST_F(LazyRestoreRefusals, ASnapshotFileIsASource) {
  const GuestMemory saved = sample(MemorySource::shmem);
  const TempFile file;
  VMSPACE_ASSERT_OK(save_snapshot(saved, file.fd()));
  const auto reader = SnapshotReader::open(file.fd());
  ASSERT_THAT(reader, IsOk());
  for (const MemorySource kind : {MemorySource::anon, MemorySource::shmem}) {
    const GuestMemory memory = guest({{low, 64 * page, Protection::read_write, kind},
                                      {high, 300 * page, Protection::read_write, kind}});
    START_RESTORE_OR_SKIP(restore, memory, std::make_shared<SnapshotReader>(*reader),
                          {.snapshot = reader->id()});
    VMSPACE_ASSERT_OK(restore.wait(long_enough));
    expect_same(memory, saved);
  }
}

TEST_F(LazyRestoreRefusals, FaultsBringWhatIsAround) {
  const GuestMemory memory = ram(MemorySource::anon, 1_MiB);
  START_RESTORE_OR_SKIP(restore, memory, source, {.fault_size = 64_KiB, .background = false});
  const std::byte* const data = memory.regions()[0]->host_base();
  ASSERT_TRUE(holds_words(data + 300 * 1024, low + 300 * 1024));
  while (restore.statistics().demand == 0)  // counted once it is there
    std::this_thread::yield();
  EXPECT_LE(restore.statistics().demand, 64_KiB);
  EXPECT_GT(restore.statistics().demand, page);
  EXPECT_EQ(source->reads, 1U);
  EXPECT_EQ(restore.working_set()->total_size(), page) << "only what was asked for";
}

TEST_F(LazyRestoreRefusals, HugePagesAtTheEndIfAskedFor) {
  if (thp_setting("enabled").empty() || thp_setting("enabled") == "never")
    GTEST_SKIP() << "this machine has no transparent huge pages";
  const auto region = MemoryRegion::map({.name = "ram",
                                         .base = GuestAddress(high),
                                         .size = 8_MiB,
                                         .backing = {.source = MemorySource::anon},
                                         .huge_pages = true});
  ASSERT_THAT(region, IsOk());
  source->is_zero = [](std::uint64_t at) { return at % 4_MiB >= 2_MiB; };
  START_RESTORE_OR_SKIP(restore, *GuestMemory::from_regions({*region}), source, {.collapse = true});
  VMSPACE_ASSERT_OK(restore.wait(long_enough));
  const auto residency = (*region)->mapping().residency();
  ASSERT_THAT(residency, IsOk());
  EXPECT_EQ(residency->resident, 4_MiB) << "what is absent stays absent";
  const bool can_collapse = detail::kernel_knows_advice(MADV_COLLAPSE);  // since Linux 6.1
  EXPECT_EQ(residency->huge, can_collapse ? 4_MiB : 0);
  expect_restored(*GuestMemory::from_regions({*region}), *source);
}

}  // namespace
}  // namespace vmspace::lazy_refusal_test
