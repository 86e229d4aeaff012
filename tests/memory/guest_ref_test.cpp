// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_ref.hpp"

#include <array>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/endian.hpp"
#include "vmspace/memory/guest_ptr.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::test::guest_ref_test {
namespace {

struct Ring {
  Le16 flags;
  Le16 index;
  Le16 ring[4];
  std::array<Le32, 3> more;
};

template <typename R>
concept Writes = requires(R ref) {
  ref.write(Le16(1));
};
template <typename R>
concept Sets = requires(R ref) {
  ref.fetch_or(Le16(1));
};

constexpr std::uint64_t base = 0x10000;

TEST(GuestRef, MembersAreReadAndWrittenWithoutAResult) {
  const GuestMemory memory = guest({{base, page}});
  const auto ring = GuestPtr<Ring>(memory, at(base + 64)).pin();
  ASSERT_THAT(ring, IsOk());
  const auto index = ring->member(&Ring::index);
  index.store(Le16(7), std::memory_order_release);
  EXPECT_EQ(index.load(std::memory_order_acquire), 7U);
  EXPECT_EQ(index.compare_exchange(Le16(7), Le16(8)), 7U);
  EXPECT_EQ(index.compare_exchange(Le16(7), Le16(9)), 8U);
  EXPECT_EQ(index.fetch_or(Le16(3)), 8U);
  ring->member(&Ring::flags).write(Le16(5));
  EXPECT_EQ(ring->read().index, 11U);
  EXPECT_THAT(memory.read<Le16>(at(base + 66)), IsOkAndHolds(Le16(11)));
}

TEST(GuestRef, IntegersAreLoadedAndStoredInEveryOrder) {
  const GuestMemory memory = guest({{base, page}});
  const auto integer = GuestPtr<Le32>(memory, at(base)).pin();
  ASSERT_THAT(integer, IsOk());
  std::uint32_t value = 0;
  for (const auto store :
       {std::memory_order_relaxed, std::memory_order_release, std::memory_order_seq_cst}) {
    for (const auto load : {std::memory_order_relaxed, std::memory_order_consume,
                            std::memory_order_acquire, std::memory_order_seq_cst}) {
      integer->store(Le32(++value), store);
      EXPECT_EQ(integer->load(load), value);
    }
  }
}

TEST(GuestRef, ElementsOfArrayMembersAreBounded) {
  const GuestMemory memory = guest({{base, page}});
  const GuestPtr<Ring> pointer(memory, at(base));
  const auto ring = pointer.pin();
  ASSERT_THAT(ring, IsOk());
  const auto entry = ring->member(&Ring::ring).at(3);
  ASSERT_THAT(entry, IsOk());
  entry->store(Le16(9), std::memory_order_relaxed);
  EXPECT_THAT(memory.read<Le16>(at(base + 10)), IsOkAndHolds(Le16(9)));
  EXPECT_THAT(ring->member(&Ring::ring).at(4), HasError(Errc::out_of_bounds));
  EXPECT_THAT(ring->member(&Ring::more).at(~std::uint64_t{0}), HasError(Errc::out_of_bounds));
  // And by GuestPtr, where each access is checked.
  const auto elements = pointer.member(&Ring::ring);
  ASSERT_THAT(elements, IsOk());
  EXPECT_THAT(elements->at(3)->read(), IsOkAndHolds(Le16(9)));
  EXPECT_THAT(elements->at(4), HasError(Errc::out_of_bounds));
  EXPECT_EQ(pointer.member(&Ring::more)->at(2)->address(), at(base + 20));
  EXPECT_THAT(pointer.member(&Ring::more)->at(3), HasError(Errc::out_of_bounds));
}

TEST(GuestRef, WhereTheObjectLiesIsCheckedOnce) {
  const GuestMemory memory = guest({{base, page}, {base + page, page}});
  EXPECT_THAT(GuestPtr<Ring>(memory, at(base + 2)).pin(), HasError(Errc::misaligned));
  EXPECT_THAT(GuestPtr<Ring>(memory, at(base - 4)).pin(), HasError(Errc::not_found));
  EXPECT_THAT(GuestPtr<Ring>(memory, at(base + 2 * page - 4)).pin(), HasError(Errc::out_of_bounds));
  EXPECT_THAT(GuestPtr<Ring>(memory, at(base + page - 4)).pin(), HasError(Errc::out_of_bounds));
  EXPECT_THAT(GuestPtr<Ring>(memory, at(base + page - 4)).pin_const(),
              HasError(Errc::out_of_bounds));
  EXPECT_THAT(GuestPtr<Ring>(memory, at(top - 3)).pin(), HasError(Errc::overflow));
}

TEST(GuestRef, AReadOnlyRegionIsPinnedForReading) {
  const GuestMemory rom = guest({{.base = base, .size = page, .protection = Protection::read}});
  const GuestPtr<Ring> pointer(rom, at(base));
  EXPECT_THAT(pointer.pin(), HasError(Errc::access_denied));
  const auto ring = pointer.pin_const();
  ASSERT_THAT(ring, IsOk());
  EXPECT_EQ(ring->member(&Ring::index).load(std::memory_order_acquire), 0U);
  EXPECT_EQ(ring->member(&Ring::ring).at(1)->read(), 0U);
  using Member = decltype(ring->member(&Ring::index));
  static_assert(!Writes<Member> && !Sets<Member>);
  static_assert(Writes<GuestRef<Le16>> && Sets<GuestRef<Le16>>);
}

TEST(GuestRef, OnlyWhatIsWrittenIsMarked) {
  const GuestMemory memory = guest({{base, 2 * page}});
  ASSERT_THAT(enable_dirty_tracking(memory), IsOk());
  struct Wide {
    std::array<std::uint32_t, 1024> first;
    std::array<std::uint32_t, 1024> second;
  };
  const auto wide = GuestPtr<Wide>(memory, at(base)).pin();
  ASSERT_THAT(wide, IsOk());
  static_cast<void>(wide->read());
  EXPECT_THAT(harvest_dirty(memory), IsOkAndHolds(std::vector<GuestRange>{}));
  wide->member(&Wide::second).at(5)->write(1);
  EXPECT_THAT(harvest_dirty(memory),
              IsOkAndHolds(std::vector<GuestRange>{{at(base + page), page}}));
  EXPECT_EQ(wide->member(&Wide::first).at(0)->compare_exchange(1, 2), 0U);  // stores nothing
  EXPECT_THAT(harvest_dirty(memory), IsOkAndHolds(std::vector<GuestRange>{}));
  wide->write(Wide{});
  EXPECT_THAT(harvest_dirty(memory), IsOkAndHolds(std::vector<GuestRange>{{at(base), 2 * page}}));
}

TEST(GuestRef, IsGoodForAsLongAsItsMapIsKept) {
  GuestMemory memory = guest({{base, page}});
  const GuestMemory kept = memory;
  const auto ring = GuestPtr<Ring>(kept, at(base)).pin();
  ASSERT_THAT(ring, IsOk());
  memory = *memory.without_region(at(base));
  ring->member(&Ring::index).store(Le16(3), std::memory_order_release);
  EXPECT_EQ(ring->read().index, 3U);
}

}  // namespace
}  // namespace vmspace::test::guest_ref_test
