// SPDX-License-Identifier: Apache-2.0
//
// What the tests of MemoryRegion share: descriptions of regions to map.

#pragma once

#include <cstdint>
#include <utility>

#include <gtest/gtest.h>

#include "vmspace/memory/memory_region.hpp"

#include "host/host_support.hpp"

namespace vmspace::test {

inline AddressSpaceRegionPtr describe(RegionOptions options) {
  auto region = AddressSpaceRegion::make(std::move(options));
  if (!region) ADD_FAILURE() << region.error().message();
  return *region;
}

// A constant: clang 14 takes no consteval literal as a default argument.
inline constexpr std::uint64_t ram_size = 1_MiB;

inline AddressSpaceRegionPtr ram(BackingSpec backing, std::uint64_t size = ram_size) {
  return describe(
      {.name = "ram", .base = GuestAddress(4_GiB), .size = size, .backing = std::move(backing)});
}

}  // namespace vmspace::test
