// SPDX-License-Identifier: Apache-2.0
//
// A ResourceManager and plain lists of what is held, driven together.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "model/resources_oracle.hpp"

namespace vmspace::resources_model_test {
namespace {

using namespace literals;
using test::granule;
using test::OracleMove;
using test::OraclePlace;
using test::ResourcesOracle;

using Requests = std::vector<ResourceRequest>;

/// Of the whole range from the first case on: a short list, too, is to ask for anything.
std::uint64_t any_of(std::uint64_t first, std::uint64_t last) {
  return *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(first, last + 1));
}
bool one_in(std::uint64_t n) {
  return any_of(1, n) == 1;
}

AddressSpaceLayout machine() {
  return AddressSpaceLayout::make({.phys_max = 16_GiB - 1,
                                   .ram = test::ram,
                                   .apertures = {{"ram", test::ram, ApertureUse::ram},
                                                 {"mmio_low", test::mmio_low, ApertureUse::mmio},
                                                 {"mmio_high", test::mmio_high, ApertureUse::mmio}},
                                   .holes = {{"hole", test::mmio_hole}}})
      .value();
}

ResourceManager manager_of(const AddressSpace& space) {
  return ResourceManager::create(
             space, {.pio = {.ranges = {test::ports}, .any = test::any_port},
                     .legacy_irqs = {.ranges = {test::lines}, .any = test::any_line},
                     .generic_irqs = {.ranges = {test::generic_lines}},
                     .msi = {.ranges = {test::messages}},
                     .pci_buses = {{.first_device = 1, .last_device = 7}},
                     .kvm_slots = RangePool::create("slots", {test::slot_numbers}).value(),
                     .mac_addresses = test::macs})
      .value();
}

std::string any_owner() {
  static constexpr const char* owners[] = {"br0", "br1", "br2", "d0", "d1", "d2", "d3"};
  return owners[any_of(0, 6)];
}
/// Mostly none, or one that has windows; else any.
std::string any_bridge(const ResourcesOracle& oracle) {
  std::vector<std::string> bridges = {""};
  for (const OraclePlace& place : oracle.places) {
    if (place.is_window && !place.parked) bridges.push_back(place.owner);
  }
  return one_in(8) ? any_owner() : bridges[any_of(0, bridges.size() - 1)];
}
/// A number in or just outside of a range; mostly none.
std::optional<std::uint32_t> any_fixed(Range range) {
  if (!one_in(3)) return std::nullopt;
  return static_cast<std::uint32_t>(
      any_of(range.min() == 0 ? 0 : range.min() - 1, range.max() + 1));
}
GuestAddress any_address(std::uint64_t step) {
  switch (any_of(0, 7)) {
    case 0: return GuestAddress{test::ram.min() + any_of(0, 16) * granule};
    case 1:
    case 2: return GuestAddress{test::mmio_high.min() + any_of(0, 33) * granule};
    default: break;
  }
  return GuestAddress{test::mmio_low.min() + any_of(0, 17_MiB / step) * step};
}
std::optional<GuestAddress> any_place(std::uint64_t step) {
  if (!one_in(3)) return std::nullopt;
  return any_address(step);
}

ResourceRequest any_request(const ResourcesOracle& oracle) {
  const auto count = static_cast<std::uint32_t>(any_of(1, 4));
  const std::uint64_t align = one_in(3) ? granule << any_of(0, 4) : 0;
  const auto reach = static_cast<MmioReach>(any_of(0, 2));
  const std::string aperture = one_in(6) ? (one_in(2) ? "mmio_low" : "mmio_high") : "";
  switch (any_of(0, 16)) {
    case 0: {
      PioRange request{.size = any_of(1, 9), .align = one_in(3) ? 1U << any_of(0, 4) : 0};
      if (const auto fixed = any_fixed(test::ports)) {
        request.fixed = *fixed;
      } else if (one_in(3)) {
        request.window = *Range::from_base_size(any_of(0, 60), any_of(1, 20));
      }
      return request;
    }
    case 1: return LegacyIrq{.fixed = any_fixed(test::lines), .shared = one_in(2)};
    case 2: return GenericIrq{.count = count, .fixed = any_fixed(test::generic_lines)};
    case 3: return MsiVectors{.count = count, .fixed = any_fixed(test::messages)};
    case 4: return MsixVectors{.count = count, .fixed = any_fixed(test::messages)};
    case 5: return KvmSlots{.count = count, .fixed = any_fixed(test::slot_numbers)};
    case 6: {
      PciDevice request;
      if (const auto fixed = any_fixed(test::devices)) {
        request.bus = std::uint8_t{0};
        request.device = static_cast<std::uint8_t>(*fixed);
      }
      return request;
    }
    case 7: return MacAddress{.fixed = any_fixed(test::macs)};
    case 8:
      return MemoryRange{.region = {.size = any_of(1, 4) * granule, .hotplug = one_in(2)},
                         .align = align,
                         .fixed = any_place(granule)};
    case 9:
    case 10:
    case 11:
      return BridgeWindow{.size = any_of(1, 4) * 1_MiB,
                          .align = align,
                          .reach = reach,
                          .prefetchable = one_in(3),
                          .bridge = any_bridge(oracle),
                          .aperture = aperture,
                          .fixed = any_place(1_MiB),
                          .parked = one_in(4)};
    default: break;
  }
  return MmioRange{.size = any_of(1, 6) * granule,
                   .align = align,
                   .reach = reach,
                   .prefetchable = one_in(3),
                   .bridge = any_bridge(oracle),
                   .aperture = aperture,
                   .fixed = any_place(granule),
                   .parked = one_in(5)};
}
Requests any_requests(const ResourcesOracle& oracle) {
  Requests requests(any_of(0, 5));
  for (ResourceRequest& request : requests)
    request = any_request(oracle);
  return requests;
}

/// Up to five moves of what may move, often to where something else is or has been, and now and then
/// twice of one place; at times a window with all that is behind it.
std::vector<OracleMove> any_moves(const ResourcesOracle& oracle) {
  std::vector<std::size_t> movable;
  for (std::size_t i = 0; i < oracle.places.size(); ++i) {
    if (!oracle.places[i].is_memory) movable.push_back(i);
  }
  std::vector<OracleMove> moves;
  if (movable.empty()) return moves;
  const std::size_t first = movable[any_of(0, movable.size() - 1)];
  const OraclePlace& window = oracle.places[first];
  if (window.is_window && one_in(2)) {
    const std::uint64_t to = any_address(1_MiB).value();
    for (const std::size_t i : movable) {
      const OraclePlace& place = oracle.places[i];
      const bool goes = i == first || (oracle.is_behind(place.bridge, window.owner) &&
                                       window.range().contains(place.range()));
      if (goes) moves.push_back({i, place.base - window.base + to});
    }
    return moves;
  }
  for (std::uint64_t count = any_of(0, 4); moves.size() < count;) {
    const std::size_t which = movable[any_of(0, movable.size() - 1)];
    const bool is_again = std::any_of(moves.begin(), moves.end(),
                                      [&](const OracleMove& it) { return it.place == which; });
    if (is_again && !one_in(10)) {
      --count;
      continue;
    }
    OracleMove move{which, std::nullopt};
    if (!one_in(4)) {
      move.to = one_in(2) ? oracle.places[movable[any_of(0, movable.size() - 1)]].base
                          : any_address(oracle.places[which].is_window ? 1_MiB : granule).value();
    }
    moves.push_back(move);
  }
  return moves;
}

class Pair {
 public:
  [[nodiscard]] const ResourcesOracle& oracle() const { return oracle_; }

  void acquire(const std::string& owner, const Requests& requests) {
    auto got = manager_.acquire(requests, owner);
    const bool expected = oracle_.acquire(owner, requests);
    if (got.has_value() != expected) RC_FAIL(got ? "acquired" : got.error().message());
    if (got) held_.emplace(owner, *std::move(got));
  }

  /// A list that can't be met because of one of its requests, wherever that stands.
  void fail_to_acquire(const std::string& owner, Requests requests) {
    static const Requests impossible = {MmioRange{.size = 1_GiB},
                                        BridgeWindow{.size = 1_GiB},
                                        MemoryRange{.region = {.size = 1_GiB}},
                                        MsiVectors{.count = 3},
                                        KvmSlots{.count = 17},
                                        PioRange{.size = 1, .fixed = 64},
                                        PciDevice{.bus = 1}};
    const std::size_t at = any_of(0, requests.size());
    requests.insert(requests.begin() + static_cast<std::ptrdiff_t>(at),
                    impossible[any_of(0, impossible.size() - 1)]);
    RC_ASSERT(!manager_.acquire(requests, owner).has_value());
  }

  void destroy(const std::string& owner) {
    if (held_.erase(owner) == 1) oracle_.release(owner);
  }
  void release(const std::string& owner) {
    const auto held = held_.find(owner);
    if (held == held_.end()) return;
    const auto released = held->second.release();
    if (!released) RC_FAIL(released.error().message());
    destroy(owner);
  }

  void relocate() {
    const std::vector<OracleMove> chosen = any_moves(oracle_);
    std::vector<ResourceMove> moves;
    for (const OracleMove& move : chosen) {
      const OraclePlace& place = oracle_.places[move.place];
      ResourceMove made{.device = &held_.at(place.owner), .kind = kind_of(place.request)};
      if (move.to) made.to = GuestAddress{*move.to};
      for (std::size_t i = 0; i < move.place; ++i) {
        const OraclePlace& earlier = oracle_.places[i];
        made.index += earlier.owner == place.owner && kind_of(earlier.request) == made.kind;
      }
      moves.push_back(made);
    }
    const auto moved = manager_.relocate(moves);
    const bool expected = oracle_.relocate(chosen);
    if (moved.has_value() != expected) RC_FAIL(moved ? "moved" : moved.error().message());
  }

  /// Replays all claims into another manager, at times with one that somebody holds already.
  void replay() {
    const AddressSpace other_space = AddressSpace::create(machine()).value();
    const ResourceManager other = manager_of(other_space);
    auto claims = manager_.claims();
    if (!claims.empty() && one_in(3)) {
      const auto clash = claims[any_of(0, claims.size() - 1)];
      const bool is_shared =
          clash.request.index() == static_cast<std::size_t>(ResourceKind::legacy_irq);
      const auto* mmio = std::get_if<MmioRange>(&clash.request);
      const auto* window = std::get_if<BridgeWindow>(&clash.request);
      const bool is_parked =
          (mmio != nullptr && mmio->parked) || (window != nullptr && window->parked);
      // A window that a bridge has left may lie in any other one.
      const bool is_left = window != nullptr && oracle_.is_left(window->bridge);
      if (!is_shared && !is_parked && !is_left) {
        claims.push_back({"clash", clash.request});
        RC_ASSERT(!other.adopt(claims).has_value());
        RC_ASSERT(other.holders().empty() && other_space.snapshot()->empty());
        claims.pop_back();
      }
    }
    const auto adopted = other.adopt(claims);
    if (!adopted) RC_FAIL(adopted.error().message());
    RC_ASSERT(other.claims() == claims);
    RC_ASSERT(other.holders() == manager_.holders());
    RC_ASSERT(*other_space.snapshot() == placed_alone());
    const auto sound = other.check_invariants();
    if (!sound) RC_FAIL(sound.error().message());
  }

  void collect() { RC_ASSERT(manager_.collect().has_value()); }

  void check_same() const {
    RC_ASSERT(manager_.holders() == oracle_.holders());
    RC_ASSERT(manager_.claims() == oracle_.claims());
    check_space();
    check_usage();
    const auto sound = manager_.check_invariants();
    if (!sound) RC_FAIL(sound.error().message());
  }

 private:
  /// The space without what is retired.
  [[nodiscard]] AddressSpaceBase placed_alone() const {
    AddressSpaceBase now = *manager_.ledger().snapshot();
    for (const AddressSpaceRegionPtr& region : manager_.retired())
      static_cast<void>(now.remove_region(region));
    return now;
  }

  void check_space() const {
    const AddressSpaceBase now = placed_alone();
    std::size_t placed = 0;
    std::size_t parked = 0;
    for (const OraclePlace& place : oracle_.places) {
      if (place.is_window) continue;
      (place.parked ? parked : placed) += 1;
      if (place.parked) continue;
      const AddressSpaceRegion* region = now.find_region(GuestAddress{place.base});
      RC_ASSERT(region != nullptr);
      RC_ASSERT(region->range() == place.range());
      RC_ASSERT(region->owner() == place.owner);
      RC_ASSERT(region->name() == place.owner);
    }
    RC_ASSERT(now.size() == placed);
    RC_ASSERT(now.parked().size() == parked);
  }

  void check_usage() const {
    std::map<std::string, std::uint64_t> expected = {
        {"pio", oracle_.free(ResourceKind::pio, {test::ports})},
        {"legacy_irq", oracle_.free(ResourceKind::legacy_irq, {test::lines})},
        {"generic_irq", oracle_.free(ResourceKind::generic_irq, {test::generic_lines})},
        {"msi", oracle_.free(ResourceKind::msi, {test::messages})},
        {"kvm_slot", oracle_.free(ResourceKind::kvm_slot, {test::slot_numbers})},
        {"pci_device", oracle_.free(ResourceKind::pci_device, {test::devices})},
        {"mac_address", oracle_.free(ResourceKind::mac_address, {test::macs})}};
    if (manager_.retired().empty()) {
      expected.emplace("ram", oracle_.free_bytes(test::ram));
      expected.emplace("mmio_low", oracle_.free_bytes(test::mmio_low));
      expected.emplace("mmio_high", oracle_.free_bytes(test::mmio_high));
    }
    for (const ResourceUsage& usage : manager_.usage()) {
      const auto entry = expected.find(usage.name);
      if (entry == expected.end()) continue;
      RC_ASSERT(usage.free == entry->second);
      RC_ASSERT(usage.largest_free <= usage.free);
      expected.erase(entry);
    }
    RC_ASSERT(expected.empty());
  }

  const AddressSpace space_ = AddressSpace::create(machine()).value();
  const ResourceManager manager_ = manager_of(space_);
  std::map<std::string, DeviceResources> held_;
  ResourcesOracle oracle_;
};

RC_GTEST_PROP(ResourcesModel, DoesWhatListsOfWhatIsHeldDo, ()) {
  Pair pair;
  const int steps = *rc::gen::inRange(0, 60);
  for (int step = 0; step < steps; ++step) {
    switch (any_of(0, 15)) {
      case 0: pair.destroy(any_owner()); break;
      case 1: pair.release(any_owner()); break;
      case 2:
      case 3:
      case 4:
      case 5: pair.relocate(); break;
      case 6: pair.replay(); break;
      case 7: pair.fail_to_acquire(any_owner(), any_requests(pair.oracle())); break;
      case 8: pair.collect(); break;
      default: pair.acquire(any_owner(), any_requests(pair.oracle())); break;
    }
    pair.check_same();
  }
}

}  // namespace
}  // namespace vmspace::resources_model_test
