// SPDX-License-Identifier: Apache-2.0
//
// Devices that read through translations while these are taken back. What was taken back is overwritten
// at once: no device may ever see that.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/memory/iommu_view.hpp"

#include "memory/guest_support.hpp"

namespace vmspace::test::iommu_view_stress_test {
namespace {

using namespace std::chrono_literals;

constexpr int devices = 3;
constexpr int rounds = 1000;
constexpr std::uint64_t ram = 0x10000;
constexpr std::uint64_t iova = 0x7000;
constexpr std::uint64_t good = 0x1111'2222'3333'4444;
constexpr std::uint64_t taken_back = ~std::uint64_t{0};

/// The driver's memory: one of two pages is the device's at a time.
struct Pages {
  GuestMemory memory = guest({{ram, 2 * page}});

  void set(std::uint64_t which, std::uint64_t value) const {
    for (std::uint64_t i = 0; i < 64; i += 8)
      VMSPACE_EXPECT_OK(memory.write(at(ram + which * page + i), value));
  }
};

/// Reads in sections, as a device reads requests, until told to end; whether all that was read was
/// the device's.
bool read_until(const std::atomic<bool>& end, IoTlb tlb, const GuestMemory& memory,
                std::atomic<std::uint64_t>& hits) {
  bool sound = true;
  auto reader = tlb.reader();
  while (!end) {
    std::this_thread::yield();  // outside of a section
    IommuView view(reader, memory);
    const GuestRange request[] = {{at(iova), 16}, {at(iova + 32), 16}};
    auto in = view.reader(request);
    const auto first = view.read<std::uint64_t>(at(iova + 8));
    if (first) ++hits;
    std::this_thread::yield();  // the cursor is good until the section ends
    sound = sound && first.value_or(good) == good;
    while (in && in->remaining() != 0)
      sound = in->read<std::uint64_t>().value_or(good) == good && sound;
  }
  return sound;
}

void run(IoTlb tlb, const Pages& pages, std::atomic<std::uint64_t>& hits, auto move_to) {
  pages.set(0, good);
  pages.set(1, taken_back);
  std::atomic<bool> end{false};
  std::atomic<int> sound{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < devices; ++i) {
    threads.emplace_back([&] { sound += read_until(end, tlb, pages.memory, hits) ? 1 : 0; });
  }
  for (std::uint64_t round = 1; round <= rounds; ++round) {
    const std::uint64_t next = round % 2;
    pages.set(next, good);
    move_to(next);
    pages.set(1 - next, taken_back);
    // So that devices are in the middle of something in each round.
    const std::uint64_t before = hits;
    while (hits < before + devices)
      std::this_thread::yield();
  }
  end = true;
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(sound, devices);
  EXPECT_GT(hits, 0U);
  VMSPACE_EXPECT_OK(tlb.check_invariants());
}

TEST(IommuViewStress, NothingIsReadThroughATranslationThatWasTakenBack) {
  const Pages pages;
  auto tlb = *IoTlb::make();
  std::atomic<std::uint64_t> hits{0};
  VMSPACE_EXPECT_OK(tlb.update({.iova = at(iova), .guest = {at(ram), page}}));
  run(tlb, pages, hits, [&](std::uint64_t next) {
    VMSPACE_EXPECT_OK(tlb.invalidate({at(iova), page}, 60s));
    VMSPACE_EXPECT_OK(tlb.update({.iova = at(iova), .guest = {at(ram + next * page), page}}));
  });
}

TEST(IommuViewStress, NorThroughOneThatWasAskedForMeanwhile) {
  const Pages pages;
  std::atomic<std::uint64_t> current{0};  // the IOMMU's own table
  auto tlb = *IoTlb::make({.on_miss = [&](GuestAddress, Access) -> Result<IoTlbEntry> {
    const std::uint64_t which = current;
    std::this_thread::yield();  // so that it is old by the time it arrives
    return IoTlbEntry{.iova = at(iova), .guest = {at(ram + which * page), page}};
  }});
  std::atomic<std::uint64_t> hits{0};
  run(tlb, pages, hits, [&](std::uint64_t next) {
    current = next;
    VMSPACE_EXPECT_OK(tlb.invalidate({at(iova), page}, 60s));
  });
}

}  // namespace
}  // namespace vmspace::test::iommu_view_stress_test
