// SPDX-License-Identifier: Apache-2.0
//
// Two writers and the readers of one address space, on all cores.

#include <algorithm>
#include <array>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/address_space.hpp"
#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::address_space_stress_test {
namespace {

using namespace literals;

constexpr std::uint64_t writers = 2;
constexpr std::uint64_t regions_per_writer = 1000;

/// The place of a writer's i-th region; those of both alternate.
GuestAddress place(std::uint64_t writer, std::uint64_t i) {
  return GuestAddress(4_GiB + (i * writers + writer) * 2_MiB);
}

/// The number that a region has as its owner: of its writer, or of the round it was inserted in.
std::uint64_t number_of(const AddressSpaceRegion& region) {
  return std::stoull(region.owner());
}

/// Whether a space is one that existed: of each writer the first so many regions, as many in all as
/// there were publications.
bool existed(const AddressSpaceBase& space, std::uint64_t generation) {
  std::array<std::uint64_t, writers> count{};
  for (const AddressSpaceRegionPtr& region : space) {
    const std::uint64_t writer = number_of(*region);
    if (region->base() != place(writer, count[writer])) return false;
    ++count[writer];
  }
  return space.size() == generation - 1;
}

TEST(AddressSpaceStress, TwoWritersLoseNothingAndReadersSeeOnlyStatesThatExisted) {
  const AddressSpace space = *AddressSpace::create(*AddressSpaceLayout::x86_64({.phys_bits = 46}));
  std::atomic<std::uint64_t> writing{writers};
  std::atomic<bool> sound{true};
  std::vector<std::thread> threads;
  const unsigned readers = std::max(2U, std::thread::hardware_concurrency());
  for (unsigned r = 0; r < readers; ++r) {
    threads.emplace_back([&, r] {
      auto reader = space.reader();
      std::uint64_t last = 0;
      for (std::uint64_t round = 0; writing > 0 || round < 10; ++round) {
        const AddressSpaceBase& seen = reader.current();
        const std::uint64_t generation = reader.generation();
        if (generation < last) sound = false;
        if (generation != last && !existed(seen, generation)) sound = false;
        last = generation;
        // What a vCPU does: look an address up, let go, run the guest.
        const std::uint64_t i = round % regions_per_writer;
        const AddressSpaceRegion* region = seen.find_region(place(r % writers, i));
        if (region != nullptr && region->base() != place(r % writers, i)) sound = false;
        if (round % 4 == r % 4) reader.park();
      }
    });
  }
  for (std::uint64_t w = 0; w < writers; ++w) {
    threads.emplace_back([&, w, own = space] {
      for (std::uint64_t i = 0; i < regions_per_writer; ++i) {
        const auto ok = own.insert_region({.name = "dimm " + std::to_string(i),
                                           .base = place(w, i),
                                           .size = 2_MiB,
                                           .owner = std::to_string(w)});
        if (!ok) sound = false;
      }
      --writing;
    });
  }
  for (auto& thread : threads)
    thread.join();
  EXPECT_TRUE(sound);
  EXPECT_EQ(space.snapshot()->size(), writers * regions_per_writer);
  EXPECT_EQ(space.generation(), writers * regions_per_writer + 1);
  EXPECT_TRUE(existed(*space.snapshot(), space.generation()));
  VMSPACE_EXPECT_OK(space.snapshot()->check_invariants());
}

// Hotplug under load: a region is taken out, nobody sees it any more, and it comes back elsewhere.
TEST(AddressSpaceStress, AfterWaitReleasedNobodySeesWhatWasRemoved) {
  constexpr int rounds = 200;
  const AddressSpace space = *AddressSpace::create(*AddressSpaceLayout::x86_64({.phys_bits = 46}));
  ASSERT_THAT(
      space.insert_region({.name = "dimm", .base = place(0, 0), .size = 2_MiB, .owner = "0"}),
      IsOk());
  // Plain numbers: what a vCPU reads, and the main thread changes once nobody should look any more.
  std::array<int, rounds + 1> contents{};
  std::atomic<bool> done{false};
  std::atomic<bool> sound{true};
  std::vector<std::thread> vcpus;
  for (int v = 0; v < 2; ++v) {
    vcpus.emplace_back([&] {
      auto reader = space.reader();
      while (!done) {
        for (const AddressSpaceRegionPtr& region : reader.current()) {
          if (contents[number_of(*region)] != 0) sound = false;
        }
        reader.park();
      }
    });
  }
  for (std::uint64_t round = 0; round < rounds; ++round) {
    ASSERT_THAT(space.transact([&](AddressSpaceBase& draft) -> Result<void> {
      const auto removed = VMSPACE_TRY(draft.remove_region(place(0, round)));
      RegionOptions options = removed->options();
      options.base = place(0, round + 1);
      options.owner = std::to_string(round + 1);
      VMSPACE_TRY(draft.insert_region(std::move(options)));
      return {};
    }),
                IsOk());
    ASSERT_THAT(space.wait_released(std::chrono::minutes(10)), IsOk());
    contents[round] = 1;
  }
  done = true;
  for (auto& vcpu : vcpus)
    vcpu.join();
  EXPECT_TRUE(sound);
}

}  // namespace
}  // namespace vmspace::address_space_stress_test
