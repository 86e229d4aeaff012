// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/guest_memory.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/guest_io.hpp"

#include "host/host_support.hpp"
#include "memory/guest_support.hpp"

namespace vmspace {
namespace {

using testing::contents;
using testing::guest;
using testing::page;
using testing::pattern;
using testing::region;

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

GuestAddress at(std::uint64_t address) {
  return GuestAddress(address);
}

__extension__ using Int128 = __int128;  // integral in GNU dialects only
static_assert(GuestInteger<std::uint64_t> && GuestInteger<char>);
static_assert(!GuestInteger<Int128> && !GuestInteger<bool> && !GuestInteger<void*>);

// Two adjacent regions, a gap of two pages, a read-only one, one that may not be accessed, and the
// last page of the address space:
//
//   0x10000 ....rr ....rr|....  gap  ....oo ....xx     ...  last page
//           first  second            rom    none
class Guest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t first = 0x10000;
  static constexpr std::uint64_t second = first + 2 * page;
  static constexpr std::uint64_t gap = second + 2 * page;
  static constexpr std::uint64_t rom = gap + 2 * page;
  static constexpr std::uint64_t closed = rom + page;
  static constexpr std::uint64_t last = top - page + 1;

  GuestMemory memory = guest({{first, 2 * page},
                              {second, 2 * page},
                              {rom, page, Protection::read},
                              {closed, page, Protection::none},
                              {last, page}});
};

TEST_F(Guest, ReadsWhatWasWrittenAtAnyAlignment) {
  for (std::uint64_t offset = 0; offset < 9; ++offset) {
    ASSERT_TRUE(memory.write(at(first + offset), std::uint64_t{0x1122'3344'5566'7788} + offset));
    EXPECT_EQ(memory.read<std::uint64_t>(at(first + offset)), 0x1122'3344'5566'7788 + offset);
  }
  using Odd = std::array<std::uint8_t, 15>;  // words of 8, 4, 2 and 1 bytes
  Odd odd{};
  for (std::uint8_t i = 0; i < 15; ++i)
    odd[i] = static_cast<std::uint8_t>(i + 1);
  ASSERT_TRUE(memory.write(at(first + 1), odd));
  EXPECT_EQ(memory.read<Odd>(at(first + 1)), odd);
  EXPECT_TRUE(memory.check_invariants());
}

TEST_F(Guest, ObjectsCrossIntoTheAdjacentRegionAndNotIntoAGap) {
  const std::uint64_t value = 0x0102'0304'0506'0708;
  ASSERT_TRUE(memory.write(at(second - 3), value));
  EXPECT_EQ(memory.read<std::uint64_t>(at(second - 3)), value);
  EXPECT_EQ(memory.read<std::uint8_t>(at(second)), 0x05);

  const auto before = contents(memory, gap - 8, 8);
  const auto ok = memory.write(at(gap - 7), value);
  ASSERT_FALSE(ok);
  EXPECT_EQ(ok.error().code, Errc::out_of_bounds);
  EXPECT_EQ(ok.error().message(),
            "GuestMemory::write: out of bounds: [0x13ff9, 0x14000] is not within [0x12000, "
            "0x13fff] (runs into a gap)");
  EXPECT_EQ(contents(memory, gap - 8, 8), before);
  EXPECT_EQ(memory.read<std::uint64_t>(at(gap - 7)).error().code, Errc::out_of_bounds);
}

TEST_F(Guest, AddressesInHolesAreNotFound) {
  for (const std::uint64_t hole : {std::uint64_t{0}, first - 1, gap, rom - 1, closed + page,
                                   std::uint64_t{1} << 63, last - 1}) {
    const auto value = memory.read<std::uint8_t>(at(hole));
    ASSERT_FALSE(value) << std::hex << hole;
    EXPECT_EQ(value.error().code, Errc::not_found);
    EXPECT_EQ(value.error().first, Operand::address(hole));
    EXPECT_EQ(memory.write(at(hole), std::uint8_t{1}).error().code, Errc::not_found);
    EXPECT_EQ(memory.find_region(at(hole)), nullptr);
  }
  // The first byte decides: what begins in a hole is not found, wherever it ends.
  EXPECT_EQ(memory.read<std::uint64_t>(at(first - 4)).error().code, Errc::not_found);
}

TEST_F(Guest, TheLastByteOfTheAddressSpaceIsReachedAndNothingWraps) {
  ASSERT_TRUE(memory.write(at(top - 7), std::uint64_t{42}));
  EXPECT_EQ(memory.read<std::uint64_t>(at(top - 7)), 42U);
  ASSERT_TRUE(memory.write(at(top), std::uint8_t{7}));
  EXPECT_EQ(memory.read<std::uint8_t>(at(top)), 7);
  EXPECT_EQ(memory.load<std::uint8_t>(at(top), std::memory_order_acquire), 7);
  for (std::uint64_t below = 0; below < 7; ++below) {
    const auto value = memory.read<std::uint64_t>(at(top - below));
    ASSERT_FALSE(value);
    EXPECT_EQ(value.error().code, Errc::overflow);
  }
  std::vector<std::byte> bytes(page);
  EXPECT_TRUE(memory.read_slice(at(last), bytes));
  bytes.resize(page + 1);
  EXPECT_EQ(memory.read_slice(at(last), bytes).error().code, Errc::overflow);
  EXPECT_EQ(memory.read_some(at(last), bytes), page);
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
      EXPECT_FALSE(memory.host_address(range));
      EXPECT_FALSE(memory.view(range));
      EXPECT_FALSE(memory.iovecs(range, Access::read));
      EXPECT_FALSE(memory.fill(range, std::byte{1}));
      EXPECT_FALSE(memory.copy(at(first), range));
      EXPECT_FALSE(memory.copy(range.base, {at(first), range.size}));
      EXPECT_FALSE(write_from_guest(-1, memory, range));
      EXPECT_FALSE(read_into_guest(-1, memory, range));
      EXPECT_FALSE(memory.mark_dirty(range));
    }
  }
}

TEST_F(Guest, EmptyRangesTouchNothingAndAreGoodAnywhere) {
  for (const std::uint64_t base : {std::uint64_t{0}, first, gap, rom, closed, top}) {
    const GuestRange empty{at(base), 0};
    EXPECT_TRUE(memory.read_slice(empty.base, {}));
    EXPECT_TRUE(memory.write_slice(empty.base, {}));
    EXPECT_EQ(memory.read_some(empty.base, {}), 0U);
    EXPECT_EQ(memory.write_some(empty.base, {}), 0U);
    EXPECT_TRUE(memory.contains(empty));
    EXPECT_TRUE(memory.fill(empty, std::byte{1}));
    EXPECT_TRUE(memory.copy(empty.base, {at(first), 0}));
    EXPECT_EQ(memory.iovecs(empty, Access::write)->count(), 0);
    EXPECT_EQ(memory.view(empty)->size(), 0U);
    EXPECT_EQ(memory.mutable_view(empty)->size(), 0U);
    EXPECT_EQ(write_from_guest(-1, memory, empty), 0U);
    // There is no pointer to nothing.
    EXPECT_EQ(memory.host_address(empty).error().code, Errc::zero_size);
  }
}

TEST_F(Guest, ReadOnlyRegionsAreReadAndNeverWritten) {
  EXPECT_EQ(memory.read<std::uint32_t>(at(rom)), 0U);
  const auto denied = memory.write(at(rom), std::uint32_t{1});
  ASSERT_FALSE(denied);
  EXPECT_EQ(denied.error().code, Errc::access_denied);
  EXPECT_EQ(denied.error().second, Operand::range(rom, rom + page - 1));
  EXPECT_EQ(memory.store(at(rom), std::uint32_t{1}, std::memory_order_release).error().code,
            Errc::access_denied);
  EXPECT_EQ(memory.fetch_or(at(rom), std::uint32_t{1}).error().code, Errc::access_denied);
  EXPECT_EQ(memory.compare_exchange(at(rom), 0U, 1U).error().code, Errc::access_denied);
  const std::array<std::byte, 4> bytes{};
  EXPECT_EQ(memory.write_slice(at(rom), bytes).error().code, Errc::access_denied);
  EXPECT_EQ(memory.write_some(at(rom), bytes).error().code, Errc::access_denied);
  EXPECT_EQ(memory.host_address({at(rom), 4}).error().code, Errc::access_denied);
  EXPECT_EQ(memory.mutable_view({at(rom), 4}).error().code, Errc::access_denied);
  EXPECT_EQ(memory.iovecs({at(rom), 4}, Access::write).error().code, Errc::access_denied);
  EXPECT_TRUE(memory.iovecs({at(rom), 4}, Access::read));
  EXPECT_TRUE(memory.const_host_address({at(rom), 4}));
  EXPECT_TRUE(memory.view({at(rom), 4}));
  EXPECT_EQ(memory.read<std::uint32_t>(at(rom)), 0U);
}

TEST_F(Guest, RegionsWithoutAccessAreDeniedAndNotHoles) {
  EXPECT_EQ(memory.read<std::uint8_t>(at(closed)).error().code, Errc::access_denied);
  EXPECT_EQ(memory.write(at(closed + 1), std::uint8_t{1}).error().code, Errc::access_denied);
  // From the readable region before it into it.
  const auto into = memory.read<std::uint64_t>(at(closed - 4));
  ASSERT_FALSE(into);
  EXPECT_EQ(into.error().code, Errc::access_denied);
  EXPECT_EQ(into.error().second, Operand::range(closed, closed + page - 1));
  EXPECT_NE(memory.find_region(at(closed)), nullptr);
}

TEST_F(Guest, IntegersAreAtomicAtTheirAlignmentOnly) {
  using Order = std::memory_order;
  for (const auto order : {Order::relaxed, Order::acquire, Order::seq_cst}) {
    EXPECT_TRUE(memory.load<std::uint32_t>(at(first), order));
  }
  for (const auto order : {Order::relaxed, Order::release, Order::seq_cst}) {
    ASSERT_TRUE(memory.store(at(first), std::uint16_t{0x1234}, order));
    EXPECT_EQ(memory.load<std::uint16_t>(at(first), Order::acquire), 0x1234);
  }
  for (std::uint64_t offset = 1; offset < 8; ++offset) {
    const auto value = memory.load<std::uint64_t>(at(first + offset), Order::acquire);
    ASSERT_FALSE(value);
    EXPECT_EQ(value.error().code, Errc::misaligned);
    EXPECT_EQ(value.error().first, Operand::address(first + offset));
    EXPECT_EQ(memory.store(at(first + offset), std::uint64_t{1}, Order::release).error().code,
              Errc::misaligned);
    EXPECT_EQ(memory.fetch_or(at(first + offset), std::uint64_t{1}).error().code, Errc::misaligned);
    EXPECT_EQ(memory.compare_exchange(at(first + offset), std::uint64_t{0}, std::uint64_t{1})
                  .error()
                  .code,
              Errc::misaligned);
  }
  ASSERT_TRUE(memory.store(at(first), std::uint32_t{5}, Order::seq_cst));
  EXPECT_EQ(memory.compare_exchange(at(first), 4U, 9U), 5U);
  EXPECT_EQ(memory.read<std::uint32_t>(at(first)), 5U);
  EXPECT_EQ(memory.compare_exchange(at(first), 5U, 9U), 5U);
  EXPECT_EQ(memory.fetch_or(at(first), 6U), 9U);
  EXPECT_EQ(memory.read<std::uint32_t>(at(first)), 15U);
  // A memory order that makes no sense is the strongest.
  EXPECT_EQ(memory.load<std::uint32_t>(at(first), Order::release), 15U);
  EXPECT_TRUE(memory.store(at(first), 1U, Order::acquire));
}

TEST_F(Guest, SlicesCrossRegionsWholeOrNotAtAll) {
  const auto bytes = pattern(3 * page);
  ASSERT_TRUE(memory.write_slice(at(first + 100), bytes));
  EXPECT_EQ(contents(memory, first + 100, 3 * page), bytes);
  const auto before = contents(memory, first, 4 * page);
  const auto more = pattern(page, 9);
  EXPECT_EQ(memory.write_slice(at(gap - page + 1), more).error().code, Errc::out_of_bounds);
  EXPECT_EQ(contents(memory, first, 4 * page), before);
  std::vector<std::byte> out(page, std::byte{0x5a});
  EXPECT_EQ(memory.read_slice(at(gap - page + 1), out).error().code, Errc::out_of_bounds);
  EXPECT_EQ(out, std::vector<std::byte>(page, std::byte{0x5a}));
}

TEST_F(Guest, SlicesOfEveryLengthEndWhereTheyEnd) {
  // Short, long and in between, inside of a region, up to its end, and across it; the bytes on both
  // sides stay.
  for (std::size_t size = 0; size <= 140; ++size) {
    const auto bytes = pattern(size, static_cast<unsigned>(size));
    for (const std::uint64_t start : {first + 70, second - size, second - size / 2, gap - size}) {
      SCOPED_TRACE(std::to_string(size) + " bytes at " + std::to_string(start));
      ASSERT_TRUE(memory.fill({at(first), 4 * page}, std::byte{0xee}));
      ASSERT_TRUE(memory.write_slice(at(start), bytes));
      std::vector<std::byte> all(4 * page, std::byte{0xee});
      std::ranges::copy(bytes, all.begin() + static_cast<std::ptrdiff_t>(start - first));
      ASSERT_EQ(contents(memory, first, 4 * page), all);
      std::vector<std::byte> out(size + 2, std::byte{0xee});
      ASSERT_TRUE(memory.read_slice(at(start), std::span(out).subspan(1, size)));
      ASSERT_TRUE(std::ranges::equal(std::span(out).subspan(1, size), bytes));
      ASSERT_EQ(out.front(), std::byte{0xee});
      ASSERT_EQ(out.back(), std::byte{0xee});
    }
    EXPECT_EQ(memory.write_slice(at(gap - size), pattern(size + 1)).error().code,
              size == 0 ? Errc::not_found : Errc::out_of_bounds);
    EXPECT_EQ(memory.write_slice(at(rom), bytes).has_value(), size == 0);
  }
}

TEST_F(Guest, LargeObjectsAreReadAndWrittenAsSmallOnesAre) {
  struct Large {
    std::array<std::uint8_t, 3000> bytes;
  };
  Large large{};
  for (std::size_t i = 0; i < large.bytes.size(); ++i)
    large.bytes[i] = static_cast<std::uint8_t>(i * 7);
  for (const std::uint64_t start : {first + 1, second - 1500, gap - sizeof(Large)}) {
    ASSERT_TRUE(memory.fill({at(first), 4 * page}, std::byte{0}));
    ASSERT_TRUE(memory.write(at(start), large));
    const auto read = memory.read<Large>(at(start));
    ASSERT_TRUE(read);
    EXPECT_EQ(read->bytes, large.bytes);
  }
  const auto before = contents(memory, first, 4 * page);
  EXPECT_EQ(memory.write(at(gap - sizeof(Large) + 1), large).error().code, Errc::out_of_bounds);
  EXPECT_EQ(memory.read<Large>(at(gap - sizeof(Large) + 1)).error().code, Errc::out_of_bounds);
  EXPECT_EQ(memory.write(at(rom), large).error().code, Errc::access_denied);
  EXPECT_EQ(contents(memory, first, 4 * page), before);
}

TEST_F(Guest, PartialSlicesStopAtTheGap) {
  const auto bytes = pattern(3 * page);
  EXPECT_EQ(memory.write_some(at(second + 10), bytes), 2 * page - 10);
  EXPECT_TRUE(std::ranges::equal(contents(memory, second + 10, 2 * page - 10),
                                 std::span(bytes).first(2 * page - 10)));
  std::vector<std::byte> out(3 * page);
  EXPECT_EQ(memory.read_some(at(second + 10), out), 2 * page - 10);
  EXPECT_EQ(memory.read_some(at(gap), out).error().code, Errc::not_found);
  EXPECT_EQ(memory.write_some(at(gap), bytes).error().code, Errc::not_found);
}

TEST_F(Guest, HostAddressesAreContiguousAndTranslateBack) {
  const auto host = memory.host_address({at(first + 8), 16});
  ASSERT_TRUE(host);
  **host = std::byte{77};
  EXPECT_EQ(memory.read<std::uint8_t>(at(first + 8)), 77);
  EXPECT_EQ(memory.guest_address(*host), at(first + 8));
  EXPECT_EQ(memory.guest_address(*memory.const_host_address({at(top), 1})), at(top));
  int elsewhere = 0;
  EXPECT_EQ(memory.guest_address(&elsewhere), std::nullopt);
  EXPECT_EQ(memory.guest_address(nullptr), std::nullopt);
  const auto across = memory.host_address({at(second - 1), 2});
  ASSERT_FALSE(across);
  EXPECT_EQ(across.error().code, Errc::out_of_bounds);
  EXPECT_EQ(across.error().reason, std::string("crosses into another region"));
}

TEST_F(Guest, FillsAndCopiesAcrossRegions) {
  ASSERT_TRUE(memory.fill({at(second - 10), 20}, std::byte{3}));
  EXPECT_EQ(contents(memory, second - 10, 20), std::vector<std::byte>(20, std::byte{3}));
  EXPECT_EQ(memory.read<std::uint8_t>(at(second + 10)), 0);
  EXPECT_EQ(memory.read<std::uint8_t>(at(second - 11)), 0);

  // As memmove, both ways and across the border between the regions.
  for (const auto& [to, from] : {std::pair{first + 5000, first + 3000},
                                 {first + 3000, first + 5000},
                                 {first + 100, first + 100},
                                 {first + 1, first},
                                 {first, first + 1}}) {
    const auto all = pattern(4 * page, 4);
    ASSERT_TRUE(memory.write_slice(at(first), all));
    auto expected = all;
    std::memmove(expected.data() + (to - first), expected.data() + (from - first), 7000);
    ASSERT_TRUE(memory.copy(at(to), {at(from), 7000}));
    EXPECT_EQ(contents(memory, first, 4 * page), expected);
  }
  EXPECT_EQ(memory.copy(at(rom), {at(first), 8}).error().code, Errc::access_denied);
  EXPECT_TRUE(memory.copy(at(first), {at(rom), 8}));
}

TEST_F(Guest, StringsEndAtTheirZeroOrAtTheLimit) {
  const std::string text = "console=ttyS0 root=/dev/vda";
  ASSERT_TRUE(memory.write_slice(at(second - 5), std::as_bytes(std::span(text))));
  EXPECT_EQ(memory.read_string(at(second - 5), 4096), text);
  EXPECT_EQ(memory.read_string(at(second - 5), text.size() + 1), text);
  EXPECT_EQ(memory.read_string(at(second - 5), text.size()).error().code, Errc::limit_exceeded);
  EXPECT_EQ(memory.read_string(at(first), 10), "");
  EXPECT_EQ(memory.read_string(at(first), 0).error().code, Errc::limit_exceeded);
  ASSERT_TRUE(memory.fill({at(second), 2 * page}, std::byte{'a'}));
  EXPECT_EQ(memory.read_string(at(second), 5 * page).error().code, Errc::out_of_bounds);
  ASSERT_TRUE(memory.fill({at(last), page}, std::byte{'b'}));
  EXPECT_EQ(memory.read_string(at(last), 5 * page).error().code, Errc::overflow);
  EXPECT_EQ(memory.read_string(at(gap), 5).error().code, Errc::not_found);
}

TEST_F(Guest, DescriptorsFillAndDrainRangesAcrossRegions) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  const auto bytes = pattern(3 * page, 5);
  ASSERT_TRUE(memory.write_slice(at(first), bytes));
  EXPECT_EQ(write_from_guest(ends[1], memory, {at(first), 3 * page}), 3 * page);
  ASSERT_TRUE(memory.fill({at(first), 4 * page}, std::byte{0}));
  EXPECT_EQ(read_into_guest(ends[0], memory, {at(first + 7), 3 * page}), 3 * page);
  EXPECT_EQ(contents(memory, first + 7, 3 * page), bytes);
  ASSERT_EQ(write(ends[1], "abc", 3), 3);
  close(ends[1]);
  EXPECT_EQ(read_into_guest(ends[0], memory, {at(first), page}), 3U);
  EXPECT_EQ(read_into_guest(ends[0], memory, {at(first), page}), 0U);
  close(ends[0]);
  const auto bad = read_into_guest(ends[0], memory, {at(first), page});
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().code, Errc::os);
  EXPECT_EQ(bad.error().os_errno, EBADF);
  EXPECT_EQ(write_from_guest(-1, memory, {at(first), page}).error().os_errno, EBADF);
}

TEST(GuestMemory, WithoutRegionsEveryAddressIsNotFound) {
  const GuestMemory none;
  for (const std::uint64_t address : {std::uint64_t{0}, std::uint64_t{1}, page, top}) {
    EXPECT_EQ(none.read<std::uint8_t>(at(address)).error().code, Errc::not_found);
    EXPECT_EQ(none.write(at(address), std::uint8_t{1}).error().code, Errc::not_found);
  }
  EXPECT_TRUE(none.regions().empty());
  EXPECT_EQ(none.total_size(), 0U);
  EXPECT_EQ(none.last_addr(), std::nullopt);
  EXPECT_EQ(none.guest_address(&none), std::nullopt);
  EXPECT_EQ(harvest_dirty(none)->size(), 0U);
  EXPECT_TRUE(none.check_invariants());
  EXPECT_EQ(GuestMemory::from_regions({})->regions().size(), 0U);
  EXPECT_EQ(none.without_region(at(0)).error().code, Errc::not_found);
}

TEST(GuestMemory, OverlappingRegionsAreAnErrorThatNamesBoth) {
  const auto a = region({0x1000, 2 * page});
  const auto b = region({0x2000, page});
  const auto made = GuestMemory::from_regions({b, a});
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().message(),
            "GuestMemory::from_regions: [0x2000, 0x2fff] overlaps [0x1000, 0x2fff]");
  EXPECT_EQ(GuestMemory::from_regions({a, a}).error().code, Errc::overlap);
  EXPECT_EQ(GuestMemory::from_regions({a, nullptr}).error().code, Errc::invalid_argument);
}

TEST(GuestMemory, RegionsComeAndGoWhileOldMapsKeepTheirs) {
  const GuestMemory before = guest({{0x1000, page}});
  ASSERT_TRUE(before.write(at(0x1000), std::uint32_t{1}));
  const auto after = before.with_region(region({0x8000, page}));
  ASSERT_TRUE(after);
  EXPECT_EQ(after->regions().size(), 2U);
  EXPECT_EQ(after->read<std::uint32_t>(at(0x1000)), 1U);  // the same memory
  EXPECT_EQ(before.read<std::uint32_t>(at(0x8000)).error().code, Errc::not_found);
  EXPECT_EQ(after->with_region(region({0x8000, page})).error().code, Errc::overlap);
  EXPECT_EQ(after->without_region(at(0x8004)).error().code, Errc::not_found);

  const auto without = after->without_region(at(0x8000));
  ASSERT_TRUE(without);
  EXPECT_EQ(without->read<std::uint32_t>(at(0x8000)).error().code, Errc::not_found);
  EXPECT_TRUE(after->read<std::uint32_t>(at(0x8000)));
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
  ASSERT_TRUE(memory);
  EXPECT_TRUE(memory->check_invariants());
  for (const auto& one : regions) {
    ASSERT_TRUE(memory->write(one->base(), one->base().value()));
    ASSERT_TRUE(memory->write(at(one->last_addr().value() - 7), one->base().value()));
  }
  for (const auto& one : regions) {
    EXPECT_EQ(memory->read<std::uint64_t>(one->base()), one->base().value());
    EXPECT_EQ(memory->find_region(one->last_addr()), one);
    EXPECT_EQ(memory->guest_address(one->host_base() + 5), one->base().checked_add(5));
  }
  const auto one_more = memory->with_region(region({base + (std::uint64_t{1} << 50), page}));
  ASSERT_FALSE(one_more);
  EXPECT_EQ(one_more.error().code, Errc::limit_exceeded);
}

TEST(GuestMemory, PlainRamIsMappedAsShared) {
  const std::array<GuestRange, 2> ram{GuestRange{at(0), 16 * page},
                                      GuestRange{at(std::uint64_t{1} << 32), 4 * page}};
  const auto memory = GuestMemory::create(ram);
  ASSERT_TRUE(memory);
  EXPECT_EQ(memory->total_size(), 20 * page);
  EXPECT_GE(memory->regions()[0]->backing().descriptor(), 0);
  const std::array<GuestRange, 1> wraps{GuestRange{at(top - page + 1), 2 * page}};
  EXPECT_EQ(GuestMemory::create(wraps).error().code, Errc::overflow);
  const std::array<GuestRange, 1> odd{GuestRange{at(0), page + 1}};
  EXPECT_EQ(GuestMemory::create(odd).error().code, Errc::misaligned);
  const std::array<GuestRange, 1> empty{GuestRange{at(0), 0}};
  EXPECT_EQ(GuestMemory::create(empty).error().code, Errc::zero_size);
}

class TrackedGuest : public Guest {
 protected:
  void SetUp() override { ASSERT_TRUE(enable_dirty_tracking(memory)); }

  std::vector<GuestRange> harvest() {
    auto ranges = harvest_dirty(memory);
    EXPECT_TRUE(ranges) << ranges.error().message();
    return *ranges;
  }

  static GuestRange pages(std::uint64_t base, std::uint64_t count) {
    return {at(base), count * page};
  }
};

TEST_F(TrackedGuest, EveryWayToWriteIsRecordedAndReadsAreNot) {
  const auto bytes = pattern(16);
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  ASSERT_EQ(write(ends[1], bytes.data(), 16), 16);
  const std::vector<std::pair<const char*, std::function<void()>>> writes{
      {"write", [&] { ASSERT_TRUE(memory.write(at(first + 8), 1U)); }},
      {"store", [&] { ASSERT_TRUE(memory.store(at(first + 8), 1U, std::memory_order_release)); }},
      {"fetch_or", [&] { ASSERT_TRUE(memory.fetch_or(at(first + 8), 1U)); }},
      {"compare_exchange", [&] { ASSERT_TRUE(memory.compare_exchange(at(first + 8), 1U, 2U)); }},
      {"write, large",
       [&] { ASSERT_TRUE(memory.write(at(first + 8), std::array<std::uint64_t, 100>{})); }},
      {"write_slice", [&] { ASSERT_TRUE(memory.write_slice(at(first + 8), bytes)); }},
      {"write_slice, long", [&] { ASSERT_TRUE(memory.write_slice(at(first + 8), pattern(200))); }},
      {"write_some", [&] { ASSERT_TRUE(memory.write_some(at(first + 8), bytes)); }},
      {"fill",
       [&] {
         ASSERT_TRUE(memory.fill({at(first + 8), 8}, std::byte{1}));
       }},
      {"copy",
       [&] {
         ASSERT_TRUE(memory.copy(at(first + 8), {at(second), 8}));
       }},
      {"read_from",
       [&] {
         ASSERT_TRUE(read_into_guest(ends[0], memory, {at(first + 8), 16}));
       }},
      {"mark_dirty",
       [&] {
         ASSERT_TRUE(memory.mark_dirty({at(first + 8), 1}));
       }},
      {"mutable_view",
       [&] {
         ASSERT_TRUE(memory.mutable_view({at(first + 8), 8}));
       }},
      {"iovecs",
       [&] {
         ASSERT_TRUE(memory.iovecs({at(first + 8), 8}, Access::write));
       }},
  };
  for (const auto& [name, write] : writes) {
    SCOPED_TRACE(name);
    ASSERT_TRUE(harvest().empty());
    write();
    EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(first, 1)});
  }
  close(ends[0]);
  close(ends[1]);

  std::array<std::byte, 16> out{};
  ASSERT_TRUE(memory.read<std::uint32_t>(at(first)));
  ASSERT_TRUE(memory.load<std::uint32_t>(at(first), std::memory_order_acquire));
  ASSERT_TRUE(memory.read_slice(at(first), out));
  ASSERT_TRUE(memory.view({at(first), 8}));
  ASSERT_TRUE(memory.iovecs({at(first), 8}, Access::read));
  ASSERT_TRUE(memory.compare_exchange(at(second), 4U, 5U));  // not equal, so not stored
  EXPECT_TRUE(harvest().empty());
}

TEST_F(TrackedGuest, RangesCoalesceAcrossPagesAndRegionsAndAreClearedByTheHarvest) {
  ASSERT_TRUE(memory.write(at(second - 4), std::uint64_t{1}));  // the last page and the first
  ASSERT_TRUE(memory.write(at(first + page - 1), std::uint16_t{1}));
  ASSERT_TRUE(memory.write(at(top), std::uint8_t{1}));
  EXPECT_EQ(harvest(), (std::vector<GuestRange>{pages(first, 3), pages(last, 1)}));
  EXPECT_TRUE(harvest().empty());
}

TEST_F(TrackedGuest, FailedWritesMarkNothing) {
  EXPECT_FALSE(memory.write(at(gap - 1), std::uint64_t{1}));
  EXPECT_FALSE(memory.write_slice(at(gap - 1), pattern(2)));
  EXPECT_FALSE(memory.fill({at(gap - 1), 2}, std::byte{1}));
  EXPECT_FALSE(memory.copy(at(gap - 1), {at(first), 2}));
  EXPECT_FALSE(memory.mark_dirty({at(gap - 1), 2}));
  EXPECT_FALSE(read_into_guest(-1, memory, {at(first), 3 * page}));
  EXPECT_TRUE(harvest().empty());
}

TEST_F(TrackedGuest, PollingADescriptorWithoutDataMarksNothing) {
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe2(ends.data(), O_NONBLOCK), 0);
  const GuestRange buffer{at(first), 3 * page};
  EXPECT_EQ(read_into_guest(ends[0], memory, buffer).error().os_errno, EAGAIN);
  EXPECT_TRUE(harvest().empty());
  // What came before the pipe was empty counts, and the read that found it empty does not.
  ASSERT_EQ(write(ends[1], "abc", 3), 3);
  EXPECT_EQ(read_into_guest(ends[0], memory, {at(first), 3}), 3U);
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(first, 1)});
  close(ends[1]);
  EXPECT_EQ(read_into_guest(ends[0], memory, buffer), 0U);  // the end of the file
  EXPECT_TRUE(harvest().empty());
  close(ends[0]);
}

/// A file that direct I/O is done on, with a block on the disk for each page.
class DirectFile {
 public:
  DirectFile() {
    ready_ = writer_.get() >= 0 && direct_.get() >= 0 &&
             posix_fallocate(writer_.get(), 0, 4 * page) == 0;
  }
  [[nodiscard]] bool is_ready() const { return ready_; }
  [[nodiscard]] int writer() const { return writer_.get(); }
  [[nodiscard]] int direct() const { return direct_.get(); }

 private:
  test::TemporaryDirectory directory_;
  std::string path_ = directory_.path() / "file";
  test::OwnedFd writer_{open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
  test::OwnedFd direct_{open(path_.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC)};
  bool ready_ = false;
};

TEST_F(TrackedGuest, WhatDirectIoWritesPastTheEndOfTheFileIsMarked) {
  const DirectFile file;
  if (!file.is_ready()) GTEST_SKIP() << "this file system has no direct I/O";
  ASSERT_EQ(ftruncate(file.writer(), 100), 0);
  ASSERT_EQ(fallocate(file.writer(), FALLOC_FL_KEEP_SIZE, 0, 4 * page), 0);
  ASSERT_TRUE(memory.fill({at(first), 4 * page}, std::byte{0xee}));
  const auto before = contents(memory, first, 4 * page);
  ASSERT_FALSE(harvest().empty());
  EXPECT_EQ(read_into_guest(file.direct(), memory, {at(first), 2 * page}), 100U);
  const auto after = contents(memory, first, 4 * page);
  const auto dirty = harvest();
  for (std::uint64_t i = 0; i < 4 * page; ++i) {
    if (after[i] == before[i]) continue;
    ASSERT_TRUE(
        std::ranges::any_of(dirty, [&](const GuestRange& r) { return r.contains(at(first + i)); }))
        << "byte " << i;
  }
  EXPECT_EQ(dirty, std::vector<GuestRange>{pages(first, 2)});
}

TEST_F(TrackedGuest, WhatDirectIoWritesBeforeItFailsIsMarked) {
  const DirectFile file;
  if (!file.is_ready()) GTEST_SKIP() << "this file system has no direct I/O";
  // A hole and a page of data, of which a part is asked for.
  ASSERT_EQ(ftruncate(file.writer(), 0), 0);
  ASSERT_EQ(pwrite(file.writer(), pattern(page).data(), page, page), ssize_t{page});
  ASSERT_EQ(fsync(file.writer()), 0);
  ASSERT_TRUE(memory.fill({at(first), 2 * page}, std::byte{0xee}));
  ASSERT_FALSE(harvest().empty());
  const auto read = read_into_guest(file.direct(), memory, {at(first), page + 100});
  if (read) GTEST_SKIP() << "this file system reads parts of blocks";
  EXPECT_EQ(read.error().os_errno, EINVAL);
  if (memory.read<std::uint8_t>(at(first)) == 0xee) GTEST_SKIP() << "nothing was written";
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(first, 2)});
}

TEST_F(TrackedGuest, TrackingIsSharedByAllMapsThatHoldTheRegion) {
  const auto other = memory.without_region(at(last));
  ASSERT_TRUE(other);
  ASSERT_TRUE(other->write(at(first), 1U));
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(first, 1)});
  ASSERT_TRUE(memory.write(at(last), 2U));
  disable_dirty_tracking(*other);
  ASSERT_TRUE(memory.write(at(first), 2U));
  // Its ranges without those of the others would not be all that was written.
  const auto untracked = harvest_dirty(memory);
  ASSERT_FALSE(untracked);
  EXPECT_EQ(untracked.error().code, Errc::bad_state);
  EXPECT_EQ(untracked.error().first, Operand::range(first, second - 1));
  ASSERT_TRUE(enable_dirty_tracking(memory));
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(last, 1)});  // still there
}

TEST_F(TrackedGuest, ARegionThatJoinsIsTrackedAndAllOfItIsDirty) {
  constexpr std::uint64_t plugged = 0x100'0000;
  for (const Protection protection : {Protection::read_write, Protection::read}) {
    const auto more = region({plugged, 3 * page, protection});
    ASSERT_TRUE(memory.write(at(first), 1U));
    const auto joined = memory.with_region(more);
    ASSERT_TRUE(joined);
    auto dirty = harvest_dirty(*joined);
    ASSERT_TRUE(dirty);
    EXPECT_EQ(*dirty, (std::vector<GuestRange>{pages(first, 1), pages(plugged, 3)}));
    // Later only what is written, by whichever way.
    ASSERT_TRUE(more->load_image(page, pattern(1)));
    dirty = harvest_dirty(*joined);
    ASSERT_TRUE(dirty);
    EXPECT_EQ(*dirty, std::vector<GuestRange>{pages(plugged + page, 1)});
    // Back again, it has its own log still.
    const auto without = joined->without_region(at(plugged));
    ASSERT_TRUE(without);
    ASSERT_TRUE(more->load_image(0, pattern(1)));
    const auto again = without->with_region(more);
    ASSERT_TRUE(again);
    dirty = harvest_dirty(*again);
    ASSERT_TRUE(dirty);
    EXPECT_EQ(*dirty, std::vector<GuestRange>{pages(plugged, 1)});
  }
}

TEST_F(TrackedGuest, RegionsArePutTogetherWithTrackedOnes) {
  const auto tracked = memory.regions()[0];
  const auto other = region({0x100'0000, page});
  const auto together = GuestMemory::from_regions({other, tracked});
  ASSERT_TRUE(together);
  const auto dirty = harvest_dirty(*together);
  ASSERT_TRUE(dirty);
  EXPECT_EQ(*dirty, std::vector<GuestRange>{pages(0x100'0000, 1)});
  // Regions that can't be put together do not begin to track.
  const auto in_the_way = region({first + page, page});
  EXPECT_EQ(memory.with_region(in_the_way).error().code, Errc::overlap);
  EXPECT_FALSE(in_the_way->dirty().is_enabled());
}

TEST(GuestMemory, AHarvestOfWhatIsNotTrackedIsAnError) {
  const GuestMemory memory = guest({{0x1000, page, Protection::read}});
  EXPECT_EQ(harvest_dirty(memory).error().code, Errc::bad_state);
  ASSERT_TRUE(enable_dirty_tracking(memory));
  EXPECT_EQ(harvest_dirty(memory), std::vector<GuestRange>{});
  // RAM that joins a ROM is tracked, although the guest can't write a ROM.
  const auto joined = memory.with_region(region({0x8000, page}));
  ASSERT_TRUE(joined);
  EXPECT_EQ(harvest_dirty(*joined), (std::vector<GuestRange>{{at(0x8000), page}}));
}

TEST_F(TrackedGuest, ForeignLogsMerge) {
  const std::array<std::uint64_t, 1> log{0b10};
  ASSERT_TRUE(merge_dirty_log(memory, at(second), log, page));
  EXPECT_EQ(harvest(), std::vector<GuestRange>{pages(second + page, 1)});
  const std::array<std::uint64_t, 1> beyond{0b101};
  EXPECT_EQ(merge_dirty_log(memory, at(second), beyond, page).error().code, Errc::out_of_bounds);
  EXPECT_EQ(merge_dirty_log(memory, at(gap), log, page).error().code, Errc::not_found);
  EXPECT_EQ(merge_dirty_log(memory, at(rom), log, page).error().code, Errc::access_denied);
  EXPECT_TRUE(harvest().empty());
}

}  // namespace
}  // namespace vmspace
