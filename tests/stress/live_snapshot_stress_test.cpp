// SPDX-License-Identifier: Apache-2.0
//
// Snapshots of memory that several threads write to without end, one snapshot after another, while
// another thread discards pages and asks how far it is: each holds its instant.

#include <array>
#include <atomic>
#include <cstdint>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/snapshot/live_snapshot.hpp"
#include "vmspace/testing.hpp"

#include "snapshot/live_support.hpp"

namespace vmspace::live_snapshot_stress_test {
namespace {

using namespace test;
using ::testing::Pair;

constexpr std::uint64_t size = 8_MiB;
constexpr std::uint64_t stamped = 6_MiB;  // the rest is filled, and discarded

class LiveSnapshotStress : public ::testing::TestWithParam<MemorySource> {};

TEST_P(LiveSnapshotStress, EachHoldsItsInstant) {
  constexpr int snapshots = 4;
  const GuestMemory memory = guest_of({.name = "", .backing = {.source = GetParam()}}, size);
  const MemoryMapping& mapping = memory.regions().front()->mapping();
  const GuestRange discarded{GuestAddress(base_of(memory).value() + stamped), size - stamped};
  Stampers stampers(memory, stamped / page);
  for (int i = 0; i < snapshots; ++i) {
    const TempFile file;
    // While it is prepared, too.
    std::jthread discarder([&](const std::stop_token& stop) {
      while (!stop.stop_requested()) {
        VMSPACE_EXPECT_OK(mapping.discard(stamped, page));
        std::this_thread::yield();
      }
    });
    // A small buffer that is often full, and a large one that never is.
    PREPARE_OR_SKIP(snapshot, memory, file.fd(),
                    {.buffer = i % 2 == 0 ? 4 * page : size, .peers_stopped = true});
    discarder.request_stop();
    discarder.join();
    ASSERT_TRUE(memory.fill(discarded, static_cast<std::byte>(i + 1)));
    stampers.wait_for(2'000);
    Stampers::Stamps instant;
    {
      const auto paused = stampers.pause();
      VMSPACE_ASSERT_OK(snapshot.take());
      instant = stampers.stamps();
    }
    std::thread other([&] {
      for (std::uint64_t at = size; at > stamped; at -= 64 * page)
        VMSPACE_EXPECT_OK(mapping.discard(at - 64 * page, 64 * page));
      while (!snapshot.is_done()) {
        EXPECT_LE(snapshot.statistics().saved_by_fault, size);
        std::this_thread::yield();
      }
    });
    const auto id = snapshot.wait();
    other.join();
    ASSERT_THAT(id, IsOk());
    const GuestMemory again = restored(memory, file.fd());
    Stampers::Stamps found = stamps_in(again);
    for (auto& stamps : found)
      stamps.resize(stamped / page);
    for (auto& stamps : instant)
      stamps.resize(stamped / page);
    EXPECT_THAT(newer_and_older(found, instant), Pair(0, 0));
    EXPECT_EQ(contents(again, discarded.base.value(), discarded.size),
              std::vector<std::byte>(discarded.size, static_cast<std::byte>(i + 1)));
  }
}

TEST_P(LiveSnapshotStress, GivingUpLeavesTheWritersAlone) {
  constexpr int snapshots = 6;
  const GuestMemory memory = guest_of({.name = "", .backing = {.source = GetParam()}}, size);
  Stampers stampers(memory, size / page);
  for (int i = 0; i < snapshots; ++i) {
    const TempFile file;
    PREPARE_OR_SKIP(snapshot, memory, file.fd(), {.buffer = 4 * page, .peers_stopped = true});
    VMSPACE_ASSERT_OK(snapshot.take());
    stampers.wait_for(static_cast<std::uint64_t>(i) * 50);
  }
  stampers.wait_for(2'000);
}

INSTANTIATE_TEST_SUITE_P(KindsOfMemory, LiveSnapshotStress,
                         ::testing::Values(MemorySource::anon, MemorySource::shmem),
                         [](const auto& tested) { return std::string(name_of(tested.param)); });

}  // namespace
}  // namespace vmspace::live_snapshot_stress_test
