// SPDX-License-Identifier: Apache-2.0

#include "vmspace/host/page_scan.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/host/fault_guard.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/host_support.hpp"
#include "host/page_scan_support.hpp"

namespace vmspace::page_scan_test {
namespace {

using namespace test;

constexpr std::uint64_t size = 64_MiB;

MemoryMapping map_small_pages(const BackingSpec& spec) {
  auto mapping = map_or_die(spec, {.size = size});
  // One page is one page, and files are not read ahead.
  static_cast<void>(mapping.advise(0, size, Advice::no_huge_pages));
  static_cast<void>(mapping.advise(0, size, Advice::random));
  return mapping;
}

/// Each kind of memory with small pages, all of them of one memfd or file of zeros.
class PageScanKinds : public ::testing::Test {
 protected:
  PageScanKinds()
      : memfd_(::memfd_create("memory", MFD_CLOEXEC)),
        path_(directory_.file("ram", 0, ' ')),
        specs_{
            {.source = MemorySource::anon},
            {.source = MemorySource::anon, .sharing = Sharing::map_shared},
            {.source = MemorySource::file, .fd = memfd_.get(), .sharing = Sharing::map_private},
            {.source = MemorySource::file, .fd = memfd_.get()},
            {.source = MemorySource::file, .path = path_, .sharing = Sharing::map_private},
            {.source = MemorySource::file, .path = path_},
        } {
    EXPECT_EQ(::ftruncate(memfd_.get(), size), 0);
    EXPECT_EQ(::truncate(path_.c_str(), size), 0);
  }

  static std::string name(const BackingSpec& spec) {
    return (spec.is_shared() ? "shared " : "private ") +
           std::string(spec.fd ? "memfd" : name_of(spec.source));
  }

  TemporaryDirectory directory_;
  OwnedFd memfd_;
  std::string path_;
  std::vector<BackingSpec> specs_;
};

/// Writes to a few pages, and tells which.
std::vector<Extent> write_some(const MemoryMapping& mapping) {
  const std::uint64_t page = page_size();
  for (const std::uint64_t offset : {3 * page, 4 * page, size / 2 + page, size - page}) {
    mapping.data()[offset + 5] = std::byte{1};
  }
  return {{3 * page, 2 * page}, {size / 2 + page, page}, {size - page, page}};
}

TEST_F(PageScanKinds, WhatWasWrittenIsFoundAndNothingIsMade) {
  for (const BackingSpec& spec : specs_) {
    SCOPED_TRACE(name(spec));
    const auto mapping = map_small_pages(spec);
    EXPECT_TRUE(scan_or_die(mapping).empty());
    const auto written = write_some(mapping);
    const auto before = mapping.residency();
    EXPECT_EQ(scan_or_die(mapping), written);
    EXPECT_EQ(mapping.residency()->resident, before->resident);
    // The next one begins with files of zeros again.
    static_cast<void>(::ftruncate(memfd_.get(), 0));
    static_cast<void>(::ftruncate(memfd_.get(), size));
    static_cast<void>(::truncate(path_.c_str(), 0));
    static_cast<void>(::truncate(path_.c_str(), size));
  }
}

TEST_F(PageScanKinds, APartOfAScanIsCutToThePart) {
  const auto mapping = map_small_pages(specs_[0]);
  const std::uint64_t page = page_size();
  write_some(mapping);
  PageScan pages(mapping);
  EXPECT_EQ(*pages.next(0, page), (Extent{page, 0}));
  EXPECT_EQ(*pages.next(page, 4 * page), (Extent{3 * page, page}));
  EXPECT_EQ(*pages.next(4 * page, size), (Extent{4 * page, page}));
  EXPECT_EQ(*pages.next(size - page, size), (Extent{size - page, page}));
  EXPECT_EQ(*pages.next(size, size), (Extent{size, 0}));
  // A page that is in the part only in part, and back again.
  EXPECT_EQ(*pages.next(3 * page + 8, 5 * page - 8), (Extent{3 * page + 8, 2 * page - 16}));
  EXPECT_EQ(*pages.next(0, size), (Extent{3 * page, 2 * page}));
}

TEST_F(PageScanKinds, PartsThatAreNotThereAreRefused) {
  auto mapping = map_small_pages(specs_[0]);
  for (const PageQuery query :
       {PageQuery::data, PageQuery::present, PageQuery::zero, PageQuery::written}) {
    PageScan pages(mapping, query);
    EXPECT_THAT(pages.next(0, size + page_size()), HasError(Errc::out_of_bounds));
    EXPECT_THAT(pages.next(page_size(), 0), HasError(Errc::out_of_bounds));
  }
  PageScan pages(mapping);
  VMSPACE_ASSERT_OK(mapping.close());
  EXPECT_THAT(pages.next(0, 0), HasError(Errc::bad_state));
}

TEST_F(PageScanKinds, QuestionsThatHaveNoAnswerAreRefused) {
  const auto mapping = map_small_pages(specs_[0]);
  PageScan unknown(mapping, static_cast<PageQuery>(9));
  EXPECT_THAT(unknown.next(0, size), HasError(Errc::invalid_argument));
  const auto unreadable = map_or_die(specs_[0], {.size = size, .protection = Protection::none});
  PageScan zero(unreadable, PageQuery::zero);
  EXPECT_THAT(zero.next(0, size), HasError(Errc::access_denied)) << "zeros are seen by reading";
}

TEST_F(PageScanKinds, AScanGoesOnWhereItWasMovedTo) {
  const auto mapping = map_small_pages(specs_[0]);
  const auto other = map_small_pages(specs_[0]);
  const auto written = write_some(mapping);
  PageScan first(mapping);
  EXPECT_EQ(*first.next(0, size), written[0]);
  PageScan second(std::move(first));
  EXPECT_EQ(*second.next(written[0].end(), size), written[1]);
  PageScan third(other);
  third = std::move(second);
  EXPECT_EQ(*third.next(written[1].end(), size), written[2]);
}

TEST_F(PageScanKinds, WhatIsPresentIsWhatIsResident) {
  const std::uint64_t page = page_size();
  for (const BackingSpec& spec : specs_) {
    SCOPED_TRACE(name(spec));
    const auto mapping = map_small_pages(spec);
    write_some(mapping);
    // Present, of zeros; of private anonymous memory it is the shared page of zeros, which is none.
    static_cast<void>(*static_cast<volatile std::byte*>(mapping.data() + 30 * page));
    std::uint64_t bytes = 0;
    for (const Extent& extent : scan_or_die(mapping, PageQuery::present))
      bytes += extent.size;
    EXPECT_EQ(bytes, mapping.residency()->resident);
    EXPECT_GE(bytes, 4 * page);
    static_cast<void>(::ftruncate(memfd_.get(), 0));
    static_cast<void>(::ftruncate(memfd_.get(), size));
    static_cast<void>(::truncate(path_.c_str(), 0));
    static_cast<void>(::truncate(path_.c_str(), size));
  }
}

TEST_F(PageScanKinds, PresentPagesOfZerosAreFoundAndAbsentOnesStayAbsent) {
  const std::uint64_t page = page_size();
  for (const BackingSpec& spec : specs_) {
    SCOPED_TRACE(name(spec));
    const auto mapping = map_small_pages(spec);
    write_some(mapping);
    mapping.data()[4 * page + 5] = {};
    mapping.data()[5 * page + 5] = {};
    mapping.data()[size - page + 5] = {};
    const auto before = mapping.residency();
    EXPECT_EQ(scan_or_die(mapping, PageQuery::zero),
              (std::vector<Extent>{{4 * page, 2 * page}, {size - page, page}}));
    EXPECT_EQ(mapping.residency()->resident, before->resident);
    static_cast<void>(::ftruncate(memfd_.get(), 0));
    static_cast<void>(::ftruncate(memfd_.get(), size));
    static_cast<void>(::truncate(path_.c_str(), 0));
    static_cast<void>(::truncate(path_.c_str(), size));
  }
}

TEST_F(PageScanKinds, WhatWasWrittenToAPrivateMappingIsToldFromWhatWasRead) {
  const std::uint64_t page = page_size();
  for (const std::size_t index : {0U, 2U, 4U}) {
    SCOPED_TRACE(name(specs_[index]));
    const auto mapping = map_small_pages(specs_[index]);
    const auto none = scan(mapping, PageQuery::written);
    if (!none && none.error().code == Errc::unsupported) GTEST_SKIP() << none.error().message();
    ASSERT_THAT(none, IsOk());
    EXPECT_TRUE(none->empty());
    const auto written = write_some(mapping);
    static_cast<void>(*static_cast<volatile std::byte*>(mapping.data() + 30 * page));
    EXPECT_EQ(scan_or_die(mapping, PageQuery::written), written);
    EXPECT_EQ(scan_or_die(mapping, PageQuery::written), written) << "nothing was forgotten";
  }
}

TEST_F(PageScanKinds, WhoWroteSharedMemoryIsNotKnown) {
  for (const std::size_t index : {1U, 3U, 5U}) {
    SCOPED_TRACE(name(specs_[index]));
    const auto found = scan(map_small_pages(specs_[index]), PageQuery::written);
    if (!found && found.error().code == Errc::unsupported) GTEST_SKIP() << found.error().message();
    EXPECT_THAT(found, HasError(Errc::bad_state));
  }
}

TEST_F(PageScanKinds, WithoutPagemapScanWhatWasWrittenIsUnsupported) {
  const auto mapping = map_small_pages(specs_[0]);
  Injector injector;
  injector.fail_always("ioctl", ENOTTY);
  EXPECT_THAT(scan(mapping, PageQuery::written), HasError(Errc::unsupported));
  injector.fail_none();
  injector.hide_proc_and_sys();
  EXPECT_THAT(scan(mapping, PageQuery::written), HasError(Errc::unsupported));
}

TEST_F(PageScanKinds, WhicheverCallFailsNothingThatWasWrittenIsLeftOut) {
  for (const BackingSpec& spec : specs_) {
    SCOPED_TRACE(name(spec));
    const auto mapping = map_small_pages(spec);
    const auto written = write_some(mapping);
    for (const PageQuery query : {PageQuery::data, PageQuery::present, PageQuery::written}) {
      for (std::size_t index = 0;; ++index) {
        Injector injector;
        injector.fail_call(index, EIO);
        const auto found = scan(mapping, query);
        const bool failed = injector.has_failed();
        injector.fail_none();
        for (const Extent& one : found ? written : std::vector<Extent>{}) {
          EXPECT_TRUE(std::ranges::any_of(*found, [&](const Extent& extent) {
            return extent.offset <= one.offset && one.end() <= extent.end();
          })) << index;
        }
        if (!failed) break;
      }
    }
    static_cast<void>(::ftruncate(memfd_.get(), 0));
    static_cast<void>(::ftruncate(memfd_.get(), size));
    static_cast<void>(::truncate(path_.c_str(), 0));
    static_cast<void>(::truncate(path_.c_str(), size));
  }
}

TEST_F(PageScanKinds, WhatIsPresentIsNotGuessed) {
  for (const BackingSpec& spec : specs_) {
    SCOPED_TRACE(name(spec));
    const auto mapping = map_small_pages(spec);
    Injector injector;
    take_away(injector, {"anything", true, true, true, false});
    EXPECT_THAT(scan(mapping, PageQuery::present), HasError(Errc::os));
    EXPECT_THAT(scan(mapping, PageQuery::zero), HasError(Errc::os));
  }
}

TEST_F(PageScanKinds, WhereAKernelOrASandboxLacksOneMeansAnotherStandsIn) {
  for (const BackingSpec& spec : specs_) {
    const auto mapping = map_small_pages(spec);
    const auto written = write_some(mapping);
    for (const Lack& lack : {Lack{"PAGEMAP_SCAN", true, false, false, true},
                             Lack{"/proc", false, true, false, false}}) {
      SCOPED_TRACE(name(spec) + " without " + lack.name);
      // Where nothing else is asked, swap would be in the way.
      if (lack.swap && spec.source == MemorySource::anon && spec.is_shared()) continue;
      Injector injector;
      take_away(injector, lack);
      EXPECT_EQ(scan_or_die(mapping), written);
    }
    static_cast<void>(::ftruncate(memfd_.get(), 0));
    static_cast<void>(::ftruncate(memfd_.get(), size));
    static_cast<void>(::truncate(path_.c_str(), 0));
    static_cast<void>(::truncate(path_.c_str(), size));
  }
}

TEST_F(PageScanKinds, WhatCantBeRuledOutIsReported) {
  const std::vector<Extent> all{{0, size}};
  for (const Lack& lack : {Lack{"mincore and /proc", true, true, true, false},
                           // mincore(2) does not tell a page that was swapped out from none.
                           Lack{"/proc, with swap", true, true, false, true}}) {
    for (const BackingSpec& spec : specs_) {
      const bool only_data = spec.fd && spec.is_shared();
      const bool only_cache =
          spec.source == MemorySource::file && !spec.fd && spec.is_shared() && !lack.incore;
      if (only_data || only_cache) continue;  // they are asked neither for page tables nor for swap
      SCOPED_TRACE(name(spec) + " without " + lack.name);
      const auto mapping = map_small_pages(spec);
      Injector injector;
      take_away(injector, lack);
      EXPECT_EQ(scan_or_die(mapping), all);
    }
  }
}

TEST_F(PageScanKinds, APageThatWasSwappedOutIsFound) {
  const auto mapping = map_small_pages(specs_[0]);
  const std::uint64_t page = page_size();
  static const std::byte* swapped;
  swapped = mapping.data() + 70 * page;
  Injector injector;
  take_away(injector, {"PAGEMAP_SCAN", true, false, false, true});
  // As /proc/self/pagemap tells of it: bit 62, and not present (bit 63).
  injector.table().pread = [](int fd, void* buffer, std::size_t bytes, off_t offset) {
    const ssize_t got = ::pread(fd, buffer, bytes, offset);
    const std::uint64_t first = static_cast<std::uint64_t>(offset) / 8;
    const std::uint64_t wanted = reinterpret_cast<std::uintptr_t>(swapped) / page_size();
    if (got > 0 && wanted >= first && wanted < first + static_cast<std::uint64_t>(got) / 8) {
      static_cast<std::uint64_t*>(buffer)[wanted - first] = std::uint64_t{1} << 62;
    }
    return got;
  };
  EXPECT_EQ(scan_or_die(mapping), (std::vector<Extent>{{70 * page, page}}));
}

TEST_F(PageScanKinds, OfAPrivateFileItsOwnDataAndTheCopiesAreFound) {
  const std::uint64_t page = page_size();
  const auto mapping = map_small_pages(specs_[2]);
  const char byte = 1;
  ASSERT_EQ(::pwrite(memfd_.get(), &byte, 1, static_cast<off_t>(7 * page)), 1);
  mapping.data()[20 * page] = std::byte{1};
  // The copy stays when the file loses what it was copied from.
  ASSERT_EQ(::fallocate(memfd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        static_cast<off_t>(20 * page), static_cast<off_t>(page)),
            0);
  EXPECT_EQ(scan_or_die(mapping), (std::vector<Extent>{{7 * page, page}, {20 * page, page}}));
}

// Nothing is in memory, and the file has many parts, each of which the scan returns with.
TEST_F(PageScanKinds, WhereNothingIsPresentIsAskedOnceHoweverManyPartsAFileHas) {
  const std::uint64_t page = page_size();
  const OwnedFd file(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
  const char byte = 1;
  std::vector<Extent> written;
  for (std::uint64_t at = 0; at < size / 4; at += 64 * page) {
    ASSERT_EQ(::pwrite(file.get(), &byte, 1, static_cast<off_t>(at)), 1);
    written.push_back({at, page});
  }
  ASSERT_EQ(::fsync(file.get()), 0);
  for (const std::size_t index : {4U, 5U}) {
    SCOPED_TRACE(name(specs_[index]));
    const auto mapping = map_small_pages(specs_[index]);
    static std::uint64_t asked;
    asked = 0;
    Injector injector;
    take_away(injector, {"PAGEMAP_SCAN and /proc", true, true, false, false});
    injector.table().mincore = [](void*, std::size_t bytes, unsigned char* pages) {
      asked += bytes;
      std::fill_n(pages, bytes / page_size(), 0);
      return 0;
    };
    EXPECT_EQ(scan_or_die(mapping), written);
    EXPECT_LE(asked, 2 * size) << "what this process has mapped, and what is in the page cache";
  }
}

TEST_F(PageScanKinds, WhatAnotherProcessWroteIsFound) {
  const std::uint64_t page = page_size();
  for (const std::size_t index : {1U, 3U, 5U}) {
    SCOPED_TRACE(name(specs_[index]));
    const auto mapping = map_small_pages(specs_[index]);
    EXPECT_EQ(in_child([&] { mapping.data()[9 * page] = std::byte{1}; }), 0);
    EXPECT_EQ(scan_or_die(mapping), (std::vector<Extent>{{9 * page, page}}));
  }
}

TEST_F(PageScanKinds, MemoryWhoseFileWasCutOffIsAnErrorAndNoZeros) {
  for (const std::size_t index : {2U, 3U, 4U, 5U}) {
    SCOPED_TRACE(name(specs_[index]));
    const auto mapping = map_small_pages(specs_[index]);
    ASSERT_EQ(::ftruncate(memfd_.get(), size / 2), 0);
    ASSERT_EQ(::truncate(path_.c_str(), size / 2), 0);
    const auto found = scan(mapping);
    ASSERT_THAT(found, HasError(Errc::out_of_bounds));
    ASSERT_EQ(::ftruncate(memfd_.get(), size), 0);
    ASSERT_EQ(::truncate(path_.c_str(), size), 0);
  }
}

TEST_F(PageScanKinds, WhereTheTablesMayNotBeReadTheKernelIsAskedPageByPage) {
  const auto mapping = map_small_pages(specs_[0]);
  const auto written = write_some(mapping);
  Injector injector;
  take_away(injector, {"PAGEMAP_SCAN", true, false, false, false});
  injector.fail_always("pread of pagemap", EPERM);
  EXPECT_EQ(scan_or_die(mapping, PageQuery::present), written);
  EXPECT_TRUE(injector.has_failed());
}

TEST_F(PageScanKinds, APageThatGoesBeforeItIsReadIsAnErrorAndNoSignal) {
  const auto guard = FaultGuard::install();
  ASSERT_THAT(guard, IsOk());
  const auto mapping = map_small_pages(specs_[3]);
  // The file is cut off right after the kernel has said that its pages are there.
  Injector injector;
  take_away(injector, {"PAGEMAP_SCAN and /proc", true, true, false, false});
  injector.table().mincore = [](void*, std::size_t bytes, unsigned char* pages) {
    std::fill_n(pages, bytes / page_size(), 1);
    return 0;
  };
  ASSERT_EQ(::ftruncate(memfd_.get(), 0), 0);
  EXPECT_THAT(scan(mapping, PageQuery::zero), HasError(Errc::fault));
}

}  // namespace
}  // namespace vmspace::page_scan_test
