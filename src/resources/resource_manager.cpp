// SPDX-License-Identifier: Apache-2.0
//
// ResourceManager: acquiring and adopting. Moves are in resource_manager_relocate.cpp, lists of what
// is held in resource_manager_lists.cpp.

#include "vmspace/resources/resource_manager.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <unordered_map>
#include <utility>
#include <variant>

#include <fmt/format.h>

#include "vmspace/base/try.hpp"

#include "resources/acquisition.hpp"
#include "resources/device_record.hpp"
#include "resources/resource_state.hpp"

namespace vmspace {

namespace {

using detail::Acquisition;
using detail::DeviceRecord;
using detail::RecordSize;
using detail::ResourceState;

// Lists that are acquired as a whole or not at all.

/// The requests of one owner.
struct RequestsOfOne {
  static constexpr const char* operation = "ResourceManager::acquire";
  static constexpr std::string_view item = "request";  ///< what errors call an element
  static constexpr bool adopts = false;
  static constexpr bool takes_over = false;

  std::span<const ResourceRequest> requests;
  DeviceRecord* record;

  [[nodiscard]] std::span<DeviceRecord* const> records() const noexcept { return {&record, 1}; }
  [[nodiscard]] std::size_t size() const noexcept { return requests.size(); }
  [[nodiscard]] const ResourceRequest& request(std::size_t i) const noexcept { return requests[i]; }
  [[nodiscard]] DeviceRecord& record_of(std::size_t) const noexcept { return *record; }
  [[nodiscard]] static std::size_t index_of(std::size_t i) noexcept { return i; }
};

/// A claim and its owner's record.
struct Item {
  const ResourceRequest* request;
  DeviceRecord* record;
  std::size_t index;     ///< in the list as it was given
  std::size_t rank = 0;  ///< lower ranks are acquired first
};

/// The claims of several owners.
struct Claims {
  static constexpr const char* operation = "ResourceManager::adopt";
  static constexpr std::string_view item = "claim";
  static constexpr bool adopts = true;

  bool takes_over = false;                 ///< regions that the ledger has already
  std::vector<DeviceRecord*> owners = {};  ///< each once
  std::vector<Item> items = {};            ///< in the order in which they are acquired

  [[nodiscard]] std::span<DeviceRecord* const> records() const noexcept { return owners; }
  [[nodiscard]] std::size_t size() const noexcept { return items.size(); }
  [[nodiscard]] const ResourceRequest& request(std::size_t i) const noexcept {
    return *items[i].request;
  }
  [[nodiscard]] DeviceRecord& record_of(std::size_t i) const noexcept { return *items[i].record; }
  [[nodiscard]] std::size_t index_of(std::size_t i) const noexcept { return items[i].index; }
};

/// Labels an error with the element at fault: `"request 3 (mmio) of nic0": ...`. Never allocates.
template <typename List>
Error about(const List& list, std::size_t i, const Error& error) {
  std::array<char, 128> text;
  const auto end =
      fmt::format_to_n(text.data(), text.size(), "{} {} ({}) of {}", List::item, list.index_of(i),
                       name_of(kind_of(list.request(i))), list.record_of(i).owner);
  Error named = error.in(List::operation);
  named.text = named.text.with_subject({text.data(), std::min(end.size, text.size())});
  return named;
}

/// The order in which the bridges of a list of claims are adopted.
class BridgeOrder {
 public:
  explicit BridgeOrder(const std::vector<Item>& items) {
    for (const Item& item : items) {
      const auto* window = std::get_if<BridgeWindow>(item.request);
      if (window != nullptr) bridges_.emplace(item.record->owner, Bridge{window->bridge});
    }
  }

  [[nodiscard]] bool empty() const noexcept { return bridges_.empty(); }

  /// Nested bridges have ascending ranks; bridges whose parent is gone, and those behind them, come
  /// after the others; whatever is not a window is last. O(1) amortised.
  [[nodiscard]] std::size_t rank_of(const Item& item) {
    if (kind_of(*item.request) != ResourceKind::bridge_window) return last + 1;
    std::vector<Bridge*> inner;  // waiting for the rank of their parent
    std::size_t rank = 0;
    for (std::string_view name = item.record->owner; !name.empty();) {
      const auto at = bridges_.find(name);
      if (at == bridges_.end()) {  // its parent is gone
        rank = bridges_.size();
        break;
      }
      Bridge& bridge = at->second;
      if (bridge.is_waiting) {  // a cycle of bridges, which is rejected later
        rank = last;
        break;
      }
      if (bridge.rank != 0) {
        rank = bridge.rank;
        break;
      }
      bridge.is_waiting = true;
      inner.push_back(&bridge);
      name = bridge.outer;
    }
    for (; !inner.empty(); inner.pop_back()) {
      rank = std::min(rank + 1, last);
      *inner.back() = {inner.back()->outer, rank};
    }
    return rank;
  }

 private:
  struct Bridge {
    std::string_view outer;  ///< the bridge that it is behind
    std::size_t rank = 0;    ///< 0: not known yet
    bool is_waiting = false;
  };

  static constexpr std::size_t last = std::numeric_limits<std::size_t>::max() - 1;

  std::unordered_map<std::string_view, Bridge> bridges_;
};

/// Sorts bridge windows before the ranges in them: outer windows, inner windows, windows whose
/// parent is gone, then everything else.
void put_windows_first(std::vector<Item>& items) {
  BridgeOrder order(items);
  if (order.empty()) return;
  for (Item& item : items)
    item.rank = order.rank_of(item);
  std::ranges::stable_sort(items, std::less<>(), &Item::rank);
}

/// Rolls back what a list has taken unless keep() is called.
template <typename List>
class Taken {
 public:
  Taken(ResourceState& state, const List& list) noexcept : state_(state), list_(list) {}
  Taken(const Taken&) = delete;
  Taken& operator=(const Taken&) = delete;
  ~Taken() {
    if (entered_ == 0) return;
    const ResourceState::Lock lock(state_);
    while (entered_ != 0)
      state_.leave(*list_.records()[--entered_]);
  }

  /// Acquires the list; `draft` is null if no address is requested.
  [[nodiscard]] Result<void> take(AddressSpaceBase* draft) {
    const ResourceState::Lock lock(state_);
    for (DeviceRecord* const record : list_.records()) {
      VMSPACE_TRY_IN(List::operation, state_.enter(*record));
      ++entered_;
    }
    Acquisition acquisition(state_, draft, List::adopts, this);
    // All of them first: a bridge window must be empty, and its claim comes before theirs.
    std::vector<AddressSpaceRegionPtr> lifted;
    if (list_.takes_over && draft != nullptr) {
      // Asked after the owners have entered: who gives a name back has retired its regions before.
      std::vector<const AddressSpaceRegion*> retired;
      for (const AddressSpaceRegionPtr& region : state_.ledger->retired())
        retired.push_back(region.get());
      std::ranges::sort(retired, std::less<>());
      lifted.reserve(list_.size());
      for (std::size_t i = 0; i < list_.size(); ++i)
        lifted.push_back(acquisition.lift(list_.request(i), list_.record_of(i), retired));
    }
    for (std::size_t i = 0; i < list_.size(); ++i) {
      const auto met = acquisition.take(list_.request(i), list_.record_of(i),
                                        lifted.empty() ? nullptr : std::move(lifted[i]));
      if (!met) return fail(about(list_, i, met.error()));
    }
    return {};
  }

  /// The change stands.
  void keep() noexcept {
    entered_ = 0;
    const auto has_windows = [](const DeviceRecord* record) { return !record->windows.empty(); };
    if (!std::ranges::any_of(list_.records(), has_windows)) return;
    const ResourceState::Lock lock(state_);
    for (DeviceRecord* const record : list_.records()) {
      for (detail::HeldWindow& window : record->windows)
        window.unsettled_by = nullptr;
    }
  }

 private:
  ResourceState& state_;
  const List& list_;
  std::size_t entered_ = 0;
};

/// Acquires a list, in one change of the ledger if it requests addresses.
template <typename List>
Result<void> meet(ResourceState& state, const List& list, bool needs_draft) {
  Taken<List> taken(state, list);
  if (needs_draft) {
    const RegionLedger::Edit edit = [&](AddressSpaceBase& draft) { return taken.take(&draft); };
    if (const auto changed = state.ledger->transact(edit); !changed) {
      return fail(changed.error().in(List::operation));
    }
  } else {
    VMSPACE_TRY(taken.take(nullptr));
  }
  taken.keep();
  return {};
}

}  // namespace

ResourceManager::ResourceManager(std::shared_ptr<ResourceState> state) noexcept
    : state_(std::move(state)) {}

Result<ResourceManager> ResourceManager::create(std::shared_ptr<const RegionLedger> ledger,
                                                const ResourceLimits& limits) {
  auto state = VMSPACE_TRY(ResourceState::create(std::move(ledger), limits));
  return ResourceManager(std::move(state));
}

Result<ResourceManager> ResourceManager::create(const AddressSpace& space,
                                                const ResourceLimits& limits) {
  return create(std::make_shared<AddressSpace>(space), limits);
}

Result<DeviceResources> ResourceManager::acquire(std::span<const ResourceRequest> requests,
                                                 std::string_view owner) const {
  auto record = std::make_unique<DeviceRecord>(owner);
  RecordSize size;
  for (const ResourceRequest& request : requests)
    size.add(kind_of(request));
  reserve(*record, size);
  VMSPACE_TRY(meet(*state_, RequestsOfOne{requests, record.get()}, size.has_addresses()));
  return DeviceResources(state_, std::move(record));
}

Result<std::vector<DeviceResources>> ResourceManager::adopt(std::span<const ResourceClaim> claims,
                                                            FoundRegions found) const {
  if (found != FoundRegions::refuse && found != FoundRegions::take_over) {
    return fail({.code = Errc::invalid_argument,
                 .operation = Claims::operation,
                 .first = Operand::number(static_cast<std::uint64_t>(found)),
                 .reason = "not a value of FoundRegions"});
  }
  struct Owner {
    std::unique_ptr<DeviceRecord> record;
    RecordSize size = {};
  };
  std::vector<Owner> owners;
  std::unordered_map<std::string_view, std::size_t> indices;
  Claims list{.takes_over = found == FoundRegions::take_over};
  bool needs_draft = false;
  list.items.reserve(claims.size());
  for (const ResourceClaim& claim : claims) {
    const auto [index, is_new] = indices.try_emplace(claim.owner, owners.size());
    if (is_new) {
      owners.push_back({std::make_unique<DeviceRecord>(claim.owner)});
      list.owners.push_back(owners.back().record.get());
    }
    Owner& owner = owners[index->second];
    list.items.push_back({&claim.request, owner.record.get(), list.items.size()});
    owner.size.add(kind_of(claim.request));
    needs_draft = needs_draft || detail::needs_addresses(kind_of(claim.request));
    if (!detail::is_fixed(claim.request)) {
      return fail(about(list, list.items.size() - 1,
                        {.code = Errc::invalid_argument,
                         .reason = "a claim must name the exact resource: set `fixed` (for a PCI "
                                   "device, bus and device)"}));
    }
  }
  for (const Owner& owner : owners)
    reserve(*owner.record, owner.size);
  put_windows_first(list.items);

  std::vector<DeviceResources> adopted;
  adopted.reserve(owners.size());
  VMSPACE_TRY(meet(*state_, list, needs_draft));
  for (Owner& owner : owners)
    adopted.push_back(DeviceResources(state_, std::move(owner.record)));
  return adopted;
}

Result<void> ResourceManager::collect() const {
  VMSPACE_TRY_IN("ResourceManager::collect", state_->ledger->collect());
  return {};
}

const RegionLedger& ResourceManager::ledger() const noexcept {
  return *state_->ledger;
}

}  // namespace vmspace
