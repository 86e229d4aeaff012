// SPDX-License-Identifier: Apache-2.0
//
// Memory runs out at every allocation that a call on a ResourceManager makes, and a ledger refuses
// changes at every point of them: numbers, owners, windows and regions are as they were.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>

#include "vmspace/base/try.hpp"

#include "faults/failing_new.hpp"
#include "resources/manager_state.hpp"
#include "resources/test_ledger.hpp"

namespace vmspace::resources_faults_test {
namespace {

using test::fail_each_allocation;
using test::one_of_each;
using test::State;
using test::state_of;
using namespace literals;

/// An AddressSpace that refuses changes when and as a test says.
class Ledger final : public test::TestLedger {
 public:
  enum class Fault { none, before, after, throws_before, throws_after, runs_out_after };

  using TestLedger::TestLedger;

  mutable Fault fault = Fault::none;
  mutable std::function<void()> between = {};  ///< runs once the edit is made, and not published

  /// What the last change would have made that came while another one was staged.
  mutable std::shared_ptr<const AddressSpaceBase> refused_space = {};

  [[nodiscard]] Result<void> transact(const Edit& edit) const override {
    // While another change is staged, as in a ledger that maps memory.
    if (reserved_ != nullptr) {
      AddressSpaceBase draft = *reserved_;
      VMSPACE_TRY(edit(draft));
      refused_space = std::make_shared<AddressSpaceBase>(std::move(draft));
      return refusal();
    }
    if (fault == Fault::before) return refusal();
    if (fault == Fault::throws_before) throw std::runtime_error("broken");
    return space().transact([&](AddressSpaceBase& draft) -> Result<void> {
      VMSPACE_TRY(edit(draft));
      if (between) {
        reserved_ = &draft;
        between();
        reserved_ = nullptr;
      }
      if (fault == Fault::after) return refusal();
      if (fault == Fault::throws_after) throw std::runtime_error("broken");
      if (fault == Fault::runs_out_after) throw std::bad_alloc();
      return {};
    });
  }

 private:
  mutable const AddressSpaceBase* reserved_ = nullptr;
};

/// Runs `body` with no allocation granted.
template <typename Body>
auto without_memory(Body body) {
  test::granted = 0;
  struct Guard {
    ~Guard() { test::granted = -1; }
  } guard;
  return body();
}

class ResourcesFaults : public test::ManagerTest {
 protected:
  /// Names that are too long to be kept inside of a string.
  static constexpr const char* name =
      "an owner whose name is too long to be kept inside of a string";

  /// Checks that `call` needs memory, and that each allocation of it that fails changes nothing.
  template <typename Call>
  void expect_strong_guarantee(Call call) const {
    const State before = state_of(observed);
    bool succeeded = false;  // a matcher would need memory, too
    const int failures = fail_each_allocation([&] { succeeded = call().has_value(); },
                                              [&] {
                                                EXPECT_TRUE(state_of(observed) == before);
                                                VMSPACE_EXPECT_OK(observed.check_invariants());
                                              });
    EXPECT_TRUE(succeeded);
    EXPECT_GT(failures, 3);
    VMSPACE_EXPECT_OK(observed.check_invariants());
  }
  /// Checks that `call` fails, or throws, and changes nothing, wherever the ledger refuses it.
  template <typename Call>
  void expect_undone(Call call) const {
    const State before = state_of(observed);
    for (const Ledger::Fault fault : {Ledger::Fault::before, Ledger::Fault::after}) {
      ledger->fault = fault;
      const auto result = call();
      EXPECT_THAT(result, HasError(Errc::timed_out));
      EXPECT_TRUE(state_of(observed) == before);
      VMSPACE_EXPECT_OK(observed.check_invariants());
    }
    for (const Ledger::Fault fault : {Ledger::Fault::throws_before, Ledger::Fault::throws_after}) {
      ledger->fault = fault;
      EXPECT_THROW(static_cast<void>(call()), std::runtime_error);
      EXPECT_TRUE(state_of(observed) == before);
      VMSPACE_EXPECT_OK(observed.check_invariants());
    }
    ledger->fault = Ledger::Fault::runs_out_after;
    EXPECT_THROW(static_cast<void>(call()), std::bad_alloc);
    EXPECT_TRUE(state_of(observed) == before);
    ledger->fault = Ledger::Fault::none;
    VMSPACE_EXPECT_OK(call());
    VMSPACE_EXPECT_OK(observed.check_invariants());
  }

  const std::shared_ptr<const Ledger> ledger = std::make_shared<Ledger>(space);
  const ResourceManager observed =
      ResourceManager::create(ledger, test::limits_with(slots)).value();
  // What is there already: a bridge with a device behind it, and lines that are shared.
  DeviceResources bridge =
      observed
          .acquire({BridgeWindow{.size = 2_MiB, .fixed = GuestAddress{low + 16_MiB}},
                    LegacyIrq{.fixed = 5, .shared = true}},
                   "bridge")
          .value();
  DeviceResources device =
      observed
          .acquire({MmioRange{.size = 64_KiB, .bridge = "bridge"},
                    MmioRange{.size = 64_KiB, .reach = MmioReach::below_4g},
                    MmioRange{.size = 64_KiB, .parked = true},
                    LegacyIrq{.fixed = 5, .shared = true}, KvmSlots{.count = 2}},
                   "device")
          .value();
  const std::vector<ResourceMove> moves = {
      {&bridge, 0, GuestAddress{low + 32_MiB}, ResourceKind::bridge_window},
      {&device, 0, GuestAddress{low + 32_MiB + 64_KiB}},
      {&device, 1, std::nullopt},
      {&device, 2, GuestAddress{high}}};
};

TEST_F(ResourcesFaults, AcquiringAllKindsHappensWhollyOrNotAtAll) {
  std::optional<DeviceResources> got;
  expect_strong_guarantee([&]() -> Result<void> {
    got = VMSPACE_TRY(observed.acquire(one_of_each(), name));
    return {};
  });
  EXPECT_EQ(got->count(ResourceKind::mmio), 2U);
}

TEST_F(ResourcesFaults, AcquiringNumbersAloneHappensWhollyOrNotAtAll) {
  std::optional<DeviceResources> got;
  expect_strong_guarantee([&]() -> Result<void> {
    Requests requests(8, LegacyIrq{.shared = true});  // the list of shared lines grows
    requests.push_back(KvmSlots{});
    requests.push_back(MsiVectors{.count = 32});
    got = VMSPACE_TRY(observed.acquire(requests, name));
    return {};
  });
}

TEST_F(ResourcesFaults, AdoptingHappensWhollyOrNotAtAll) {
  const ResourceManager source = fresh();
  const auto a =
      VMSPACE_ASSERT_OK(source.acquire(one_of_each(), "a device with a long, long name"));
  const auto b = VMSPACE_ASSERT_OK(source.acquire(
      {MmioRange{.size = 4_KiB, .bridge = "a device with a long, long name", .name = name}}, name));
  auto claims = source.claims();
  std::erase_if(claims, [](const ResourceClaim& claim) {  // what is held here
    const ResourceKind kind = kind_of(claim.request);
    return kind == ResourceKind::kvm_slot || kind == ResourceKind::legacy_irq;
  });
  for (ResourceClaim& claim : claims) {
    if (auto* mmio = std::get_if<MmioRange>(&claim.request))
      *mmio->fixed = GuestAddress{mmio->fixed->value() + 128_MiB};
    if (auto* window = std::get_if<BridgeWindow>(&claim.request)) {
      *window->fixed = GuestAddress{window->fixed->value() + 128_MiB};
    }
  }
  std::optional<std::vector<DeviceResources>> adopted;
  expect_strong_guarantee([&]() -> Result<void> {
    adopted = VMSPACE_TRY(observed.adopt(claims));
    return {};
  });
}

TEST_F(ResourcesFaults, RelocatingBarsAndWindowsHappensWhollyOrNotAtAll) {
  expect_strong_guarantee([&] { return observed.relocate(moves); });
  EXPECT_EQ(bridge.bridge_window().min(), low + 32_MiB);
  EXPECT_TRUE(device.is_parked(ResourceKind::mmio, 1));
}

TEST_F(ResourcesFaults, RelocatingPortsHappensWhollyOrNotAtAll) {
  DeviceResources more =
      observed
          .acquire({PioRange{.size = 8, .fixed = 0xd000}, PioRange{.size = 8, .fixed = 0xd010},
                    PioRange{.size = 8, .parked = true}},
                   name)
          .value();
  expect_strong_guarantee([&] {
    return observed.relocate({ResourceMove::place_ports(more, 0xd010),
                              ResourceMove::place_ports(more, 0xd080, 1),
                              ResourceMove::place_ports(more, 0xd100, 2)});
  });
  EXPECT_EQ(more.pio().min(), 0xd010U);
}

TEST_F(ResourcesFaults, ReleasingHappensWhollyOrNotAtAll) {
  expect_strong_guarantee([&] { return device.release(); });
  EXPECT_FALSE(device.is_held());
}

TEST_F(ResourcesFaults, ADeviceIsDestroyedWithoutMemory) {
  std::optional<DeviceResources> got = observed.acquire(one_of_each(), name).value();
  without_memory([&] { got.reset(); });
  EXPECT_EQ(observed.retired().size(), 3U);
  without_memory([&] { DeviceResources gone = std::move(device); });
  without_memory([&] { DeviceResources gone = std::move(bridge); });
  VMSPACE_EXPECT_OK(observed.collect());
  EXPECT_TRUE(observed.holders().empty());
  EXPECT_TRUE(state_of(observed) ==
              state_of(ResourceManager::create(space, test::limits_with(slots)).value()));
}

TEST_F(ResourcesFaults, AskingWhatIsHeldNeedsNoMemory) {
  const bool same = without_memory([&] {
    return device.owner() == "device" && device.count(ResourceKind::mmio) == 3 &&
           device.is_parked(ResourceKind::mmio, 2) && device.legacy_irq() == 5 &&
           device.mmio()->size() == 64_KiB && bridge.bridge_window().min() == low + 16_MiB;
  });
  EXPECT_TRUE(same);
}

TEST_F(ResourcesFaults, ALedgerThatRefusesAChangeHasAllOfAnAcquisitionUndone) {
  std::optional<DeviceResources> got;
  expect_undone([&]() -> Result<void> {
    got = VMSPACE_TRY(observed.acquire(one_of_each(), name));
    return {};
  });
}

TEST_F(ResourcesFaults, ALedgerThatRefusesAChangeHasAllOfAnAdoptionUndone) {
  const std::vector<ResourceClaim> claims = {
      {"x", MmioRange{.size = 64_KiB, .bridge = "y", .fixed = GuestAddress{low + 64_MiB}}},
      {"y", BridgeWindow{.size = 1_MiB, .fixed = GuestAddress{low + 64_MiB}}},
      {"x", LegacyIrq{.fixed = 5, .shared = true}},
      {"y", KvmSlots{.fixed = 77}}};
  std::optional<std::vector<DeviceResources>> adopted;
  expect_undone([&]() -> Result<void> {
    adopted = VMSPACE_TRY(observed.adopt(claims));
    return {};
  });
}

TEST_F(ResourcesFaults, ALedgerThatRefusesAChangeHasAllPortsUndone) {
  DeviceResources more =
      observed
          .acquire({PioRange{.size = 8, .fixed = 0xd000}, PioRange{.size = 8, .fixed = 0xd008},
                    PioRange{.size = 8, .parked = true}, MmioRange{.size = 4_KiB}},
                   name)
          .value();
  expect_undone([&] {
    return observed.relocate(
        {ResourceMove::place_ports(more, 0xd008), ResourceMove::place_ports(more, 0xd010, 1),
         ResourceMove::place_ports(more, 0xd000, 2), ResourceMove::park(more)});
  });
  EXPECT_EQ(more.pio(2).min(), 0xd000U);
}

TEST_F(ResourcesFaults, ALedgerThatRefusesAChangeHasAllOfARelocationUndone) {
  expect_undone([&] { return observed.relocate(moves); });
  EXPECT_EQ(device.mmio(2)->base().value(), high);
  // And back.
  expect_undone([&] {
    return observed.relocate({{&bridge, 0, GuestAddress{low + 16_MiB}, ResourceKind::bridge_window},
                              {&device, 0, std::nullopt},
                              {&device, 1, GuestAddress{low}},
                              {&device, 2, std::nullopt}});
  });
  expect_undone([&] {
    return observed.relocate({{&bridge, 0, std::nullopt, ResourceKind::bridge_window}});
  });
}

TEST_F(ResourcesFaults, ALedgerThatRefusesAChangeHasAReleaseUndone) {
  expect_undone([&] { return device.release(); });
}

// A ledger may take its time between the edit and the refusal, while numbers are asked for, and
// devices go.
TEST_F(ResourcesFaults, WhatOthersDoMeanwhileStaysWhenAChangeIsRefused) {
  std::optional<DeviceResources> number;
  std::optional<DeviceResources> goes =
      observed.acquire({LegacyIrq{.fixed = 5, .shared = true}}, "goes").value();
  ledger->fault = Ledger::Fault::after;
  ledger->between = [&] {
    number = observed.acquire({LegacyIrq{}, PioRange{.size = 32}, KvmSlots{}}, "number").value();
    goes.reset();
    EXPECT_THAT(observed.acquire({LegacyIrq{}}, name),
                HasError(Errc::bad_state));  // it is held for now
  };
  EXPECT_THAT(observed.acquire(one_of_each(), name), HasError(Errc::timed_out));
  ledger->between = {};
  ledger->fault = Ledger::Fault::none;
  VMSPACE_EXPECT_OK(observed.check_invariants());
  EXPECT_EQ(observed.holders().size(), 10U);
  VMSPACE_EXPECT_OK(observed.acquire({LegacyIrq{}}, name));
}

TEST_F(ResourcesFaults, TheWindowOfABridgeThatMayComeBackIsNobodyElses) {
  ledger->fault = Ledger::Fault::after;
  ledger->between = [&] {
    EXPECT_EQ(bridge.bridge_window().min(), low + 32_MiB);
    for (const std::uint64_t base : {low + 16_MiB, low + 32_MiB}) {
      const GuestAddress at{base + 1_MiB};
      EXPECT_THAT(observed.acquire({MmioRange{.size = 64_KiB, .fixed = at}}, name),
                  HasError(Errc::overlap));
      EXPECT_THAT(observed.acquire({BridgeWindow{.size = 1_MiB, .fixed = at}}, name),
                  HasError(Errc::overlap));
    }
    // What may lie anywhere goes past both.
    EXPECT_THAT(observed.acquire(Requests(4, MmioRange{.size = 8_MiB}), name),
                HasError(Errc::timed_out));
    EXPECT_EQ(ledger->refused_space->find_region(GuestAddress{low + 16_MiB}), nullptr);
    EXPECT_NE(ledger->refused_space->find_region(GuestAddress{low + 24_MiB}), nullptr);
  };
  EXPECT_THAT(observed.relocate(moves), HasError(Errc::timed_out));
  ledger->between = {};
  EXPECT_EQ(bridge.bridge_window().min(), low + 16_MiB);
  VMSPACE_EXPECT_OK(observed.check_invariants());
}

// What a space learns takes memory in each inner node of its tree.
TEST(ResourceManagerFaults, AcquiringLearnsTheAlignmentOfRangesThatAreHardToPlace) {
  AddressSpaceBase first(*AddressSpaceLayout::x86_64({.phys_bits = 40}));
  const std::uint64_t base = 0xc000'0000;
  // Between them three pages, at odd ones.
  for (std::uint64_t i = 0; i < 3000; ++i) {
    ASSERT_TRUE(first.insert_region({.name = "bar",
                                     .type = RegionType::device_memory,
                                     .base = GuestAddress(base + i * 16_KiB),
                                     .size = 4_KiB}));
  }
  const auto manager = *ResourceManager::create(AddressSpace(std::move(first)));
  std::vector<int> took;
  took.reserve(20);
  for (int i = 0; i < 20; ++i) {
    test::asked = 0;
    const auto device = manager.acquire({MmioRange{.size = 12_KiB, .align = 8_KiB}}, "device");
    took.push_back(test::asked);
    ASSERT_TRUE(device);
    EXPECT_EQ(device->mmio()->base(), GuestAddress(base + 2999 * 16_KiB + 8_KiB));
  }
  EXPECT_GT(std::ranges::max(took), took[1] + 5);
  VMSPACE_EXPECT_OK(manager.check_invariants());
}

}  // namespace
}  // namespace vmspace::resources_faults_test
