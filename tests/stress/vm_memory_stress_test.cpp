// SPDX-License-Identifier: Apache-2.0
//
// Readers, two threads that plug and unplug, one that moves a region through the gate, and two dirty
// logs of one VmMemory, on all cores.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm.hpp"

namespace vmspace::vm_memory_stress_test {
namespace {

using namespace literals;
using namespace std::chrono_literals;

class Gate final : public VmGate {
 public:
  Result<void> pause(const MemoryChange&) override { return {}; }
  void resume() noexcept override {}
};

TEST(VmMemoryStress, ReadersSeeWholeMapsAndLogsMissNoWrite) {
  constexpr int rounds = 200;
  static constexpr GuestAddress still{8_GiB};
  const VmMemory memory = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
  VMSPACE_ASSERT_OK(memory.set_gate(std::make_shared<Gate>()));
  const auto listener = std::make_shared<MemoryRecorder>();
  VMSPACE_ASSERT_OK(memory.add_listener(listener));
  const RegionOptions options{
      .name = "still", .base = still, .size = 1_MiB, .backing = {.source = MemorySource::shmem}};
  VMSPACE_ASSERT_OK(memory.plug(options));

  std::atomic<int> changing{3};
  std::atomic<bool> sound{true};
  std::vector<std::thread> threads;
  for (std::uint64_t writer = 0; writer < 2; ++writer) {
    threads.emplace_back([&, writer] {
      for (int round = 0; round < rounds; ++round) {
        const auto plugged = memory.plug({.name = "dimm" + std::to_string(writer),
                                          .base = GuestAddress((16 + writer) * 1_GiB),
                                          .size = 64_KiB,
                                          .backing = {.source = MemorySource::shmem}});
        if (!plugged || !memory.unplug((*plugged)->shared_description(), 20s)) sound = false;
      }
      --changing;
    });
  }
  threads.emplace_back([&] {
    auto region = memory
                      .plug({.name = "bar",
                             .base = GuestAddress(32_GiB),
                             .size = 64_KiB,
                             .backing = {.source = MemorySource::shmem}})
                      .value()
                      ->shared_description();
    for (int round = 0; round < rounds; ++round) {
      // Onto a part of itself and back.
      const auto moved = memory.relocate(
          region, GuestAddress(32_GiB + (round % 2 == 0 ? std::uint64_t{32_KiB} : 0)));
      if (!moved) {
        sound = false;
        break;
      }
      region = *moved;
    }
    --changing;
  });
  // Writes a page with its number, and whoever harvests finds the page until it has seen the last.
  std::atomic<std::uint64_t> written{0};
  threads.emplace_back([&] {
    auto reader = memory.reader();
    for (std::uint64_t number = 1; changing > 0; ++number) {
      const VmMap& now = reader.current();
      if (!now.memory.write(still, number)) sound = false;
      written = number;
      // A map is whole: what is in the space is mapped.
      for (const AddressSpaceRegionPtr& region : now.space) {
        if (!now.memory.contains(region->guest_range())) sound = false;
      }
      reader.park();
    }
  });
  for (int log = 0; log < 2; ++log) {
    threads.emplace_back([&] {
      auto dirty = memory.start_dirty_log();
      if (!dirty) {
        sound = false;
        return;
      }
      std::uint64_t seen = 0;
      const auto look = [&] {
        const std::uint64_t before = written;
        const auto found = dirty->harvest();
        if (!found) sound = false;
        const bool reported = found && std::ranges::any_of(*found, [](const GuestRange& range) {
                                return range.contains(still);
                              });
        if (reported) {
          seen = memory.map()->memory.read<std::uint64_t>(still).value();
        } else if (seen != 0 && before > seen) {
          sound = false;  // written after it was last read, and not reported
        }
      };
      while (changing > 0)
        look();
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_TRUE(sound);
  VMSPACE_EXPECT_OK(memory.check_invariants());
  VMSPACE_EXPECT_OK(listener->check_equals(memory.map()->memory));
}

}  // namespace
}  // namespace vmspace::vm_memory_stress_test
