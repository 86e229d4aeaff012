// SPDX-License-Identifier: Apache-2.0
//
// AddressSpaceBase: how regions move, and the parked ones.

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <functional>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/base/try.hpp"

namespace vmspace {

namespace {

tl::unexpected<Error> null_region(const char* operation) {
  return fail({.code = Errc::invalid_argument,
               .operation = operation,
               .reason = "the region is a null pointer"});
}

/// `overlap` for the lowest two of these regions that overlap.
Result<void> check_apart(std::vector<const AddressSpaceRegion*> regions, const char* operation) {
  std::sort(regions.begin(), regions.end(),
            [](const auto* a, const auto* b) { return a->base() < b->base(); });
  const auto clash = std::adjacent_find(
      regions.begin(), regions.end(),
      [](const auto* a, const auto* b) { return a->range().overlaps(b->range()); });
  if (clash == regions.end()) return {};
  const AddressSpaceRegion& lower = **clash;
  const AddressSpaceRegion& upper = **std::next(clash);
  return fail({.code = Errc::overlap,
               .operation = operation,
               .first = detail::operand(lower.range()),
               .second = detail::operand(upper.range()),
               .reason = "the new place of",
               .text = {lower.name(), upper.name()}});
}

}  // namespace

bool AddressSpaceBase::is_parked(const AddressSpaceRegionPtr& region) const noexcept {
  // A region that only the caller has was made for the call: who adds many need not search for each.
  return region.use_count() != 1 &&
         std::find(parked_.begin(), parked_.end(), region) != parked_.end();
}

Result<void> AddressSpaceBase::check_has(const AddressSpaceRegionPtr& region,
                                         const char* operation) const {
  if (region == nullptr) return null_region(operation);
  if (is_placed(region) || is_parked(region)) return {};
  return fail({.code = Errc::not_found,
               .operation = operation,
               .first = detail::operand(region->range()),
               .reason = "the space does not have this region: use the pointer that the last "
                         "move returned",
               .text = region->name()});
}

Result<AddressSpaceRegionPtr> AddressSpaceBase::insert_parked_region(AddressSpaceRegionPtr region) {
  constexpr const char* operation = "AddressSpaceBase::insert_parked_region";
  if (region == nullptr) return null_region(operation);
  if (is_placed(region) || is_parked(region)) {
    return fail({.code = Errc::bad_state,
                 .operation = operation,
                 .first = detail::operand(region->range()),
                 .reason = "the space has the region already: move_regions() parks it",
                 .text = region->name()});
  }
  parked_.push_back(region);
  return region;
}

Result<AddressSpaceRegionPtr> AddressSpaceBase::remove_region(AddressSpaceRegionPtr region) {
  constexpr const char* operation = "AddressSpaceBase::remove_region";
  VMSPACE_TRY(check_has(region, operation));
  if (is_placed(region)) {
    VMSPACE_TRY_IN(operation, regions_.free(region->range()));
    --size_;
  } else {
    std::erase(parked_, region);
  }
  return region;
}

Result<AddressSpaceRegionPtr> AddressSpaceBase::move_region(GuestAddress from, GuestAddress to) {
  constexpr const char* operation = "AddressSpaceBase::move_region";
  VMSPACE_TRY(region_from(from, operation));
  const RegionMove move{.region = *find_pointer(from), .to = to};
  auto after = VMSPACE_TRY(move_regions({&move, 1}, operation));
  return std::move(after.front());
}

Result<std::vector<AddressSpaceRegionPtr>> AddressSpaceBase::move_regions(
    std::span<const RegionMove> moves) {
  return move_regions(moves, "AddressSpaceBase::move_regions");
}

Result<AddressSpaceRegionPtr> AddressSpaceBase::moved(const RegionMove& move,
                                                      const char* operation) const {
  if (!move.to) return move.region;
  AddressSpaceRegionPtr region = move.region;
  if (*move.to != region->base()) {
    RegionOptions options = region->options();
    options.base = *move.to;
    region = VMSPACE_TRY_IN(operation, AddressSpaceRegion::make(std::move(options)));
  }
  VMSPACE_TRY(check_place(*region, operation));
  return region;
}

Result<std::vector<AddressSpaceRegionPtr>> AddressSpaceBase::move_regions(
    std::span<const RegionMove> moves, const char* operation) {
  // What each region becomes, and all that are named, sorted to be looked up.
  std::vector<AddressSpaceRegionPtr> after;
  std::vector<const AddressSpaceRegion*> named;
  after.reserve(moves.size());
  named.reserve(moves.size());
  for (const RegionMove& move : moves) {
    VMSPACE_TRY(check_has(move.region, operation));
    auto region = VMSPACE_TRY(moved(move, operation));
    after.push_back(std::move(region));
    named.push_back(move.region.get());
  }
  std::sort(named.begin(), named.end(), std::less<>());
  const auto twice = std::adjacent_find(named.begin(), named.end());
  if (twice != named.end()) {
    return fail({.code = Errc::invalid_argument,
                 .operation = operation,
                 .first = detail::operand((*twice)->range()),
                 .reason = "the region is named twice in one set of moves",
                 .text = (*twice)->name()});
  }

  // The new places are apart, so that all together meet each region that leaves but once, and free of
  // regions that stay.
  std::vector<const AddressSpaceRegion*> placed;
  placed.reserve(moves.size());
  for (std::size_t i = 0; i < moves.size(); ++i) {
    if (moves[i].to) placed.push_back(after[i].get());
  }
  VMSPACE_TRY(check_apart(placed, operation));
  for (const AddressSpaceRegion* region : placed)
    VMSPACE_TRY(check_free(*region, operation, named));

  // Which places are given up, which regions take one, and which are parked then.
  std::vector<Range> leaving;
  std::vector<AddressSpaceRegionPtr> coming;
  std::vector<AddressSpaceRegionPtr> parked = parked_;
  for (std::size_t i = 0; i < moves.size(); ++i) {
    const AddressSpaceRegionPtr& before = moves[i].region;
    const bool was_placed = is_placed(before);
    const bool goes_nowhere = after[i] == before && was_placed == moves[i].to.has_value();
    if (goes_nowhere) continue;
    if (was_placed) {
      leaving.push_back(before->range());
    } else {
      std::erase(parked, before);
    }
    (moves[i].to ? coming : parked).push_back(after[i]);
  }

  // A new place is taken before old ones are given up, because taking may fail for want of memory
  // and giving up can't. Where a new place overlaps an old one that order does not work, and of
  // several places the last may fail: then a copy is changed.
  const auto give_up = [&](Tree& tree) {
    for (const Range& range : leaving) {
      const auto freed = tree.free(range);
      assert(freed);
      static_cast<void>(freed);
    }
  };
  const bool in_place = coming.empty() || (coming.size() == 1 &&
                                           std::ranges::none_of(leaving, [&](const Range& range) {
                                             return range.overlaps(coming.front()->range());
                                           }));
  Tree copy = in_place ? Tree() : regions_;
  Tree& tree = in_place ? regions_ : copy;
  if (!in_place) give_up(tree);
  for (const AddressSpaceRegionPtr& region : coming) {
    VMSPACE_TRY_IN(operation, tree.allocate_at(region->range(), region));
  }
  if (in_place) {
    give_up(tree);
  } else {
    regions_.swap(copy);
  }
  parked_.swap(parked);
  size_ = size_ + coming.size() - leaving.size();
  return after;
}

}  // namespace vmspace
