// SPDX-License-Identifier: Apache-2.0

#include "vmm/vm_memory_support.hpp"

namespace vmspace::vm_memory_adopt_test {
namespace {

using namespace test;

class VmMemoryAdopt : public VmMemoryTest {};

TEST_F(VmMemoryAdopt, GoesOnWithTheMemoryThatItWasGiven) {
  const AddressSpaceBase space = planned();
  const auto mapped = GuestMemory::map(space);
  ASSERT_THAT(mapped, IsOk());
  ASSERT_THAT(mapped->write(GuestAddress(0x1000), std::uint64_t{42}), IsOk());
  const auto adopted = VmMemory::adopt({.space = space, .memory = *mapped});
  ASSERT_THAT(adopted, IsOk());
  EXPECT_EQ(adopted->map()->memory.regions()[0], mapped->regions()[0]);
  const auto dimm = adopted->plug({.name = "dimm0",
                                   .base = GuestAddress(8_MiB),
                                   .size = 2_MiB,
                                   .backing = {.source = MemorySource::shmem}});
  ASSERT_THAT(dimm, IsOk());
  EXPECT_THAT(adopted->map()->memory.read<std::uint64_t>(GuestAddress(0x1000)), IsOkAndHolds(42U));
  const AddressSpaceRegionPtr ram = mapped->regions()[0]->shared_description();
  EXPECT_THAT(adopted->unplug(ram, std::chrono::seconds(10)), IsOk());
  EXPECT_EQ(adopted->map()->memory.regions().size(), 1U);
}

TEST_F(VmMemoryAdopt, RefusesMemoryThatTheSpaceDoesNotDescribe) {
  const AddressSpaceBase space = planned();
  const auto mapped = GuestMemory::map(space);
  ASSERT_THAT(mapped, IsOk());
  // Not mapped.
  EXPECT_THAT(VmMemory::adopt({.space = space, .memory = {}}), HasError(Errc::invalid_argument));
  // Not described.
  const AddressSpaceBase empty(space.layout());
  EXPECT_THAT(VmMemory::adopt({.space = empty, .memory = *mapped}),
              HasError(Errc::invalid_argument));
  // Described as something else.
  AddressSpaceBase other(space.layout());
  ASSERT_THAT(other.insert_region(
                  {.name = "other", .size = 4_MiB, .backing = {.source = MemorySource::shmem}}),
              IsOk());
  EXPECT_THAT(VmMemory::adopt({.space = other, .memory = *mapped}),
              HasError(Errc::invalid_argument));
}

TEST_F(VmMemoryAdopt, TakesAnEqualDescriptionForTheSpacesOwn) {
  const AddressSpaceBase space = planned();
  const auto mapped = GuestMemory::map(space);
  ASSERT_THAT(mapped, IsOk());
  ASSERT_THAT(mapped->write(GuestAddress(0x1000), std::uint64_t{42}), IsOk());
  AddressSpaceBase alike(space.layout());
  for (const AddressSpaceRegionPtr& region : space)
    ASSERT_THAT(alike.insert_region(RegionOptions(region->options())), IsOk());
  const auto adopted = VmMemory::adopt({.space = alike, .memory = *mapped});
  ASSERT_THAT(adopted, IsOk());
  VMSPACE_EXPECT_OK(adopted->check_invariants());
  EXPECT_THAT(adopted->map()->memory.read<std::uint64_t>(GuestAddress(0x1000)), IsOkAndHolds(42U));
  const AddressSpaceRegionPtr ram = adopted->map()->memory.regions()[0]->shared_description();
  EXPECT_THAT(adopted->unplug(ram, std::chrono::seconds(10)), IsOk());
  EXPECT_TRUE(adopted->map()->memory.regions().empty());
}

}  // namespace
}  // namespace vmspace::vm_memory_adopt_test
