// SPDX-License-Identifier: Apache-2.0
//
// Shared by the ResourceManager tests: a manager's complete state for comparison, and a PC to
// manage.

#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/resources.hpp"
#include "vmspace/testing.hpp"

namespace vmspace::test {

using namespace literals;

/// The complete observable state of a manager, which a failing call must not change.
struct State {
  std::vector<ResourceHolder> holders;
  std::vector<ResourceClaim> claims;
  std::vector<ResourceUsage> usage;
  std::shared_ptr<const AddressSpaceBase> space;
  std::vector<AddressSpaceRegionPtr> retired;

  friend bool operator==(const State& a, const State& b) {
    return a.holders == b.holders && a.claims == b.claims && a.usage == b.usage &&
           *a.space == *b.space && a.retired == b.retired;
  }
};

inline State state_of(const ResourceManager& manager) {
  return {manager.holders(), manager.claims(), manager.usage(), manager.ledger().snapshot(),
          manager.retired()};
}

/// Checks that `call` fails with this code and changes nothing; gives the error's message.
template <typename Call>
std::string refusal(const ResourceManager& manager, Errc code, Call call) {
  const State before = state_of(manager);
  std::string message;
  {
    const auto result = call();
    EXPECT_THAT(result, HasError(code));
    if (!result) message = result.error().message();
  }
  EXPECT_TRUE(state_of(manager) == before) << "changed by: " << message;
  VMSPACE_EXPECT_OK(manager.check_invariants());
  return message;
}

inline RangePool pool_of_slots() {
  return RangePool::create("memory slots", {Range::of(0, 508)}).value();
}

/// The default limits, with memory slots and 256 MAC addresses from 52:54:00:12:34:00.
inline ResourceLimits limits_with(const RangePool& slots) {
  return {.kvm_slots = slots, .mac_addresses = Range::of(0x5254'0012'3400, 0x5254'0012'34ff)};
}

/// One or two requests of each kind.
inline std::vector<ResourceRequest> one_of_each() {
  return {PciDevice{},
          PioRange{.size = 32},
          MmioRange{.size = 16_KiB, .name = "BAR0"},
          MmioRange{.size = 64_MiB, .prefetchable = true},
          MemoryRange{.region = {.size = 1_GiB, .hotplug = true}, .aperture = "ram_high"},
          BridgeWindow{.size = 2_MiB},
          LegacyIrq{.shared = true},
          LegacyIrq{},
          GenericIrq{.count = 2},
          MsiVectors{.count = 4},
          MsixVectors{.count = 3},
          KvmSlots{},
          MacAddress{}};
}

/// A PC of 40 bits: RAM below 3 GiB and in [4 GiB, 512 GiB); MMIO in [0xc000'0000, 0xfbff'ffff] and
/// from 512 GiB on, up to the hole at 0xfd'0000'0000.
class ManagerTest : public testing::Test {
 protected:
  using Requests = std::vector<ResourceRequest>;

  const AddressSpaceLayout layout = AddressSpaceLayout::x86_64({.phys_bits = 40}).value();
  const AddressSpace space = AddressSpace::create(layout).value();
  const RangePool slots = pool_of_slots();
  const ResourceManager manager = ResourceManager::create(space, limits_with(slots)).value();

  static constexpr std::uint64_t low = 0xc000'0000;      ///< where mmio_low begins
  static constexpr std::uint64_t high = 512_GiB;         ///< where mmio_high begins
  static constexpr std::uint64_t hole = 0xfd'0000'0000;  ///< where it ends

  /// A manager of another VM with the limits of this one.
  [[nodiscard]] ResourceManager fresh() const {
    return ResourceManager::create(AddressSpace::create(layout).value(),
                                   limits_with(pool_of_slots()))
        .value();
  }
  [[nodiscard]] DeviceResources take(const Requests& requests, std::string_view owner) const {
    return manager.acquire(requests, owner).value();
  }
  /// The message of acquire(), which must fail with this code and change nothing.
  std::string refused(Errc code, const Requests& requests, std::string_view owner = "dev") const {
    return refusal(manager, code, [&] { return manager.acquire(requests, owner); });
  }
  /// Likewise for relocate().
  std::string refused_moves(Errc code, const std::vector<ResourceMove>& moves) const {
    return refusal(manager, code, [&] { return manager.relocate(moves); });
  }
  [[nodiscard]] Result<void> relocate(const std::vector<ResourceMove>& moves) const {
    return manager.relocate(moves);
  }

  void TearDown() override { VMSPACE_EXPECT_OK(manager.check_invariants()); }
};

}  // namespace vmspace::test
