// SPDX-License-Identifier: Apache-2.0
//
// KvmMemslots as a MemoryListener: sections of regions, against KVM's rules, with every call
// failing.

#include <linux/kvm.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"
#include "vmspace/vmm/memory_listener.hpp"
#include "vmspace/vmm/vm_gate.hpp"
#include "vmspace/vmm/vm_memory.hpp"

#include "vmm/fake_kvm.hpp"
#include "vmm/kvm_pieces.hpp"

namespace vmspace::kvm_listener_test {
namespace {

using namespace literals;
using test::fail_each_allocation;
using testing::AllOf;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::SizeIs;

constexpr std::uint64_t base = 4_GiB;

MemoryRegionPtr named(std::string name, std::uint64_t at, std::uint64_t size,
                      Protection protection = Protection::read_write) {
  auto region = MemoryRegion::map({.name = std::move(name),
                                   .base = GuestAddress(at),
                                   .size = size,
                                   .backing = {.source = MemorySource::anon},
                                   .protection = protection});
  VMSPACE_EXPECT_OK(region);
  return *region;
}

std::uint64_t host_of(const MemorySection& section) {
  return reinterpret_cast<std::uintptr_t>(section.host_base());
}

class KvmListenerTest : public test::FakeKvm {
 protected:
  // Two slots: the largest that there is, and what remains. Slots are smaller here than KVM's.
  static constexpr std::uint64_t largest = 1_GiB;
  static constexpr std::uint64_t split_size = largest + 64_MiB;

  KvmListenerTest() { detail::max_pages_per_slot = largest / page_size; }
  ~KvmListenerTest() override { detail::max_pages_per_slot = kvms_pages_per_slot_; }

  static Result<void> prepare(KvmMemslots& kvm, const std::vector<MemorySection>& added,
                              const std::vector<MemorySection>& removed = {}) {
    return kvm.prepare({.removed = removed, .added = added});
  }

  const MemoryRegionPtr ram = named("ram0", base, 1_MiB);
  const MemorySection all{ram};
  const MemorySection part{ram, 64_KiB, 128_KiB};

 private:
  const std::uint64_t kvms_pages_per_slot_ = detail::max_pages_per_slot;
};

TEST_F(KvmListenerTest, ShowsASectionAsItsRegionSays) {
  KvmMemslots kvm = make();
  EXPECT_EQ(kvm.name(), "kvm");
  const MemorySection rom(named("rom", 1_MiB, 64_KiB, Protection::read));
  ASSERT_THAT(prepare(kvm, {rom, all}), IsOk());
  EXPECT_THAT(slots, IsEmpty());
  VMSPACE_ASSERT_OK(kvm.add(rom));
  VMSPACE_ASSERT_OK(kvm.add(all));
  VMSPACE_ASSERT_OK(kvm.commit());
  EXPECT_THAT(slots,
              ElementsAre(Pair(0u, Slot{KVM_MEM_READONLY, Range::of(1_MiB, 1_MiB + 64_KiB - 1),
                                        host_of(rom)}),
                          Pair(1u, Slot{0, Range::of(base, base + 1_MiB - 1), host_of(all)})));
  VMSPACE_ASSERT_OK(kvm.remove(rom));
  VMSPACE_ASSERT_OK(kvm.remove(all));
  EXPECT_THAT(slots, IsEmpty());
  EXPECT_EQ(kvm.used(), 0u);
}

TEST_F(KvmListenerTest, PartsOfARegionComeAndGoByThemselves) {
  KvmMemslots kvm = make();
  const MemorySection first(ram, 0, 64_KiB);
  VMSPACE_ASSERT_OK(kvm.add(part));
  VMSPACE_ASSERT_OK(kvm.add(first));
  EXPECT_EQ(slots.at(0),
            (Slot{0, Range::of(base + 64_KiB, base + 192_KiB - 1), host_of(all) + 64_KiB}));
  EXPECT_THAT(kvm.remove(all), HasError(Errc::not_found));
  VMSPACE_ASSERT_OK(kvm.remove(part));
  EXPECT_THAT(slots, ElementsAre(Pair(1u, Field(&Slot::host_address, host_of(all)))));
  VMSPACE_EXPECT_OK(kvm.check_invariants());
}

TEST_F(KvmListenerTest, KeepsASectionMappedUntilItsSlotIsGone) {
  KvmMemslots kvm = make();
  auto region = named("ram1", 0, 1_MiB);
  const std::weak_ptr<const MemoryRegion> watched = region;
  VMSPACE_ASSERT_OK(kvm.add(MemorySection(std::move(region))));
  ASSERT_FALSE(watched.expired());
  fail_next(0);
  EXPECT_THAT(kvm.remove(MemorySection(watched.lock())), HasError(Errc::os));
  ASSERT_FALSE(watched.expired());
  VMSPACE_ASSERT_OK(kvm.remove(MemorySection(watched.lock())));
  EXPECT_TRUE(watched.expired());
}

TEST_F(KvmListenerTest, OnlyASectionThatWasAddedIsRemoved) {
  KvmMemslots kvm = make();
  const GuestRange range = all.guest_range();
  VMSPACE_ASSERT_OK(kvm.set(*ram));
  EXPECT_THAT(kvm.remove(all), HasError(Errc::not_found)) << "it was set()";
  VMSPACE_ASSERT_OK(kvm.clear(range));
  VMSPACE_ASSERT_OK(kvm.add(all));
  const auto twice = kvm.add(all);
  ASSERT_THAT(twice, HasError(Errc::overlap));
  EXPECT_EQ(twice.error().text.subject(), "ram0");
  const auto refused = kvm.remove(MemorySection(named("other", base, 1_MiB)));
  ASSERT_THAT(refused, HasError(Errc::not_found));
  EXPECT_THAT(refused.error().message(), AllOf(HasSubstr("KvmMemslots::remove: \"other\""),
                                               HasSubstr("add() was not given this section")));
  EXPECT_THAT(kvm.remove(part), HasError(Errc::not_found));
  const auto cleared = kvm.clear(range);
  ASSERT_THAT(cleared, HasError(Errc::bad_state));
  EXPECT_THAT(cleared.error().message(), HasSubstr("use remove()"));
  EXPECT_THAT(slots, SizeIs(1));
  VMSPACE_EXPECT_OK(kvm.remove(all));
}

TEST_F(KvmListenerTest, PrepareRefusesWhatKvmCanNotShowAndNamesIt) {
  read_only_slots = 0;
  KvmMemslots kvm = make();
  const auto refused = [&](Protection protection) {
    return prepare(kvm, {all, MemorySection(named("odd", 1_MiB, 64_KiB, protection))});
  };
  for (const Protection protection : {Protection::none, Protection::write, Protection::execute}) {
    EXPECT_THAT(refused(protection), HasError(Errc::access_denied));
    EXPECT_THAT(kvm.add(MemorySection(named("odd", 1_MiB, 64_KiB, protection))),
                HasError(Errc::access_denied));
  }
  const auto read_only = refused(Protection::read);
  ASSERT_THAT(read_only, HasError(Errc::unsupported));
  EXPECT_EQ(read_only.error().text.subject(), "odd");
  EXPECT_THAT(prepare(kvm, {MemorySection(ram, 1, 64_KiB)}), HasError(Errc::misaligned));
  EXPECT_THAT(prepare(kvm, {MemorySection(ram, 0, 64_KiB + 1)}), HasError(Errc::misaligned));
  VMSPACE_EXPECT_OK(prepare(kvm, {all}));
  VMSPACE_EXPECT_OK(prepare(kvm, {}));
  EXPECT_EQ(changes, 0);
}

TEST_F(KvmListenerTest, PrepareCountsTheSlotsOfAllThatIsAdded) {
  slot_limit = 3;
  KvmMemslots kvm = make();
  const MemorySection split(named("split", 8_GiB, split_size));
  VMSPACE_EXPECT_OK(prepare(kvm, {all, split}));
  VMSPACE_ASSERT_OK(kvm.add(all));
  VMSPACE_EXPECT_OK(prepare(kvm, {split}));
  const auto one_more = prepare(kvm, {MemorySection(named("ram1", 0, 1_MiB)), split});
  ASSERT_THAT(one_more, HasError(Errc::limit_exceeded));
  EXPECT_EQ(one_more.error().first, Operand::number(3));
  EXPECT_EQ(one_more.error().second, Operand::number(2));
  EXPECT_EQ(kvm.used(), 1u);
}

TEST_F(KvmListenerTest, PrepareCountsNumbersOfASharedPoolThatKvmHas) {
  slot_limit = 3;
  const auto pool = RangePool::create("slots", {Range::of(0, 0), Range::of(2, 1023)});
  ASSERT_THAT(pool, IsOk());
  auto kvm = KvmMemslots::create(vm_fd, *pool);
  ASSERT_THAT(kvm, IsOk());
  const MemorySection split(named("split", 8_GiB, split_size));
  VMSPACE_EXPECT_OK(prepare(*kvm, {split}));
  const auto refused = prepare(*kvm, {all, split});
  ASSERT_THAT(refused, HasError(Errc::limit_exceeded));
  EXPECT_EQ(refused.error().second, Operand::number(2));
}

TEST_F(KvmListenerTest, PrepareCountsWhatIsRemovedFirst) {
  slot_limit = 1;
  KvmMemslots kvm = make();
  VMSPACE_ASSERT_OK(kvm.add(all));
  const MemorySection over(named("over", base + 64_KiB, 1_MiB));
  const MemorySection beside(named("beside", 0, 1_MiB));
  VMSPACE_EXPECT_OK(prepare(kvm, {over}, {all}));
  EXPECT_THAT(prepare(kvm, {beside}, {all}), HasError(Errc::limit_exceeded))
      << "removed only after the addition";
}

// For each k: the k-th piece fails, those before it are taken back, and the region is let go.
TEST_F(KvmListenerTest, AddIsAllOrNothingWhicheverPieceKvmRefuses) {
  slot_limit = 3;
  KvmMemslots kvm = make();
  VMSPACE_ASSERT_OK(kvm.add(all));
  const auto before = slots;
  for (int k = 0; k < 2; ++k) {
    auto region = named("split", 8_GiB, split_size);
    const std::weak_ptr<const MemoryRegion> watched = region;
    fail_next(k);
    const auto added = kvm.add(MemorySection(std::move(region)));
    ASSERT_THAT(added, HasError(Errc::os));
    EXPECT_THAT(added.error().message(), AllOf(HasSubstr("KvmMemslots::add: \"split\""),
                                               HasSubstr("\"slot " + std::to_string(k + 1) + "\""),
                                               HasSubstr("Cannot allocate memory")));
    EXPECT_EQ(slots, before);
    EXPECT_TRUE(watched.expired());
    VMSPACE_EXPECT_OK(kvm.check_invariants());
  }
}

TEST_F(KvmListenerTest, AddAndPrepareAreAllOrNothingWhenMemoryRunsOut) {
  KvmMemslots kvm = make();
  const std::vector<MemorySection> added{all};
  const auto nothing = [&] {
    EXPECT_THAT(slots, IsEmpty());
    EXPECT_EQ(kvm.used(), 0u);
  };
  EXPECT_GT(fail_each_allocation([&] { EXPECT_TRUE(kvm.prepare({.added = added})); }, nothing), 0);
  EXPECT_GT(fail_each_allocation([&] { EXPECT_TRUE(kvm.add(all)); }, nothing), 0);
  EXPECT_EQ(fail_each_allocation([&] { EXPECT_TRUE(kvm.remove(all)); }, [] {}), 0);
}

TEST_F(KvmListenerTest, APieceThatKvmDoesNotLetGoKeepsItsMemoryUntilItDoes) {
  KvmMemslots kvm = make();
  auto region = named("split", 8_GiB, split_size);
  const std::weak_ptr<const MemoryRegion> watched = region;
  fail_all_from(1);  // the second piece, and taking the first back
  EXPECT_THAT(kvm.add(MemorySection(std::move(region))), HasError(Errc::os));
  EXPECT_THAT(slots, SizeIs(1));
  ASSERT_FALSE(watched.expired()) << "KVM has a slot of it";
  const MemorySection next(named("next", 8_GiB, 1_MiB));
  EXPECT_THAT(kvm.add(next), HasError(Errc::overlap)) << "still refused";
  VMSPACE_EXPECT_OK(kvm.check_invariants());

  fail_from.reset();
  VMSPACE_ASSERT_OK(kvm.add(next));
  EXPECT_TRUE(watched.expired());
  EXPECT_THAT(slots, ElementsAre(Pair(testing::_, Field(&Slot::host_address, host_of(next)))));
  EXPECT_EQ(kvm.used(), 1u);
}

TEST_F(KvmListenerTest, MemoryOfASlotThatKvmKeepsStaysMappedForGood) {
  std::vector<std::weak_ptr<const MemoryRegion>> watched;
  const auto add_one = [&](KvmMemslots& kvm, std::uint64_t at) {
    auto region = named("dimm", at, 1_MiB);
    watched.push_back(region);
    VMSPACE_ASSERT_OK(kvm.add(MemorySection(std::move(region))));
  };
  KvmMemslots kvm = make();
  add_one(kvm, 8_GiB);
  add_one(kvm, 9_GiB);
  fail_next(1);
  kvm = make();  // as destruction
  EXPECT_TRUE(watched[0].expired());
  EXPECT_FALSE(watched[1].expired()) << "the guest still has it";
  {
    KvmMemslots other = make();
    add_one(other, 10_GiB);
    fail_next(0);
  }
  EXPECT_FALSE(watched[2].expired());
  EXPECT_THAT(slots, SizeIs(2));
}

TEST_F(KvmListenerTest, MovesWithItsSections) {
  KvmMemslots first = make();
  VMSPACE_ASSERT_OK(first.add(all));
  KvmMemslots kvm = std::move(first);
  EXPECT_THAT(first.prepare({}), HasError(Errc::bad_state));
  EXPECT_THAT(first.add(part), HasError(Errc::bad_state));
  EXPECT_THAT(first.remove(all), HasError(Errc::bad_state));
  MemoryListener& listener = kvm;
  VMSPACE_EXPECT_OK(listener.remove(all));
  EXPECT_THAT(slots, IsEmpty());
  first = std::move(kvm);
  VMSPACE_EXPECT_OK(first.add(all));
}

/// Sections whose dirty log is on, of a region that tracks.
class KvmListenerLogTest : public KvmListenerTest {
 protected:
  static std::vector<DirtyRange> harvest(const MemoryRegion& region) {
    auto ranges = region.dirty().harvest();
    VMSPACE_EXPECT_OK(ranges);
    return *ranges;
  }

  void add_logged(KvmMemslots& kvm, const MemorySection& section) {
    VMSPACE_ASSERT_OK(section.region()->dirty().enable());
    VMSPACE_ASSERT_OK(kvm.add(section));
    VMSPACE_ASSERT_OK(kvm.start_dirty_log(section.guest_range()));
  }
};

TEST_F(KvmListenerLogTest, RemovingASectionBringsItsLogToTheRegion) {
  KvmMemslots kvm = make();
  add_logged(kvm, part);
  guest_writes(base + 64_KiB);
  guest_writes(base + 192_KiB - 1);
  VMSPACE_ASSERT_OK(kvm.remove(part));
  EXPECT_THAT(harvest(*ram), ElementsAre(DirtyRange{64_KiB, page_size},
                                         DirtyRange{192_KiB - page_size, page_size}));
}

TEST_F(KvmListenerLogTest, ARegionThatDoesNotTrackAndALogThatIsOffAreLeftAlone) {
  KvmMemslots kvm = make();
  VMSPACE_ASSERT_OK(kvm.add(all));
  VMSPACE_ASSERT_OK(kvm.start_dirty_log(all.guest_range()));
  guest_writes(base);
  VMSPACE_ASSERT_OK(kvm.remove(all));
  EXPECT_EQ(fetches, 0) << "nobody is there to be told";
  VMSPACE_ASSERT_OK(ram->dirty().enable());
  VMSPACE_ASSERT_OK(kvm.add(all));
  VMSPACE_ASSERT_OK(kvm.remove(all));
  EXPECT_EQ(fetches, 0);
  EXPECT_THAT(harvest(*ram), IsEmpty());
}

TEST_F(KvmListenerLogTest, AllOfASectionIsDirtyWhenItsLogCanNotBeFetched) {
  KvmMemslots kvm = make();
  const std::vector<DirtyRange> all_of_it{{64_KiB, 128_KiB}};
  add_logged(kvm, part);
  fail_fetch = 0;
  VMSPACE_ASSERT_OK(kvm.remove(part));
  EXPECT_EQ(harvest(*ram), all_of_it);

  add_logged(kvm, part);
  test::granted = 0;  // and remove() does not throw
  const auto removed = kvm.remove(part);
  test::granted = -1;
  VMSPACE_ASSERT_OK(removed);
  EXPECT_EQ(harvest(*ram), all_of_it);
}

TEST_F(KvmListenerLogTest, NothingIsLostWhenKvmRefusesToDeleteASlot) {
  const auto region = named("split", 8_GiB, split_size);
  const MemorySection split(region);
  KvmMemslots kvm = make();
  add_logged(kvm, split);
  for (int k = 0; k < 2; ++k) {
    guest_writes(8_GiB + 7 * page_size);
    guest_writes(8_GiB + largest);
    fail_next(k);
    const auto refused = kvm.remove(split);
    ASSERT_THAT(refused, HasError(Errc::os));
    EXPECT_THAT(refused.error().message(), HasSubstr("KvmMemslots::remove: \"split\""));
    EXPECT_THAT(slots, SizeIs(2));
    EXPECT_THAT(harvest(*region),
                ElementsAre(DirtyRange{7 * page_size, page_size}, DirtyRange{largest, page_size}));
  }
  guest_writes(8_GiB + largest + page_size);
  VMSPACE_ASSERT_OK(kvm.remove(split));
  EXPECT_THAT(harvest(*region), ElementsAre(DirtyRange{0, largest},  // deleted and set again
                                            DirtyRange{largest + page_size, page_size}));
}

TEST_F(KvmListenerLogTest, ALogThatIsOnInPartMakesAllOfTheSectionDirty) {
  const auto region = named("split", 8_GiB, split_size);
  const MemorySection split(region);
  KvmMemslots kvm = make();
  VMSPACE_ASSERT_OK(region->dirty().enable());
  VMSPACE_ASSERT_OK(kvm.add(split));
  fail_all_from(1);  // the second piece, and switching the first back
  EXPECT_THAT(kvm.start_dirty_log(split.guest_range()), HasError(Errc::os));
  fail_from.reset();
  VMSPACE_ASSERT_OK(kvm.remove(split));
  EXPECT_THAT(harvest(*region), ElementsAre(DirtyRange{0, split_size}));
}

/// A gate for vCPUs that there are none of.
class NoVcpus final : public VmGate {
 public:
  Result<void> pause(const MemoryChange&) override { return {}; }
  void resume() noexcept override {}
};

// KVM changes the size of no slot: the old one is deleted, and another one created.
TEST_F(KvmListenerTest, AResizedRegionHasAnotherSlotWhicheverCallIsRefused) {
  const auto memory = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
  VMSPACE_ASSERT_OK(memory.set_gate(std::make_shared<NoVcpus>()));
  VMSPACE_ASSERT_OK(memory.add_listener(std::make_shared<KvmMemslots>(make())));
  const auto backing = Backing::open({.source = MemorySource::shmem}, 4_MiB).value();
  auto region = memory.plug({.name = "dimm",
                             .base = GuestAddress(base),
                             .size = 2_MiB,
                             .backing = {.source = MemorySource::shmem}},
                            {.backing = backing});
  ASSERT_THAT(region, IsOk());
  int refused = 0;
  for (const std::uint64_t size : {4_MiB, 1_MiB}) {
    for (int k = 0;; ++k) {
      const auto before = slots;
      fail_next(k);
      const auto resized = memory.resize((*region)->shared_description(), size);
      fail_change.reset();
      if (resized) {
        region = resized;
        break;
      }
      ++refused;
      EXPECT_THAT(resized, HasError(Errc::os));
      EXPECT_EQ(slots, before);
    }
    EXPECT_THAT(slots, ElementsAre(Pair(0u, Slot{0, *Range::from_base_size(base, size),
                                                 host_of(MemorySection(*region))})));
  }
  EXPECT_GE(refused, 4) << "deleting and creating, each time";
}

}  // namespace
}  // namespace vmspace::kvm_listener_test
