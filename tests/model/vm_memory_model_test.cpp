// SPDX-License-Identifier: Apache-2.0
//
// A VmMemory driven at random, with listeners that refuse, against a list of regions and what they
// hold. After each step the map, guest memory, every listener's table and the logs agree with it.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/vmm.hpp"

namespace vmspace::vm_memory_model_test {
namespace {

using namespace literals;

constexpr std::uint64_t unit = 64_KiB;
constexpr std::uint64_t origin = 4_GiB;
constexpr int places = 12;

GuestAddress place(int index) {
  return GuestAddress(origin + static_cast<std::uint64_t>(index) * unit);
}

class Gate final : public VmGate {
 public:
  Result<void> pause(const MemoryChange&) override {
    ++depth;
    return {};
  }
  void resume() noexcept override { --depth; }
  int depth = 0;
};

/// A region of the model: what was written to each of its pages is a number.
struct Region {
  AddressSpaceRegionPtr description;
  std::uint64_t stamp = 0;  ///< at its first byte
  bool parked = false;
};

class Machine {
 public:
  Machine() {
    RC_ASSERT(memory.set_gate(gate).has_value());
    for (const auto& listener : listeners)
      RC_ASSERT(memory.add_listener(listener).has_value());
  }

  void step() {
    const bool refuses = *rc::gen::inRange(0, 3) == 0;
    const auto& refuser = listeners[static_cast<std::size_t>(*rc::gen::inRange(0, 2))];
    if (refuses) {
      refuser->refuse(static_cast<std::size_t>(*rc::gen::inRange(0, 10)),
                      static_cast<std::size_t>(*rc::gen::inRange(1, 4)));
    }
    switch (*rc::gen::inRange(0, 10)) {
      case 0:
      case 1: plug(); break;
      case 2: unplug(); break;
      case 3: move(1); break;
      case 4: move(2); break;
      case 5: move(3); break;
      case 6: write(); break;
      case 7: harvest(refuses); break;
      case 8: start_or_stop_log(); break;
      case 9: retire(); break;
    }
    for (const auto& listener : listeners)
      listener->refuse(0, 0);
    check();
  }

 private:
  struct Log {
    VmDirtyLog log;
    std::set<std::uint64_t> must_have;  ///< pages that the next harvest has
  };

  /// The regions as they would be; what the machine does equals it or changes nothing.
  void commit(const Result<void>& done, std::vector<Region> after) {
    if (!done) {
      const Errc code = done.error().code;
      RC_ASSERT(code == Errc::bad_state || code == Errc::overlap || code == Errc::inconsistent);
      return;
    }
    // What joins or moves counts as written.
    for (const Region& region : after) {
      const auto same = [&](const Region& before) {
        return before.description == region.description && before.parked == region.parked;
      };
      if (!region.parked && std::ranges::none_of(regions, same)) mark(region);
    }
    regions = std::move(after);
  }

  void mark(const Region& region) {
    for (Log& log : logs) {
      for (std::uint64_t at = 0; at < region.description->size(); at += 4096)
        log.must_have.insert(region.description->base().value() + at);
    }
  }

  void plug() {
    RegionOptions options{.name = "r" + std::to_string(next_name++),
                          .base = place(*rc::gen::inRange(0, places)),
                          .size = unit * static_cast<std::uint64_t>(*rc::gen::inRange(1, 4)),
                          .backing = {.source = MemorySource::shmem}};
    if (*rc::gen::inRange(0, 4) == 0) options.backing = {};  // MMIO, as it were
    auto after = regions;
    const auto done = memory.transact([&](AddressSpaceBase& draft) -> Result<void> {
      const auto made = VMSPACE_TRY(draft.insert_region(options));
      after.push_back({.description = made});
      return {};
    });
    commit(done, std::move(after));
  }

  std::optional<std::size_t> any_region() {
    if (regions.empty()) return std::nullopt;
    return static_cast<std::size_t>(*rc::gen::inRange(0, static_cast<int>(regions.size())));
  }

  void unplug() {
    const auto index = any_region();
    if (!index) return;
    auto after = regions;
    const auto gone = after[*index].description;
    after.erase(after.begin() + static_cast<std::ptrdiff_t>(*index));
    const auto done = memory.transact([&](AddressSpaceBase& draft) -> Result<void> {
      VMSPACE_TRY(draft.remove_region(gone));
      return {};
    });
    commit(done, std::move(after));
  }

  /// Moves, swaps and parks several at once, sometimes with a removal and an addition.
  void move(int count) {
    auto after = regions;
    std::vector<RegionMove> moves;
    std::vector<std::size_t> moved;
    for (int i = 0; i < count; ++i) {
      const auto index = any_region();
      if (!index || std::ranges::find(moved, *index) != moved.end()) continue;
      const auto& region = regions[*index];
      RegionMove to{.region = region.description};
      if (*rc::gen::inRange(0, 5) != 0) to.to = place(*rc::gen::inRange(0, places));
      moves.push_back(std::move(to));
      moved.push_back(*index);
    }
    const auto done = memory.transact([&](AddressSpaceBase& draft) -> Result<void> {
      const auto now = VMSPACE_TRY(draft.move_regions(moves));
      for (std::size_t i = 0; i < moves.size(); ++i) {
        after[moved[i]].description = now[i];
        after[moved[i]].parked = !moves[i].to.has_value();
      }
      return {};
    });
    commit(done, std::move(after));
  }

  void write() {
    const auto index = any_region();
    if (!index) return;
    Region& region = regions[*index];
    if (region.parked || !region.description->is_mapped()) return;
    region.stamp = ++next_stamp;
    const auto base = region.description->base();
    const auto now = memory.map();
    RC_ASSERT(now->memory.write(base, region.stamp).has_value());
    for (Log& log : logs)
      log.must_have.insert(base.value());
    // A guest writes through each listener's table, unless that lacks the region.
    for (std::uint64_t i = 0; i < listeners.size(); ++i) {
      const GuestAddress page(base.value() + (1 + i) * 4096);
      listeners[i]->wrote({page, 1});
      const auto table = listeners[i]->table();
      const auto has = [&](const MemorySection& section) { return section.base() == base; };
      if (std::ranges::none_of(table, has)) continue;
      for (Log& log : logs)
        log.must_have.insert(page.value());
    }
  }

  void harvest(bool refuses) {
    if (logs.empty()) return;
    Log& log = logs[static_cast<std::size_t>(*rc::gen::inRange(0, static_cast<int>(logs.size())))];
    const auto found = log.log.harvest();
    if (!found) {
      if (!refuses) RC_FAIL(found.error().message());
      return;  // and nothing is lost
    }
    const auto now = memory.map();
    for (const std::uint64_t page : log.must_have) {
      if (!now->memory.contains({GuestAddress(page), 1})) continue;
      const auto holds = [&](const GuestRange& range) {
        return range.contains(GuestAddress(page));
      };
      RC_ASSERT(std::ranges::any_of(*found, holds));
    }
    for (const GuestRange& range : *found)
      RC_ASSERT(now->memory.contains(range));
    log.must_have.clear();
  }

  void start_or_stop_log() {
    if (logs.size() == 2) {
      logs.erase(logs.begin());
      return;
    }
    auto log = memory.start_dirty_log();
    if (log) logs.push_back({.log = std::move(*log), .must_have = {}});
  }

  void retire() {
    const auto index = any_region();
    if (!index) return;
    memory.retire({regions[*index].description});
    // Whatever the listeners say now, it is out of the draft that the next edit sees; a refusal in
    // prepare() alone keeps it.
    const auto done = memory.collect();
    if (!memory.retired().empty()) {
      RC_ASSERT(!done.has_value());
      for (const auto& listener : listeners)
        listener->refuse(0, 0);
      RC_ASSERT(memory.collect().has_value());
    }
    regions.erase(regions.begin() + static_cast<std::ptrdiff_t>(*index));
  }

  void check() {
    RC_ASSERT(gate->depth == 0);
    const auto invariants = memory.check_invariants();
    if (!invariants) RC_FAIL(invariants.error().message());
    const auto unsettled = memory.unsettled().value();
    const auto now = memory.map();
    std::size_t placed = 0;
    std::size_t mapped = 0;
    for (const Region& region : regions) {
      const auto base = region.description->base();
      if (region.parked) {
        RC_ASSERT(std::ranges::find(now->space.parked(), region.description) !=
                  now->space.parked().end());
        continue;
      }
      ++placed;
      RC_ASSERT(now->space.find_region(base) == region.description.get());
      if (!region.description->is_mapped()) continue;
      ++mapped;
      RC_ASSERT(now->memory.read<std::uint64_t>(base).value() == region.stamp);
    }
    RC_ASSERT(now->space.size() == placed);
    RC_ASSERT(now->memory.regions().size() == mapped);
    if (unsettled.empty()) {
      for (const auto& listener : listeners) {
        const auto same = listener->check_equals(now->memory);
        if (!same) RC_FAIL(same.error().message());
      }
    } else if (*rc::gen::inRange(0, 2) == 0) {
      const auto settled = memory.collect();
      if (!settled) RC_FAIL(settled.error().message());
      RC_ASSERT(memory.unsettled().value().empty());
    }
  }

  static AddressSpaceLayout layout() { return *AddressSpaceLayout::x86_64({.phys_bits = 40}); }

  std::vector<std::shared_ptr<MemoryRecorder>> listeners = {
      std::make_shared<MemoryRecorder>("first"), std::make_shared<MemoryRecorder>("second")};
  std::shared_ptr<Gate> gate = std::make_shared<Gate>();
  const VmMemory memory = VmMemory::create(layout()).value();
  std::vector<Region> regions;
  std::vector<Log> logs;
  std::uint64_t next_stamp = 0;
  int next_name = 0;
};

RC_GTEST_PROP(VmMemoryModel, MapMemoryTablesAndLogsAgreeWhoeverRefuses, ()) {
  Machine machine;
  const int steps = *rc::gen::inRange(1, 60);
  for (int i = 0; i < steps; ++i)
    machine.step();
}

}  // namespace
}  // namespace vmspace::vm_memory_model_test
