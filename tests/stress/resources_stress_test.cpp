// SPDX-License-Identifier: Apache-2.0
//
// Devices come, move and go on all cores, while others look.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/resources.hpp"
#include "vmspace/testing.hpp"

#include "resources/test_ledger.hpp"

namespace vmspace::resources_stress_test {
namespace {

using namespace literals;

constexpr unsigned workers = 3;
constexpr unsigned rounds = 150;

/// What the threads of a test found wrong; the first is told.
class Verdict {
 public:
  void check(bool right, std::string_view what) {
    if (right) return;
    const std::lock_guard lock(mutex_);
    if (wrong_.empty()) wrong_ = what;
  }
  /// Checks that a result has a value, or an error with this code.
  template <typename T>
  void check(const Result<T>& result, std::optional<Errc> allowed = {}) {
    if (result || result.error().code == allowed) return;
    check(false, result.error().message());
  }
  [[nodiscard]] const std::string& wrong() const { return wrong_; }

 private:
  std::mutex mutex_;
  std::string wrong_;
};

/// Devices that are handed over to be destroyed on another thread.
class Handover {
 public:
  /// Beyond a few, they are destroyed here.
  void put(DeviceResources device) {
    constexpr std::size_t most = 8;
    const std::lock_guard lock(mutex_);
    if (devices_.size() < most) devices_.push_back(std::move(device));
  }
  std::optional<DeviceResources> take() {
    const std::lock_guard lock(mutex_);
    if (devices_.empty()) return std::nullopt;
    DeviceResources device = std::move(devices_.back());
    devices_.pop_back();
    return device;
  }

 private:
  std::mutex mutex_;
  std::vector<DeviceResources> devices_;
};

/// An AddressSpace that refuses every third change once it is made.
class RefusingLedger final : public test::TestLedger {
 public:
  using TestLedger::TestLedger;

  [[nodiscard]] Result<void> transact(const Edit& edit) const override {
    const auto changed = change(edit, [this] { return ++changes_ % 3 == 0; });
    std::this_thread::yield();  // others come before the caller knows
    return changed;
  }

 private:
  mutable std::atomic<unsigned> changes_ = 0;
};

class ResourcesStress : public testing::Test {
 protected:
  const AddressSpace space =
      AddressSpace::create(AddressSpaceLayout::x86_64({.phys_bits = 40}).value()).value();
  const RangePool slots = RangePool::create("slots", {Range::of(0, 508)}).value();
  const ResourceManager manager =
      ResourceManager::create(space, {.kvm_slots = slots, .mac_addresses = Range::of(1, 255)})
          .value();
  const std::vector<ResourceRequest> requests = {PciDevice{},
                                                 PioRange{.size = 16},
                                                 MmioRange{.size = 16_KiB},
                                                 MmioRange{.size = 64_KiB, .prefetchable = true},
                                                 LegacyIrq{.shared = true},
                                                 GenericIrq{},
                                                 MsiVectors{.count = 8},
                                                 MsixVectors{.count = 3},
                                                 KvmSlots{},
                                                 MacAddress{}};

  /// Checks that nothing is held any more, and nothing in the space.
  void expect_empty() const {
    VMSPACE_EXPECT_OK(manager.collect());
    VMSPACE_EXPECT_OK(manager.check_invariants());
    EXPECT_TRUE(manager.holders().empty());
    EXPECT_TRUE(manager.retired().empty());
    EXPECT_TRUE(space.snapshot()->empty());
    EXPECT_TRUE(space.snapshot()->parked().empty());
    EXPECT_TRUE(slots.holders().empty());
    for (const ResourceUsage& usage : manager.usage()) {
      if (usage.name == "mmio_high") continue;  // it has a hole
      EXPECT_EQ(usage.free, usage.total) << usage.name;
    }
  }
};

TEST_F(ResourcesStress, DevicesComeMoveAndGoOnAllThreadsAndNothingIsGivenTwice) {
  std::atomic<unsigned> working{workers};
  Verdict verdict;
  Handover handover;
  std::vector<std::thread> threads;
  for (unsigned w = 0; w < workers; ++w) {
    threads.emplace_back([&, w] {
      const GuestAddress shared{0xf000'0000};  // a place that all want
      for (unsigned round = 0; round < rounds; ++round) {
        const std::string name = "device " + std::to_string(w) + "." + std::to_string(round);
        const GuestAddress own{0xe000'0000 + w * 16_MiB + round * 16_KiB};
        auto device = manager.acquire(requests, name);
        verdict.check(device);
        if (!device) continue;
        verdict.check(manager.relocate({{&*device, 0, own}, {&*device, 1, std::nullopt}}));
        verdict.check(device->mmio()->base() == own && device->is_parked(ResourceKind::mmio, 1),
                      "moved and parked");
        const auto moved = manager.relocate({{&*device, 0, shared}});
        verdict.check(moved, Errc::overlap);
        verdict.check(device->mmio()->base() == (moved ? shared : own), "moved, or not");
        // A list that fails at its end, and gives back all that it had.
        const auto large = manager.acquire({LegacyIrq{.shared = true}, KvmSlots{.count = 5},
                                            MmioRange{.size = 64_KiB}, MmioRange{.size = 1_TiB}},
                                           name + " too large");
        verdict.check(large, Errc::no_space);
        switch (round % 3) {
          case 0: handover.put(*std::move(device)); break;
          case 1: verdict.check(device->release()); break;
          default: break;  // destroyed here
        }
      }
      --working;
    });
  }
  threads.emplace_back([&] {  // destroys what it is handed
    while (true) {
      const bool last = working == 0;
      const auto device = handover.take();
      if (!device && last) break;
      if (!device) std::this_thread::yield();
    }
  });
  threads.emplace_back([&] {  // lists what is held
    while (working > 0) {
      std::set<std::pair<ResourceKind, Range>> exclusive;
      for (const ResourceHolder& holder : manager.holders()) {
        verdict.check(!holder.owner.empty(), "somebody holds it");
        const bool is_number = holder.kind != ResourceKind::mmio;
        if (!is_number || holder.shared) continue;
        verdict.check(exclusive.emplace(holder.kind, holder.range).second, "one holds it");
      }
      static_cast<void>(manager.claims());
      static_cast<void>(manager.usage());
      static_cast<void>(manager.retired());
    }
  });
  threads.emplace_back([&] {  // a vCPU
    auto reader = space.reader();
    while (working > 0) {
      const AddressSpaceBase& seen = reader.current();
      std::uint64_t end = 0;
      for (const AddressSpaceRegionPtr& region : seen) {
        verdict.check(region->base().value() >= end && !region->owner().empty(), "in order");
        end = region->last_addr().value();
      }
      reader.park();
    }
  });
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(verdict.wrong(), "");
  expect_empty();
}

TEST_F(ResourcesStress, BridgesMoveAndGoWhileDevicesComeBehindThem) {
  std::atomic<unsigned> working{2};
  Verdict verdict;
  std::vector<std::thread> threads;
  threads.emplace_back([&] {  // plugs, moves and unplugs a bridge
    for (unsigned round = 0; round < rounds; ++round) {
      auto bridge = manager.acquire({BridgeWindow{.size = 1_MiB}}, "bridge");
      if (!bridge) {  // a device of the last one is there yet
        verdict.check(bridge, Errc::bad_state);
        std::this_thread::yield();
        continue;
      }
      for (const std::uint64_t base : {0xd000'0000, 0xd800'0000}) {
        verdict.check(
            manager.relocate({{&*bridge, 0, GuestAddress{base}, ResourceKind::bridge_window}}),
            Errc::out_of_bounds);
      }
    }
    --working;
  });
  threads.emplace_back([&] {  // plugs devices behind it
    for (unsigned round = 0; round < rounds * 3; ++round) {
      const auto device =
          manager.acquire({MmioRange{.size = 64_KiB, .bridge = "bridge"}, LegacyIrq{}}, "behind");
      verdict.check(device, Errc::not_found);
    }
    --working;
  });
  threads.emplace_back([&] {  // and beside it
    while (working > 0) {
      const auto device = manager.acquire(
          {MmioRange{.size = 512_KiB}, MmioRange{.size = 64_KiB, .parked = true}}, "beside");
      verdict.check(device);
    }
  });
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(verdict.wrong(), "");
  expect_empty();
}

TEST_F(ResourcesStress, BridgesAndDevicesGoTogetherWhileChangesAreRefused) {
  const auto refusing =
      ResourceManager::create(std::make_shared<RefusingLedger>(space), {.kvm_slots = slots})
          .value();
  // What the threads have last is judged when they have ended.
  std::optional<DeviceResources> bridge;
  std::optional<DeviceResources> behind;
  std::vector<DeviceResources> restored;
  const auto plug_bridge = [&] {
    bridge.reset();
    auto got = refusing.acquire({BridgeWindow{.size = 2_MiB}}, "bridge");
    if (!got) return;
    bridge = *std::move(got);
    for (const std::uint64_t base : {0xd000'0000, 0xd010'0000, 0xd000'0000}) {
      static_cast<void>(
          refusing.relocate({{&*bridge, 0, GuestAddress{base}, ResourceKind::bridge_window}}));
    }
  };
  const auto plug_device = [&] {
    behind.reset();
    auto got = refusing.acquire({MmioRange{.size = 64_KiB, .bridge = "bridge"}}, "behind");
    if (!got) return;
    behind = *std::move(got);
    const GuestAddress next{behind->mmio()->base().value() + 1_MiB};
    static_cast<void>(refusing.relocate({{&*behind, 0, next}}));
  };
  const std::vector<ResourceClaim> claims = {
      {"inner",
       BridgeWindow{.size = 1_MiB, .bridge = "bridge", .fixed = GuestAddress{0xd010'0000}}},
      {"deep", MmioRange{.size = 64_KiB, .bridge = "inner", .fixed = GuestAddress{0xd010'0000}}}};
  const auto restore = [&] {
    restored.clear();
    if (auto got = refusing.adopt(claims)) restored = *std::move(got);
  };
  for (unsigned round = 0; round < rounds; ++round) {
    const std::vector<std::function<void()>> calls = {plug_bridge, plug_device, restore};
    std::vector<std::thread> threads;
    for (const auto& call : calls) {
      threads.emplace_back([&call] {
        for (unsigned i = 0; i < 8; ++i)
          call();
      });
    }
    for (std::thread& thread : threads)
      thread.join();
    ASSERT_THAT(refusing.check_invariants(), IsOk()) << round;
  }
}

TEST_F(ResourcesStress, SlotsAreFreeOnceReleaseHasReturned) {
  const std::vector<ResourceRequest> long_list(200, GenericIrq{});
  std::atomic<bool> is_working{true};
  Verdict verdict;
  std::thread other([&] {  // has the manager most of the time
    while (is_working)
      verdict.check(manager.acquire(long_list, "other"));
  });
  for (unsigned round = 0; round < 50 * rounds; ++round) {
    auto device = manager.acquire({KvmSlots{.fixed = 7}}, "device");
    verdict.check(device);
    if (!device) break;
    verdict.check(device->release());
    verdict.check(slots.acquire_at(Range::point(7), "somebody else"));
  }
  is_working = false;
  other.join();
  EXPECT_EQ(verdict.wrong(), "");
  expect_empty();
}

TEST_F(ResourcesStress, ThoseWhoTakeRangesInOneOrderOrAnotherNeverWaitForEachOther) {
  // Lists with and without addresses, sets of moves of two devices, and destruction inside changes.
  Verdict verdict;
  std::vector<std::thread> threads;
  for (unsigned w = 0; w < workers; ++w) {
    threads.emplace_back([&, w] {
      const std::string name = std::to_string(w);
      for (unsigned round = 0; round < rounds; ++round) {
        std::optional<DeviceResources> a;
        std::optional<DeviceResources> b;
        if (auto got = manager.acquire({MmioRange{.size = 4_KiB}, LegacyIrq{.shared = true}},
                                       name + "a")) {
          a = *std::move(got);
        }
        if (auto got = manager.acquire({MmioRange{.size = 4_KiB}, KvmSlots{}}, name + "b")) {
          b = *std::move(got);
        }
        verdict.check(a && b, "two devices");
        if (!a || !b) continue;
        const GuestAddress a_base = a->mmio()->base();
        const GuestAddress b_base = b->mmio()->base();
        verdict.check(manager.relocate({{&*a, 0, b_base}, {&*b, 0, a_base}}));
        verdict.check(a->mmio()->base() == b_base && b->mmio()->base() == a_base, "swapped");
        verdict.check(space.transact([&](AddressSpaceBase&) -> Result<void> {
          a.reset();
          return {};
        }));
      }
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(verdict.wrong(), "");
  expect_empty();
}

}  // namespace
}  // namespace vmspace::resources_stress_test
