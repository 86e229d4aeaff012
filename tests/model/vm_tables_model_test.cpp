// SPDX-License-Identifier: Apache-2.0
//
// A VmMemory with the listeners that the library has, driven at random while their calls fail: KVM's
// slots, DMA mappings, a vhost-user device in a thread, and a recorder; some of the memory comes in
// blocks. After each step the map, the memory, the blocks and every table, as the other side has it,
// agree with a list of regions and blocks and what they hold.

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "vmspace/base/literals.hpp"
#include "vmspace/base/try.hpp"
#include "vmspace/vmm.hpp"

#include "model/vm_tables_sides.hpp"

namespace vmspace::vm_tables_model_test {
namespace {

using namespace literals;
using namespace std::chrono_literals;
using test::Side;
using test::Table;

constexpr std::uint64_t unit = 64_KiB;
constexpr std::uint64_t page = 4_KiB;
constexpr std::uint64_t origin = 4_GiB;
constexpr int places = 12;
constexpr std::uint64_t largest_region = 3 * unit;
/// Memory in blocks of `unit`, in slots of four.
constexpr GuestAddress blocks_base{6_GiB};
constexpr std::uint64_t block_count = 12;
constexpr std::uint64_t blocks_a_slot = 4;

GuestAddress place(int index) {
  return GuestAddress(origin + static_cast<std::uint64_t>(index) * unit);
}

int random_below(int end) {
  return *rc::gen::inRange(0, end);
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

/// A block of the model: what it begins with, while it is plugged.
using Block = std::optional<std::uint64_t>;

/// A region of the model.
struct Region {
  AddressSpaceRegionPtr description;
  std::uint64_t stamp = 0;  ///< at its first byte
  bool parked = false;
};

class Machine {
 public:
  Machine() {
    RC_ASSERT(memory_.set_gate(gate_).has_value());
    for (Side* side : sides_)
      RC_ASSERT(memory_.add_listener(side->listener(), {.required = side != &device_}).has_value());
  }

  void step() {
    fails_ = random_below(2) == 0;
    if (fails_) sides_[static_cast<std::size_t>(random_below(4))]->fail(random_below(12));
    switch (random_below(16)) {
      case 0:
      case 1:
      case 2: plug(); break;
      case 3: unplug(); break;
      case 4: move(1); break;
      case 5: move(3); break;
      case 6:
      case 7: resize(); break;
      case 8: write(); break;
      case 9: harvest(); break;
      case 10: start_or_stop_log(); break;
      case 11: static_cast<void>(memory_.collect()); break;
      case 12:
      case 13:
      case 14: plug_or_unplug_blocks(); break;
      case 15: write_to_block(); break;
    }
    for (Side* side : sides_)
      side->mend();
    check();
  }

 private:
  struct Log {
    VmDirtyLog log;
    std::set<std::uint64_t> must_have;  ///< pages that the next harvest has
  };

  /// Does what `edit` says: all of it, and then the model is `after`, or nothing.
  template <typename Change>
  void change(Change edit, const std::vector<Region>& after) {
    const Result<void> done = edit();
    if (!done) {
      const Errc code = done.error().code;
      RC_ASSERT(fails_ || device_.is_dead() || code == Errc::overlap || code == Errc::bad_state ||
                code == Errc::limit_exceeded);
      return;
    }
    for (const Region& region : after) {
      const auto same = [&](const Region& before) {
        return before.description == region.description && before.parked == region.parked;
      };
      // What joins, moves or is resized counts as written.
      if (!region.parked && std::ranges::none_of(regions_, same)) {
        for (std::uint64_t at = 0; at < region.description->size(); at += page)
          mark(region.description->base().value() + at);
      }
    }
    regions_ = after;
  }
  void mark(std::uint64_t address) {
    for (Log& log : logs_)
      log.must_have.insert(address);
  }

  [[nodiscard]] std::optional<std::size_t> any_region() const {
    if (regions_.empty()) return std::nullopt;
    return static_cast<std::size_t>(random_below(static_cast<int>(regions_.size())));
  }

  void plug() {
    const RegionOptions options{.name = "r" + std::to_string(next_name_++),
                                .base = place(random_below(places)),
                                .size = unit * static_cast<std::uint64_t>(1 + random_below(3)),
                                .backing = {.source = MemorySource::shmem}};
    const auto backing = Backing::open({.source = MemorySource::shmem}, largest_region).value();
    auto after = regions_;
    change(
        [&]() -> Result<void> {
          const auto region = VMSPACE_TRY(memory_.plug(options, {.backing = backing}));
          after.push_back({.description = region->shared_description()});
          return {};
        },
        after);
  }

  void unplug() {
    const auto index = any_region();
    if (!index) return;
    auto after = regions_;
    const auto gone = after[*index].description;
    after.erase(after.begin() + static_cast<std::ptrdiff_t>(*index));
    change([&] { return memory_.unplug(gone, 10s); }, after);
  }

  void resize() {
    const auto index = any_region();
    if (!index) return;
    auto after = regions_;
    const std::uint64_t size = unit * static_cast<std::uint64_t>(1 + random_below(3));
    change(
        [&]() -> Result<void> {
          const auto region = VMSPACE_TRY(memory_.resize(after[*index].description, size));
          after[*index].description = region->shared_description();
          return {};
        },
        after);
  }

  /// Moves, swaps and parks up to `count` at once.
  void move(int count) {
    auto after = regions_;
    std::vector<RegionMove> moves;
    std::vector<std::size_t> moved;
    for (int i = 0; i < count; ++i) {
      const auto index = any_region();
      if (!index || std::ranges::find(moved, *index) != moved.end()) continue;
      RegionMove to{.region = regions_[*index].description};
      if (random_below(5) != 0) to.to = place(random_below(places));
      moves.push_back(std::move(to));
      moved.push_back(*index);
    }
    change(
        [&] {
          return memory_.transact([&](AddressSpaceBase& draft) -> Result<void> {
            const auto now = VMSPACE_TRY(draft.move_regions(moves));
            for (std::size_t i = 0; i < moves.size(); ++i) {
              after[moved[i]].description = now[i];
              after[moved[i]].parked = !moves[i].to.has_value();
            }
            return {};
          });
        },
        after);
  }

  static GuestAddress block_at(std::uint64_t index) {
    return GuestAddress(blocks_base.value() + index * unit);
  }
  /// Blocks that are alike, from a random one: plugs them, or unplugs them.
  void plug_or_unplug_blocks() {
    const auto first = static_cast<std::uint64_t>(random_below(block_count));
    const bool is_plugged = blocks_[first].has_value();
    const std::uint64_t end =
        std::min(block_count, first + 1 + static_cast<std::uint64_t>(random_below(block_count)));
    std::uint64_t last = first;
    while (last + 1 < end && blocks_[last + 1].has_value() == is_plugged)
      ++last;
    const GuestRange run{block_at(first), (last + 1 - first) * unit};
    const auto done = is_plugged ? in_blocks_.unplug(run, 10s) : in_blocks_.plug(run);
    if (!done) {
      const Errc code = done.error().code;
      if (!fails_ && !device_.is_dead() && code != Errc::bad_state && code != Errc::limit_exceeded)
        RC_FAIL(done.error().message());
      return;
    }
    for (std::uint64_t i = first; i <= last; ++i) {
      blocks_[i] = is_plugged ? Block() : Block(0);
      for (std::uint64_t at = 0; at < unit && !is_plugged; at += page)
        mark(block_at(i).value() + at);
    }
  }
  void write_to_block() {
    const auto index = static_cast<std::uint64_t>(random_below(block_count));
    const auto done = memory_.map()->memory.write(block_at(index), ++next_stamp_);
    RC_ASSERT(done.has_value() == blocks_[index].has_value());
    if (!done) return;
    blocks_[index] = next_stamp_;
    mark(block_at(index).value());
    for (std::uint64_t at = page; Side * side : sides_) {
      if (side->write(block_at(index).value() + at)) mark(block_at(index).value() + at);
      at += page;
    }
  }

  /// This process writes to the first page of a region; the others, each to one of its own.
  void write() {
    const auto index = any_region();
    if (!index || regions_[*index].parked) return;
    Region& region = regions_[*index];
    region.stamp = ++next_stamp_;
    std::uint64_t address = region.description->base().value();
    RC_ASSERT(memory_.map()->memory.write(GuestAddress(address), region.stamp).has_value());
    mark(address);
    for (Side* side : sides_) {
      address += page;
      if (side->write(address)) mark(address);
    }
  }

  void harvest() {
    if (logs_.empty()) return;
    Log& log = logs_[static_cast<std::size_t>(random_below(static_cast<int>(logs_.size())))];
    const auto found = log.log.harvest();
    if (!found) {
      RC_ASSERT(fails_ || !memory_.unsettled().value().empty());
      return;  // and nothing is lost
    }
    const auto now = memory_.map();
    for (const std::uint64_t address : log.must_have) {
      if (!now->memory.contains({GuestAddress(address), 1})) continue;
      RC_ASSERT(std::ranges::any_of(
          *found, [&](const GuestRange& range) { return range.contains(GuestAddress(address)); }));
    }
    log.must_have.clear();
  }

  void start_or_stop_log() {
    if (logs_.size() == 2) {
      logs_.erase(logs_.begin());
    } else if (auto log = memory_.start_dirty_log()) {
      logs_.push_back({.log = *std::move(log), .must_have = {}});
    }
  }

  /// What everybody should find; of what comes in blocks, in sections of this unit.
  [[nodiscard]] Table expected(SectionUnit unit_of_blocks) const {
    Table all;
    const std::uint64_t step = unit_of_blocks == SectionUnit::block ? 1 : blocks_a_slot;
    for (std::uint64_t i = 0; i < block_count; i += step) {
      const auto part = std::span(blocks_).subspan(i, step);
      if (std::ranges::none_of(part, [](const Block& block) { return block.has_value(); }))
        continue;
      all.push_back({block_at(i).value(), step * unit, part.front().value_or(0)});
    }
    for (const Region& region : regions_) {
      const AddressSpaceRegion& description = *region.description;
      if (!region.parked)
        all.push_back({description.base().value(), description.size(), region.stamp});
    }
    std::ranges::sort(all);
    return all;
  }

  void check() {
    RC_ASSERT(gate_->depth == 0);
    const auto invariants = memory_.check_invariants();
    if (!invariants) RC_FAIL(invariants.error().message());
    settle();
    const Table model = expected(SectionUnit::block);
    const auto now = memory_.map();
    Table map;
    for (const GuestRange& run : in_blocks_.plugged()) {
      for (std::uint64_t at = 0; at < run.size; at += unit) {
        const GuestAddress block(run.base.value() + at);
        map.push_back({block.value(), unit, now->memory.read<std::uint64_t>(block).value()});
      }
    }
    for (const AddressSpaceRegionPtr& region : now->space) {
      if (region->base() == blocks_base) continue;
      const auto stamp = now->memory.read<std::uint64_t>(region->base());
      RC_ASSERT(stamp.has_value());
      map.push_back({region->base().value(), region->size(), *stamp});
    }
    std::ranges::sort(map);
    RC_ASSERT(map == model);
    if (!memory_.unsettled().value().empty()) return;
    for (const Side* side : sides_)
      RC_ASSERT(side->table() == expected(side->listener()->unit()));
    for (const MemoryRegionPtr& region : now->memory.regions()) {
      if (region->blocks() != nullptr) continue;
      const auto refused = region->mapping().discard(region->size() - page, page);
      RC_ASSERT(!refused && refused.error().code == Errc::bad_state);  // devices have it
    }
  }

  /// A device that has died comes back; and mostly, what was refused is done.
  void settle() {
    if (!memory_.unsettled().value().empty() && random_below(3) != 0) {
      const auto settled = memory_.collect();
      if (!settled && !device_.is_dead()) RC_FAIL(settled.error().message());
    }
    const auto listeners = memory_.listeners().value();
    const bool is_there = std::ranges::find(listeners, device_.listener()) != listeners.end();
    if (is_there && !device_.is_dead()) return;
    if (is_there) static_cast<void>(memory_.remove_listener(*device_.listener()));
    device_.reconnect();
    // Whoever has just joined has a table of its own, though others lack a section still.
    const auto added = memory_.add_listener(device_.listener(), {.required = false});
    if (!added) RC_FAIL(added.error().message());
  }

  test::Kvm kvm_;  // first, as the others make their system calls through it
  test::Dma dma_{false};
  test::VhostUser device_{random_below(2) == 0 ? test::acks : test::acks | test::slots};
  test::Recorder recorder_;
  const std::vector<Side*> sides_{&kvm_, &dma_, &device_, &recorder_};

  const std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();
  const VmMemory memory_ = VmMemory::create(*AddressSpaceLayout::x86_64({.phys_bits = 40})).value();
  const MemoryBlocks in_blocks_ = MemoryBlocks::create(memory_,
                                                       {.name = "blocks",
                                                        .base = blocks_base,
                                                        .size = block_count * unit,
                                                        .backing = {.source = MemorySource::shmem}},
                                                       {.block_size = unit,
                                                        .slot_size = blocks_a_slot * unit,
                                                        .requested_size = block_count * unit})
                                      .value();
  std::vector<Region> regions_;
  std::array<Block, block_count> blocks_{};
  std::vector<Log> logs_;
  bool fails_ = false;  ///< in this step
  std::uint64_t next_stamp_ = 0;
  int next_name_ = 0;
};

RC_GTEST_PROP(VmTablesModel, MapMemoryAndEveryTableAgreeWhateverFails, ()) {
  Machine machine;
  const int steps = *rc::gen::inRange(10, 200);
  for (int i = 0; i < steps; ++i)
    machine.step();
}

}  // namespace
}  // namespace vmspace::vm_tables_model_test
