// SPDX-License-Identifier: Apache-2.0
//
// KvmMemslots for the address space of system management mode, beside the one for the normal one.

#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/kvm_memslots.hpp"
#include "vmspace/vmm/vm_dirty_log.hpp"
#include "vmspace/vmm/vm_memory.hpp"

#include "vmm/fake_kvm.hpp"

namespace vmspace::kvm_address_space_test {
namespace {

using namespace literals;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Key;

constexpr std::uint32_t smm_slot = 1U << 16;  // the first of address space 1

class KvmAddressSpaceTest : public test::FakeKvm {
 protected:
  static KvmMemslots make_smm(std::optional<RangePool> numbers = {}) {
    auto memslots = KvmMemslots::create(vm_fd, std::move(numbers), KvmAddressSpace::smm);
    VMSPACE_EXPECT_OK(memslots);
    return *std::move(memslots);
  }

  static constexpr GuestRange low{GuestAddress(0), 64_KiB};
  static KvmMemory memory_at(std::uint64_t host_address) {
    return {.base = low.base, .size = low.size, .host_address = host(host_address)};
  }
};

TEST_F(KvmAddressSpaceTest, EachHasItsOwnSlotsAtTheSameAddresses) {
  KvmMemslots normal = make();
  KvmMemslots smm = make_smm();
  VMSPACE_ASSERT_OK(normal.set(memory_at(1_GiB)));
  VMSPACE_ASSERT_OK(smm.set(memory_at(2_GiB)));
  EXPECT_THAT(slots, ElementsAre(Key(0U), Key(smm_slot)));
  EXPECT_EQ(slots.at(smm_slot).host_address, 2_GiB);
  EXPECT_THAT(smm.slots(low), IsOkAndHolds(ElementsAre(KvmSlot{smm_slot, low})));
  VMSPACE_EXPECT_OK(smm.check_invariants());

  VMSPACE_ASSERT_OK(normal.clear(low));
  EXPECT_THAT(slots, ElementsAre(Key(smm_slot)));
  VMSPACE_ASSERT_OK(smm.clear(low));
  EXPECT_THAT(slots, IsEmpty());
}

TEST_F(KvmAddressSpaceTest, ThePoolHasTheNumbersWithoutTheAddressSpace) {
  const auto numbers = *RangePool::create("smm slots", {Range::of(3, 8)});
  KvmMemslots smm = make_smm(numbers);
  VMSPACE_ASSERT_OK(smm.set(memory_at(1_GiB)));
  EXPECT_THAT(slots, ElementsAre(Key(smm_slot + 3)));
  EXPECT_THAT(numbers.free_ranges(), ElementsAre(Range::of(4, 8)));
}

TEST_F(KvmAddressSpaceTest, AnErrorNamesTheSlotAsKvmKnowsIt) {
  KvmMemslots smm = make_smm();
  fail_next(0);
  const auto set = smm.set(memory_at(1_GiB));
  ASSERT_THAT(set, HasError(Errc::os));
  EXPECT_THAT(set.error().message(), HasSubstr("slot 65536"));
  EXPECT_EQ(smm.used(), 0U);
}

TEST_F(KvmAddressSpaceTest, LogsAreReadAndClearedInTheirOwn) {
  KvmMemslots normal = make();
  KvmMemslots smm = make_smm();
  KvmMemory memory = memory_at(1_GiB);
  memory.log_dirty = true;
  VMSPACE_ASSERT_OK(normal.set(memory));
  VMSPACE_ASSERT_OK(smm.set(memory));
  VMSPACE_ASSERT_OK(normal.enable_manual_protect());
  VMSPACE_ASSERT_OK(smm.enable_manual_protect());
  guest_writes(0, 0);
  guest_writes(page_size, 1);
  EXPECT_THAT(normal.read_dirty_log(low)->bits, ElementsAre(1U));
  const auto log = smm.read_dirty_log(low);
  ASSERT_THAT(log, IsOk());
  EXPECT_THAT(log->bits, ElementsAre(2U));
  VMSPACE_ASSERT_OK(smm.clear_dirty_log(*log));
  EXPECT_THAT(smm.fetch_dirty_log(low)->bits, ElementsAre(0U));
  EXPECT_THAT(normal.fetch_dirty_log(low)->bits, ElementsAre(1U));
}

TEST_F(KvmAddressSpaceTest, BothShowWhatAVmHasAndLogToOneDirtyLog) {
  const auto memory = *VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40}));
  const auto normal = std::make_shared<KvmMemslots>(make());
  const auto smm = std::make_shared<KvmMemslots>(make_smm());
  EXPECT_EQ(normal->name(), "kvm");
  EXPECT_EQ(smm->name(), "kvm smm");
  VMSPACE_ASSERT_OK(memory.add_listener(normal));
  VMSPACE_ASSERT_OK(memory.add_listener(smm));
  VMSPACE_ASSERT_OK(
      memory.plug({.name = "ram", .size = 64_KiB, .backing = {.source = MemorySource::anon}}));
  EXPECT_THAT(slots, ElementsAre(Key(0U), Key(smm_slot)));

  // What that mode alone sees.
  const GuestRange smram{GuestAddress(0xa0000), 64_KiB};
  VMSPACE_ASSERT_OK(
      smm->set({.base = smram.base, .size = smram.size, .host_address = host(1_GiB)}));
  EXPECT_THAT(slots, ElementsAre(Key(0U), Key(smm_slot), Key(smm_slot + 1)));

  auto log = memory.start_dirty_log();
  ASSERT_THAT(log, IsOk());
  guest_writes(0, 0);
  guest_writes(2 * page_size, 1);
  EXPECT_THAT(log->harvest(),
              IsOkAndHolds(ElementsAre(GuestRange{GuestAddress(0), page_size},
                                       GuestRange{GuestAddress(2 * page_size), page_size})));
}

TEST_F(KvmAddressSpaceTest, AKvmWithoutItSaysSo) {
  for (const int answer : {0, 1}) {  // 0 is a kernel that does not know the question
    address_spaces = answer;
    EXPECT_THAT(KvmMemslots::create(vm_fd, {}, KvmAddressSpace::smm), HasError(Errc::unsupported));
    EXPECT_THAT(KvmMemslots::create(vm_fd), IsOk());
  }
  address_spaces = -1;
  const auto memslots = KvmMemslots::create(vm_fd, {}, KvmAddressSpace::smm);
  ASSERT_THAT(memslots, HasError(Errc::os));
  EXPECT_EQ(memslots.error().os_errno, EPERM);
  EXPECT_EQ(open_descriptors, 0);
}

TEST_F(KvmAddressSpaceTest, AValueThatIsNoneIsRefused) {
  EXPECT_THAT(KvmMemslots::create(vm_fd, {}, static_cast<KvmAddressSpace>(2)),
              HasError(Errc::invalid_argument));
  EXPECT_EQ(open_descriptors, 0);
}

}  // namespace
}  // namespace vmspace::kvm_address_space_test
