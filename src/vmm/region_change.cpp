// SPDX-License-Identifier: Apache-2.0

#include "vmm/region_change.hpp"

#include <algorithm>
#include <iterator>

#include "vmspace/base/try.hpp"

namespace vmspace::detail {

namespace {

/// What `of` has and `others` has not, in its order. O(n log n).
std::vector<AddressSpaceRegionPtr> without(std::span<const AddressSpaceRegionPtr> of,
                                           std::vector<AddressSpaceRegionPtr> others) {
  std::ranges::sort(others);
  std::vector<AddressSpaceRegionPtr> rest;
  std::ranges::copy_if(of, std::back_inserter(rest), [&](const AddressSpaceRegionPtr& region) {
    return !std::ranges::binary_search(others, region);
  });
  return rest;
}

}  // namespace

RegionChange RegionChange::between(const AddressSpaceBase& before, const AddressSpaceBase& after) {
  RegionChange change;
  auto old_region = before.begin();
  auto new_region = after.begin();
  while (old_region != before.end() || new_region != after.end()) {
    const bool has_old = old_region != before.end();
    const bool has_new = new_region != after.end();
    if (has_old && has_new && *old_region == *new_region) {
      ++old_region;
      ++new_region;
    } else if (!has_new || (has_old && (*old_region)->base() <= (*new_region)->base())) {
      change.removed.push_back(*old_region++);
    } else {
      change.added.push_back(*new_region++);
    }
  }
  // Who is parked goes behind the others, so that one walk tells who has left and who has come: and as
  // both whoever was taken out and parked again, which is no change.
  auto still = after.parked().begin();
  std::vector<AddressSpaceRegionPtr> left;
  for (const AddressSpaceRegionPtr& region : before.parked()) {
    if (still != after.parked().end() && *still == region) {
      ++still;
    } else {
      left.push_back(region);
    }
  }
  const std::vector<AddressSpaceRegionPtr> come(still, after.parked().end());
  change.unparked = without(left, come);
  change.parked = without(come, left);
  return change;
}

Result<void> RegionChange::apply_to(AddressSpaceBase& space) const {
  for (const auto* regions : {&removed, &unparked}) {
    for (const AddressSpaceRegionPtr& region : *regions)
      VMSPACE_TRY(space.remove_region(region));
  }
  for (const AddressSpaceRegionPtr& region : added)
    VMSPACE_TRY(space.insert_region(region));
  for (const AddressSpaceRegionPtr& region : parked)
    VMSPACE_TRY(space.insert_parked_region(region));
  return {};
}

}  // namespace vmspace::detail
