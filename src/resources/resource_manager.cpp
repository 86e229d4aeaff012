// SPDX-License-Identifier: Apache-2.0
//
// ResourceManager: acquiring and adopting. Moves are in resource_manager_relocate.cpp, lists of what
// is held in resource_manager_lists.cpp.

#include "vmspace/resources/resource_manager.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <mutex>
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
using detail::ResourceState;

/// A request or a claim of a list, and whose it is.
struct Item {
  const ResourceRequest* request;
  DeviceRecord* record;
  std::size_t index;  ///< in the list as it was given
};

/// A list that is met wholly or not at all.
struct List {
  const char* operation;
  std::string_view item;  ///< what an error calls one: `request`, `claim`
  bool adopts = false;
  std::vector<Item> items = {};  ///< in the order in which they are met
  std::vector<std::unique_ptr<DeviceRecord>> records = {};
};

/// The error of an item: `"request 3 (mmio) of nic0": ...`. Never allocates.
Error about(const List& list, const Item& item, const Error& error) noexcept {
  std::array<char, 128> text;
  const auto end =
      fmt::format_to_n(text.data(), text.size(), "{} {} ({}) of {}", list.item, item.index,
                       name_of(kind_of(*item.request)), item.record->owner);
  Error named = error.in(list.operation);
  named.text = named.text.with_subject({text.data(), std::min(end.size, text.size())});
  return named;
}

/// Orders items so that bridge windows come before what lies in them, whatever order owners came in:
/// the windows of outer bridges, those of inner ones, those that a bridge has left, then all else.
void put_windows_first(std::vector<Item>& items) {
  std::unordered_map<std::string_view, std::string_view> outer;
  for (const Item& item : items) {
    const auto* window = std::get_if<BridgeWindow>(item.request);
    if (window != nullptr) outer.emplace(item.record->owner, window->bridge);
  }
  if (outer.empty()) return;
  const auto rank = [&](const Item& item) {
    const std::size_t most = outer.size();
    if (kind_of(*item.request) != ResourceKind::bridge_window) return most + 2;
    std::string_view bridge = item.record->owner;
    // Bridges that are behind each other, which is refused later, make no endless loop here.
    for (std::size_t steps = 0; steps <= most; ++steps) {
      if (bridge.empty()) return steps;
      const auto at = outer.find(bridge);
      if (at == outer.end()) break;
      bridge = at->second;
    }
    return most + 1;
  };
  std::ranges::stable_sort(items, std::less<>(), rank);
}

/// What is taken for a list, and is given back unless it is kept.
class Taken {
 public:
  Taken(ResourceState& state, List& list) noexcept : state_(state), list_(list) {}
  Taken(const Taken&) = delete;
  Taken& operator=(const Taken&) = delete;
  ~Taken() {
    if (entered_ == 0) return;
    const std::lock_guard lock(state_.mutex);
    while (entered_ != 0)
      state_.leave(*list_.records[--entered_]);
  }

  /// Meets the list; with a draft where it asks for addresses.
  [[nodiscard]] Result<void> take(AddressSpaceBase* draft) {
    const std::lock_guard lock(state_.mutex);
    for (const auto& record : list_.records) {
      VMSPACE_TRY_IN(list_.operation, state_.enter(*record));
      ++entered_;
    }
    Acquisition acquisition(state_, draft, list_.adopts);
    for (const Item& item : list_.items) {
      if (const auto met = acquisition.take(*item.request, *item.record); !met) {
        return fail(about(list_, item, met.error()));
      }
    }
    return {};
  }

  void keep() noexcept { entered_ = 0; }

 private:
  ResourceState& state_;
  List& list_;
  std::size_t entered_ = 0;
};

/// Meets a list by one change of the ledger, or without one where it asks for no address.
Result<void> meet(ResourceState& state, List& list) {
  Taken taken(state, list);
  const bool needs_draft = std::any_of(list.items.begin(), list.items.end(), [](const Item& item) {
    return detail::needs_addresses(kind_of(*item.request));
  });
  if (needs_draft) {
    const RegionLedger::Edit edit = [&](AddressSpaceBase& draft) { return taken.take(&draft); };
    if (const auto changed = state.ledger->transact(edit); !changed) {
      return fail(changed.error().in(list.operation));
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
                                                ResourceLimits limits) {
  auto state = VMSPACE_TRY(ResourceState::create(std::move(ledger), limits));
  return ResourceManager(std::move(state));
}

Result<ResourceManager> ResourceManager::create(const AddressSpace& space, ResourceLimits limits) {
  return create(std::make_shared<AddressSpace>(space), std::move(limits));
}

Result<DeviceResources> ResourceManager::acquire(std::span<const ResourceRequest> requests,
                                                 std::string_view owner) const {
  List list{.operation = "ResourceManager::acquire", .item = "request"};
  list.records.push_back(std::make_unique<DeviceRecord>(DeviceRecord{.owner = std::string(owner)}));
  DeviceRecord& record = *list.records.front();
  std::vector<const ResourceRequest*> pointers;
  pointers.reserve(requests.size());
  list.items.reserve(requests.size());
  for (const ResourceRequest& request : requests) {
    list.items.push_back({&request, &record, list.items.size()});
    pointers.push_back(&request);
  }
  reserve(record, pointers);
  VMSPACE_TRY(meet(*state_, list));
  return DeviceResources(state_, std::move(list.records.front()));
}

Result<std::vector<DeviceResources>> ResourceManager::adopt(
    std::span<const ResourceClaim> claims) const {
  List list{.operation = "ResourceManager::adopt", .item = "claim", .adopts = true};
  std::unordered_map<std::string_view, DeviceRecord*> owners;
  std::unordered_map<DeviceRecord*, std::vector<const ResourceRequest*>> requests;
  list.items.reserve(claims.size());
  for (const ResourceClaim& claim : claims) {
    DeviceRecord*& record = owners[claim.owner];
    if (record == nullptr) {
      list.records.push_back(std::make_unique<DeviceRecord>(DeviceRecord{.owner = claim.owner}));
      record = list.records.back().get();
    }
    list.items.push_back({&claim.request, record, list.items.size()});
    requests[record].push_back(&claim.request);
    if (!detail::is_fixed(claim.request)) {
      return fail(about(list, list.items.back(),
                        {.code = Errc::invalid_argument,
                         .reason = "a claim must say exactly what was held: set `fixed`"}));
    }
  }
  for (auto& [record, pointers] : requests)
    reserve(*record, pointers);
  put_windows_first(list.items);

  std::vector<DeviceResources> adopted;
  adopted.reserve(list.records.size());
  VMSPACE_TRY(meet(*state_, list));
  for (auto& record : list.records)
    adopted.push_back(DeviceResources(state_, std::move(record)));
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
