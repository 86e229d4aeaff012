// SPDX-License-Identifier: Apache-2.0
//
// What an edit has done to an address space, to be done to another one: a change is decided on a
// draft with every place that is taken, and made to the space that readers see.

#pragma once

#include <vector>

#include "vmspace/address_space/address_space_base.hpp"
#include "vmspace/base/result.hpp"

namespace vmspace::detail {

/// Regions by their pointers, each list in address order or in the order of parking.
struct RegionChange {
  std::vector<AddressSpaceRegionPtr> removed;   ///< had an address
  std::vector<AddressSpaceRegionPtr> added;     ///< have an address now
  std::vector<AddressSpaceRegionPtr> unparked;  ///< were parked
  std::vector<AddressSpaceRegionPtr> parked;    ///< are parked now

  /// Unlike diff(), tells equal regions apart: they are different objects to those who hold them.
  [[nodiscard]] static RegionChange between(const AddressSpaceBase& before,
                                            const AddressSpaceBase& after);

  [[nodiscard]] bool empty() const noexcept {
    return removed.empty() && added.empty() && unparked.empty() && parked.empty();
  }

  /// Makes the change to a space that has what is removed, and room for what is added.
  [[nodiscard]] Result<void> apply_to(AddressSpaceBase& space) const;
};

}  // namespace vmspace::detail
