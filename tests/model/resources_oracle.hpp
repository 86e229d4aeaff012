// SPDX-License-Identifier: Apache-2.0
//
// What a ResourceManager does, on plain lists that are searched from end to end, so that what they
// say needs no proof.

#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "vmspace/base/literals.hpp"
#include "vmspace/resources.hpp"

namespace vmspace::test {

using namespace literals;

// A small machine, in which everything meets often. Addresses are multiples of 256 KiB: 16 MiB of
// MMIO below 4 GiB with a hole, 8 MiB above, and 4 MiB of RAM.
inline constexpr std::uint64_t granule = 256_KiB;
inline constexpr Range ram = Range::of(0, 4_MiB - 1);
inline constexpr Range mmio_low = Range::of(256_MiB, 272_MiB - 1);
inline constexpr Range mmio_hole = Range::of(260_MiB, 261_MiB - 1);
inline constexpr Range mmio_high = Range::of(8_GiB, 8_GiB + 8_MiB - 1);
inline constexpr Range ports = Range::of(0, 63);
inline constexpr Range any_port = Range::of(16, 63);
inline constexpr Range lines = Range::of(1, 6);
inline constexpr Range any_line = Range::of(2, 6);
inline constexpr Range generic_lines = Range::of(8, 23);
inline constexpr Range messages = Range::of(100, 163);
inline constexpr Range macs = Range::of(1, 8);
inline constexpr Range slot_numbers = Range::of(0, 15);
inline constexpr Range devices = Range::of(1, 7);  ///< of the one bus

/// A number that is held, as `kind` has it.
struct OracleNumber {
  std::string owner;
  ResourceKind kind;
  Range range;
  bool shared = false;
  std::uint64_t align = 0;  ///< of ports, as it was asked
};

/// A region or a window.
struct OraclePlace {
  std::string owner;
  bool is_window;
  std::uint64_t base;
  ResourceRequest request;  ///< as it was asked; MmioRange, MemoryRange or BridgeWindow
  std::uint64_t size;
  std::uint64_t align;  ///< that it moves by
  MmioReach reach;
  bool prefetchable;
  std::string bridge;
  bool parked;
  bool is_memory = false;
  std::string aperture = {};

  [[nodiscard]] Range range() const { return *Range::from_base_size(base, size); }
};

/// Where one of an oracle's places goes.
struct OracleMove {
  std::size_t place;
  std::optional<std::uint64_t> to;
};

class ResourcesOracle {
 public:
  std::vector<std::string> owners = {};  ///< in the order in which they came
  std::vector<OracleNumber> numbers = {};
  std::vector<OraclePlace> places = {};

  bool acquire(const std::string& owner, const std::vector<ResourceRequest>& requests) {
    if (std::count(owners.begin(), owners.end(), owner) != 0) return false;
    ResourcesOracle after = *this;
    after.owners.push_back(owner);
    for (const ResourceRequest& request : requests) {
      const bool met = std::visit(
          [&](const auto& alternative) { return after.take(owner, alternative); }, request);
      if (!met) return false;
    }
    *this = std::move(after);
    return true;
  }

  void release(const std::string& owner) {
    std::erase(owners, owner);
    std::erase_if(numbers, [&](const OracleNumber& it) { return it.owner == owner; });
    std::erase_if(places, [&](const OraclePlace& it) { return it.owner == owner; });
  }

  bool relocate(const std::vector<OracleMove>& moves) {
    ResourcesOracle after = *this;
    std::vector<bool> moved(places.size());
    bool moves_windows = false;
    for (const OracleMove& move : moves) {
      if (moved[move.place]) return false;
      moved[move.place] = true;
      OraclePlace& place = after.places[move.place];
      moves_windows |= place.is_window;
      place.parked = !move.to;
      if (move.to) place.base = *move.to;
      if (move.to && *move.to % place.align != 0) return false;
    }
    for (std::size_t i = 0; i < places.size(); ++i) {
      const OraclePlace& place = after.places[i];
      if (place.parked) continue;
      if (moved[i] && !place.is_window) {
        if (!after.fits(place) || !after.is_free(place.range(), i)) return false;
      }
      if (moves_windows && !after.goes_with_windows(i, moved)) return false;
    }
    *this = std::move(after);
    return true;
  }

  [[nodiscard]] std::vector<ResourceHolder> holders() const {
    std::vector<ResourceHolder> all;
    for (const std::string& owner : owners) {
      for (const OracleNumber& it : numbers) {
        if (it.owner == owner) all.push_back({it.kind, it.range, owner, it.shared, false});
      }
      for (const OraclePlace& it : places) {
        if (it.owner == owner)
          all.push_back({kind_of(it.request), it.range(), owner, false, it.parked,
                         it.is_window ? "" : owner});
      }
    }
    std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
      return std::tie(a.kind, a.parked, a.range) < std::tie(b.kind, b.parked, b.range);
    });
    return all;
  }

  [[nodiscard]] std::vector<ResourceClaim> claims() const {
    std::vector<ResourceClaim> all;
    for (const std::string& owner : owners) {
      for (const OracleNumber& it : numbers) {
        if (it.owner == owner) all.push_back({owner, claim_of(it)});
      }
      for (const bool windows : {true, false}) {
        for (const OraclePlace& it : places) {
          if (it.owner == owner && it.is_window == windows) all.push_back({owner, claim_of(it)});
        }
      }
    }
    return all;
  }

  /// How many of these numbers, or addresses, are free.
  [[nodiscard]] std::uint64_t free(ResourceKind kind, std::initializer_list<Range> ranges) const {
    std::uint64_t count = 0;
    for (const Range& range : ranges) {
      for (std::uint64_t number = range.min(); number <= range.max(); ++number)
        count += holder(kind, Range::point(number)) == nullptr;
    }
    return count;
  }
  [[nodiscard]] std::uint64_t free_bytes(Range aperture) const {
    std::uint64_t count = 0;
    for (std::uint64_t base = aperture.min(); base < aperture.max(); base += granule) {
      const Range range = *Range::from_base_size(base, granule);
      if (!range.overlaps(mmio_hole) && is_free(range, places.size())) count += granule;
    }
    return count;
  }

  /// Whether the bridge is the other one, or behind it.
  [[nodiscard]] bool is_behind(std::string bridge, const std::string& other) const {
    for (; !bridge.empty(); bridge = window_of(bridge)->bridge) {
      if (bridge == other) return true;
      if (window_of(bridge) == nullptr) return false;
    }
    return false;
  }

  /// Whether the bridge has gone, or one that it is behind.
  [[nodiscard]] bool is_left(std::string bridge) const {
    for (; !bridge.empty(); bridge = window_of(bridge)->bridge) {
      if (window_of(bridge) == nullptr) return true;
    }
    return false;
  }

 private:
  // -- numbers
  static bool same_space(ResourceKind a, ResourceKind b) {
    const auto space = [](ResourceKind kind) {
      return kind == ResourceKind::msix ? ResourceKind::msi : kind;
    };
    return space(a) == space(b);
  }
  [[nodiscard]] const OracleNumber* holder(ResourceKind kind, Range range) const {
    for (const OracleNumber& it : numbers) {
      if (same_space(it.kind, kind) && it.range.overlaps(range)) return &it;
    }
    return nullptr;
  }
  bool take_numbers(const std::string& owner, ResourceKind kind, Range window, std::uint64_t size,
                    std::uint64_t align, std::optional<std::uint64_t> fixed) {
    for (std::uint64_t first = window.min(); first + size - 1 <= window.max(); ++first) {
      const Range range = *Range::from_base_size(first, size);
      if (first % align != 0 || (fixed && first != *fixed) || holder(kind, range) != nullptr)
        continue;
      numbers.push_back({owner, kind, range});
      return true;
    }
    return false;
  }

  bool take(const std::string& owner, const PioRange& it) {
    const std::uint64_t natural = it.fixed ? 1 : std::bit_ceil(it.size);
    const auto window = ports.intersection(it.fixed ? ports : it.window.value_or(any_port));
    const bool taken = window && take_numbers(owner, ResourceKind::pio, *window, it.size,
                                              it.align == 0 ? natural : it.align, it.fixed);
    if (taken) numbers.back().align = it.align;
    return taken;
  }
  bool take(const std::string& owner, const LegacyIrq& it) {
    if (take_numbers(owner, ResourceKind::legacy_irq, it.fixed ? lines : any_line, 1, 1,
                     it.fixed)) {
      numbers.back().shared = it.shared;
      return true;
    }
    if (!it.shared) return false;
    std::optional<std::uint64_t> best;
    const auto count = [&](std::uint64_t line) {
      return std::count_if(numbers.begin(), numbers.end(), [&](const OracleNumber& held) {
        return held.kind == ResourceKind::legacy_irq && held.shared && held.range.min() == line;
      });
    };
    for (std::uint64_t line = lines.min(); line <= lines.max(); ++line) {
      const bool is_meant = it.fixed ? line == *it.fixed : any_line.contains(line);
      if (!is_meant || count(line) == 0) continue;
      if (!best || count(line) < count(*best)) best = line;
    }
    if (!best) return false;
    numbers.push_back({owner, ResourceKind::legacy_irq, Range::point(*best), true});
    return true;
  }
  bool take(const std::string& owner, const GenericIrq& it) {
    return take_numbers(owner, ResourceKind::generic_irq, generic_lines, it.count, 1, it.fixed);
  }
  bool take(const std::string& owner, const MsiVectors& it) {
    if (!std::has_single_bit(it.count)) return false;
    return take_numbers(owner, ResourceKind::msi, messages, it.count, it.count, it.fixed);
  }
  bool take(const std::string& owner, const MsixVectors& it) {
    return take_numbers(owner, ResourceKind::msix, messages, it.count, 1, it.fixed);
  }
  bool take(const std::string& owner, const KvmSlots& it) {
    return take_numbers(owner, ResourceKind::kvm_slot, slot_numbers, it.count, 1, it.fixed);
  }
  bool take(const std::string& owner, const PciDevice& it) {
    return take_numbers(owner, ResourceKind::pci_device, devices, 1, 1, it.device);
  }
  bool take(const std::string& owner, const MacAddress& it) {
    return take_numbers(owner, ResourceKind::mac_address, macs, 1, 1, it.fixed);
  }

  // -- addresses
  [[nodiscard]] const OraclePlace* window_of(const std::string& bridge) const {
    for (const OraclePlace& it : places) {
      if (it.is_window && it.owner == bridge) return &it;
    }
    return nullptr;
  }
  [[nodiscard]] bool has_window(const std::string& bridge) const {
    return std::any_of(places.begin(), places.end(), [&](const OraclePlace& it) {
      return it.is_window && it.owner == bridge && !it.parked;
    });
  }
  /// Where a place may be looked for: in a bridge's windows, those that are for it first.
  [[nodiscard]] std::vector<std::pair<Range, bool>> containers(const OraclePlace& place) const {
    if (place.is_memory) return {{ram, false}};
    std::vector<std::pair<Range, bool>> found;
    const bool is_outside = place.bridge.empty();  // and then no window below is the bridge's
    if (is_outside && place.aperture != "mmio_high") found.emplace_back(mmio_low, false);
    if (is_outside && place.aperture != "mmio_low") found.emplace_back(mmio_high, false);
    for (const OraclePlace& it : places) {
      const bool is_there =
          place.aperture.empty() || (place.aperture == "mmio_low") == mmio_low.contains(it.range());
      const bool suits = it.is_window && it.owner == place.bridge && !it.parked && is_there;
      const auto* window = std::get_if<BridgeWindow>(&it.request);
      if (suits && (!window->prefetchable || place.prefetchable)) {
        found.emplace_back(it.range(), window->prefetchable);
      }
    }
    return found;
  }
  static bool is_in_reach(const OraclePlace& place) {
    const bool is_low = place.base < 4_GiB;
    if (place.reach == MmioReach::below_4g) return is_low;
    return place.reach != MmioReach::high || place.prefetchable || !is_low;
  }
  [[nodiscard]] bool is_within(const OraclePlace& place) const {
    const auto all = containers(place);
    return is_in_reach(place) && !place.range().overlaps(mmio_hole) &&
           std::any_of(all.begin(), all.end(),
                       [&](const auto& it) { return it.first.contains(place.range()); });
  }
  [[nodiscard]] bool is_clear(const OraclePlace& place,
                              const std::vector<bool>& skipped = {}) const {
    for (std::size_t i = 0; i < places.size(); ++i) {
      const OraclePlace& it = places[i];
      if (!it.is_window || it.parked || &it == &place || (!skipped.empty() && skipped[i])) continue;
      if (it.range().overlaps(place.range()) && !is_behind(place.bridge, it.owner)) return false;
    }
    return true;
  }
  [[nodiscard]] bool fits(const OraclePlace& place) const {
    return is_within(place) && is_clear(place);
  }
  /// Whether no region but one has a part of it.
  [[nodiscard]] bool is_free(Range range, std::size_t but) const {
    for (std::size_t i = 0; i < places.size(); ++i) {
      const OraclePlace& it = places[i];
      if (i != but && !it.is_window && !it.parked && it.range().overlaps(range)) return false;
    }
    return true;
  }

  bool enter(OraclePlace place, std::optional<GuestAddress> fixed) {
    if (place.parked) {
      place.base = fixed.value_or(GuestAddress{}).value();
    } else if (fixed) {
      place.base = fixed->value();
      if (place.base % place.align != 0 || !fits(place) || !is_free(place.range(), places.size()))
        return false;
    } else if (const auto base = find(place)) {
      place.base = *base;
    } else {
      return false;
    }
    places.push_back(std::move(place));
    return true;
  }
  [[nodiscard]] std::optional<std::uint64_t> find(OraclePlace place) const {
    const bool high_first =
        place.reach == MmioReach::high || (place.prefetchable && place.reach == MmioReach::any);
    for (const bool preferred : {true, false}) {
      for (const bool high : {high_first, !high_first}) {
        for (const auto& [range, is_preferred] : containers(place)) {
          if (is_preferred != preferred) continue;
          for (place.base = range.min(); place.base <= range.max(); place.base += granule) {
            const bool is_there = place.base % place.align == 0 && range.contains(place.range()) &&
                                  (place.base >= 4_GiB) == high;
            if (is_there && fits(place) && is_free(place.range(), places.size())) return place.base;
          }
        }
      }
    }
    return std::nullopt;
  }

  bool take(const std::string& owner, const MmioRange& it) {
    if (!it.bridge.empty() && it.bridge == owner) return false;
    const std::uint64_t align = it.align == 0 ? std::bit_ceil(it.size) : it.align;
    OraclePlace place{owner,    false,           0,         it,        it.size, align,
                      it.reach, it.prefetchable, it.bridge, it.parked, false,   it.aperture};
    // Where no BAR can be, it is where it is, and moves anywhere.
    if (it.fixed && it.align == 0 && it.fixed->value() % align != 0) place.align = granule;
    return enter(place, it.fixed);
  }
  bool take(const std::string& owner, const MemoryRange& it) {
    const std::uint64_t align = std::max(it.align, granule);
    return enter(
        {owner, false, 0, it, it.region.size, align, MmioReach::any, false, "", false, true},
        it.fixed);
  }
  bool take(const std::string& owner, const BridgeWindow& it) {
    if (it.size % 1_MiB != 0 || is_behind(it.bridge, owner)) return false;
    const OraclePlace* own = window_of(owner);
    if (own != nullptr && own->bridge != it.bridge) return false;
    for (const OraclePlace& other : places) {
      if (own == nullptr && !other.parked && is_behind(other.bridge, owner)) return false;
    }
    if (it.reach == MmioReach::high && !it.prefetchable) return false;
    const MmioReach reach = it.prefetchable ? it.reach : MmioReach::below_4g;
    return enter({owner, true, 0, it, it.size, std::max(it.align, 1_MiB), reach, it.prefetchable,
                  it.bridge, it.parked, false, it.aperture},
                 it.fixed);
  }

  /// Whether a place is right, once windows have moved.
  [[nodiscard]] bool goes_with_windows(std::size_t index, const std::vector<bool>& moved) const {
    OraclePlace free_of_bridge = places[index];
    if (!has_window(free_of_bridge.bridge)) free_of_bridge.bridge.clear();
    if (!is_within(free_of_bridge)) return false;
    const OraclePlace& place = places[index];
    const bool left = is_left(place.bridge);
    std::vector<bool> skipped(places.size());
    for (std::size_t i = 0; i < places.size(); ++i) {
      const OraclePlace& it = places[i];
      if (!it.is_window) continue;
      // What is behind a window overlaps it; what bridges have left may, until one of both moves.
      const bool behind_it = place.is_window && is_behind(it.bridge, place.owner);
      const bool other_left = place.is_window && is_left(it.bridge) && !moved[i] && !moved[index];
      const bool was_left = left && !moved[i] && !moved[index];
      skipped[i] = behind_it || other_left || was_left || i == index;
    }
    return is_clear(place, skipped);
  }

  // -- claims
  static ResourceRequest claim_of(const OracleNumber& it) {
    const std::uint64_t first = it.range.min();
    const auto number = static_cast<std::uint32_t>(first);
    const auto count = static_cast<std::uint32_t>(it.range.size());
    switch (it.kind) {
      case ResourceKind::legacy_irq: return LegacyIrq{.fixed = number, .shared = it.shared};
      case ResourceKind::generic_irq: return GenericIrq{.count = count, .fixed = number};
      case ResourceKind::msi: return MsiVectors{.count = count, .fixed = number};
      case ResourceKind::msix: return MsixVectors{.count = count, .fixed = number};
      case ResourceKind::kvm_slot: return KvmSlots{.count = count, .fixed = number};
      case ResourceKind::pci_device:
        return PciDevice{.bus = 0, .device = static_cast<std::uint8_t>(first)};
      case ResourceKind::mac_address: return MacAddress{.fixed = first};
      default: return PioRange{.size = it.range.size(), .align = it.align, .fixed = first};
    }
  }
  static ResourceRequest claim_of(const OraclePlace& it) {
    ResourceRequest claim = it.request;
    if (auto* mmio = std::get_if<MmioRange>(&claim)) {
      mmio->fixed = GuestAddress{it.base};
      mmio->parked = it.parked;
      const std::uint64_t natural = std::bit_ceil(it.size);
      const bool looks_aligned = it.align < natural && it.base % natural == 0;
      if (mmio->align == 0 && looks_aligned) mmio->align = 1;
    } else if (auto* window = std::get_if<BridgeWindow>(&claim)) {
      window->fixed = GuestAddress{it.base};
      window->parked = it.parked;
    } else {
      std::get<MemoryRange>(claim).fixed = GuestAddress{it.base};
    }
    return claim;
  }
};

}  // namespace vmspace::test
