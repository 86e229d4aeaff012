// SPDX-License-Identifier: Apache-2.0
//
// Threads that ask what is mapped for DMA while another maps and unmaps.

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/memory/memory_region.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm/dma_callbacks.hpp"
#include "vmspace/vmm/dma_mappings.hpp"

namespace vmspace::dma_mappings_stress_test {
namespace {

using namespace literals;

TEST(DmaMappingsStress, QuestionsAreAnsweredWhileSectionsComeAndGo) {
  // What stays, what comes and goes, and a window that the target refuses.
  const auto region = [](std::uint64_t base, RegionType type) {
    return *MemoryRegion::map({.type = type,
                               .base = GuestAddress(base),
                               .size = 1_MiB,
                               .backing = {.source = MemorySource::anon}});
  };
  const MemorySection stays(region(0, RegionType::default_memory));
  const MemorySection moves(region(1_GiB, RegionType::default_memory));
  const MemorySection window(region(2_GiB, RegionType::device_memory));
  auto target = DmaCallbacks::make(
      {.map = [](void*, const DmaMapping* m) { return m->iova == 2_GiB ? -EFAULT : 0; },
       .unmap = [](void*, const DmaMapping*) { return 0; }});
  ASSERT_TRUE(target);
  auto dma = DmaMappings::create(*std::move(target));
  ASSERT_TRUE(dma);
  ASSERT_TRUE(dma->add(stays));

  std::atomic<bool> done{false};
  std::atomic<bool> sound{true};
  std::atomic<int> asked{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      while (!done) {
        if (!dma->is_mapped(stays.guest_range())) sound = false;
        if (dma->is_mapped({GuestAddress(3_GiB), 1_GiB})) sound = false;
        static_cast<void>(dma->is_mapped(moves.guest_range()));
        for (const UnmappedWindow& refused : dma->unmapped_windows()) {
          if (!(refused.section == window) || refused.why.os_errno != EFAULT) sound = false;
        }
        ++asked;
      }
    });
  }
  for (int round = 0; round < 2000 || asked < 100; ++round) {
    for (const MemorySection& section : {moves, window}) {
      if (!dma->add(section)) sound = false;
    }
    for (const MemorySection& section : {window, moves}) {
      if (!dma->remove(section)) sound = false;
    }
  }
  done = true;
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_TRUE(sound);
  VMSPACE_EXPECT_OK(dma->check_invariants());
}

// While a device has a page, nobody takes it away: what it wrote is what this process reads.
TEST(DmaMappingsStress, NothingIsDiscardedUnderADevice) {
  const MemoryRegionPtr region = *MemoryRegion::map(
      {.base = GuestAddress(0), .size = 64_KiB, .backing = {.source = MemorySource::shmem}});
  auto target = DmaCallbacks::make({.map = [](void*, const DmaMapping*) { return 0; },
                                    .unmap = [](void*, const DmaMapping*) { return 0; }});
  ASSERT_TRUE(target);
  auto dma = DmaMappings::create(*std::move(target));
  ASSERT_TRUE(dma);

  std::atomic<bool> done{false};
  std::atomic<int> discarded{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      while (!done) {
        if (region->mapping().discard(0, region->size())) ++discarded;
        std::this_thread::yield();
      }
    });
  }
  bool sound = true;
  for (int round = 1; round < 100; ++round) {
    const std::uint64_t offset = static_cast<std::uint64_t>(round) % 16 * 4_KiB;
    const MemorySection section(region, offset, 4_KiB);
    sound &= dma->add(section).has_value();
    std::atomic_ref<int> word(*reinterpret_cast<int*>(section.host_base()));
    word.store(round);
    std::this_thread::yield();
    sound &= word.load() == round;
    sound &= dma->remove(section).has_value();
    // On one processor the others might run only when this thread yields: once while nothing is mapped.
    const int before = discarded;
    while (discarded == before)
      std::this_thread::yield();
  }
  done = true;
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_TRUE(sound);
}

}  // namespace
}  // namespace vmspace::dma_mappings_stress_test
