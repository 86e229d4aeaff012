// SPDX-License-Identifier: Apache-2.0
//
// Memory that was plugged, moved and unplugged ten thousand times leaves nothing behind: no
// descriptor, no mapping, no slot, no slot number, nothing that a device could still reach.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/testing.hpp"
#include "vmspace/vmm.hpp"

#include "vmm/fake_kvm.hpp"

namespace vmspace::vm_memory_leaks_test {
namespace {

using namespace literals;
using namespace std::chrono_literals;

/// What the kernel has for this process.
struct Held {
  std::size_t descriptors = 0;
  std::size_t memfds = 0;   ///< mappings of them
  std::uint64_t bytes = 0;  ///< of addresses, mapped or reserved

  static Held now() {
    Held held;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      static_cast<void>(entry);
      ++held.descriptors;
    }
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      std::uint64_t from = 0;
      std::uint64_t to = 0;
      char dash = 0;
      std::istringstream(line) >> std::hex >> from >> dash >> to;
      held.bytes += to - from;
      if (line.find("memfd:") != std::string::npos) ++held.memfds;
    }
    return held;
  }
};

class VmMemoryLeaks : public test::FakeKvm {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists("/proc/self/maps")) GTEST_SKIP() << "/proc is not mounted here";
    const auto map = [](void* context, const DmaMapping*) {
      ++*static_cast<int*>(context);
      return 0;
    };
    const auto unmap = [](void* context, const DmaMapping*) {
      --*static_cast<int*>(context);
      return 0;
    };
    auto target = DmaCallbacks::make({.context = &mapped_for_dma, .map = map, .unmap = unmap});
    ASSERT_THAT(target, IsOk());
    auto dma = DmaMappings::create(*std::move(target));
    auto memslots = KvmMemslots::create(vm_fd, numbers);
    ASSERT_THAT(dma, IsOk());
    ASSERT_THAT(memslots, IsOk());
    memory = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
    VMSPACE_ASSERT_OK(memory->set_gate(std::make_shared<VcpuGate>()));
    VMSPACE_ASSERT_OK(memory->add_listener(std::make_shared<KvmMemslots>(*std::move(memslots))));
    VMSPACE_ASSERT_OK(memory->add_listener(std::make_shared<DmaMappings>(*std::move(dma))));
    VMSPACE_ASSERT_OK(memory->add_listener(recorder));
    ASSERT_THAT(plug({.name = "ram", .base = GuestAddress(0), .size = 4_MiB}), IsOk());
  }

  [[nodiscard]] Result<AddressSpaceRegionPtr> plug(RegionOptions region) const {
    if (region.backing.source == MemorySource::none) region.backing.source = MemorySource::shmem;
    auto plugged = VMSPACE_TRY(memory->plug(std::move(region)));
    return plugged->shared_description();
  }

  /// Plugs a region, moves it and unplugs it: now on a memfd, now anonymous, now one that moves onto a
  /// part of itself.
  void cycle(int n) {
    struct Case {
      RegionOptions region;
      GuestAddress to;
    };
    // Anonymous memory is known by its size alone, which no heap comes to.
    const Case cases[] = {
        {{.name = "dimm", .base = dimm_base, .size = 2_MiB}, GuestAddress(4_GiB + 2_MiB)},
        {{.name = "large",
          .base = GuestAddress(5_GiB),
          .size = large_size,
          .backing = {.source = MemorySource::anon}},
         GuestAddress(7_GiB)},
        {{.name = "bar",
          .type = RegionType::device_memory,
          .base = GuestAddress(3_GiB),
          .size = 64_KiB},
         GuestAddress(3_GiB + 32_KiB)},
    };
    const Case& each = cases[n % 3];
    const auto plugged = plug(each.region);
    ASSERT_THAT(plugged, IsOk());
    const auto moved = memory->relocate(*plugged, each.to);
    ASSERT_THAT(moved, IsOk());
    VMSPACE_ASSERT_OK(memory->unplug(*moved, 60s));
    recorder->forget_calls();
  }
  /// The last listener refuses what the others have added.
  void refused_change() {
    recorder->refuse(1);  // after prepare()
    ASSERT_THAT(plug({.name = "dimm", .base = dimm_base, .size = 2_MiB}),
                HasError(Errc::bad_state));
  }

  static constexpr GuestAddress dimm_base{4_GiB};
  static constexpr std::uint64_t large_size = 1_GiB;
  int mapped_for_dma = 0;
  const RangePool numbers = RangePool::create("memory slots", {Range::of(0, 508)}).value();
  const std::shared_ptr<MemoryRecorder> recorder = std::make_shared<MemoryRecorder>();
  std::optional<VmMemory> memory;
};

TEST_F(VmMemoryLeaks, CyclesOfChangesLeaveNothingBehind) {
  for (int n = 0; n < 3; ++n)
    ASSERT_NO_FATAL_FAILURE(cycle(n));
  const Held before = Held::now();
  EXPECT_EQ(before.memfds, 1u) << "the RAM's";
  for (int n = 0; n < 10'000; ++n) {
    ASSERT_NO_FATAL_FAILURE(cycle(n));
    if (n % 50 != 0) continue;
    ASSERT_NO_FATAL_FAILURE(refused_change());
    auto log = memory->start_dirty_log();
    ASSERT_THAT(log, IsOk());
    ASSERT_NO_FATAL_FAILURE(cycle(n));
    EXPECT_THAT(log->harvest(), IsOk());
  }
  const Held after = Held::now();
  EXPECT_EQ(after.descriptors, before.descriptors);
  EXPECT_EQ(after.memfds, before.memfds);
  EXPECT_LT(after.bytes, before.bytes + large_size);
  EXPECT_EQ(slots.size(), 1u);
  EXPECT_EQ(numbers.holders().size(), 1u);
  EXPECT_EQ(mapped_for_dma, 1);
  VMSPACE_EXPECT_OK(recorder->check_equals(memory->map()->memory));
  VMSPACE_EXPECT_OK(memory->check_invariants());
}

TEST_F(VmMemoryLeaks, TheLastHandleLeavesNothingBehind) {
  ASSERT_NO_FATAL_FAILURE(cycle(0));
  const Held before = Held::now();
  memory.reset();
  const Held after = Held::now();
  EXPECT_EQ(after.descriptors, before.descriptors - 1) << "the RAM's memfd";
  EXPECT_EQ(after.memfds, 0u);
  EXPECT_EQ(slots.size(), 0u);
  EXPECT_EQ(numbers.holders().size(), 0u);
  EXPECT_EQ(open_descriptors, 0);
  EXPECT_EQ(mapped_for_dma, 0);
  EXPECT_TRUE(recorder->table().empty());
}

}  // namespace
}  // namespace vmspace::vm_memory_leaks_test
