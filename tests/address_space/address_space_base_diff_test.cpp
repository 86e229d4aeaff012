// SPDX-License-Identifier: Apache-2.0
//
// What diff finds between two spaces.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

#include "address_space/space_support.hpp"

namespace vmspace::address_space_base_diff_test {
namespace {

using namespace literals;
using namespace test;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(Diff, NamesWhatOnlyTheOneOrTheOtherHas) {
  const AddressSpaceBase before = example();
  EXPECT_TRUE(diff(before, before).empty());
  EXPECT_TRUE(diff(before, example()).empty());

  AddressSpaceBase after = before;
  ASSERT_THAT(after.remove_region(GuestAddress{0}), IsOk());
  RegionOptions changed = ram(0, 1_GiB);
  changed.owner = "hotplug";
  ASSERT_THAT(after.insert_region(changed), IsOk());
  ASSERT_THAT(after.move_region(GuestAddress{0xc000'0000}, GuestAddress{0xe000'0000}), IsOk());
  ASSERT_THAT(after.insert_region(ram(8_GiB, 1_GiB)), IsOk());
  const RegionDiff forward = diff(before, after);
  EXPECT_THAT(forward.removed, ElementsAre(says(ram(0, 1_GiB)), says(device(0xc000'0000, 64_KiB))));
  EXPECT_THAT(forward.added, ElementsAre(says(changed), says(device(0xe000'0000, 64_KiB)),
                                         says(ram(8_GiB, 1_GiB))));
  const RegionDiff back = diff(after, before);
  EXPECT_EQ(back.removed, forward.added);
  EXPECT_EQ(back.added, forward.removed);
}

TEST(Diff, WithAnEmptySpaceIsEverything) {
  const AddressSpaceBase none(pc());
  EXPECT_EQ(diff(none, example()).added.size(), 3U);
  EXPECT_THAT(diff(none, example()).removed, IsEmpty());
  EXPECT_EQ(diff(example(), none).removed.size(), 3U);
}

}  // namespace
}  // namespace vmspace::address_space_base_diff_test
