// SPDX-License-Identifier: Apache-2.0
//
// Small guests for tests.

#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/guest_memory.hpp"

namespace vmspace::testing {

inline constexpr std::uint64_t page = 4096;

struct RegionSpec {
  std::uint64_t base;
  std::uint64_t size;
  Protection protection = Protection::read_write;
  MemorySource source = MemorySource::anon;
};

inline MemoryRegionPtr region(const RegionSpec& spec) {
  auto description = AddressSpaceRegion::make({.name = "test",
                                               .base = GuestAddress(spec.base),
                                               .size = spec.size,
                                               .backing = {.source = spec.source},
                                               .protection = spec.protection});
  EXPECT_TRUE(description) << description.error().message();
  auto mapped = MemoryRegion::map(*description);
  EXPECT_TRUE(mapped) << mapped.error().message();
  return *mapped;
}

inline GuestMemory guest(std::initializer_list<RegionSpec> specs) {
  std::vector<MemoryRegionPtr> regions;
  for (const RegionSpec& spec : specs)
    regions.push_back(region(spec));
  auto memory = GuestMemory::from_regions(std::move(regions));
  EXPECT_TRUE(memory) << memory.error().message();
  return *memory;
}

/// `size` bytes that depend on their place and on `seed`, none of them 0.
inline std::vector<std::byte> pattern(std::size_t size, unsigned seed = 1) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) {
    bytes[i] = static_cast<std::byte>((i * 7 + i / 251 + seed) % 255 + 1);
  }
  return bytes;
}

/// All the bytes of a range that can be read.
inline std::vector<std::byte> contents(const GuestMemory& memory, std::uint64_t base,
                                       std::uint64_t size) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(size));
  const auto ok = memory.read_slice(GuestAddress(base), bytes);
  EXPECT_TRUE(ok) << ok.error().message();
  return bytes;
}

}  // namespace vmspace::testing
