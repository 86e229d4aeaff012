// SPDX-License-Identifier: Apache-2.0
//
// What tests of DirtyScan have in common: memory at one place, written and harvested by pages.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/snapshot/dirty_scan.hpp"
#include "vmspace/testing.hpp"

#include "memory/guest_support.hpp"

/// Starts a scan, or skips the test where kernel or rights are missing.
#define START_SCAN_OR_SKIP(name, memory)                                       \
  auto started_##name = DirtyScan::start(memory);                              \
  if (!started_##name && (started_##name.error().code == Errc::unsupported ||  \
                          started_##name.error().code == Errc::access_denied)) \
    GTEST_SKIP() << started_##name.error().message();                          \
  ASSERT_THAT(started_##name, IsOk());                                         \
  DirtyScan name = *std::move(started_##name)

namespace vmspace::test::scanned {

using test::page;

inline constexpr std::uint64_t base = 0x10'0000;
inline constexpr std::uint64_t size = 300 * page;

inline GuestRange pages(std::uint64_t first, std::uint64_t count) {
  return {GuestAddress(base + first * page), count * page};
}

inline std::vector<GuestRange> harvest(DirtyScan& scan) {
  auto ranges = harvest_dirty(scan);
  EXPECT_THAT(ranges, IsOk());
  return ranges ? *ranges : std::vector<GuestRange>{};
}

inline void write(const GuestMemory& memory, std::uint64_t first, std::uint64_t count = 1) {
  for (std::uint64_t i = first; i < first + count; ++i)
    VMSPACE_EXPECT_OK(memory.write(GuestAddress(base + i * page + 8), std::uint64_t{0x1234}));
}

}  // namespace vmspace::test::scanned
