// SPDX-License-Identifier: Apache-2.0

#include "vmspace/snapshot/snapshot.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/endian.hpp"

#include "host/host_support.hpp"
#include "memory/guest_support.hpp"

namespace vmspace {
namespace {

using testing::contents;
using testing::guest;
using testing::page;
using testing::pattern;
using testing::RegionSpec;
using namespace test;

/// A file without a name.
class TempFile {
 public:
  TempFile() : fd_(memfd_create("snapshot", MFD_CLOEXEC)) {}
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  ~TempFile() { close(fd_); }
  [[nodiscard]] int fd() const { return fd_; }

  [[nodiscard]] struct stat status() const {
    struct stat result {};
    EXPECT_EQ(fstat(fd_, &result), 0);
    return result;
  }
  [[nodiscard]] std::vector<std::byte> read(std::size_t size, off_t offset = 0) const {
    std::vector<std::byte> bytes(size);
    EXPECT_EQ(pread(fd_, bytes.data(), size, offset), static_cast<ssize_t>(size));
    return bytes;
  }
  void write(const std::vector<std::byte>& bytes, off_t offset = 0) const {
    EXPECT_EQ(pwrite(fd_, bytes.data(), bytes.size(), offset), static_cast<ssize_t>(bytes.size()));
  }

 private:
  int fd_;
};

constexpr std::uint64_t low = 0x1000;
constexpr std::uint64_t high = 0x1'0000'0000;
constexpr std::size_t metadata = 64 + 2 * 32;

GuestMemory sample(MemorySource source) {
  const GuestMemory memory = guest({{low, 64 * page, Protection::read_write, source},
                                    {high, 300 * page, Protection::read_write, source}});
  EXPECT_TRUE(memory.write_slice(GuestAddress(low + 3 * page + 17), pattern(2 * page, 1)));
  EXPECT_TRUE(memory.write_slice(GuestAddress(high + 299 * page), pattern(page, 2)));
  EXPECT_TRUE(memory.write(GuestAddress(high), std::uint8_t{1}));
  // Written once, and zero again: used memory that need not be saved.
  EXPECT_TRUE(memory.fill({GuestAddress(high + 100 * page), page}, std::byte{7}));
  EXPECT_TRUE(memory.fill({GuestAddress(high + 100 * page), page}, std::byte{0}));
  return memory;
}

void expect_same(const GuestMemory& a, const GuestMemory& b) {
  ASSERT_EQ(a.regions().size(), b.regions().size());
  for (const auto& region : a.regions()) {
    EXPECT_EQ(contents(a, region->base().value(), region->size()),
              contents(b, region->base().value(), region->size()));
  }
}

TEST(Snapshot, RestoresFromEveryBackingIntoEveryOtherFullAndSparse) {
  for (const auto from : {MemorySource::anon, MemorySource::shmem}) {
    const GuestMemory memory = sample(from);
    for (const bool sparse : {false, true}) {
      TempFile file;
      const auto saved = Snapshot::save(memory, file.fd(), {.sparse = sparse});
      ASSERT_TRUE(saved) << saved.error().message();
      EXPECT_EQ(*saved, sparse ? 5 * page : 364 * page);
      for (const auto to : {MemorySource::anon, MemorySource::shmem}) {
        SCOPED_TRACE(std::string(name_of(from)) + " to " + std::string(name_of(to)));
        const GuestMemory other = guest({{low, 64 * page, Protection::read_write, to},
                                         {high, 300 * page, Protection::read_write, to}});
        // What is there before goes.
        ASSERT_TRUE(other.fill({GuestAddress(low), 64 * page}, std::byte{0xee}));
        ASSERT_TRUE(other.fill({GuestAddress(high + 50 * page), page}, std::byte{0xee}));
        const auto restored = Snapshot::restore(other, file.fd());
        ASSERT_TRUE(restored) << restored.error().message();
        expect_same(memory, other);
      }
      const auto mapped = Snapshot::map(file.fd());
      ASSERT_TRUE(mapped) << mapped.error().message();
      expect_same(memory, *mapped);
    }
  }
}

TEST(Snapshot, SparseFilesAndRestoredMemoryKeepTheirHoles) {
  const GuestMemory memory = sample(MemorySource::shmem);
  TempFile file;
  ASSERT_TRUE(Snapshot::save(memory, file.fd()));
  EXPECT_LE(static_cast<std::uint64_t>(file.status().st_blocks) * 512, 8 * page);
  const GuestMemory other =
      guest({{low, 64 * page, Protection::read_write, MemorySource::shmem},
             {high, 300 * page, Protection::read_write, MemorySource::shmem}});
  ASSERT_TRUE(Snapshot::restore(other, file.fd()));
  struct stat status {};
  ASSERT_EQ(fstat(other.regions()[1]->backing().descriptor(), &status), 0);
  EXPECT_LE(static_cast<std::uint64_t>(status.st_blocks) * 512, 3 * page);
}

TEST(Snapshot, MappedMemoryIsPrivateToItsGuest) {
  const GuestMemory memory = sample(MemorySource::anon);
  TempFile file;
  ASSERT_TRUE(Snapshot::save(memory, file.fd()));
  const auto first = Snapshot::map(file.fd());
  ASSERT_TRUE(first);
  ASSERT_TRUE(first->fill({GuestAddress(low), 64 * page}, std::byte{0xff}));
  const auto second = Snapshot::map(file.fd());
  ASSERT_TRUE(second);
  expect_same(memory, *second);
  EXPECT_EQ(first->read<std::uint8_t>(GuestAddress(low)), 0xff);
  // And what a guest that was mapped has changed can be saved in turn.
  TempFile again;
  ASSERT_TRUE(Snapshot::save(*first, again.fd()));
  const auto third = Snapshot::map(again.fd());
  ASSERT_TRUE(third);
  expect_same(*first, *third);
}

TEST(Snapshot, AChangedByteAnywhereInTheMetadataIsAnErrorAndChangesNothing) {
  const GuestMemory memory = sample(MemorySource::anon);
  TempFile file;
  ASSERT_TRUE(Snapshot::save(memory, file.fd()));
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
      const auto seen = Snapshot::inspect(file.fd());
      ASSERT_FALSE(seen);
      const bool version = i >= 8 && i < 12;
      EXPECT_TRUE(seen.error().code == Errc::corrupt ||
                  (version && seen.error().code == Errc::unsupported))
          << seen.error().message();
      ASSERT_FALSE(Snapshot::restore(target, file.fd()));
      ASSERT_FALSE(Snapshot::map(file.fd()));
    }
  }
  EXPECT_EQ(contents(target, low, 64 * page), before);
  file.write(good);
  EXPECT_TRUE(Snapshot::restore(target, file.fd()));
}

TEST(Snapshot, AFileThatIsCutOffIsAnErrorAtEveryLength) {
  const GuestMemory memory = sample(MemorySource::anon);
  TempFile file;
  ASSERT_TRUE(Snapshot::save(memory, file.fd()));
  const off_t whole = file.status().st_size;
  const GuestMemory target = sample(MemorySource::anon);
  for (const off_t size : {whole - 1, whole / 2, off_t{metadata}, off_t{metadata - 1}, off_t{64},
                           off_t{63}, off_t{1}, off_t{0}}) {
    SCOPED_TRACE(size);
    ASSERT_EQ(ftruncate(file.fd(), size), 0);
    const auto restored = Snapshot::restore(target, file.fd());
    ASSERT_FALSE(restored);
    EXPECT_EQ(restored.error().code, Errc::corrupt);
    EXPECT_EQ(Snapshot::map(file.fd()).error().code, Errc::corrupt);
  }
  expect_same(memory, target);
}

TEST(Snapshot, AnotherLayoutIsRefusedBeforeAnythingIsWritten) {
  const GuestMemory memory = sample(MemorySource::anon);
  TempFile file;
  ASSERT_TRUE(Snapshot::save(memory, file.fd()));
  const std::vector<GuestMemory> others{
      guest({{low, 64 * page}}),
      guest({{low, 64 * page}, {high, 299 * page}}),
      guest({{low, 64 * page}, {high + page, 300 * page}}),
      guest({{low, 64 * page}, {high, 300 * page}, {2 * high, page}}),
      GuestMemory(),
  };
  for (const GuestMemory& other : others) {
    const auto restored = Snapshot::restore(other, file.fd());
    ASSERT_FALSE(restored);
    EXPECT_EQ(restored.error().code, Errc::invalid_argument);
    if (other.regions().empty()) continue;
    const auto bytes = contents(other, low, 64 * page);
    EXPECT_TRUE(std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; }));
  }
}

TEST(Snapshot, ANewerVersionIsUnsupportedAndNotCorrupt) {
  TempFile file;
  ASSERT_TRUE(Snapshot::save(sample(MemorySource::anon), file.fd()));
  auto head = file.read(64);
  head[8] = std::byte{2};
  file.write(head);
  EXPECT_EQ(Snapshot::inspect(file.fd()).error().code, Errc::unsupported);
}

TEST(Snapshot, ReadOnlyRegionsMustBeWhatTheyWere) {
  const GuestMemory memory = guest({{low, page, Protection::read}, {high, page}});
  ASSERT_TRUE(memory.write(GuestAddress(high), std::uint32_t{5}));
  TempFile file;
  ASSERT_TRUE(Snapshot::save(memory, file.fd()));
  ASSERT_TRUE(memory.write(GuestAddress(high), std::uint32_t{6}));
  ASSERT_TRUE(Snapshot::restore(memory, file.fd()));
  EXPECT_EQ(memory.read<std::uint32_t>(GuestAddress(high)), 5U);

  const auto regions = Snapshot::inspect(file.fd());
  ASSERT_TRUE(regions);
  EXPECT_EQ((*regions)[0].protection, Protection::read);
  file.write({std::byte{1}}, static_cast<off_t>((*regions)[0].offset));
  ASSERT_TRUE(memory.write(GuestAddress(high), std::uint32_t{6}));
  EXPECT_EQ(Snapshot::restore(memory, file.fd()).error().code, Errc::access_denied);
  EXPECT_EQ(memory.read<std::uint32_t>(GuestAddress(high)), 6U);
  // Mapped, it is read-only again.
  {
    const auto mapped = Snapshot::map(file.fd());
    ASSERT_TRUE(mapped);
    EXPECT_EQ(mapped->write(GuestAddress(low), 1U).error().code, Errc::access_denied);
  }

  const GuestMemory closed = guest({{low, page, Protection::none}});
  const auto before = file.status().st_size;
  EXPECT_EQ(Snapshot::save(closed, file.fd()).error().code, Errc::access_denied);
  EXPECT_EQ(file.status().st_size, before);
}

TEST(Snapshot, NothingBecomesExecutableOnTheFilesWord) {
  constexpr auto all = Protection::read_write | Protection::execute;
  TempFile file;
  ASSERT_TRUE(Snapshot::save(guest({{low, page, all}}), file.fd()));
  const auto mapped = Snapshot::map(file.fd());
  ASSERT_TRUE(mapped);
  EXPECT_EQ(mapped->regions().front()->protection(), all);
  EXPECT_EQ(test::permissions_at(mapped->regions().front()->host_base()), "rw-p");
}

TEST(Snapshot, FilesThatCantHoldOneAreErrors) {
  const GuestMemory memory = sample(MemorySource::shmem);
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_EQ(Snapshot::save(memory, ends[1]).error().code, Errc::invalid_argument);
  EXPECT_EQ(Snapshot::inspect(ends[0]).error().code, Errc::invalid_argument);
  close(ends[0]);
  close(ends[1]);
  EXPECT_EQ(Snapshot::save(memory, -1).error().code, Errc::os);
  EXPECT_EQ(Snapshot::inspect(-1).error().code, Errc::os);
  const int own = memory.regions()[0]->backing().descriptor();
  EXPECT_EQ(Snapshot::save(memory, own).error().code, Errc::invalid_argument);
  expect_same(memory, sample(MemorySource::anon));
  const int full = open("/dev/full", O_RDWR | O_CLOEXEC);
  ASSERT_GE(full, 0);
  EXPECT_EQ(Snapshot::save(memory, full).error().code, Errc::invalid_argument);
  close(full);
}

TEST(Snapshot, ADescriptorThatAppendsIsRefusedAndItsFileKept) {
  const GuestMemory memory = sample(MemorySource::anon);
  TempFile file;
  const auto before = pattern(page);
  file.write(before);
  // Under O_APPEND, pwrite(2) writes to the end of the file whatever offset it is given.
  ASSERT_EQ(fcntl(file.fd(), F_SETFL, O_APPEND), 0);
  const auto saved = Snapshot::save(memory, file.fd());
  ASSERT_FALSE(saved);
  EXPECT_EQ(saved.error().code, Errc::invalid_argument);
  EXPECT_EQ(file.status().st_size, static_cast<off_t>(page));
  EXPECT_EQ(file.read(page), before);
  ASSERT_EQ(fcntl(file.fd(), F_SETFL, 0), 0);
  EXPECT_TRUE(Snapshot::save(memory, file.fd()));
}

TEST(Snapshot, ProgressReachesTheTotalAndNeverGoesBack) {
  const GuestMemory memory = sample(MemorySource::shmem);
  TempFile file;
  std::vector<std::uint64_t> steps;
  const auto record = [&](std::uint64_t done, std::uint64_t total) {
    EXPECT_EQ(total, memory.total_size());
    steps.push_back(done);
  };
  for (const bool sparse : {true, false}) {
    steps.clear();
    ASSERT_TRUE(Snapshot::save(memory, file.fd(), {.sparse = sparse, .progress = record}));
    ASSERT_FALSE(steps.empty());
    EXPECT_TRUE(std::ranges::is_sorted(steps));
    EXPECT_EQ(steps.back(), memory.total_size());
  }
  steps.clear();
  ASSERT_TRUE(Snapshot::restore(memory, file.fd(), record));
  EXPECT_TRUE(std::ranges::is_sorted(steps));
  EXPECT_EQ(steps.back(), memory.total_size());
}

TEST(Snapshot, RestoringMarksWhatItWrites) {
  const GuestMemory memory = sample(MemorySource::shmem);
  TempFile file;
  ASSERT_TRUE(Snapshot::save(memory, file.fd()));
  ASSERT_TRUE(memory.fill({GuestAddress(low + 40 * page), page}, std::byte{1}));
  ASSERT_TRUE(enable_dirty_tracking(memory));
  ASSERT_TRUE(Snapshot::restore(memory, file.fd()));
  const auto dirty = harvest_dirty(memory);
  ASSERT_TRUE(dirty);
  const auto marked = [&](std::uint64_t address) {
    return std::ranges::any_of(
        *dirty, [&](const GuestRange& r) { return r.contains(GuestAddress(address)); });
  };
  EXPECT_TRUE(marked(low + 3 * page));
  EXPECT_TRUE(marked(low + 40 * page));
  EXPECT_TRUE(marked(high + 299 * page));
  EXPECT_FALSE(marked(high + 200 * page));
}

constexpr std::uint64_t huge_base = 0x4000'0000;

/// A guest of one region at `huge_base`.
GuestMemory guest_of(const BackingSpec& spec, std::uint64_t size) {
  const auto description =
      AddressSpaceRegion::make({.base = GuestAddress(huge_base), .size = size, .backing = spec});
  EXPECT_TRUE(description) << description.error().message();
  auto region = MemoryRegion::map(*description);
  EXPECT_TRUE(region) << region.error().message();
  return *GuestMemory::from_regions({*region});
}

TEST(Snapshot, SavingAndRestoringMakeNoPageOfTheGuest) {
  constexpr std::uint64_t size = 512_MiB;
  const OwnedFd memfd(memfd_create("memory", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(memfd.get(), size), 0);
  for (const BackingSpec& spec : {
           BackingSpec{.source = MemorySource::anon},
           BackingSpec{.source = MemorySource::anon, .sharing = Sharing::map_shared},
           BackingSpec{.source = MemorySource::shmem},
           BackingSpec{.source = MemorySource::file,
           .descriptor = memfd.get(),
           .sharing = Sharing::map_private},
       }) {
    SCOPED_TRACE(std::string(name_of(spec.source)) + (spec.is_shared() ? " shared" : " private"));
    const GuestMemory memory = guest_of(spec, size);
    const MemoryMapping& mapping = memory.regions()[0]->mapping();
    ASSERT_TRUE(memory.fill({GuestAddress(huge_base + 100 * page), page}, std::byte{1}));
    const auto before = mapping.residency();
    ASSERT_TRUE(before);
    TempFile file;
    EXPECT_EQ(Snapshot::save(memory, file.fd()), page);
    EXPECT_EQ(mapping.residency()->resident, before->resident);
    // Clearing: of all pages one is there, and is made 0.
    ASSERT_TRUE(memory.fill({GuestAddress(huge_base + 100 * page), page}, std::byte{2}));
    const auto restored = Snapshot::restore(memory, file.fd());
    ASSERT_TRUE(restored) << restored.error().message();
    EXPECT_EQ(memory.read<std::uint8_t>(GuestAddress(huge_base + 100 * page)), 1);
    EXPECT_EQ(mapping.residency()->resident, before->resident);
  }
}

TEST(Snapshot, SavingInFullWritesZerosForWhatIsNotThereAndMakesNoPage) {
  const GuestMemory memory = guest_of({.source = MemorySource::shmem}, 3_MiB + page);
  ASSERT_TRUE(memory.write_slice(GuestAddress(huge_base + 2 * page), pattern(page)));
  const int own = memory.regions()[0]->backing().descriptor();
  const std::uint64_t before = allocated_bytes(own);
  TempFile file;
  file.write(pattern(8_MiB));  // what was there before does not show through
  EXPECT_EQ(Snapshot::save(memory, file.fd(), {.sparse = false}), 3_MiB + page);
  EXPECT_EQ(allocated_bytes(own), before);
  EXPECT_GE(allocated_bytes(file.fd()), 3_MiB + page);
  const auto mapped = Snapshot::map(file.fd());
  ASSERT_TRUE(mapped);
  expect_same(memory, *mapped);
}

TEST(Snapshot, HugetlbHolesAreNotTouchedWhenThePoolIsEmpty) {
  HugePages pool(2_MiB, 3);
  // Taking pages into the pool is root's, and they may not be there to be had.
  if (!pool.available()) GTEST_SKIP() << pool.why_not();
  for (const bool sparse : {true, false}) {
    const GuestMemory memory = guest_of({.source = MemorySource::hugeshmem}, 3 * 2_MiB);
    const MemoryMapping& mapping = memory.regions()[0]->mapping();
    fill(mapping, 1);
    ASSERT_TRUE(mapping.discard(2_MiB, 2_MiB));
    // Somebody else takes the page that was given back.
    std::vector<MemoryMapping> taken;
    const auto backing = Backing::open({.source = MemorySource::hugeanon}, 2_MiB);
    for (;;) {
      auto one = MemoryMapping::map(*backing, {.size = 2_MiB});
      if (!one) break;
      fill(*one, 2);
      taken.push_back(std::move(*one));
    }
    ASSERT_EQ(pool.free(), 0U);
    TempFile file;
    // In a child, which a SIGBUS would end.
    EXPECT_EQ(in_child([&] {
                const auto saved = Snapshot::save(memory, file.fd(), {.sparse = sparse});
                _exit(saved == (sparse ? 2 : 3) * 2_MiB ? 0 : 1);
              }),
              0);
    EXPECT_EQ(in_child([&] { _exit(Snapshot::inspect(file.fd()) ? 0 : 1); }), 0);
    if (!sparse) continue;
    EXPECT_EQ(in_child([&] {
                signal(SIGBUS, SIG_DFL);  // a sanitizer's handler ends otherwise
                fill(mapping, 0);
                _exit(1);
              }),
              SIGBUS)
        << "the hole could be touched: the test shows nothing";
    EXPECT_EQ(in_child([&] { _exit(Snapshot::restore(memory, file.fd()) ? 0 : 1); }), 0);
    EXPECT_TRUE(holds(mapping, 0, 2_MiB, 1));
    EXPECT_TRUE(holds(mapping, 4_MiB, 2_MiB, 1));
    // What is stored has nowhere to go: an error.
    TempFile whole;
    const GuestMemory other = guest_of({.source = MemorySource::anon}, 3 * 2_MiB);
    ASSERT_TRUE(other.fill({GuestAddress(huge_base), 3 * 2_MiB}, std::byte{3}));
    ASSERT_TRUE(Snapshot::save(other, whole.fd()));
    EXPECT_EQ(in_child([&] {
                const auto restored = Snapshot::restore(memory, whole.fd());
                _exit(!restored && restored.error().os_errno == EFAULT ? 0 : 1);
              }),
              0);
  }
}

TEST(Snapshot, AReadOnlyRegionIsComparedWithoutTouchingWhatIsNotThere) {
  const GuestMemory memory = guest({{low, 64 * page, Protection::read, MemorySource::shmem}});
  TempFile file;
  ASSERT_TRUE(Snapshot::save(memory, file.fd()));
  ASSERT_TRUE(Snapshot::restore(memory, file.fd()));
  EXPECT_EQ(allocated_bytes(memory.regions()[0]->backing().descriptor()), 0U);
  const auto regions = Snapshot::inspect(file.fd());
  ASSERT_TRUE(regions);
  file.write({std::byte{1}}, static_cast<off_t>((*regions)[0].offset + 63 * page));
  EXPECT_EQ(Snapshot::restore(memory, file.fd()).error().code, Errc::access_denied);
}

TEST(Snapshot, AFileThatAGuestOfThisProcessPagesFromIsNotWrittenOver) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("snapshot", 0, ' ');
  const OwnedFd file(open(path.c_str(), O_RDWR | O_CLOEXEC));
  const GuestMemory memory = sample(MemorySource::anon);
  ASSERT_TRUE(Snapshot::save(memory, file.get()));
  {
    const auto mapped = Snapshot::map(file.get());
    ASSERT_TRUE(mapped);
    // By another descriptor and another name too.
    const std::string link = path + "-link";
    ASSERT_EQ(::link(path.c_str(), link.c_str()), 0);
    const OwnedFd other(open(link.c_str(), O_RDWR | O_CLOEXEC));
    const GuestMemory empty = guest({{low, page}});
    for (const int fd : {file.get(), other.get()}) {
      for (const GuestMemory* const guest : {&memory, &*mapped, &empty}) {
        const auto saved = Snapshot::save(*guest, fd);
        ASSERT_FALSE(saved);
        EXPECT_EQ(saved.error().code, Errc::invalid_argument);
      }
    }
    expect_same(memory, *mapped);
  }
  EXPECT_TRUE(Snapshot::save(memory, file.get()));
}

/// The file's header and table with the checksum that belongs to them, as the format describes it.
void mend_checksum(std::vector<std::byte>& head) {
  std::fill_n(head.begin() + 24, 8, std::byte{0});
  std::uint64_t sum = 0xcbf2'9ce4'8422'2325;
  for (const std::byte byte : head)
    sum = (sum ^ std::to_integer<std::uint64_t>(byte)) * 0x0000'0100'0000'01b3;
  const Le64 stored = sum;
  std::memcpy(head.data() + 24, &stored, sizeof stored);
}

TEST(Snapshot, UnknownProtectionBitsAreCorrupt) {
  TempFile file;
  ASSERT_TRUE(Snapshot::save(sample(MemorySource::anon), file.fd()));
  auto head = file.read(metadata);
  for (const std::uint32_t protection : {8U, 0x0fU, 0x100U, 0x103U, 0x8000'0003U}) {
    SCOPED_TRACE(protection);
    const Le32 stored = protection;
    std::memcpy(head.data() + 64 + 24, &stored, sizeof stored);
    mend_checksum(head);
    file.write(head);
    EXPECT_EQ(Snapshot::inspect(file.fd()).error().code, Errc::corrupt);
    EXPECT_EQ(Snapshot::map(file.fd()).error().code, Errc::corrupt);
  }
  const Le32 known = 7U;
  std::memcpy(head.data() + 64 + 24, &known, sizeof known);
  mend_checksum(head);
  file.write(head);
  EXPECT_TRUE(Snapshot::inspect(file.fd()));
}

TEST(Snapshot, OfNoMemoryIsASnapshotToo) {
  TempFile file;
  EXPECT_EQ(Snapshot::save(GuestMemory(), file.fd()), 0U);
  EXPECT_EQ(Snapshot::inspect(file.fd())->size(), 0U);
  EXPECT_TRUE(Snapshot::restore(GuestMemory(), file.fd()));
  EXPECT_EQ(Snapshot::map(file.fd())->regions().size(), 0U);
}

}  // namespace
}  // namespace vmspace
