// SPDX-License-Identifier: Apache-2.0

#include "vmspace/vmm/kvm_memslots.hpp"

#include <fcntl.h>
#include <linux/kvm.h>

#include <cerrno>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"

#include "os/descriptor.hpp"
#include "os/system_calls.hpp"
#include "vmm/fake_kvm.hpp"

namespace vmspace::kvm_memslots_test {
namespace {

using namespace literals;
using test::fail_each_allocation;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Key;
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
  const auto memslots = KvmMemslots::create(vm_fd);
  ASSERT_THAT(memslots, HasError(Errc::os));
  EXPECT_EQ(memslots.error().os_errno, ENOTTY);
  EXPECT_EQ(open_descriptors, 0);
}

// An answer below 0 is no answer: not "no read-only slots".
TEST_F(KvmMemslotsTest, AQuestionThatKvmRefusesIsAnErrorAndLeaksNothing) {
  read_only_slots = -1;
  const auto memslots = KvmMemslots::create(vm_fd);
  ASSERT_THAT(memslots, HasError(Errc::os));
  EXPECT_EQ(memslots.error().os_errno, EPERM);
  EXPECT_EQ(open_descriptors, 0);
}

TEST_F(KvmMemslotsTest, SetShowsTheMemoryWithItsFlags) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(
      memslots.set({.base = GuestAddress(0), .size = 64_KiB, .host_address = host(1_GiB)}));
  VMSPACE_ASSERT_OK(memslots.set({.base = GuestAddress(1_MiB),
                                  .size = 64_KiB,
                                  .host_address = host(2_GiB),
                                  .read_only = true}));
  VMSPACE_ASSERT_OK(memslots.set({.base = GuestAddress(2_MiB),
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
    VMSPACE_ASSERT_OK(memslots.set({.base = GuestAddress(i * page_size),
                                    .size = page_size,
                                    .host_address = host(1_GiB + i * page_size)}));
  }
  EXPECT_THAT(slots, SizeIs(4));
}

TEST_F(KvmMemslotsTest, NumbersComeBackWhenRangesGo) {
  slot_limit = 4;
  KvmMemslots memslots = make();
  for (int round = 0; round < 100; ++round) {
    VMSPACE_ASSERT_OK(
        memslots.set({.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)}));
    VMSPACE_ASSERT_OK(
        memslots.set({.base = GuestAddress(16_TiB), .size = 64_KiB, .host_address = host(1_GiB)}));
    EXPECT_EQ(memslots.used(), memslots.limit());
    VMSPACE_ASSERT_OK(memslots.check_invariants());
    VMSPACE_ASSERT_OK(memslots.clear({GuestAddress(0), 16_TiB}));
    VMSPACE_ASSERT_OK(memslots.clear({GuestAddress(16_TiB), 64_KiB}));
    ASSERT_EQ(memslots.used(), 0u);
  }
}

TEST_F(KvmMemslotsTest, DestructionAndAssignmentClearEverySlot) {
  {
    KvmMemslots memslots = make();
    VMSPACE_ASSERT_OK(
        memslots.set({.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)}));
    KvmMemslots moved = std::move(memslots);
    EXPECT_THAT(slots, SizeIs(3));
    moved = make();
    EXPECT_THAT(slots, IsEmpty());
    VMSPACE_ASSERT_OK(
        moved.set({.base = GuestAddress(0), .size = 64_KiB, .host_address = host(1_GiB)}));
  }
  EXPECT_THAT(slots, IsEmpty());
  EXPECT_EQ(open_descriptors, 0);
}

TEST_F(KvmMemslotsTest, BadRequestsNameTheirOperandsAndChangeNothing) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(
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
    ASSERT_THAT(set, HasError(c.code)) << c.text;
    EXPECT_THAT(set.error().message(), AllOf(HasSubstr("KvmMemslots::set"), HasSubstr(c.text)));
    EXPECT_EQ(slots, before);
    EXPECT_EQ(memslots.used(), 1u);
  }
}

TEST_F(KvmMemslotsTest, ADescriptorOfADeviceIsToldFromThatOfAMachine) {
  for (const char* device : {"/dev/null", "/dev/kvm"}) {
    const detail::Descriptor other(::open(device, O_RDWR | O_CLOEXEC));
    if (other.value() < 0) continue;
    detail::current_system_calls = &detail::real_system_calls;
    const auto memslots = KvmMemslots::create(other.value());
    ASSERT_THAT(memslots, HasError(Errc::invalid_argument)) << device;
    EXPECT_THAT(memslots.error().message(), HasSubstr("KVM_CREATE_VM"));
  }
}

TEST_F(KvmMemslotsTest, AMovedFromObjectHoldsNothingAndSaysSo) {
  KvmMemslots memslots = make();
  const GuestRange range{GuestAddress(0), 64_KiB};
  const KvmMemory memory{.base = GuestAddress(0), .size = 64_KiB, .host_address = host(1_GiB)};
  VMSPACE_ASSERT_OK(memslots.set(memory));
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
  VMSPACE_EXPECT_OK(memslots.check_invariants());
  EXPECT_EQ(memslots.limit(), 0u);
  EXPECT_EQ(memslots.used(), 0u);
  EXPECT_EQ(slots, before);
  memslots = std::move(moved);
  EXPECT_EQ(memslots.used(), 1u);
  VMSPACE_EXPECT_OK(memslots.clear(range));
}

MemoryRegionPtr map_region(std::uint64_t base, Protection protection) {
  const auto description = AddressSpaceRegion::make({.base = GuestAddress(base),
                                                     .size = 1_MiB,
                                                     .backing = {.source = MemorySource::anon},
                                                     .protection = protection});
  EXPECT_THAT(description, IsOk());
  auto region = MemoryRegion::map(*description);
  EXPECT_THAT(region, IsOk());
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
    VMSPACE_ASSERT_OK(memslots.set(*region));
    const Slot expected{c.flags, *Range::from_base_size(base, 1_MiB),
                        reinterpret_cast<std::uintptr_t>(region->host_base())};
    EXPECT_EQ(slots.rbegin()->second, expected);
    VMSPACE_EXPECT_OK(memslots.clear(region->guest_range()));
  }
}

TEST_F(KvmMemslotsTest, ARegionThatMayNotBeReadIsRefused) {
  KvmMemslots memslots = make();
  for (const Protection protection : {Protection::none, Protection::write, Protection::execute}) {
    const auto set = memslots.set(*map_region(1_GiB, protection));
    ASSERT_THAT(set, HasError(Errc::access_denied));
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
  ASSERT_THAT(set, HasError(Errc::unsupported));
  EXPECT_THAT(slots, IsEmpty());
}

TEST_F(KvmMemslotsTest, MoreSlotsThanAreLeftIsAnErrorAndTakesNone) {
  slot_limit = 3;
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(
      memslots.set({.base = GuestAddress(0), .size = 64_KiB, .host_address = host(1_GiB)}));
  const auto before = slots;
  const auto set =
      memslots.set({.base = GuestAddress(1_GiB), .size = 16_TiB, .host_address = host(32_TiB)});
  ASSERT_THAT(set, HasError(Errc::limit_exceeded));
  EXPECT_EQ(set.error().first, Operand::number(3));
  EXPECT_EQ(set.error().second, Operand::number(2));
  EXPECT_EQ(slots, before);
  EXPECT_EQ(memslots.used(), 1u);
  VMSPACE_EXPECT_OK(
      memslots.set({.base = GuestAddress(1_GiB), .size = 8_TiB, .host_address = host(32_TiB)}));
}

TEST_F(KvmMemslotsTest, ASharedPoolNumbersTheSlotsAndTellsWhoseTheyAre) {
  const auto pool = RangePool::create("slots", {Range::of(0, 1023)});
  ASSERT_THAT(pool, IsOk());
  const auto device = pool->acquire_at(Range::of(0, 1), "vfio0");
  ASSERT_TRUE(device);
  {
    auto memslots = KvmMemslots::create(vm_fd, *pool);
    ASSERT_THAT(memslots, IsOk());
    VMSPACE_ASSERT_OK(
        memslots->set({.base = GuestAddress(4_GiB), .size = 16_TiB, .host_address = host(32_TiB)}));
    EXPECT_THAT(slots, ElementsAre(Key(2u), Key(3u), Key(4u)));
    EXPECT_EQ(memslots->used(), 3u);
    const std::vector<RangeHolder> holders = pool->holders();
    ASSERT_THAT(holders, SizeIs(4));
    EXPECT_EQ(holders.front().tag, "vfio0");
    EXPECT_EQ(holders.back(),
              (RangeHolder{Range::point(4), "guest memory [0x100000000, 0x1000ffffffff]"}));
  }
  EXPECT_THAT(pool->holders(), ElementsAre(RangeHolder{Range::of(0, 1), "vfio0"}));
}

TEST_F(KvmMemslotsTest, NumbersOfASharedPoolThatKvmDoesNotHaveAreNotUsed) {
  slot_limit = 3;
  const auto pool = RangePool::create("slots", {Range::of(1, 1023)});
  ASSERT_THAT(pool, IsOk());
  auto memslots = KvmMemslots::create(vm_fd, *pool);
  ASSERT_THAT(memslots, IsOk());
  const KvmMemory memory{.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)};
  const auto refused = memslots->set(memory);
  ASSERT_THAT(refused, HasError(Errc::limit_exceeded));
  EXPECT_EQ(refused.error().second, Operand::number(2));
  EXPECT_THAT(slots, IsEmpty());
  EXPECT_THAT(pool->holders(), IsEmpty());
}

TEST_F(KvmMemslotsTest, TheNumberOfASlotThatKvmKeepsStaysTaken) {
  const auto pool = RangePool::create("slots", {Range::of(0, 508)});
  ASSERT_THAT(pool, IsOk());
  {
    auto memslots = KvmMemslots::create(vm_fd, *pool);
    ASSERT_THAT(memslots, IsOk());
    VMSPACE_ASSERT_OK(
        memslots->set({.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)}));
    fail_next(1);
  }
  EXPECT_THAT(slots, ElementsAre(Key(1u)));
  const std::vector<RangeHolder> holders = pool->holders();
  ASSERT_THAT(holders, SizeIs(1));
  EXPECT_EQ(holders.front().range, Range::point(1));
}

TEST_F(KvmMemslotsTest, OnlyExactlyAKnownRangeIsCleared) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(
      memslots.set({.base = GuestAddress(1_MiB), .size = 1_MiB, .host_address = host(1_GiB)}));
  const auto before = slots;
  const auto at = [](std::uint64_t base, std::uint64_t size) {
    return GuestRange{GuestAddress(base), size};
  };
  for (const GuestRange range : {at(1_MiB, 4_KiB), at(1_MiB, 2_MiB), at(0, 2_MiB), at(4_MiB, 1_MiB),
                                 at(1_MiB, 1), at(1_MiB, 0), at(1_MiB, ~std::uint64_t{0})}) {
    const auto cleared = memslots.clear(range);
    ASSERT_THAT(cleared, HasError(Errc::not_found));
    EXPECT_EQ(cleared.error().first, Operand::span(range.base.value(), range.size));
    EXPECT_THAT(memslots.slots(range), HasError(Errc::not_found));
    EXPECT_EQ(slots, before);
  }
  VMSPACE_EXPECT_OK(memslots.clear(at(1_MiB, 1_MiB)));
  EXPECT_THAT(memslots.clear(at(1_MiB, 1_MiB)), HasError(Errc::not_found));
}

// For each k: the k-th piece fails, those before it are taken back, and no number is lost.
TEST_F(KvmMemslotsTest, SetIsAllOrNothingWhicheverPieceKvmRefuses) {
  slot_limit = 4;  // one, and the three of the split range: a lost number would show at once
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(
      memslots.set({.base = GuestAddress(0), .size = 64_KiB, .host_address = host(1_GiB)}));
  const auto before = slots;
  const KvmMemory memory{.base = GuestAddress(1_GiB), .size = 16_TiB, .host_address = host(32_TiB)};
  for (int k = 0; k < 3; ++k) {
    fail_next(k);
    const auto set = memslots.set(memory);
    ASSERT_THAT(set, HasError(Errc::os));
    EXPECT_EQ(set.error().os_errno, ENOMEM);
    EXPECT_EQ(set.error().text.subject(), "slot " + std::to_string(k + 1)) << "its slot";
    EXPECT_EQ(slots, before);
    EXPECT_EQ(memslots.used(), 1u);
    VMSPACE_EXPECT_OK(memslots.check_invariants());
  }
  fail_change.reset();
  VMSPACE_EXPECT_OK(memslots.set(memory));
}

TEST_F(KvmMemslotsTest, ClearIsAllOrNothingWhicheverPieceKvmRefuses) {
  KvmMemslots memslots = make();
  VMSPACE_ASSERT_OK(
      memslots.set({.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)}));
  const auto before = slots;
  for (int k = 0; k < 3; ++k) {
    fail_next(k);
    const auto cleared = memslots.clear({GuestAddress(0), 16_TiB});
    ASSERT_FALSE(cleared);
    EXPECT_EQ(cleared.error().os_errno, ENOMEM);
    EXPECT_EQ(slots, before);
    EXPECT_EQ(memslots.used(), 3u);
    VMSPACE_EXPECT_OK(memslots.check_invariants());
  }
  fail_change.reset();
  VMSPACE_EXPECT_OK(memslots.clear({GuestAddress(0), 16_TiB}));
  EXPECT_THAT(slots, IsEmpty());
}

TEST_F(KvmMemslotsTest, WhatCouldNotBeTakenBackStaysKnownUntilItIsCleared) {
  KvmMemslots memslots = make();
  const GuestRange range{GuestAddress(0), 16_TiB};
  const KvmMemory memory{.base = GuestAddress(0), .size = 16_TiB, .host_address = host(32_TiB)};
  fail_all_from(2);  // the third piece, and the removal of the two before it
  const auto set = memslots.set(memory);
  ASSERT_FALSE(set);
  EXPECT_THAT(set.error().message(), HasSubstr("clear() it"));
  EXPECT_THAT(slots, SizeIs(2));
  EXPECT_EQ(memslots.used(), 3u);
  EXPECT_THAT(*memslots.slots(range),
              ElementsAre(KvmSlot{0, *GuestRange::from_range(slots.at(0).range)},
                          KvmSlot{1, *GuestRange::from_range(slots.at(1).range)}))
      << "what KVM has, no more";
  VMSPACE_EXPECT_OK(memslots.check_invariants());
  EXPECT_THAT(memslots.set(memory), HasError(Errc::overlap));

  fail_all_from(1);  // a second try gets one slot further, and does not undo that
  EXPECT_FALSE(memslots.clear(range));
  EXPECT_THAT(slots, SizeIs(1));

  fail_from.reset();
  VMSPACE_EXPECT_OK(memslots.clear(range));
  EXPECT_THAT(slots, IsEmpty());
  EXPECT_EQ(memslots.used(), 0u);
  VMSPACE_EXPECT_OK(memslots.set(memory));
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

}  // namespace
}  // namespace vmspace::kvm_memslots_test
