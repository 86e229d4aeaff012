// SPDX-License-Identifier: Apache-2.0
//
// Calls on one manager come between a ledger's decision on a change and the end of the call that made
// it, several deep, with decisions either way. Whatever comes of it, the invariant holds.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/resources.hpp"

#include "resources/test_ledger.hpp"

namespace vmspace::resources_undo_model_test {
namespace {

using namespace literals;

/// Of the whole range from the first case on: a short list, too, is to ask for anything.
std::uint64_t below(std::uint64_t n) {
  return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange<std::uint64_t>(0, n));
}

/// Refuses every other change once it is made, and has others run before it says so.
class Ledger final : public test::TestLedger {
 public:
  using TestLedger::TestLedger;

  mutable std::function<void()> meanwhile = [] {};

  [[nodiscard]] Result<void> transact(const Edit& edit) const override {
    const bool refuses = below(2) == 0;
    const auto changed = change(edit, [refuses] { return refuses; });
    meanwhile();
    return changed;
  }
};

class Machine {
 public:
  Machine() {
    ledger_->meanwhile = [this] {
      if (++depth_ <= 3) {
        for (std::uint64_t count = below(3); count != 0; --count)
          act();
      }
      --depth_;
    };
  }

  void act() {
    switch (below(8)) {
      case 0: destroy(); break;
      case 1: release(); break;
      case 2:
      case 3:
      case 4: relocate(); break;
      case 5: adopt(); break;
      default: acquire(); break;
    }
  }

  void check() const {
    const auto sound = manager_.check_invariants();
    if (!sound) RC_FAIL(sound.error().message());
    for (const auto& [owner, device] : devices_) {
      for (std::size_t i = 0; i < device.count(ResourceKind::mmio); ++i) {
        if (device.is_parked(ResourceKind::mmio, i)) continue;
        RC_ASSERT(ledger_->snapshot()->find_region(device.mmio(i)->base()) == device.mmio(i).get());
      }
    }
  }

  /// What is held can be restored.
  void replay() const {
    const auto other = ResourceManager::create(AddressSpace::create(layout()).value()).value();
    const auto claims = manager_.claims();
    const auto adopted = other.adopt(claims);
    if (!adopted) RC_FAIL(adopted.error().message());
    RC_ASSERT(other.claims() == claims);
    const auto sound = other.check_invariants();
    if (!sound) RC_FAIL(sound.error().message());
  }

 private:
  static AddressSpaceLayout layout() {
    return AddressSpaceLayout::make(
               {.phys_max = 1_GiB - 1,
                .apertures = {{"mmio", Range::of(0, 8_MiB - 1), ApertureUse::mmio}}})
        .value();
  }
  static std::string any_bridge() { return std::string(1, static_cast<char>('A' + below(3))); }
  static std::string any_device_name() { return std::string(1, static_cast<char>('a' + below(3))); }
  static GuestAddress any_place(std::uint64_t step) {
    return GuestAddress{below(8_MiB / step) * step};
  }
  /// A window of a bridge, or a range of a device, mostly behind a bridge.
  static ResourceRequest any_request(bool is_bridge, bool is_fixed) {
    const bool parked = below(5) == 0;
    const bool has_place = is_fixed || below(3) == 0;
    if (is_bridge) {
      BridgeWindow window{.size = (1 + below(3)) * 1_MiB, .parked = parked};
      if (below(2) == 0) window.bridge = any_bridge();
      if (has_place) window.fixed = any_place(1_MiB);
      return window;
    }
    MmioRange range{.size = 256_KiB, .parked = parked};
    if (below(4) != 0) range.bridge = any_bridge();
    if (has_place) range.fixed = any_place(256_KiB);
    return range;
  }

  /// A device that no call uses, taken out of those that others may choose.
  using Node = std::map<std::string, DeviceResources>::node_type;
  Node any_device() {
    if (devices_.empty()) return {};
    return devices_.extract(
        std::next(devices_.begin(), static_cast<std::ptrdiff_t>(below(devices_.size()))));
  }

  void acquire() {
    const bool is_bridge = below(2) == 0;
    const std::string owner = is_bridge ? any_bridge() : any_device_name();
    std::vector<ResourceRequest> requests;
    for (std::uint64_t count = 1 + below(2); count != 0; --count)
      requests.push_back(any_request(is_bridge, false));
    if (auto got = manager_.acquire(requests, owner)) devices_.emplace(owner, *std::move(got));
  }
  void adopt() {
    std::vector<ResourceClaim> claims;
    for (std::uint64_t count = 1 + below(3); count != 0; --count) {
      const bool is_bridge = below(2) == 0;
      claims.push_back(
          {is_bridge ? any_bridge() : any_device_name(), any_request(is_bridge, true)});
    }
    auto got = manager_.adopt(claims);
    if (!got) return;
    for (DeviceResources& device : *got) {
      const std::string owner = device.owner();
      devices_.emplace(owner, std::move(device));
    }
  }
  void destroy() { static_cast<void>(any_device()); }
  void release() {
    Node node = any_device();
    if (node.empty()) return;
    if (!node.mapped().release()) devices_.insert(std::move(node));
  }
  void relocate() {
    std::vector<Node> nodes;
    std::vector<ResourceMove> moves;
    for (std::uint64_t count = 1 + below(3); count != 0; --count) {
      Node node = any_device();
      if (!node.empty()) nodes.push_back(std::move(node));
    }
    const std::uint64_t offset = below(8) * 1_MiB;
    const bool together = below(2) == 0;  // all by one distance
    for (Node& node : nodes) {
      DeviceResources& device = node.mapped();
      for (const ResourceKind kind : {ResourceKind::mmio, ResourceKind::bridge_window}) {
        for (std::size_t i = 0; i < device.count(kind); ++i) {
          if (!together && below(2) == 0) continue;
          ResourceMove move{.device = &device, .index = i, .kind = kind};
          const std::uint64_t base = kind == ResourceKind::mmio ? device.mmio(i)->base().value()
                                                                : device.bridge_window(i).min();
          const std::uint64_t step = kind == ResourceKind::mmio ? 256_KiB : 1_MiB;
          if (together) {
            move.to = GuestAddress{(base + offset) % 8_MiB};
          } else if (below(3) != 0) {
            move.to = any_place(step);
          }
          moves.push_back(move);
        }
      }
    }
    static_cast<void>(manager_.relocate(moves));
    for (Node& node : nodes)
      devices_.insert(std::move(node));
  }

  const std::shared_ptr<const Ledger> ledger_ =
      std::make_shared<Ledger>(AddressSpace::create(layout()).value());
  const ResourceManager manager_ = ResourceManager::create(ledger_).value();
  std::map<std::string, DeviceResources> devices_;
  int depth_ = 0;
};

RC_GTEST_PROP(ResourcesUndoModel, TheInvariantHoldsWhateverComesBeforeAChangeIsUndone, ()) {
  Machine machine;
  const int steps = *rc::gen::inRange(0, 60);
  for (int step = 0; step < steps; ++step) {
    machine.act();
    machine.check();
  }
  machine.replay();
}

}  // namespace
}  // namespace vmspace::resources_undo_model_test
