// SPDX-License-Identifier: Apache-2.0
//
// Between the moment at which a ledger decides on a change and the moment at which the manager knows,
// other calls may come. What they are given is right whether or not the change stands.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "vmspace/base/try.hpp"

#include "resources/manager_state.hpp"
#include "resources/test_ledger.hpp"

namespace vmspace::resources_undo_test {
namespace {

using test::State;
using test::state_of;
using testing::HasSubstr;
using namespace literals;

/// An AddressSpace that may refuse its next change once that is made, and runs an action of the test
/// before it says whether it has.
class Ledger final : public test::TestLedger {
 public:
  using TestLedger::TestLedger;

  mutable bool refuses = false;                  ///< the next change
  mutable std::function<void()> meanwhile = {};  ///< runs before the next change returns

  [[nodiscard]] Result<void> transact(const Edit& edit) const override {
    const bool refused = std::exchange(refuses, false);
    const auto action = std::exchange(meanwhile, {});
    const auto changed = change(edit, [refused] { return refused; });
    if (action) action();
    return changed;
  }
};

class ResourcesUndo : public test::ManagerTest {
 protected:
  static MmioRange bar(const char* bridge, std::optional<std::uint64_t> at = {}) {
    MmioRange request{.size = 64_KiB, .bridge = bridge};
    if (at) request.fixed = GuestAddress{*at};
    return request;
  }
  static BridgeWindow window(std::uint64_t size, std::uint64_t at, const char* bridge = "") {
    return {.size = size, .bridge = bridge, .fixed = GuestAddress{at}};
  }
  static ResourceMove window_to(DeviceResources& bridge, std::optional<std::uint64_t> to) {
    ResourceMove move{.device = &bridge, .kind = ResourceKind::bridge_window};
    if (to) move.to = GuestAddress{*to};
    return move;
  }
  [[nodiscard]] DeviceResources get(const Requests& requests, const char* owner) const {
    return observed.acquire(requests, owner).value();
  }

  /// Makes a change twice, with `action` before it returns: refused, which leaves everything as it
  /// was but for what the action has done, and granted.
  template <typename Change, typename Action>
  void change_while(Change change, Action action) const {
    for (const bool refused : {true, false}) {
      ledger->refuses = refused;
      ledger->meanwhile = action;
      const auto changed = change();
      EXPECT_EQ(changed.has_value(), !refused);
      if (!changed) {
        EXPECT_THAT(changed, HasError(Errc::timed_out));
      }
      VMSPACE_EXPECT_OK(observed.check_invariants());
    }
  }

  const std::shared_ptr<const Ledger> ledger = std::make_shared<Ledger>(space);
  const ResourceManager observed =
      ResourceManager::create(ledger, test::limits_with(slots)).value();
};

TEST_F(ResourcesUndo, NothingComesIntoAWindowThatMayNotStay) {
  std::optional<DeviceResources> bridge;
  change_while(
      [&]() -> Result<void> {
        bridge = VMSPACE_TRY(observed.acquire({window(2_MiB, low)}, "bridge"));
        return {};
      },
      [&] {
        EXPECT_THAT(observed.acquire({bar("bridge")}, "any"), HasError(Errc::not_found));
        EXPECT_THAT(observed.acquire({bar("bridge", low)}, "fixed"), HasError(Errc::not_found));
        EXPECT_THAT(observed.acquire({window(1_MiB, low, "bridge")}, "inner"),
                    HasError(Errc::not_found));
        const std::vector<ResourceClaim> claims = {{"claimed", bar("bridge", low)}};
        EXPECT_THAT(observed.adopt(claims), HasError(Errc::not_found));
      });
  VMSPACE_EXPECT_OK(observed.acquire({bar("bridge")}, "behind"));
}

TEST_F(ResourcesUndo, NobodyGetsThePortsOfARangeThatMayGoBackToThem) {
  auto device = get({PioRange{.size = 8, .fixed = 0xd000}, MmioRange{.size = 64_KiB}}, "device");
  change_while(
      [&] {
        return observed.relocate(
            {ResourceMove::place_ports(device, 0xd008), ResourceMove::park(device)});
      },
      [&] {
        for (const std::uint64_t first : {0xd000U, 0xd008U}) {
          const auto refused = observed.acquire({PioRange{.size = 8, .fixed = first}}, "other");
          ASSERT_THAT(refused, HasError(Errc::overlap));
          EXPECT_EQ(refused.error().text.detail(), "device");
        }
      });
  VMSPACE_EXPECT_OK(observed.acquire({PioRange{.size = 8, .fixed = 0xd000}}, "other"));
}

TEST_F(ResourcesUndo, AParkedRangeDoesNotComeIntoAWindowThatMayNotStay) {
  auto device = get({MmioRange{.size = 64_KiB, .bridge = "bridge", .parked = true}}, "device");
  std::optional<DeviceResources> bridge;
  change_while(
      [&]() -> Result<void> {
        bridge = VMSPACE_TRY(observed.acquire({window(2_MiB, low)}, "bridge"));
        return {};
      },
      [&] {
        EXPECT_THAT(observed.relocate({{&device, 0, GuestAddress{low}}}),
                    HasError(Errc::not_found));
      });
  VMSPACE_EXPECT_OK(observed.relocate({{&device, 0, GuestAddress{low}}}));
}

TEST_F(ResourcesUndo, AdoptedBridgesAreOneChangeWithWhatIsBehindThem) {
  const std::vector<ResourceClaim> claims = {{"deep", bar("inner", low + 1_MiB)},
                                             {"inner", window(1_MiB, low + 1_MiB, "outer")},
                                             {"outer", window(2_MiB, low)}};
  std::vector<DeviceResources> adopted;
  change_while(
      [&]() -> Result<void> {
        adopted = VMSPACE_TRY(observed.adopt(claims));
        return {};
      },
      [&] {
        EXPECT_THAT(observed.acquire({bar("inner")}, "any"), HasError(Errc::not_found));
        EXPECT_THAT(observed.acquire({bar("outer")}, "other"), HasError(Errc::not_found));
      });
  VMSPACE_EXPECT_OK(observed.acquire({bar("inner")}, "behind"));
}

TEST_F(ResourcesUndo, NothingComesIntoAWindowThatMovesButWhereItIsEitherWay) {
  auto bridge = get({window(2_MiB, low + 16_MiB)}, "bridge");
  change_while([&] { return observed.relocate({window_to(bridge, low + 17_MiB)}); },
               [&] {
                 const auto device = observed.acquire({bar("bridge")}, "device");
                 VMSPACE_EXPECT_OK(device);
                 EXPECT_EQ(device->mmio()->base().value(), low + 17_MiB);
                 for (const std::uint64_t base : {low + 16_MiB, low + 18_MiB}) {
                   EXPECT_THAT(observed.acquire({bar("bridge", base)}, "fixed"),
                               HasError(Errc::out_of_bounds));
                 }
               });
  // And wholly elsewhere.
  change_while(
      [&] { return observed.relocate({window_to(bridge, low + 32_MiB)}); },
      [&] { EXPECT_THAT(observed.acquire({bar("bridge")}, "device"), HasError(Errc::not_found)); });
}

TEST_F(ResourcesUndo, NothingComesIntoAWindowThatIsBeingPlaced) {
  auto bridge = get({BridgeWindow{.size = 2_MiB, .parked = true}}, "bridge");
  change_while([&] { return observed.relocate({window_to(bridge, low)}); },
               [&] {
                 EXPECT_THAT(observed.acquire({bar("bridge")}, "device"),
                             HasError(Errc::not_found));
                 EXPECT_THAT(observed.acquire({bar("", low)}, "other"), HasError(Errc::overlap));
               });
}

TEST_F(ResourcesUndo, WhatIsBehindAWindowThatIsBeingParkedIsNotAdoptedOutsideOfIt) {
  auto bridge = get({window(2_MiB, low)}, "bridge");
  const std::vector<ResourceClaim> claims = {{"claimed", bar("bridge", low + 8_MiB)}};
  change_while([&] { return observed.relocate({window_to(bridge, std::nullopt)}); },
               [&] { EXPECT_THAT(observed.adopt(claims), HasError(Errc::not_found)); });
  VMSPACE_EXPECT_OK(observed.adopt(claims));  // a parked window holds nothing in place
}

TEST_F(ResourcesUndo, AnInnerWindowMovesOnlyToWhereItsOuterOneIsEitherWay) {
  auto outer = get({window(4_MiB, low + 16_MiB)}, "outer");
  auto inner = get({window(1_MiB, low + 18_MiB, "outer")}, "inner");
  change_while([&] { return observed.relocate({window_to(outer, low + 18_MiB)}); },
               [&] {
                 for (const std::uint64_t base : {low + 17_MiB, low + 20_MiB}) {
                   EXPECT_THAT(observed.relocate({window_to(inner, base)}),
                               HasError(Errc::out_of_bounds));
                 }
                 VMSPACE_EXPECT_OK(observed.relocate({window_to(inner, low + 19_MiB)}));
               });
}

TEST_F(ResourcesUndo, AWindowStaysWhileWhatLiesInItMoves) {
  auto bridge = get({window(2_MiB, low + 16_MiB)}, "bridge");
  auto device = get({bar("bridge", low + 16_MiB)}, "device");
  auto inner = get({BridgeWindow{.size = 1_MiB, .bridge = "bridge", .parked = true}}, "inner");
  VMSPACE_EXPECT_OK(observed.relocate({{&device, 0, GuestAddress{low + 17_MiB - 64_KiB}}}));
  change_while(
      [&] {
        return observed.relocate({{&device, 0, GuestAddress{low + 17_MiB}}});
      },
      [&] {
        const auto moved = observed.relocate({window_to(bridge, low + 17_MiB)});
        EXPECT_THAT(moved, HasError(Errc::bad_state));
        EXPECT_THAT(moved.error().message(), HasSubstr("\"device\""));
      });
  VMSPACE_EXPECT_OK(observed.relocate({{&device, 0, std::nullopt}}));
  VMSPACE_EXPECT_OK(observed.relocate({window_to(inner, low + 16_MiB)}));
  change_while([&] { return observed.relocate({window_to(inner, low + 17_MiB)}); },
               [&] {
                 EXPECT_THAT(observed.relocate({window_to(bridge, low + 17_MiB)}),
                             HasError(Errc::bad_state));
               });
  VMSPACE_EXPECT_OK(observed.relocate({window_to(bridge, low + 17_MiB)}));
}

TEST_F(ResourcesUndo, ABridgeDoesNotComeBackWhileWhatItLeftMayReturnToItsAddress) {
  std::optional<DeviceResources> bridge = get({window(2_MiB, low)}, "bridge");
  auto left = get({bar("bridge", low)}, "left");
  bridge.reset();
  change_while(
      [&] {
        return observed.relocate({{&left, 0, std::nullopt}});
      },
      [&] {
        EXPECT_THAT(observed.acquire({window(2_MiB, low + 8_MiB)}, "bridge"),
                    HasError(Errc::bad_state));
      });
  VMSPACE_EXPECT_OK(observed.acquire({window(2_MiB, low + 8_MiB)}, "bridge"));
}

TEST_F(ResourcesUndo, NoWindowComesToWhereARangeIsAboutToReturn) {
  auto device = get({bar("", low)}, "device");
  auto bridge = get({window(2_MiB, low + 16_MiB)}, "bridge");
  ledger->refuses = true;
  ledger->meanwhile = [&] {
    EXPECT_EQ(device.mmio()->base().value(), low + 8_MiB);
    EXPECT_THAT(observed.relocate({window_to(bridge, low)}), HasError(Errc::overlap));
    EXPECT_THAT(observed.acquire({window(1_MiB, low)}, "other"), HasError(Errc::overlap));
  };
  EXPECT_THAT(observed.relocate({{&device, 0, GuestAddress{low + 8_MiB}}}),
              HasError(Errc::timed_out));
  VMSPACE_EXPECT_OK(observed.check_invariants());
}

TEST_F(ResourcesUndo, NoWindowComesToWhereADeeperOneMayReturn) {
  auto outer = get({window(2_MiB, low)}, "outer");
  auto inner = get({window(1_MiB, low, "outer")}, "inner");
  auto other = get({window(1_MiB, low + 16_MiB)}, "other");
  VMSPACE_EXPECT_OK(observed.relocate({window_to(outer, std::nullopt)}));
  change_while(
      [&] { return observed.relocate({window_to(inner, std::nullopt)}); },
      [&] { EXPECT_THAT(observed.relocate({window_to(other, low)}), HasError(Errc::overlap)); });
  VMSPACE_EXPECT_OK(observed.relocate({window_to(other, low)}));
}

TEST_F(ResourcesUndo, ABridgeIsAcquiredAgainAfterItsLedgerRefusedIt) {
  ledger->refuses = true;
  ledger->meanwhile = [&] {
    EXPECT_THAT(observed.acquire({window(2_MiB, low)}, "bridge"), HasError(Errc::bad_state));
  };
  EXPECT_THAT(observed.acquire({window(2_MiB, low)}, "bridge"), HasError(Errc::timed_out));
  const auto bridge = get({window(2_MiB, low)}, "bridge");
  VMSPACE_EXPECT_OK(observed.acquire({bar("bridge")}, "device"));
}

TEST_F(ResourcesUndo, ARelocationElsewhereGoesOnWhileAnotherMayBeUndone) {
  auto bridge = get({window(2_MiB, low + 16_MiB)}, "bridge");
  auto inner = get({window(1_MiB, low + 16_MiB, "bridge")}, "inner");
  auto device = get({bar("inner", low + 16_MiB)}, "device");
  auto other = get({window(2_MiB, low + 64_MiB)}, "other");
  const std::vector<ResourceMove> all = {window_to(bridge, low + 32_MiB),
                                         window_to(inner, low + 32_MiB),
                                         {&device, 0, GuestAddress{low + 32_MiB}}};
  std::uint64_t to = low + 80_MiB;
  change_while([&] { return observed.relocate(all); },
               [&] {
                 VMSPACE_EXPECT_OK(observed.relocate({window_to(other, to)}));
                 to += 16_MiB;
                 for (const std::uint64_t base : {low + 16_MiB, low + 32_MiB}) {
                   EXPECT_THAT(observed.relocate({window_to(other, base)}),
                               HasError(Errc::overlap));
                 }
               });
}

}  // namespace
}  // namespace vmspace::resources_undo_test
