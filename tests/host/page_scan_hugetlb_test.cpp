// SPDX-License-Identifier: Apache-2.0
//
// PageScan of hugetlb memory, whose absent pages must not be touched: the pool may be empty.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/host/page_scan.hpp"
#include "vmspace/testing.hpp"

#include "faults/injector.hpp"
#include "host/host_support.hpp"
#include "host/page_scan_support.hpp"

namespace vmspace::page_scan_hugetlb_test {
namespace {

using namespace test;

/// hugetlb memory of three pages, of which the second was discarded, and a pool without a free
/// page.
class PageScanHuge : public ::testing::Test {
 protected:
  static constexpr std::uint64_t huge = 2_MiB;

  void SetUp() override {
    // Taking pages into the pool is root's, and they may not be there to be had.
    if (!pool_.available()) GTEST_SKIP() << pool_.why_not();
  }

  MemoryMapping with_a_hole(const BackingSpec& spec) {
    auto mapping = map_or_die(spec, {.size = 3 * huge});
    fill(mapping, 1);
    VMSPACE_EXPECT_OK(mapping.discard(huge, huge));
    return mapping;
  }

  /// Takes every page that may be had: a free one may be reserved for another mapping.
  static std::vector<MemoryMapping> drain() {
    std::vector<MemoryMapping> rest;
    const auto backing = Backing::open({.source = MemorySource::hugeanon}, huge);
    for (;;) {
      auto mapping = MemoryMapping::map(*backing, {.size = huge});
      if (!mapping) return rest;
      fill(*mapping, 2);
      rest.push_back(std::move(*mapping));
    }
  }

  HugePages pool_{huge, 6};
};

TEST_F(PageScanHuge, HolesAreNotTouchedWhateverIsMissing) {
  for (const BackingSpec& spec :
       {BackingSpec{.source = MemorySource::hugeanon},
        BackingSpec{.source = MemorySource::hugeshmem},
        BackingSpec{.source = MemorySource::hugeshmem, .sharing = Sharing::map_private}}) {
    const auto mapping = with_a_hole(spec);
    const auto rest = drain();
    for (const Lack& lack :
         {Lack{"nothing", false, false, false, true},
          Lack{"PAGEMAP_SCAN", true, false, false, true}, Lack{"/proc", true, true, false, true}}) {
      SCOPED_TRACE(std::string(name_of(spec.source)) + " without " + lack.name);
      Injector injector;
      take_away(injector, lack);
      EXPECT_EQ(scan_or_die(mapping), (std::vector<Extent>{{0, huge}, {2 * huge, huge}}));
    }
  }
}

TEST_F(PageScanHuge, WhatAnotherProcessWroteIsFoundAndNoPageIsTaken) {
  const auto mapping = map_or_die({.source = MemorySource::hugeshmem}, {.size = 3 * huge});
  EXPECT_EQ(in_child([&] { mapping.data()[2 * huge + 100_KiB] = std::byte{1}; }), 0);
  const std::uint64_t free = pool_.free();
  EXPECT_EQ(scan_or_die(mapping).back().end(), 3 * huge);
  EXPECT_GE(scan_or_die(mapping).front().offset, 2 * huge);
  EXPECT_EQ(pool_.free(), free);
  // And beneath a private mapping of the file.
  const auto copy = map_or_die(
      {.source = MemorySource::file, .fd = mapping.backing().fd(), .sharing = Sharing::map_private},
      {.size = 3 * huge});
  EXPECT_EQ(scan_or_die(copy).back().end(), 3 * huge);
  EXPECT_GE(scan_or_die(copy).front().offset, 2 * huge);
}

TEST_F(PageScanHuge, WhatOnlyTouchingCouldTellIsAnErrorAndNoSignal) {
  const auto mapping =
      with_a_hole({.source = MemorySource::hugeanon, .sharing = Sharing::map_shared});
  {
    const auto rest = drain();
    const auto found = scan(mapping);
    ASSERT_THAT(found, HasError(Errc::os));
    EXPECT_NE(found.error().message().find("pool"), std::string::npos);
  }
  EXPECT_EQ(scan_or_die(mapping), (std::vector<Extent>{{0, 3 * huge}}));
  Injector injector;
  injector.forget_populating();
  EXPECT_THAT(scan(with_a_hole({.source = MemorySource::hugeanon, .sharing = Sharing::map_shared})),
              HasError(Errc::unsupported));
}

}  // namespace
}  // namespace vmspace::page_scan_hugetlb_test
