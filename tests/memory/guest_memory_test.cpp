// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_memory.hpp"

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/guest_io.hpp"
#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::guest_memory_test {
namespace {

using test::at;
using test::contents;
using test::Guest;
using test::guest;
using test::page;
using test::region;
using test::top;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Not;

__extension__ using Int128 = __int128;  // integral in GNU dialects only
static_assert(GuestInteger<std::uint64_t> && GuestInteger<char>);
static_assert(!GuestInteger<Int128> && !GuestInteger<bool> && !GuestInteger<void*>);

TEST_F(Guest, ReadsWhatWasWrittenAtAnyAlignment) {
  for (std::uint64_t offset = 0; offset < 9; ++offset) {
    ASSERT_THAT(memory.write(at(first + offset), std::uint64_t{0x1122'3344'5566'7788} + offset),
                IsOk());
    EXPECT_THAT(memory.read<std::uint64_t>(at(first + offset)),
                IsOkAndHolds(0x1122'3344'5566'7788 + offset));
  }
  using Odd = std::array<std::uint8_t, 15>;  // words of 8, 4, 2 and 1 bytes
  Odd odd{};
  for (std::uint8_t i = 0; i < 15; ++i)
    odd[i] = static_cast<std::uint8_t>(i + 1);
  ASSERT_THAT(memory.write(at(first + 1), odd), IsOk());
  EXPECT_THAT(memory.read<Odd>(at(first + 1)), IsOkAndHolds(odd));
  VMSPACE_EXPECT_OK(memory.check_invariants());
}

TEST_F(Guest, ObjectsCrossIntoTheAdjacentRegionAndNotIntoAGap) {
  const std::uint64_t value = 0x0102'0304'0506'0708;
  ASSERT_THAT(memory.write(at(second - 3), value), IsOk());
  EXPECT_THAT(memory.read<std::uint64_t>(at(second - 3)), IsOkAndHolds(value));
  EXPECT_THAT(memory.read<std::uint8_t>(at(second)), IsOkAndHolds(0x05));

  const auto before = contents(memory, gap - 8, 8);
  const auto ok = memory.write(at(gap - 7), value);
  ASSERT_THAT(ok, HasError(Errc::out_of_bounds));
  EXPECT_EQ(ok.error().message(),
            "GuestMemory::write: out of bounds: [0x13ff9, 0x14000] is not within [0x12000, "
            "0x13fff] (the range runs past the end of the region into a gap)");
  EXPECT_EQ(contents(memory, gap - 8, 8), before);
  EXPECT_THAT(memory.read<std::uint64_t>(at(gap - 7)), HasError(Errc::out_of_bounds));
}

TEST_F(Guest, AddressesInHolesAreNotFound) {
  for (const std::uint64_t hole : {std::uint64_t{0}, first - 1, gap, rom - 1, closed + page,
                                   std::uint64_t{1} << 63, last - 1}) {
    const auto value = memory.read<std::uint8_t>(at(hole));
    ASSERT_THAT(value, HasError(Errc::not_found)) << std::hex << hole;
    EXPECT_EQ(value.error().first, Operand::address(hole));
    EXPECT_THAT(memory.write(at(hole), std::uint8_t{1}), HasError(Errc::not_found));
    EXPECT_EQ(memory.find_region(at(hole)), nullptr);
  }
  // The first byte decides: what begins in a hole is not found, wherever it ends.
  EXPECT_THAT(memory.read<std::uint64_t>(at(first - 4)), HasError(Errc::not_found));
}

TEST_F(Guest, TheLastByteOfTheAddressSpaceIsReachedAndNothingWraps) {
  ASSERT_THAT(memory.write(at(top - 7), std::uint64_t{42}), IsOk());
  EXPECT_THAT(memory.read<std::uint64_t>(at(top - 7)), IsOkAndHolds(42U));
  ASSERT_THAT(memory.write(at(top), std::uint8_t{7}), IsOk());
  EXPECT_THAT(memory.read<std::uint8_t>(at(top)), IsOkAndHolds(7));
  EXPECT_THAT(memory.load<std::uint8_t>(at(top), std::memory_order_acquire), IsOkAndHolds(7));
  for (std::uint64_t below = 0; below < 7; ++below) {
    const auto value = memory.read<std::uint64_t>(at(top - below));
    ASSERT_THAT(value, HasError(Errc::overflow));
  }
  std::vector<std::byte> bytes(page);
  VMSPACE_EXPECT_OK(memory.read_slice(at(last), bytes));
  bytes.resize(page + 1);
  EXPECT_THAT(memory.read_slice(at(last), bytes), HasError(Errc::overflow));
  EXPECT_THAT(memory.read_some(at(last), bytes), IsOkAndHolds(page));
  EXPECT_TRUE(memory.contains({at(last), page}));
  EXPECT_FALSE(memory.contains({at(last), page + 1}));
  EXPECT_EQ(memory.last_addr(), at(top));
}

TEST_F(Guest, LengthsFromTheGuestOfAllOnesAreErrors) {
  for (const std::uint64_t base : {std::uint64_t{0}, std::uint64_t{1}, first, second, last, top}) {
    const std::uint64_t one_too_long = base < 2 ? top : top - base + 2;
    for (const std::uint64_t size : {top, top - 1, one_too_long}) {
      SCOPED_TRACE(std::to_string(base) + " " + std::to_string(size));
      const GuestRange range{at(base), size};
      EXPECT_FALSE(memory.contains(range));
      EXPECT_THAT(memory.host_address(range), Not(IsOk()));
      EXPECT_THAT(memory.view(range), Not(IsOk()));
      EXPECT_THAT(memory.iovecs(range, Access::read), Not(IsOk()));
      EXPECT_THAT(memory.fill(range, std::byte{1}), Not(IsOk()));
      EXPECT_THAT(memory.copy(at(first), range), Not(IsOk()));
      EXPECT_THAT(memory.copy(range.base, {at(first), range.size}), Not(IsOk()));
      EXPECT_THAT(write_from_guest(-1, memory, range), Not(IsOk()));
      EXPECT_THAT(read_into_guest(-1, memory, range), Not(IsOk()));
      EXPECT_THAT(memory.mark_dirty(range), Not(IsOk()));
    }
  }
}

TEST_F(Guest, EmptyRangesTouchNothingAndAreGoodAnywhere) {
  for (const std::uint64_t base : {std::uint64_t{0}, first, gap, rom, closed, top}) {
    const GuestRange empty{at(base), 0};
    VMSPACE_EXPECT_OK(memory.read_slice(empty.base, {}));
    VMSPACE_EXPECT_OK(memory.write_slice(empty.base, {}));
    EXPECT_THAT(memory.read_some(empty.base, {}), IsOkAndHolds(0U));
    EXPECT_THAT(memory.write_some(empty.base, {}), IsOkAndHolds(0U));
    EXPECT_TRUE(memory.contains(empty));
    VMSPACE_EXPECT_OK(memory.fill(empty, std::byte{1}));
    VMSPACE_EXPECT_OK(memory.copy(empty.base, {at(first), 0}));
    EXPECT_EQ(memory.iovecs(empty, Access::write)->count(), 0);
    EXPECT_EQ(memory.view(empty)->size(), 0U);
    EXPECT_EQ(memory.mutable_view(empty)->size(), 0U);
    EXPECT_THAT(write_from_guest(-1, memory, empty), IsOkAndHolds(0U));
    // There is no pointer to nothing.
    EXPECT_THAT(memory.host_address(empty), HasError(Errc::zero_size));
  }
}

TEST_F(Guest, ReadOnlyRegionsAreReadAndNeverWritten) {
  EXPECT_THAT(memory.read<std::uint32_t>(at(rom)), IsOkAndHolds(0U));
  const auto denied = memory.write(at(rom), std::uint32_t{1});
  ASSERT_THAT(denied, HasError(Errc::access_denied));
  EXPECT_EQ(denied.error().second, Operand::range(rom, rom + page - 1));
  EXPECT_THAT(memory.store(at(rom), std::uint32_t{1}, std::memory_order_release),
              HasError(Errc::access_denied));
  EXPECT_THAT(memory.fetch_or(at(rom), std::uint32_t{1}), HasError(Errc::access_denied));
  EXPECT_THAT(memory.compare_exchange(at(rom), 0U, 1U), HasError(Errc::access_denied));
  const std::array<std::byte, 4> bytes{};
  EXPECT_THAT(memory.write_slice(at(rom), bytes), HasError(Errc::access_denied));
  EXPECT_THAT(memory.write_some(at(rom), bytes), HasError(Errc::access_denied));
  EXPECT_THAT(memory.host_address({at(rom), 4}), HasError(Errc::access_denied));
  EXPECT_THAT(memory.mutable_view({at(rom), 4}), HasError(Errc::access_denied));
  EXPECT_THAT(memory.iovecs({at(rom), 4}, Access::write), HasError(Errc::access_denied));
  VMSPACE_EXPECT_OK(memory.iovecs({at(rom), 4}, Access::read));
  VMSPACE_EXPECT_OK(memory.const_host_address({at(rom), 4}));
  VMSPACE_EXPECT_OK(memory.view({at(rom), 4}));
  EXPECT_THAT(memory.read<std::uint32_t>(at(rom)), IsOkAndHolds(0U));
}

TEST_F(Guest, ACheckSaysWhyARangeCantBeAccessed) {
  VMSPACE_EXPECT_OK(memory.check({at(first), 4 * page}, Access::write));
  VMSPACE_EXPECT_OK(memory.check({at(gap), 0}, Access::write));
  VMSPACE_EXPECT_OK(memory.check({at(rom), page}, Access::read));
  EXPECT_THAT(memory.check({at(rom), page}, Access::write), HasError(Errc::access_denied));
  EXPECT_THAT(memory.check({at(gap), 1}, Access::read), HasError(Errc::not_found));
  EXPECT_THAT(memory.check({at(last), page + 1}, Access::read), HasError(Errc::overflow));
  const auto into_gap = memory.check({at(first), 4 * page + 1}, Access::read);
  ASSERT_THAT(into_gap, HasError(Errc::out_of_bounds));
  EXPECT_EQ(into_gap.error().operation, std::string("GuestMemory::check"));
}

TEST_F(Guest, RegionsWithoutAccessAreDeniedAndNotHoles) {
  EXPECT_THAT(memory.read<std::uint8_t>(at(closed)), HasError(Errc::access_denied));
  EXPECT_THAT(memory.write(at(closed + 1), std::uint8_t{1}), HasError(Errc::access_denied));
  // From the readable region before it into it.
  const auto into = memory.read<std::uint64_t>(at(closed - 4));
  ASSERT_THAT(into, HasError(Errc::access_denied));
  EXPECT_EQ(into.error().second, Operand::range(closed, closed + page - 1));
  EXPECT_NE(memory.find_region(at(closed)), nullptr);
}

TEST_F(Guest, IntegersAreAtomicAtTheirAlignmentOnly) {
  using Order = std::memory_order;
  for (const auto order : {Order::relaxed, Order::acquire, Order::seq_cst}) {
    VMSPACE_EXPECT_OK(memory.load<std::uint32_t>(at(first), order));
  }
  for (const auto order : {Order::relaxed, Order::release, Order::seq_cst}) {
    ASSERT_THAT(memory.store(at(first), std::uint16_t{0x1234}, order), IsOk());
    EXPECT_THAT(memory.load<std::uint16_t>(at(first), Order::acquire), IsOkAndHolds(0x1234));
  }
  for (std::uint64_t offset = 1; offset < 8; ++offset) {
    const auto value = memory.load<std::uint64_t>(at(first + offset), Order::acquire);
    ASSERT_THAT(value, HasError(Errc::misaligned));
    EXPECT_EQ(value.error().first, Operand::address(first + offset));
    EXPECT_THAT(memory.store(at(first + offset), std::uint64_t{1}, Order::release),
                HasError(Errc::misaligned));
    EXPECT_THAT(memory.fetch_or(at(first + offset), std::uint64_t{1}), HasError(Errc::misaligned));
    EXPECT_EQ(memory.compare_exchange(at(first + offset), std::uint64_t{0}, std::uint64_t{1})
                  .error()
                  .code,
              Errc::misaligned);
  }
  ASSERT_THAT(memory.store(at(first), std::uint32_t{5}, Order::seq_cst), IsOk());
  EXPECT_THAT(memory.compare_exchange(at(first), 4U, 9U), IsOkAndHolds(5U));
  EXPECT_THAT(memory.read<std::uint32_t>(at(first)), IsOkAndHolds(5U));
  EXPECT_THAT(memory.compare_exchange(at(first), 5U, 9U), IsOkAndHolds(5U));
  EXPECT_THAT(memory.fetch_or(at(first), 6U), IsOkAndHolds(9U));
  EXPECT_THAT(memory.read<std::uint32_t>(at(first)), IsOkAndHolds(15U));
  // A memory order that makes no sense is the strongest.
  EXPECT_THAT(memory.load<std::uint32_t>(at(first), Order::release), IsOkAndHolds(15U));
  VMSPACE_EXPECT_OK(memory.store(at(first), 1U, Order::acquire));
}

TEST_F(Guest, OverlappingGivesTheRegionsThatHaveAByteOfTheRange) {
  const auto within = [&](std::uint64_t base, std::uint64_t size) {
    std::vector<std::uint64_t> found;
    for (const MemoryRegionPtr& one : memory.overlapping({at(base), size}))
      found.push_back(one->base().value());
    return found;
  };
  EXPECT_THAT(within(first, 2 * page), ElementsAre(first));
  EXPECT_THAT(within(second - 1, 2), ElementsAre(first, second));
  EXPECT_THAT(within(gap - 1, 2 * page + 1), ElementsAre(second)) << "adjacent";
  EXPECT_THAT(within(gap - 1, 2 * page + 2), ElementsAre(second, rom));
  EXPECT_THAT(within(gap, 2 * page), IsEmpty());
  EXPECT_THAT(within(closed, 1), ElementsAre(closed)) << "also where nothing may be accessed";
  EXPECT_THAT(within(first + 8, 0), IsEmpty()) << "an empty range has no byte";
  EXPECT_THAT(within(0, first), IsEmpty());
  EXPECT_THAT(within(top, 1), ElementsAre(last));
  EXPECT_THAT(within(top, top), ElementsAre(last)) << "it must not wrap";
  EXPECT_THAT(within(0, top), ElementsAre(first, second, rom, closed, last));
  EXPECT_TRUE(GuestMemory().overlapping({at(0), top}).empty());
}

TEST_F(Guest, HostAddressesAreContiguousAndTranslateBack) {
  const auto host = memory.host_address({at(first + 8), 16});
  ASSERT_THAT(host, IsOk());
  **host = std::byte{77};
  EXPECT_THAT(memory.read<std::uint8_t>(at(first + 8)), IsOkAndHolds(77));
  EXPECT_EQ(memory.guest_address(*host), at(first + 8));
  EXPECT_EQ(memory.guest_address(*memory.const_host_address({at(top), 1})), at(top));
  int elsewhere = 0;
  EXPECT_EQ(memory.guest_address(&elsewhere), std::nullopt);
  EXPECT_EQ(memory.guest_address(nullptr), std::nullopt);
  const auto across = memory.host_address({at(second - 1), 2});
  ASSERT_THAT(across, HasError(Errc::out_of_bounds));
  EXPECT_EQ(across.error().reason,
            std::string("the range must be contiguous on the host: in one region, or one arena"));
}

TEST(GuestMemory, WithoutRegionsEveryAddressIsNotFound) {
  const GuestMemory none;
  for (const std::uint64_t address : {std::uint64_t{0}, std::uint64_t{1}, page, top}) {
    EXPECT_THAT(none.read<std::uint8_t>(at(address)), HasError(Errc::not_found));
    EXPECT_THAT(none.write(at(address), std::uint8_t{1}), HasError(Errc::not_found));
  }
  EXPECT_TRUE(none.regions().empty());
  EXPECT_EQ(none.total_size(), 0U);
  EXPECT_EQ(none.last_addr(), std::nullopt);
  EXPECT_EQ(none.guest_address(&none), std::nullopt);
  EXPECT_EQ(harvest_dirty(none)->size(), 0U);
  VMSPACE_EXPECT_OK(none.check_invariants());
  EXPECT_EQ(GuestMemory::from_regions({})->regions().size(), 0U);
  EXPECT_THAT(none.without_region(at(0)), HasError(Errc::not_found));
}

TEST(GuestMemory, OverlappingRegionsAreAnErrorThatNamesBoth) {
  const auto a = region({0x1000, 2 * page});
  const auto b = region({0x2000, page});
  const auto made = GuestMemory::from_regions({b, a});
  ASSERT_THAT(made, Not(IsOk()));
  EXPECT_EQ(made.error().message(),
            "GuestMemory::from_regions: [0x2000, 0x2fff] overlaps [0x1000, 0x2fff]");
  EXPECT_THAT(GuestMemory::from_regions({a, a}), HasError(Errc::overlap));
  EXPECT_THAT(GuestMemory::from_regions({a, nullptr}), HasError(Errc::invalid_argument));
}

TEST(GuestMemory, OneMemoryHasOneGuestAddress) {
  const auto original = region({0x1000, page});
  const auto moved = original->at(GuestAddress(0x8000));
  ASSERT_THAT(moved, IsOk());
  const auto both = GuestMemory::from_regions({original, *moved});
  ASSERT_THAT(both, HasError(Errc::overlap));
  EXPECT_THAT(GuestMemory::from_regions({*moved}), IsOk());
}

TEST(GuestMemory, RegionsComeAndGoWhileOldMapsKeepTheirs) {
  const GuestMemory before = guest({{0x1000, page}});
  ASSERT_THAT(before.write(at(0x1000), std::uint32_t{1}), IsOk());
  const auto after = before.with_region(region({0x8000, page}));
  ASSERT_THAT(after, IsOk());
  EXPECT_EQ(after->regions().size(), 2U);
  EXPECT_THAT(after->read<std::uint32_t>(at(0x1000)), IsOkAndHolds(1U));  // the same memory
  EXPECT_THAT(before.read<std::uint32_t>(at(0x8000)), HasError(Errc::not_found));
  EXPECT_THAT(after->with_region(region({0x8000, page})), HasError(Errc::overlap));
  EXPECT_THAT(after->without_region(at(0x8004)), HasError(Errc::not_found));

  const auto without = after->without_region(at(0x8000));
  ASSERT_THAT(without, IsOk());
  EXPECT_THAT(without->read<std::uint32_t>(at(0x8000)), HasError(Errc::not_found));
  VMSPACE_EXPECT_OK(after->read<std::uint32_t>(at(0x8000)));
}

TEST(GuestMemory, OnlyRegionsOfTheMapAreTakenOut) {
  const auto first = region({0x1000, page});
  const auto second = region({0x8000, page});
  const auto memory = GuestMemory::from_regions({first, second});
  ASSERT_THAT(memory, IsOk());
  const auto stranger = region({0x1000, page});
  EXPECT_THAT(memory->with_changes(std::vector{stranger}, {}), HasError(Errc::not_found));
  EXPECT_THAT(memory->with_changes(std::vector{first, first}, {}), HasError(Errc::not_found))
      << "named twice";
  const auto swapped = memory->with_changes(std::vector{first, second}, {stranger});
  ASSERT_THAT(swapped, IsOk());
  EXPECT_EQ(swapped->regions().size(), 1U);
}

TEST(GuestMemory, HoldsUpTo512RegionsInIrregularLayouts) {
  std::vector<MemoryRegionPtr> regions;
  std::uint64_t base = 0;
  for (int i = 0; i < 512; ++i) {
    const std::uint64_t size = i % 7 == 0 ? 16 * page : page;
    regions.push_back(region({base, size}));
    base += size;
    if (i % 3 == 0) base += page;                          // a small gap
    if (i % 64 == 0) base = (base | 0xfff'ffff'ffff) + 1;  // the next cluster, 16 TiB further
  }
  const auto memory = GuestMemory::from_regions(regions);
  ASSERT_THAT(memory, IsOk());
  VMSPACE_EXPECT_OK(memory->check_invariants());
  for (const auto& one : regions) {
    ASSERT_THAT(memory->write(one->base(), one->base().value()), IsOk());
    ASSERT_THAT(memory->write(at(one->last_addr().value() - 7), one->base().value()), IsOk());
  }
  for (const auto& one : regions) {
    EXPECT_THAT(memory->read<std::uint64_t>(one->base()), IsOkAndHolds(one->base().value()));
    EXPECT_EQ(memory->find_region(one->last_addr()), one);
    EXPECT_EQ(memory->guest_address(one->host_base() + 5), one->base().checked_add(5));
  }
  const auto one_more = memory->with_region(region({base + (std::uint64_t{1} << 50), page}));
  ASSERT_THAT(one_more, HasError(Errc::limit_exceeded));
}

TEST(GuestMemory, PlainRamIsMappedAsShared) {
  const std::array<GuestRange, 2> ram{GuestRange{at(0), 16 * page},
                                      GuestRange{at(std::uint64_t{1} << 32), 4 * page}};
  const auto memory = GuestMemory::create(ram);
  ASSERT_THAT(memory, IsOk());
  EXPECT_EQ(memory->total_size(), 20 * page);
  EXPECT_GE(memory->regions()[0]->backing().fd(), 0);
  const std::array<GuestRange, 1> wraps{GuestRange{at(top - page + 1), 2 * page}};
  EXPECT_THAT(GuestMemory::create(wraps), HasError(Errc::overflow));
  const std::array<GuestRange, 1> odd{GuestRange{at(0), page + 1}};
  EXPECT_THAT(GuestMemory::create(odd), HasError(Errc::misaligned));
  const std::array<GuestRange, 1> empty{GuestRange{at(0), 0}};
  EXPECT_THAT(GuestMemory::create(empty), HasError(Errc::zero_size));
}

}  // namespace
}  // namespace vmspace::guest_memory_test
