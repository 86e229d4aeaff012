// SPDX-License-Identifier: Apache-2.0
//
// What the tests of AddressSpaceBase share: short names for what goes into a space, an example, and
// calls that must leave a space as it was.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::test {

using literals::operator""_KiB;
using literals::operator""_GiB;

inline AddressSpaceLayout pc() {
  return *AddressSpaceLayout::x86_64({.phys_bits = 46});
}

inline RegionOptions ram(std::uint64_t base, std::uint64_t size) {
  return {.name = "ram", .base = GuestAddress{base}, .size = size};
}

inline RegionOptions device(std::uint64_t base, std::uint64_t size) {
  return {.name = "device",
          .type = RegionType::device_memory,
          .base = GuestAddress{base},
          .size = size};
}

inline AddressSpaceRegionPtr made(RegionOptions options) {
  return *AddressSpaceRegion::make(std::move(options));
}

/// A pointer to a region that says this.
inline auto says(RegionOptions options) {
  return ::testing::Pointee(
      ::testing::Property("options", &AddressSpaceRegion::options, std::move(options)));
}

/// RAM at [0, 1 GiB), a device at 0xc000'0000, RAM at [4 GiB, 5 GiB).
inline AddressSpaceBase example() {
  AddressSpaceBase space(pc());
  VMSPACE_EXPECT_OK(space.insert_region(ram(4_GiB, 1_GiB)));
  VMSPACE_EXPECT_OK(space.insert_region(device(0xc000'0000, 64_KiB)));
  VMSPACE_EXPECT_OK(space.insert_region(ram(0, 1_GiB)));
  return space;
}

inline std::vector<std::uint64_t> bases(const AddressSpaceBase& space) {
  std::vector<std::uint64_t> all;
  for (const AddressSpaceRegionPtr& region : space)
    all.push_back(region->base().value());
  return all;
}

/// Runs a call that must fail, and checks that the space is what it was.
template <typename Call>
Error failing(AddressSpaceBase& space, Call call) {
  const AddressSpaceBase before = space;
  const auto result = call(space);
  EXPECT_FALSE(result);
  EXPECT_EQ(space, before);
  EXPECT_EQ(bases(space), bases(before));
  const auto sound = space.check_invariants();
  VMSPACE_EXPECT_OK(sound);
  return result ? Error{} : result.error();
}

}  // namespace vmspace::test
