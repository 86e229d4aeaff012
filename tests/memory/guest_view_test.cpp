// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_view.hpp"

#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::guest_view_test {
namespace {

using test::contents;
using test::page;
using test::pattern;
using test::region;

constexpr GuestAddress first{0x10000};
constexpr GuestAddress second{0x10000 + page};  // where the next region begins

/// Apart on the host, since iovecs join what lies side by side there.
GuestMemory two_regions() {
  std::vector<MemoryRegionPtr> regions;
  for (const GuestAddress base : {first, second}) {
    const auto description = AddressSpaceRegion::make(
        {.name = "test", .base = base, .size = page, .backing = {.source = MemorySource::anon}});
    regions.push_back(*MemoryRegion::map(*description, {.guard_pages = true}));
  }
  return *GuestMemory::from_regions(std::move(regions));
}

TEST(GuestView, ShowsTheMemoryOfOneRegion) {
  const GuestMemory memory = two_regions();
  {
    auto view = memory.mutable_view({first, 10});
    ASSERT_THAT(view, IsOk());
    EXPECT_EQ(view->size(), 10U);
    EXPECT_EQ(view->data(), *memory.host_address({first, 10}));
    std::ranges::fill(view->bytes(), std::byte{9});
  }
  const auto view = memory.view({first, page});
  ASSERT_THAT(view, IsOk());
  EXPECT_EQ(std::ranges::count(view->bytes(), std::byte{9}), 10);
  EXPECT_EQ(memory.view({second, page})->size(), page);
  // One span can't show two regions, nor what is behind them.
  EXPECT_THAT(memory.view({first, page + 1}), HasError(Errc::out_of_bounds));
  EXPECT_THAT(memory.mutable_view({first, page + 1}), HasError(Errc::out_of_bounds));
  EXPECT_THAT(memory.view({second, page + 1}), HasError(Errc::out_of_bounds));
}

TEST(GuestIovecs, AreFilledAndDrainedByReadvAndWritevAcrossRegions) {
  const GuestMemory memory = two_regions();
  const GuestAddress begin(second.value() - 50);
  const auto bytes = pattern(100, 3);
  ASSERT_THAT(memory.write_slice(begin, bytes), IsOk());
  const int file = memfd_create("data", MFD_CLOEXEC);
  {
    const auto list = memory.iovecs({begin, 100}, Access::read);
    ASSERT_THAT(list, IsOk());
    ASSERT_EQ(list->count(), 2);
    EXPECT_EQ(list->iovecs()[0].iov_len, 50U);
    EXPECT_EQ(list->iovecs()[0].iov_base, *memory.host_address({begin, 50}));
    EXPECT_EQ(list->iovecs()[1].iov_base, *memory.host_address({second, 50}));
    EXPECT_EQ(writev(file, list->data(), list->count()), 100);
  }
  ASSERT_THAT(memory.fill({begin, 100}, std::byte{0}), IsOk());
  {
    const auto list = memory.iovecs({begin, 100}, Access::write);
    ASSERT_THAT(list, IsOk());
    EXPECT_EQ(preadv(file, list->data(), list->count(), 0), 100);
  }
  close(file);
  EXPECT_EQ(contents(memory, begin.value(), 100), bytes);
}

TEST(GuestView, OneThatWasMovedFromIsEmpty) {
  const GuestMemory memory = two_regions();
  GuestView view = *memory.view({first, 16});
  GuestView moved = std::move(view);
  EXPECT_EQ(moved.size(), 16U);
  EXPECT_EQ(view.size(), 0U);  // NOLINT(bugprone-use-after-move): defined, and shown here
  GuestView& self = moved;
  moved = std::move(self);
  EXPECT_EQ(moved.size(), 16U);
  view = moved;
  EXPECT_EQ(view.data(), moved.data()) << "copies share the map";
}

TEST(GuestView, HoldsTheRegionWhenItIsUnplugged) {
  std::weak_ptr<const MemoryRegion> unplugged;
  std::unique_ptr<GuestView> seen;
  std::optional<MutableGuestView> view;
  std::optional<GuestIovecs> list;
  {
    const auto plugged = two_regions().with_region(region({0x20000, page}));
    ASSERT_THAT(plugged, IsOk());
    unplugged = plugged->regions()[2];
    seen = std::make_unique<GuestView>(*plugged->view({GuestAddress(0x20000), 16}));
    view.emplace(*plugged->mutable_view({GuestAddress(0x20000), 16}));
    list.emplace(*plugged->iovecs({GuestAddress(0x20000), 16}, Access::write));
  }
  // No map holds the region any more; what points into it does.
  view->bytes()[0] = std::byte{1};
  EXPECT_EQ(seen->bytes()[0], std::byte{1});
  seen.reset();
  ASSERT_FALSE(unplugged.expired());
  view.reset();
  ASSERT_FALSE(unplugged.expired());
  *static_cast<char*>(list->iovecs()[0].iov_base) = 2;
  list.reset();
  EXPECT_TRUE(unplugged.expired());
}

class TrackedView : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_THAT(enable_dirty_tracking(memory), IsOk()); }

  /// How many bytes were marked since the last time.
  std::uint64_t harvested() {
    const auto ranges = harvest_dirty(memory);
    VMSPACE_EXPECT_OK(ranges);
    std::uint64_t bytes = 0;
    if (ranges) {
      for (const GuestRange& range : *ranges)
        bytes += range.size;
    }
    return bytes;
  }

  GuestMemory memory = two_regions();
};

TEST_F(TrackedView, IsMarkedWhenItEndsAndNotBefore) {
  auto view = memory.mutable_view({first, 8});
  ASSERT_THAT(view, IsOk());
  EXPECT_EQ(harvested(), 0U);
  view->mark();
  EXPECT_EQ(harvested(), page);
  { const auto moved = std::move(*view); }
  EXPECT_EQ(harvested(), page);
}

TEST_F(TrackedView, IovecsForWritingAreMarkedInEveryRegionWhenTheyEnd) {
  {
    auto list = memory.iovecs({GuestAddress(second.value() - 1), 2}, Access::write);
    ASSERT_THAT(list, IsOk());
    EXPECT_EQ(harvested(), 0U);
    list->mark();
    EXPECT_EQ(harvested(), 2 * page);
    { const GuestIovecs moved = std::move(*list); }
    EXPECT_EQ(harvested(), 2 * page);
  }
  EXPECT_EQ(harvested(), 0U);  // what was moved from has nothing left to mark
}

TEST_F(TrackedView, AssigningLosesNoMark) {
  {
    auto view = memory.mutable_view({first, 8});
    auto other = memory.mutable_view({second, 8});
    ASSERT_TRUE(view && other);
    *view = std::move(*other);
    EXPECT_EQ(view->data(), *memory.host_address({second, 8}));
    auto list = memory.iovecs({first, 8}, Access::write);
    auto none = memory.iovecs({first, 0}, Access::write);
    ASSERT_TRUE(list && none);
    *none = std::move(*list);
    EXPECT_EQ(none->count(), 1);
  }
  EXPECT_EQ(harvested(), 2 * page);
}

}  // namespace
}  // namespace vmspace::guest_view_test
