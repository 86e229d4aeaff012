// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/memory_recorder.hpp"

#include <cerrno>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/testing.hpp"
#include "vmspace/vmm/memory_listener.hpp"

#include "faults/failing_new.hpp"

namespace vmspace::memory_recorder_test {
namespace {

using test::fail_each_allocation;
using testing::AllOf;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Property;

constexpr std::uint64_t page = 4096;

MemoryRegionPtr named(std::string name, std::uint64_t base, std::uint64_t size) {
  auto region = MemoryRegion::map({.name = std::move(name),
                                   .base = GuestAddress(base),
                                   .size = size,
                                   .backing = {.source = MemorySource::anon}});
  VMSPACE_EXPECT_OK(region);
  return *region;
}

class MemoryRecorderTest : public ::testing::Test {
 protected:
  const MemoryRegionPtr low = named("ram0", 0, 4 * page);
  const MemoryRegionPtr high = named("dimm1", 0x10'0000, 4 * page);
  const MemorySection all_of_low{low};
  const MemorySection all_of_high{high};
  const MemorySection second_page{low, page, page};
  MemoryRecorder recorder;
};

TEST_F(MemoryRecorderTest, ACallIsALine) {
  const MemorySection removed[] = {all_of_low};
  const MemorySection added[] = {second_page, all_of_high};
  VMSPACE_ASSERT_OK(recorder.prepare({.removed = removed, .added = added, .disruptive = true}));
  VMSPACE_ASSERT_OK(recorder.add(all_of_low));
  VMSPACE_ASSERT_OK(recorder.commit());
  VMSPACE_ASSERT_OK(recorder.remove(all_of_low));
  VMSPACE_ASSERT_OK(recorder.add(second_page));
  EXPECT_THAT(recorder.calls(),
              ElementsAre("prepare -ram0 [0x0-0x3fff] +ram0+0x1000 [0x1000-0x1fff] "
                          "+dimm1 [0x100000-0x103fff] disruptive",
                          "add ram0 [0x0-0x3fff]", "commit", "remove ram0 [0x0-0x3fff]",
                          "add ram0+0x1000 [0x1000-0x1fff]"));
  recorder.forget_calls();
  EXPECT_EQ(recorder.text(), "");
  VMSPACE_ASSERT_OK(recorder.commit());
  VMSPACE_ASSERT_OK(recorder.prepare({}));
  EXPECT_EQ(recorder.text(), "commit\nprepare\n");
}

TEST_F(MemoryRecorderTest, ANameStaysOnItsLineAndARegionNeedsNone) {
  VMSPACE_ASSERT_OK(recorder.add(MemorySection(named("a\nb", 0, page))));
  VMSPACE_ASSERT_OK(recorder.add(MemorySection(named("", page, page))));
  EXPECT_THAT(recorder.calls(), ElementsAre("add a\\x0ab [0x0-0xfff]", "add [0x1000-0x1fff]"));
}

TEST_F(MemoryRecorderTest, TheTableIsInAddressOrderAndKeepsItsMemory) {
  auto region = named("gone", 0x20'0000, page);
  const std::weak_ptr<const MemoryRegion> watched = region;
  VMSPACE_ASSERT_OK(recorder.add(MemorySection(std::move(region))));
  VMSPACE_ASSERT_OK(recorder.add(all_of_high));
  VMSPACE_ASSERT_OK(recorder.add(all_of_low));
  VMSPACE_ASSERT_OK(recorder.commit());
  EXPECT_FALSE(watched.expired());
  EXPECT_THAT(recorder.table(),
              ElementsAre(all_of_low, all_of_high, MemorySection(watched.lock())));
  VMSPACE_ASSERT_OK(recorder.remove(MemorySection(watched.lock())));
  VMSPACE_ASSERT_OK(recorder.commit());
  EXPECT_TRUE(watched.expired());
}

TEST_F(MemoryRecorderTest, WhatNoCallerMayDoIsRefusedAndRecorded) {
  VMSPACE_ASSERT_OK(recorder.add(all_of_low));
  const auto twice = recorder.add(second_page);
  ASSERT_THAT(twice, HasError(Errc::overlap));
  EXPECT_THAT(twice.error().message(), HasSubstr("[0x1000, 0x1fff] overlaps [0x0, 0x3fff]"));
  EXPECT_THAT(recorder.remove(second_page), HasError(Errc::not_found)) << "a part of a section";
  EXPECT_THAT(recorder.remove(MemorySection(named("ram0", 0, 4 * page))), HasError(Errc::not_found))
      << "another region at the same place";
  EXPECT_THAT(recorder.calls(),
              ElementsAre("add ram0 [0x0-0x3fff]", "add ram0+0x1000 [0x1000-0x1fff]: failed",
                          "remove ram0+0x1000 [0x1000-0x1fff]: failed",
                          "remove ram0 [0x0-0x3fff]: failed"));
  EXPECT_THAT(recorder.table(), ElementsAre(all_of_low));
  EXPECT_THAT(recorder.log_sync(all_of_low), HasError(Errc::bad_state)) << "no log was started";
  VMSPACE_ASSERT_OK(recorder.commit());
  VMSPACE_ASSERT_OK(recorder.remove(all_of_low));
  EXPECT_THAT(recorder.remove(all_of_low), HasError(Errc::not_found)) << "before it is committed";
}

TEST_F(MemoryRecorderTest, RefusesTheCallsThatItWasToldTo) {
  recorder.refuse(1, 2);
  VMSPACE_ASSERT_OK(recorder.add(all_of_low));
  EXPECT_THAT(recorder.add(all_of_high), HasError(Errc::bad_state));
  EXPECT_THAT(recorder.remove(all_of_low), HasError(Errc::bad_state));
  VMSPACE_ASSERT_OK(recorder.add(all_of_high));
  EXPECT_THAT(recorder.table(), ElementsAre(all_of_low, all_of_high));

  recorder.refuse(0, MemoryRecorder::all);
  for (int i = 0; i < 3; ++i)
    EXPECT_THAT(recorder.prepare({}), HasError(Errc::bad_state));
  recorder.refuse(0, 0);
  VMSPACE_EXPECT_OK(recorder.prepare({}));
}

TEST_F(MemoryRecorderTest, RunsOutOfMemoryWhereItWasToldToAndRemoveDoesNotThrow) {
  recorder.run_out_of_memory(1);
  VMSPACE_ASSERT_OK(recorder.add(all_of_low));
  EXPECT_THROW(static_cast<void>(recorder.add(all_of_high)), std::bad_alloc);
  recorder.run_out_of_memory(0);
  const auto removed = recorder.remove(all_of_low);
  ASSERT_THAT(removed, HasError(Errc::os));
  EXPECT_EQ(removed.error().os_errno, ENOMEM);
  EXPECT_THAT(recorder.calls(),
              ElementsAre("add ram0 [0x0-0x3fff]", "add dimm1 [0x100000-0x103fff]: failed",
                          "remove ram0 [0x0-0x3fff]: failed"));
  EXPECT_THAT(recorder.table(), ElementsAre(all_of_low));
  VMSPACE_EXPECT_OK(recorder.remove(all_of_low));
}

TEST_F(MemoryRecorderTest, AHookSeesEachCallFirstAndDecidesIt) {
  std::vector<std::string> seen;
  recorder.on_call([&](std::string_view line) -> Result<void> {
    EXPECT_EQ(recorder.calls().size(), seen.size());
    seen.emplace_back(line);
    if (line.starts_with("remove")) return fail({.code = Errc::timed_out, .operation = "hook"});
    if (line == "commit") throw std::runtime_error("hook");
    return {};
  });
  VMSPACE_ASSERT_OK(recorder.add(all_of_low));
  EXPECT_THAT(recorder.remove(all_of_low), HasError(Errc::timed_out));
  EXPECT_THROW(static_cast<void>(recorder.commit()), std::runtime_error);
  EXPECT_THAT(seen, ElementsAre("add ram0 [0x0-0x3fff]", "remove ram0 [0x0-0x3fff]", "commit"));
  recorder.on_call({});
  VMSPACE_EXPECT_OK(recorder.commit());
}

TEST_F(MemoryRecorderTest, ACommitThatFailsTakesBackWhatWasSaidSinceTheLast) {
  VMSPACE_ASSERT_OK(recorder.add(all_of_low));
  VMSPACE_ASSERT_OK(recorder.commit());
  const auto change = [&] {
    VMSPACE_EXPECT_OK(recorder.remove(all_of_low));
    VMSPACE_EXPECT_OK(recorder.add(second_page));
    VMSPACE_EXPECT_OK(recorder.add(all_of_high));
    EXPECT_THAT(recorder.table(), ElementsAre(second_page, all_of_high));
  };
  change();
  recorder.refuse(0);
  EXPECT_THAT(recorder.commit(), HasError(Errc::bad_state));
  EXPECT_THAT(recorder.table(), ElementsAre(all_of_low));
  change();
  recorder.run_out_of_memory(0);
  EXPECT_THROW(static_cast<void>(recorder.commit()), std::bad_alloc);
  EXPECT_THAT(recorder.table(), ElementsAre(all_of_low));
  change();
  VMSPACE_ASSERT_OK(recorder.commit());
  EXPECT_THAT(recorder.table(), ElementsAre(second_page, all_of_high));
}

TEST_F(MemoryRecorderTest, TheTableEqualsTheMemoryWhoseRegionsItHasWholeOrInParts) {
  const auto memory = GuestMemory::from_regions({low, high});
  ASSERT_THAT(memory, IsOk());
  const auto lacks = [&](const char* what) {
    EXPECT_THAT(recorder.check_equals(*memory),
                HasErrorThat(AllOf(Field(&Error::code, Errc::corrupt),
                                   Property(&Error::message, HasSubstr(what)))));
  };
  lacks("[0x0, 0x3fff]");
  VMSPACE_ASSERT_OK(recorder.add(MemorySection(low, 0, page)));
  lacks("[0x1000, 0x3fff]");
  VMSPACE_ASSERT_OK(recorder.add(MemorySection(low, 2 * page, 2 * page)));
  lacks("[0x1000, 0x3fff]");
  VMSPACE_ASSERT_OK(recorder.add(second_page));
  lacks("\"dimm1\": corrupt data: [0x100000, 0x103fff]");
  VMSPACE_ASSERT_OK(recorder.add(all_of_high));
  VMSPACE_EXPECT_OK(recorder.check_equals(*memory));
  VMSPACE_ASSERT_OK(recorder.add(MemorySection(named("more", 0x10'4000, page))));
  lacks("the guest does not have this section");
}

TEST_F(MemoryRecorderTest, AnotherRegionAtTheSamePlaceIsADifference) {
  const auto memory = GuestMemory::from_regions({low});
  ASSERT_THAT(memory, IsOk());
  VMSPACE_ASSERT_OK(recorder.add(MemorySection(named("ram0", 0, 4 * page))));
  EXPECT_THAT(recorder.check_equals(*memory), HasError(Errc::corrupt));
  VMSPACE_EXPECT_OK(MemoryRecorder().check_equals(GuestMemory()));
}

TEST_F(MemoryRecorderTest, AGuestThatWritesUpTo2To64WritesNothingBehindASection) {
  DirtyBitmap& dirty = low->dirty();
  ASSERT_THAT(dirty.enable(), IsOk());
  VMSPACE_ASSERT_OK(recorder.add(second_page));
  VMSPACE_ASSERT_OK(recorder.log_start(second_page));
  recorder.wrote({GuestAddress(page), UINT64_MAX});
  VMSPACE_ASSERT_OK(recorder.log_sync(second_page));
  EXPECT_THAT(dirty.peek(), ElementsAre(DirtyRange{.offset = page, .size = page}));
}

TEST_F(MemoryRecorderTest, ErrorsOfALogNameTheCall) {
  const auto name = [](const Result<void>& done) { return done.error().operation; };
  EXPECT_STREQ(name(recorder.log_start(all_of_low)), "MemoryRecorder::log_start");
  EXPECT_STREQ(name(recorder.log_sync(all_of_low)), "MemoryRecorder::log_sync");
  EXPECT_STREQ(name(recorder.log_stop(all_of_low)), "MemoryRecorder::log_stop");
}

TEST_F(MemoryRecorderTest, EveryCallIsAllOrNothingWhenMemoryRunsOut) {
  const auto nothing = [&] { EXPECT_THAT(recorder.table(), IsEmpty()); };
  EXPECT_GT(fail_each_allocation([&] { EXPECT_TRUE(recorder.add(all_of_low)); }, nothing), 0);
  // remove() says so instead of throwing.
  for (int n = 0;; ++n) {
    test::granted = n;
    const bool removed = recorder.remove(all_of_low).has_value();
    test::granted = -1;
    if (removed) break;
    EXPECT_THAT(recorder.table(), ElementsAre(all_of_low));
  }
  EXPECT_THAT(recorder.table(), IsEmpty());
}

}  // namespace
}  // namespace vmspace::memory_recorder_test
