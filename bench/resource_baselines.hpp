// SPDX-License-Identifier: Apache-2.0
//
// What a VMM has that manages its numbers by hand: a std::map of free ranges for each kind, and one
// mutex around all of it.
//
// It takes the requests that vmspace takes, but for those of addresses, and gives the same numbers:
// the lowest that fit. All of a device's requests are met or none, errors say which request and why,
// and what is held is listed by owner. A device costs two allocations and what the maps need.
//
// The namespace is unnamed although this is a header: GCC inlines less of what has external linkage,
// and the baseline must not differ in that from the rest of the program.

#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include <tl/expected.hpp>

#include "vmspace/resources.hpp"

namespace {

/// Free ranges: from their first number to their last. Those that touch are one.
class FreeList {
 public:
  void add(vmspace::Range range) { free_.emplace(range.min(), range.max()); }

  /// The lowest `size` numbers in the window that begin at a multiple of `align`.
  std::optional<vmspace::Range> take(std::uint64_t size, std::uint64_t align,
                                     vmspace::Range window) {
    auto it = free_.upper_bound(window.min());
    if (it != free_.begin()) --it;
    for (; it != free_.end() && it->first <= window.max(); ++it) {
      const std::uint64_t lo = std::max(it->first, window.min());
      const std::uint64_t hi = std::min(it->second, window.max());
      const std::uint64_t place = (lo + align - 1) & ~(align - 1);
      if (place < lo || place > hi || hi - place < size - 1) continue;
      return cut(it, place, place + (size - 1));
    }
    return std::nullopt;
  }

  /// Exactly these; false when some of them are not free.
  bool take_at(vmspace::Range range) {
    auto it = free_.upper_bound(range.min());
    if (it == free_.begin() || (--it)->second < range.max()) return false;
    cut(it, range.min(), range.max());
    return true;
  }

  void give_back(vmspace::Range range) {
    std::uint64_t last = range.max();
    auto after = free_.upper_bound(range.min());
    const bool joins_after = after != free_.end() && after->first == last + 1;
    if (joins_after) last = after->second;
    if (after != free_.begin()) {
      const auto before = std::prev(after);
      if (before->second + 1 == range.min()) {
        before->second = last;
        if (joins_after) free_.erase(after);
        return;
      }
    }
    if (!joins_after) {
      free_.emplace_hint(after, range.min(), last);
      return;
    }
    // The key of the range after becomes lower, in its node.
    const auto next = std::next(after);
    auto node = free_.extract(after);
    node.key() = range.min();
    free_.insert(next, std::move(node));
  }

 private:
  using Map = std::map<std::uint64_t, std::uint64_t>;

  vmspace::Range cut(Map::iterator it, std::uint64_t first, std::uint64_t last) {
    const auto [lo, hi] = *it;
    if (first != lo) {
      it->second = first - 1;
      if (last != hi) free_.emplace_hint(std::next(it), last + 1, hi);
    } else if (last != hi) {
      const auto next = std::next(it);
      auto node = free_.extract(it);
      node.key() = last + 1;
      free_.insert(next, std::move(node));
    } else {
      free_.erase(it);
    }
    return *vmspace::Range::make(first, last);
  }

  Map free_;
};

class MapManager {
 public:
  struct Held {
    vmspace::ResourceKind kind;
    vmspace::Range range;
    bool shared = false;
  };

  enum class Code { owner_exists, invalid, taken, no_space, unsupported };

  struct Failure {
    Code code;
    std::size_t index;  ///< of the request
  };

  template <typename T>
  using Outcome = tl::expected<T, Failure>;

 private:
  struct Record {
    std::vector<Held> held;  ///< in the order asked
  };
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  using Owners = std::unordered_map<std::string, Record, Hash, std::equal_to<>>;

 public:
  /// What a device holds, given back when it goes.
  class Device {
   public:
    Device(Device&& other) noexcept
        : manager_(std::exchange(other.manager_, nullptr)), entry_(other.entry_) {}
    Device& operator=(Device&& other) noexcept {
      std::swap(manager_, other.manager_);
      std::swap(entry_, other.entry_);
      return *this;
    }
    ~Device() {
      if (manager_ != nullptr) manager_->release(entry_);
    }

    [[nodiscard]] const std::string& owner() const { return entry_->first; }
    /// The numbers of a kind, in the order asked.
    [[nodiscard]] vmspace::Range number(vmspace::ResourceKind kind, std::size_t index = 0) const {
      const auto& held = entry_->second.held;
      return std::find_if(held.begin(), held.end(),
                          [&](const Held& one) { return one.kind == kind && index-- == 0; })
          ->range;
    }

   private:
    friend class MapManager;
    Device(MapManager& manager, Owners::iterator entry) : manager_(&manager), entry_(entry) {}

    MapManager* manager_;
    Owners::iterator entry_;
  };

  explicit MapManager(const vmspace::ResourceLimits& limits, vmspace::Range slots)
      : any_pio_(limits.pio.any.value_or(vmspace::Range::whole_domain())),
        any_line_(limits.legacy_irqs.any.value_or(vmspace::Range::whole_domain())) {
    for (const auto& range : limits.pio.ranges)
      pio_.add(range);
    for (const auto& range : limits.legacy_irqs.ranges)
      lines_.add(range);
    for (const auto& range : limits.generic_irqs.ranges)
      gsis_.add(range);
    for (const auto& range : limits.msi.ranges)
      msi_.add(range);
    for (const auto& bus : limits.pci_buses) {
      pci_.add(*vmspace::Range::make(pci_number(bus.segment, bus.bus, bus.first_device),
                                     pci_number(bus.segment, bus.bus, bus.last_device)));
    }
    if (limits.mac_addresses) macs_.add(*limits.mac_addresses);
    slots_.add(slots);
  }

  Outcome<Device> acquire(std::span<const vmspace::ResourceRequest> requests,
                          std::string_view owner) {
    std::vector<Held> held;
    held.reserve(requests.size());
    std::string name(owner);
    const std::lock_guard lock(mutex_);
    const auto [entry, is_new] = owners_.try_emplace(std::move(name));
    if (!is_new) return tl::unexpected(Failure{Code::owner_exists, 0});
    for (std::size_t i = 0; i < requests.size(); ++i) {
      const Outcome<Held> got = std::visit(
          [&](const auto& request) -> Outcome<Held> {
            const auto one = take(request);
            if (!one) return tl::unexpected(Failure{one.error(), i});
            return *one;
          },
          requests[i]);
      if (!got) {
        give_back(held);
        owners_.erase(entry);
        return tl::unexpected(got.error());
      }
      held.push_back(*got);
    }
    entry->second.held = std::move(held);
    return Device(*this, entry);
  }

  struct Holder {
    Held held;
    std::string owner;
  };
  [[nodiscard]] std::vector<Holder> holders() const {
    std::vector<Holder> holders;
    {
      const std::lock_guard lock(mutex_);
      for (const auto& [owner, record] : owners_) {
        for (const Held& held : record.held)
          holders.push_back({held, owner});
      }
    }
    std::sort(holders.begin(), holders.end(), [](const Holder& a, const Holder& b) {
      return std::pair(a.held.kind, a.held.range) < std::pair(b.held.kind, b.held.range);
    });
    return holders;
  }

 private:
  using Taken = tl::expected<Held, Code>;

  static std::uint64_t pci_number(std::uint64_t segment, std::uint64_t bus, std::uint64_t device) {
    return segment << 13U | bus << 5U | device;
  }

  static Taken take_from(FreeList& list, vmspace::ResourceKind kind, std::uint64_t size,
                         std::uint64_t align, vmspace::Range window,
                         std::optional<std::uint64_t> fixed) {
    if (size == 0 || (align & (align - 1)) != 0) return tl::unexpected(Code::invalid);
    if (fixed) {
      const auto range = vmspace::Range::from_base_size(*fixed, size);
      if (!range || range->min() % align != 0 || !window.contains(*range)) {
        return tl::unexpected(Code::invalid);
      }
      if (!list.take_at(*range)) return tl::unexpected(Code::taken);
      return Held{kind, *range};
    }
    const auto range = list.take(size, align, window);
    if (!range) return tl::unexpected(Code::no_space);
    return Held{kind, *range};
  }

  Taken take(const vmspace::PioRange& request) {
    const std::uint64_t natural =
        request.fixed ? 1 : std::bit_ceil(std::min(request.size, std::uint64_t{0x1'0000}));
    const vmspace::Range anywhere = request.fixed ? vmspace::Range::whole_domain() : any_pio_;
    return take_from(pio_, vmspace::ResourceKind::pio, request.size,
                     request.align == 0 ? natural : request.align,
                     request.window.value_or(anywhere), request.fixed);
  }
  Taken take(const vmspace::LegacyIrq& request) {
    const vmspace::Range window = request.fixed ? vmspace::Range::whole_domain() : any_line_;
    auto own = take_from(lines_, vmspace::ResourceKind::legacy_irq, 1, 1, window, request.fixed);
    if (own) {
      own->shared = request.shared;
      if (request.shared) sharers_.emplace_back(own->range.min(), 1);
      return own;
    }
    if (!request.shared) return own;
    // The line with the fewest holders, the lowest of those.
    auto least = sharers_.end();
    for (auto it = sharers_.begin(); it != sharers_.end(); ++it) {
      if (request.fixed ? it->first != *request.fixed : !any_line_.contains(it->first)) continue;
      const auto rank = [](const auto& line) { return std::pair(line.second, line.first); };
      if (least == sharers_.end() || rank(*it) < rank(*least)) least = it;
    }
    if (least == sharers_.end()) return own;
    ++least->second;
    return Held{vmspace::ResourceKind::legacy_irq, vmspace::Range::point(least->first), true};
  }
  Taken take(const vmspace::GenericIrq& request) {
    return take_from(gsis_, vmspace::ResourceKind::generic_irq, request.count, 1,
                     vmspace::Range::whole_domain(), request.fixed);
  }
  Taken take(const vmspace::MsiVectors& request) {
    if (!std::has_single_bit(request.count) || request.count > 32) {
      return tl::unexpected(Code::invalid);
    }
    return take_from(msi_, vmspace::ResourceKind::msi, request.count, request.count,
                     vmspace::Range::whole_domain(), request.fixed);
  }
  Taken take(const vmspace::MsixVectors& request) {
    if (request.count > 2048) return tl::unexpected(Code::invalid);
    return take_from(msi_, vmspace::ResourceKind::msix, request.count, 1,
                     vmspace::Range::whole_domain(), request.fixed);
  }
  Taken take(const vmspace::KvmSlots& request) {
    return take_from(slots_, vmspace::ResourceKind::kvm_slot, request.count, 1,
                     vmspace::Range::whole_domain(), request.fixed);
  }
  Taken take(const vmspace::PciDevice& request) {
    if (request.device && (!request.bus || *request.device > 31)) {
      return tl::unexpected(Code::invalid);
    }
    const std::uint64_t first_bus = request.bus.value_or(0);
    const std::uint64_t last_bus = request.bus.value_or(255);
    const auto window = *vmspace::Range::make(pci_number(request.segment, first_bus, 0),
                                              pci_number(request.segment, last_bus, 31));
    std::optional<std::uint64_t> fixed;
    if (request.device) fixed = pci_number(request.segment, first_bus, *request.device);
    return take_from(pci_, vmspace::ResourceKind::pci_device, 1, 1, window, fixed);
  }
  Taken take(const vmspace::MacAddress& request) {
    return take_from(macs_, vmspace::ResourceKind::mac_address, 1, 1,
                     vmspace::Range::whole_domain(), request.fixed);
  }
  // Addresses are beyond it.
  Taken take(const vmspace::MmioRange&) { return tl::unexpected(Code::unsupported); }
  Taken take(const vmspace::MemoryRange&) { return tl::unexpected(Code::unsupported); }
  Taken take(const vmspace::BridgeWindow&) { return tl::unexpected(Code::unsupported); }

  FreeList& list_of(vmspace::ResourceKind kind) {
    switch (kind) {
      case vmspace::ResourceKind::legacy_irq: return lines_;
      case vmspace::ResourceKind::generic_irq: return gsis_;
      case vmspace::ResourceKind::msi:
      case vmspace::ResourceKind::msix: return msi_;
      case vmspace::ResourceKind::kvm_slot: return slots_;
      case vmspace::ResourceKind::pci_device: return pci_;
      case vmspace::ResourceKind::mac_address: return macs_;
      default: return pio_;
    }
  }

  /// The last first.
  void give_back(const std::vector<Held>& all) {
    for (auto held = all.rbegin(); held != all.rend(); ++held) {
      if (held->shared) {
        const auto line = std::find_if(sharers_.begin(), sharers_.end(), [&](const auto& one) {
          return one.first == held->range.min();
        });
        if (--line->second != 0) continue;
        *line = sharers_.back();
        sharers_.pop_back();
      }
      list_of(held->kind).give_back(held->range);
    }
  }

  void release(Owners::iterator entry) {
    Owners::node_type gone;  // freed after the lock
    const std::lock_guard lock(mutex_);
    give_back(entry->second.held);
    gone = owners_.extract(entry);
  }

  const vmspace::Range any_pio_;
  const vmspace::Range any_line_;

  mutable std::mutex mutex_;
  Owners owners_;
  FreeList pio_;
  FreeList lines_;
  FreeList gsis_;
  FreeList msi_;
  FreeList slots_;
  FreeList pci_;
  FreeList macs_;
  std::vector<std::pair<std::uint64_t, std::uint32_t>> sharers_;  ///< shared lines, in no order
};

}  // namespace
