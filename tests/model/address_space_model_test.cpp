// SPDX-License-Identifier: Apache-2.0
//
// An AddressSpaceBase and a plain vector of regions, driven together. The vector is searched from
// end to end, so that what it says needs no proof. Sizes and places are few and small, so that
// regions meet often, also at the edges of holes and apertures.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include "vmspace/address_space.hpp"
#include "vmspace/boot.hpp"

namespace vmspace::address_space_model_test {
namespace {

// One unit of the model is a page. RAM in [4, 64), but for the window of devices at [16, 24) and
// the hole at [40, 44); devices from 64 to 95.
constexpr std::uint64_t unit = 0x1000;
constexpr std::uint64_t units = 100;  // some past the end

AddressSpaceLayout layout() {
  return *AddressSpaceLayout::make(
      {.phys_max = 96 * unit - 1,
       .ram = *Range::from_base_size(4 * unit, 60 * unit),
       .apertures = {{"mmio", *Range::from_base_size(16 * unit, 8 * unit), ApertureUse::mmio}},
       .holes = {{"hole", *Range::from_base_size(40 * unit, 4 * unit)}}});
}

class Model {
 public:
  bool insert(const RegionOptions& region) {
    if (!fits(region)) return false;
    regions_.push_back(region);
    return true;
  }

  bool remove(GuestAddress base) {
    return std::erase_if(regions_, [&](const auto& region) { return region.base == base; }) == 1;
  }

  bool move(GuestAddress from, GuestAddress to) {
    const auto all = sorted();
    const auto found = std::find_if(all.begin(), all.end(),
                                    [&](const auto& region) { return region.base == from; });
    if (found == all.end()) return false;
    return move_all({{static_cast<std::size_t>(found - all.begin()), to}});
  }

  /// One of sorted(), or with a number that goes on from there, of parked().
  struct Move {
    std::size_t which;
    std::optional<GuestAddress> to;
  };

  /// All that goes is taken away, then each is put where it goes.
  bool move_all(const std::vector<Move>& moves) {
    const auto placed = sorted();
    std::vector<bool> named(placed.size() + parked_.size());
    Model after;
    std::vector<std::size_t> leaves_parking;
    for (const Move& move : moves) {
      if (named[move.which]) return false;
      named[move.which] = true;
      if (move.which >= placed.size() && move.to) leaves_parking.push_back(move.which);
    }
    for (std::size_t i = 0; i < placed.size(); ++i) {
      if (!named[i]) after.regions_.push_back(placed[i]);
    }
    for (std::size_t i = placed.size(); i < named.size(); ++i) {
      if (std::count(leaves_parking.begin(), leaves_parking.end(), i) == 0) {
        after.parked_.push_back(parked_[i - placed.size()]);
      }
    }
    for (const Move& move : moves) {
      const bool was_placed = move.which < placed.size();
      RegionOptions region = was_placed ? placed[move.which] : parked_[move.which - placed.size()];
      if (move.to) {
        region.base = *move.to;
        if (!after.insert(region)) return false;
      } else if (was_placed) {
        after.parked_.push_back(region);
      }
    }
    *this = after;
    return true;
  }

  void insert_parked(const RegionOptions& region) { parked_.push_back(region); }
  void remove_parked(std::size_t index) {
    parked_.erase(parked_.begin() + static_cast<std::ptrdiff_t>(index));
  }
  const std::vector<RegionOptions>& parked() const { return parked_; }

  /// The lowest place in the window for devices.
  std::optional<GuestAddress> place(std::uint64_t size, std::uint64_t align) {
    for (std::uint64_t base = 16; base < 24; ++base) {
      RegionOptions region{
          .type = RegionType::device_memory, .base = GuestAddress(base * unit), .size = size};
      if (base * unit % align == 0 && base * unit + size <= 24 * unit && insert(region)) {
        return region.base;
      }
    }
    return std::nullopt;
  }

  const RegionOptions* find(std::uint64_t address) const {
    for (const RegionOptions& region : regions_) {
      if (region.base.value() <= address && address - region.base.value() < region.size) {
        return &region;
      }
    }
    return nullptr;
  }

  std::vector<RegionOptions> sorted() const {
    auto all = regions_;
    std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.base < b.base; });
    return all;
  }

 private:
  /// Page by page: whether each belongs to the region's type, and to no other region.
  bool fits(const RegionOptions& region) const {
    const std::uint64_t first = region.base.value() / unit;
    const std::uint64_t end = first + region.size / unit;
    bool in_window = false;
    bool outside_window = false;
    for (std::uint64_t page = first; page < end; ++page) {
      const bool window = page >= 16 && page < 24;
      const bool ram = page >= 4 && page < 64 && !window;
      if (page >= 40 && page < 44) return false;
      if (region.type == RegionType::default_memory && !ram) return false;
      if (region.type == RegionType::device_memory && !window && (page < 64 || page >= 96)) {
        return false;
      }
      if (page >= 96) return false;
      (window ? in_window : outside_window) = true;
      if (find(page * unit) != nullptr) return false;
    }
    return !(in_window && outside_window);
  }

  std::vector<RegionOptions> regions_;
  std::vector<RegionOptions> parked_;  ///< in the order of parking
};

RegionOptions any_region() {
  static constexpr RegionType types[] = {RegionType::default_memory, RegionType::device_memory,
                                         RegionType::firmware_memory};
  return {.type = types[*rc::gen::inRange(0, 3)],
          .base = GuestAddress(*rc::gen::inRange<std::uint64_t>(0, units) * unit),
          .size = *rc::gen::inRange<std::uint64_t>(1, 12) * unit,
          .owner = std::string(*rc::gen::inRange<std::size_t>(0, 4), 'x')};
}

GuestAddress any_base(const Model& model) {
  const auto regions = model.sorted();
  // Mostly one that is there.
  if (!regions.empty() && *rc::gen::inRange(0, 4) != 0) {
    return regions[*rc::gen::inRange<std::size_t>(0, regions.size())].base;
  }
  return GuestAddress(*rc::gen::inRange<std::uint64_t>(0, units) * unit);
}

/// Up to five moves of regions that are there, often to places where others are or have been, and
/// now and then twice of one region.
std::vector<Model::Move> any_moves(const Model& model) {
  const auto placed = model.sorted();
  const std::size_t count = placed.size() + model.parked().size();
  std::vector<Model::Move> moves;
  if (count == 0) return moves;
  std::vector<std::size_t> left(count);
  std::iota(left.begin(), left.end(), std::size_t{0});
  const auto wanted = *rc::gen::inRange<std::size_t>(0, std::min<std::size_t>(count, 5) + 1);
  while (moves.size() < wanted) {
    const auto index = *rc::gen::inRange<std::size_t>(0, left.size());
    Model::Move move{.which = left[index], .to = std::nullopt};
    if (*rc::gen::inRange(0, 6) != 0) left.erase(left.begin() + static_cast<std::ptrdiff_t>(index));
    if (*rc::gen::inRange(0, 4) != 0) move.to = any_base(model);
    moves.push_back(move);
  }
  return moves;
}

/// Of any range: the regions that a walk over all of them finds.
void check_overlapping(const AddressSpaceBase& space, const Model& model) {
  const GuestRange range{GuestAddress(*rc::gen::inRange<std::uint64_t>(0, units * unit)),
                         *rc::gen::inRange<std::uint64_t>(0, 40 * unit)};
  auto expected = model.sorted();
  std::erase_if(expected, [&](const RegionOptions& region) {
    return !range.overlaps({region.base, region.size});
  });
  const auto found = space.overlapping(range);
  RC_ASSERT(found.empty() == expected.empty());
  RC_ASSERT(
      std::equal(found.begin(), found.end(), expected.begin(), expected.end(),
                 [](const auto& region, const auto& said) { return region->options() == said; }));
}

void check_same(const AddressSpaceBase& space, const Model& model) {
  const auto expected = model.sorted();
  RC_ASSERT(space.size() == expected.size());
  RC_ASSERT(
      std::equal(space.begin(), space.end(), expected.begin(), expected.end(),
                 [](const auto& region, const auto& said) { return region->options() == said; }));
  RC_ASSERT(std::equal(
      space.parked().begin(), space.parked().end(), model.parked().begin(), model.parked().end(),
      [](const auto& region, const auto& said) { return region->options() == said; }));
  for (std::uint64_t page = 0; page <= units; ++page) {
    const std::uint64_t address = page * unit + (page % 2) * (unit - 1);
    const AddressSpaceRegion* region = space.find_region(GuestAddress(address));
    const RegionOptions* said = model.find(address);
    RC_ASSERT((region == nullptr) == (said == nullptr));
    if (region != nullptr) RC_ASSERT(region->options() == *said);
  }
  const auto sound = space.check_invariants();
  if (!sound) RC_FAIL(sound.error().message());
  check_overlapping(space, model);
}

RC_GTEST_PROP(AddressSpaceModel, DoesWhatAVectorOfRegionsDoes, ()) {
  AddressSpaceBase space(layout());
  Model model;
  const int steps = *rc::gen::inRange(0, 40);
  for (int step = 0; step < steps; ++step) {
    const AddressSpaceBase before = space;
    bool succeeded = false;
    switch (*rc::gen::inRange(0, 9)) {
      case 0:
      case 1: {
        const RegionOptions region = any_region();
        succeeded = space.insert_region(region).has_value();
        RC_ASSERT(succeeded == model.insert(region));
        break;
      }
      case 2: {
        const GuestAddress base = any_base(model);
        succeeded = space.remove_region(base).has_value();
        RC_ASSERT(succeeded == model.remove(base));
        break;
      }
      case 3: {
        const GuestAddress from = any_base(model);
        const GuestAddress to(*rc::gen::inRange<std::uint64_t>(0, units) * unit);
        succeeded = space.move_region(from, to).has_value();
        RC_ASSERT(succeeded == model.move(from, to));
        break;
      }
      case 4: {
        const std::uint64_t size = *rc::gen::inRange<std::uint64_t>(1, 10) * unit;
        const std::uint64_t align = unit << *rc::gen::inRange(0, 4);
        const Constraint constraint{.size = size, .align = align};
        const auto found = space.find_place(RegionType::device_memory, constraint, "mmio");
        const auto placed =
            space.place_region({.type = RegionType::device_memory}, constraint, "mmio");
        const auto expected = model.place(size, align);
        RC_ASSERT(found.has_value() == expected.has_value());
        if (found) RC_ASSERT(found->min() == expected->value());
        succeeded = placed.has_value();
        RC_ASSERT(succeeded == expected.has_value());
        if (placed) RC_ASSERT((*placed)->base() == *expected);
        break;
      }
      case 5:
      case 6: {
        const auto chosen = any_moves(model);
        std::vector<AddressSpaceRegionPtr> regions(space.begin(), space.end());
        regions.insert(regions.end(), space.parked().begin(), space.parked().end());
        std::vector<RegionMove> moves;
        for (const Model::Move& move : chosen)
          moves.push_back({.region = regions[move.which], .to = move.to});
        const auto after = space.move_regions(moves);
        succeeded = after.has_value();
        RC_ASSERT(succeeded == model.move_all(chosen));
        for (std::size_t i = 0; succeeded && i < moves.size(); ++i) {
          RegionOptions expected = moves[i].region->options();
          if (moves[i].to) expected.base = *moves[i].to;
          RC_ASSERT((*after)[i]->options() == expected);
        }
        break;
      }
      case 7: {
        const RegionOptions region = any_region();
        RC_ASSERT(space.insert_parked_region(*AddressSpaceRegion::make(region)).has_value());
        model.insert_parked(region);
        succeeded = true;
        break;
      }
      case 8: {
        if (space.parked().empty()) break;
        const auto index = *rc::gen::inRange<std::size_t>(0, space.parked().size());
        RC_ASSERT(space.remove_region(space.parked()[index]).has_value());
        model.remove_parked(index);
        succeeded = true;
        break;
      }
    }
    if (!succeeded) RC_ASSERT(space == before);
    check_same(space, model);

    // The difference and the parked regions, applied to what was before, give what is now.
    AddressSpaceBase rebuilt = before;
    for (const auto& region : before.parked())
      RC_ASSERT(rebuilt.remove_region(region).has_value());
    const RegionDiff changes = diff(before, space);
    for (const auto& region : changes.removed) {
      RC_ASSERT(rebuilt.remove_region(region->base()).has_value());
    }
    for (const auto& region : changes.added)
      RC_ASSERT(rebuilt.insert_region(region).has_value());
    // Copies: of two regions that say the same, the parked one may be the one that was placed, which
    // is no difference.
    for (const auto& region : space.parked())
      RC_ASSERT(
          rebuilt.insert_parked_region(*AddressSpaceRegion::make(region->options())).has_value());
    RC_ASSERT(rebuilt == space);
  }
}

RC_GTEST_PROP(AddressSpaceModel, ATransactionIsAllOfItsEditsOrNone, ()) {
  const AddressSpace space(AddressSpaceBase{layout()});
  const int transactions = *rc::gen::inRange(1, 8);
  for (int t = 0; t < transactions; ++t) {
    AddressSpaceBase expected = *space.snapshot();
    const std::uint64_t generation = space.generation();
    const auto edits = *rc::gen::container<std::vector<RegionOptions>>(rc::gen::exec(any_region));
    bool fits = true;
    for (const RegionOptions& edit : edits)
      fits = fits && expected.insert_region(edit).has_value();
    const auto result = space.transact([&](AddressSpaceBase& draft) -> Result<void> {
      for (const RegionOptions& edit : edits) {
        VMSPACE_TRY(draft.insert_region(edit));
      }
      return {};
    });
    RC_ASSERT(result.has_value() == fits);
    RC_ASSERT(space.generation() == generation + (fits ? 1 : 0));
    if (fits) RC_ASSERT(*space.snapshot() == expected);
  }
}

// RAM that a plan places fits the space, node by node in order, and is as much as was asked for.
RC_GTEST_PROP(LayoutModel, APlanPlacesAllRamWhereRamMayLie, ()) {
  const auto machine = *AddressSpaceLayout::x86_64(
      {.phys_bits = *rc::gen::inRange(36U, 53U), .amd_hole = *rc::gen::arbitrary<bool>()});
  const auto pages =
      *rc::gen::container<std::vector<std::uint64_t>>(rc::gen::inRange<std::uint64_t>(1, 1 << 24));
  RC_PRE(!pages.empty());
  std::vector<std::uint64_t> sizes;
  for (const std::uint64_t count : pages)
    sizes.push_back(count * unit);
  const auto plan = machine.plan_ram(sizes);
  if (!plan) {
    RC_ASSERT(plan.error().code == Errc::no_space);
    return;
  }
  AddressSpaceBase space(machine);
  std::vector<std::uint64_t> planned(sizes.size());
  std::uint64_t next = 0;
  std::uint32_t node = 0;
  for (const RamPiece& piece : *plan) {
    RC_ASSERT(piece.base.value() >= next);
    RC_ASSERT(piece.node >= node);
    next = piece.base.value() + piece.size;
    node = piece.node;
    planned[node] += piece.size;
    RC_ASSERT(space.insert_region({.base = piece.base, .size = piece.size}).has_value());
  }
  RC_ASSERT(planned == sizes);
  // The boot table has the same RAM, but for the part below 1 MiB that a PC reserves.
  std::uint64_t ram = 0;
  std::uint64_t end = 0;
  for (const E820Entry& entry : e820(space)) {
    RC_ASSERT(entry.base.value() >= end);
    end = entry.base.value() + entry.size;
    if (entry.type == E820Type::ram) ram += entry.size;
  }
  std::uint64_t expected = 0;
  for (const AddressSpaceRegionPtr& region : space) {
    const Range legacy = Range::of(0x9'fc00, 0xf'ffff);
    const auto lost = region->range().intersection(legacy);
    expected += region->size() - (lost ? lost->size() : 0);
  }
  RC_ASSERT(ram == expected);
}

}  // namespace
}  // namespace vmspace::address_space_model_test
