// SPDX-License-Identifier: Apache-2.0
//
// Small guests for tests.

#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/dirty_tracking.hpp"
#include "vmspace/memory/guest_memory.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::test {

inline constexpr std::uint64_t page = 4096;
inline constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

inline GuestAddress at(std::uint64_t address) {
  return GuestAddress(address);
}

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
  VMSPACE_EXPECT_OK(description);
  auto mapped = MemoryRegion::map(*description);
  VMSPACE_EXPECT_OK(mapped);
  return *mapped;
}

inline GuestMemory guest(std::initializer_list<RegionSpec> specs) {
  std::vector<MemoryRegionPtr> regions;
  for (const RegionSpec& spec : specs)
    regions.push_back(region(spec));
  auto memory = GuestMemory::from_regions(std::move(regions));
  VMSPACE_EXPECT_OK(memory);
  return *memory;
}

inline Result<MemoryRegionPtr> resized(const MemoryRegionPtr& region, std::uint64_t size) {
  RegionOptions options = region->description().options();
  options.size = size;
  auto description = AddressSpaceRegion::make(std::move(options));
  if (!description) return fail(description.error());
  return region->with_size(*std::move(description));
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
  VMSPACE_EXPECT_OK(ok);
  return bytes;
}

/// Two adjacent regions, a gap of two pages, a read-only one, one that may not be accessed, and the
/// last page of the address space:
///
///   0x10000 ....rr ....rr|....  gap  ....oo ....xx     ...  last page
///           first  second            rom    none
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

/// The guest while it tracks dirty pages.
class TrackedGuest : public Guest {
 protected:
  void SetUp() override { ASSERT_THAT(enable_dirty_tracking(memory), IsOk()); }

  std::vector<GuestRange> harvest() {
    auto ranges = harvest_dirty(memory);
    VMSPACE_EXPECT_OK(ranges);
    return *ranges;
  }

  static GuestRange pages(std::uint64_t base, std::uint64_t count) {
    return {at(base), count * page};
  }
};

}  // namespace vmspace::test
