// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_ptr.hpp"

#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"
#include "memory/virtqueue.hpp"

namespace vmspace::guest_ptr_test {
namespace {

using test::Chain;
using test::guest;
using test::page;
using test::RingDescriptor;
using test::walk;
using ::testing::Not;

constexpr std::uint64_t base = 0x10000;
constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

TEST(GuestPtr, ReadsAndWritesACopy) {
  const GuestMemory memory = guest({{base, page}});
  const GuestPtr<RingDescriptor> descriptor(memory, GuestAddress(base + 3));
  ASSERT_THAT(descriptor.write({.address = 1, .length = 2, .flags = 3, .next = 4}), IsOk());
  const auto copy = descriptor.read();
  ASSERT_THAT(copy, IsOk());
  EXPECT_EQ(copy->address, 1U);
  EXPECT_EQ(copy->next, 4);
  ASSERT_THAT(memory.fill({GuestAddress(base), page}, std::byte{0xff}), IsOk());
  EXPECT_EQ(copy->length, 2U);  // the guest can't reach it
  EXPECT_THAT(GuestPtr<RingDescriptor>(memory, GuestAddress(base + page - 15)).read(),
              HasError(Errc::out_of_bounds));
}

TEST(GuestPtr, ElementsAreBoundedByTheCountAndNeverWrap) {
  const GuestMemory memory = guest({{base, page}});
  const GuestPtr<std::uint64_t> array(memory, GuestAddress(base));
  ASSERT_THAT(array.at(5, 6), IsOk());
  EXPECT_EQ(array.at(5, 6)->address(), GuestAddress(base + 40));
  const auto beyond = array.at(6, 6);
  ASSERT_THAT(beyond, Not(IsOk()));
  EXPECT_EQ(beyond.error().message(), "GuestPtr::at: out of bounds: 6 is not within [0x0, 0x5]");
  EXPECT_THAT(array.at(0, 0), HasError(Errc::out_of_bounds));
  EXPECT_THAT(array.at(top - 1, top), HasError(Errc::overflow));
  EXPECT_THAT(array.at((top - base) / 8 + 1, top), HasError(Errc::overflow));
  VMSPACE_EXPECT_OK(array.at((top - base) / 8, top));
  const GuestPtr<std::uint64_t> last(memory, GuestAddress(top));
  VMSPACE_EXPECT_OK(last.at(0, 2));
  EXPECT_THAT(last.at(1, 2), HasError(Errc::overflow));
}

TEST(GuestPtr, MembersAreReachedByTheirOffset) {
  const GuestMemory memory = guest({{base, page}});
  const GuestPtr<RingDescriptor> descriptor(memory, GuestAddress(base));
  ASSERT_THAT(descriptor.write({.address = 1, .length = 2, .flags = 3, .next = 4}), IsOk());
  const auto next = descriptor.member(&RingDescriptor::next);
  ASSERT_THAT(next, IsOk());
  EXPECT_EQ(next->address(), GuestAddress(base + 14));
  EXPECT_EQ(*next->read(), 4);
  EXPECT_EQ(descriptor.member(&RingDescriptor::address)->address(), GuestAddress(base));
  const GuestPtr<RingDescriptor> end(memory, GuestAddress(top - 1));
  EXPECT_THAT(end.member(&RingDescriptor::flags), HasError(Errc::overflow));
}

TEST(GuestPtr, IntegersAreLoadedAndStoredWithAnOrder) {
  const GuestMemory memory = guest({{base, page}});
  const GuestPtr<std::uint16_t> index(memory, GuestAddress(base + 2));
  ASSERT_THAT(index.store(7, std::memory_order_release), IsOk());
  EXPECT_THAT(index.load(std::memory_order_acquire), IsOkAndHolds(7));
  const GuestPtr<std::uint16_t> odd(memory, GuestAddress(base + 1));
  EXPECT_THAT(odd.load(std::memory_order_acquire), HasError(Errc::misaligned));
}

// What a hostile or broken driver may set up, without any race.
class DescriptorChain : public ::testing::Test {
 protected:
  static constexpr std::uint16_t size = 8;

  void describe(std::uint16_t index, RingDescriptor descriptor) {
    const auto slot = table.at(index, size);
    ASSERT_THAT(slot, IsOk());
    ASSERT_THAT(slot->write(descriptor), IsOk());
  }

  GuestMemory memory = guest({{base, 4 * page}});
  GuestPtr<RingDescriptor> table{memory, GuestAddress(base)};
};

TEST_F(DescriptorChain, IsWalkedToItsEnd) {
  describe(0, {.address = base + page, .length = 16, .flags = RingDescriptor::has_next, .next = 5});
  describe(
      5, {.address = base + 2 * page, .length = 100, .flags = RingDescriptor::writable, .next = 0});
  const auto chain = walk(memory, table, size, 0);
  ASSERT_TRUE(chain);
  EXPECT_EQ(chain->pieces, 2U);
  EXPECT_EQ(chain->bytes, 116U);
}

TEST_F(DescriptorChain, LoopsAndIndicesOutOfTheTableAreErrors) {
  describe(0, {.address = base + page, .length = 16, .flags = RingDescriptor::has_next, .next = 0});
  EXPECT_THAT(walk(memory, table, size, 0), HasError(Errc::limit_exceeded));
  describe(0, {.address = base + page, .length = 16, .flags = RingDescriptor::has_next, .next = 8});
  EXPECT_THAT(walk(memory, table, size, 0), HasError(Errc::out_of_bounds));
  EXPECT_THAT(walk(memory, table, size, 65535), HasError(Errc::out_of_bounds));
}

TEST_F(DescriptorChain, BuffersOutOfMemoryAreErrors) {
  for (const auto& [address, length] : {std::pair<std::uint64_t, std::uint32_t>{0, 1},
                                        {base + 4 * page - 1, 2},
                                        {base, 0xffff'ffff},
                                        {top, 0xffff'ffff},
                                        {top - 3, 4}}) {
    describe(0, {.address = address, .length = length, .flags = 0, .next = 0});
    EXPECT_FALSE(walk(memory, table, size, 0)) << address << " " << length;
  }
}

}  // namespace
}  // namespace vmspace::guest_ptr_test
