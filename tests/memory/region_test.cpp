// SPDX-License-Identifier: Apache-2.0

#include "vmspace/memory/region.hpp"

#include <gtest/gtest.h>

#include "vmspace/literals.hpp"

namespace vmspace {
namespace {

using namespace literals;

AddressSpaceRegion ram(BackingSpec backing, std::uint64_t size = 1_MiB) {
  return *AddressSpaceRegion::make(
      {.name = "ram", .base = GuestAddress(4_GiB), .size = size, .backing = std::move(backing)});
}

TEST(MemoryRegion, MapsAnonymousMemoryAndMemfd) {
  for (const auto source : {MemorySource::anon, MemorySource::shmem}) {
    const auto description = ram({.source = source});
    auto region = MemoryRegion::map(description);
    ASSERT_TRUE(region) << region.error().message();
    EXPECT_EQ((*region)->description(), description);
    EXPECT_EQ((*region)->base(), GuestAddress(4_GiB));
    EXPECT_EQ((*region)->last_addr(), GuestAddress(4_GiB + 1_MiB - 1));
    (*region)->host_base()[1_MiB - 1] = std::byte{7};
    EXPECT_EQ((*region)->backing().descriptor() >= 0, source == MemorySource::shmem);
  }
}

}  // namespace
}  // namespace vmspace
