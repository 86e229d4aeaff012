// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/kvm_memslots.hpp"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"

#include "os/descriptor.hpp"
#include "os/system_calls.hpp"
#include "vmm/fake_kvm.hpp"
#include "vmm/kvm_mapping.hpp"

namespace vmspace {
namespace {

using namespace literals;
using test::fail_each_allocation;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class KvmMemslotsTest : public test::FakeKvm {};

TEST_F(KvmMemslotsTest, TakesTheLimitFromKvm) {
  EXPECT_EQ(make().limit(), 509u);
  slot_limit = 0;  // a kernel without the extension
  EXPECT_EQ(make().limit(), 32u);
}

TEST_F(KvmMemslotsTest, KeepsADescriptorOfItsOwnAndClosesIt) {
  {
    const KvmMemslots memslots = make();
    EXPECT_EQ(open_descriptors, 1);
  }
  EXPECT_EQ(open_descriptors, 0);
}

TEST_F(KvmMemslotsTest, ADescriptorThatIsNoVirtualMachineIsAnErrorAndLeaksNothing) {
  slot_limit = -1;
  const auto memslots = KvmMemslots::create(vm_descriptor);
  ASSERT_FALSE(memslots);
  EXPECT_EQ(memslots.error().code, Errc::os);
  EXPECT_EQ(memslots.error().os_errno, ENOTTY);
  EXPECT_EQ(open_descriptors, 0);
}

// An answer below 0 is no answer: not "no read-only slots".
TEST_F(KvmMemslotsTest, AQuestionThatKvmRefusesIsAnErrorAndLeaksNothing) {
  read_only_slots = -1;
  const auto memslots = KvmMemslots::create(vm_descriptor);
  ASSERT_FALSE(memslots);
  EXPECT_EQ(memslots.error().code, Errc::os);
  EXPECT_EQ(memslots.error().os_errno, EPERM);
  EXPECT_EQ(open_descriptors, 0);
}

TEST_F(KvmMemslotsTest, SetShowsTheMemoryWithItsFlags) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set({.base = GuestAddress(0), .size = 64_KiB, .host_address = host(1_GiB)}));
  ASSERT_TRUE(memslots.set({.base = GuestAddress(1_MiB),
                            .size = 64_KiB,
                            .host_address = host(2_GiB),
                            .read_only = true}));
  ASSERT_TRUE(memslots.set({.base = GuestAddress(2_MiB),
                            .size = 64_KiB,
                            .host_address = host(3_GiB),
                            .log_dirty = true}));
  EXPECT_THAT(slots, ElementsAre(std::pair(0u, Slot{0, Range::of(0, 64_KiB - 1), 1_GiB}),
                                 std::pair(1u, Slot{KVM_MEM_READONLY,
                                                    Range::of(1_MiB, 1_MiB + 64_KiB - 1), 2_GiB}),
                                 std::pair(2u, Slot{KVM_MEM_LOG_DIRTY_PAGES,
                                                    Range::of(2_MiB, 2_MiB + 64_KiB - 1), 3_GiB})));
  EXPECT_EQ(memslots.used(), 3u);
}

TEST_F(KvmMemslotsTest, AdjacentRangesAreSlotsOfTheirOwn) {
  KvmMemslots memslots = make();
  for (std::uint64_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(memslots.set({.base = GuestAddress(i * page_size),
                              .size = page_size,
                              .host_address = host(1_GiB + i * page_size)}));
  }
  EXPECT_THAT(slots, SizeIs(4));
}

TEST_F(KvmMemslotsTest, SplitsARangeThatIsAboveKvmsLimitOfPages) {
  KvmMemslots memslots = make();
  const KvmMemory memory{.base = GuestAddress(4_GiB), .size = 16_TiB, .host_address = host(32_TiB)};
  ASSERT_TRUE(memslots.set(memory));
  EXPECT_EQ(memslots.used(), 3u);

  const auto pieces = memslots.slots({memory.base, memory.size});
  ASSERT_TRUE(pieces);
  std::uint64_t next = 4_GiB;
  for (const KvmSlot& piece : *pieces) {
    ASSERT_TRUE(slots.contains(piece.number));
    const Slot& slot = slots.at(piece.number);
    EXPECT_THAT(piece.range.range(), IsOkAndHolds(slot.range));
    EXPECT_EQ(piece.range.base, GuestAddress(next));
    EXPECT_TRUE(piece.range.base.is_aligned(1_GiB)) << "cuts one of the guest's huge pages";
    EXPECT_EQ(slot.host_address - 32_TiB, next - 4_GiB);
    next += piece.range.size;
  }
  EXPECT_EQ(next, 4_GiB + 16_TiB);

  ASSERT_TRUE(memslots.clear({memory.base, memory.size}));
  EXPECT_THAT(slots, IsEmpty());
  EXPECT_EQ(memslots.used(), 0u);
}

TEST_F(KvmMemslotsTest, TheLargestSlotIsNotSplitAndOnePageMoreIs) {
  KvmMemslots memslots = make();
  const std::uint64_t largest = ((std::uint64_t{1} << 31) - 1) * page_size / 1_GiB * 1_GiB;
  ASSERT_TRUE(
      memslots.set({.base = GuestAddress(0), .size = largest, .host_address = host(1_GiB)}));
  EXPECT_EQ(memslots.used(), 1u);
  ASSERT_TRUE(memslots.set(
      {.base = GuestAddress(largest), .size = largest + page_size, .host_address = host(1_GiB)}));
  EXPECT_EQ(memslots.used(), 3u);
  // In the middle of a GiB the first piece is shorter, so this needs another one.
  const std::uint64_t base = 64_TiB + 512_MiB;
  ASSERT_TRUE(
      memslots.set({.base = GuestAddress(base), .size = largest, .host_address = host(1_GiB)}));
  const auto pieces = memslots.slots({GuestAddress(base), largest});
  ASSERT_TRUE(pieces);
  ASSERT_THAT(*pieces, SizeIs(2));
  EXPECT_EQ(slots.at(pieces->back().number).range.max(), base + largest - 1);
}

// Wherever a range begins, its pieces meet where the guest's largest pages do, and have whole words
// of its dirty log; for a base inside of such a word (256 KiB on x86) the words go first.
TEST_F(KvmMemslotsTest, PiecesMeetAtMultiplesOfOneGibibyte) {
  for (const std::uint64_t base :
       {std::uint64_t{0}, 2_MiB, 4_GiB + 2_MiB, 5_GiB - 2_MiB, 5_GiB - page_size}) {
    KvmMemslots memslots = make();
    const std::uint64_t host_base = 32_TiB + base % 1_GiB;
    ASSERT_TRUE(memslots.set(
        {.base = GuestAddress(base), .size = 20_TiB, .host_address = host(host_base)}));
    const auto pieces = memslots.slots({GuestAddress(base), 20_TiB});
    ASSERT_TRUE(pieces);
    EXPECT_THAT(*pieces, SizeIs(3));
    std::uint64_t next = base;
    for (const KvmSlot& piece : *pieces) {
      EXPECT_EQ(piece.range.base, GuestAddress(next));
      EXPECT_THAT(piece.range.range(), IsOkAndHolds(slots.at(piece.number).range));
      EXPECT_EQ(slots.at(piece.number).host_address - host_base, next - base);
      EXPECT_TRUE(next == base || next % 1_GiB == base % (64 * page_size)) << "cuts a huge page";
      EXPECT_EQ((next - base) / page_size % 64, 0u) << "cuts a word of the dirty log";
      next += piece.range.size;
    }
    EXPECT_EQ(next, base + 20_TiB);
  }
}

TEST_F(KvmMemslotsTest, NumbersComeBackWhenRangesGo) {
  slot_limit = 4;
  KvmMemslots memslots = make();
  for (int round = 0; round < 100; ++round) {
    ASSERT_TRUE(
        memslots.set({.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)}));
    ASSERT_TRUE(
        memslots.set({.base = GuestAddress(16_TiB), .size = 64_KiB, .host_address = host(1_GiB)}));
    EXPECT_EQ(memslots.used(), memslots.limit());
    ASSERT_TRUE(memslots.check_invariants());
    ASSERT_TRUE(memslots.clear({GuestAddress(0), 16_TiB}));
    ASSERT_TRUE(memslots.clear({GuestAddress(16_TiB), 64_KiB}));
    ASSERT_EQ(memslots.used(), 0u);
  }
}

TEST_F(KvmMemslotsTest, FreedNumbersInTwoPlacesStillMakeOneSplitRange) {
  slot_limit = 5;
  KvmMemslots memslots = make();
  for (std::uint64_t i = 0; i < 5; ++i) {
    ASSERT_TRUE(memslots.set({.base = GuestAddress(32_TiB + i * page_size),
                              .size = page_size,
                              .host_address = host(1_GiB)}));
  }
  for (const std::uint64_t i : {0u, 2u, 4u}) {
    ASSERT_TRUE(memslots.clear({GuestAddress(32_TiB + i * page_size), page_size}));
  }
  EXPECT_TRUE(
      memslots.set({.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)}));
  EXPECT_THAT(slots, SizeIs(5));
}

TEST_F(KvmMemslotsTest, DestructionAndAssignmentClearEverySlot) {
  {
    KvmMemslots memslots = make();
    ASSERT_TRUE(
        memslots.set({.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)}));
    KvmMemslots moved = std::move(memslots);
    EXPECT_THAT(slots, SizeIs(3));
    moved = make();
    EXPECT_THAT(slots, IsEmpty());
    ASSERT_TRUE(moved.set({.base = GuestAddress(0), .size = 64_KiB, .host_address = host(1_GiB)}));
  }
  EXPECT_THAT(slots, IsEmpty());
  EXPECT_EQ(open_descriptors, 0);
}

TEST_F(KvmMemslotsTest, BadRequestsNameTheirOperandsAndChangeNothing) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(
      memslots.set({.base = GuestAddress(1_MiB), .size = 1_MiB, .host_address = host(1_GiB)}));
  const auto before = slots;
  constexpr std::uint64_t last = std::numeric_limits<std::uint64_t>::max();

  struct Case {
    KvmMemory memory;
    Errc code;
    const char* text;
  };
  const Case cases[] = {
      {{GuestAddress(4_MiB), 0, host(1_GiB)}, Errc::zero_size, "0x400000"},
      {{GuestAddress(4_MiB + 1), 1_MiB, host(1_GiB)}, Errc::misaligned, "0x400001"},
      {{GuestAddress(4_MiB), 1_MiB + 1, host(1_GiB)}, Errc::misaligned, "0x100001"},
      {{GuestAddress(4_MiB), 1_MiB, host(1_GiB + 1)}, Errc::misaligned, "0x40000001"},
      {{GuestAddress(4_MiB), 1_MiB, nullptr}, Errc::invalid_argument, "[0x400000, 0x4fffff]"},
      {{GuestAddress(last - 1_MiB + 1), 2_MiB, host(1_GiB)}, Errc::overflow, "0x200000"},
      {{GuestAddress(last), last, host(1_GiB)}, Errc::overflow, "0xffffffffffffffff"},
      {{GuestAddress(4_MiB), 2_MiB, host(last - 1_MiB + 1)}, Errc::overflow, "0xfffffffffff00000"},
      // It ends with the last byte of 64 bits, which KVM's own arithmetic can't express.
      {{GuestAddress(last - 1_MiB + 1), 1_MiB, host(1_GiB)}, Errc::os, "0xfffffffffff00000"},
      {{GuestAddress(0), 2_MiB, host(2_GiB)}, Errc::overlap, "[0x100000, 0x1fffff]"},
      {{GuestAddress(2_MiB - page_size), 2_MiB, host(2_GiB)},
       Errc::overlap,
       "[0x100000, 0x1fffff]"},
      {{GuestAddress(1_MiB), 1_MiB, host(1_GiB)}, Errc::overlap, "[0x100000, 0x1fffff]"},
  };
  for (const Case& c : cases) {
    const auto set = memslots.set(c.memory);
    ASSERT_FALSE(set) << c.text;
    EXPECT_EQ(set.error().code, c.code) << set.error().message();
    EXPECT_THAT(set.error().message(), AllOf(HasSubstr("KvmMemslots::set"), HasSubstr(c.text)));
    EXPECT_EQ(slots, before);
    EXPECT_EQ(memslots.used(), 1u);
  }
}

// More slots than any KVM has: pieces are counted and cut without passing 2^64.
TEST_F(KvmMemslotsTest, ARangeOfNearlyAllAddressesIsCutToItsEnd) {
  constexpr std::uint64_t last = std::numeric_limits<std::uint64_t>::max();
  IntervalTree<> no_numbers;
  for (const std::uint64_t base : {page_size, 1_GiB - page_size}) {
    const KvmMemory memory{.base = GuestAddress(base),
                           .size = last - base - page_size + 1,
                           .host_address = host(base)};
    const detail::KvmMapping mapping(memory, no_numbers);
    const std::uint64_t count = detail::KvmMapping::pieces_of(memory);
    std::uint64_t next = base;
    for (std::uint64_t i = 0; i < count; ++i) {
      const KvmMemory part = mapping.part(i);
      ASSERT_EQ(part.base.value(), next);
      ASSERT_EQ(part.host_address, host(next));
      ASSERT_NE(part.size, 0u);
      ASSERT_LE(part.size / page_size, (std::uint64_t{1} << 31) - 1);
      next += part.size;
    }
    EXPECT_EQ(next, base + memory.size);
  }
}

TEST_F(KvmMemslotsTest, ADescriptorOfADeviceIsToldFromThatOfAMachine) {
  for (const char* device : {"/dev/null", "/dev/kvm"}) {
    const detail::Descriptor other(::open(device, O_RDWR | O_CLOEXEC));
    if (other.value() < 0) continue;
    detail::current_system_calls = &detail::real_system_calls;
    const auto memslots = KvmMemslots::create(other.value());
    ASSERT_FALSE(memslots) << device;
    EXPECT_EQ(memslots.error().code, Errc::invalid_argument) << memslots.error().message();
    EXPECT_THAT(memslots.error().message(), HasSubstr("KVM_CREATE_VM"));
  }
}

TEST_F(KvmMemslotsTest, AMovedFromObjectHoldsNothingAndSaysSo) {
  KvmMemslots memslots = make();
  const GuestRange range{GuestAddress(0), 64_KiB};
  const KvmMemory memory{.base = GuestAddress(0), .size = 64_KiB, .host_address = host(1_GiB)};
  ASSERT_TRUE(memslots.set(memory));
  KvmMemslots moved = std::move(memslots);
  const auto before = slots;
  const auto code = [](const auto& result) {
    return result ? std::optional<Errc>() : result.error().code;
  };
  EXPECT_EQ(code(memslots.set(memory)), Errc::bad_state);
  EXPECT_EQ(code(memslots.clear(range)), Errc::bad_state);
  EXPECT_EQ(code(memslots.start_dirty_log(range)), Errc::bad_state);
  EXPECT_EQ(code(memslots.stop_dirty_log(range)), Errc::bad_state);
  EXPECT_EQ(code(memslots.fetch_dirty_log(range)), Errc::bad_state);
  EXPECT_EQ(code(memslots.slots(range)), Errc::bad_state);
  EXPECT_TRUE(memslots.check_invariants());
  EXPECT_EQ(memslots.limit(), 0u);
  EXPECT_EQ(memslots.used(), 0u);
  EXPECT_EQ(slots, before);
  memslots = std::move(moved);
  EXPECT_EQ(memslots.used(), 1u);
  EXPECT_TRUE(memslots.clear(range));
}

MemoryRegionPtr map_region(std::uint64_t base, Protection protection) {
  const auto description = AddressSpaceRegion::make({.base = GuestAddress(base),
                                                     .size = 1_MiB,
                                                     .backing = {.source = MemorySource::anon},
                                                     .protection = protection});
  EXPECT_TRUE(description) << description.error().message();
  auto region = MemoryRegion::map(*description);
  EXPECT_TRUE(region) << region.error().message();
  return *region;
}

TEST_F(KvmMemslotsTest, ARegionIsShownAsItIs) {
  KvmMemslots memslots = make();
  constexpr auto read = Protection::read;
  struct Case {
    Protection protection;
    std::uint32_t flags;
  };
  std::uint64_t base = 0;
  for (const Case& c : {Case{Protection::read_write, 0}, Case{read, KVM_MEM_READONLY},
                        Case{read | Protection::execute, KVM_MEM_READONLY},
                        Case{Protection::read_write | Protection::execute, 0}}) {
    base += 1_GiB;
    const auto region = map_region(base, c.protection);
    const auto set = memslots.set(*region);
    ASSERT_TRUE(set) << set.error().message();
    const Slot expected{c.flags, *Range::from_base_size(base, 1_MiB),
                        reinterpret_cast<std::uintptr_t>(region->host_base())};
    EXPECT_EQ(slots.rbegin()->second, expected);
    EXPECT_TRUE(memslots.clear(region->guest_range()));
  }
}

TEST_F(KvmMemslotsTest, ARegionThatMayNotBeReadIsRefused) {
  KvmMemslots memslots = make();
  for (const Protection protection : {Protection::none, Protection::write, Protection::execute}) {
    const auto set = memslots.set(*map_region(1_GiB, protection));
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().code, Errc::access_denied);
    EXPECT_EQ(set.error().first, Operand::range(1_GiB, 1_GiB + 1_MiB - 1));
    EXPECT_THAT(slots, IsEmpty());
    EXPECT_EQ(memslots.used(), 0u);
  }
}

TEST_F(KvmMemslotsTest, ReadOnlyMemoryNeedsAKvmThatHasIt) {
  read_only_slots = 0;
  KvmMemslots memslots = make();
  const auto set = memslots.set(
      {.base = GuestAddress(0), .size = 64_KiB, .host_address = host(1_GiB), .read_only = true});
  ASSERT_FALSE(set);
  EXPECT_EQ(set.error().code, Errc::unsupported);
  EXPECT_THAT(slots, IsEmpty());
}

TEST_F(KvmMemslotsTest, MoreSlotsThanAreLeftIsAnErrorAndTakesNone) {
  slot_limit = 3;
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set({.base = GuestAddress(0), .size = 64_KiB, .host_address = host(1_GiB)}));
  const auto before = slots;
  const auto set =
      memslots.set({.base = GuestAddress(1_GiB), .size = 16_TiB, .host_address = host(32_TiB)});
  ASSERT_FALSE(set);
  EXPECT_EQ(set.error().code, Errc::limit_exceeded);
  EXPECT_EQ(set.error().first, Operand::number(3));
  EXPECT_EQ(set.error().second, Operand::number(2));
  EXPECT_EQ(slots, before);
  EXPECT_EQ(memslots.used(), 1u);
  EXPECT_TRUE(
      memslots.set({.base = GuestAddress(1_GiB), .size = 8_TiB, .host_address = host(32_TiB)}));
}

TEST_F(KvmMemslotsTest, OnlyExactlyAKnownRangeIsCleared) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(
      memslots.set({.base = GuestAddress(1_MiB), .size = 1_MiB, .host_address = host(1_GiB)}));
  const auto before = slots;
  const auto at = [](std::uint64_t base, std::uint64_t size) {
    return GuestRange{GuestAddress(base), size};
  };
  for (const GuestRange range : {at(1_MiB, 4_KiB), at(1_MiB, 2_MiB), at(0, 2_MiB), at(4_MiB, 1_MiB),
                                 at(1_MiB, 1), at(1_MiB, 0), at(1_MiB, ~std::uint64_t{0})}) {
    const auto cleared = memslots.clear(range);
    ASSERT_FALSE(cleared);
    EXPECT_EQ(cleared.error().code, Errc::not_found);
    EXPECT_EQ(cleared.error().first, Operand::span(range.base.value(), range.size));
    EXPECT_EQ(memslots.slots(range).error().code, Errc::not_found);
    EXPECT_EQ(slots, before);
  }
  EXPECT_TRUE(memslots.clear(at(1_MiB, 1_MiB)));
  EXPECT_EQ(memslots.clear(at(1_MiB, 1_MiB)).error().code, Errc::not_found);
}

// For each k: the k-th piece fails, those before it are taken back, and no number is lost.
TEST_F(KvmMemslotsTest, SetIsAllOrNothingWhicheverPieceKvmRefuses) {
  slot_limit = 4;  // one, and the three of the split range: a lost number would show at once
  KvmMemslots memslots = make();
  ASSERT_TRUE(memslots.set({.base = GuestAddress(0), .size = 64_KiB, .host_address = host(1_GiB)}));
  const auto before = slots;
  const KvmMemory memory{.base = GuestAddress(1_GiB), .size = 16_TiB, .host_address = host(32_TiB)};
  for (int k = 0; k < 3; ++k) {
    fail_next(k);
    const auto set = memslots.set(memory);
    ASSERT_FALSE(set);
    EXPECT_EQ(set.error().code, Errc::os);
    EXPECT_EQ(set.error().os_errno, ENOMEM);
    EXPECT_EQ(set.error().second, Operand::number(static_cast<std::uint64_t>(k) + 1)) << "its slot";
    EXPECT_EQ(slots, before);
    EXPECT_EQ(memslots.used(), 1u);
    EXPECT_TRUE(memslots.check_invariants());
  }
  fail_change.reset();
  EXPECT_TRUE(memslots.set(memory));
}

TEST_F(KvmMemslotsTest, ClearIsAllOrNothingWhicheverPieceKvmRefuses) {
  KvmMemslots memslots = make();
  ASSERT_TRUE(
      memslots.set({.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)}));
  const auto before = slots;
  for (int k = 0; k < 3; ++k) {
    fail_next(k);
    const auto cleared = memslots.clear({GuestAddress(0), 16_TiB});
    ASSERT_FALSE(cleared);
    EXPECT_EQ(cleared.error().os_errno, ENOMEM);
    EXPECT_EQ(slots, before);
    EXPECT_EQ(memslots.used(), 3u);
    EXPECT_TRUE(memslots.check_invariants());
  }
  fail_change.reset();
  EXPECT_TRUE(memslots.clear({GuestAddress(0), 16_TiB}));
  EXPECT_THAT(slots, IsEmpty());
}

TEST_F(KvmMemslotsTest, WhatCouldNotBeTakenBackStaysKnownUntilItIsCleared) {
  KvmMemslots memslots = make();
  const GuestRange range{GuestAddress(0), 16_TiB};
  const KvmMemory memory{.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)};
  fail_all_from(2);  // the third piece, and the removal of the two before it
  const auto set = memslots.set(memory);
  ASSERT_FALSE(set);
  EXPECT_THAT(set.error().message(), HasSubstr("clear it"));
  EXPECT_THAT(slots, SizeIs(2));
  EXPECT_EQ(memslots.used(), 3u);
  EXPECT_THAT(*memslots.slots(range),
              ElementsAre(KvmSlot{0, *GuestRange::from_range(slots.at(0).range)},
                          KvmSlot{1, *GuestRange::from_range(slots.at(1).range)}))
      << "what KVM has, no more";
  EXPECT_TRUE(memslots.check_invariants());
  EXPECT_EQ(memslots.set(memory).error().code, Errc::overlap);

  fail_all_from(1);  // a second try gets one slot further, and does not undo that
  EXPECT_FALSE(memslots.clear(range));
  EXPECT_THAT(slots, SizeIs(1));

  fail_from.reset();
  EXPECT_TRUE(memslots.clear(range));
  EXPECT_THAT(slots, IsEmpty());
  EXPECT_EQ(memslots.used(), 0u);
  EXPECT_TRUE(memslots.set(memory));
}

// For each k: the k-th allocation of memory fails, and then the same call goes through.
TEST_F(KvmMemslotsTest, SetAndCreateAreAllOrNothingWhicheverAllocationFails) {
  const KvmMemory memory{.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)};
  std::optional<KvmMemslots> memslots;
  ASSERT_GT(fail_each_allocation([&] { memslots.emplace(make()); },
                                 [&] { EXPECT_EQ(open_descriptors, 0); }),
            0);
  ASSERT_GT(fail_each_allocation([&] { EXPECT_TRUE(memslots->set(memory)); },
                                 [&] {
                                   EXPECT_THAT(slots, IsEmpty());
                                   EXPECT_EQ(memslots->used(), 0u);
                                   EXPECT_TRUE(memslots->check_invariants());
                                 }),
            0);
  EXPECT_EQ(fail_each_allocation(
                [&] {
                  EXPECT_TRUE(memslots->clear({GuestAddress(0), 16_TiB}));
                },
                [] { ADD_FAILURE() << "clear() allocates"; }),
            0);
}

/// The kernel itself, where this user may open /dev/kvm.
class RealKvmMemslots : public testing::Test {
 protected:
  void SetUp() override {
    kvm_ = detail::Descriptor(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
    if (kvm_.value() < 0) GTEST_SKIP() << "can't open /dev/kvm: " << std::strerror(errno);
    vm_ = detail::Descriptor(::ioctl(kvm_.value(), KVM_CREATE_VM, 0));
    if (vm_.value() < 0) GTEST_SKIP() << "KVM_CREATE_VM failed: " << std::strerror(errno);
    memory_ = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT_NE(memory_, MAP_FAILED);
  }
  ~RealKvmMemslots() override {
    if (memory_ != nullptr) ::munmap(memory_, size);
  }

  static constexpr std::uint64_t size = 64_MiB;
  detail::Descriptor kvm_;
  detail::Descriptor vm_;
  void* memory_ = nullptr;
};

TEST_F(RealKvmMemslots, SetsClearsAndSetsAgainMoreOftenThanThereAreNumbersInUse) {
  auto memslots = KvmMemslots::create(vm_.value());
  ASSERT_TRUE(memslots) << memslots.error().message();
  EXPECT_GE(memslots->limit(), 32u);
  const KvmMemory memory{.base = GuestAddress(4_GiB), .size = size, .host_address = memory_};
  for (int round = 0; round < 8; ++round) {
    const auto set = memslots->set(memory);
    ASSERT_TRUE(set) << set.error().message();
    EXPECT_EQ(memslots->set(memory).error().code, Errc::overlap);
    const auto cleared = memslots->clear({GuestAddress(4_GiB), size});
    ASSERT_TRUE(cleared) << cleared.error().message();
  }
}

TEST_F(RealKvmMemslots, DestructionLeavesTheMachineWithoutSlots) {
  for (int round = 0; round < 2; ++round) {
    auto memslots = KvmMemslots::create(vm_.value());
    ASSERT_TRUE(memslots) << memslots.error().message();
    // Had the first round left its slot, this would overlap with it.
    const auto set =
        memslots->set({.base = GuestAddress(0), .size = size, .host_address = memory_});
    ASSERT_TRUE(set) << set.error().message();
  }
}

TEST_F(RealKvmMemslots, TheCallersDescriptorMayBeClosed) {
  auto memslots = KvmMemslots::create(vm_.value());
  ASSERT_TRUE(memslots) << memslots.error().message();
  vm_ = detail::Descriptor();
  const auto set = memslots->set({.base = GuestAddress(0), .size = size, .host_address = memory_});
  EXPECT_TRUE(set) << set.error().message();
}

TEST_F(RealKvmMemslots, WhatKvmItselfRefusesNamesTheRangeAndTheSlot) {
  auto memslots = KvmMemslots::create(vm_.value());
  ASSERT_TRUE(memslots) << memslots.error().message();
  // Somebody else's slot, which KvmMemslots does not know of.
  kvm_userspace_memory_region foreign{};
  foreign.slot = 5;
  foreign.guest_phys_addr = 1_MiB;
  foreign.memory_size = 1_MiB;
  foreign.userspace_addr = reinterpret_cast<std::uintptr_t>(memory_);
  ASSERT_EQ(::ioctl(vm_.value(), KVM_SET_USER_MEMORY_REGION, &foreign), 0);
  const auto set = memslots->set({.base = GuestAddress(0), .size = 2_MiB, .host_address = memory_});
  ASSERT_FALSE(set);
  EXPECT_EQ(set.error().error_code(), std::errc::file_exists) << set.error().message();
  EXPECT_EQ(set.error().first, Operand::range(0, 2_MiB - 1));
  EXPECT_EQ(memslots->used(), 0u);
}

TEST(KvmMemslotsDescriptor, OneThatIsNotOpenIsAnError) {
  const auto memslots = KvmMemslots::create(-1);
  ASSERT_FALSE(memslots);
  EXPECT_EQ(memslots.error().os_errno, EBADF) << memslots.error().message();
}

}  // namespace
}  // namespace vmspace
